"""Tests of galnb/evaluation/classical.py: blends taken apart, sources found in fields that were planted."""

import sys
from functools import partial

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from galnb import images, mosaic
from galnb.blending import Perturbation, make_blends
from galnb.evaluation import classical, detect, metrics
from tests.cells import namespace

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
    flux, of_cut = (
        metrics.aperture_errors(parts, truth, aperture=aperture)["flux"].abs() for parts in (told, cut)
    )
    assert flux.max() < 0.02  # the templates of exact Gaussians differ from them only where both are faint
    assert (flux < of_cut).all()
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
    beside = (SKY + noise + gaussian(80, 0, size=200)).clamp(0, 1)
    channels, level, spread = classical.sky_and_noise(beside)
    # 3,900 pixels: errors of 0.0004 (median) per channel; clipping at 3 sigma narrows the noise by 1.4 %
    assert channels[0] == pytest.approx(SKY.flatten().tolist(), abs=0.002)
    assert level[0] == pytest.approx(0.35, abs=0.003)
    assert spread[0] == pytest.approx(0.02 * 3**0.5, rel=0.05)
    assert classical.sky_and_noise(torch.full((1, 1, 20, 20), 0.5))[2] == 0.003


def test_rows_equal_a_separate_measurement_on_galaxy_zoo(galaxy_zoo_folder, generator):
    """Mean PSNR of another implementation of the same recipes on 300 blends of other Galaxy Zoo images."""
    kept = {"split": "test", "limit": 40, "dtype": torch.uint8}
    frames = images.galaxy_zoo(galaxy_zoo_folder, size=424, crop=424, **kept).pixels.float() / 255
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
    for centres in (torch.zeros(2, 2), torch.full((1, 2, 2), torch.nan), [[[0, 0], [1, 1]]]):
        with pytest.raises(ValueError, match=r"centres: got .*; expected a finite tensor \(1, 2, 2\)"):
            classical.symmetry_templates(torch.zeros(1, 3, 40, 40), centres=centres)


@pytest.mark.parametrize(
    ("name", "package"),
    [("SEP segments", "sep"), ("photutils segments", "photutils"), ("SEP segments", "astropy")],
)
def test_a_missing_package_is_named(monkeypatch, name, package):
    for module in [module for module in sys.modules if module.partition(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {package}.*galnb\[sky\]"):
        classical.CLASSICAL[name](torch.zeros(1, 3, 40, 40))


METHODS = ("SEP", "photutils")
RNG = np.random.default_rng(0)
SIGMA = 2.5
CELLS = [(60.0 * i + 30, 60.0 * j + 30) for i in range(6) for j in range(5)]
PLANTED = np.array([(x + dx, y + dy) for (x, y), (dx, dy) in zip(CELLS, RNG.uniform(-8, 8, (30, 2)))])  # noqa: B905
PEAKS = RNG.uniform(0.2, 0.6, 30)
PLANTED_TABLE = np.rec.fromarrays(PLANTED.T, names=("x", "y"))


def noise(height=300, width=360, seed=0):
    return 0.05 + 0.01 * torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def field():
    """Thirty Gaussians far apart from one another on a noisy sky."""
    y, x = np.indices((300, 360))
    light = sum(
        p * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * SIGMA**2))
        for p, (a, b) in zip(PEAKS, PLANTED, strict=True)
    )
    return (noise() + torch.from_numpy(light).float()).clamp(0, 1)


@pytest.mark.parametrize("method", METHODS)
def test_planted_gaussians_are_found_with_their_size_and_flux(field, method):
    pytest.importorskip("sep" if method == "SEP" else "photutils")
    found = detect(field, method=method)
    agreed = mosaic.match(PLANTED_TABLE, found, radius=2)
    assert agreed.found.all() and agreed.real.mean() >= 0.9
    true, seen = agreed.pairs.T
    assert np.hypot(*(found[axis][seen] - PLANTED_TABLE[axis][true] for axis in "xy")).max() < 0.3
    wanted = PEAKS[true] * 2 * np.pi * SIGMA**2  # of an infinite Gaussian; an isophote ends before
    assert np.median(found["flux"][seen] / wanted) == pytest.approx(0.97, abs=0.04)
    assert np.median(found["radius"][seen]) == pytest.approx(SIGMA * (2 * np.log(2)) ** 0.5, rel=0.08)


def test_detectors_agree_with_one_another(field):
    for package in ("sep", "photutils"):
        pytest.importorskip(package)
    one, two = (detect(field, method=name) for name in ("SEP", "photutils"))
    agreed = mosaic.match(one, two, radius=1)
    bright = one["flux"] > 5
    assert agreed.found[bright].all()
    ratio = two["flux"][agreed.pairs[:, 1]] / one["flux"][agreed.pairs[:, 0]]
    assert np.median(ratio) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_speak_of_is_found_in_noise(method):
    pytest.importorskip("sep" if method == "SEP" else "photutils")
    strict = classical.Detection(threshold=4)
    assert len(detect(noise(seed=3), method=method, detection=strict)) == 0
    usual = detect(noise(seed=3), method=method)
    assert len(usual) <= 15  # of 108,000 px: five neighbours above 1.5 sigma happen
    rows = PLANTED_TABLE
    assert mosaic.match(rows, usual, radius=3).real.sum() <= 2, "matches by luck"


@pytest.mark.parametrize("method", METHODS)
def test_a_sky_without_any_noise_hides_nothing(method):
    pytest.importorskip("sep" if method == "SEP" else "photutils")
    image, blob = torch.zeros(3, 256, 256), torch.zeros(41, 41)
    blob[20, 20] = 0.6 * 25
    for x, y in ((60, 60), (60, 190), (190, 120)):
        image[:, y - 20 : y + 21, x - 20 : x + 21] = torch.from_numpy(gaussian_filter(blob.numpy(), 2.0))
    assert len(detect(image, method=method)) == 3
    assert len(detect(torch.zeros(3, 256, 256), method=method)) == 0


def test_a_crowded_field_does_not_overflow_sep():
    pytest.importorskip("sep")
    bright = torch.zeros(3, 900, 900)
    bright[:, ::2] = 0.5  # far more pixels above the sky than SEP's own 300,000
    detect(bright)


@pytest.mark.parametrize(
    ("image", "options", "words"),
    [
        (torch.zeros(1, 3, 64, 64), {}, "one image"),
        (torch.zeros(3, 4, 4), {}, "8 px or more a side"),
        (torch.full((3, 64, 64), 2.0), {}, r"\[0, 1\]"),
        (torch.zeros(3, 64, 64), {"method": "eye"}, "method 'eye' is unknown; known are SEP, photutils"),
    ],
)
def test_bad_images(image, options, words):
    with pytest.raises(ValueError, match=words):
        detect(image, **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_package_is_named_with_the_extra(monkeypatch, method):
    monkeypatch.setitem(sys.modules, method.lower(), None)
    monkeypatch.setitem(sys.modules, "photutils.background", None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {method.lower()}.*galnb\[sky\]"):
        detect(torch.zeros(3, 64, 64), method=method)


def fields():
    """Small fields: a few composed galaxies, Hubble stamps that a galaxy fills, strips, noise."""
    stamps = images.hubble_deep_field(size=64, limit=12).pixels
    for size, count in ((64, 1), (100, 5), (128, 20)):
        yield mosaic.compose(
            stamps, size=size, placements=count, generator=torch.Generator().manual_seed(0)
        ).image
    yield from stamps
    yield from (noise(8, 8), noise(9, 200), stamps[5, :, :31, 20:50])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", METHODS)
def test_small_fields_are_searched_whatever_fills_them(method):
    """photutils refuses a field of which galaxies fill more than a tenth, unless it is told to take it."""
    pytest.importorskip("sep" if method == "SEP" else "photutils")
    found = [len(detect(field, method=method)) for field in fields()]
    assert sum(number > 0 for number in found[:15]) >= 13 and found[15:17] == [0, 0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 300), (3, 64, 64), (3, 100, 90)])
@pytest.mark.parametrize("level", [0.0, 0.4, 1.0])
def test_constant_fields_hold_nothing(method, shape, level):
    assert len(detect(torch.full(shape, level), method=method)) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_fields_of_another_precision_hold_the_same(field, method, kind):
    exact = (field.to(torch.bfloat16) if kind == torch.bfloat16 else field.half()).float()
    wanted, found = (detect(image, method=method) for image in (exact, exact.to(kind)))
    assert len(wanted) == len(found) and np.allclose(wanted["x"], found["x"], atol=1e-4)


@pytest.mark.parametrize("name", classical.CLASSICAL)
@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_blends_of_another_precision_come_apart_alike(name, kind):
    _, blended = pair(gaussian(0, 0, flux=0.3), gaussian(-24, 15, flux=0.5))
    wanted, parts = (classical.CLASSICAL[name](image) for image in (blended, blended.to(kind)))
    assert parts.dtype == kind and (parts.float() - wanted).abs().max() < 2 * FLOOR


@pytest.mark.parametrize(
    ("version", "told"), [("3.0.0", True), ("3.1.1", False), ("4.0", False), ("3.2.dev1", False)]
)
def test_photutils_is_told_to_be_silent_only_where_it_must_be(monkeypatch, version, told):
    """From 3.1 on `progress_bar` is deprecated and warns, in 4.0 it is gone; before, it draws unless told."""
    segmentation = pytest.importorskip("photutils.segmentation")
    whole, given = segmentation.deblend_sources, []

    def deblend_sources(data, found, pixels, *, n_levels, contrast, **more):
        given.append(more)
        return whole(data, found, pixels, n_levels=n_levels, contrast=contrast, progress_bar=False)

    monkeypatch.setattr("photutils.__version__", version)
    monkeypatch.setattr(segmentation, "deblend_sources", deblend_sources)
    image = (SKY + gaussian(0, 0)).clamp(0, 1)
    assert len(detect(image, method="photutils")) == 1
    classical.photutils_segments(image[None])
    assert given == [{"progress_bar": False} if told else {}] * 2


def test_an_image_set_is_no_field(generator):
    found = images.ImageSet(torch.zeros(2, 3, 32, 32), ("a", "b"), "nowhere")
    with pytest.raises(ValueError, match=r"got ImageSet, expected .*\.pixels"):
        detect(found)
    with pytest.raises(ValueError, match="got ImageSet"):
        classical.sep_segments(found)


CENTRES = torch.tensor([[[0.0, 0.0], [13.0, -4.0]]])


def test_the_notebooks_scarlet_finds_two_round_galaxies_near_their_truth():
    pytest.importorskip("scarlet2", reason="pip install scarlet2")
    names = {"classical": classical, "np": np, "torch": torch, "partial": partial}
    fit = namespace("05_evaluation", "scarlet-fit", "scarlet-sources", **names)["scarlet2_sources"]
    truth, blended = pair(gaussian(0, 0), gaussian(13, -4, flux=0.3))
    parts = fit(blended, centres=CENTRES)
    assert parts.shape == truth.shape and parts.min() >= 0 and parts.max() <= 1
    assert metrics.psnr(parts[0], truth[0], data_range=1).min() > 30  # the blend itself: 24 dB
    swapped = fit(blended, centres=CENTRES.flip(1))
    assert metrics.psnr(swapped[0].flip(0), truth[0], data_range=1).min() > 30, "(x, y) from the middle"


def test_the_notebook_goes_on_without_scarlet(monkeypatch):
    monkeypatch.setitem(sys.modules, "scarlet2", None)
    names = {"classical": classical, "np": np, "torch": torch, "partial": partial}
    fit = namespace("05_evaluation", "scarlet-fit", "scarlet-sources", **names)["scarlet2_sources"]
    with pytest.raises(ModuleNotFoundError, match="scarlet2"):
        fit(torch.zeros(1, 3, 40, 40), centres=CENTRES)
