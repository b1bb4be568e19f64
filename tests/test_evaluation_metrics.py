"""Tests of galnb/evaluation/metrics.py."""

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from galnb.evaluation import metrics
from galnb.images import ImageSet


def pairs(seed, shape=(4, 3, 24, 31)):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(shape, generator=generator)
    return a, (a + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)


FIGURES = ("flux", "centroid", "ellipticity")


def error(figure, estimate, truth, aperture):
    return metrics.aperture_errors(estimate, truth, aperture=aperture)[figure]


def gaussian(*, x=0.0, y=0.0, sigma_x=3.0, sigma_y=3.0, size=64, noise=0.0, flux=0.8):
    """Return one round or stretched galaxy (1, 1, size, size) on a sky of 0.1."""
    place = torch.arange(size) - (size - 1) / 2
    profile = torch.exp(-(((place[:, None] - y) / sigma_y) ** 2) / 2 - ((place - x) / sigma_x) ** 2 / 2)
    sky = 0.1 + noise * torch.randn(size, size, generator=torch.Generator().manual_seed(9))
    return (sky + flux * profile)[None, None]


def test_psnr_against_ipol():
    """22.409353363576034 dB was printed by imdiff of https://www.ipol.im/pub/art/2011/g_lmii for this pair.

    Command: imdiff -m psnr camera.png cam_noisy.png, run for scikit-image in September 2020 (its pull
    request 4913).
    """
    camera = data.camera()
    noise = 20.0 * np.random.RandomState(5).randn(*camera.shape)
    noisy = np.clip(camera + noise, 0, 255).astype(np.uint8)
    a, b = (torch.from_numpy(image / 255.0)[None, None] for image in (camera, noisy))
    assert metrics.psnr(a, b, data_range=1).item() == pytest.approx(22.409353363576034, abs=1e-4)


@pytest.mark.parametrize("data_range", [1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_psnr_and_ssim_equal_scikit_image(seed, data_range):
    a, b = pairs(seed)
    for function, witness in ((metrics.psnr, peak_signal_noise_ratio), (metrics.ssim, structural_similarity)):
        options = {"channel_axis": 0} if witness is structural_similarity else {}
        ours = function(a, b, data_range=data_range)
        for index in range(len(a)):
            # the witness computes in 64 bit, our SSIM in 32 bit
            wanted = witness(
                a[index].double().numpy(), b[index].double().numpy(), data_range=data_range, **options
            )
            assert ours[index].item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.95])
def test_ssim_equals_scikit_image_on_flat_images(level):
    a, b = (level + image * 0.02 for image in pairs(3))
    wanted = [
        structural_similarity(*(v.double().numpy() for v in pair), data_range=1, channel_axis=0)
        for pair in zip(a, b, strict=True)
    ]
    assert metrics.ssim(a, b, data_range=1).tolist() == pytest.approx(wanted, abs=1e-5)


def test_equal_images_are_perfect_and_order_does_not_matter():
    a, b = pairs(2)
    assert metrics.psnr(a, a, data_range=1).isinf().all()
    assert (metrics.ssim(a, a, data_range=1) == 1).all()
    assert torch.allclose(metrics.ssim(a, b, data_range=1), metrics.ssim(b, a, data_range=1), atol=1e-6)
    # an error of 0.1 everywhere is 20 dB by definition
    flat = torch.full((1, 1, 8, 8), 0.5)
    assert metrics.psnr(flat, flat + 0.1, data_range=1).item() == pytest.approx(20, abs=1e-4)


def test_axes_in_front_are_kept():
    a, b = pairs(4, (2, 3, 1, 40, 40))
    aperture = metrics.apertures(a)
    assert metrics.psnr(a, b, data_range=1).shape == (2, 3) and aperture.shape == (2, 3, 1, 40, 40)
    for figure in FIGURES:
        assert error(figure, a, b, aperture).shape == (2, 3)
    assert torch.equal(metrics.ssim(a, b, data_range=1)[1], metrics.ssim(a[1], b[1], data_range=1))


@pytest.mark.parametrize("place", [(0.0, 0.0), (9.0, -6.0)])
def test_apertures_are_those_of_sep(place):
    """SEP is SourceExtractor's own code; its detection with deblending off marks the same pixels."""
    sep = pytest.importorskip("sep", reason="pip install 'galnb[sky]'")
    image = gaussian(x=place[0], y=place[1], noise=0.02, sigma_x=5)
    ours = metrics.apertures(image, offsets=torch.tensor([place]))[0, 0].numpy()
    light = image[0, 0].double().numpy()
    border = np.ones_like(light, dtype=bool)
    border[5:-5, 5:-5] = False
    sky, noise = np.median(light[border]), light[border].std()
    _, segments = sep.extract(
        light - sky, 1.5, err=noise, minarea=5, deblend_cont=1.0, clean=False, segmentation_map=True
    )
    theirs = segments == segments[round(31.5 + place[1]), round(31.5 + place[0])]
    # our sky is clipped, and SEP filters in 32 bit, so a pixel at the very threshold may differ
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.97


def test_aperture_takes_one_galaxy_and_is_empty_without_one():
    two = gaussian(x=-16) + gaussian(x=16) - 0.1
    aperture = metrics.apertures(two, offsets=torch.tensor([[16.0, 0.0]]))
    assert aperture[0, 0, 32, 48] and not aperture[0, 0, :, :32].any()
    empty = torch.full((1, 1, 64, 64), 0.1)
    assert not metrics.apertures(empty).any()
    assert error("flux", two, empty, metrics.apertures(empty)).isnan().all()


def test_flux_error_is_the_missing_share():
    truth = gaussian()
    aperture = metrics.apertures(truth)
    assert error("flux", gaussian(flux=0.6), truth, aperture).item() == pytest.approx(-0.25, abs=1e-3)
    assert error("flux", truth, truth, aperture).item() == 0
    neighbour = torch.maximum(truth, gaussian(x=25, y=20, sigma_x=2, sigma_y=2))  # outside the aperture
    assert error("flux", neighbour, truth, aperture).item() == pytest.approx(0, abs=1e-3)
    brighter_sky = truth + 0.05
    assert error("flux", brighter_sky, truth, aperture).item() == pytest.approx(0, abs=1e-5)


def test_centroid_and_ellipticity_equal_those_of_photutils():
    morphology = pytest.importorskip("photutils.morphology", reason="pip install 'galnb[sky]'")
    truth, estimate = gaussian(sigma_x=5), gaussian(x=0.7, y=-0.4, sigma_x=4, sigma_y=3.5, noise=0.001)
    aperture = metrics.apertures(truth)
    places, shapes = [], []
    for image in (truth, estimate):
        light = image[0, 0].double() - metrics._sky(image.double())[0].item()
        found = morphology.data_properties(light.clamp(min=0).numpy(), mask=~aperture[0, 0].numpy())
        (xx, xy), (_, yy) = np.asarray(found.covariance)
        places.append(np.asarray(found.centroid))
        shapes.append(np.array([xx - yy, 2 * xy]) / (xx + yy))
    wanted = np.hypot(*(places[1] - places[0])), np.hypot(*(shapes[1] - shapes[0]))
    assert error("centroid", estimate, truth, aperture).item() == pytest.approx(wanted[0], abs=1e-4)
    assert error("ellipticity", estimate, truth, aperture).item() == pytest.approx(wanted[1], abs=1e-4)
    assert wanted[0] > 0.3 and wanted[1] > 0.1  # the witness saw something


def test_ellipticity_knows_the_shape_of_a_gaussian():
    long, round_one = gaussian(sigma_x=6, sigma_y=3), gaussian(sigma_x=3, sigma_y=3)
    everything = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    # variances 36 and 9 give e1 = 27 / 45, minus a little for what the frame cuts off
    found = error("ellipticity", long, round_one, everything).item()
    assert found == pytest.approx(0.6, abs=1e-3)
    turned = error("ellipticity", long.mT, long, everything).item()
    assert turned == pytest.approx(1.2, abs=2e-3)


IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.psnr(IMAGE, IMAGE[:1], data_range=1), "expected the same"),
        (lambda: metrics.psnr(IMAGE, IMAGE, data_range=0), "data_range is 0"),
        (lambda: metrics.psnr(IMAGE * 255, IMAGE, data_range=1), "wider than data_range=1"),
        (lambda: metrics.psnr((IMAGE * 255).byte(), (IMAGE * 255).byte(), data_range=255), "uint8"),
        (lambda: metrics.ssim(IMAGE / 0, IMAGE, data_range=1), "finite"),
        (lambda: metrics.ssim(IMAGE[0], IMAGE[0], data_range=1), "batch axis"),
        (lambda: metrics.ssim(IMAGE[..., :6], IMAGE[..., :6], data_range=1), "7 or more a side"),
        (lambda: metrics.apertures(IMAGE[0]), "batch axis"),
        (lambda: metrics.psnr(IMAGE, IMAGE, data_range=None), "data_range is None"),
        (lambda: metrics.psnr(IMAGE, IMAGE.numpy(), data_range=1), "got ndarray"),
        (
            lambda: metrics.apertures(IMAGE, offsets=torch.zeros(3, 2)),
            r"offsets: got Tensor of shape \(3, 2\); .*tensor \(2, 2\)",
        ),
        (lambda: metrics.apertures(IMAGE, offsets=[0, 0]), "offsets: got list"),
        (lambda: metrics.apertures(IMAGE, offsets=torch.full((2, 2), torch.nan)), "offsets"),
        (lambda: error("flux", IMAGE, IMAGE, None), "expected bool"),
        (lambda: error("flux", IMAGE, IMAGE, IMAGE[:, :1]), "expected bool"),
        (lambda: error("centroid", IMAGE, IMAGE, IMAGE > 0), "expected bool"),
        (lambda: error("ellipticity", IMAGE, IMAGE[:1], IMAGE[:, :1] > 0), "expected the same"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_range_is_never_guessed():
    for function in (metrics.psnr, metrics.ssim):
        with pytest.raises(TypeError, match="data_range"):
            function(IMAGE, IMAGE)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("scale", "data_range"), [(2900, 3000), (1, 1), (0.003, 1), (1e-4, 1e-3)])
def test_images_of_any_precision_are_measured_as_the_numbers_they_hold(kind, scale, data_range):
    a, b = (image * scale for image in pairs(7))
    a, b = ((part.to(kind) if kind != torch.float64 else part).float() for part in (a, b))
    for function in (metrics.psnr, metrics.ssim):
        wanted = function(a, b, data_range=data_range)
        found = function(a.to(kind), b.to(kind), data_range=data_range)
        assert found.dtype == torch.float32 and torch.allclose(found, wanted, atol=1e-5)
        mixed = function(a.to(kind), b, data_range=data_range)
        assert torch.allclose(mixed, wanted, atol=1e-5)
        perfect = function(a.to(kind), a, data_range=data_range)
        assert (perfect == (torch.inf if function is metrics.psnr else 1)).all()


def test_a_range_may_be_missed_by_the_rounding_of_16_bits():
    counts = torch.full((1, 1, 8, 8), 3000.0).bfloat16()  # 3008
    assert metrics.psnr(counts, 0 * counts, data_range=3000).item() == pytest.approx(0, abs=0.03)


def test_double_precision_is_kept():
    a = torch.full((1, 1, 16, 16), 0.5, dtype=torch.float64)
    assert metrics.psnr(a, a + 1e-9, data_range=1).item() == pytest.approx(180, abs=1e-4)
    a, b = (1000 + image.double() / 100 for image in pairs(8))  # 32 bits hold steps of 6e-5 there
    wanted = structural_similarity(a[0].numpy(), b[0].numpy(), data_range=0.01, channel_axis=0)
    assert metrics.ssim(a, b, data_range=0.011)[0].item() == pytest.approx(
        structural_similarity(a[0].numpy(), b[0].numpy(), data_range=0.011, channel_axis=0), abs=1e-5
    )
    assert 0 < wanted < 1


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_what_astronomers_measure_in_another_precision(kind):
    truth, estimate = (
        image.half().float() for image in (gaussian(sigma_x=5, noise=0.01), gaussian(x=1, noise=0.01))
    )
    aperture = metrics.apertures(truth)
    assert torch.equal(metrics.apertures(truth.to(kind)), aperture)
    for figure in FIGURES:
        wanted = error(figure, estimate, truth, aperture)
        found = error(figure, estimate.to(kind), truth.to(kind), aperture)
        assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 4, 9), (1, 3, 10, 10), (2, 1, 11, 30)])
def test_constant_and_tiny_images_have_no_source(level, shape):
    flat = torch.full(shape, level)
    aperture = metrics.apertures(flat)
    assert aperture.shape == (shape[0], 1, *shape[2:]) and not aperture.any()
    for figure in FIGURES:
        assert error(figure, flat, flat, aperture).isnan().all()
    assert metrics.psnr(flat, flat, data_range=1).isinf().all()
    if min(shape[2:]) >= 7:
        assert (metrics.ssim(flat, flat, data_range=1) == 1).all()


def test_an_image_set_is_told_to_give_its_pixels():
    found = ImageSet(IMAGE, ("a", "b"), "nowhere")
    for call in (lambda: metrics.psnr(found, IMAGE, data_range=1), lambda: metrics.apertures(found)):
        with pytest.raises(ValueError, match=r"got ImageSet, .*take \.pixels"):
            call()
