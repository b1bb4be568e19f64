"""Gaussian smearing, and one door to what it is judged by: histograms, choice of checkpoints, pairs."""

import torch

from galnb.gans.layers import Smear, gaussian_kernel
from galnb.smearing.histograms import (
    EDGES,
    Floor,
    histograms,
    image_counts,
    real_floor,
    relative_mae,
    resampled_scores,
    score,
    score_counts,
)  # fmt: skip
from galnb.smearing.pairs import Pairs, active_pixels, align, best_pairs, orientations, pair_distances
from galnb.smearing.selection import Scores, choose, class_counts, draw_from, score_checkpoints

__all__ = [
    "EDGES", "Floor", "Pairs", "Scores", "Smear", "active_pixels", "align", "best_pairs", "choose",
    "class_counts", "draw_from", "effective_width", "gaussian_kernel", "histograms", "image_counts",
    "orientations", "pair_distances", "real_floor", "relative_mae", "resampled_scores", "score",
    "score_checkpoints", "score_counts",
]  # fmt: skip


def effective_width(kernel: torch.Tensor) -> float:
    """Return the standard deviation along one axis of a kernel as it is, px.

    Parameters
    ----------
    kernel : torch.Tensor, shape (S, S)
        Weights >= 0.

    Returns
    -------
    float
        Smaller than the sigma it was made with where the kernel is cut off: at most 0.816 for 3 x 3.

    Raises
    ------
    ValueError
        If the kernel is not a square of an odd side with a positive sum.

    Notes
    -----
    sqrt(sum k (x^2 + y^2) / (2 sum k)) about the centre. Chapter: Smearing
    """
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or len(kernel) % 2 == 0:
        raise ValueError(f"got a kernel of shape {tuple(kernel.shape)}; expected a square of an odd side")
    if not kernel.sum() > 0:
        raise ValueError(f"the kernel sums to {float(kernel.sum())}; expected more than 0")
    offsets = torch.arange(len(kernel), dtype=torch.float64) - len(kernel) // 2
    square = offsets[:, None] ** 2 + offsets**2
    return float((kernel.double() * square).sum() / (2 * kernel.double().sum())) ** 0.5
