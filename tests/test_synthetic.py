import math

import numpy as np
import pytest
import torch
from scipy.special import gammainc, gammaincinv

from galnb.images.synthetic import correlated_noise, sersic, synthetic_sky


@pytest.mark.parametrize("index", [0.5, 1.0, 2.5])
def test_flux_is_conserved(index):
    image = sersic(201, flux=3.0, half_light_radius=8.0, index=index, axis_ratio=0.7, angle=0.4)
    # Frame radius 100 px = 12.5 half-light radii or more; outside: below 1e-3 even at index 2.5.
    assert abs(image.sum().item() / 3.0 - 1) < 2e-3


@pytest.mark.parametrize(("index", "ratio", "angle"), [(1.0, 1.0, 0.0), (1.0, 0.5, 0.7), (4.0, 0.8, 2.0)])
def test_enclosed_flux_is_the_incomplete_gamma_function(index, ratio, angle):
    radius, flux = 20.0, 2.0
    image = sersic(
        241, flux=flux, half_light_radius=radius, index=index, axis_ratio=ratio, angle=angle, oversample=7
    ).double()
    y, x = torch.meshgrid(*[torch.arange(241.0) - 120] * 2, indexing="ij")
    major = x * math.cos(angle) + y * math.sin(angle)
    minor = (y * math.cos(angle) - x * math.sin(angle)) / ratio
    b = gammaincinv(2 * index, 0.5)  # exact, where the code has a series
    for times in (0.5, 1.0, 2.0):
        inside = image[torch.hypot(major, minor) < times * radius].sum().item() / flux
        oracle = gammainc(2 * index, b * times ** (1 / index))
        assert abs(inside - oracle) < 0.01  # pixels along the ellipse count whole or not at all


def test_profile_is_astropys():
    models = pytest.importorskip("astropy.modeling.models")
    image = sersic(
        41,
        flux=1.0,
        half_light_radius=6.0,
        index=1.5,
        axis_ratio=0.6,
        angle=0.5,
        centre=(19.0, 22.0),
        oversample=1,
    )
    y, x = np.mgrid[:41, :41]
    model = models.Sersic2D(amplitude=1, r_eff=6, n=1.5, x_0=22, y_0=19, ellip=0.4, theta=0.5)
    oracle = model(x, y)
    ratio = image.numpy() / oracle
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)  # same shape; the series for b differs by 1e-5


def test_same_galaxy_from_equivalent_angles():
    first = sersic(40, flux=1, half_light_radius=5, axis_ratio=0.5, angle=0.3)
    torch.testing.assert_close(
        first, sersic(40, flux=1, half_light_radius=5, axis_ratio=0.5, angle=0.3 + math.pi)
    )
    turned = sersic(40, flux=1, half_light_radius=5, axis_ratio=0.5, angle=0.3 + math.pi / 2)
    torch.testing.assert_close(torch.rot90(first, -1), turned, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        {"half_light_radius": 0},
        {"index": 0.2},
        {"index": 9},
        {"axis_ratio": 0},
        {"axis_ratio": 1.2},
        {"oversample": 0},
    ],
)
def test_sersic_refuses(values):
    with pytest.raises(ValueError, match="expected"):
        sersic(20, **{"flux": 1.0, "half_light_radius": 3.0, **values})


def test_noise_has_its_standard_deviation_and_correlation(generator):
    noise = correlated_noise((400, 400), sigma=0.02, correlation=1.5, generator=generator)
    assert abs(noise.std().item() / 0.02 - 1) < 0.03  # about 160,000 / 28 independent pixels
    for distance in (1, 2, 4):
        product = (noise[:, distance:] * noise[:, :-distance]).mean() / noise.square().mean()
        assert abs(product.item() - math.exp(-(distance**2) / (4 * 1.5**2))) < 0.04
    white = correlated_noise((400, 400), sigma=1.0, correlation=0.0, generator=generator)
    assert abs((white[1:] * white[:-1]).mean().item()) < 0.01
    with pytest.raises(ValueError, match="expected both at least 0"):
        correlated_noise((4, 4), sigma=-1.0, correlation=0.0, generator=generator)


def test_synthetic_sky_is_its_truth_plus_noise(generator):
    images = synthetic_sky(6, size=64, sky=0.1, noise=0.01, generator=generator)
    for pixels, truth, colours in zip(
        images.pixels, images.record["truth"], images.record["colours"], strict=True
    ):
        clean = 0.1 + torch.tensor(colours)[:, None, None] * sersic(64, **truth)
        residual = pixels - clean
        assert abs(residual.mean().item()) < 0.002  # 12,288 pixels, correlated over a dozen
        assert abs(residual.std().item() / 0.01 - 1) < 0.1
        assert clean.max() < 1


def test_synthetic_sky_follows_its_generator():
    draw = lambda seed: synthetic_sky(2, size=32, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    assert draw(1).pixels.equal(draw(1).pixels)
    assert not draw(1).pixels.equal(draw(2).pixels)


@pytest.mark.parametrize(
    "values", [{"count": 0}, {"size": -1}, {"channels": 0}, {"sky": 0.6}, {"noise": -0.1}]
)
def test_synthetic_sky_refuses(generator, values):
    with pytest.raises(ValueError, match="expected"):
        synthetic_sky(**{"count": 2, "generator": generator, **values})
