"""Gaussian smearing, and what it is judged by: three histograms, their relative MAE, aligned pairs.

Chapters 10, A GAN for radio galaxies, and 11, Smearing.
"""

import torch

from galnb.gans.layers import Smear as Smear
from galnb.gans.layers import gaussian_kernel as gaussian_kernel
from galnb.smearing.histograms import histograms as histograms
from galnb.smearing.histograms import relative_mae as relative_mae
from galnb.smearing.pairs import align as align
from galnb.smearing.pairs import best_pairs as best_pairs


def effective_width(kernel: torch.Tensor) -> float:
    """Return the standard deviation along one axis of a kernel as it is, px.

    sqrt(sum k (x^2 + y^2) / (2 sum k)) about the centre.
    kernel: (S, S), S odd, weights >= 0 with a positive sum, else ValueError.
    Smaller than the sigma it was made with where the kernel is cut off: at most 0.816 for 3 x 3.
    """
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or len(kernel) % 2 == 0:
        raise ValueError(f"got a kernel of shape {tuple(kernel.shape)}; expected a square of an odd side")
    weights = kernel.double()
    if not (weights.min() >= 0 and 0 < weights.sum() < torch.inf):
        raise ValueError(f"the kernel sums to {float(weights.sum())}; expected weights >= 0, not all 0")
    offsets = torch.arange(len(kernel), dtype=torch.float64, device=kernel.device) - len(kernel) // 2
    square = offsets[:, None] ** 2 + offsets**2
    return float((weights * square).sum() / (2 * weights.sum())) ** 0.5
