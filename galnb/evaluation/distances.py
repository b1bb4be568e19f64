"""Measure how far two sets of images are from each other, as a named feature network sees them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from galnb.gans.features import feature_network
from galnb.images.imageset import check_generator, check_images, check_sizes

NORMAL = 1.959964  # half width of a 95 % interval in standard errors
LARGEST = 1e25  # of a vector: its 12th power, in the variance of the kernel's slopes, is still a number


@dataclass(frozen=True)
class Distance:
    """Hold a distance between two sets of images.

    Parameters
    ----------
    value : float
        The distance of these two sets.
    low, high : float
        95 % interval: how far it would move with other images of the same kinds *at the same count*.
    count : int
        Images in each set. Distances at different counts do not compare.
    features : str
        Network that saw the images. With any but Inception a Fréchet distance is no FID.

    Notes
    -----
    Chapter: New galaxies
    """

    value: float
    low: float
    high: float
    count: int
    features: str


def embed(images: torch.Tensor, features: str | nn.Module, *, batch: int = 8) -> torch.Tensor:
    """Compute one vector of features per image, once, for any number of distances.

    Parameters
    ----------
    images : torch.Tensor, shape (B, C, H, W)
        In [0, 1], grey or colour.
    features : str or torch.nn.Module
        Name for `features.feature_network`, or a network built by it with ``pooled=True``.
    batch : int
        Images per pass.

    Returns
    -------
    torch.Tensor, shape (B, D)
        On the CPU.

    Raises
    ------
    ValueError
        If images break the image convention, or `features` is no network or gives no vectors.
    FileNotFoundError, ModuleNotFoundError
        If weights are missing; the message says what to install or give.

    Notes
    -----
    Chapter: New galaxies
    """
    check_images(images)
    check_sizes(batch=batch)
    if not isinstance(features, (str, nn.Module)):
        raise ValueError(f"features is {features!r}; expected a name or a network of feature_network(...)")
    network = feature_network(features, pooled=True) if isinstance(features, str) else features
    device = next(network.buffers(), images).device
    with torch.no_grad():
        vectors = torch.cat([network(part.float().to(device)).cpu() for part in images.split(batch)])
    if vectors.ndim != 2:
        raise ValueError(
            f"{_name(features)} gives {tuple(vectors.shape[1:])} per image, expected a vector; "
            "build it with feature_network(..., pooled=True)"
        )
    return vectors


def frechet_distance(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    features: str | nn.Module,
    count: int | None = None,
    generator: torch.Generator | None = None,
) -> Distance:
    """Compute the Fréchet distance of two sets of images: that of normal distributions with their moments.

    Parameters
    ----------
    a, b : torch.Tensor, (N, C, H, W) in [0, 1] or (N, D)
        Equally many images, or their vectors from `embed` with the same features.
    features : str or torch.nn.Module
        As in `embed`; the result names it.
    count : int, optional
        Draw so many of each set instead of taking all.
    generator : torch.Generator, optional
        CPU generator for the draw; required with `count`.

    Returns
    -------
    Distance

    Raises
    ------
    ValueError
        If the sets are no tensors of images or vectors, not equally many (say `count`) or fewer than 2, or
        their vectors differ in length or hold numbers beyond 1e25.

    Notes
    -----
    |m1 - m2|² + Tr S1 + Tr S2 - 2 Tr (S1 S2)^½ (Dowson & Landau 1982). With centred vectors A, B in rows,
    Tr (S1 S2)^½ is the sum of the singular values of A Bᵀ / (N - 1): exact for any N and D, without a root of
    a matrix. Few images make it too large, for two draws from one sky as well: compare with `real_floor` at
    the same count, never across counts.

    The interval is the infinitesimal jackknife's: the distance is differentiated by the weight of each image
    (from the same singular vectors), and the spread of the derivatives is the standard error. A bootstrap
    would be wrong here: a resample repeats images, holds about .63 N different ones, and so adds the excess
    of small N once more; its values lie above the distance they should surround.

    References
    ----------
    Heusel et al. 2017, NeurIPS 30 (with Inception: FID); Efron 1982, The Jackknife, the Bootstrap, chapter 6.

    Chapter: New galaxies
    """
    a, b = _vectors(a, b, features, count, generator)
    n, shift = len(a), a.mean(0) - b.mean(0)
    a, b = a - a.mean(0), b - b.mean(0)
    left, values, right = _singular(a, b)
    value = shift.square().sum() + (a.square().sum() + b.square().sum() - 2 * values.sum()) / (n - 1)
    slopes = [
        2 * sign * (own @ shift) + n / (n - 1) * (own.square().sum(1) - vectors.square() @ values)
        for own, sign, vectors in ((a, 1, left), (b, -1, right))
    ]
    return _distance(max(float(value), 0.0), 0.0, slopes, features)


def kernel_distance(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    features: str | nn.Module,
    count: int | None = None,
    generator: torch.Generator | None = None,
) -> Distance:
    """Compute the kernel distance of two sets of images: the squared maximum mean discrepancy.

    Takes and raises what `frechet_distance` does. Without a bias at any count: 0 on average, so sometimes
    below, for two draws from one sky.

    Notes
    -----
    mean k(a, a') + mean k(b, b') - 2 mean k(a, b) over pairs of different images, with k(x, y) =
    (x · y / D + 1)³. The interval is the jackknife's, too wide rather than too narrow for sets that agree.

    References
    ----------
    Bińkowski, Sutherland, Arbel, Gretton 2018, ICLR (with Inception: KID).

    Chapter: New galaxies
    """
    a, b = _vectors(a, b, features, count, generator)
    n = len(a)
    own, other = [], []  # mean kernel of each image with its own set and with the other
    for x, y in ((a, b), (b, a)):
        alone = (x.square().sum(1) / x.shape[1] + 1) ** 3
        own.append((_kernel_sums(x, x) - alone) / (n - 1))
        other.append(_kernel_sums(x, y) / n)
    value = own[0].mean() + own[1].mean() - 2 * other[0].mean()
    slopes = [2 * (mine - theirs) for mine, theirs in zip(own, other, strict=True)]
    return _distance(float(value), -math.inf, slopes, features)


def real_floor(
    images: torch.Tensor,
    *,
    features: str | nn.Module,
    generator: torch.Generator,
    distance: Callable[..., Distance] = frechet_distance,
    count: int | None = None,
    splits: int = 20,
) -> Distance:
    """Compute how far two halves of the real images are from each other: the least to hope for.

    Parameters
    ----------
    images : torch.Tensor, (N, C, H, W) in [0, 1] or (N, D)
        Real images or their vectors.
    features : str or torch.nn.Module
        As in `embed`.
    generator : torch.Generator
        CPU generator of the splits.
    distance : callable
        `frechet_distance` or `kernel_distance`.
    count : int, optional
        Images in each half: that of the distance to compare with. Default: N // 2.
    splits : int
        How often to split anew.

    Returns
    -------
    Distance
        Mean over the splits, and the range of the middle 95 % of them.

    Raises
    ------
    ValueError
        If there are fewer than 2 `count` images, or `images` or `generator` is of another kind.

    Notes
    -----
    Chapter: New galaxies
    """
    check_sizes(count=count, splits=splits)
    _check_set(images)
    check_generator(generator)
    vectors = images if images.ndim == 2 else embed(images, features)
    half = len(vectors) // 2 if count is None else count
    if not 2 <= half <= len(vectors) // 2:
        raise ValueError(f"{len(vectors)} images do not make two halves of {half}, at least 2 in each")
    found = []
    for _ in range(splits):
        order = torch.randperm(len(vectors), generator=generator)
        one, other = vectors[order[:half]], vectors[order[half : 2 * half]]
        found.append(distance(one, other, features=features).value)
    low, high = torch.tensor(found).double().quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return Distance(sum(found) / splits, low, high, half, _name(features))


def _name(features: str | nn.Module) -> str:
    return features if isinstance(features, str) else getattr(features, "name", type(features).__name__)


def _check_set(images: torch.Tensor) -> None:
    if not isinstance(images, torch.Tensor) or images.ndim not in (2, 4) or 0 in images.shape[1:]:
        given = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(
            f"got {given}; expected a tensor of images (N, C, H, W) or vectors (N, D), D at least 1"
        )


def _vectors(a, b, features, count, generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return equally many vectors of both sets in double precision."""
    check_sizes(count=count)
    for part in (a, b):
        _check_set(part)
    if count is not None:
        if not isinstance(generator, torch.Generator):
            raise ValueError(f"count={count} draws at random: give a generator, too; got {generator!r}")
        if count > min(len(a), len(b)):
            raise ValueError(f"count is {count}, but the sets hold {len(a)} and {len(b)} images")
        a, b = (part[torch.randperm(len(part), generator=generator)[:count]] for part in (a, b))
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(
            f"the sets hold {len(a)} and {len(b)} images; expected equally many, at least 2: a distance "
            "depends on the count. Give count=N and a generator to draw N of each"
        )
    a, b = (part.detach().double() if part.ndim == 2 else embed(part, features).double() for part in (a, b))
    if a.shape != b.shape or not all((part.abs() <= LARGEST).all() for part in (a, b)):
        raise ValueError(
            f"got vectors {tuple(a.shape)} and {tuple(b.shape)}; expected finite, of one length, "
            f"with numbers up to {LARGEST:.0e}"
        )
    return a, b


def _singular(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return left vectors in columns, values and right vectors in columns of a bᵀ (N, N)."""
    if len(a) <= a.shape[1]:
        left, values, right = torch.linalg.svd(a @ b.T)
        return left, values, right.T
    (a_frame, a), (b_frame, b) = torch.linalg.qr(a), torch.linalg.qr(b)
    left, values, right = torch.linalg.svd(a @ b.T)
    return a_frame @ left, values, b_frame @ right.T


def _kernel_sums(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the sum over y of (x · y / D + 1)³ for each x."""
    return torch.cat([((part @ y.T / y.shape[1] + 1) ** 3).sum(1) for part in x.split(1024)])


def _distance(value: float, least: float, slopes: list[torch.Tensor], features) -> Distance:
    """Put an interval about a value from its derivatives by the weight of each image."""
    n = len(slopes[0])
    width = NORMAL * math.sqrt(sum(float(slope.var()) for slope in slopes) / n)
    return Distance(value, max(value - width, least), value + width, n, _name(features))
