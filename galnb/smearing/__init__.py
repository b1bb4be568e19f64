"""Gaussian smearing, and what it is judged by: three histograms, their relative MAE, aligned pairs.

Here: the width of a kernel; galaxies side by side along their principal axes, and their best-matching pairs.
Chapters 10, A GAN for radio galaxies, and 11, Smearing.
"""

from collections import namedtuple

import torch
from torch.nn import functional as F

from galnb.checks import at_least, check_floats
from galnb.gans.layers import Smear as Smear
from galnb.gans.layers import gaussian_kernel as gaussian_kernel
from galnb.images import check_images
from galnb.smearing.histograms import ROUNDING, check_partners, whole_levels
from galnb.smearing.histograms import histograms as histograms
from galnb.smearing.histograms import relative_mae as relative_mae

_Pairs = namedtuple("_Pairs", "generated real distances generated_images real_images")


def effective_width(kernel: torch.Tensor) -> float:
    """Return the standard deviation along one axis of a kernel as it is, px.

    sqrt(sum k (x^2 + y^2) / (2 sum k)) about the centre.
    kernel: (S, S), S odd, weights >= 0 with a positive sum, else ValueError.
    Smaller than the sigma it was made with where the kernel is cut off: at most 0.816 for 3 x 3.
    """
    check_floats(kernel, name="kernel")
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or len(kernel) % 2 == 0:
        raise ValueError(f"got a kernel of shape {tuple(kernel.shape)}; expected a square of an odd side")
    weights = kernel.double()
    if not (weights.min() >= 0 and 0 < weights.sum() < torch.inf):
        raise ValueError(f"the kernel sums to {float(weights.sum())}; expected weights >= 0, not all 0")
    offsets = torch.arange(len(kernel), dtype=torch.float64, device=kernel.device) - len(kernel) // 2
    square = offsets[:, None] ** 2 + offsets**2
    return float((weights * square).sum() / (2 * weights.sum())) ** 0.5


def active_pixels(images: torch.Tensor) -> torch.Tensor:
    """Count the pixels of each image (B, C, H, W) in [0, 1] that are at least 1 of 255 grey levels."""
    check_images(images)
    return (whole_levels(images) >= (1 - ROUNDING) / 255).flatten(1).sum(1)


def align(images: torch.Tensor) -> torch.Tensor:
    """Centre each galaxy and turn its longest direction to lie along the rows.

    images: (B, C, H, W) in [0, 1], square, else ValueError. Returns as many in float32; blank stays blank.
    The direction is the first principal component of the light: the eigenvector of its second moments about
    its centre. That leaves four orientations, as a turn by 180 degrees and a mirror image have the same
    moments. Here the one is taken whose third moments along both axes are positive; `best_pairs` tries all.
    Pixels are interpolated linearly, which smears a little; black enters from outside.
    """
    images = check_images(images).clamp_min(0)  # rounding errors below 0 are no light
    side = images.shape[-1]
    if images.shape[-2] != side:
        raise ValueError(f"got images of {images.shape[-2]} x {side} px; align needs squares to turn them in")
    grid = (2 * torch.arange(side, dtype=torch.float32, device=images.device) + 1) / side - 1
    light = images.sum(1)
    total = light.sum((1, 2)).clamp_min(1e-12)
    # moments need only the sums along each axis and one product
    rows, columns = light.sum(2), light.sum(1)
    x, y = (columns @ grid) / total, (rows @ grid) / total
    xx, yy = (columns @ grid**2) / total - x * x, (rows @ grid**2) / total - y * y
    xy = ((light @ grid) @ grid[:, None])[:, 0] / total - x * y
    angle = 0.5 * torch.atan2(2 * xy, xx - yy)
    turned = _turn(images, angle, x, y)
    light = turned.sum(1)
    flip_x = (light.sum(1) @ grid**3) < 0  # the centre is at 0 now
    flip_y = (light.sum(2) @ grid**3) < 0
    turned = torch.where(flip_x[:, None, None, None], turned.flip(-1), turned)
    return torch.where(flip_y[:, None, None, None], turned.flip(-2), turned)


def _turn(images, angle, x, y):
    """Sample each image in axes turned by `angle` about its centre (x, y), in units of half a side."""
    cosine, sine = angle.cos(), angle.sin()
    rows = [torch.stack([cosine, -sine, x], 1), torch.stack([sine, cosine, y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), images.shape, align_corners=False)  # output -> input
    return F.grid_sample(images, grid, align_corners=False).clamp(0, 1)


def orientations(images: torch.Tensor) -> torch.Tensor:
    """Stack the four images with the same principal axes: (B, C, H, W) -> (4, B, C, H, W)."""
    return torch.stack([images, images.flip(-1), images.flip(-2), images.flip(-1, -2)])


def pair_distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Measure how far apart all pairs of galaxies are once they are aligned: (N, M), float32.

    first, second: (N, C, H, W) and (M, C, H, W) in [0, 1], square, of one size, else ValueError.
    Root of the mean squared difference of the pixels, the least over four orientations.
    """
    check_partners(first, second)
    return _distances(align(first), align(second))[0]


def best_pairs(generated: torch.Tensor, real: torch.Tensor, *, count: int = 5, min_active: int) -> _Pairs:
    """Find the generated and real galaxies that look most alike.

    generated, real: (N, C, H, W) and (M, C, H, W) in [0, 1], square, of one size and class.
    count: how many pairs, at least 1; fewer come back where the images run out.
    min_active: lit pixels that both images of a pair must have, >= 0; 0 admits empty images, which then match
    best. A threshold for a class: a low quantile of the lit pixels of its real galaxies, see `active_pixels`.
    Returns pairs, best first, no image in two of them: generated, real (count,), positions in the two sets;
    distances (count,), see `pair_distances`; generated_images, real_images (count, C, H, W) as they were
    compared: aligned, the generated one turned and mirrored to fit.
    ValueError if shapes differ, a number is out of range, or no image has so many lit pixels.
    """
    at_least(1, count=count)
    at_least(0, min_active=min_active)
    check_partners(generated, real)
    kept = []
    for name, images in (("generated", generated), ("real", real)):
        lit = active_pixels(images)
        kept.append((lit >= min_active).nonzero()[:, 0])
        if not len(kept[-1]):
            raise ValueError(f"no {name} image has {min_active} lit pixels (most: {int(lit.max())}); "
                             "lower min_active")  # fmt: skip
    ours, theirs = align(generated[kept[0]]), align(real[kept[1]])
    distances, chosen = _distances(ours, theirs)
    rows, columns = _greedy(distances, min(count, *distances.shape))
    views = orientations(ours[rows])
    turned = views[chosen[rows, columns], torch.arange(len(rows))]
    exact = (turned - theirs[columns]).square().flatten(1).mean(1).sqrt()  # the product above rounds
    return _Pairs(kept[0][rows], kept[1][columns], exact, turned, theirs[columns])


def _greedy(distances: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    left, rows, columns = distances.clone(), [], []
    for _ in range(count):
        row, column = divmod(int(left.argmin()), left.shape[1])
        rows.append(row)
        columns.append(column)
        left[row], left[:, column] = torch.inf, torch.inf
    return torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long)


def _distances(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances (N, M) of aligned images and which orientation of `first` gave them.

    |a - b|^2 = |a|^2 + |b|^2 - 2 a b: four matrix products in place of N M differences.
    """
    views, flat = orientations(first.double()).flatten(2), second.double().flatten(1)  # near twins cancel
    best, chosen = torch.stack([view @ flat.T for view in views]).max(0)
    squares = views[0].square().sum(1)[:, None] + flat.square().sum(1)
    return ((squares - 2 * best) / flat.shape[1]).clamp_min(0).sqrt().float(), chosen
