"""Traces of processing: what each is worth, and how they are measured.

Chapter 09, The phantom boundary.
"""

import tomllib
from collections import namedtuple
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch.nn import functional as F

_QUIET = 0.05  # by hand: a quiet pixel differs from its neighbours by less than this part of the usual
_RUN = 9  # by hand: quiet pixels in a row along the border that count as padding even one pixel wide
_SIDE = 16  # by hand: pixels across a thumbnail

# the fields of a table of traces.toml, which says what they are
_Trace = namedtuple("_Trace", "severity why text fix limit whole unless", defaults=(0.0, "", ()))
_TABLES = tomllib.loads(Path(__file__).with_name("traces.toml").read_text("utf-8"))
TRACES = {kind: _Trace(**table) for kind, table in _TABLES.items()}


def measure(images: np.ndarray) -> dict[str, np.ndarray]:
    """Measure each image of a batch, relative to its own noise: one row per image.

    images: (B, C, H, W) float32, any range, at least 16 x 16 pixels.
    Returns measures named as in `TRACES`: shares of pixels, but ``seam`` and ``mirrored`` (B, 2), along both
    axes, with their places, px; ``shape``, ``low``, ``high``, ``span``; ``smooth``: noise of neighbours over
    that of pixels 3 apart, 1 for white noise; ``thumbnail`` (B, 256), unit length.
    """
    finite = np.isfinite(images)
    images = images if finite.all() else np.where(finite, images, 0)
    grey, bad = to_grey(images), 1 - finite.mean((1, 2, 3))
    low, high = grey.min((1, 2), keepdims=True), grey.max((1, 2), keepdims=True)
    span, top = (high - low)[:, 0, 0], (grey == high).mean((1, 2))
    along = [_lines(turned) for turned in (grey, np.ascontiguousarray(grey.transpose(0, 2, 1)))]
    seam, seam_at, mirror, mirror_at, smooth = (np.stack(pair, 1) for pair in zip(*along, strict=True))
    padding, constant = np.array([_areas(flat) for flat in quiet(grey)]).T
    return {
        "blank": np.where(span > 0, bad, 1), "not finite": bad, "clipped": (grey == low).mean((1, 2)),
        "padding": padding, "constant": constant, "saturated": np.where(top < 0.5, top, 0),
        "seam": seam, "seam at": seam_at, "mirrored": 1 - mirror, "mirrored at": mirror_at,
        "shape": np.tile(images.shape[1:], (len(images), 1)), "span": span, "smooth": smooth.mean(1),
        "low": images.min((1, 2, 3)), "high": images.max((1, 2, 3)), "thumbnail": _thumbnails(grey),
    }  # fmt: skip


def to_grey(images: np.ndarray) -> np.ndarray:
    """Weigh three channels as the eye does (ITU-R BT.601), average any others: (B, C, H, W) -> (B, H, W)."""
    if images.shape[1] != 3:
        return images.mean(1)
    return images[:, 0] * 0.299 + images[:, 1] * 0.587 + images[:, 2] * 0.114


def quiet(grey: np.ndarray) -> np.ndarray:
    """Mark the pixels of (B, H, W) that hardly differ from their neighbours, or lie in a long border run."""
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    across, down = np.abs(np.diff(padded[:, 1:-1])), np.abs(np.diff(padded[:, :, 1:-1], axis=1))
    across, down = across[..., 1:] + across[..., :-1], down[:, 1:] + down[:, :-1]
    activity = across + down
    usual = np.median(activity[:, ::2, ::2].reshape(len(grey), -1), 1)
    # The floor is above the rounding of float32 averages.
    limit = np.maximum(_QUIET * usual, 4e-6 * np.abs(grey).max((1, 2)))[:, None, None]
    flat = activity <= limit
    for at in (0, -1):
        for edge, along in ((np.s_[:, at], across), (np.s_[:, :, at], down)):
            flat[edge] |= ndimage.binary_opening(along[edge] <= limit[:, 0] / 2, np.ones((1, _RUN)))
    return flat


def regions(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label the connected regions of (H, W): labels, area of each in px, and whether it meets the border."""
    labels, count = ndimage.label(flat)
    edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return labels, areas, np.isin(np.arange(count) + 1, edges)


def _areas(flat: np.ndarray) -> tuple[float, float]:
    if np.count_nonzero(flat) < 0.005 * flat.size:  # below both limits: saves the labelling
        return 0.0, 0.0
    _, areas, touching = regions(flat)
    return areas[touching].max(initial=0) / flat.size, areas[~touching].max(initial=0) / flat.size


def _lines(grey: np.ndarray) -> tuple[np.ndarray, ...]:
    """Seams and mirrored edges along columns of (B, H, W), their places in px, and smoothness of noise."""
    first, second, apart = (np.abs(grey[..., lag:] - grey[..., :-lag]) for lag in (1, 2, 3))
    noise = [np.median(d[:, ::2, ::3].reshape(len(grey), -1), 1) for d in (first, apart)]
    smooth = np.divide(*noise, out=np.zeros(len(grey), np.float32), where=noise[1] > 0)
    mirror, mirror_at = np.ones(len(grey)), np.zeros(len(grey))
    for lag, difference in ((1, first), (2, second)):
        columns = difference.mean(1)
        usual = np.median(columns, 1, keepdims=True)
        ratio = np.divide(columns, usual, out=np.ones_like(columns), where=usual > 0)
        smaller = ratio.min(1) < mirror
        mirror[smaller], mirror_at[smaller] = ratio.min(1)[smaller], ratio.argmin(1)[smaller] + (1 + lag) / 2
    return *_seams(grey), mirror, mirror_at, smooth


def _seams(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest jump of the sky between two columns of (B, H, W), sigma, and its place, px."""
    third = max(1, grey.shape[1] // 3)  # galaxies stand in the middle: the outer thirds are mostly sky
    jump = np.diff(np.concatenate([grey[:, :third], grey[:, -third:]], 1))
    noise = np.median(np.abs(jump[:, ::2, ::2]).reshape(len(grey), -1), 1)[:, None]
    limit = 3 * noise[..., None]
    level = np.abs(jump.clip(-limit, limit).mean(1))  # of each line between two columns; stars count little
    block = np.arange(1, level.shape[1] + 1) % 8 == 0  # the edges of JPEG blocks
    usual = np.where(block, *(np.median(level[:, lines], 1, keepdims=True) for lines in (block, ~block)))
    usual = 1.4826 * np.maximum(usual, noise / np.sqrt(2 * third))
    seam = np.divide(level, usual, out=np.zeros_like(level), where=usual > 0)
    return seam.max(1), seam.argmax(1) + 1


def _thumbnails(grey: np.ndarray) -> np.ndarray:
    """(B, 256) float16 of unit length: box means on an asinh scale that faint sources weigh in."""
    means = F.adaptive_avg_pool2d(torch.from_numpy(grey)[:, None], _SIDE).flatten(1).numpy()
    level, sky = np.median(means, 1, keepdims=True), np.quantile(means, 0.1, axis=1, keepdims=True)
    spread = np.median(np.abs(means - level), 1, keepdims=True)
    spread = np.maximum(spread, 0.01 * (means.max(1, keepdims=True) - sky))  # a clipped sky has no spread
    scaled = np.arcsinh(np.divide(means - sky, spread, out=np.zeros_like(means), where=spread > 0))
    scaled -= scaled.mean(1, keepdims=True)
    length = np.sqrt((scaled**2).sum(1, keepdims=True))
    return np.divide(scaled, length, out=np.zeros_like(scaled), where=length > 0).astype(np.float16)


def alike(thumbnails: np.ndarray, least: float) -> list[tuple[int, int]]:
    """Find pairs of nearest neighbours among thumbnails (N, D) of unit length, the most alike first.

    least: correlation that a pair must exceed; rows of zeros have no neighbour.
    Along 12 principal axes no points move apart: a tree finds what is near there, the whole rows decide.
    """
    known = np.flatnonzero(thumbnails.any(1))
    if not len(known):
        return []
    rows = thumbnails[known].astype(np.float32)
    sample = rows[:: max(1, len(rows) // 2048)]
    points = rows @ np.linalg.svd(sample - sample.mean(0), full_matrices=False)[2][:12].T
    near = cKDTree(points).query(points, k=3, distance_upper_bound=np.sqrt(2 - 2 * least))[1]
    first, place = np.nonzero(near < len(rows))
    pairs = np.unique(np.sort(np.stack([first, near[first, place]], 1)), axis=0)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    match = np.array([rows[a] @ rows[b] for a, b in pairs])
    order = np.argsort(-match, kind="stable")[: int((match > least).sum())]
    return [(int(a), int(b)) for a, b in known[pairs[order]]]
