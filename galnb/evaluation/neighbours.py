"""Find the training images that generated images resemble most, and say whether they are too close to be new.

Chapter 13, New galaxies.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from scipy import stats

from galnb import checks
from galnb.images import turned

_SIDE, _AREA = 7, 49  # of a window, px; the default of skimage.metrics.structural_similarity
_QUERIES, _PIECE = 64, 512  # images and bank images at a time, enough for efficient matrix products
_TILE = 120_000  # numbers in one product per thread, so that what follows finds them in its cache
_MEMORY = 2**29 // 3  # bytes of a piece of the bank, of which three copies are in memory at once


@dataclass(frozen=True)
class Nearest:
    """Hold the bank images that are most similar to each image, best first; each field is (B, count).

    indices: positions in the bank.
    scores: SSIM, at most 1.
    turns: symmetry of the square, as in `images.turned`, that brings the image closest to the bank image; 0
        unless symmetries were asked for.
    """

    indices: torch.Tensor
    scores: torch.Tensor
    turns: torch.Tensor


@dataclass(frozen=True)
class Memorisation:
    """Say where the nearest scores of generated images lie among those of held-out real images.

    quantiles: (B,), share of held-out images whose nearest training image is less similar (ties count half).
    fractions: for each level, the share of generated images above that quantile of the held-out ones, and its
        exact 95 % interval (low, high). A generator that draws from the sky gives 1 - level.
    chances: for each level, the probability of at least so many if generated images were as new as held-out
        ones.
    suspects: generated images that resemble a training image more than any held-out one does, most similar
        first.
    """

    quantiles: torch.Tensor
    fractions: dict[float, tuple[float, float, float]]
    chances: dict[float, float]
    suspects: torch.Tensor


def nearest(
    images: torch.Tensor,
    bank: torch.Tensor | np.ndarray | Iterable[torch.Tensor | np.ndarray],
    *,
    count: int = 1,
    data_range: float = 1.0,
    symmetries: bool = False,
) -> Nearest:
    """Find the bank images with the largest SSIM, that of `metrics`, for each image (B, C, H, W) of floats.

    bank: tensor, array (also a memory map) or iterable of pieces of one, (N, C, H, W): floats on the scale of
        the images, or 8-bit numbers, which are divided by 255.
    count: neighbours per image.
    data_range: largest minus smallest value that an image can have: 1 for [0, 1].
    symmetries: also try each image turned and mirrored, 8 ways: a copy that is turned is still a copy.
    The same as comparing every pair: nothing is skipped, since even the largest covariance that the variances
    allow rules out a fifth of real pairs at most. Of equal scores, rounded to a millionth, the first in the
    bank wins. Memory is bounded whatever the size of the bank.
    """
    _check_images(images, count, data_range, symmetries)
    images, limits, seen = images.detach().float().cpu(), [], 0
    _check_values(images, limits, data_range)
    kinds = (torch.int64, torch.float32, torch.int64)
    best = Nearest(*(torch.zeros(len(images), 0, dtype=kind) for kind in kinds))
    for piece in _pieces(bank, min(_PIECE, max(1, _MEMORY // (4 * images[0].numel())))):
        if piece.shape[1:] != images.shape[1:]:
            given, wanted = tuple(piece.shape[1:]), tuple(images.shape[1:])
            raise ValueError(f"the bank holds images {given}, expected {wanted} as given")
        _check_values(piece, limits, data_range)
        scores = []
        for turn in range(8 if symmetries else 1):
            parts = turned(images, turn).split(_QUERIES)
            scores.append(torch.cat([_similarities(part, piece, data_range) for part in parts]))
        best = _merge(best, torch.stack(scores, 1), seen, count)
        seen += len(piece)
    if seen < count:
        raise ValueError(f"count is {count}, but the bank has only {seen} images")
    return best


def memorisation(
    generated: torch.Tensor, held_out: torch.Tensor, *, levels: tuple[float, ...] = (0.95, 0.99)
) -> Memorisation:
    """Compare nearest scores of generated images with those of held-out real images, same bank for both.

    generated, held_out: ``nearest(...).scores``, (B,) or (B, count), of each set against the training images;
        of several neighbours the first.
    levels: quantiles of the held-out scores to count above, in (0, 1).
    A score says little alone: two dark images resemble each other whatever is in them. Were the generated
    images as new as the held-out ones, the number of B above the r-th smallest of n held-out scores would
    follow a beta-binomial distribution with B, n - r + 1 and r, whatever the scores' distribution: hence
    `chances`. The interval (Clopper & Pearson 1934) takes the threshold as given.
    """
    if np.ndim(levels) != 1:
        raise ValueError(f"levels is {levels!r}; expected a tuple such as (0.95, 0.99)")
    ours, real = _first("generated", generated), _first("held_out", held_out)
    ordered, n = real.sort().values, len(real)
    below, upto = (torch.searchsorted(ordered, ours, right=right) for right in (False, True))
    fractions, chances = {}, {}
    for level in levels:
        if not 0 < level < 1 or n * (1 - level) < 1 - 1e-9:
            needs = "a level in (0, 1) and at least 1 / (1 - level) images"
            raise ValueError(f"level {level} of {n} held-out images; expected {needs}")
        rank = int(np.ceil(level * n - 1e-9))  # the smallest score with a share `level` at or below it
        above = int((ours > ordered[rank - 1]).sum())
        interval = stats.binomtest(above, len(ours)).proportion_ci()
        fractions[level] = (above / len(ours), float(interval.low), float(interval.high))
        chances[level] = float(stats.betabinom.sf(above - 1, len(ours), n - rank + 1, rank))
    suspects = ours.argsort(descending=True)
    suspects = suspects[ours[suspects] > ordered[-1]]
    return Memorisation(((below + upto).double() / (2 * n)).float(), fractions, chances, suspects)


def _similarities(images: torch.Tensor, bank: torch.Tensor, data_range: float) -> torch.Tensor:
    """Return the SSIM (B, N) of every image (B, C, H, W) with every one of the bank (N, C, H, W).

    Covariances of all pairs in one 7 x 7 window are one product of matrices, (B, 49) with (49, N).
    """
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    step = max(1, _TILE * torch.get_num_threads() // (len(images) * len(bank)))
    cov, other = torch.empty(2, step, len(images), len(bank))
    total, count = torch.zeros(len(images), len(bank), dtype=torch.float64), 0
    level = float(bank.mean())
    for (x, x_mean, x_var), (y, y_mean, y_var) in zip(_rows(images, level), _rows(bank, level), strict=True):
        x = (x - x_mean[:, None]).transpose(1, 2)
        x_mean, y_mean = x_mean + level, y_mean + level
        # 2 mx my + c1 and (mx² + my² + c1) (vx + vy + c2) as sums of products of what x and y have alone
        one, square, spread = torch.ones_like(x_mean), x_mean.square() + c1, x_var + c2
        x_luminance = torch.stack([2 * x_mean, c1 * one], 2)
        x_norm = torch.stack([square * spread, square, spread, one], 2)
        y_square = y_mean.square()
        y_terms = torch.stack([y_mean, torch.ones_like(y_mean), y_var, y_square, y_square * y_var], 1)
        row = torch.zeros_like(cov)
        parts = (x, y, x_luminance, y_terms[:, :2], x_norm, y_terms[:, 1:])
        for x_part, y_part, *factors in zip(*(part.split(step) for part in parts), strict=True):
            ratio, factor = cov[: len(x_part)], other[: len(x_part)]
            torch.baddbmm(ratio.fill_(c2), x_part, y_part, alpha=2 / (_AREA - 1), out=ratio)  # 2 cov + c2
            ratio *= torch.bmm(factors[0], factors[1], out=factor)
            row[: len(ratio)].addcdiv_(ratio, torch.bmm(factors[2], factors[3], out=factor))
        total += row.sum(0)
        count += len(x)
    return (total / count).float()


def _rows(images: torch.Tensor, level: float) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield for each row of windows of each channel the values (windows, 49, B) and means (windows, B), both
    less a level, and the variances (windows, B)."""
    images = images - level  # covariances of small numbers lose less to rounding
    for channel in images.permute(1, 2, 3, 0).contiguous():  # images side by side, as matrix products want
        sums = torch.zeros(2, *channel.shape[1:], dtype=torch.float64)  # of 7 rows: values and squares
        # The last 7 rows, column by column, so that 49 pixels of it, from every seventh on, are a window. A
        # new row takes the place of the oldest: the sum over a window asks for no order, only the same one.
        strip = torch.zeros(channel.shape[1], _SIDE, channel.shape[2])
        pixels = strip.flatten(0, 1).unfold(0, _AREA, _SIDE).transpose(1, 2)
        for bottom, row in enumerate(channel):
            place = strip[:, bottom % _SIDE]
            for values, sign in ((place.double(), -1), (row.double(), 1)):
                sums[0].add_(values, alpha=sign)
                sums[1].addcmul_(values, values, value=sign)
            place.copy_(row)
            if bottom >= _SIDE - 1:
                mean, squares = _sum_of_seven(sums) / _AREA
                variance = (squares - mean.square()) * (_AREA / (_AREA - 1))
                yield pixels, mean.float(), variance.float()


def _sum_of_seven(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of 7 neighbours along axis 1, in four additions."""
    two = values[:, :-1] + values[:, 1:]
    four = two[:, :-2] + two[:, 2:]
    return four[:, :-3].add_(two[:, 4:-1]).add_(values[:, 6:])


def _merge(best: Nearest, scores: torch.Tensor, seen: int, count: int) -> Nearest:
    """Join the best so far with those of the next piece, (B, turns, N) scores from position `seen` on."""
    score, turn = scores.max(1)
    index = torch.arange(seen, seen + score.shape[1]).expand(len(score), -1)
    pairs = (best.indices, index), (best.scores, score), (best.turns, turn)
    joined = [torch.cat(pair, 1) for pair in pairs]
    order = joined[1].round(decimals=6).sort(dim=1, descending=True, stable=True).indices[:, :count]
    return Nearest(*(values.gather(1, order) for values in joined))


def _pieces(bank, most: int) -> Iterator[torch.Tensor]:
    """Yield the bank in floats, at most so many images at a time."""
    if not isinstance(bank, Iterable):
        raise ValueError(f"bank is {bank!r}; expected a tensor or array (N, C, H, W), or pieces of one")
    for part in [bank] if isinstance(bank, torch.Tensor | np.ndarray) else bank:
        if not isinstance(part, torch.Tensor | np.ndarray) or part.ndim != 4:
            given = f"{type(part).__name__} of shape {tuple(getattr(part, 'shape', ()))}"
            raise ValueError(f"bank: got {given}; expected tensors or arrays (N, C, H, W)")
        for start in range(0, len(part), most):
            piece = part[start : start + most]
            if isinstance(piece, np.ndarray):  # a copy: of a memory map only this piece is read
                piece = torch.from_numpy(piece.astype(piece.dtype.newbyteorder("=")))
            if not (piece.is_floating_point() or piece.dtype == torch.uint8):
                raise ValueError(f"the bank holds {piece.dtype}; expected floats or 8-bit numbers")
            values = piece.detach().float().cpu()
            yield values / 255 if piece.dtype == torch.uint8 else values


def _check_images(images: torch.Tensor, count: int, data_range: float, symmetries: bool) -> None:
    checks.at_least(1, count=count)
    if not isinstance(data_range, Real) or not 1e-6 <= data_range <= 1e9:
        raise ValueError(f"data_range is {data_range}; expected 1e-6 to 1e9, 1 for images in [0, 1]")
    floats = isinstance(images, torch.Tensor) and images.ndim == 4 and images.is_floating_point()
    if not floats or not len(images):
        wanted = "a tensor of floats (B, C, H, W), at least one image; of an ImageSet take .pixels"
        raise ValueError(f"images is a {type(images).__name__}; expected {wanted}")
    height, width = images.shape[-2:]
    if min(height, width) < _SIDE or (symmetries and height != width):
        wanted = "7 x 7 at least, for SSIM; symmetries need squares"
        raise ValueError(f"got images of {height} x {width} px; expected {wanted}")


def _check_values(values: torch.Tensor, limits: list[float], data_range: float) -> None:
    """Widen `limits` to the values, and refuse NaN and what is wider than the range."""
    found = [float(value) for value in values.aminmax()]
    limits[:] = min([*limits[:1], found[0]]), max([*limits[1:], found[1]])
    if not math.isfinite(sum(found)) or limits[1] - limits[0] > data_range * (1 + 1e-4):
        given = f"values of images and bank run from {limits[0]:g} to {limits[1]:g}"
        raise ValueError(f"{given}, wider than data_range={data_range:g}, or are not finite")


def _first(name: str, scores: torch.Tensor) -> torch.Tensor:
    """Return the score of the first neighbour of each image, (B,) in double precision."""
    if not isinstance(scores, torch.Tensor) or scores.ndim not in (1, 2) or not scores.numel():
        given = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ValueError(f"{name} is {given}; expected a tensor (B,) or (B, count) of at least one score")
    firsts = scores.detach().double().reshape(len(scores), -1)[:, 0]
    if not firsts.isfinite().all():
        raise ValueError(f"{name} holds {len(firsts)} scores; expected only finite ones")
    return firsts.contiguous()
