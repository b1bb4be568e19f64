"""Pictures of every kind, uploads and stacks: right values, or a message that a reader understands."""

import gzip
import io
import os
import resource
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from galnb import images
from galnb.images.readers import decode, listing, open_stack
from galnb.images.sources import read_upload


def encoded(pixels, kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def read_all(source):
    readers, unreadable = open_stack(source)
    assert not unreadable
    return [read() for read in readers.values()]


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


def fits_file(*units):
    fits, file = (
        pytest.importorskip("astropy.io.fits", reason="astropy is not installed (extra: sky)"),
        io.BytesIO(),
    )
    fits.HDUList([fits.PrimaryHDU(), *units]).writeto(file)
    return file.getvalue()


def test_the_first_image_of_an_upload_is_taken_also_from_gzip():
    fits = pytest.importorskip("astropy.io.fits")
    light = np.random.default_rng(0).normal(100, 9, (90, 90)).astype(np.int16)
    plain = read_upload("a.fits", fits_file(fits.ImageHDU(light)))
    packed, zipped = fits_file(fits.CompImageHDU(light)), gzip.compress(fits_file(fits.ImageHDU(light)))
    for name, content in (
        ("a.fits.gz", zipped),
        ("a.fits.fz", packed),
    ):
        assert torch.equal(read_upload(name, content), plain)
    light = light.astype(float)
    light[40, 40] = np.nan
    with pytest.warns(UserWarning, match=r"^a\.fits: 1 of 6400 values are no finite numbers"):
        read_upload("a.fits", fits_file(fits.ImageHDU(light)))
    with pytest.raises(ValueError, match="2 planes; expected 1 or 3"):
        read_upload("a.fits", fits_file(fits.ImageHDU(np.random.default_rng(0).normal(size=(2, 90, 90)))))
    with pytest.raises(ValueError, match=r"a\.fits: .*HDU None holds no 2-D or 3-D image"):
        read_upload("a.fits", fits_file())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"hello", "unknown kind; upload a .jpg"),
        ("galaxy.jpg", b"hello", r"galaxy\.jpg: cannot be used as picture \(cannot identify image file\)"),
        ("galaxy.png", b"", r"galaxy\.png: cannot be used as picture"),
        ("galaxy.fits", b"hello", r"galaxy\.fits: cannot be used as FITS image"),
        ("galaxy.fits.gz", b"\x1f\x8bhello", r"galaxy\.fits\.gz: cannot be used as FITS image"),
    ],
)
def test_bad_files_are_refused_in_plain_words(name, content, message):
    with pytest.raises(ValueError, match=message):
        read_upload(name, content)


def test_small_cut_and_huge_pictures_are_refused(picture):
    with pytest.raises(ValueError, match="at least 80 x 80 px"):
        read_upload("small.png", encoded(picture[:50]))
    with pytest.raises(ValueError, match=r"cut\.png: cannot be used as picture"):
        read_upload("cut.png", encoded(picture)[:9000])
    with pytest.raises(ValueError, match=r"wide\.png: .*exceeds limit of 178956970 pixels"):
        read_upload("wide.png", encoded(np.zeros((200, 900_000), np.uint8)))


GREY = np.linspace(0, 65535, 100 * 100).round().astype(np.uint16).reshape(100, 100)


def picture_of(kind):
    """A picture file, and the colours (100, 100, 3) in [0, 1] that every viewer shows for it."""
    low = (GREY >> 8).astype(np.uint8)
    colour = np.stack([low, low[::-1], low.T], -1)
    if kind == "16-bit grey":
        return encoded(GREY), np.repeat(GREY[..., None] / 65535, 3, -1)
    if kind == "1-bit":
        return encoded(low > 127), np.repeat((low > 127)[..., None].astype(float), 3, -1)
    if kind == "8-bit grey":
        return encoded(low), np.repeat(low[..., None] / 255, 3, -1)
    if kind == "palette":
        image = Image.fromarray(low, "L").convert("P")
        image.putpalette([255 - value for value in range(256) for _ in range(3)])
        return saved(image), np.repeat((255 - low)[..., None] / 255, 3, -1)
    if kind == "alpha":
        alpha = np.where(np.arange(100) < 50, 0, 255).astype(np.uint8)[:, None].repeat(100, 1)
        return encoded(np.dstack([colour, alpha])), colour / 255 * (alpha[..., None] > 0)
    if kind == "grey with alpha":
        return encoded(np.dstack([low, np.full_like(low, 255)])), np.repeat(low[..., None] / 255, 3, -1)
    if kind == "transparent colour":
        image = Image.fromarray(np.where(low[..., None] > 99, [0, 0, 0], [9, 200, 9]).astype(np.uint8))
        return saved(image, transparency=(9, 200, 9)), np.zeros((100, 100, 3))
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6  # shown turned to the right by a quarter
        return saved(Image.fromarray(colour), exif=exif), np.rot90(colour, -1) / 255
    return encoded(colour), colour / 255


def saved(image, **how):
    content = io.BytesIO()
    image.save(content, "PNG", **how)
    return content.getvalue()


KINDS = [
    "colour", "8-bit grey", "16-bit grey", "1-bit", "palette", "alpha", "grey with alpha",
    "transparent colour", "turned",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_shows_what_a_viewer_shows(kind, tmp_path):
    content, wanted = picture_of(kind)
    (tmp_path / "1.png").write_bytes(content)
    wanted = torch.from_numpy(wanted.copy()).permute(2, 0, 1).float()
    for found in (
        images.galaxy_zoo(tmp_path, size=100, crop=100).pixels[0],
        read_upload("1.png", content, size=100),
        torch.from_numpy(read_all(tmp_path)[0]).expand(3, -1, -1),
    ):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_sixteen_bit_colours_and_cmyk_keep_their_brightness():
    """Pillow reads 16-bit colour by its upper byte; CMYK, the ink, is written and read by it too."""
    file = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), (200, 100, 50), np.uint8)).convert("CMYK").save(
        file, "JPEG", quality=95
    )
    found = decode(file.getvalue, "a.jpg")
    np.testing.assert_allclose(found.mean((1, 2)) * 255, (200, 100, 50), atol=3)  # JPEG
    found = decode(lambda: png16(np.full((4, 4, 3), (65535, 256 * 100 + 77, 0), np.uint16)), "a.png")
    np.testing.assert_allclose(found[:, 0, 0] * 255, (255, 100.3, 0), atol=0.5)


def png16(pixels):
    """A 16-bit RGB PNG file, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pictures_without_a_known_range_are_refused(mode):
    file = io.BytesIO()
    Image.fromarray(np.full((9, 9), 70_000, np.float32)).convert(mode).save(file, "TIFF")
    with pytest.raises(ValueError, match=f"a.png: .*mode {mode} have no known range, save 8 or 16 bits"):
        decode(file.getvalue, "a.png")


def test_listing_of_a_zip_and_what_is_encrypted_or_missing(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("x/1.PNG", "x/.hidden/2.png", "x/._1.png", "__MACOSX/1.png", "x/notes.txt"):
            archive.writestr(name, name)
    found = listing(tmp_path / "a.zip", (".png",))
    assert list(found) == ["x/1.PNG"] and found["x/1.PNG"]() == b"x/1.PNG"
    with pytest.raises(FileNotFoundError, match=r"holds no \.png"):
        listing(tmp_path, (".png",))


@pytest.fixture(params=["float", "scaled", "unsigned", "blank", "compressed", "gzip", "bytes"])
def fits_cube(request, tmp_path):
    """A FITS file of 3 planes (20, 30), and its values by definition."""
    fits = pytest.importorskip("astropy.io.fits")
    stored = np.random.default_rng(0).integers(1, 30_000, (3, 20, 30)).astype(np.int16)
    unit, values, place = fits.PrimaryHDU(stored), stored.astype(np.float32), tmp_path / "a.fits"
    if request.param == "float":
        unit = fits.PrimaryHDU(values)
    elif request.param == "scaled":
        unit.header["BSCALE"], unit.header["BZERO"] = 2.0, 5.0
        values = 2 * values + 5
    elif request.param == "unsigned":
        values = stored.astype(np.uint16) + np.uint16(30_000)
        unit = fits.PrimaryHDU(values)
    elif request.param == "blank":
        stored[1, 2, 3] = -1
        unit, values[1, 2, 3] = fits.PrimaryHDU(stored), np.nan
        unit.header["BLANK"] = -1
    elif request.param == "bytes":
        unit = fits.PrimaryHDU((stored % 256).astype(np.uint8))
        values = values % 256
    elif request.param == "gzip":
        place = tmp_path / "a.fits.gz"
    units = [fits.PrimaryHDU(), fits.CompImageHDU(stored)] if request.param == "compressed" else [unit]
    fits.HDUList(units).writeto(place)
    return place, values.astype(np.float32)


def test_audited_fits_have_their_physical_values(fits_cube):
    path, values = fits_cube
    assert list(open_stack(path)[0]) == list(open_stack(path.parent)[0])
    np.testing.assert_array_equal(np.stack(read_all(path))[:, 0], values)


def test_cut_outs_of_fits_have_their_physical_values(fits_cube):
    path, values = fits_cube
    hdu, limits = int(next(iter(open_stack(path)[0]))[-4]), (-1.0, 70_000.0)  # as in a.fits[1,0]
    found = images.fits_cutouts(path, size=20, hdu=hdu, stretch="linear", limits=limits).pixels[0]
    wanted = (np.nan_to_num(values[:, :, 5:25], nan=-1.0) + 1) / 70_001
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_cut_file_is_named_and_the_others_are_read(fits_cube):
    path, _ = fits_cube
    content = path.read_bytes()
    path.with_name("cut.fits").write_bytes(content[: len(content) // 3])
    found, unreadable = open_stack(path.parent)
    assert len(found) == 3 and list(unreadable) == ["cut.fits"]
    assert "cut.fits: cannot be used as FITS image" in unreadable["cut.fits"]


def test_more_files_than_a_system_lets_open(tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    for number in range(60):
        fits.PrimaryHDU(np.full((16, 16), number, np.float32)).writeto(tmp_path / f"{number:02}.fits")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, hard))
    try:
        assert [int(image.mean()) for image in read_all(tmp_path)] == list(range(60))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("values", [np.float64, np.float16, torch.bfloat16, torch.float64, np.uint8])
def test_stacks_of_values_are_float32_channels_first(values):
    given = torch.arange(2 * 3 * 8 * 9).view(2, 3, 8, 9) % 200
    given = given.to(values) if isinstance(values, torch.dtype) else given.numpy().astype(values)
    found = read_all(given)[1]
    assert found.dtype == np.float32 and found.shape == (3, 8, 9)
    last = given.movedim(1, -1) if isinstance(given, torch.Tensor) else np.moveaxis(given, 1, -1)
    np.testing.assert_array_equal(read_all(last)[1], found)


def test_stacks_say_what_they_want(tmp_path):
    one = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"got ImageSet .*give its \.pixels"):
        open_stack(images.ImageSet(one, ("a",), "noise"))
    with pytest.raises(ValueError, match=r"got list .*torch\.stack"):
        open_stack([one[0]])
    (tmp_path / "damaged.h5").write_bytes(b"no")
    assert "cannot be used as HDF5 file" in open_stack(tmp_path / "damaged.h5")[1]["damaged.h5"]
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "table.h5", "w") as file:
        file["numbers"] = np.zeros(4)
    assert "holds no image of 2, 3 or 4 axes" in open_stack(tmp_path / "table.h5")[1]["table.h5"]
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["a/small"], file["a/images"] = np.zeros((2, 3, 3)), np.ones((2, 9, 8, 3), np.uint8)
    assert list(open_stack(tmp_path / "set.h5")[0]) == ["set.h5[a/images,0]", "set.h5[a/images,1]"]
    assert read_all(tmp_path / "set.h5")[1].shape == (3, 9, 8)
