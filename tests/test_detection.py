"""Tests of detection, matching and rates on sources that were planted."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from galnb.evaluation import detection

RNG = np.random.default_rng(0)
SIGMA = 2.5
CELLS = [(60.0 * i + 30, 60.0 * j + 30) for i in range(6) for j in range(5)]
PLANTED = np.array([(x + dx, y + dy) for (x, y), (dx, dy) in zip(CELLS, RNG.uniform(-8, 8, (30, 2)))])  # noqa: B905
PEAKS = RNG.uniform(0.2, 0.6, 30)


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


def catalogue(places, **columns):
    names = [("x", "f8"), ("y", "f8"), *((name, np.asarray(c).dtype) for name, c in columns.items())]
    table = np.zeros(len(places), names)
    table["x"], table["y"] = np.asarray(places, float).reshape(-1, 2).T
    for name, column in columns.items():
        table[name] = column
    return table


@pytest.mark.parametrize("method", sorted(detection.DETECTORS))
def test_planted_gaussians_are_found_with_their_size_and_flux(field, method):
    pytest.importorskip("sep" if method == "SEP" else "photutils")
    found = detection.detect(field, method=method, mesh=100)
    agreed = detection.match(catalogue(PLANTED), found, radius=2)
    assert agreed.found.all() and agreed.real.mean() >= 0.9
    true, seen = agreed.pairs.T
    assert agreed.distances.max() < 0.3
    wanted = PEAKS[true] * 2 * np.pi * SIGMA**2  # of an infinite Gaussian; an isophote ends before
    assert np.median(found["flux"][seen] / wanted) == pytest.approx(0.97, abs=0.04)
    assert np.median(found["radius"][seen]) == pytest.approx(SIGMA * (2 * np.log(2)) ** 0.5, rel=0.08)


def test_detectors_agree_with_one_another(field):
    for package in ("sep", "photutils"):
        pytest.importorskip(package)
    one, two = (detection.detect(field, method=name, mesh=100) for name in ("SEP", "photutils"))
    agreed = detection.match(one, two, radius=1)
    bright = one["flux"] > 5
    assert agreed.found[bright].all()
    ratio = two["flux"][agreed.pairs[:, 1]] / one["flux"][agreed.pairs[:, 0]]
    assert np.median(ratio) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("method", sorted(detection.DETECTORS))
def test_nothing_to_speak_of_is_found_in_noise(method):
    pytest.importorskip("sep" if method == "SEP" else "photutils")
    strict = detection.Detection(threshold=4)
    assert len(detection.detect(noise(seed=3), method=method, detection=strict)) == 0
    usual = detection.detect(noise(seed=3), method=method)
    assert len(usual) <= 15  # of 108,000 px: five neighbours above 1.5 sigma happen
    rows = catalogue(PLANTED)
    assert detection.match(rows, usual, radius=3).real.sum() <= 2, "matches by luck"


@pytest.mark.parametrize("method", sorted(detection.DETECTORS))
def test_a_sky_without_any_noise_hides_nothing(method):
    pytest.importorskip("sep" if method == "SEP" else "photutils")
    image, blob = torch.zeros(3, 256, 256), torch.zeros(41, 41)
    blob[20, 20] = 0.6 * 25
    for x, y in ((60, 60), (60, 190), (190, 120)):
        image[:, y - 20 : y + 21, x - 20 : x + 21] = torch.from_numpy(gaussian_filter(blob.numpy(), 2.0))
    assert len(detection.detect(image, method=method)) == 3
    assert len(detection.detect(torch.zeros(3, 256, 256), method=method)) == 0


def test_a_crowded_field_does_not_overflow_sep():
    sep = pytest.importorskip("sep")
    limits = sep.get_extract_pixstack(), sep.get_sub_object_limit()
    bright = torch.zeros(3, 900, 900)
    bright[:, ::2] = 0.5  # far more pixels above the sky than SEP's own 300,000
    detection.detect(bright, mesh=900)
    assert (sep.get_extract_pixstack(), sep.get_sub_object_limit()) == limits


@pytest.mark.parametrize(
    ("image", "options", "words"),
    [
        (torch.zeros(1, 3, 64, 64), {}, "one image"),
        (torch.zeros(3, 4, 4), {}, "8 or more"),
        (torch.full((3, 64, 64), 2.0), {}, r"\[0, 1\]"),
        (torch.zeros(3, 64, 64), {"method": "eye"}, r"\['SEP', 'photutils'\]"),
        (torch.zeros(3, 64, 64), {"mesh": 2}, "mesh 2"),
    ],
)
def test_bad_images(image, options, words):
    with pytest.raises(ValueError, match=words):
        detection.detect(image, **options)


@pytest.mark.parametrize("method", sorted(detection.DETECTORS))
def test_a_missing_package_is_named_with_the_extra(monkeypatch, method):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {method.lower()}.*galnb\[sky\]"):
        detection.detect(torch.zeros(3, 64, 64), method=method)


def test_match_is_one_to_one_and_nearest_first():
    true = catalogue([(0, 0), (10, 0), (50, 50)], blank=[False, False, True])
    seen = catalogue([(1, 0), (2, 0), (50, 50), (11, 0)])
    agreed = detection.match(true, seen, radius=5)
    assert agreed.pairs.tolist() == [[0, 0], [1, 3]] and agreed.distances.tolist() == [1, 1]
    assert agreed.found.tolist() == [True, True, False], "blank space is nothing to find"
    assert agreed.real.tolist() == [True, False, False, True]


def test_match_with_a_radius_for_each_galaxy():
    true, seen = catalogue([(0, 0), (20, 0)]), catalogue([(2, 0), (22, 0)])
    agreed = detection.match(true, seen, radius=np.array([1.0, 3.0]))
    assert agreed.found.tolist() == [False, True]


def test_match_finds_as_many_as_the_best_assignment_where_nothing_competes(generator):
    places = 100 * torch.rand(40, 2, generator=generator).numpy() // 10 * 10
    places = np.unique(places, axis=0)
    moved = places + RNG.uniform(-1, 1, places.shape)
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    rows, columns = linear_sum_assignment(cdist(places, moved))
    agreed = detection.match(catalogue(places), catalogue(moved), radius=4)
    assert sorted(map(tuple, agreed.pairs.tolist())) == list(zip(rows, columns, strict=True))


@pytest.mark.parametrize("radius", [0, -1, float("nan"), np.array([1.0, 0.0]), np.ones(5)])
def test_bad_radius(radius):
    with pytest.raises(ValueError, match="radius"):
        detection.match(catalogue([(0, 0), (1, 1)]), catalogue([(0, 0)]), radius=radius)


def test_match_needs_places():
    with pytest.raises(ValueError, match="columns x and y"):
        detection.match(np.zeros(3), catalogue([(0, 0)]), radius=1)
    nothing = detection.match(catalogue([(0, 0)]), catalogue([]), radius=1)
    assert len(nothing.pairs) == 0 and not nothing.found.any()
