"""Tests of galnb/evaluation/classical.py."""

import sys
from functools import partial

import pytest
import torch

from galnb.blending import Perturbation, make_blends
from galnb.evaluation import classical, metrics
from galnb.training.experiments import galaxy_zoo_frames

pytest.importorskip("sep", reason="pip install 'galnb[sky]'")
pytest.importorskip("photutils", reason="pip install 'galnb[sky]'")

SKY = torch.tensor([0.1, 0.2, 0.05])[:, None, None]
FLOOR = 1.5 * 0.003  # threshold times the least noise: fainter light is nobody's


def gaussian(x, y, *, sigma=3.0, flux=0.4, size=81):
    """Return the light (3, size, size) of a round galaxy at (x, y) from the middle, redder than the sky."""
    place = torch.arange(size) - (size - 1) / 2
    profile = torch.exp(-(((place[:, None] - y) ** 2 + (place - x) ** 2) / (2 * sigma**2)))
    return flux * torch.tensor([1.0, 0.7, 0.4])[:, None, None] * profile


def pair(first, second):
    """Return the truth (1, 2, 3, H, W) and the sum on one sky (1, 3, H, W)."""
    return torch.stack([first + SKY, second + SKY])[None], (first + second + SKY)[None]


@pytest.mark.parametrize("detection", [classical.Detection(), classical.TUNED])
@pytest.mark.parametrize("name", classical.CLASSICAL)
def test_galaxies_far_apart_come_out_whole(name, detection):
    # the second is the brighter one: the order is by place, not by light
    truth, blended = pair(gaussian(0, 0, flux=0.3), gaussian(-24, 15, flux=0.5))
    parts = classical.CLASSICAL[name](blended, detection=detection)
    assert parts.shape == (1, 2, 3, 81, 81) and parts.dtype == torch.float32
    # all light above the threshold; each of three channels may lack what lies below it
    assert (parts - truth).abs().max() < FLOOR


def test_a_symmetric_galaxy_is_its_own_template():
    """Where galaxies overlap, min(f, f turned) keeps all of a symmetric galaxy and cuts its neighbour."""
    truth, blended = pair(gaussian(0, 0), gaussian(12, 0, flux=0.3))
    centres = torch.tensor([[[0.0, 0.0], [12.0, 0.0]]])
    told = classical.symmetry_templates(blended, centres=centres)
    cut = classical.sep_segments(blended)
    aperture = metrics.apertures(truth, offsets=centres)
    flux = metrics.flux_error(told, truth, aperture=aperture).abs()
    assert flux.max() < 0.02  # the templates of exact Gaussians differ from them only where both are faint
    assert (flux < metrics.flux_error(cut, truth, aperture=aperture).abs()).all()
    # detection finds the same peaks here, because both centres are pixels
    assert torch.equal(classical.symmetry_templates(blended), told)


def test_shares_add_up_to_the_blend(generator):
    noisy = (
        gaussian(-0.5, 0.5)
        + gaussian(9.5, -6.5, sigma=4)
        + SKY
        + 0.01 * torch.randn(3, 81, 81, generator=generator)
    )
    blended = noisy.clamp(0, 1)[None]
    centres = torch.tensor([[[-0.5, 0.5], [9.5, -6.5]]])
    parts = classical.symmetry_templates(blended, centres=centres)
    channels, level, noise = classical.sky_and_noise(blended)
    sky = torch.from_numpy(channels).float()[..., None, None]
    bright = (blended.sum(1, keepdim=True) - level[0] > 1.5 * noise[0]).expand_as(blended)
    # no channel goes below 0 here, so that nothing is cut; 32-bit rounding
    assert torch.allclose((parts.sum(1) - sky)[bright], blended[bright], atol=1e-6)
    assert torch.allclose(parts.sum(1)[~bright], 2 * sky.expand_as(blended)[~bright], atol=1e-6)


@pytest.mark.filterwarnings("ignore:No sources were found")
@pytest.mark.parametrize("name", classical.CLASSICAL)
def test_nothing_to_find(name):
    flat = SKY.expand(1, 3, 40, 50).clone()
    assert torch.allclose(classical.CLASSICAL[name](flat), flat[:, None].expand(1, 2, 3, 40, 50), atol=1e-6)
    lonely = (gaussian(0, 0) + SKY)[None]
    first, second = classical.CLASSICAL[name](lonely)[0]
    assert (first - lonely[0]).abs().max() < FLOOR and torch.allclose(
        second, SKY.expand_as(second), atol=1e-6
    )


def test_sky_is_measured_beside_a_neighbour(generator):
    noise = 0.02 * torch.randn(1, 3, 200, 200, generator=generator)
    images = (SKY + noise + gaussian(80, 0, size=200)).clamp(0, 1)
    channels, level, spread = classical.sky_and_noise(images)
    # 3,900 pixels: errors of 0.0004 (median) per channel; clipping at 3 sigma narrows the noise by 1.4 %
    assert channels[0] == pytest.approx(SKY.flatten().tolist(), abs=0.002)
    assert level[0] == pytest.approx(0.35, abs=0.003)
    assert spread[0] == pytest.approx(0.02 * 3**0.5, rel=0.05)
    assert classical.sky_and_noise(torch.full((1, 1, 20, 20), 0.5))[2] == 0.003


def test_rows_equal_a_separate_measurement_on_galaxy_zoo(galaxy_zoo_folder, generator):
    """Mean PSNR of another implementation of the same recipes on 300 blends of other Galaxy Zoo images."""
    frames = galaxy_zoo_frames(galaxy_zoo_folder, split="test", limit=40).float() / 255
    blends = make_blends(frames, crop=240, size=80, perturbation=Perturbation(), generator=generator)
    rows = {
        24.57: classical.sep_segments,
        24.85: classical.photutils_segments,
        24.99: classical.symmetry_templates,
        24.60: partial(classical.sep_segments, detection=classical.TUNED),
        25.32: partial(classical.symmetry_templates, detection=classical.TUNED),
        27.08: partial(classical.symmetry_templates, centres=blends.offsets),
    }
    for wanted, deblend in rows.items():
        got = metrics.psnr(deblend(blends.blended), blends.galaxies, data_range=1)
        # the mean of both galaxies scatters by 3.6 to 5 dB over blends: 3 standard errors of 40 of them
        assert got.mean().item() == pytest.approx(wanted, abs=3 * 5 / 40**0.5)
        blend = metrics.psnr(
            blends.blended[:, None].expand_as(blends.galaxies), blends.galaxies, data_range=1
        )
        # ... and the gain over leaving the blend as it is, whose 22.36 dB are of the same measurement
        assert (got - blend).mean().item() == pytest.approx(wanted - 22.36, abs=1.5)


@pytest.mark.parametrize("name", classical.CLASSICAL)
def test_bad_input(name):
    deblend = classical.CLASSICAL[name]
    with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
        deblend(torch.full((1, 3, 40, 40), 2.0))
    with pytest.raises(ValueError, match="more than 10 a side"):
        deblend(torch.zeros(1, 3, 10, 40))
    with pytest.raises(ValueError, match="contrast"):
        classical.Detection(contrast=-0.1)


def test_centres_must_fit():
    with pytest.raises(ValueError, match=r"expected \(1, 2, 2\)"):
        classical.symmetry_templates(torch.zeros(1, 3, 40, 40), centres=torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("name", "package"),
    [("SEP segments", "sep"), ("photutils segments", "photutils"), ("SEP segments", "astropy")],
)
def test_a_missing_package_is_named(monkeypatch, name, package):
    for module in [module for module in sys.modules if module.partition(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {package}.*galnb\[sky\]"):
        classical.CLASSICAL[name](torch.zeros(1, 3, 40, 40))
