"""Traces of processing: what each is worth, and how they are measured in images and in relevance maps.

Chapter 09, The phantom boundary.
"""

import tomllib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch.nn import functional as F

_QUIET = 0.05  # by hand: a quiet pixel differs from its neighbours by less than this part of the usual
_RUN = 9  # by hand: quiet pixels in a row along the border that count as padding even one pixel wide
_SIDE = 16  # by hand: pixels across a thumbnail
_ANGLES = 24  # directions in which straight edges are sought, over 180 degrees


class _Trace(NamedTuple):
    """What is known of one trace: a table of `traces.toml`, which says what each field is."""

    severity: float
    why: str
    text: str
    fix: str
    limit: float = 0.0
    whole: str = ""


_TABLES = tomllib.loads(Path(__file__).with_name("traces.toml").read_text("utf-8"))
TRACES = {kind: _Trace(**table) for kind, table in _TABLES.items()}


def measure(images: np.ndarray) -> dict[str, np.ndarray]:
    """Measure each image of a batch, relative to its own noise: one row per image.

    images: (B, C, H, W) float32, any range, at least 16 x 16 pixels.
    Returns ``shape``; ``low``, ``high``, ``span``; shares of pixels ``bad`` (not finite), ``at_low``,
    ``at_high``, ``padding`` (largest constant region at the border), ``constant`` (inside); ``seam`` and
    ``mirror`` per axis (B, 2) with their places; ``smooth`` (noise of neighbours relative to that of pixels 3
    apart: 1 for white noise); ``thumbnail`` (B, 256), unit length.
    """
    finite = np.isfinite(images)
    images = images if finite.all() else np.where(finite, images, 0)
    grey = to_grey(images)
    low, high = grey.min((1, 2)), grey.max((1, 2))
    along = [_lines(turned) for turned in (grey, np.ascontiguousarray(grey.transpose(0, 2, 1)))]
    seam, seam_at, mirror, mirror_at, smooth = (np.stack(pair, 1) for pair in zip(*along, strict=True))
    padding, constant = np.array([_areas(flat) for flat in quiet(grey)]).T
    return {
        "shape": np.tile(images.shape[1:], (len(images), 1)), "bad": 1 - finite.mean((1, 2, 3)),
        "low": images.min((1, 2, 3)), "high": images.max((1, 2, 3)), "span": high - low,
        "at_low": (grey == low[:, None, None]).mean((1, 2)), "thumbnail": _thumbnails(grey),
        "at_high": (grey == high[:, None, None]).mean((1, 2)), "padding": padding, "constant": constant,
        "seam": seam, "seam_at": seam_at, "mirror": mirror, "mirror_at": mirror_at, "smooth": smooth.mean(1),
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
    areas, touching = np.bincount(labels.ravel(), minlength=count + 1), np.zeros(count + 1, bool)
    touching[edges] = True
    return labels, areas[1:], touching[1:]


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


def straight_edges(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Look for straight lines where no galaxy is, from the maps alone.

    maps: (B, C, H, W) relevance, at least 32 px; channels are added up. ValueError for other shapes.
    Returns strength (B,) of the straightest line in each map, and its angle (B,) in degrees.
    The logarithm of each map, less its local mean, is averaged along lines in 24 directions outside a central
    disc of half the width; the strength is the largest average, in units of the typical one of that map.
    Which strength means a frame depends on the network: take the 99th percentile of maps known to have none.
    """
    if maps.ndim != 4 or min(maps.shape[-2:]) < 32:
        raise ValueError(f"maps: got shape {tuple(maps.shape)}, expected (B, C, H, W) of at least 32 x 32 px")
    relevance = maps.detach().float().cpu().sum(1, keepdim=True).abs()
    floor = relevance.flatten(1).quantile(0.05, 1)[:, None, None, None] + 1e-12 * relevance.amax()
    detail = (relevance + floor + 1e-30).log()
    detail = detail - F.avg_pool2d(detail, 9, 1, 4, count_include_pad=False)
    detail = detail - _grid(detail)
    y, x = (torch.linspace(-1, 1, side) for side in maps.shape[-2:])
    outside = ((y[:, None] ** 2 + x**2) > 0.25).float()[None, None]
    outside[..., [0, 1, -2, -1], :] = outside[..., [0, 1, -2, -1]] = 0  # there the network pads by itself
    strongest = []
    for angle in torch.arange(_ANGLES) * (torch.pi / _ANGLES):
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(1, 2, 2)
        grid = F.affine_grid(F.pad(turn, (0, 1)), [1, 1, *maps.shape[-2:]], align_corners=False)
        length = F.grid_sample(outside, grid, align_corners=False).sum(2)
        turned = F.grid_sample(detail * outside, grid.expand(len(maps), -1, -1, -1), align_corners=False)
        line = turned.sum(2) / length.clamp_min(1).sqrt()
        strongest.append(torch.where(length >= maps.shape[-2] / 4, line, 0)[:, 0])
    lines = torch.stack(strongest, 1)  # (B, angles, offsets)
    usual = lines.abs().flatten(1).quantile(0.5, 1).clamp_min(1e-12) / 0.6745
    strength, at = (lines.flatten(1) / usual[:, None]).max(1)
    return strength, 180 - (at // lines.shape[2]) * (180 / _ANGLES)


def alike(thumbnails: np.ndarray, least: float) -> list[tuple[int, int]]:
    """Find pairs of nearest neighbours among thumbnails (N, D) of unit length, the most alike first.

    least: correlation that a pair must exceed; rows of zeros have no neighbour.
    Along 12 principal axes no points move apart: a tree finds what is near there, the whole rows decide.
    """
    known = np.flatnonzero(thumbnails.any(1))
    if len(known) < 2:
        return []
    sample = thumbnails[known[:: max(1, len(known) // 2048)]].astype(np.float32)
    axes = np.linalg.svd(sample - sample.mean(0), full_matrices=False)[2][:12]
    parts = np.array_split(known, 64)  # bounded memory
    points = np.concatenate([thumbnails[part].astype(np.float32) @ axes.T for part in parts])
    reach = np.sqrt(2 - 2 * least)
    near = cKDTree(points).query(points, k=min(3, len(known)), distance_upper_bound=reach)[1]
    first, place = np.nonzero(near < len(known))
    pairs = np.unique(np.sort(np.stack([known[first], known[near[first, place]]], 1), 1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    match = np.array([thumbnails[a].astype(np.float32) @ thumbnails[b].astype(np.float32) for a, b in pairs])
    order = np.argsort(-match, kind="stable")[: int((match > least).sum())]
    return [(int(a), int(b)) for a, b in pairs[order]]


def _grid(detail: torch.Tensor, period: int = 16) -> torch.Tensor:
    """Return the grid that strided convolutions print on every map: the mean pattern of all, repeated."""
    mean = detail.mean(0, keepdim=True)
    high, wide = (-(-side // period) * period for side in mean.shape[-2:])
    whole = F.pad(mean, (0, wide - mean.shape[-1], 0, high - mean.shape[-2]), value=torch.nan)
    cell = whole.unflatten(3, (-1, period)).unflatten(2, (-1, period)).nanmean((2, 4))
    return cell.repeat(1, 1, high // period, wide // period)[..., : mean.shape[-2], : mean.shape[-1]]
