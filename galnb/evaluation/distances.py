"""Measure how far two sets of images are from each other, as a named feature network sees them.

Chapter 13, New galaxies.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from galnb.gans.features import feature_network
from galnb.images import check_images

_NORMAL = 1.959964  # half width of a 95 % interval in standard errors
_ROUNDING = 1e-11  # of the variances: what is left of a distance that is 0


@dataclass(frozen=True)
class Distance:
    """Hold a distance between two sets of images.

    value: the distance of these two sets.
    low, high: 95 % interval: how far it would move with other images of the same kinds at the same count.
    count: images in each set. Distances at different counts do not compare.
    features: network that saw the images. With any but Inception a Fréchet distance is no FID.
    """

    value: float
    low: float
    high: float
    count: int
    features: str


def embed(images: torch.Tensor, features: str | nn.Module) -> torch.Tensor:
    """Compute one vector of features per image, (B, D) on the CPU, once for any number of distances.

    images: (B, C, H, W) in [0, 1], grey or colour.
    features: name for `features.feature_network`, or a network built by it with ``pooled=True``.
    `FileNotFoundError` and `ModuleNotFoundError` say which weights are missing and how to get them.
    """
    images = check_images(images)
    network = features if isinstance(features, nn.Module) else feature_network(features, pooled=True)
    device = next(network.buffers(), images).device
    with torch.no_grad():
        vectors = torch.cat([network(part.to(device)).cpu() for part in images.split(8)])
    if vectors.ndim != 2:
        given = f"features {tuple(vectors.shape[1:])} of an image"
        raise ValueError(f"got {given}, expected a vector, as from feature_network(..., pooled=True)")
    return vectors


def frechet_distance(a: torch.Tensor, b: torch.Tensor, *, features: str | nn.Module) -> Distance:
    """Compute the Fréchet distance of two sets of images: that of normal distributions with their moments.

    a, b: equally many images (N, C, H, W) in [0, 1], or their vectors (N, D) from `embed` with the same
        features.
    features: as in `embed`; the result names it.
    |m1 - m2|² + Tr S1 + Tr S2 - 2 Tr (S1 S2)^½ (Dowson & Landau 1982; with Inception FID, Heusel et al.
    2017). With centred vectors A, B in rows, Tr (S1 S2)^½ is the sum of the singular values of A Bᵀ / (N -
    1): exact for any N and D, without a root of a matrix. A set is exactly 0 from itself, in any order. Few
    images make it too large, for two draws from one sky as well: compare with real images at the same count,
    never across counts.

    The interval is the infinitesimal jackknife's (Efron 1982, chapter 6): the distance is differentiated by
    the weight of each image, and the spread of the derivatives is the standard error. A bootstrap would be
    wrong: a resample repeats images, holds about .63 N different ones, and so adds the excess of small N once
    more; its values lie above the distance they should surround.
    """
    a, b = _vectors(a, b, features)
    n, shift = len(a), a.mean(0) - b.mean(0)
    a, b = a - a.mean(0), b - b.mean(0)
    left, values, right = _singular(a, b)
    spread = a.square().sum() + b.square().sum()
    value = shift.square().sum() + (spread - 2 * values.sum()) / (n - 1)
    slopes = [
        2 * sign * (own @ shift) + n / (n - 1) * (own.square().sum(1) - vectors.square() @ values)
        for own, sign, vectors in ((a, 1, left), (b, -1, right))
    ]
    value = 0.0 if value <= _ROUNDING * spread / (n - 1) else float(value)
    return _distance(value, 0.0, slopes, features)


def kernel_distance(a: torch.Tensor, b: torch.Tensor, *, features: str | nn.Module) -> Distance:
    """Compute the kernel distance of two sets of images: the squared maximum mean discrepancy.

    Takes what `frechet_distance` does. mean k(a, a') + mean k(b, b') - 2 mean k(a, b) over pairs of different
    images, with k(x, y) = (x · y / D + 1)³ (Bińkowski et al. 2018; with Inception KID). Without a bias at any
    count: 0 on average, so sometimes below, for two draws from one sky, and below for a set and itself. The
    interval is the jackknife's, too wide rather than too narrow for sets that agree.
    """
    a, b = _vectors(a, b, features)
    across = (a @ b.T / a.shape[1] + 1) ** 3
    own = []  # mean kernel of each image with the others of its set
    for x in (a, b):
        kernel = (x @ x.T / x.shape[1] + 1) ** 3
        own.append((kernel.sum(1) - kernel.diagonal()) / (len(x) - 1))
    value = own[0].mean() + own[1].mean() - 2 * across.mean()
    slopes = [2 * (own[0] - across.mean(1)), 2 * (own[1] - across.mean(0))]
    return _distance(float(value), -math.inf, slopes, features)


def _vectors(a: torch.Tensor, b: torch.Tensor, features: str | nn.Module) -> list[torch.Tensor]:
    """Return equally many vectors of both sets in double precision."""
    for part in (a, b):
        if not isinstance(part, torch.Tensor) or part.ndim not in (2, 4) or 0 in part.shape[1:]:
            given = tuple(part.shape) if isinstance(part, torch.Tensor) else type(part).__name__
            wanted = "images (N, C, H, W), of an ImageSet its .pixels, or of vectors (N, D), D at least 1"
            raise ValueError(f"got {given}; expected a tensor of {wanted}")
    if len(a) != len(b) or len(a) < 2:
        wanted = "equally many, at least 2: a distance depends on the count. Take the first N of each"
        raise ValueError(f"the sets hold {len(a)} and {len(b)} images; expected {wanted}")
    a, b = ((part if part.ndim == 2 else embed(part, features)).detach().double() for part in (a, b))
    if a.shape != b.shape or not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError(f"got vectors {tuple(a.shape)} and {tuple(b.shape)}; expected finite, of one length")
    return [a, b]


def _singular(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return left vectors in columns, values and right vectors in columns of a bᵀ (N, N)."""
    if len(a) <= a.shape[1]:
        left, values, right = torch.linalg.svd(a @ b.T)
        return left, values, right.T
    (a_frame, a), (b_frame, b) = torch.linalg.qr(a), torch.linalg.qr(b)
    left, values, right = torch.linalg.svd(a @ b.T)
    return a_frame @ left, values, b_frame @ right.T


def _distance(value: float, low: float, slopes: list[torch.Tensor], features) -> Distance:
    """Put an interval about a value from its derivatives by the weight of each image."""
    n = len(slopes[0])
    width = _NORMAL * math.sqrt(sum(float(slope.var()) for slope in slopes) / n)
    name = getattr(features, "name", str(features))
    return Distance(value, max(value - width, low), value + width, n, name)
