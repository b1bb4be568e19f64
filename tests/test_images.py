"""The convention at every door, the deep field, and the skies."""

import json

import numpy as np
import pytest
import torch
from skimage import data

from galnb import images
from galnb.images import ImageSet, area_average, check_images, hubble_deep_field, sky_level, turned
from galnb.images.pixels import border_noise, border_patches, ring_level

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def test_check_images_lets_the_convention_pass(random_images):
    assert check_images(random_images) is random_images  # no copy
    check_images(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1) * (1 + 1e-6))  # one float32 rounding beyond 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.numpy(), "ndarray, expected a torch.Tensor; use torch.from_numpy"),
        (lambda x: x.permute(0, 2, 3, 1).numpy(), r"use torch.from_numpy.*last: use x.permute\(0, 3, 1, 2\)"),
        (lambda x: x.permute(0, 2, 3, 1), r"\(4, 16, 16, 3\).*last: use x.permute\(0, 3, 1, 2\)"),
        (lambda x: list(x), r"list.*torch.stack"),
        (lambda x: ImageSet(x, tuple("abcd"), "noise"), "ImageSet.*give its .pixels"),
        (lambda x: None, "NoneType"),
        (lambda x: (x * 255).to(torch.uint8), r"uint8, expected floats in \[0, 1\].*/ 255"),
        (lambda x: x * 255, r"to 2[0-9]+.*expected \[0, 1\].*divide by 255"),
        (lambda x: x * 2 - 1, r"from -0.9.*\(x \+ 1\) / 2"),
        (lambda x: x[0], r"\(3, 16, 16\), expected \(batch, channel, height, width\)"),
        (lambda x: x[:0], r"\(0, 3, 16, 16\), expected"),
        (lambda x: x.masked_fill(x > 0.99, float("nan")), r"expected \[0, 1\].*for NaN see torch.nan_to_num"),
        (lambda x: x.masked_fill(x > 0.99, float("inf")), r"expected \[0, 1\].*for NaN see torch.nan_to_num"),
    ],
)
def test_check_images_says_what_is_wrong(random_images, change, message):
    with pytest.raises(ValueError, match="^blended: got .*" + message):
        check_images(change(random_images), name="blended")


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_float_becomes_float32(random_images, dtype):
    given = random_images.to(dtype)
    found = check_images(given)
    assert found.dtype == torch.float32 and torch.equal(found, given.float())
    held = ImageSet(given, tuple("abcd"), "noise").pixels
    assert held.dtype == torch.float32 and torch.equal(held, found)


def test_image_set_holds_one_name_per_image(random_images):
    held = ImageSet(random_images, ("a", "b", "c", "d"), "noise")
    assert len(held) == 4
    assert held.labels is None
    with pytest.raises(ValueError, match="3 names for 4 images"):
        ImageSet(random_images, ("a", "b", "c"), "noise")
    with pytest.raises(ValueError, match="1 labels for 4 images"):
        ImageSet(random_images, ("a", "b", "c", "d"), "noise", ("spiral",))
    with pytest.raises(ValueError, match=r"pixels: got dtype torch\.int64"):
        ImageSet(random_images.long(), ("a", "b", "c", "d"), "noise")
    frames = (255 * random_images).byte()
    assert ImageSet(frames, ("a", "b", "c", "d"), "noise").pixels is frames
    with pytest.raises(ValueError, match=r"pixels: got shape \(3, 16, 16\)"):
        ImageSet(frames[0], ("a",), "noise")


@pytest.mark.parametrize(("side", "size"), [(12, 4), (7, 3), (10, 9), (5, 1), (6, 6)])
def test_area_average_equals_repeat_and_mean(generator, side, size):
    image = torch.rand(2, side, side, generator=generator)
    # Oracle: each pixel repeated `size` times a side, then plain means over `side` x `side` blocks.
    fine = image.numpy().repeat(size, axis=1).repeat(size, axis=2)
    oracle = fine.reshape(2, size, side, size, side).mean(axis=(2, 4))
    np.testing.assert_allclose(area_average(image, size), oracle, atol=1e-6)  # float32 sums


def test_area_average_only_shrinks_squares(random_images):
    for wrong, size in ((random_images, 17), (random_images, 0), (random_images[..., :8], 4)):
        with pytest.raises(ValueError, match="averaging only shrinks"):
            area_average(wrong, size)
    with pytest.raises(ValueError, match=r"size=4 for images of torch\.uint8.*: expected floats"):
        area_average((255 * random_images).byte(), 4)


def test_turned_is_a_group_of_eight():
    corner = torch.arange(9.0).view(1, 3, 3)
    assert len({tuple(turned(corner, turn).flatten().tolist()) for turn in range(8)}) == 8
    assert torch.equal(turned(turned(corner, 1), 3), corner) and torch.equal(turned(corner, 0), corner)


def test_sources_are_the_public_readers():
    assert set(images.SOURCES) == {
        "hubble_deep_field",
        "galaxy_zoo",
        "first_radio",
        "galaxy10",
        "fits_cutouts",
    }
    assert all(images.SOURCES[name] is getattr(images, name) for name in images.SOURCES)


@pytest.fixture(scope="module")
def stamps():
    return hubble_deep_field()


def positions(found):
    return np.array([[int(part) for part in name.split("_")[1:]] for name in found.names])


def test_record_accounts_for_every_source(stamps):
    record = stamps.record
    assert record["found"] == sum(record["dropped"].values()) + record["remain"]
    assert record["remain"] == len(stamps) >= 80
    json.dumps(record)


def test_stars_are_dropped_and_galaxies_stay():
    kept = positions(hubble_deep_field(isolated=False))
    nearest = lambda x, y: np.hypot(*(kept - (x, y)).T).min()  # noqa: E731
    # Read off the picture by eye: the two stars with diffraction crosses, three bright galaxies.
    assert min(nearest(753, 578), nearest(254, 166)) > 8
    assert max(nearest(123, 401), nearest(727, 474), nearest(818, 166)) < 3


def test_stamps_are_the_fields_own_pixels_about_a_galaxy():
    found = hubble_deep_field(size=40, crop=40, limit=5)
    field = data.hubble_deep_field()
    for image, (x, y) in zip(found.pixels, positions(found), strict=True):
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
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        coarse = image.to(dtype)
        assert sky_level(coarse) == sky_level(coarse.double().numpy())
    image[50, 50] = float("nan")
    assert abs(sky_level(image.numpy())[0] - level) < 1e-5
    with pytest.raises(ValueError, match="no finite pixel"):
        sky_level(np.full((4, 4), np.nan))


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_ring_is_the_median_of_the_outermost_pixels(generator, dtype):
    given = torch.rand(3, 2, 9, 12, generator=generator).to(dtype)
    ring = np.ones((9, 12), bool)
    ring[1:-1, 1:-1] = False
    oracle = np.median(given.float().numpy()[..., ring], -1)
    np.testing.assert_allclose(ring_level(given)[..., 0, 0], oracle, atol=1e-6)


def test_the_ring_of_more_values_than_torch_sorts_at_a_time(monkeypatch):
    """2^24 values are the limit of torch.quantile: 330 images of 13,000 px along their sides."""
    wide = torch.rand(330, 1, 1, 1).expand(-1, 1, 2, 26_000)
    assert torch.equal(ring_level(wide), wide[..., :1, :1])


def test_patches_lie_at_the_border_and_are_the_darkest(generator):
    sky = 0.1 + 0.01 * torch.rand(2, 3, 64, 80, generator=generator)
    sky[:, :, 10:50, 10:60] = 1.0  # a galaxy inside
    sky[:, :, :8, :40] = 0.9  # a neighbour at the border
    patches = border_patches(sky.half())
    assert patches.shape == (2, 3, 16, 8, 8) and patches.dtype == torch.float32
    assert patches.max() < 0.12
    assert border_noise(torch.full((1, 1, 32, 32), 0.5)).item() == 0
    with pytest.raises(ValueError, match=r"\(31, 64\) px, the sky needs at least 32 x 32"):
        border_patches(torch.rand(1, 1, 31, 64, generator=generator))
