"""Tests of shares and their intervals."""

import numpy as np
import pytest
import torch

from galnb import rates
from tests.test_detection import catalogue


def test_separation_of_known_pairs():
    rows = catalogue([(0, 0), (6, 0), (300, 0), (6, 1)], radius=[2.0, 4.0, 3.0, 1.0], blank=[0, 0, 0, 1])
    assert rates.separation(rows).tolist() == [1.0, 1.0, np.inf, np.inf]


@pytest.mark.filterwarnings("error")
def test_points_are_apart_without_a_warning():
    rows = catalogue([(0, 0), (0, 0), (6, 0), (9, 0)], radius=[0.0, 0.0, 3.0, 0.0])
    assert rates.separation(rows).tolist() == [np.inf, np.inf, 1.0, 1.0]
    assert rates.separation(rows[:2]).tolist() == [np.inf, np.inf]


def test_wilson_against_astropy_and_at_the_ends():
    stats = pytest.importorskip("astropy.stats")
    for hits, count in ((0, 10), (3, 10), (10, 10), (800, 1000)):
        witness = stats.binom_conf_interval(hits, count, confidence_level=0.95, interval="wilson")
        assert rates.wilson(hits, count) == pytest.approx(witness, abs=1e-9)
    assert rates.wilson(0, 0) == (0, 1)
    assert rates.wilson(2.0, 5.0) == rates.wilson(2, 5)
    for hits, count in ((3, 2), (-1, 2), (2.5, 5), (2, 5.5), (np.nan, 5), (2, np.nan), (2, np.inf)):
        with pytest.raises(ValueError, match=f"got {hits} of {count}; expected whole numbers"):
            rates.wilson(hits, count)


def test_rates_by_hand():
    table = rates.rates(np.array([0, 1, 1, 2, 9]), np.array([1, 0, 1, 1, 0]) > 0, edges=[0, 1, 2, 3, 4])
    assert table["count"].tolist() == [1, 2, 1, 0] and table["rate"].tolist() == [1, 0.5, 1, 0]
    assert (table["lower"] <= table["rate"]).all() and (table["rate"] <= table["upper"]).all()
    given = [0, 1, 1, 2, 9], [True, False, True, True, False]
    for kind in (list, torch.tensor):
        assert (rates.rates(*map(kind, given), edges=[0, 1, 2, 3, 4]) == table).all()
    for edges in ([1, 0], [1], 1, [[0, 1], [2, 3]], [0, np.nan]):
        with pytest.raises(ValueError, match="rising edges"):
            rates.rates(np.zeros(2), np.zeros(2), edges=edges)
    for hits in ([0.5, 1], [np.nan, 1], [2, 0], [1], [[1], [0]]):
        with pytest.raises(ValueError, match=r"expected \(N,\) of both, hits of 0 or 1"):
            rates.rates(np.zeros(2), hits, edges=[0, 1])


def test_resampled_rate_knows_that_copies_are_no_new_galaxies(generator):
    hits, groups = np.repeat([0, 1, 1, 0, 1, 0, 1, 1, 0, 1], 100), np.repeat(np.arange(10), 100)
    drawn = rates.resampled_rate(hits, groups, generator=generator)
    assert drawn.mean() == pytest.approx(hits.mean(), abs=0.02)
    assert drawn.std() == pytest.approx((0.6 * 0.4 / 10) ** 0.5, rel=0.1)  # ten galaxies, not a thousand
    with pytest.raises(ValueError, match="expected some"):
        rates.resampled_rate(hits, groups[:3], generator=generator)
    with pytest.raises(ValueError, match="hits that are not finite"):
        rates.resampled_rate(np.where(hits, np.nan, 0), groups, generator=generator)
