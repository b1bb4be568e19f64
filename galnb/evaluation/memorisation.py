"""Say whether generated images are closer to the training images than new real ones are."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats


@dataclass(frozen=True)
class Memorisation:
    """Say where the nearest scores of generated images lie among those of held-out real images.

    Parameters
    ----------
    quantiles : torch.Tensor, shape (B,)
        Share of held-out images whose nearest training image is less similar (ties count half).
    fractions : dict of float to tuple
        For each level, the share of generated images above that quantile of the held-out ones, and its
        exact 95 % interval (low, high). A generator that draws from the sky gives 1 - level.
    chances : dict of float to float
        For each level, the probability of at least so many if generated images were as new as held-out ones.
    suspects : torch.Tensor, int64
        Generated images that resemble a training image more than any held-out one does, most similar first.

    Notes
    -----
    Chapter: New galaxies
    """

    quantiles: torch.Tensor
    fractions: dict[float, tuple[float, float, float]]
    chances: dict[float, float]
    suspects: torch.Tensor


def memorisation(
    generated: torch.Tensor, held_out: torch.Tensor, *, levels: tuple[float, ...] = (0.95, 0.99)
) -> Memorisation:
    """Compare nearest scores of generated images with those of held-out real images, same bank for both.

    Parameters
    ----------
    generated, held_out : torch.Tensor, shape (B,) or (B, count)
        ``nearest(...).scores`` of each set against the training images; of several neighbours the first.
    levels : tuple of float
        Quantiles of the held-out scores to count above, in (0, 1).

    Returns
    -------
    Memorisation

    Raises
    ------
    ValueError
        If a set is empty or no tensor of that shape, scores are not finite, `levels` is no tuple, or there
        are too few held-out images for a level.

    Notes
    -----
    A score says little alone: two dark images resemble each other whatever is in them. Were the generated
    images as new as the held-out ones, the number of B above the r-th smallest of n held-out scores would
    follow a beta-binomial distribution with B, n - r + 1 and r, whatever the scores' distribution: hence
    `chances`. The interval (Clopper & Pearson 1934) takes the threshold as given.
    Chapter: New galaxies
    """
    if np.ndim(levels) != 1:
        raise ValueError(f"levels is {levels!r}; expected a tuple such as (0.95, 0.99)")
    ours, real = _first("generated", generated), _first("held_out", held_out)
    ordered, n = real.sort().values, len(real)
    below, upto = (torch.searchsorted(ordered, ours, right=right) for right in (False, True))
    fractions, chances = {}, {}
    for level in levels:
        if not 0 < level < 1 or n * (1 - level) < 1 - 1e-9:
            raise ValueError(
                f"level {level} of {n} held-out images; expected a level in (0, 1) and at "
                "least 1 / (1 - level) images"
            )
        rank = int(np.ceil(level * n - 1e-9))  # the smallest score with a share `level` at or below it
        above = int((ours > ordered[rank - 1]).sum())
        interval = stats.binomtest(above, len(ours)).proportion_ci()
        fractions[level] = (above / len(ours), float(interval.low), float(interval.high))
        chances[level] = float(stats.betabinom.sf(above - 1, len(ours), n - rank + 1, rank))
    suspects = ours.argsort(descending=True)
    suspects = suspects[ours[suspects] > ordered[-1]]
    return Memorisation(((below + upto).double() / (2 * n)).float(), fractions, chances, suspects)


def _first(name: str, scores: torch.Tensor) -> torch.Tensor:
    """Return the score of the first neighbour of each image, (B,) in double precision."""
    if not isinstance(scores, torch.Tensor) or scores.ndim not in (1, 2) or not scores.numel():
        given = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ValueError(f"{name} is {given}; expected a tensor (B,) or (B, count) of at least one score")
    firsts = scores.detach().double()[:, 0] if scores.ndim == 2 else scores.detach().double()
    if not firsts.isfinite().all():
        raise ValueError(f"{name} holds {len(firsts)} scores; expected only finite ones")
    return firsts.contiguous()
