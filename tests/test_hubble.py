import json

import numpy as np
import pytest
import torch
from skimage import data

from galnb.images.hubble import hubble_deep_field, sky_level


@pytest.fixture(scope="module")
def stamps():
    return hubble_deep_field()


def positions(images):
    return np.array([[int(part) for part in name.split("_")[1:]] for name in images.names])


def test_record_accounts_for_every_source(stamps):
    record = stamps.record
    assert record["found"] == sum(record["dropped"].values()) + record["remain"]
    assert record["remain"] == record["returned"] == len(stamps) >= 80
    json.dumps(record)


def test_stars_are_dropped_and_galaxies_stay():
    kept = positions(hubble_deep_field(isolated=False))
    nearest = lambda x, y: np.hypot(*(kept - (x, y)).T).min()  # noqa: E731
    # Read off the picture by eye: the two stars with diffraction crosses, three bright galaxies.
    assert min(nearest(753, 578), nearest(254, 166)) > 8
    assert max(nearest(123, 401), nearest(727, 474), nearest(818, 166)) < 3


def test_stamps_are_the_fields_own_pixels_about_a_galaxy():
    images = hubble_deep_field(size=40, crop=40, limit=5)
    field = data.hubble_deep_field()
    for image, (x, y) in zip(images.pixels, positions(images), strict=True):
        cut = field[y - 20 : y + 20, x - 20 : x + 20].transpose(2, 0, 1)
        assert torch.equal((image * 255).round().byte(), torch.from_numpy(cut.copy()))
        assert image[:, 15:25, 15:25].mean() > 1.5 * image.mean()


def test_scale_and_limit(stamps):
    assert stamps.pixels.shape[1:] == (3, 80, 80)
    few = hubble_deep_field(limit=3)
    assert few.names == stamps.names[:3]
    assert few.record["remain"] == stamps.record["remain"]
    small = hubble_deep_field(size=20, limit=3)
    torch.testing.assert_close(small.pixels.mean(), few.pixels.mean(), atol=2e-3, rtol=0)  # bicubic edges


def test_isolated_leaves_out_crowded_stamps(stamps):
    everything = hubble_deep_field(isolated=False)
    assert set(stamps.names) < set(everything.names)
    assert len(everything) - len(stamps) == stamps.record["dropped"]["crowded"]


@pytest.mark.parametrize("values", [{"size": 0}, {"crop": -1}, {"limit": 0}, {"size": 79.5}])
def test_sizes_must_be_positive(values):
    with pytest.raises(ValueError, match="expected a whole number of at least 1"):
        hubble_deep_field(**values)


def test_crop_larger_than_the_field():
    with pytest.raises(ValueError, match="crop=1200: no stamp"):
        hubble_deep_field(crop=1200)


def test_sky_level_recovers_a_sky_under_sources(generator):
    image = 0.3 + 0.02 * torch.randn(200, 200, generator=generator)
    image[:20] += 5.0  # a tenth of the pixels are sources
    level, noise = sky_level(image.numpy())
    assert abs(level - 0.3) < 0.02 / 100  # 36,000 pixels: standard error of the median 1.3e-4
    assert abs(noise / 0.02 - 1) < 0.03  # clipping at 3 sigma takes 1.4 % off a Gaussian
    astropy = pytest.importorskip("astropy.stats")
    _, oracle_level, oracle_noise = astropy.sigma_clipped_stats(image.numpy(), sigma=3, maxiters=20)
    assert abs(level - oracle_level) < 1e-4
    assert abs(noise - oracle_noise) < 1e-4
    image[50, 50] = float("nan")
    assert abs(sky_level(image.numpy())[0] - level) < 1e-5
    with pytest.raises(ValueError, match="no finite pixel"):
        sky_level(np.full((4, 4), np.nan))
