"""Tests of galnb/evaluation/__init__.py."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from galnb import evaluation, images
from galnb.blending import Blends, blend_sum


def galaxy(x, y, *, flux=0.5, size=64):
    """Return a galaxy (3, size, size) at (x, y) from the middle, on a sky of 0.1."""
    place = torch.arange(size) - (size - 1) / 2
    profile = torch.exp(-(((place[:, None] - y) / 4) ** 2) / 2 - ((place - x) / 6) ** 2 / 2)
    return (0.1 + flux * profile).expand(3, size, size)


@pytest.fixture
def blends():
    """Two blends of Gaussians at known places."""
    places = torch.tensor([[[0.0, 0.0], [8.0, 5.0]], [[0.0, 0.0], [-7.0, 9.0]]])
    galaxies = torch.stack([torch.stack([galaxy(*place.tolist()) for place in row]) for row in places])
    footprints = torch.ones(2, 2, 1, 64, 64, dtype=torch.bool)
    return Blends(galaxies.amax(1), galaxies, footprints, places, torch.ones(2, 2))


@pytest.fixture(scope="module")
def stamps():
    return images.hubble_deep_field(size=80, limit=60)


@pytest.fixture
def few_stamps(monkeypatch, stamps):
    """The 60 brightest stamps, read once."""
    monkeypatch.setattr(images, "hubble_deep_field", lambda *, size: stamps)


def test_truth_is_perfect(blends):
    scores = evaluation.evaluate(blends.galaxies, blends)
    assert all(values.shape == (2, 2) for values in scores.values())
    assert (scores["psnr"] == evaluation.MOST_PSNR).all()  # infinite, cut so that a mean exists
    for name in ("ssim", "ssim_range_2", "cosine"):
        assert torch.allclose(scores[name], torch.ones(2, 2), atol=1e-5)  # 32-bit rounding
    for name in ("flux", "centroid", "ellipticity"):
        assert scores[name].abs().max() < 1e-5


def test_pixel_scores_equal_scikit_image(blends, generator):
    estimate = (blends.galaxies + 0.1 * torch.randn(blends.galaxies.shape, generator=generator)).clamp(0, 1)
    scores = evaluation.evaluate(estimate, blends)
    for index in np.ndindex(2, 2):
        pair = [part[index].double().numpy() for part in (blends.galaxies, estimate)]
        assert scores["psnr"][index].item() == pytest.approx(
            peak_signal_noise_ratio(*pair, data_range=1), abs=1e-4
        )
        for name, data_range in (("ssim", 1), ("ssim_range_2", 2)):
            wanted = structural_similarity(*pair, data_range=data_range, channel_axis=0)
            assert scores[name][index].item() == pytest.approx(wanted, abs=1e-5)


def test_known_flux_and_place_come_back(blends):
    faint = 0.1 + 0.75 * (blends.galaxies - 0.1)
    scores = evaluation.evaluate(faint, blends)
    # the sky is measured 20 px from the middle, where the wings of these galaxies are not yet quite 0
    assert scores["flux"].flatten().tolist() == pytest.approx([-0.25] * 4, abs=0.01)
    assert scores["centroid"].max() < 0.01
    moved = evaluation.evaluate(blends.galaxies.roll(1, -1), blends)
    # the truth's aperture cuts a little of the wing of what has moved
    assert moved["centroid"].flatten().tolist() == pytest.approx([1] * 4, abs=0.1)


def test_apertures_may_be_given(blends):
    apertures = evaluation.true_apertures(blends)
    assert (
        apertures.shape == (2, 2, 1, 64, 64) and apertures[0, 1, 0, 37, 40] and not apertures[0, 1, 0, 5, 5]
    )
    given = evaluation.evaluate(blends.galaxies * 0.9, blends, apertures=apertures)
    measured = evaluation.evaluate(blends.galaxies * 0.9, blends)
    assert all(torch.equal(given[name], measured[name]) for name in given)


def test_evaluate_refuses_what_does_not_fit(blends):
    with pytest.raises(ValueError, match=r"expected \(2, 2, 3, 64, 64\)"):
        evaluation.evaluate(blends.blended, blends)
    with pytest.raises(ValueError, match=r"deblended.*expected \[0, 1\]"):
        evaluation.evaluate(blends.galaxies * 2 - 1, blends)


def test_summary_per_branch():
    scores = {
        "psnr": torch.tensor([[30.0, 20.0], [32.0, 26.0]]),
        "flux": torch.tensor([[0.1, -0.3], [0.1, -0.1]]),
    }
    table = evaluation.summarise(scores)
    assert table["psnr"]["first"]["mean"] == 31 and table["psnr"]["second"]["mean"] == 23
    assert table["psnr"]["both"]["mean"] == 27 and table["psnr"]["both"]["count"] == 4
    assert table["psnr"]["both"]["p50"] == pytest.approx(np.percentile([30, 20, 32, 26], 50))
    assert table["flux"]["both"]["mean"] == pytest.approx(-0.05)
    assert table["flux_size"]["both"]["mean"] == pytest.approx(0.15)
    empty = evaluation.summarise({"centroid": torch.full((3, 2), torch.nan)})
    assert empty["centroid"] == {"both": None, "first": None, "second": None}
    with pytest.raises(ValueError, match=r"expected \(B, 2\)"):
        evaluation.summarise({"psnr": torch.zeros(3)})


@pytest.mark.usefixtures("few_stamps")
def test_blends_are_fixed():
    many = evaluation.test_blends(None, count=35)
    again = evaluation.test_blends(None, count=10, rule="sum")
    assert torch.equal(again.galaxies, many.galaxies[:10]) and torch.equal(again.offsets, many.offsets[:10])
    assert torch.equal(again.blended, blend_sum(again.galaxies))
    assert torch.equal(many.blended, many.galaxies.amax(1))
    other = evaluation.test_blends(None, count=10, seed=1)
    assert not torch.equal(other.offsets, again.offsets)


@pytest.mark.usefixtures("few_stamps")
def test_every_galaxy_comes_first_once(stamps):
    firsts = evaluation.test_blends(None, count=60).galaxies[:, 0]
    difference = torch.stack([(first - stamps.pixels).abs().amax((1, 2, 3)) for first in firsts])
    assert difference.min(1).values.max() < 0.51 / 255  # 8 bit rounding
    assert sorted(difference.argmin(1).tolist()) == list(range(60))


def test_last_names_only(tmp_path, monkeypatch):
    """Flat images, the first of them by name white: it must not come up."""
    monkeypatch.setattr(images, "GALAXY_ZOO_TEST", 20)
    for index in range(21):
        grey = 255 if index == 0 else 100 + index
        Image.new("RGB", (424, 424), (grey,) * 3).save(tmp_path / f"{index:04d}.png", compress_level=1)
    blends = evaluation.test_blends(tmp_path, count=20)
    assert blends.galaxies.shape == (20, 2, 3, 80, 80)
    firsts = (blends.galaxies[:, 0, 0, 40, 40] * 255).round().int()
    assert sorted(firsts.tolist()) == list(range(101, 121)) and blends.galaxies.max() * 255 < 120.5
    # 10 to 49 px of the 240 px crop, at a third of the scale; what is not covered by the frame is black
    shift = blends.offsets[:, 1].abs()
    assert shift.min() >= 10 / 3 and shift.max() <= 49 / 3
    assert not blends.footprints[:, 1].all() and blends.galaxies[:, 1].min() == 0


def test_bad_count_and_folder(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        evaluation.test_blends(None, count=0)
    with pytest.raises(FileNotFoundError):
        evaluation.test_blends(tmp_path / "nowhere")
