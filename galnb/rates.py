"""Shares with intervals: completeness and purity by size, light and crowding."""

import numpy as np
import torch
from scipy import stats
from scipy.spatial import cKDTree

from galnb.evaluation.detection import blank_rows, places

RATES = np.dtype(
    [("low", "f8"), ("high", "f8"), ("count", "i4"), ("rate", "f8"), ("lower", "f8"), ("upper", "f8")]
)


def separation(catalogue: np.ndarray) -> np.ndarray:
    """Say how far each galaxy is from the next: distance / sum of both half-light radii.

    Parameters
    ----------
    catalogue : numpy.ndarray, structured
        With columns ``x``, ``y``, ``radius`` (px) and perhaps ``blank``.

    Returns
    -------
    numpy.ndarray, shape (N,)
        The smallest such ratio; below 1 two galaxies overlap within their half-light radii. Infinite for
        blank space, and where no ratio is below 2.

    Raises
    ------
    ValueError
        If a column is missing.

    Notes
    -----
    Chapter: A sky of new galaxies
    """
    rows, where = np.where(~blank_rows(catalogue))[0], places(catalogue)
    ratios, radii = np.full(len(catalogue), np.inf), catalogue["radius"]
    if len(rows) > 1:
        pairs = rows[cKDTree(where[rows]).query_pairs(4 * radii[rows].max(), output_type="ndarray")]
        apart = np.linalg.norm(where[pairs[:, 0]] - where[pairs[:, 1]], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):  # two radii of 0 overlap with nothing
            ratio = apart / radii[pairs].sum(1)
        for column in pairs[ratio < 2].T:
            np.minimum.at(ratios, column, ratio[ratio < 2])
    return ratios


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, `hits` of `count`; (0, 1) if nothing was counted.

    Notes
    -----
    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n); z = 1.96 for 95 %. Unlike p ± z sqrt(p(1-p)/n) it
    never leaves [0, 1] and is not empty at 0 of n.

    References
    ----------
    Wilson 1927, JASA 22, 209.

    Chapter: A sky of new galaxies
    """
    if not (0 <= hits <= count and hits % 1 == 0 == count % 1):
        raise ValueError(f"got {hits} of {count}; expected whole numbers, 0 <= hits <= count")
    if not count:
        return 0.0, 1.0
    low, high = stats.binomtest(int(hits), int(count)).proportion_ci(method="wilson")
    return float(low), float(high)


def rates(values: np.ndarray, hits: np.ndarray, *, edges: np.ndarray) -> np.ndarray:
    """Return the share of hits in bins of a value: completeness or purity by size, flux or separation.

    Parameters
    ----------
    values, hits : numpy.ndarray, shape (N,)
        The value of each source, and whether it counts.
    edges : numpy.ndarray, shape (bins + 1,)
        Rising edges; a value on an edge belongs to the bin above it.

    Returns
    -------
    numpy.ndarray, structured, one row per bin
        ``low``, ``high``, ``count``, ``rate`` (0 in an empty bin), ``lower`` and ``upper`` ends of the 95 %
        interval of `wilson`.

    Raises
    ------
    ValueError
        If shapes differ, hits are neither 0 nor 1, or edges do not rise.

    Notes
    -----
    Chapter: A sky of new galaxies
    """
    values, hits, edges = np.asarray(values), np.asarray(hits), np.asarray(edges, float)
    if values.shape != hits.shape or values.ndim != 1 or not np.isin(hits, (0, 1)).all():
        raise ValueError(
            f"got {values.shape} values, {hits.shape} hits; expected (N,) of both, hits of 0 or 1"
        )
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"got edges {edges}; expected two or more rising edges")
    table = np.zeros(len(edges) - 1, RATES)
    table["low"], table["high"] = edges[:-1], edges[1:]
    for row in table:
        inside = (values >= row["low"]) & (values < row["high"])
        row["count"] = inside.sum()
        row["rate"] = hits[inside].mean() if row["count"] else 0
        row["lower"], row["upper"] = wilson(int(hits[inside].sum()), int(row["count"]))
    return table


def resampled_rate(
    hits: np.ndarray, groups: np.ndarray, *, rounds: int = 1000, generator: torch.Generator
) -> np.ndarray:
    """Draw the share of hits anew, with whole groups drawn with replacement.

    Parameters
    ----------
    hits, groups : numpy.ndarray, shape (N,)
        Whether each placement counts, and which stamp it shows: placements of one stamp are no new galaxies.
    rounds : int
        How many draws.
    generator : torch.Generator
        CPU generator.

    Returns
    -------
    numpy.ndarray, shape (rounds,)
        Shares; their quantiles are the interval.

    Raises
    ------
    ValueError
        If lengths differ, there is nothing to draw or hits are not finite.

    Notes
    -----
    Chapter: A sky of new galaxies
    """
    if len(hits) != len(groups) or not len(hits) or rounds < 1:
        raise ValueError(f"got {len(hits)} hits, {len(groups)} groups, {rounds} rounds; expected some, alike")
    if not np.isfinite(hits).all():
        raise ValueError("got hits that are not finite; expected 0 or 1 for each placement")
    _, group = np.unique(groups, return_inverse=True)
    counts, sums = np.bincount(group), np.bincount(group, hits)
    drawn = torch.randint(len(counts), (rounds, len(counts)), generator=generator).numpy()
    return sums[drawn].sum(1) / counts[drawn].sum(1)
