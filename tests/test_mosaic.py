"""Tests of the wide field: cutting out, where light lands, matching, and the folded code of chapter 14."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from galnb import evaluation, images, mosaic
from galnb.mosaic import stamps
from tests.cells import namespace

ONE = {"scales": (1.0, 1.0), "sky": 0.0, "noise": 0.0}


def gaussian(side=64, sigma=3.0, x=0.0, y=0.0, peak=0.5):
    """One Gaussian galaxy (3, side, side), offset from the middle by x, y."""
    place = torch.arange(side) - (side - 1) / 2
    square = (place - x) ** 2 + (place[:, None] - y) ** 2
    return (peak * torch.exp(-square / (2 * sigma**2))).expand(3, -1, -1)


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


def test_light_adds():
    first, twice = (
        mosaic.compose(gaussian()[None], size=64, placements=count, generator=draw(), **ONE)
        for count in (1, 2)
    )
    assert float(twice.image.sum() / first.image.sum()) == pytest.approx(2, rel=0.01)


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
    setting = {"size": 600, "placements": 400, "blanks": [0, 1]}
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
    with pytest.raises(ValueError, match=r"none 0|expected 3 channels; .* if it is grey"):
        mosaic.compose(given, size=100, placements=2, generator=draw())


def test_galaxy_zoo_field_holds_its_galaxies(galaxy_zoo_folder):
    real = images.galaxy_zoo(galaxy_zoo_folder, size=64, split="test", limit=60).pixels
    field = mosaic.compose(real, size=600, placements=60, generator=draw())
    found = mosaic.match(field.catalogue, evaluation.detect(field.image), radius=5).found
    assert found.mean() > 0.6


def test_light_centre_and_radius_of_a_gaussian(generator):
    noise = 0.1 + 0.01 * torch.randn(1, 3, 64, 64, generator=generator)
    cut = stamps.cut_out((noise + gaussian(x=4.0, y=-2.5)).clamp(0, 1))
    assert torch.allclose(cut.centres[0], torch.tensor([4.0, -2.5]), atol=0.15)  # noise moves it a little
    assert cut.radii[0] == pytest.approx(3 * (2 * np.log(2)) ** 0.5, rel=0.06)  # analytic; whole pixels
    assert cut.light.mean(1).sum() == pytest.approx(0.5 * 2 * np.pi * 9, rel=0.03)


def test_sky_is_gone_and_the_frame_is_empty(generator):
    cut = stamps.cut_out(images.hubble_deep_field(size=64, limit=20).pixels)
    assert (cut.light[..., [0, -1], :] == 0).all() and (cut.light[..., [0, -1]] == 0).all()
    assert cut.footprints.amin() == 0 and cut.footprints.amax() == 1
    steps = max(cut.footprints.diff(dim=axis).abs().max() for axis in (2, 3))
    assert steps < 0.5, "the footprint ends at a line"
    assert (cut.radii > 2).all()


def test_a_neighbour_that_does_not_touch_is_left_out():
    near, far = gaussian(x=-1.0), gaussian(x=22.0, y=3.0, sigma=2.0)
    alone, both = (stamps.cut_out((image + 0.02)[None].clamp(0, 1)) for image in (near, near + far))
    assert torch.allclose(alone.light, both.light, atol=0.01)


def test_an_empty_stamp_has_no_light():
    cut = stamps.cut_out(torch.full((2, 3, 32, 32), 0.01))
    assert (cut.light == 0).all() and (cut.radii == 0).all()


@pytest.mark.parametrize(
    ("images_given", "words"),
    [
        (torch.zeros(0, 3, 64, 64), "none 0"),
        (torch.zeros(2, 1, 64, 64), "3 channels"),
        (torch.zeros(2, 3, 64, 32), "square"),
        (torch.zeros(2, 3, 8, 8), "16 px"),
        (torch.full((2, 3, 64, 64), 7.0), r"\[0, 1\]"),
    ],
)
def test_bad_stamps(images_given, words):
    with pytest.raises(ValueError, match=words):
        stamps.cut_out(images_given)


def test_of_equal_regions_one_is_kept():
    above = np.zeros((3, 8, 8), bool)
    above[:2, 1, 1:3] = above[:2, 5, 4:6] = True  # alike in the first image, unlike in the second
    weights = np.ones(above.shape)
    weights[1, 5, 4] = 1.5
    kept = stamps._heaviest_region(above, weights)
    assert kept.sum((1, 2)).tolist() == [2, 2, 0] and not (kept & ~above).any()
    assert kept[0, 1, 1:3].all() and kept[1, 5, 4:6].all()
    assert (stamps._heaviest_region(above[:1] & kept[:1], np.zeros((1, 8, 8))) == kept[:1]).all()


def catalogue(places, **columns):
    names = [("x", "f8"), ("y", "f8"), *((name, np.asarray(c).dtype) for name, c in columns.items())]
    table = np.zeros(len(places), names)
    table["x"], table["y"] = np.asarray(places, float).reshape(-1, 2).T
    for name, column in columns.items():
        table[name] = column
    return table


def test_match_is_one_to_one_and_nearest_first():
    true = catalogue([(0, 0), (10, 0), (50, 50)], blank=[False, False, True])
    seen = catalogue([(1, 0), (2, 0), (50, 50), (11, 0)])
    agreed = mosaic.match(true, seen, radius=5)
    assert isinstance(agreed, mosaic.Match)
    assert agreed.pairs.tolist() == [[0, 0], [1, 3]]
    assert agreed.found.tolist() == [True, True, False], "blank space is nothing to find"
    assert agreed.real.tolist() == [True, False, False, True]


def test_match_with_a_radius_for_each_galaxy():
    true, seen = catalogue([(0, 0), (20, 0)]), catalogue([(2, 0), (22, 0)])
    agreed = mosaic.match(true, seen, radius=np.array([1.0, 3.0]))
    assert agreed.found.tolist() == [False, True]


def test_match_finds_as_many_as_the_best_assignment_where_nothing_competes(generator):
    places = 100 * torch.rand(40, 2, generator=generator).numpy() // 10 * 10
    places = np.unique(places, axis=0)
    moved = places + np.random.default_rng(0).uniform(-1, 1, places.shape)
    rows, columns = linear_sum_assignment(cdist(places, moved))
    agreed = mosaic.match(catalogue(places), catalogue(moved), radius=4)
    assert sorted(map(tuple, agreed.pairs.tolist())) == list(zip(rows, columns, strict=True))


@pytest.mark.parametrize("radius", [0, -1, float("nan"), np.array([1.0, 0.0]), np.ones(5)])
def test_bad_radius(radius):
    with pytest.raises(ValueError, match="radius"):
        mosaic.match(catalogue([(0, 0), (1, 1)]), catalogue([(0, 0)]), radius=radius)


def test_match_needs_places():
    with pytest.raises(ValueError, match="columns x and y"):
        mosaic.match(np.zeros(3), catalogue([(0, 0)]), radius=1)
    nothing = mosaic.match(catalogue([(0, 0)]), catalogue([]), radius=1)
    assert len(nothing.pairs) == 0 and not nothing.found.any()


def chapter(*ids):
    """Return the names of folded cells of chapter 14."""
    return namespace("14_mosaic", *ids, np=np, torch=torch)


def test_blank_stamps_are_the_blackest_and_equal_ones_keep_their_order(generator):
    blackest = chapter("blackest")["blackest"]
    galaxies = torch.stack([gaussian(peak=float(peak)) for peak in torch.linspace(1, 0.01, 12)])
    order = torch.randperm(12, generator=generator)
    assert sorted(order[blackest(galaxies[order], 3)].tolist()) == [9, 10, 11]
    galaxies = torch.zeros(300, 3, 16, 16)
    galaxies[::2] = 0.5
    assert blackest(galaxies, 300).tolist() == [*range(1, 300, 2), *range(0, 300, 2)]


def test_separation_of_known_pairs():
    rows = catalogue([(0, 0), (6, 0), (300, 0), (6, 1)], radius=[2.0, 4.0, 3.0, 1.0], blank=[0, 0, 0, 1])
    assert chapter("separation")["separation"](rows).tolist() == [1.0, 1.0, np.inf, np.inf]


@pytest.mark.filterwarnings("error")
def test_points_are_apart_without_a_warning():
    columns = {"radius": [0.0, 0.0, 3.0, 0.0], "blank": [0, 0, 0, 0]}
    rows, separation = (
        catalogue([(0, 0), (0, 0), (6, 0), (9, 0)], **columns),
        chapter("separation")["separation"],
    )
    assert separation(rows).tolist() == [np.inf, np.inf, 1.0, 1.0]
    assert separation(rows[:2]).tolist() == [np.inf, np.inf]


def test_wilson_is_scipys_and_says_nothing_of_nothing():
    wilson = chapter("shares")["wilson"]
    for hits, count in ((0, 10), (3, 10), (10, 10), (800, 1000)):
        witness = stats.binomtest(hits, count).proportion_ci(method="wilson")
        assert [float(end) for end in wilson(hits, count)] == pytest.approx(
            [witness.low, witness.high], abs=1e-9
        )
    assert [float(end) for end in wilson(0, 0)] == [0, 1]


def test_rates_by_hand():
    rates, hits = chapter("shares")["rates"], np.array([1, 0, 1, 1, 0]) > 0
    table = rates(np.array([0, 1, 1, 2, 9]), hits, np.arange(5.0))
    assert table["count"].tolist() == [1, 2, 1, 0] and table["rate"].tolist() == [1, 0.5, 1, 0]
    assert (table["lower"] <= table["rate"]).all() and (table["rate"] <= table["upper"]).all()
    assert table["low"].tolist() == [0, 1, 2, 3] and table["high"].tolist() == [1, 2, 3, 4]
    assert (table["lower"][3], table["upper"][3]) == (0, 1), "an empty bin says nothing"


def test_resampled_rate_knows_that_copies_are_no_new_galaxies(generator):
    hits, groups = np.repeat([0, 1, 1, 0, 1, 0, 1, 1, 0, 1], 100), np.repeat(np.arange(10), 100)
    drawn = chapter("resampled")["resampled_rate"](hits, groups, generator=generator)
    assert drawn.mean() == pytest.approx(hits.mean(), abs=0.02)
    assert drawn.std() == pytest.approx((0.6 * 0.4 / 10) ** 0.5, rel=0.1)  # ten galaxies, not a thousand


def test_the_chapters_fits_file_gives_image_catalogue_and_sky_coordinates_back(tmp_path):
    fits, wcs = pytest.importorskip("astropy.io.fits"), pytest.importorskip("astropy.wcs")
    from astropy.coordinates import SkyCoord

    field = mosaic.compose(stamps_of_noise(), size=(200, 300), placements=12, generator=draw())
    path = chapter("fits-writer")["write_fits"](tmp_path / "field.fits", field, centre=(10.0, 60.0))
    with fits.open(path) as units:
        assert np.array_equal(units[0].data, field.image.numpy())
        table, projection = units["CATALOGUE"].data, wcs.WCS(units[0].header).celestial
    for name in mosaic._COLUMNS.names:
        assert (table[name] == field.catalogue[name]).all(), name
    x, y = projection.world_to_pixel(SkyCoord(table["ra"], table["dec"], unit="deg"))
    assert x == pytest.approx(table["x"], abs=1e-6) and y == pytest.approx(table["y"], abs=1e-6)
    middle = projection.pixel_to_world(149.5, 99.5)
    assert middle.separation(SkyCoord(10, 60, unit="deg")).arcsec < 1e-6
    assert middle.separation(projection.pixel_to_world(159.5, 99.5)).arcsec == pytest.approx(3.96, rel=1e-6)
    assert projection.pixel_to_world(150.5, 99.5).ra < middle.ra, "east is to the left"


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_stamps_of_another_precision(kind):
    exact = stamps_of_noise().half().float()
    setting = {"size": 100, "placements": 3}
    one, two = (mosaic.compose(x, generator=draw(), **setting) for x in (exact, exact.to(kind)))
    assert torch.allclose(one.image, two.image, atol=1e-6)


def test_what_is_no_stamp_is_named():
    found = images.ImageSet(torch.zeros(2, 3, 32, 32), ("a", "b"), "nowhere")
    with pytest.raises(ValueError, match="got ImageSet"):
        mosaic.cut_out(found)
    with pytest.raises(ValueError, match="generator is 0"):
        mosaic.compose(torch.zeros(2, 3, 32, 32), size=64, placements=1, generator=0)


def test_black_stamps_make_an_empty_field():
    field = mosaic.compose(torch.zeros(2, 3, 32, 32), size=64, placements=4, generator=draw())
    assert field.catalogue["blank"].all() and (field.catalogue["flux"] == 0).all()
    assert np.isfinite([field.catalogue[name] for name in ("x", "y", "radius")]).all()
