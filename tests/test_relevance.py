"""Readings and the deletion gate against dense definitions, against zennit, and on bad input."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from galnb.gans.deblender import DeblenderConfig, Discriminator, deblender
from galnb.gans.layers import Add, batch_dependent, evaluating
from galnb.relevance import (
    READINGS,
    RULES,
    JudgeWarning,
    Polarized,
    Relevance,
    deletion_gate,
    polarized_relevance,
    relevance,
)
from galnb.training.checkpoints import WEIGHTS, load_checkpoint
from tests.golden_networks import draw, randomise
from tests.relevance_oracle import TOLERANCE, Residual, generator, one_thread, share  # noqa: F401


@pytest.fixture(scope="module")
def net():
    return randomise(Residual(), seed=3)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reading", ["paper", "output"])
def test_polarized_readings_equal_dense_definition(net, reading, bias):
    images = draw(2, 3, 8, 8)
    found = polarized_relevance(net, images, reading=reading, bias=bias)
    below = "zminus" if reading == "paper" else "zplus"
    rules = {"positive": ["zplus"] * 5, "negative": [below] * 4 + ["zminus"]}
    for name, chosen in rules.items():
        for image, answer in zip(images, getattr(found, name), strict=True):
            expected = net.dense_relevance(image, None, torch.ones(1).double(), chosen, bias=bias)
            torch.testing.assert_close(answer, expected, rtol=0, atol=TOLERANCE)
    arrived = torch.stack([found.positive.sum((1, 2, 3)), found.negative.sum((1, 2, 3))], 1)
    torch.testing.assert_close(arrived, 1 - found.leak)
    torch.testing.assert_close(sum(found.lost.values()), found.leak)


def test_composite_equals_dense_definition(net):
    images = draw(2, 3, 8, 8)
    found = polarized_relevance(net, images, reading="composite")
    for image, score, positive, negative in zip(
        images, found.score, found.positive, found.negative, strict=True
    ):
        expected = net.dense_relevance(image, None, score[None], ["same_sign"] * 3 + ["epsilon"] * 2)
        torch.testing.assert_close(positive - negative, expected, rtol=0, atol=TOLERANCE)
    assert found.positive.min() >= 0 and found.negative.min() >= 0


@pytest.mark.parametrize("count", [1, 3])
def test_reference_equals_dense_definition_and_sums_exactly(net, count):
    images, references = draw(2, 3, 8, 8), draw(count, 3, 8, 8, seed=9)
    found = polarized_relevance(net, images, reading="reference", references=references)
    with torch.no_grad():
        target = net(images).flatten() - net(references).mean()
    signed = found.positive - found.negative
    torch.testing.assert_close(signed.sum((1, 2, 3)), target, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(found.score - found.reference_score, target, rtol=0, atol=1e-12)
    for image, answer in zip(images, signed, strict=True):
        expected = torch.zeros_like(image)
        for reference in references:
            with torch.no_grad():
                seed = (net(image[None]) - net(reference[None])).flatten()
            rules = ["same_sign"] * 2 + ["epsilon"] * 3
            expected += net.dense_relevance(image, reference, seed, rules) / count
        torch.testing.assert_close(answer, expected, rtol=0, atol=TOLERANCE)


def test_scores_without_an_axis_of_their_own(net):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x).squeeze(1)

    images, references = draw(2, 3, 8, 8), draw(2, 3, 8, 8, seed=9)
    for options in ({}, {"reading": "composite"}, {"reading": "reference", "references": references}):
        found, expected = (polarized_relevance(model, images, **options) for model in (Flat(), net))
        for name in ("positive", "negative", "score", "leak", "reference_score"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert relevance(Flat(), images, rule="same_sign").leak.shape == (2,)


def test_unmerged_norm_takes_its_share_only_with_bias():
    norm = randomise(nn.Sequential(nn.Identity(), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 1)), seed=2)
    images = draw(1, 2, 2, 2)
    with torch.no_grad():
        scaled = images * (norm[1].weight / (norm[1].running_var + norm[1].eps).sqrt()).view(1, -1, 1, 1)
        shift = norm[1](images) - scaled
        after = share(norm[3], norm[1](images).flatten(), torch.ones(1).double(), "zplus", bias=True)
    expected = after.view_as(images) * scaled.abs() / (scaled.abs() + shift.abs())
    torch.testing.assert_close(polarized_relevance(norm, images, bias=True).positive, expected)


@pytest.mark.parametrize("reading", READINGS)
def test_batch_equals_images_one_by_one(reading, monkeypatch):
    monkeypatch.setattr("galnb.relevance._CHUNK", 3)
    model = randomise(Discriminator(DeblenderConfig(size=16, discriminator_width=4, dense=8))).float()
    images = draw(5, 3, 16, 16).float()  # more than one chunk
    references = draw(2, 3, 16, 16, seed=5).float() if reading == "reference" else None
    together = polarized_relevance(model, images, reading=reading, references=references)
    for index, image in enumerate(images):
        alone = polarized_relevance(model, image[None], reading=reading, references=references)
        scale = float(alone.positive.max() + alone.negative.max())
        # float32, other summation order
        torch.testing.assert_close(together.positive[index], alone.positive[0], rtol=0, atol=1e-5 * scale)
        torch.testing.assert_close(together.negative[index], alone.negative[0], rtol=0, atol=1e-5 * scale)


def test_conservation_in_float32():
    """Eq. 1 without biases, in the discriminator with the paper's layers and in a residual one."""
    for model in (Discriminator(DeblenderConfig(size=32, discriminator_width=8, dense=32)), Residual()):
        model = randomise(model).float()
        side = 32 if isinstance(model, Discriminator) else 8
        found = polarized_relevance(model, draw(4, 3, side, side).float())
        assert found.leak.abs().max() <= 1e-5
        assert found.positive.min() >= 0 and found.negative.min() >= 0


@pytest.mark.parametrize("name", sorted(path.stem for path in WEIGHTS.glob("*.safetensors")))
def test_conservation_in_shipped_discriminators(name):
    gan = load_checkpoint(name).gan
    side, channels = getattr(gan.config, "size", 64), getattr(gan.config, "channels", 3)
    try:
        with evaluating(gan.discriminator), torch.no_grad():
            gan.discriminator(torch.zeros(1, channels, side, side))
    except TypeError:
        pytest.skip(f"the discriminator of {name} takes more than images")
    # float64: rounding must not hide a leak, nor pass for one
    found = polarized_relevance(gan.discriminator.double(), draw(2, channels, side, side))
    # A map is empty when the last layer has no contribution of its sign; what enters it is lost, and named.
    arrived = torch.stack([found.positive.sum((1, 2, 3)), found.negative.sum((1, 2, 3))], 1)
    whole = ((found.leak.abs() <= 1e-9) | (arrived == 0)).all()
    # A unit of a 1 x 1 convolution sees few numbers: where none has the asked sign its relevance has no way.
    losing = {layer for layer, lost in found.lost.items() if lost.abs().max() > 1e-9}
    narrow = {
        layer
        for layer, module in gan.discriminator.named_modules()
        if getattr(module, "kernel_size", None) == (1, 1)
    }
    assert whole or (losing <= narrow and found.leak.abs().max() < 0.01), (found.leak, losing)
    assert torch.allclose(sum(found.lost.values()), found.leak, atol=1e-9), "all that is missing is named"


def test_residual_sum_does_not_double():
    class Skip(nn.Module):
        def __init__(self, add):
            super().__init__()
            self.conv, self.flat, self.last, self.add = nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(8, 1), add

        def forward(self, x):
            return self.last(self.flat(self.add(x, self.conv(x)) if self.add else x + self.conv(x)))

    images = draw(1, 2, 2, 2)
    assert relevance(randomise(Skip(Add())), images, rule="zplus").map.sum() == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match=r"AddBackward0.*galnb.gans.layers.Add"):
        relevance(randomise(Skip(None)), images, rule="zplus")


# --- witnesses ---


def zennit_zplus(model, images, **options):
    attribution = pytest.importorskip("zennit.attribution", reason="zennit is not installed (extra: bench)")
    from zennit.composites import LayerMapComposite
    from zennit.rules import Pass, ZPlus
    from zennit.types import Activation, Convolution, Linear

    rule = ZPlus(stabilizer=1e-12, **options)
    layers = [(Activation, Pass()), (Convolution, rule), (Linear, rule)]
    with attribution.Gradient(model=model, composite=LayerMapComposite(layers)) as attributor:
        return attributor(images, torch.ones(len(images), 1, dtype=images.dtype))[1]


@pytest.mark.parametrize("bias", [False, True])
def test_positive_map_agrees_with_zennit(bias):
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(6, 8, 3, stride=2, padding=1)),
        *(nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8 * 25, 10), nn.LeakyReLU(0.2), nn.Linear(10, 1)),
    )
    model, images = randomise(model, seed=4), draw(3, 3, 10, 10)
    witness = zennit_zplus(model, images, **({} if bias else {"zero_params": "bias"}))
    found = polarized_relevance(model, images, bias=bias).positive
    torch.testing.assert_close(found, witness, rtol=0, atol=1e-6 * float(witness.max()))


def test_spectral_norm_is_where_zennit_goes_silently_wrong():
    """Its rule clamps the raw parameter, which no longer is the weight; the sum is right, the map is not."""
    model = nn.Sequential(
        spectral_norm(nn.Conv2d(3, 6, 3)), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(96, 1)
    )
    model, images = randomise(model, seed=4), draw(1, 3, 6, 6)
    with torch.no_grad():
        hidden = model[2](model[1](model[0](images)))
    arriving = share(model[3], hidden[0], torch.ones(1).double(), "zplus")
    expected = share(lambda x: model[0](x[None])[0], images[0], arriving, "zplus")
    found = polarized_relevance(model, images).positive[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    witness = zennit_zplus(model, images, zero_params="bias")[0]
    assert (witness - expected).abs().max() > 0.5 * expected.max()


def test_epsilon_of_a_piecewise_linear_net_is_gradient_times_input():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 9, bias=False), nn.ReLU(), nn.Linear(9, 1, bias=False))
    model, images = randomise(model), draw(2, 3, 2, 2).requires_grad_()
    score = model(images)
    (gradient,) = torch.autograd.grad(score.sum(), images)
    found = relevance(model, images, rule="epsilon")
    torch.testing.assert_close(found.map * found.score.view(-1, 1, 1, 1), (gradient * images).detach())


def test_generator_explained_from_a_part_of_its_output():
    """A galaxy drawn in one corner comes from pixels within the reach of the filters around that corner."""
    gan = deblender(DeblenderConfig(size=32, width=4, root_blocks=1, branch_blocks=1, seed=1))
    blends = draw(1, 3, 32, 32).float()
    seed = torch.zeros(1, 2, 3, 32, 32)
    seed[:, 0, :, :4, :4] = 1 / 48
    found = relevance(gan.generator, blends, rule="same_sign", seed=seed)
    reach = 3 + 4 + 1 + 4 + 4 + 1  # corner, and half widths of the 9x9 and 3x3 filters on the way
    assert found.map[..., reach + 1 :, :].abs().max() == 0 and found.map[..., : reach + 1, :].abs().sum() > 0
    assert abs(found.map.sum() + found.leak - 1) < 1e-5
    gated = deblender(DeblenderConfig(generator="gated", size=32, widths=(16, 16), blocks=(1, 1)))
    assert relevance(gated.generator, blends, rule="same_sign", seed=seed).map.isfinite().all()


# --- gate, own rules, errors ---


def test_deletion_gate_on_a_net_whose_evidence_is_known():
    """The score adds up the left pixels and subtracts the right ones, so filling must lower and raise it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 64, 1, bias=False))
    side = torch.ones(2, 8, 8)
    side[..., 4:] = -1
    with torch.no_grad():
        model[1].weight.copy_(side.view(1, -1))
    images = torch.full((3, 2, 8, 8), -0.9)
    images[:, :, 2:4, 1:7] = 0.5
    found = polarized_relevance(model, images, reading="reference", references=torch.full((1, 2, 8, 8), -0.9))
    change = deletion_gate(model, images, found, share=0.06, generator=generator())
    count = round(0.06 * 64)
    # constant sky: the fill is -0.9 exactly; 6 equal pixels tie on each side
    torch.testing.assert_close(change, torch.tensor([[-1.0, 1.0]]).expand(3, 2) * 6 * 2 * 1.4)
    assert count == 4
    black = deletion_gate(model, images, found, generator=generator(), fill=torch.tensor(-1.0))
    assert (black[:, 0] < change[:, 0]).all() and (black[:, 1] > change[:, 1]).all()
    swapped = Polarized(
        found.negative,
        found.positive,
        *(getattr(found, f) for f in ("score", "leak", "reading", "reference_score", "lost")),
    )
    failed = deletion_gate(model, images, swapped, generator=generator())
    assert (failed[:, 0] > 0).all() and (failed[:, 1] < 0).all()


def test_rule_of_your_own():
    def half(layer, arriving):
        return RULES["epsilon"](layer, arriving) / 2

    model = randomise(nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.Linear(3, 1, bias=False)))
    found = relevance(model, draw(1, 1, 2, 2), rule=half)
    assert isinstance(found, Relevance)
    assert found.map.sum() == pytest.approx(0.25) and found.leak.item() == pytest.approx(0.75)
    assert [values.item() for values in found.lost.values()] == pytest.approx([0.5, 0.25])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": torch.full((1, 3, 8, 8), torch.nan)}, "NaN"),
        ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, "tensor of floats"),
        ({"images": torch.zeros(0, 3, 8, 8)}, r"expected \(B, C, H, W\)"),
        ({"images": torch.zeros(1, 3, 20, 20).double()}, "does not take images of shape"),
        ({"reading": "best"}, "known are paper, output, composite"),
        ({"reading": "reference"}, "references are needed"),
        ({"references": torch.zeros(1, 3, 8, 8).double()}, "references are needed"),
        ({"reading": "reference", "references": torch.zeros(1, 3, 9, 8).double()}, "do not fit"),
        (
            {"reading": "reference", "references": torch.full((1, 3, 8, 8), torch.inf).double()},
            "references: got NaN",
        ),
    ],
)
def test_bad_input_to_polarized_relevance(net, options, message):
    with pytest.raises(ValueError, match=message):
        polarized_relevance(net, **{"images": draw(1, 3, 8, 8), **options})


def test_bad_input_to_relevance(net):
    images, several = draw(1, 3, 8, 8), randomise(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))
    with pytest.raises(ValueError, match=r"known are.*epsilon"):
        relevance(net, images, rule="zz")
    with pytest.raises(ValueError, match=r"4 outputs per image.*seed"):
        relevance(several, images, rule="zplus")
    with pytest.raises(ValueError, match=r"4 outputs per image"):
        polarized_relevance(several, images)
    with pytest.raises(ValueError, match=r"seed: got \(1, 3\), expected.*\(1, 4\)"):
        relevance(several, images, rule="zplus", seed=torch.ones(1, 3))
    with pytest.raises(ValueError, match="returns a tuple"):
        relevance(nn.MaxPool2d(2, return_indices=True), images, rule="zplus")
    mixing = nn.Sequential(nn.Flatten(0), nn.Linear(192, 1)).double()
    with pytest.raises(ValueError, match=r"shape \(1,\) for 2 images"):
        relevance(nn.Sequential(nn.Flatten(0), nn.Linear(384, 1)).double(), draw(2, 3, 8, 8), rule="zplus")
    assert relevance(mixing, images, rule="zplus").map.shape == images.shape
    norm = nn.Sequential(nn.Conv2d(3, 1, 8), nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten())
    with pytest.raises(ValueError, match="running statistics"):
        relevance(norm.double(), draw(2, 3, 8, 8), rule="zplus")
    bicubic = nn.Sequential(nn.Upsample(scale_factor=2, mode="bicubic"), nn.AvgPool2d(16))
    with pytest.raises(ValueError, match="bicubic"):
        relevance(bicubic, images[:, :1], rule="zplus")


def test_bad_input_to_deletion_gate(net):
    images = draw(2, 3, 8, 8)
    found = polarized_relevance(net, images)
    with pytest.raises(ValueError, match=r"maps \(2, 3, 8, 8\) for images \(1, 3, 8, 8\)"):
        deletion_gate(net, images[:1], found, generator=generator())
    with pytest.raises(ValueError, match=r"share 1\.5"):
        deletion_gate(net, images, found, share=1.5, generator=generator())
    few = torch.ones(3, 1, 1)
    with pytest.raises(ValueError, match=r"fill \(2, 1, 1\)"):
        deletion_gate(net, images, found, generator=generator(), fill=few[:2])
    with pytest.raises(ValueError, match=r"fill.*finite"):
        deletion_gate(net, images, found, generator=generator(), fill=few * torch.nan)
    with pytest.raises(ValueError, match=r"torch.Generator\(\)"):
        deletion_gate(net, images, found, generator=None)
    with pytest.raises(ValueError, match="192 outputs per image"):
        deletion_gate(nn.Flatten(), images, found, generator=generator())
    flat = randomise(nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        deletion_gate(flat, draw(2, 3), polarized_relevance(flat, draw(2, 3)), generator=generator())


def test_reference_that_equals_an_image_is_refused(net):
    """Its difference is 0: one of several would only water the map down, and nobody would see it."""
    images, others = draw(3, 3, 8, 8), draw(2, 3, 8, 8, seed=9)
    for references, place in (
        (images[1:2], 0),
        (images[1:2].expand(4, -1, -1, -1), 0),
        (torch.cat([others, images[1:2]]), 2),
    ):
        with pytest.raises(ValueError, match=f"reference {place} equals image 1.*not explained"):
            polarized_relevance(net, images, reading="reference", references=references)
        polarized_relevance(net, images[:1], reading="reference", references=references)  # of another image


@pytest.mark.parametrize("seed", ["one", torch.full((1, 4), torch.nan)])
def test_seed_that_is_no_finite_tensor_is_refused(seed):
    model = randomise(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))
    with pytest.raises(ValueError, match=r"seed: got .*finite"):
        relevance(model, draw(1, 3, 8, 8), rule="zplus", seed=seed)


def test_seed_of_another_precision_and_with_a_gradient():
    model, images = randomise(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))), draw(2, 3, 8, 8)
    seed = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 0]])
    expected = relevance(model, images, rule="epsilon", seed=seed.double())
    for other in (seed.long(), seed.half(), seed.clone().requires_grad_()):
        found = relevance(model, images, rule="epsilon", seed=other)
        assert torch.equal(found.map, expected.map) and not found.score.requires_grad


def test_a_judge_with_batch_norm_is_named_before_its_maps_are_read():
    config = DeblenderConfig(size=16, width=2, discriminator_width=2, dense=4)
    for norm, warned in (("batch", True), ("group", False)):
        judge = Discriminator(replace(config, discriminator_norm=norm)).eval()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            polarized_relevance(judge, draw(1, 3, 16, 16).float())
        assert [one.category for one in said] == [JudgeWarning] * warned
        if warned:
            text = str(said[0].message)
            assert batch_dependent(judge)[0] in text and "evaluation.judge_figures" in text
            assert said[0].filename == __file__
