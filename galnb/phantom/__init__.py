"""Find, measure and probe what only a discriminator sees: the boundary between image data and fill.

Chapter 09, The phantom boundary.
"""

from collections import namedtuple
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import torch
from scipy import ndimage, stats

from galnb.checks import at_least, check_floats, check_generator
from galnb.gans.layers import evaluating
from galnb.phantom.auditing import Report as Report
from galnb.phantom.auditing import audit as audit

_Histograms = namedtuple("_Histograms", "counts edges statistic p_value")
_Probe = namedtuple("_Probe", "scores auc")


def boundary_contrast(maps: torch.Tensor, footprint: torch.Tensor, *, width: float = 3) -> torch.Tensor:
    """Compare the relevance along the edge of the footprint with that on both sides of it.

    maps: (B, C, H, W) relevance; channels are added up, then magnitudes count.
    footprint: (B, 1, H, W) bool, True on image data.
    width: half width of the band on the edge, px, >= 0.5; the flanks lie `width` to 3 `width` px away.
    Returns (B,): mean in the band / mean of both flanks; 1 = no boundary; NaN without an edge or relevance.
    The flanks weigh the same: a steady rise towards the galaxy cancels.
    """
    at_least(0.5, width=width)
    relevance, distance = _magnitudes(maps, footprint), _signed_distance(footprint)
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

    maps, footprint: as for `boundary_contrast`; reach: how far to go on both sides, px, at least 1.
    Returns distance (2 reach,), px from the edge: -reach + 0.5 (in the fill) ... reach - 0.5 (in the data);
    and profile (B, 2 reach), each image in units of its mean, NaN where it has no pixel so far away.
    """
    at_least(1, reach=reach)
    relevance, distance = _magnitudes(maps, footprint), _signed_distance(footprint)
    relevance = relevance / relevance.mean((1, 2), keepdim=True)
    bins = torch.where(distance.abs() < reach, (distance + reach).clamp(0, 2 * reach).floor(), -1)
    steps = [torch.where(bins == step, relevance, torch.nan).nanmean((1, 2)) for step in range(2 * reach)]
    return torch.arange(2 * reach) + 0.5 - reach, torch.stack(steps, 1)


def interval(values: torch.Tensor, *, generator: torch.Generator) -> tuple[float, float, float]:
    """Return the mean of the values that are not NaN and its bootstrap interval of 95 %: (mean, low, high).

    Percentile bootstrap (Efron and Tibshirani 1993) over images. ValueError if fewer than two values remain.
    """
    check_generator(generator)
    check_floats(values, name="values")
    values = values[~values.isnan()].double().cpu()
    if len(values) < 2:
        raise ValueError(f"got {len(values)} values that are not NaN; expected at least 2")
    draw = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    found = stats.bootstrap((values.numpy(),), np.mean, n_resamples=2000, method="percentile", rng=draw)
    return float(values.mean()), *map(float, found.confidence_interval)


def background_histograms(
    image: torch.Tensor, boxes: tuple, *, bins: int = 32, spacing: int = 1
) -> _Histograms:
    """Count the values of two boxes of one image and test whether they come from one distribution.

    image: (C, H, W); channels are averaged. boxes: two of (top, left, side), px.
    bins: bins between the smallest and the largest value of both.
    spacing: pixels that enter the test lie this far apart. An enlarged image needs its factor of enlargement:
    its neighbours repeat each other, and a test that takes them for independent sees too much.
    Returns counts (2, bins), edges (bins + 1,), statistic and p_value of the Kolmogorov-Smirnov test.
    Li et al. compare boxes of 20 x 20 px on an image enlarged to 256 px.
    """
    at_least(1, bins=bins, spacing=spacing)
    check_floats(image, name="image", finite=True)
    if image.ndim != 3 or len(boxes) != 2:
        raise ValueError(f"got shape {tuple(image.shape)} and {len(boxes)} boxes; expected (C, H, W) and 2")
    for top, left, side in boxes:
        if min(top, left) < 0 or top + side > image.shape[1] or left + side > image.shape[2] or side < 1:
            raise ValueError(f"box {(top, left, side)} does not lie in {tuple(image.shape[1:])} px")
    grey = image.detach().cpu().to(torch.promote_types(image.dtype, torch.float32)).mean(0).numpy()
    parts = [grey[top : top + side, left : left + side] for top, left, side in boxes]
    edges = np.histogram_bin_edges(np.concatenate([part.ravel() for part in parts]), bins)
    counts = torch.stack([torch.from_numpy(np.histogram(part, edges)[0]) for part in parts])
    test = stats.ks_2samp(*(part[::spacing, ::spacing].ravel() for part in parts))
    return _Histograms(counts, torch.from_numpy(edges), float(test.statistic), float(test.pvalue))


@torch.no_grad()
def probe_fill(discriminator: torch.nn.Module, images: Mapping[str, torch.Tensor]) -> _Probe:
    """Score the same images with nothing changed but the fill.

    discriminator: is held in eval mode meanwhile; gets exactly the tensors given (for a GAN: `gan.prepare`).
    images: fill -> (B, C, H, W); `make_blends` with equal seeds gives equal geometry under every fill.
    Returns scores, fill -> logits (B,); and auc, pair of fills -> chance that the first scores higher on
    another image, 0.5 if the discriminator does not care. ValueError for less than two fills of one shape.
    """
    shapes = {fill: tuple(getattr(tensor, "shape", ())) for fill, tensor in images.items()}
    if len(shapes) < 2 or len(set(shapes.values())) > 1 or any(0 in of or not of for of in shapes.values()):
        raise ValueError(f"got {shapes}; expected at least two fills of the same images (B, C, H, W)")
    scores, auc = {}, {}
    with evaluating(discriminator):
        for fill, given in images.items():
            check_floats(given, name=fill, finite=True)
            parts = [discriminator(part).reshape(len(part), -1).float().mean(1) for part in given.split(32)]
            scores[fill] = torch.cat(parts).cpu()
    for first, second in combinations(scores, 2):
        above = stats.mannwhitneyu(scores[first].numpy(), scores[second].numpy()).statistic
        auc[first, second] = float(above / len(scores[first]) ** 2)
    return _Probe(scores, auc)


def _signed_distance(footprint: torch.Tensor) -> torch.Tensor:
    """Distance of each pixel (B, H, W) from the edge of the footprint, px: > 0 inside, inf if it has none."""
    distances = []
    for inside in footprint[:, 0].cpu().numpy():
        near, far = (ndimage.distance_transform_edt(part) for part in (inside, ~inside))
        edge = inside.any() and not inside.all()
        distances.append(np.where(inside, near - 0.5, 0.5 - far) if edge else np.full(inside.shape, np.inf))
    return torch.from_numpy(np.stack(distances)).float()


def _magnitudes(maps: torch.Tensor, footprint: torch.Tensor) -> torch.Tensor:
    """Add up the channels of maps, as magnitudes (B, H, W), once both are what they must be."""
    check_floats(maps, name="maps", finite=True)
    shape, kind = getattr(footprint, "shape", ()), getattr(footprint, "dtype", type(footprint).__name__)
    if kind != torch.bool or maps.ndim != 4 or shape != (len(maps), 1, *maps.shape[2:]):
        wanted = "(B, C, H, W); bool (B, 1, H, W), as blends.footprints[:, 1]"
        raise ValueError(f"got maps {tuple(maps.shape)}, footprint {tuple(shape)} {kind}; expected {wanted}")
    return maps.detach().float().cpu().sum(1).abs()
