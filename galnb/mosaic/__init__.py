"""Compose a wide field from galaxy stamps and keep the truth; hold what a detector finds against it.

Chapter 14, A sky of new galaxies. Places are (x, y) in px of the field, (0, 0) = middle of the first pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch.nn import functional as F

from galnb import checks
from galnb.mosaic.stamps import CutOut, check_stamps, cut_out

_MEASURES = ("x", "y", "radius", "flux", "angle", "scale")
_COLUMNS = np.dtype([*((name, "f8") for name in _MEASURES), ("source", "i4"), ("blank", "?")])


@dataclass(frozen=True)
class Mosaic:
    """Hold a field and the truth about it.

    image: (3, H, W), light and sky in [0, 1].
    catalogue: structured, one row per placement: ``x``, ``y`` of the centre of the light; ``radius``:
        half-light radius, px; ``flux``: light above the sky, mean of the channels summed over pixels, before
        clipping; ``source``: index of the stamp; ``angle``: turn from x to y, degrees; ``scale``: side in the
        field / side of the stamp; ``blank``: True for blank space and where nothing stands out of a stamp.
    sky, noise: level and standard deviation of the sky in each channel.
    """

    image: torch.Tensor
    catalogue: np.ndarray
    sky: float
    noise: float


@dataclass(frozen=True)
class Match:
    """Say which true galaxy is which detection.

    pairs: (K, 2), rows in the catalogue and among the detections, nearest pairs first.
    found, real: bool, whether each row of the catalogue was found, whether each detection is a galaxy.
    """

    pairs: np.ndarray
    found: np.ndarray
    real: np.ndarray


def compose(
    galaxies: torch.Tensor,
    *,
    size: int | tuple[int, int],
    placements: int,
    generator: torch.Generator,
    blanks: Sequence[int] | torch.Tensor = (),
    blank_share: float | None = None,
    scales: tuple[float, float] = (0.25, 1.0),
    sky: float = 0.015,
    noise: float = 0.01,
) -> Mosaic:
    """Compose a wide field: galaxies at random places, turned at random, of random size, on one sky.

    galaxies: (B, 3, S, S) in [0, 1], stamps of 16 px or more; their own sky stays behind (`cut_out`).
    size: side, or height and width, of the field, px; no placement may be larger.
    placements: how many times a stamp is placed.
    generator: on the CPU; equal seeds give equal places, turns and sizes, whatever the galaxies.
    blanks: indices of stamps that serve as blank space.
    blank_share: share of the placements that they get; by default their share of the stamps.
    scales: smallest and largest scale; its logarithm is uniform between them.
    sky, noise: level and standard deviation of the sky; the defaults resemble Galaxy Zoo's at 64 px.

    Sky and noise are drawn once for the whole field, after the light, so that neither jumps at a frame. A
    stamp is shrunk by whole halvings, then bilinearly. Values are a picture's, not a photometer's.
    """
    check_stamps(galaxies)
    checks.check_generator(generator)
    height, width = _check_field(galaxies, size, placements, scales, sky, noise)
    galaxy = torch.ones(len(galaxies), dtype=torch.bool)
    rows = torch.as_tensor(blanks)
    if rows.dtype == torch.bool or not set(rows.flatten().tolist()) <= set(range(len(galaxies))):
        wanted = f"indices of stamps, 0 to {len(galaxies) - 1}; of a mask take mask.nonzero()[:, 0]"
        raise ValueError(f"blanks is {blanks}; expected {wanted}")
    galaxy[rows.long()] = False
    share = 1 - float(galaxy.float().mean()) if blank_share is None else blank_share
    if not galaxy.any() or not 0 <= share <= min(1, len(galaxy) - galaxy.sum()):
        given = f"{galaxy.sum()} galaxies of {len(galaxy)} stamps, blank_share {blank_share}"
        raise ValueError(f"got {given}; expected a galaxy at least, a share in [0, 1], of blanks if above 0")
    cut = cut_out(galaxies)
    catalogue = _place(cut, galaxy, share, (height, width), placements, scales, generator)
    image = torch.zeros(3, height, width)
    _add_light(image, cut.light, catalogue)
    for band in image.split(256, dim=1):  # in place: a second field would cost as much as the first
        band.add_(torch.randn(band.shape, generator=generator), alpha=noise).add_(sky).clamp_(0, 1)
    turn = np.exp(1j * np.deg2rad(catalogue["angle"]))
    shift = catalogue["scale"] * turn * (cut.centres.double().numpy()[catalogue["source"]] @ (1, 1j))
    catalogue["x"] += shift.real
    catalogue["y"] += shift.imag
    return Mosaic(image, catalogue, sky, noise)


def match(catalogue: np.ndarray, detections: np.ndarray, *, radius: float | np.ndarray) -> Match:
    """Match true galaxies and detections one to one, nearest pairs first.

    catalogue, detections: structured, with columns ``x`` and ``y``; rows of the catalogue whose ``blank`` is
        True match nothing.
    radius: largest distance, px; one for all, or one for each row of the catalogue.
    """
    here, there = _places(catalogue), _places(detections)
    if np.ndim(radius) > 1 or np.size(radius) not in (1, len(here)) or not np.all(np.asarray(radius) > 0):
        raise ValueError(f"radius is {radius}; expected a positive number of pixels, or one for each row")
    shown = ~catalogue["blank"].astype(bool) if "blank" in catalogue.dtype.names else np.ones(len(here), bool)
    reach = np.where(shown, radius, -1)
    tree, largest = cKDTree(here), reach.max(initial=1)
    near = tree.sparse_distance_matrix(cKDTree(there), largest, output_type="ndarray")
    near = near[near["v"] <= reach[near["i"]]]
    near = near[np.argsort(near["v"], kind="stable")]
    found, real, rows = np.zeros(len(here), bool), np.zeros(len(there), bool), []
    for row, (true, seen) in enumerate(zip(near["i"].tolist(), near["j"].tolist(), strict=True)):
        if not found[true] and not real[seen]:
            found[true] = real[seen] = True
            rows.append(row)
    return Match(np.stack([near["i"][rows], near["j"][rows]], 1), found, real)


def _places(table: np.ndarray) -> np.ndarray:
    """Return the columns x and y of a structured array as (N, 2)."""
    missing = {"x", "y"} - set(getattr(table, "dtype", np.dtype("f8")).names or ())
    if missing:
        raise ValueError(f"expected a structured array with columns x and y; missing {sorted(missing)}")
    return np.stack([table["x"], table["y"]], 1).astype(float)


def _check_field(galaxies, size, placements, scales, sky, noise) -> tuple[int, int]:
    size = tuple(size) if np.ndim(size) else (size, size)
    checks.at_least(0.0, sky=sky, noise=noise)
    for side in size:
        checks.at_least(1, size=side, placements=placements)
    if len(size) != 2 or np.shape(scales) != (2,) or not 0 < scales[0] <= scales[1]:
        raise ValueError(f"got size {size}, scales {scales}; expected height, width, 0 < smallest <= largest")
    largest = scales[1] * galaxies.shape[-1]
    if largest > min(size):
        cure = "take a larger field, smaller scales or smaller stamps"
        raise ValueError(f"stamps of up to {largest:.0f} px do not fit a field of {size} px; {cure}")
    return size


def _place(cut: CutOut, galaxy, share, size, placements, scales, generator) -> np.ndarray:
    """Draw the catalogue; x and y are those of the stamps' middles still, flux is empty."""
    kind, which, x, y, angle, scale = torch.rand(placements, 6, generator=generator, dtype=torch.float64).T
    groups = [torch.where(galaxy)[0], torch.where(~galaxy)[0]]
    picked = [group[(which * len(group)).long().clamp(max=len(group) - 1)] for group in groups if len(group)]
    source = torch.where(kind < share, picked[-1], picked[0])
    catalogue = np.zeros(placements, _COLUMNS)
    catalogue["source"], catalogue["angle"] = source, 360 * angle
    catalogue["scale"] = scales[0] * (scales[1] / scales[0]) ** scale
    half = catalogue["scale"] * cut.light.shape[-1] / 2
    for name, drawn, length in (("y", y, size[0]), ("x", x, size[1])):
        catalogue[name] = half + drawn.numpy() * (length - 2 * half) - 0.5
    catalogue["radius"] = cut.radii[source].numpy() * catalogue["scale"]
    catalogue["blank"] = ~(galaxy & (cut.radii > 0))[source]
    return catalogue


def _add_light(image: torch.Tensor, light: torch.Tensor, catalogue: np.ndarray) -> None:
    """Warp stamps to their places in batches of one box size, add them, and fill in the fluxes."""
    side, levels = light.shape[-1], [light]
    halvings = np.floor(-np.log2(catalogue["scale"]) + 1e-9).clip(0).astype(int)
    while len(levels) <= halvings.max() and levels[-1].shape[-1] >= 8:
        odd = levels[-1].shape[-1] % 2
        levels.append(F.avg_pool2d(F.pad(levels[-1], (0, odd, 0, odd)), 2))
    halvings = halvings.clip(max=len(levels) - 1)
    boxes = 8 * np.ceil((catalogue["scale"] * side + 2) / 8).astype(int)
    for box, level in np.unique(np.stack([boxes, halvings], 1), axis=0):
        rows = np.where((boxes == box) & (halvings == level))[0]
        for part in np.array_split(rows, -(-len(rows) // 256)):
            tiles, corners = _warp(levels[level], side, int(level), catalogue[part], box)
            catalogue["flux"][part] = tiles.mean(1).sum((1, 2)).numpy()
            for tile, (x, y) in zip(tiles, corners.tolist(), strict=True):
                left, top = max(-x, 0), max(-y, 0)  # the box, not the light, may leave the field
                patch = image[:, y + top : y + box, x + left : x + box]
                patch += tile[:, top : top + patch.shape[1], left : left + patch.shape[2]]


def _warp(stamps: torch.Tensor, side: int, level: int, rows: np.ndarray, box: int) -> tuple:
    """Return the light (K, 3, box, box) of stamps of `side` px, halved `level` times, and where it begins."""
    middle = np.stack([rows["x"], rows["y"]], 1)
    corners = np.rint(middle - (box - 1) / 2).astype(int)
    off = corners + (box - 1) / 2 - middle  # from the middle of the stamp to that of the box
    angle, step = np.deg2rad(rows["angle"]), 2 / (side * rows["scale"])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    back = np.moveaxis(step * turn, -1, 0)  # (K, 2, 2): field px to stamp coordinates in [-1, 1]
    theta = np.concatenate([back * box / 2, back @ off[..., None]], 2)
    share = side / (stamps.shape[-1] << level)  # below 1 where an odd side was padded before it was halved
    theta *= share
    theta[:, :, 2] += share - 1
    theta = torch.from_numpy(theta.astype(np.float32))
    grid = F.affine_grid(theta, (len(rows), 3, box, box), align_corners=False)
    chosen = stamps[torch.from_numpy(rows["source"].astype(np.int64))]
    return F.grid_sample(chosen, grid, align_corners=False), corners
