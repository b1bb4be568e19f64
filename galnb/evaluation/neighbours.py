"""Find the training images that generated images resemble most, and say whether they are too close to be new.

Chapter 13, New galaxies.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from galnb import checks
from galnb.evaluation.metrics import WINDOW
from galnb.images import check_images, turned

_Pixels = torch.Tensor | np.ndarray
_AREA = WINDOW**2
_C1, _C2 = 0.01**2, 0.03**2  # of SSIM, for images in [0, 1]
_PIECE = 512  # bank images at a time, enough for efficient matrix products
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

    fractions: for each level, the share of generated images above that quantile of the held-out ones, and its
        exact 95 % interval (low, high). A generator that draws from the sky gives 1 - level.
    chances: for each level, the probability of at least so many if generated images were as new as held-out
        ones.
    suspects: generated images that resemble a training image more than any held-out one does, most similar
        first.
    """

    fractions: dict[float, tuple[float, float, float]]
    chances: dict[float, float]
    suspects: torch.Tensor


def nearest(
    images: torch.Tensor, bank: _Pixels | Iterable[_Pixels], *, count: int = 1, symmetries: bool = False
) -> Nearest:
    """Find the bank images with the largest SSIM, that of `metrics`, for each image (B, C, H, W) in [0, 1].

    bank: tensor, array (also a memory map) or iterable of pieces of one, (N, C, H, W): in [0, 1], or bytes.
    count: neighbours per image.
    symmetries: also try each image turned and mirrored, 8 ways: a copy that is turned is still a copy.
    The same as comparing every pair: nothing is skipped, since even the largest covariance that the variances
    allow rules out a fifth of real pairs at most. Of equal scores, rounded to a millionth, the first in the
    bank wins. Memory is bounded whatever the size of the bank.
    """
    checks.at_least(1, count=count)
    images = check_images(images).detach().cpu()
    height, width = images.shape[-2:]
    if min(height, width) < WINDOW or (symmetries and height != width):
        raise ValueError(f"got {height} x {width} px; expected {WINDOW} or more, symmetries: squares")
    scores, places, seen = torch.zeros(len(images), 0), torch.zeros(len(images), 0, dtype=torch.int64), 0
    for piece in _pieces(bank, min(_PIECE, max(1, _MEMORY // (4 * images[0].numel())))):
        if piece.shape[1:] != images.shape[1:]:
            given = f"images {tuple(images.shape[1:])} and a bank of {tuple(piece.shape[1:])}"
            raise ValueError(f"got {given}; expected the same channels and sides")
        turns = range(8 if symmetries else 1)
        score, turn = torch.stack([_similarities(turned(images, turn), piece) for turn in turns]).max(0)
        scores = torch.cat([scores, score], 1)
        places = torch.cat([places, 8 * torch.arange(seen, seen + len(piece)) + turn], 1)
        best = scores.round(decimals=6).sort(descending=True, stable=True).indices[:, :count]
        scores, places = scores.gather(1, best), places.gather(1, best)
        seen += len(piece)
    if seen < count:
        raise ValueError(f"count is {count}, but the bank has only {seen} images")
    return Nearest(places // 8, scores, places % 8)


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
    ours, real = _first("generated", generated), _first("held_out", held_out)
    ordered, n = real.sort().values, len(real)
    fractions, chances = {}, {}
    for level in levels:
        if not 0 < level < 1 or n * (1 - level) < 1 - 1e-9:
            raise ValueError(f"level {level} of {n} held-out images; expected (0, 1), an image or more above")
        rank = int(np.ceil(level * n - 1e-9))  # the smallest score with a share `level` at or below it
        above = int((ours > ordered[rank - 1]).sum())
        interval = stats.binomtest(above, len(ours)).proportion_ci()
        fractions[level] = (above / len(ours), float(interval.low), float(interval.high))
        chances[level] = float(stats.betabinom.sf(above - 1, len(ours), n - rank + 1, rank))
    suspects = ours.argsort(descending=True)
    suspects = suspects[ours[suspects] > ordered[-1]]
    return Memorisation(fractions, chances, suspects)


def _similarities(images: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """Return the SSIM (B, N) of every image (B, C, H, W) with every one of the bank (N, C, H, W).

    Covariances of all pairs in one window are one product of matrices, (B, 49) with (49, N); so are 2 mx my +
    c1 and (mx² + my² + c1) (vx + vy + c2), as sums of products of what x and y have alone.
    """
    step = max(1, _TILE * torch.get_num_threads() // (len(images) * len(bank)))
    product, other = torch.empty(2, step, len(images), len(bank))
    total, count = torch.zeros(len(images), len(bank), dtype=torch.float64), 0
    level = bank.mean()  # covariances of small numbers lose less to rounding
    for (x, mx, vx), (y, my, vy) in zip(_rows(images - level), _rows(bank - level), strict=True):
        x = (x - mx[:, None]).mT
        mx, my = mx + level, my + level
        one, square, spread = torch.ones_like(mx), mx.square() + _C1, vx + _C2
        x_light = torch.stack([2 * mx, _C1 * one], 2)
        x_norm = torch.stack([square * spread, square, spread, one], 2)
        y_terms = torch.stack([my, torch.ones_like(my), vy, my.square(), my.square() * vy], 1)
        row = torch.zeros_like(product)
        parts = (part.split(step) for part in (x, y, x_light, y_terms[:, :2], x_norm, y_terms[:, 1:]))
        for x_part, y_part, *factors in zip(*parts, strict=True):
            ratio, factor = product[: len(x_part)], other[: len(x_part)]
            torch.baddbmm(ratio.fill_(_C2), x_part, y_part, alpha=2 / (_AREA - 1), out=ratio)
            ratio *= torch.bmm(factors[0], factors[1], out=factor)
            row[: len(ratio)].addcdiv_(ratio, torch.bmm(factors[2], factors[3], out=factor))
        total += row.sum(0)
        count += len(x)
    return (total / count).float()


def _rows(images: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield for each row of windows of each channel the values (windows, 49, B), means and variances
    (windows, B)."""
    for channel in images.permute(1, 2, 3, 0).contiguous():  # images side by side, as matrix products want
        sums = torch.zeros(2, *channel.shape[1:], dtype=torch.float64)  # of 7 rows: values and squares
        # The last 7 rows, column by column, so that 49 pixels of it, from every seventh on, are a window. A
        # new row takes the place of the oldest: the sum over a window asks for no order, only the same one.
        strip = torch.zeros(channel.shape[1], WINDOW, channel.shape[2])
        pixels = strip.flatten(0, 1).unfold(0, _AREA, WINDOW).mT
        for bottom, row in enumerate(channel):
            place = strip[:, bottom % WINDOW]
            for values, sign in ((place.double(), -1), (row.double(), 1)):
                sums[0].add_(values, alpha=sign)
                sums[1].addcmul_(values, values, value=sign)
            place.copy_(row)
            if bottom >= WINDOW - 1:
                mean, squares = sums.unfold(1, WINDOW, 1).sum(-1) / _AREA
                variance = (squares - mean.square()) * (_AREA / (_AREA - 1))
                yield pixels, mean.float(), variance.float()


def _pieces(bank, most: int) -> Iterator[torch.Tensor]:
    """Yield the bank in floats, at most so many images at a time."""
    checks.check_kind(Iterable, "give a tensor or array (N, C, H, W), or pieces of one", bank=bank)
    for part in [bank] if isinstance(bank, _Pixels) else bank:
        for start in range(0, len(part), most):
            piece = part[start : start + most]
            if isinstance(piece, np.ndarray):  # a copy: of a memory map only this piece is read
                piece = torch.from_numpy(piece.astype(piece.dtype.newbyteorder("=")))
            piece = piece / 255 if piece.dtype == torch.uint8 else piece
            yield check_images(piece, name="bank").detach().cpu()


def _first(name: str, scores: torch.Tensor) -> torch.Tensor:
    """Return the score of the first neighbour of each image, (B,) in double precision."""
    checks.check_floats(scores, name=name, finite=True)
    if scores.ndim not in (1, 2) or not scores.numel():
        raise ValueError(f"{name} is {tuple(scores.shape)}; expected a tensor (B,) or (B, count) of scores")
    return scores.detach().double().reshape(len(scores), -1)[:, 0].contiguous()
