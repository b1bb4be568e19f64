"""Fill what a warped image leaves uncovered: zeros, reflection, or noise like the image's own sky.

Chapter: Blending
"""

import math

import torch
from torch.nn import functional as F


def fill_zeros(frames, grid, coverage, generator):
    """Sample `frames` at `grid` with exact zeros outside, the default of most libraries.

    Chapter: Blending
    """
    return F.grid_sample(frames, grid, align_corners=False)


def fill_reflect(frames, grid, coverage, generator):
    """Sample `frames` at `grid`, mirrored at their edges.

    Chapter: Blending
    """
    return F.grid_sample(frames, grid, padding_mode="reflection", align_corners=False)


def fill_noise(frames, grid, coverage, generator):
    """Sample `frames` at `grid` on an endless sky of the same mean, colour covariance and texture.

    Parameters
    ----------
    frames : torch.Tensor
        (K, C, H, W) in [0, 1].
    grid : torch.Tensor
        (K, h, w, 2), as for `torch.nn.functional.grid_sample`.
    coverage : torch.Tensor
        (K, 1, h, w) in [0, 1]: weight of image data in each sample.
    generator : torch.Generator
        Draws the sky.

    Returns
    -------
    torch.Tensor
        (K, C, h, w) in [0, 1].

    Notes
    -----
    The sky is a periodic tile of spot noise: white noise convolved with patches of the image's own sky, which
    gives it their covariance between channels and between neighbours. The tile goes through the same resampling
    as the image; noise drawn at output resolution would be too strong beside a resampled sky.

    References
    ----------
    Galerne, Gousseau and Morel (2011), IEEE Trans. Image Process. 20, 257.

    Chapter: Blending
    """
    tile = _sky_tile(frames, generator)
    height, width = frames.shape[-2:]
    side = tile.shape[-1]
    position = (grid + 1) * grid.new_tensor([width / 2, height / 2])  # px from the corner of the frame
    wrapped = (position.remainder(side) + 1) * (2 / (side + 2)) - 1  # the tile has a rim of one wrapped px
    sky = F.grid_sample(F.pad(tile, (1, 1, 1, 1), mode="circular"), wrapped, align_corners=False)
    return F.grid_sample(frames, grid, align_corners=False) + (1 - coverage) * sky


def _sky_tile(frames, generator, side=128):
    """(K, C, side, side) periodic sky that looks like the darkest two of the eight corner patches."""
    count, channels, height, width = frames.shape
    patch = max(4, min(side, min(height, width) // 8))
    corners = torch.stack([frames[..., y, x] for y, x in _corner_slices(patch)], 1)
    darkest = corners.mean((2, 3, 4)).argsort(1)[:, :2]
    patches = corners.gather(1, darkest[:, :, None, None, None].expand(-1, -1, *corners.shape[2:]))
    mean = patches.mean((1, 3, 4))[..., None, None]
    spots = (patches - mean[:, None]) / (patch * math.sqrt(patches.shape[1]))
    white = torch.randn(count, patches.shape[1], 1, side, side, generator=generator, device=generator.device)
    spectrum = torch.fft.rfft2(white.to(frames)) * torch.fft.rfft2(spots, s=(side, side))
    return (mean + torch.fft.irfft2(spectrum.sum(1), s=(side, side))).clamp(0, 1)


def _corner_slices(patch):
    first, last = slice(None, patch), slice(-patch, None)
    return [(first, first), (first, last), (last, first), (last, last)]


FILLS = {"zeros": fill_zeros, "reflect": fill_reflect, "noise": fill_noise}
