"""The deblender GAN and its U-Net: sizes, bounds, what it learns from, what it refuses."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from galnb.gans import to_signed
from galnb.gans.deblender import DeblenderConfig, Discriminator, _Brush, deblend, deblender
from galnb.gans.features import feature_network
from galnb.gans.layers import Gate, batch_dependent
from galnb.gans.losses import log_mse, mse
from galnb.gans.radio import RadioConfig, radio
from galnb.training import TrainingConfig, train
from galnb.training.checkpoints import Checkpoint
from tests.tiny_runs import TINY, batches, images, one_thread  # noqa: F401

GATED = replace(TINY, generator="gated", reconstruction="log_mse")
CPU = {"device": "cpu", "learning_rate": 1e-3}


def parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def convolution(before, after, kernel, *, bias):
    return before * after * kernel**2 + (after if bias else 0)


def test_parameters_of_the_papers_generator():
    """1,715,718 = 794,496 in the root + 2 x 460,611 in the branches, with biases before batch norm."""

    def paper(*, biases):
        block = (
            2 * (convolution(64, 64, 3, bias=biases) + 2 * 64) + 64
        )  # norms: scale and shift; PReLU: slopes
        head, tail = convolution(3, 64, 9, bias=True) + 64, convolution(64, 64, 3, bias=biases) + 2 * 64
        return head + 10 * block + tail, 6 * block + convolution(64, 3, 9, bias=True)

    assert paper(biases=True) == (794_496, 460_611)
    root, branch = paper(biases=False)
    ours = parameters(deblender(DeblenderConfig()).generator)
    assert ours == root + 2 * branch == 1_715_718 - 45 * 64  # 45 convolutions before a norm: 20 + 1 + 2 x 12


def test_parameters_of_the_papers_discriminator():
    widths = [64, 64, 128, 128, 256, 256, 512, 512]
    norms = [2 * width for width in widths[1:]]
    convolutions = [convolution(3, 64, 3, bias=True)]
    convolutions += [convolution(a, b, 3, bias=False) for a, b in pairwise(widths)]
    dense = [512 * 5 * 5 * 1024 + 1024, 1024 + 1]
    network = Discriminator(DeblenderConfig())
    assert parameters(network) == sum(convolutions + norms + dense) == 17_796_481
    kinds = [type(layer).__name__ for layer in network]
    norm, dense = ["Conv2d", "BatchNorm2d", "LeakyReLU"], ["Flatten", "Linear", "LeakyReLU", "Linear"]
    assert kinds == ["Conv2d", "LeakyReLU", *7 * norm, *dense]


def test_batch_norm_merges_into_the_convolution_before_it():
    network = Discriminator(TINY)
    scaled = to_signed(images())
    network(scaled)  # some statistics
    network.eval()
    merged = [layer for layer in network if not isinstance(layer, nn.BatchNorm2d)]
    for index, layer in enumerate(network):
        if isinstance(layer, nn.BatchNorm2d):
            place = merged.index(network[index - 1])
            merged[place] = torch.nn.utils.fuse_conv_bn_eval(network[index - 1], layer)
    assert torch.allclose(nn.Sequential(*merged)(scaled), network(scaled), atol=1e-5)  # float32


@pytest.mark.parametrize("name", ["branched", "gated", "unet"])
@pytest.mark.parametrize(("count", "channels"), [(2, 3), (3, 1)])
def test_generators_keep_the_size_and_its_range(name, count, channels):
    gan = deblender(replace(TINY, generator=name, count=count, channels=channels))
    for side in (16, 32):
        drawn = gan.generator(to_signed(images(2, side, channels)))
        assert drawn.shape == (2, count, channels, side, side)
        assert drawn.min() >= -1 and drawn.max() <= 1
    assert gan.discriminator(to_signed(images(5, 16, channels))).shape == (5, 1)


def test_branches_share_the_root_and_differ():
    generator = deblender(TINY).generator.eval()
    blended = to_signed(images(2))
    head = generator.head(blended)
    root = head + generator.root(head)
    wanted = torch.stack([branch(root) for branch in generator.branches], 1)
    assert torch.allclose(generator(blended), wanted, atol=1e-6)
    assert not torch.allclose(wanted[:, 0], wanted[:, 1], atol=1e-2)


def test_gated_output_is_never_brighter_than_the_blend(generator):
    gan = deblender(GATED)
    with torch.no_grad():
        for weight in gan.generator.parameters():
            weight.normal_(0, 3, generator=generator)  # whatever it learns
    blended = torch.rand(4, 3, 16, 16, generator=generator)
    drawn = deblend(gan, blended)
    assert (drawn <= blended[:, None] + 1e-6).all() and drawn.min() >= 0  # (x + 1) - 1 rounds in float32
    assert (drawn > 0.5 * blended[:, None]).any()


def test_headroom_allows_exactly_so_much_more():
    blended, open_gate = (
        to_signed(torch.tensor([0.0, 0.3, 1.0]).view(3, 1, 1, 1)),
        torch.full((3, 2, 1, 1), 40.0),
    )
    for headroom in (0.0, 0.25):
        light = (Gate(headroom)(blended, open_gate) + 1) / 2
        assert torch.allclose(light, (blended[:, None] + 1) / 2 + headroom, atol=1e-6)
    assert Gate(0.25)(blended, -open_gate).max() == -1


def test_gate_keeps_galaxies_and_colours_apart():
    """Of N x C logits per pixel, the first C are galaxy 0's."""
    logits = torch.full((1, 6, 1, 1), -40.0)
    logits[0, 4] = 40.0  # galaxy 1, green
    light = Gate(0.0)(torch.ones(1, 3, 1, 1), logits)
    assert ((light[0, :, :, 0, 0] + 1) / 2).tolist() == [[0, 0, 0], [0, 1, 0]]


def test_brush_and_gate_differ_in_what_they_may_draw():
    blended, logits = torch.full((1, 3, 4, 4), -0.8), torch.full((1, 6, 4, 4), 9.0)
    assert torch.allclose(Gate(0.0)(blended, logits), blended[:, None].expand(1, 2, 3, 4, 4), atol=1e-3)
    assert torch.allclose(_Brush()(blended, logits), torch.ones(1, 2, 3, 4, 4), atol=1e-3)
    gated, free = (deblender(replace(GATED, generator=name)).generator for name in ("gated", "unet"))
    assert all(
        torch.equal(mine, other) for mine, other in zip(gated.parameters(), free.parameters(), strict=True)
    )


@pytest.mark.parametrize(("model", "reconstruction"), [(TINY, mse), (GATED, log_mse)])
def test_losses_are_the_papers(model, reconstruction):
    """L_G = mean over branches of reconstruction + 1e-3 BCE(D(G), 1); L_D = mean of BCE(x, 1) + BCE(G, 0)."""
    gan, batch = deblender(model), batches()(0)
    gan.generator.eval(), gan.discriminator.eval()  # fixed statistics: parts may be computed one by one
    drawn, truth = gan.generator(2 * batch["blended"] - 1), 2 * batch["galaxies"] - 1

    def bce(pictures, answer):
        logits = gan.discriminator(pictures)
        return functional.binary_cross_entropy(logits.sigmoid(), torch.full_like(logits, answer))

    generator_loss = sum(1e-3 * bce(drawn[:, k], 1.0) for k in range(2)) / 2 + reconstruction(drawn, truth)
    discriminator_loss = sum(bce(truth[:, k], 1.0) + bce(drawn[:, k], 0.0) for k in range(2)) / 2
    found = gan.generator_loss(gan, batch, None)
    assert found["total"].item() == pytest.approx(generator_loss.item(), rel=1e-5)
    assert gan.discriminator_loss(gan, batch, None)["total"].item() == pytest.approx(
        discriminator_loss.item(), rel=1e-5
    )
    assert gan.burn_in_loss(gan, batch, None)["total"].item() == pytest.approx(
        reconstruction(drawn, truth).item()
    )


def test_burn_in_by_features_teaches_the_generator_alone():
    features = feature_network("random")
    gan, batch = deblender(TINY, features=features), batches()(0)
    gan.generator.eval()
    drawn = (gan.generator(gan.prepare(batch["blended"])) + 1) / 2
    wanted = sum(mse(features(drawn[:, k]), features(batch["galaxies"][:, k])) for k in range(2))
    assert gan.burn_in_loss(gan, batch, None)["total"].item() == pytest.approx(wanted.item(), rel=1e-4)
    before = [weight.clone() for weight in features.parameters()]
    history = train(gan, batches(), TrainingConfig(steps=12, burn_in=12, **CPU)).losses["burn_in/total"]
    assert sum(history[-3:]) < sum(history[:3])
    assert all(torch.equal(a, b) for a, b in zip(before, features.parameters(), strict=True))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (replace(TINY, count=3), {"count": 3}),
        (replace(GATED, headroom=0.2), {"rule": "sum"}),
        (replace(GATED, count=3, headroom=0.2), {"rule": "sum", "count": 3}),
    ],
)
def test_three_galaxies_and_sums_train(model, options):
    gan = deblender(model)
    history = train(gan, batches(**options), TrainingConfig(steps=16, **{**CPU, "learning_rate": 5e-3}))
    losses = history.losses["generator/reconstruction"]
    assert sum(losses[-4:]) < sum(losses[:4])
    drawn = deblend(gan, batches(**options)(99)["blended"], count=model.count)
    assert drawn.shape == (4, model.count, 3, 16, 16) and drawn.isfinite().all()


def test_the_seed_fixes_the_first_weights_and_touches_nothing_else():
    before = torch.get_rng_state()
    first, again, other = deblender(TINY), deblender(TINY), deblender(replace(TINY, seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.generator.head[0].weight, again.generator.head[0].weight)
    assert not torch.equal(first.generator.head[0].weight, other.generator.head[0].weight)


def test_deblend_gives_the_same_in_any_batch_and_restores_the_mode():
    gan = deblender(TINY)
    blended = batches()(0)["blended"]
    whole, parts = deblend(gan, blended), deblend(gan, blended, batch=3)
    assert gan.generator.training
    assert torch.allclose(whole, parts, atol=1e-6)  # convolutions may add in another order
    assert whole.min() >= 0 and whole.max() <= 1 and not whole.is_inference()


def test_eight_symmetries_make_the_answer_turn_with_the_blend():
    gan, blended = deblender(TINY), batches()(1)["blended"]
    drawn = deblend(gan, blended, symmetries=8)
    for turn in (lambda x: x.rot90(1, (-2, -1)), lambda x: x.flip(-1), lambda x: x.transpose(-2, -1)):
        assert torch.allclose(deblend(gan, turn(blended), symmetries=8), turn(drawn), atol=1e-5)
    assert not torch.allclose(deblend(gan, blended.flip(-1)), deblend(gan, blended).flip(-1), atol=1e-3)


def test_a_judge_with_group_norm_sees_each_image_alone():
    """With batch norm in training an image's logit depends on the others; with group norm it never does."""
    seen = to_signed(images(6))
    for norm, alike in (("group", True), ("none", True), ("batch", False)):
        judge = Discriminator(replace(TINY, discriminator_norm=norm)).train()
        with torch.no_grad():
            together = judge(seen)
            for others in ([0, 1], [0, 4, 5], [0, 0, 0, 0]) + ([0],) * alike:
                assert torch.allclose(judge(seen[others])[0], together[0], atol=1e-5) == alike
        assert bool(batch_dependent(judge)) != alike


@pytest.mark.parametrize(("kernel", "alike"), [(3, False), (4, True)])
def test_kernels_of_four_meet_the_padding_at_all_sides_alike(kernel, alike):
    """Ones through kernels of ones: what a layer gives is how many pixels of the frame it saw."""
    config = replace(TINY, size=32, discriminator_kernel=kernel)
    strided = [layer for layer in Discriminator(config) if getattr(layer, "stride", 1) == (2, 2)]
    assert len(strided) == 4
    for level, layer in enumerate(strided):
        nn.init.ones_(layer.weight)
        with torch.no_grad():
            found = (
                layer(torch.ones(1, layer.in_channels, 32 >> level, 32 >> level))[0, 0] / layer.in_channels
            )
        assert found.shape == (16 >> level, 16 >> level)
        lost = kernel**2 - found
        top, bottom, left, right = lost[0].sum(), lost[-1].sum(), lost[:, 0].sum(), lost[:, -1].sum()
        assert top == left > 0
        assert (top == bottom and left == right) == alike
        assert torch.equal(found, found.flip(0)) == torch.equal(found, found.flip(1)) == alike


def test_the_papers_judge_is_the_default():
    plain = replace(TINY, discriminator_norm="batch", discriminator_kernel=3)
    assert plain == TINY and [
        layer.kernel_size for layer in Discriminator(TINY) if hasattr(layer, "stride")
    ] == (8 * [(3, 3)])
    four = Discriminator(replace(TINY, discriminator_norm="group", discriminator_kernel=4))
    assert four(to_signed(images(3))).shape == (3, 1)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_any_length_are_deblended(kind):
    gan, blended = deblender(GATED), images(2).to(kind)
    drawn = deblend(gan, blended)
    assert drawn.dtype == torch.float32 and torch.equal(drawn, deblend(gan, blended.float()))
    for network in (gan.generator, gan.discriminator):
        network.double()
    assert (
        deblend(gan, blended).dtype == torch.float32
    )  # and a network of another precision is asked in its own
    assert gan.prepare(blended).dtype == torch.float64
    batch = {name: values.to(kind) for name, values in batches()(0).items()}
    assert gan.generator_loss(gan, batch, None)["total"].isfinite()
    assert gan.discriminator_loss(gan, batch, None)["total"].isfinite()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"galaxies": None}, "'galaxies': None.; expected"),
        (
            {"galaxies": torch.rand(4, 3, 3, 16, 16)},
            "'galaxies': .4, 3, 3, 16, 16..; expected .*'galaxies': .4, 2, 3, 16, 16.",
        ),
        (
            {"blended": torch.rand(4, 3, 32, 32)},
            "'blended': .4, 3, 32, 32., .*; expected .'blended': .4, 3, 16, 16.",
        ),
        (
            {"blended": torch.rand(1, 3, 16, 16)},
            "'galaxies': .4, .*; expected .*'galaxies': .1, 2, 3, 16, 16.",
        ),
    ],
)
def test_losses_refuse_batches_that_do_not_fit(changes, message):
    gan = deblender(TINY)
    batch = {name: values for name, values in {**batches()(0), **changes}.items() if values is not None}
    for loss in (gan.generator_loss, gan.discriminator_loss, gan.burn_in_loss):
        with pytest.raises(ValueError, match=message):
            loss(gan, batch, None)


def test_deblend_refuses_what_is_no_deblender():
    for given, message in (
        (Checkpoint(deblender(TINY), {}, 0, {}), "Checkpoint"),
        (radio(RadioConfig(16, 4)), "radio"),
    ):
        with pytest.raises(ValueError, match=f"{message}.*expected a 'deblender' GAN"):
            deblend(given, images(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 3}, "count is 3, but this deblender was built for 2"),
        ({"symmetries": 4}, "symmetries 4 is unknown; known are 1, 8"),
        ({"batch": 0}, "batch=0: expected a whole number of at least 1"),
        ({"blended": torch.rand(1, 1, 16, 16)}, "blended is .1, 1, 16, 16.; this deblender takes 3 channels"),
        (
            {"blended": torch.rand(1, 3, 18, 16)},
            "blended is .1, 3, 18, 16.; .* 3 channels, sides in multiples of 4 px",
        ),
        ({"blended": torch.rand(3, 16, 16)}, "blended: got shape"),
        ({"blended": 2 * torch.rand(1, 3, 16, 16) + 1}, "blended: got values"),
    ],
)
def test_deblend_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        deblend(deblender(GATED), **{"blended": torch.rand(1, 3, 16, 16), **options})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"generator": "cnn"}, "generator 'cnn' is unknown; known are branched, gated, unet"),
        ({"reconstruction": "ssim"}, "reconstruction 'ssim' is unknown"),
        ({"size": 50}, "size is 50; expected a multiple of 16"),
        (
            {"generator": "gated", "size": 80, "widths": (8,) * 5, "blocks": (1,) * 5},
            "size is 80; expected a multiple of 32",
        ),
        ({"count": 1}, "count=1: expected a whole number of at least 2"),
        ({"blocks": (1, 1)}, "one entry per resolution"),
        ({"width": 0}, "width=0: expected a whole number of at least 1"),
        ({"headroom": -0.1}, "headroom=-0.1: expected a finite number of at least 0"),
        ({"widths": (), "blocks": ()}, "one entry per resolution"),
        ({"widths": (8, 0), "blocks": (1, 1)}, "widths=0: expected"),
        (
            {"discriminator_norm": "layer"},
            "discriminator_norm 'layer' is unknown; known are batch, group, none",
        ),
        ({"seed": 0.5}, "seed=0.5: expected a whole number"),
        ({"discriminator_kernel": 5}, "discriminator_kernel 5 is unknown; known are 3, 4"),
    ],
)
def test_config_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        DeblenderConfig(**fields)
