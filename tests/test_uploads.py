"""Uploads: good files become images, bad ones a message that a reader understands."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from galnb.images.uploads import read_upload


def encoded(pixels, kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)


def test_picture_is_the_area_average_of_its_central_square(picture):
    image = read_upload("galaxy.png", encoded(picture), size=80)
    square = torch.from_numpy(picture[:, 20:180].astype(np.float32) / 255).permute(2, 0, 1)
    assert torch.allclose(image, torch.nn.functional.avg_pool2d(square, 2), atol=1e-5)  # sums in float32


def test_galaxy_zoo_frame_is_cut_to_240_first():
    frame = np.zeros((424, 424, 3), np.uint8)
    frame[92:332, 92:332] = 255  # exactly the central 240
    assert read_upload("frame.png", encoded(frame)).min() > 0.999


def test_grey_and_jpeg_become_colour(picture):
    assert read_upload("a.JPG", encoded(picture[..., 0], "JPEG")).shape == (3, 80, 80)


def test_fits_is_stretched_and_grey_becomes_colour(tmp_path):
    fits = pytest.importorskip("astropy.io.fits", reason="astropy is not installed (extra: sky)")
    path = tmp_path / "sky.fits"
    light = np.random.default_rng(0).normal(10, 1, (100, 100)).astype(np.float32)
    light[50, 50] = 1000
    fits.PrimaryHDU(light).writeto(path)
    image = read_upload("sky.fits", path.read_bytes())
    assert image.shape == (3, 80, 80) and torch.equal(image[0], image[2])
    assert image[0, 40, 40] == 1 and image[0].median() < 0.9
    with pytest.raises(ValueError) as refused:
        read_upload("sky.fits", path.read_bytes()[:4000])
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"hello", "unknown kind; upload one of .jpg"),
        ("galaxy.jpg", b"hello", "damaged or no image"),
        ("galaxy.png", b"", "damaged or no image"),
        ("galaxy.fits", b"hello", "galaxy.fits"),
    ],
)
def test_bad_files_are_refused_in_plain_words(name, content, message):
    with pytest.raises(ValueError, match=message):
        read_upload(name, content)


def test_small_cut_and_huge_pictures_are_refused(picture):
    with pytest.raises(ValueError, match="at least 80 x 80 px"):
        read_upload("small.png", encoded(picture[:50]))
    with pytest.raises(ValueError, match="damaged"):
        read_upload("cut.png", encoded(picture)[:9000])
    with pytest.raises(ValueError, match="at most 50 are read"):
        read_upload("huge.png", bytes(50_000_001))
    with pytest.raises(ValueError, match="too many pixels"):
        read_upload("wide.png", encoded(np.zeros((100, 500_001), np.uint8)))
