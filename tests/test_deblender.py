"""The deblender GAN: sizes, bounds, what it learns from, what it refuses."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from galnb.gans import to_signed
from galnb.gans.deblender import (
    GENERATORS,
    BranchedGenerator,
    DeblenderConfig,
    Discriminator,
    deblend,
    deblender,
)
from galnb.gans.features import feature_network
from galnb.gans.losses import log_mse, mse
from galnb.training import TrainingConfig, train
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
    ours = parameters(BranchedGenerator(DeblenderConfig()))
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


@pytest.mark.parametrize("name", sorted(GENERATORS))
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 3}, "count is 3, but this deblender was built for 2"),
        ({"symmetries": 4}, "symmetries is 4; expected 1 or 8"),
        ({"batch": 0}, "batch is 0"),
        ({"blended": torch.rand(1, 1, 16, 16)}, "blended has 1 channels; this deblender takes 3"),
        (
            {"blended": torch.rand(1, 3, 18, 16)},
            "blended is 18 x 16 px; this deblender takes multiples of 4 px",
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
        ({"generator": "cnn"}, r"generator 'cnn' is unknown; known are \['branched', 'gated', 'unet'\]"),
        ({"reconstruction": "ssim"}, "reconstruction 'ssim' is unknown"),
        ({"size": 50}, "size is 50; expected a multiple of 16"),
        (
            {"generator": "gated", "size": 80, "widths": (8,) * 5, "blocks": (1,) * 5},
            "5 widths need a multiple of 32",
        ),
        ({"count": 1}, "a blend has at least 2 galaxies"),
        ({"blocks": (1, 1)}, "one entry per resolution"),
        ({"width": 0}, "width is 0; expected at least 1"),
        ({"headroom": -0.1}, "headroom is -0.1"),
    ],
)
def test_config_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        DeblenderConfig(**fields)
