"""Find the training images that generated images resemble most."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from galnb.batches import turned
from galnb.imageset import check_sizes

WINDOW = 7  # px; with K1, K2 the defaults of skimage.metrics.structural_similarity
K1, K2 = 0.01, 0.03
UNBIASED = WINDOW**2 / (WINDOW**2 - 1)
SYMMETRIES = 8
TILE = 100_000  # numbers in one pass over pairs, so that the passes stay in the cache
COPIES = 8  # of a piece of the bank that are in memory at once


@dataclass(frozen=True)
class Nearest:
    """Hold the bank images that are most similar to each image, best first.

    Parameters
    ----------
    indices : torch.Tensor, shape (B, count), int64
        Positions in the bank.
    scores : torch.Tensor, shape (B, count)
        SSIM, at most 1.
    turns : torch.Tensor, shape (B, count), int64
        Symmetry of the square, as in `batches.turned`, that brings the image closest to the bank image; 0
        unless symmetries were asked for.

    Notes
    -----
    Chapter: New galaxies
    """

    indices: torch.Tensor
    scores: torch.Tensor
    turns: torch.Tensor


def nearest(
    images: torch.Tensor,
    bank: torch.Tensor | np.ndarray | Iterable[torch.Tensor | np.ndarray],
    *,
    count: int = 1,
    data_range: float = 1.0,
    symmetries: bool = False,
    memory: int = 2**28,
) -> Nearest:
    """Find the bank images with the largest SSIM for each image.

    Parameters
    ----------
    images : torch.Tensor, shape (B, C, H, W)
        Finite floats.
    bank : torch.Tensor, numpy.ndarray (also a memory map) or iterable of pieces of it, (N, C, H, W)
        Floats on the scale of the images, or 8-bit numbers, which are divided by 255.
    count : int
        How many neighbours per image.
    data_range : float
        Largest minus smallest value that an image can have: 1 for [0, 1].
    symmetries : bool
        Also try each image turned and mirrored, 8 ways: a copy that is turned is still a copy. Square only.
    memory : int
        Bytes for the piece of the bank that is at work; the result does not depend on it.

    Returns
    -------
    Nearest
        The same as comparing every pair: nothing is skipped. Of equal scores the first in the bank wins.

    Raises
    ------
    ValueError
        If sizes or channels differ, the bank has fewer than `count` images, or values spread wider than
        `data_range`.

    Notes
    -----
    The SSIM of `metrics.ssim` and of scikit-image's defaults. Means and variances in the windows are computed
    once per image; only the mean of the product of two images is computed for each pair.
    Chapter: New galaxies
    """
    _check_images(images, count, data_range, symmetries)
    images, limits, seen = images.detach().float().cpu(), [], 0
    _check_values(images, limits, data_range)
    kinds = (torch.int64, torch.float32, torch.int64)
    best = Nearest(*(torch.zeros(len(images), 0, dtype=kind) for kind in kinds))
    for piece in _pieces(bank, max(1, memory // (4 * COPIES * images[0].numel()))):
        if piece.shape[1:] != images.shape[1:]:
            raise ValueError(
                f"the bank holds images {tuple(piece.shape[1:])}, expected {tuple(images.shape[1:])} as given"
            )
        _check_values(piece, limits, data_range)
        windows = _windows(piece)
        turns = [turned(images, turn) for turn in range(SYMMETRIES if symmetries else 1)]
        scores = [
            [_similarities(views[i : i + 1], windows, data_range) for views in turns]
            for i in range(len(images))
        ]
        best = _merge(best, torch.stack([torch.stack(row) for row in scores]), seen, count)
        seen += len(piece)
    if seen < count:
        raise ValueError(f"count is {count}, but the bank has only {seen} images")
    return best


@dataclass(frozen=True)
class _Windows:
    """Values of images (N, C * H * W), and of the window that begins at each pixel the mean without and with
    the image's level and the variance: 0 where a window would leave the image."""

    values: torch.Tensor
    means: torch.Tensor
    full_means: torch.Tensor
    variances: torch.Tensor


def _windows(images: torch.Tensor) -> _Windows:
    rows, columns = (
        torch.eye(size, dtype=torch.float64).unfold(0, WINDOW, 1).sum(-1) / WINDOW
        for size in images.shape[-2:]
    )
    result = torch.zeros(4, *images.shape)
    inside = result[1:, ..., : len(rows), : len(columns)]
    for index, image in enumerate(images.double()):
        level = image.mean((-2, -1), keepdim=True)  # differences of large squares would lose digits
        values = image - level
        mean = rows @ values @ columns.T
        variance = UNBIASED * (rows @ values.square() @ columns.T - mean.square())
        result[0, index] = values
        inside[:, index] = torch.stack([mean, mean + level, variance])
    return _Windows(*result.flatten(2))


def _similarities(image: torch.Tensor, bank: _Windows, data_range: float) -> torch.Tensor:
    """Return the SSIM (N,) of one image (1, C, H, W) and each of the bank."""
    one, (*_, height, width) = _windows(image), image.shape
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    # constants ride on values that are read anyway: a pass over memory costs more than its arithmetic
    area = WINDOW**2
    values, means = one.values * (2 * UNBIASED / area), one.means * (2 * UNBIASED)
    luminance, squares, variances = 2 * one.full_means, one.full_means.square() + c1, one.variances + c2
    share, first = torch.tensor(c2 / area), torch.tensor(c1)
    weights = torch.zeros(image.shape[1:])
    weights[:, : height - WINDOW + 1, : width - WINDOW + 1] = 1
    weights = (weights / weights.sum()).flatten()
    tile = max(1, TILE // weights.numel())
    buffers = torch.zeros(3, tile, weights.numel())
    scores = []
    for start in range(0, len(bank.values), tile):
        piece = slice(start, start + tile)
        a, b, c = buffers[:, : len(bank.values[piece])]
        torch.addcmul(share, values, bank.values[piece], out=a)
        _sum_of_seven(a.view(-1), b.view(-1), c.view(-1), 1)
        _sum_of_seven(c.view(-1), a.view(-1), b.view(-1), width)
        b.addcmul_(means, bank.means[piece], value=-1)  # 2 covariance + c2
        b *= torch.addcmul(first, luminance, bank.full_means[piece], out=a)
        b /= torch.addcmul(squares, bank.full_means[piece], bank.full_means[piece], out=a)
        b /= torch.add(variances, bank.variances[piece], out=a)
        scores.append(b @ weights)
    return torch.cat(scores)


def _sum_of_seven(values: torch.Tensor, two: torch.Tensor, out: torch.Tensor, step: int) -> None:
    """Write to `out` the sum of 7 values, `step` apart, from each place on; the end of `out` is left."""
    n = len(values)
    torch.add(values[: n - step], values[step:], out=two[: n - step])
    four = out[: n - 3 * step]
    torch.add(two[: n - 3 * step], two[2 * step : n - step], out=four)
    out[: n - 5 * step] += two[4 * step : n - step]
    out[: n - 6 * step] += values[6 * step :]


def _merge(best: Nearest, scores: torch.Tensor, seen: int, count: int) -> Nearest:
    """Join the best so far with those of the next piece, (B, turns, N) scores from position `seen` on."""
    score, turn = scores.max(1)
    index = torch.arange(seen, seen + score.shape[1]).expand(len(score), -1)
    joined = [
        torch.cat(pair, 1) for pair in ((best.indices, index), (best.scores, score), (best.turns, turn))
    ]
    order = joined[1].sort(dim=1, descending=True, stable=True).indices[:, :count]
    return Nearest(*(values.gather(1, order) for values in joined))


def _pieces(bank, most: int) -> Iterator[torch.Tensor]:
    for part in [bank] if isinstance(bank, torch.Tensor | np.ndarray) else bank:
        if not isinstance(part, torch.Tensor | np.ndarray) or part.ndim != 4:
            raise ValueError(
                f"bank: got {type(part).__name__} of shape {tuple(getattr(part, 'shape', ()))}; expected "
                "tensors or arrays (N, C, H, W)"
            )
        for start in range(0, len(part), most):
            piece = torch.as_tensor(
                np.array(part[start : start + most])
                if isinstance(part, np.ndarray)
                else part[start : start + most]
            )
            yield piece.detach().float().cpu() / (255 if piece.dtype == torch.uint8 else 1)


def _check_images(images: torch.Tensor, count: int, data_range: float, symmetries: bool) -> None:
    check_sizes(count=count)
    if not data_range > 0:
        raise ValueError(f"data_range is {data_range}; expected a number > 0, 1 for images in [0, 1]")
    if (
        not isinstance(images, torch.Tensor)
        or images.ndim != 4
        or not images.is_floating_point()
        or not len(images)
    ):
        raise ValueError("images: expected a tensor of floats (B, C, H, W), at least one image")
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(
            f"got images of {images.shape[-2]} x {images.shape[-1]} px; SSIM needs {WINDOW} x {WINDOW}"
        )
    if symmetries and images.shape[-2] != images.shape[-1]:
        raise ValueError(f"got images of {images.shape[-2]} x {images.shape[-1]} px; symmetries need squares")


def _check_values(values: torch.Tensor, limits: list[float], data_range: float) -> None:
    """Widen `limits` to the values, and refuse NaN and what is wider than the range."""
    found = [float(value) for value in values.aminmax()]
    limits[:] = min([*limits[:1], found[0]]), max([*limits[1:], found[1]])
    if not math.isfinite(sum(found)) or limits[1] - limits[0] > data_range * (1 + 1e-4):
        raise ValueError(
            f"values of images and bank run from {limits[0]:g} to {limits[1]:g}, wider than data_range="
            f"{data_range:g}, or are not finite"
        )
