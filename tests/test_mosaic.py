"""Tests of the wide field: where light lands, how much, what no one may see, and the FITS file."""

import numpy as np
import pytest
import torch

from galnb import images, mosaic
from tests.test_stamps import gaussian

ONE = {"scales": (1.0, 1.0), "sky": 0.0, "noise": 0.0}


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def stamps_of_noise(count=8, level=0.15):
    """Faint galaxies on a bright, noisy sky: whatever of their frames survives would be seen."""
    noise = level + 0.02 * torch.randn(count, 3, 64, 64, generator=draw(1))
    return (noise + gaussian(sigma=4.0, peak=0.3)).clamp(0, 1)


def test_light_lands_where_the_catalogue_says():
    galaxies = torch.stack([gaussian(sigma=2.5, x=float(x), y=3.0) for x in (-6, 0, 6)])
    field = mosaic.compose(galaxies, size=(500, 700), placements=6, generator=draw(4), sky=0.0, noise=0.0)
    light = field.image.mean(0).double()
    y, x = torch.meshgrid(*(torch.arange(side).double() for side in light.shape), indexing="ij")
    for row in field.catalogue:
        near = ((x - row["x"]) ** 2 + (y - row["y"]) ** 2 < 14**2) * light
        apart = np.hypot(field.catalogue["x"] - row["x"], field.catalogue["y"] - row["y"])
        if np.sort(apart)[1] < 30:
            continue  # its neighbour's light would move the centre
        assert float((near * x).sum() / near.sum()) == pytest.approx(row["x"], abs=0.1)
        assert float((near * y).sum() / near.sum()) == pytest.approx(row["y"], abs=0.1)
        assert float(near.sum()) == pytest.approx(row["flux"], rel=0.02)


@pytest.mark.parametrize("scale", [0.3, 0.7, 1.4])
def test_flux_and_radius_grow_with_the_size(scale):
    setting = {"size": 300, "placements": 20, "generator": draw(), "scales": (scale, scale)}
    rows = mosaic.compose(gaussian(sigma=4.0)[None], **setting).catalogue
    assert rows["flux"] == pytest.approx(scale**2 * 0.5 * 2 * np.pi * 16, rel=0.04)  # bilinear, analytic
    assert rows["radius"] == pytest.approx(scale * 4 * (2 * np.log(2)) ** 0.5, rel=0.06)


@pytest.mark.parametrize("scale", [0.5, 0.25])
@pytest.mark.parametrize("side", [64, 69, 127, 150])
def test_odd_stamps_are_halved_about_their_middle(side, scale):
    setting = {"size": 400, "placements": 8, "generator": draw(), "scales": (scale, scale)}
    field = mosaic.compose(gaussian(side, sigma=side / 16)[None], sky=0.0, noise=0.0, **setting)
    wanted = scale**2 * 0.5 * 2 * np.pi * (side / 16) ** 2
    assert field.catalogue["flux"] == pytest.approx(wanted, rel=0.01)
    light = field.image.mean(0).double()
    for axis, name in enumerate(("y", "x")):
        centre = float((light.sum(1 - axis) * torch.arange(400)).sum() / light.sum())
        assert centre == pytest.approx(field.catalogue[name].mean(), abs=0.05)


def test_turn_goes_from_x_to_y():
    bar = torch.zeros(1, 3, 64, 64)
    bar[..., 30:34, 20:44] = 0.5
    bar[..., 44:46] = 0.0
    bar[..., 30:34, 44:52] = 1.0  # a bright end tells one direction from the other
    field = mosaic.compose(bar, size=64, placements=1, generator=draw(3), **ONE)
    peak = np.unravel_index(int(field.image.mean(0).argmax()), (64, 64))
    angle = np.rad2deg(np.arctan2(peak[0] - 31.5, peak[1] - 31.5)) % 360
    assert abs((angle - field.catalogue["angle"][0] + 180) % 360 - 180) < 12


def test_light_adds_or_the_larger_wins():
    first = mosaic.compose(gaussian()[None], size=64, placements=1, generator=draw(), **ONE)
    both = {}
    for rule in mosaic.COMBINE:
        twice = mosaic.compose(gaussian()[None], size=64, placements=2, generator=draw(), combine=rule, **ONE)
        both[rule] = float(twice.image.sum() / first.image.sum())
    assert both["add"] == pytest.approx(2, rel=0.01) and both["maximum"] < 1.5


def test_no_frame_can_be_seen():
    """Stack the surroundings of all placements, turned back: sky and noise are the same on both sides."""
    field = mosaic.compose(stamps_of_noise(), size=1400, placements=250, generator=draw(2), scales=(1, 1))
    rows, light = field.catalogue, field.image.mean(0).double()
    angle = np.deg2rad(rows["angle"])[:, None, None]
    middle = {}
    for place in ("x", "y"):  # centres of these galaxies are those of the stamps to a fraction of a px
        middle[place] = rows[place][:, None, None]
    step = np.arange(-44, 45.0)
    u, v = step[None, None], step[None, :, None]
    x = np.rint(middle["x"] + np.cos(angle) * u - np.sin(angle) * v).astype(int)
    y = np.rint(middle["y"] + np.sin(angle) * u + np.cos(angle) * v).astype(int)
    inside = ((x >= 0) & (x < 1400) & (y >= 0) & (y < 1400)).all((1, 2))
    stack = light[y[inside], x[inside]].numpy()
    frame = np.maximum(abs(step)[:, None], abs(step))
    within, beyond = (frame > 27) & (frame < 31), (frame > 33) & (frame < 37)
    clear = np.median(stack, 0)  # other galaxies lie here and there
    error = field.noise / 3**0.5 / inside.sum() ** 0.5
    assert abs(clear[within].mean() - clear[beyond].mean()) < error
    spread = [1.4826 * np.median(abs(stack[:, part] - clear[part])) for part in (within, beyond)]
    assert spread[0] == pytest.approx(spread[1], rel=0.03), "noise inside the frames differs"


def test_same_seed_same_places_whatever_the_galaxies():
    setting = {"size": 400, "placements": 30}
    one = mosaic.compose(stamps_of_noise(8), generator=draw(5), **setting)
    two = mosaic.compose(gaussian().repeat(3, 1, 1, 1), generator=draw(5), **setting)
    assert (one.catalogue["scale"] == two.catalogue["scale"]).all()
    assert (one.catalogue["angle"] == two.catalogue["angle"]).all()
    assert abs(one.catalogue["x"] - two.catalogue["x"]).max() < 2, "centres of light differ a little"
    again = mosaic.compose(stamps_of_noise(8), generator=draw(5), **setting)
    assert torch.equal(one.image, again.image) and (one.catalogue == again.catalogue).all()


def test_blank_placements_are_told_and_dark():
    galaxies = torch.cat([torch.full((2, 3, 64, 64), 0.01), gaussian()[None].repeat(6, 1, 1, 1)])
    setting = {"size": 600, "placements": 400, "blanks": mosaic.blank(galaxies, 2)}
    rows = mosaic.compose(galaxies, generator=draw(), **setting).catalogue
    assert set(rows["source"][rows["blank"]]) == {0, 1}
    assert rows["blank"].mean() == pytest.approx(2 / 8, abs=0.07)  # 400 draws: three sigma
    assert (rows["flux"][rows["blank"]] == 0).all() and (rows["flux"][~rows["blank"]] > 0).all()
    rows = mosaic.compose(galaxies, generator=draw(), blank_share=0.6, **setting).catalogue
    assert rows["blank"].mean() == pytest.approx(0.6, abs=0.08)


def test_field_stays_in_range_with_the_sky_asked_for():
    real = images.hubble_deep_field(size=64, limit=20).pixels
    field = mosaic.compose(real, size=(200, 330), placements=3, generator=draw(), sky=0.2, noise=0.02)
    assert field.image.shape == (3, 200, 330) and field.image.min() >= 0 and field.image.max() <= 1
    assert float(field.image.median()) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 0}, "size"),
        ({"size": (0, 100)}, "size"),
        ({"size": 100.0}, "size"),
        ({"size": None}, "size"),
        ({"placements": 0}, "placements"),
        ({"placements": 2.0}, "placements"),
        ({"size": 60}, "do not fit"),
        ({"size": 100, "scales": (0.5, 2.0)}, "do not fit"),
        ({"scales": (0.5, 0.2)}, "scales"),
        ({"scales": 0.5}, "scales"),
        ({"generator": None}, "generator"),
        ({"combine": "mean"}, r"\['add', 'maximum'\]"),
        ({"noise": -1.0}, "noise"),
        ({"blanks": [0]}, "got 0 galaxies"),
        ({"blanks": [1]}, "0 to 0"),
        ({"blanks": [-1]}, "0 to 0"),
        ({"blanks": torch.tensor([True])}, "nonzero"),
        ({"blank_share": 0.5}, "blank_share"),
    ],
)
def test_bad_fields(change, words):
    setting = {"size": 100, "placements": 2, "generator": draw(), **change}
    with pytest.raises(ValueError, match=words):
        mosaic.compose(gaussian()[None], **setting)


@pytest.mark.parametrize("given", [torch.zeros(0, 3, 64, 64), torch.zeros(2, 1, 64, 64)])
def test_bad_galaxies(given):
    with pytest.raises(ValueError, match=r"no galaxies|colour"):
        mosaic.compose(given, size=100, placements=2, generator=draw())


def test_fits_file_gives_image_catalogue_and_sky_coordinates_back(tmp_path):
    fits, wcs = pytest.importorskip("astropy.io.fits"), pytest.importorskip("astropy.wcs")
    from astropy.coordinates import SkyCoord

    field = mosaic.compose(stamps_of_noise(), size=(200, 300), placements=12, generator=draw())
    path = mosaic.write_fits(tmp_path / "new" / "field.fits", field, centre=(10.0, 60.0))
    assert [file.name for file in path.parent.iterdir()] == ["field.fits"]
    with fits.open(path) as units:
        assert np.array_equal(units[0].data, field.image.numpy())
        table, projection = units["CATALOGUE"].data, wcs.WCS(units[0].header).celestial
    for name in mosaic.COLUMNS.names:
        assert (table[name] == field.catalogue[name]).all(), name
    x, y = projection.world_to_pixel(SkyCoord(table["ra"], table["dec"], unit="deg"))
    assert x == pytest.approx(table["x"], abs=1e-6) and y == pytest.approx(table["y"], abs=1e-6)
    middle = projection.pixel_to_world(149.5, 99.5)
    assert middle.separation(SkyCoord(10, 60, unit="deg")).arcsec < 1e-6
    assert middle.separation(projection.pixel_to_world(159.5, 99.5)).arcsec == pytest.approx(3.96, rel=1e-6)
    assert projection.pixel_to_world(150.5, 99.5).ra < middle.ra, "east is to the left"


@pytest.mark.parametrize("wrong", [{"centre": (400, 0)}, {"centre": (0, 91)}, {"pixel_scale": 0}])
def test_impossible_sky_coordinates(tmp_path, wrong):
    field = mosaic.compose(gaussian()[None], size=64, placements=1, generator=draw(), **ONE)
    with pytest.raises(ValueError, match="degrees"):
        mosaic.write_fits(tmp_path / "field.fits", field, **wrong)
    assert not list(tmp_path.iterdir())


def test_galaxy_zoo_field_holds_its_galaxies(galaxy_zoo_folder):
    real = images.galaxy_zoo(galaxy_zoo_folder, size=64, split="test", limit=60).pixels
    field = mosaic.compose(real, size=600, placements=60, generator=draw())
    found = mosaic.match(field.catalogue, mosaic.detect(field.image), radius=5).found
    assert found.mean() > 0.6
