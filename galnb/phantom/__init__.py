"""Find, measure and probe what only a discriminator sees: the boundary between image data and fill."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage, stats
from torch.nn import functional as F

from galnb.phantom.auditing import Report, audit

__all__ = [
    "Report", "audit", "background_histograms", "boundary_contrast", "edge_profile", "interval", "probe_fill",
    "straight_edges",
]  # fmt: skip

ANGLES = 24  # directions in which straight edges are sought, over 180 degrees
FOUND = 8.0  # strength of an edge that 1 % of maps without a frame reach; see `straight_edges`


def signed_distance(footprint: torch.Tensor) -> torch.Tensor:
    """Return the distance of each pixel (B, H, W) from the edge of the footprint, px: > 0 inside the data.

    Parameters
    ----------
    footprint : torch.Tensor
        (B, 1, H, W) bool, True on image data. Without an edge the distance is infinite.

    Chapter: The phantom boundary
    """
    _check_footprint(footprint)
    distances = []
    for inside in footprint[:, 0].cpu().numpy():
        if inside.all() or not inside.any():
            distances.append(np.full(inside.shape, np.inf, np.float32))
            continue
        near, far = (ndimage.distance_transform_edt(part) for part in (inside, ~inside))
        distances.append(np.where(inside, near - 0.5, 0.5 - far))
    return torch.from_numpy(np.stack(distances)).float()


def boundary_contrast(maps: torch.Tensor, footprint: torch.Tensor, *, width: float = 3) -> torch.Tensor:
    """Compare the relevance along the edge of the footprint with that on both sides of it.

    Parameters
    ----------
    maps : torch.Tensor
        (B, C, H, W) relevance; channels are added up, then magnitudes count.
    footprint : torch.Tensor
        (B, 1, H, W) bool, True on image data.
    width : float
        Half width of the band on the edge, px; the flanks lie `width` to 3 `width` px away.

    Returns
    -------
    torch.Tensor
        (B,): mean in the band / mean of the two flanks; 1 = no boundary; NaN without an edge or relevance.

    Raises
    ------
    ValueError
        If shapes disagree or the width is not positive.

    Notes
    -----
    Both flanks weigh the same: a steady rise towards the galaxy cancels. Chapter: The phantom boundary
    """
    if not width > 0:
        raise ValueError(f"width is {width}; expected a positive number of pixels")
    relevance, distance = _magnitudes(maps, footprint), signed_distance(footprint)
    away = distance.abs()
    flank = (away > width) & (away <= 3 * width)
    band, inner, outer = (
        (relevance * part).sum((1, 2)) / part.sum((1, 2))
        for part in (away <= width, flank & (distance > 0), flank & (distance < 0))
    )
    contrast = band / torch.stack([inner, outer]).mean(0)
    return torch.where(contrast.isfinite(), contrast, torch.nan)


def edge_profile(
    maps: torch.Tensor, footprint: torch.Tensor, *, reach: int = 10
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average the relevance in steps of one px across the edge.

    Parameters
    ----------
    maps, footprint : torch.Tensor
        As for `boundary_contrast`.
    reach : int
        How far to go on both sides, px, at least 1.

    Returns
    -------
    distance : torch.Tensor
        (2 reach,) px from the edge, -reach + 0.5 (in the fill) ... reach - 0.5 (in the data).
    profile : torch.Tensor
        (B, 2 reach), each image in units of its mean over all pixels; NaN where it has none at that distance.

    Chapter: The phantom boundary
    """
    if reach < 1:
        raise ValueError(f"reach is {reach}; expected at least 1 pixel")
    relevance, distance = _magnitudes(maps, footprint), signed_distance(footprint)
    relevance = relevance / relevance.mean((1, 2), keepdim=True)
    bins = torch.where(distance.abs() < reach, (distance + reach).clamp(0, 2 * reach).floor(), -1)
    steps = [torch.where(bins == step, relevance, torch.nan).nanmean((1, 2)) for step in range(2 * reach)]
    return torch.arange(2 * reach) + 0.5 - reach, torch.stack(steps, 1)


def interval(
    values: torch.Tensor, *, generator: torch.Generator, level: float = 0.95, draws: int = 2000
) -> tuple[float, float, float]:
    """Return the mean of the values that are not NaN and its bootstrap interval: (mean, low, high).

    Raises
    ------
    ValueError
        If fewer than two values remain.

    Notes
    -----
    Percentile bootstrap (Efron and Tibshirani 1993) over images. Chapter: The phantom boundary
    """
    values = values[~values.isnan()].double().cpu()
    if len(values) < 2:
        raise ValueError(f"got {len(values)} values that are not NaN, expected at least 2")
    seed = int(torch.randint(2**31, (), generator=generator))
    found = stats.bootstrap(
        (values.numpy(),), np.mean, n_resamples=draws, confidence_level=level, method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(values.mean()), float(found.low), float(found.high)


class Histograms(NamedTuple):
    """Counts (2, bins) of two regions, the edges (bins + 1,), and the two-sample test between them."""

    counts: torch.Tensor
    edges: torch.Tensor
    statistic: float
    p_value: float


def background_histograms(
    image: torch.Tensor, boxes: tuple, *, bins: int = 32, spacing: int = 1
) -> Histograms:
    """Count the values of two boxes of one image and test whether they come from one distribution.

    Parameters
    ----------
    image : torch.Tensor
        (C, H, W); channels are averaged.
    boxes : two tuples (top, left, side)
        Pixels.
    bins : int
        Bins between the smallest and the largest value of both.
    spacing : int
        Pixels that enter the test lie this far apart. An enlarged image needs its factor of enlargement:
        its neighbours repeat each other, and a test that takes them for independent sees too much.

    Returns
    -------
    Histograms

    Notes
    -----
    Kolmogorov-Smirnov test. Li et al. compare boxes of 20 x 20 px on an image enlarged to 256 px.
    Chapter: The phantom boundary
    """
    if image.ndim != 3 or len(boxes) != 2:
        raise ValueError(f"got shape {tuple(image.shape)} and {len(boxes)} boxes, expected (C, H, W) and 2")
    for top, left, side in boxes:
        if min(top, left) < 0 or top + side > image.shape[1] or left + side > image.shape[2] or side < 1:
            raise ValueError(f"box {(top, left, side)} does not lie in {tuple(image.shape[1:])} px")
    parts = [image.mean(0)[top : top + side, left : left + side].cpu() for top, left, side in boxes]
    edges = np.histogram_bin_edges(torch.cat([part.flatten() for part in parts]).numpy(), bins)
    counts = torch.stack([torch.from_numpy(np.histogram(part.numpy(), edges)[0]) for part in parts])
    test = stats.ks_2samp(*(part[::spacing, ::spacing].flatten().numpy() for part in parts))
    return Histograms(counts, torch.from_numpy(edges), float(test.statistic), float(test.pvalue))


class Probe(NamedTuple):
    """Logits (B,) per fill; per pair of fills the chance that the first scores higher on another image."""

    scores: dict[str, torch.Tensor]
    auc: dict[tuple[str, str], float]


@torch.no_grad()
def probe_fill(discriminator: torch.nn.Module, images: Mapping[str, torch.Tensor]) -> Probe:
    """Score the same images with nothing changed but the fill.

    Parameters
    ----------
    discriminator : torch.nn.Module
        In eval mode; gets exactly the tensors given (for a GAN: after ``gan.prepare``).
    images : mapping of str to torch.Tensor
        Per fill (B, C, H, W): `blending.make_blends` with equal seeds gives equal geometry under every fill.

    Returns
    -------
    Probe
        An AUC of 0.5 says that the discriminator does not care.

    Raises
    ------
    ValueError
        If there are fewer than two fills, or their shapes differ.

    Chapter: The phantom boundary
    """
    if len(images) < 2 or len({tuple(tensor.shape) for tensor in images.values()}) > 1:
        shapes = {fill: tuple(tensor.shape) for fill, tensor in images.items()}
        raise ValueError(f"got {shapes}; expected at least two fills of the same images")
    scores = {
        fill: torch.cat([discriminator(part).flatten(1).mean(1) for part in tensor.split(32)]).cpu()
        for fill, tensor in images.items()
    }
    names = list(scores)
    pairs = [(one, other) for i, one in enumerate(names) for other in names[i + 1 :]]
    auc = {
        pair: float(
            stats.mannwhitneyu(*(scores[fill].numpy() for fill in pair)).statistic / len(scores[pair[0]]) ** 2
        )
        for pair in pairs
    }
    return Probe(scores, auc)


class Edges(NamedTuple):
    """Strength (B,) of the straightest line in each map, its angle (B,) in degrees, and whether it counts."""

    strength: torch.Tensor
    angle: torch.Tensor
    found: torch.Tensor


def straight_edges(maps: torch.Tensor, *, threshold: float = FOUND) -> Edges:
    """Look for straight lines where no galaxy is, from the maps alone.

    Parameters
    ----------
    maps : torch.Tensor
        (B, C, H, W) relevance, at least 32 px; channels are added up.
    threshold : float
        Strength from which a line counts as found. It depends on the network: take the 99th percentile of
        `strength` over maps of images that are known to have no frame for 1 % false alarms.

    Returns
    -------
    Edges

    Notes
    -----
    The logarithm of each map, less its local mean, is averaged along lines in 24 directions outside a central
    disc of half the width. The strength is the largest average, in units of the typical one of that map.
    Chapter: The phantom boundary
    """
    if maps.ndim != 4 or min(maps.shape[-2:]) < 32:
        raise ValueError(f"got shape {tuple(maps.shape)}, expected (B, C, H, W) of at least 32 x 32 px")
    relevance = maps.detach().float().cpu().sum(1, keepdim=True).abs()
    floor = relevance.flatten(1).quantile(0.05, 1)[:, None, None, None] + 1e-12 * relevance.amax()
    detail = (relevance + floor + 1e-30).log()
    detail = detail - F.avg_pool2d(detail, 9, 1, 4, count_include_pad=False)
    detail = detail - _grid(detail)
    y, x = (torch.linspace(-1, 1, side) for side in maps.shape[-2:])
    outside = ((y[:, None] ** 2 + x**2) > 0.25).float()[None, None]
    outside[..., [0, 1, -2, -1], :] = outside[..., [0, 1, -2, -1]] = 0  # there the network pads by itself
    strongest = []
    for angle in torch.arange(ANGLES) * (torch.pi / ANGLES):
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(1, 2, 2)
        grid = F.affine_grid(F.pad(turn, (0, 1)), [1, 1, *maps.shape[-2:]], align_corners=False)
        weight = F.grid_sample(outside, grid, align_corners=False)
        turned = F.grid_sample(detail * outside, grid.expand(len(maps), -1, -1, -1), align_corners=False)
        length = weight.sum(2)
        line = turned.sum(2) / length.clamp_min(1).sqrt()
        strongest.append(torch.where(length >= maps.shape[-2] / 4, line, 0)[:, 0])
    lines = torch.stack(strongest, 1)  # (B, angles, offsets)
    usual = lines.abs().flatten(1).quantile(0.5, 1).clamp_min(1e-12) / 0.6745
    strength, at = (lines.flatten(1) / usual[:, None]).max(1)
    return Edges(strength, 180 - (at // lines.shape[2]) * (180 / ANGLES), strength > threshold)


def _grid(detail: torch.Tensor, period: int = 16) -> torch.Tensor:
    """Return the grid that strided convolutions print on every map: the mean pattern of all, repeated."""
    mean = detail.mean(0, keepdim=True)
    high, wide = (-(-side // period) * period for side in mean.shape[-2:])
    whole = F.pad(mean, (0, wide - mean.shape[-1], 0, high - mean.shape[-2]), value=torch.nan)
    cells = whole.unflatten(3, (-1, period)).unflatten(2, (-1, period))
    cell = cells.nanmean((2, 4))
    return cell.repeat(1, 1, high // period, wide // period)[..., : mean.shape[-2], : mean.shape[-1]]


def _magnitudes(maps: torch.Tensor, footprint: torch.Tensor) -> torch.Tensor:
    _check_footprint(footprint)
    if maps.ndim != 4 or (maps.shape[0], *maps.shape[2:]) != (footprint.shape[0], *footprint.shape[2:]):
        raise ValueError(f"maps {tuple(maps.shape)} and footprint {tuple(footprint.shape)} do not match")
    return maps.detach().float().cpu().sum(1).abs()


def _check_footprint(footprint: torch.Tensor) -> None:
    if footprint.ndim != 4 or footprint.shape[1] != 1 or footprint.dtype != torch.bool:
        raise ValueError(
            f"footprint: got {footprint.dtype} of shape {tuple(footprint.shape)}, expected bool (B, 1, H, W)"
        )
