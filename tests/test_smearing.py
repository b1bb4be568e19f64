"""Smearing, histograms, relative MAE and the choice of checkpoints, against slow definitions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from galnb import smearing
from galnb.gans.layers import Smear
from galnb.gans.radio import RadioConfig, generate, radio
from galnb.images import ImageSet
from galnb.smearing.histograms import choose, image_counts, score, score_checkpoints, score_counts
from galnb.training.checkpoints import save_checkpoint
from tests.tiny_runs import one_thread, plain_gan  # noqa: F401

TINY = RadioConfig(size=16, width=4, latent=6)
# the published bins, typed in once more
ACTIVE = [*np.linspace(0, 500, 10), 600, 700, 800, 900, 1000, 2000]
TOTAL = [*np.linspace(0, 25_000, 15), 50_000, 75_000]


@pytest.fixture
def sky(generator):
    """Forty sparse images of whole grey levels, as FIRST has them; the last is blank."""
    level = torch.randint(0, 256, (40, 1, 32, 32), generator=generator).float()
    lit = torch.rand(level.shape, generator=generator) < torch.linspace(0.3, 0, 40).view(-1, 1, 1, 1)
    return level * lit / 255


@pytest.fixture
def labels():
    return torch.arange(40) % 4


@pytest.mark.parametrize(
    ("sigma", "width"), [(0, 0), (0.1, 0.00), (0.5, 0.46), (1.0, 0.74), (1.5, 0.785), (2.0, 0.798)]
)
def test_effective_width_of_three_pixels(sigma, width):
    """By hand: sqrt(2 e / (1 + 2 e)) with e = exp(-1 / (2 sigma^2)), the weight of the neighbour."""
    assert smearing.effective_width(smearing.gaussian_kernel(sigma)) == pytest.approx(width, abs=5e-3)


def test_effective_width_of_a_box_and_of_a_wide_kernel():
    assert smearing.effective_width(torch.ones(3, 3)) == pytest.approx(math.sqrt(2 / 3))
    assert smearing.effective_width(smearing.gaussian_kernel(1.0, 9)) == pytest.approx(1.0, abs=2e-3)
    for wrong, message in (
        (torch.ones(3), "shape"),
        (torch.ones(4, 4), "odd side"),
        (torch.zeros(3, 3), "sums"),
        (torch.full((3, 3), -1.0), "expected weights >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            smearing.effective_width(wrong)


def test_histograms_equal_numpy_image_by_image(sky):
    counts = dict.fromkeys(("intensity", "active", "total"), 0.0)
    for image in np.round(sky.double().numpy() * 255):
        lit = (image >= 1).sum()
        for name, values, edges in (
            ("intensity", image, np.arange(257)), ("active", lit, ACTIVE), ("total", image.sum(), TOTAL),
        ):  # fmt: skip
            counts[name] = counts[name] + np.histogram(values, edges)[0] / np.diff(edges)
    for name, density in smearing.histograms(sky).items():
        assert density.sum().item() == pytest.approx(1)
        assert density.numpy() == pytest.approx(counts[name] / counts[name].sum(), abs=1e-12)


def test_levels_are_whole_ones_from_below_and_nothing_slips():
    """Every level / 255 comes back; published for generated images is floor(255 x)."""
    levels = torch.arange(256).float()
    for shift in (0.0, 0.9):
        images = ((levels + shift * (levels < 255)) / 255).view(1, 1, 16, 16)
        assert torch.equal(image_counts(images)[0, :256], torch.ones(256))


def test_bins_are_half_open_and_what_lies_above_is_left_out():
    def lit(count):  # one image of 64 x 64 with so many pixels at level 1
        image = torch.zeros(64 * 64)
        image[:count] = 1 / 255
        return image.view(1, 1, 64, 64)

    active = [image_counts(lit(count))[0, 256:271] for count in (0, 499, 500, 1999, 2000)]
    assert [part.nonzero()[:, 0].tolist() for part in active] == [[0], [8], [9], [14], []]
    bright = smearing.histograms(torch.ones(2, 1, 64, 64))  # 4,096 lit pixels, a sum of a million
    assert bright["active"].sum() == bright["total"].sum() == 0 and bright["intensity"][255] == 1


def test_relative_mae_by_hand():
    real, generated = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.25, 0.5, 0.25, 0.0])
    # 2 * .25 / .75, 0, 2, and the last bin is empty in both
    assert smearing.relative_mae(generated, real) == pytest.approx((2 / 3 + 0 + 2) / 3)
    assert smearing.relative_mae(real, real) == 0
    assert smearing.relative_mae(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 2
    assert smearing.relative_mae(generated, real) == smearing.relative_mae(real, generated)


def test_score_is_the_mean_of_three(sky):
    ours, theirs = smearing.histograms(sky[::2]), smearing.histograms(sky[1::2])
    wanted = np.mean([smearing.relative_mae(ours[name], theirs[name]) for name in ours])
    assert score(sky[::2], sky[1::2]) == pytest.approx(wanted)
    assert score(sky, sky) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_counts_the_grey_levels_it_was_made_from(sky, dtype):
    """All 256 levels survive, so a set is no different from its own copy in half the bits."""
    levels = (torch.arange(256) / 255).view(1, 1, 16, 16)
    assert torch.equal(image_counts(levels.to(dtype)), image_counts(levels))
    assert score(sky.to(dtype), sky) == score(sky, sky.to(dtype)) == score(sky.to(dtype), sky.to(dtype)) == 0
    for name, density in smearing.histograms(sky.to(dtype)).items():
        assert torch.equal(density, smearing.histograms(sky)[name])
        assert density.dtype == torch.float64


def test_what_lies_between_levels_stays_below_in_float16():
    between = torch.tensor([0.2, 0.5, 0.8]).add(torch.arange(0, 250, 10)[:, None]).view(1, 1, 5, 15) / 255
    assert torch.equal(image_counts(between.half()), image_counts(between))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_figures_of_half_precision(sky, dtype):
    kernel = smearing.gaussian_kernel(1.0, 9)
    wanted = smearing.effective_width(kernel.to(dtype).float())
    assert smearing.effective_width(kernel.to(dtype)) == pytest.approx(wanted, abs=1e-12)
    heights = smearing.histograms(sky)["intensity"].to(dtype)
    assert smearing.relative_mae(heights, heights) == 0
    many = torch.full((300,), 300.0, dtype=dtype)  # their sum is above what float16 holds
    assert smearing.relative_mae(many, 2 * many) == pytest.approx(2 / 3)
    assert torch.equal(score_counts(image_counts(sky), image_counts(sky)), torch.zeros(40, 3).double())


def checkpoint(folder, name, *, gain=1.0, **changes):
    gan = radio(replace(TINY, **changes))
    with torch.no_grad():
        gan.generator.body[-3 if gan.config.sigma else -2].weight.mul_(gain)
    return save_checkpoint(folder / f"{name}.safetensors", gan, experiment={}, step=7)


def test_a_checkpoint_is_scored_as_it_was_made(tmp_path, sky, labels):
    """A smeared generator is scored smeared: its file alone says so."""
    real = sky[..., 8:24, 8:24]
    paths = [checkpoint(tmp_path, "plain", gain=40), checkpoint(tmp_path, "smeared", gain=40, sigma=2.0)]
    options = {"count": 30, "generator": torch.Generator().manual_seed(5)}
    found = score_checkpoints(paths, real, labels, **options)
    assert found.steps == (7, 7)
    assert found.parts.shape == (2, 4, 3) and found.counts.shape == (2, 4, 30, 287)
    seed = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(5)))
    for row, sigma in enumerate((0.0, 2.0)):
        gan = radio(TINY)
        with torch.no_grad():
            gan.generator.body[-2].weight.mul_(40)
        body = gan.generator.body
        if sigma:
            gan.generator.body = torch.nn.Sequential(*body[:-1], Smear(sigma, 3, background=-1.0), body[-1])
        same = torch.Generator().manual_seed(seed)
        for label in range(4):
            drawn = generate(gan, torch.full((30,), label), generator=same)
            wanted = score(drawn, real[labels == label])
            assert found.scores[row, label].item() == pytest.approx(wanted, abs=1e-6)
    assert not torch.allclose(found.scores[0], found.scores[1])


def test_old_and_new_rule_on_the_table_of_the_talk():
    """Scores of four checkpoints printed in Rustige's talk of 28 June 2022 (Bent, Compact, FRI, FRII)."""
    talk = torch.tensor(
        [
            [0.774832, 1.452667, 0.700856, 0.606045],
            [0.271016, 1.512272, 0.402949, 0.460576],
            [0.298019, 1.563613, 0.398343, 0.402971],
            [0.270917, 1.560187, 0.393322, 0.404278],
        ]
    )
    overall, best = choose(talk)
    assert overall.tolist() == [3, 1, 2, 0] and best.tolist() == [3, 0, 3, 2]
    # its column "old" is the mean of the four
    assert talk[overall].mean(0).tolist() == pytest.approx([0.403696, 1.522185, 0.473868, 0.468467], abs=1e-6)
    for wrong in (talk[:3], talk[0], talk * math.nan):
        with pytest.raises(ValueError, match="expected finite ones"):
            choose(wrong)


def test_checkpoints_that_do_not_fit_are_refused(tmp_path, sky, labels):
    good = checkpoint(tmp_path, "good")
    options = {"count": 2, "generator": torch.Generator()}
    real = sky[..., :16, :16]
    bare = tmp_path / "bare.safetensors"
    save_file({"generator.body.0": torch.zeros(1)}, bare)  # as the published code saves: no config
    with pytest.raises(ValueError, match=r"bare\.safetensors"):
        score_checkpoints([bare], real, labels, **options)
    with pytest.raises(ValueError, match=r"generated images are \(1, 16, 16\), real ones \(1, 32, 32\)"):
        score_checkpoints([good], sky, labels, **options)
    with pytest.raises(ValueError, match="there is no image of Bent"):
        score_checkpoints([good], real, labels % 3, **options)
    with pytest.raises(ValueError, match="no checkpoints were given"):
        score_checkpoints([], real, labels, **options)
    with pytest.raises(ValueError, match=r"labels \(3,\); expected one label each"):
        score_checkpoints([good], real, labels[:3], **options)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        score_checkpoints([tmp_path / "none.safetensors"], real, labels, **options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 1, 4, 4), math.nan), "NaN"),
        (torch.full((1, 1, 4, 4), 200.0), "from 0..255 divide by 255"),
        (torch.zeros(1, 3, 4, 4), r"\(1, 3, 4, 4\), expected 1 channel; use x.mean"),
        (torch.zeros(0, 1, 4, 4), "none 0"),
        (torch.zeros(4, 4), "expected \\(batch, channel"),
        (torch.zeros(2, 9, 9, 1), r"permute\(0, 3, 1, 2\)"),
        ([torch.zeros(1, 4, 4)], r"torch.stack"),
        (ImageSet(torch.zeros(1, 1, 4, 4), ("one",), "by hand"), "give its .pixels"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), r"x.float\(\) / 255"),
    ],
)
def test_bad_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        smearing.histograms(images)


@pytest.mark.parametrize(
    ("generated", "message"),
    [
        (torch.ones(3), "one shape"),
        (torch.tensor([1.0, -1.0]), "negative"),
        (torch.tensor([1.0, math.inf]), "infinite"),
        (torch.zeros(2), "no counts"),
    ],
)
def test_bad_histograms_are_refused(generated, message):
    with pytest.raises(ValueError, match=message):
        smearing.relative_mae(generated, torch.ones(2))


def test_a_blank_image_counts_as_black(sky):
    blank = image_counts(torch.zeros(1, 1, 8, 8))[0]
    assert blank.nonzero()[:, 0].tolist() == [0, 256, 271] and blank[0] == 64
