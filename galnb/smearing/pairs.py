"""Galaxies laid side by side: alignment by principal axes, best-matching pairs, distances between pairs."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from galnb.images.imageset import check_images, check_sizes

ROUNDING = 1e-3  # grey levels; x / 255 * 255 may end just below a whole number


@dataclass(frozen=True)
class Pairs:
    """Hold the best-matching pairs, best first; no image stands in two of them.

    Parameters
    ----------
    generated, real : torch.Tensor, shape (count,), int64
        Positions in the two sets that were given.
    distances : torch.Tensor, shape (count,)
        Root of the mean squared difference of pixels in [0, 1], at the best of the four orientations.
    generated_images, real_images : torch.Tensor, shape (count, C, H, W)
        The pairs as they were compared: aligned, the generated one turned and mirrored to fit.

    Notes
    -----
    Chapter: Smearing
    """

    generated: torch.Tensor
    real: torch.Tensor
    distances: torch.Tensor
    generated_images: torch.Tensor
    real_images: torch.Tensor


def active_pixels(images: torch.Tensor) -> torch.Tensor:
    """Count the pixels of each image (B, C, H, W) in [0, 1] that are at least 1 of 255 grey levels.

    Chapter: A GAN for radio galaxies
    """
    check_images(images)
    return (images >= (1 - ROUNDING) / 255).flatten(1).sum(1)


def align(images: torch.Tensor) -> torch.Tensor:
    """Centre each galaxy and turn its longest direction to lie along the rows.

    Parameters
    ----------
    images : torch.Tensor, shape (B, C, H, W)
        Square, in [0, 1].

    Returns
    -------
    torch.Tensor, shape (B, C, H, W)
        Blank images come back as they were: they have no direction.

    Raises
    ------
    ValueError
        If the images break the image convention or are not square.

    Notes
    -----
    The direction is the first principal component of the light: the eigenvector of its second moments about
    its centre. That leaves four orientations, as a turn by 180 degrees and a mirror image have the same
    moments. Here the one is taken whose third moments along both axes are positive; `best_pairs` tries all.
    Pixels are interpolated linearly, which smears a little; black enters from outside. Chapter: Smearing
    """
    check_images(images)
    side = images.shape[-1]
    if images.shape[-2] != side:
        raise ValueError(f"got images of {images.shape[-2]} x {side} px; align needs squares to turn them in")
    grid = (2 * torch.arange(side, dtype=torch.float32, device=images.device) + 1) / side - 1
    light = images.float().sum(1)
    total = light.sum((1, 2)).clamp_min(1e-12)
    # moments need only the sums along each axis and one product
    rows, columns = light.sum(2), light.sum(1)
    x, y = (columns @ grid) / total, (rows @ grid) / total
    xx, yy = (columns @ grid**2) / total - x * x, (rows @ grid**2) / total - y * y
    xy = ((light @ grid) @ grid[:, None])[:, 0] / total - x * y
    angle = 0.5 * torch.atan2(2 * xy, xx - yy)
    blank = images.flatten(1).amax(1) <= 0
    turned = _turn(images, *(torch.where(blank, torch.zeros_like(t), t) for t in (angle, x, y)))
    light = turned.float().sum(1)
    flip_x = (light.sum(1) @ grid**3) < 0  # the centre is at 0 now
    flip_y = (light.sum(2) @ grid**3) < 0
    turned = torch.where(flip_x[:, None, None, None], turned.flip(-1), turned)
    turned = torch.where(flip_y[:, None, None, None], turned.flip(-2), turned)
    return torch.where(blank[:, None, None, None], images, turned)


def _turn(images, angle, x, y):
    """Sample each image in axes turned by `angle` about its centre (x, y), in units of half a side."""
    cosine, sine = angle.cos(), angle.sin()
    affine = torch.stack(
        [torch.stack([cosine, -sine, x], 1), torch.stack([sine, cosine, y], 1)], 1
    )  # (B, 2, 3): output -> input
    grid = functional.affine_grid(affine.to(images.dtype), images.shape, align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False).clamp(0, 1)


def orientations(images: torch.Tensor) -> torch.Tensor:
    """Stack the four images with the same principal axes: (B, C, H, W) -> (4, B, C, H, W).

    Chapter: Smearing
    """
    return torch.stack([images, images.flip(-1), images.flip(-2), images.flip(-1, -2)])


def pair_distances(first: torch.Tensor, second: torch.Tensor | None = None) -> torch.Tensor:
    """Measure how far apart all pairs of galaxies are once they are aligned.

    Parameters
    ----------
    first : torch.Tensor, shape (N, C, H, W)
        Square images in [0, 1].
    second : torch.Tensor, shape (M, C, H, W), optional
        The partners; left out, the images of `first` are paired with each other.

    Returns
    -------
    torch.Tensor, shape (N, M), or (N (N - 1) / 2,) without `second`
        Root of the mean squared difference of the pixels, the least over four orientations.

    Raises
    ------
    ValueError
        If the images break the image convention or their shapes differ.

    Notes
    -----
    Chapter: Smearing
    """
    if second is None:
        count = len(first)
        if count < 2:
            raise ValueError(f"got {count} image; expected at least two to make a pair of")
        upper = torch.triu_indices(count, count, 1)
        aligned = align(first)
        return _distances(aligned, aligned)[0][upper[0], upper[1]]
    _check_partners(first, second)
    return _distances(align(first), align(second))[0]


def best_pairs(generated: torch.Tensor, real: torch.Tensor, *, count: int = 5, min_active: int) -> Pairs:
    """Find the generated and real galaxies that look most alike.

    Parameters
    ----------
    generated : torch.Tensor, shape (N, C, H, W)
        In [0, 1], of one class.
    real : torch.Tensor, shape (M, C, H, W)
        In [0, 1], of the same class.
    count : int
        How many pairs; fewer come back where the images run out.
    min_active : int
        Lit pixels that both images of a pair must have; 0 admits empty images, which then match best.

    Returns
    -------
    Pairs

    Raises
    ------
    ValueError
        If shapes differ, a number is out of range, or no image has so many lit pixels.

    Notes
    -----
    A threshold for a class: a low quantile of the lit pixels of its real galaxies, see `active_pixels`.
    Chapter: Smearing
    """
    check_sizes(count=count)
    _check_partners(generated, real)
    if min_active < 0:
        raise ValueError(f"min_active={min_active}: expected a number of pixels, at least 0")
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
    return Pairs(kept[0][rows], kept[1][columns], exact, turned, theirs[columns])


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
    flat, pixels = second.flatten(1), first[0].numel()
    products = torch.stack([view.flatten(1) @ flat.T for view in orientations(first)])
    best, chosen = products.max(0)
    squares = first.flatten(1).square().sum(1)[:, None] + flat.square().sum(1)
    return ((squares - 2 * best) / pixels).clamp_min(0).sqrt(), chosen


def _check_partners(first: torch.Tensor, second: torch.Tensor) -> None:
    check_images(first, name="generated images")
    check_images(second, name="real images")
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(f"images of {tuple(first.shape[1:])} and of {tuple(second.shape[1:])} cannot be "
                         "compared pixel by pixel; bring them to one size first")  # fmt: skip
