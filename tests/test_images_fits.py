"""FITS cut-outs: limits, stretch, NaN, world coordinates, and what is refused."""

import json

import numpy as np
import pytest

from galnb.images import fits_cutouts

fits = pytest.importorskip("astropy.io.fits")
WCS = pytest.importorskip("astropy.wcs").WCS


@pytest.fixture
def sky():
    """Sky of 100 with noise 5, a source in the middle, big-endian as FITS has it."""
    image = np.random.default_rng(0).normal(100, 5, (60, 70)).astype(">f4")
    image[28:34, 32:38] += 300
    return image


@pytest.fixture
def wcs():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.cunit = ["RA---TAN", "DEC--TAN"], ["deg", "deg"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [53.16, -27.79], [10, 12], [-1e-5, 1e-5]
    return wcs


def write(path, *units):
    fits.HDUList([fits.PrimaryHDU(), *units]).writeto(path)
    return path


def test_linear_stretch_with_limits_given(tmp_path, sky):
    path = write(tmp_path / "a.fits", fits.ImageHDU(sky, name="SCI"))
    read = fits_cutouts(path, size=40, hdu="sci", stretch="linear", limits=(80, 420))
    oracle = ((sky[10:50, 15:55] - 80.0) / 340).clip(0, 1)
    np.testing.assert_allclose(read.pixels[0, 0], oracle, atol=1e-6)  # float32
    assert read.names == ("a.fits",)
    assert read.record["files"][0]["limits"] == [80, 420]


@pytest.mark.parametrize("softening", [10, 200])
def test_asinh_stretch_is_astropys(tmp_path, sky, softening):
    visualization = pytest.importorskip("astropy.visualization")
    path = write(tmp_path / "a.fits", fits.ImageHDU(sky))
    read = fits_cutouts(path, size=40, hdu=1, softening=softening)
    low, high = read.record["files"][0]["limits"]
    oracle = visualization.AsinhStretch(a=1 / softening)(
        ((sky[10:50, 15:55] - low) / (high - low)).clip(0, 1)
    )
    np.testing.assert_allclose(read.pixels[0, 0], oracle, atol=1e-5)  # float32
    assert abs(low - 95) < 1.5  # the sky minus one sigma of the noise


def test_nan_pixels_are_shown_as_the_lower_limit_and_counted(tmp_path, sky):
    sky[30, 30], sky[20, 20], sky[0, 0] = np.nan, np.inf, np.nan
    with pytest.warns(UserWarning, match=r"^a\.fits: 2 of 1600 values are no finite numbers; they"):
        read = fits_cutouts(write(tmp_path / "a.fits", fits.ImageHDU(sky)), size=40, hdu=1)
    assert read.pixels[0, 0, 20, 15] == read.pixels[0, 0, 10, 5] == 0
    assert read.record["files"][0]["nan_pixels"] == 2  # the third lies outside the cutout


def test_wcs_moves_with_the_cutout(tmp_path, sky, wcs):
    read = fits_cutouts(write(tmp_path / "a.fits", fits.ImageHDU(sky, wcs.to_header())), size=40, hdu=1)
    cards = json.loads(json.dumps(read.record))["files"][0]["wcs"]
    cutout = WCS(fits.Header(cards))
    np.testing.assert_allclose(  # cutout pixel (3, 4) is image pixel (15 + 3, 10 + 4)
        cutout.all_pix2world(3, 4, 0), wcs.all_pix2world(18, 14, 0), atol=1e-9
    )


BROKEN = {
    "unequal projections": {"CTYPE2": "DEC--SIN"},
    "unknown unit": {"CUNIT1": "foo", "CUNIT2": "foo"},
    "table of coordinates that is not there": {"CTYPE1": "RA---TAB", "CTYPE2": "DEC--TAB"},
    "no scale": {"CDELT1": 0.0, "CDELT2": 0.0},
    "look-up distortion as of HST": {"CPDIS1": "LOOKUP", "CPDIS2": "LOOKUP"},
}


@pytest.mark.parametrize("case", BROKEN)
def test_pixels_are_read_beside_broken_world_coordinates(tmp_path, sky, wcs, case):
    header = wcs.to_header()
    header.update(BROKEN[case])
    for axis in (1, 2):
        if "CPDIS1" in header:
            for card in (f"EXTVER: {axis}.0", "NAXES: 2.0", "AXIS.1: 1.0", "AXIS.2: 2.0"):
                header.append((f"DP{axis}", card), end=True)
    path = write(tmp_path / "a.fits", fits.ImageHDU(sky, header))
    with pytest.warns(UserWarning, match=r"a\.fits: its world coordinates cannot be used \(.*wcs is None"):
        read = fits_cutouts(path, size=40, hdu=1)
    assert read.record["files"][0]["wcs"] is None
    assert read.pixels.equal(
        fits_cutouts(write(tmp_path / "b.fits", fits.ImageHDU(sky)), size=40, hdu=1).pixels
    )


def test_distortion_polynomials_move_with_the_cutout(tmp_path, sky, wcs):
    header = wcs.to_header()
    header.update({"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2})
    header.update({"A_2_0": 1e-3, "A_0_2": 0.0, "A_1_1": 0.0, "B_2_0": 0.0, "B_0_2": 2e-3, "B_1_1": 0.0})
    read = fits_cutouts(write(tmp_path / "a.fits", fits.ImageHDU(sky, header)), size=40, hdu=1)
    cutout = WCS(fits.Header(read.record["files"][0]["wcs"]))
    assert cutout.sip is not None
    whole = WCS(header)
    np.testing.assert_allclose(cutout.all_pix2world(3, 4, 0), whole.all_pix2world(18, 14, 0), atol=1e-9)


def test_equal_names_in_two_folders_stay_apart(tmp_path, sky):
    paths = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        paths.append(write(tmp_path / place / "a.fits", fits.ImageHDU(sky)))
    assert fits_cutouts(paths, size=40, hdu=1).names == tuple(map(str, paths))


def test_cubes_compressed_and_scaled_images(tmp_path, sky):
    whole = np.stack([sky, sky + 50, sky + 100])
    cube = fits_cutouts(write(tmp_path / "cube.fits", fits.ImageHDU(whole)), size=40, hdu=1)
    assert cube.pixels.shape == (1, 3, 40, 40)
    counts = sky.astype(np.int16)
    packed = fits_cutouts(write(tmp_path / "packed.fits.fz", fits.CompImageHDU(counts)), size=40, hdu=1)
    plain = fits_cutouts(write(tmp_path / "plain.fits.gz", fits.ImageHDU(counts)), size=40, hdu=1)
    assert packed.pixels.equal(plain.pixels)  # integers are packed without loss
    with pytest.raises(ValueError, match=r"\[1, 3\] channels"):
        fits_cutouts([tmp_path / "cube.fits", tmp_path / "plain.fits.gz"], size=40, hdu=1)


def test_no_image_in_the_hdu_lists_those_that_have_one(tmp_path, sky):
    table = fits.BinTableHDU.from_columns([fits.Column("flux", "E", array=np.ones(3))], name="CAT")
    path = write(tmp_path / "a.fits", table, fits.ImageHDU(sky, name="SCI"))
    for hdu in (0, 1, "CAT", 7, "NOPE"):
        with pytest.raises(ValueError, match=r"holds no 2-D or 3-D image; HDUs that do: 2 \(SCI\)"):
            fits_cutouts(path, size=40, hdu=hdu)


def test_only_nan_and_too_small(tmp_path, sky):
    path = write(tmp_path / "nan.fits", fits.ImageHDU(np.full((50, 50), np.nan)))
    with pytest.raises(ValueError, match=r"nan\.fits: .*got no finite pixel"):
        fits_cutouts(path, size=40, hdu=1)
    path = write(tmp_path / "small.fits", fits.ImageHDU(sky))
    with pytest.raises(ValueError, match=r"small\.fits: .*got 70 x 60 pixels, expected at least 64 x 64"):
        fits_cutouts(path, size=64, hdu=1)


@pytest.mark.parametrize("kept", [0, 100, 3000, 8000, 20000])
def test_truncated_file(tmp_path, sky, kept):
    path = write(tmp_path / "a.fits", fits.ImageHDU(sky))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"a\.fits: cannot be used as FITS image"):
        fits_cutouts(path, size=40, hdu=1)


def test_bad_values(tmp_path, sky):
    path = write(tmp_path / "a.fits", fits.ImageHDU(sky))
    with pytest.raises(FileNotFoundError, match=r"missing\.fits: no such FITS image; check the path"):
        fits_cutouts(tmp_path / "missing.fits", size=40)
    with pytest.raises(ValueError, match="stretch 'log' is unknown; known are asinh, linear"):
        fits_cutouts(path, size=40, hdu=1, stretch="log")
    for limits in ((2, 1), (1, 1), (np.nan, 1), (0, np.inf)):
        with pytest.raises(ValueError, match=r"expected \(low, high\) with low < high"):
            fits_cutouts(path, size=40, hdu=1, limits=limits)
    with pytest.raises(ValueError, match=r"softening=0: expected a finite number of at least 0\.001"):
        fits_cutouts(path, size=40, hdu=1, softening=0)
    with pytest.raises(ValueError, match="size=0"):
        fits_cutouts(path, size=0)
    with pytest.raises(ValueError, match="paths: got 0 files"):
        fits_cutouts([], size=40)


def test_a_constant_image_is_black(tmp_path):
    path = write(tmp_path / "flat.fits", fits.ImageHDU(np.full((50, 50), 7.0)))
    assert fits_cutouts(path, size=40, hdu=1).pixels.max() == 0
