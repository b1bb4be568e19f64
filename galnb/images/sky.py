"""Measure the sky of images: clipped, in the outermost ring, or in the darkest patches along the border.

Chapter 01, Galaxies as pixels. Each estimator has its use: clipping needs a field that is mostly sky; the
ring a stamp whose galaxy ends before its edge; patches tell noise from a neighbour that lies at the border.
"""

import numpy as np
import torch

_PARTS = 8  # a patch measures 1/8 of the shorter side ...
PATCHES = 16  # ... and the darkest 16 of the 28 patches along the border are taken for sky


def sky_level(image: np.ndarray | torch.Tensor, *, clip: float = 3.0) -> tuple[float, float]:
    """Measure level and noise of the sky (median, standard deviation) by sigma clipping.

    image: any shape and unit; NaN pixels are left out, only NaN is a ValueError.
    clip: pixels further than this many standard deviations from the median are dropped, until none are.
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().double()  # NumPy has no bfloat16
    values = np.asarray(image, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    if values.size == 0:
        raise ValueError("image: got no finite pixel, expected at least one; check the mask or the file")
    for _ in range(20):
        distance = np.abs(values - np.median(values))
        kept = values[distance <= clip * 1.4826 * np.median(distance)]  # 1.4826: from MAD to Gaussian sigma
        if kept.size == values.size:
            break
        values = kept
    return float(np.median(values)), float(values.std())


def ring_level(images: torch.Tensor) -> torch.Tensor:
    """Measure the median of the outermost ring of pixels of (B, C, H, W): (B, C, 1, 1)."""
    sides = [images[..., 0, :], images[..., -1, :], images[..., 1:-1, 0], images[..., 1:-1, -1]]
    ring = torch.cat(sides, -1).float()
    pieces = ring.split(max(1, 2**24 // ring[:1].numel()))  # quantile takes no more values at a time
    return torch.cat([piece.quantile(0.5, -1) for piece in pieces])[..., None, None]


def border_patches(images: torch.Tensor) -> torch.Tensor:
    """Cut out the darkest patches along the border of (K, C, H, W): (K, C, PATCHES, p, p), p = side / _PARTS.

    Images below 32 px are a ValueError.
    """
    if min(images.shape[-2:]) < 32:
        raise ValueError(f"got images of {tuple(images.shape[-2:])} px, the sky needs at least 32 x 32")
    images = images.float()
    p = min(images.shape[-2:]) // _PARTS
    rows, columns = images.shape[-2] // p, images.shape[-1] // p
    blocks = images[..., : rows * p, : columns * p].unflatten(-1, (columns, p)).unflatten(-3, (rows, p))
    edge = torch.ones(rows, columns, dtype=torch.bool, device=images.device)
    edge[1:-1, 1:-1] = False
    border = blocks.transpose(-3, -2)[:, :, edge]  # (K, C, patches along the border, p, p)
    darkest = border.mean((1, 3, 4)).argsort(1)[:, None, :PATCHES, None, None]
    return border.gather(2, darkest.expand(-1, border.shape[1], -1, p, p))


def border_noise(images: torch.Tensor) -> torch.Tensor:
    """Measure the noise of the sky of (K, C, H, W), at least 32 px: standard deviation (K, C).

    1.4826 times the median absolute deviation from the median of each of the `border_patches`.
    """
    patches = border_patches(images).flatten(3)
    return 1.4826 * (patches - patches.median(3, keepdim=True).values).abs().flatten(2).median(2).values
