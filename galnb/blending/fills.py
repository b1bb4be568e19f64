"""Fill what a warped image leaves uncovered: zeros, reflection, or noise like the image's own sky.

Chapters 02 (Blending) and 09 (The phantom boundary). A fill takes `frames` (K, C, H, W) in [0, 1], a `grid`
(K, h, w, 2) of `torch.nn.functional.grid_sample` and a `generator`; it returns samples (K, C, h, w).
"""

import torch
from torch.nn import functional as F

from galnb.checks import check_generator
from galnb.images import check_images
from galnb.images.pixels import PATCHES, border_noise, border_patches


def fill_zeros(frames: torch.Tensor, grid: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Sample with exact zeros outside, the default of most libraries."""
    return F.grid_sample(frames.to(grid.dtype), grid, align_corners=False)


def _fill_reflect(frames: torch.Tensor, grid: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Sample frames that are mirrored at their edges."""
    return F.grid_sample(frames.to(grid.dtype), grid, padding_mode="reflection", align_corners=False)


def fill_noise(frames: torch.Tensor, grid: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Sample frames in an endless sky of noise like their own (`sky_tile`), resampled as they are."""
    tile = sky_tile(frames, generator=generator)
    side = tile.shape[-1]
    half = grid.new_tensor([frames.shape[-1] / 2, frames.shape[-2] / 2])
    position = (grid + 1) * half  # px from the corner of the frame
    wrapped = (position.remainder(side) + 1) * (2 / (side + 2)) - 1  # the tile gets a rim of one wrapped px
    tile = F.pad(tile.to(grid.dtype), (1, 1, 1, 1), mode="circular")
    sky = F.grid_sample(tile, wrapped, align_corners=False)
    # Bilinear weight of real pixels: 1 as far as the centre of the last pixel, 0 one pixel further out.
    weight = ((1 - grid.abs()) * half + 0.5).clamp_(0, 1).prod(-1)[:, None]
    return fill_zeros(frames, grid, generator) + (1 - weight) * sky


def sky_tile(frames: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    """Draw noise that cannot be told from the sky of each frame.

    frames: (K, C, H, W) in [0, 1], at least 32 px wide and high, else a ValueError.
    generator: draws the noise.

    Returns (K, C, S, S), periodic, S = the power of two up to the shorter side. Spot noise (Galerne,
    Gousseau and Morel 2011, IEEE Trans. Image Process. 20, 257): white noise convolved with patches of sky
    has their covariance between neighbours and channels. Its Gaussian values are mapped, channel by channel,
    to the quantiles of the patches: the sky of an 8-bit image is skewed and cut at 0. On 400 Galaxy Zoo
    images at 0.4, 0.5 and 0.65 of their size 96, 97, 93 % of fills pass a Kolmogorov-Smirnov test at the 1 %
    level against their own sky; its upper half against its lower half passes in 98, 94 and 92 %.
    """
    check_generator(generator)
    frames = check_images(frames, name="frames")
    side = 2 ** (min(frames.shape[-2:]).bit_length() - 1)
    patches = border_patches(frames)  # (K, C, PATCHES, p, p)
    spots = (patches - patches.mean((2, 3, 4), keepdim=True)).unflatten(2, (4, PATCHES // 4))
    spots = spots.transpose(3, 4).flatten(4, 5).flatten(2, 3)  # one sheet, 4 patches high, 4 wide
    white = torch.randn(len(frames), 1, side, side, generator=generator, device=generator.device).to(patches)
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * torch.fft.rfft2(spots, s=(side, side)), s=(side, side))
    noise = noise - noise.mean((2, 3), keepdim=True)
    noise = noise / noise.square().mean((2, 3), keepdim=True).sqrt().clamp_min(1e-12)  # a flat sky stays flat
    values = patches.flatten(2)
    values = values[..., :: max(1, values.shape[-1] // 4096)]  # neighbours are alike: a part tells enough
    return _to_quantiles(noise, values.sort(-1).values)


def restore_noise(
    images: torch.Tensor, originals: torch.Tensor, *, generator: torch.Generator
) -> torch.Tensor:
    """Add the sky noise that resampling took away.

    images: (K, C, H, W) in [0, 1]: what a warp left, without fill of zeros.
    originals: (K, C, H', W') in [0, 1]: the images before, at the pixel scale of `images`; at least 32 px.
    generator: draws the noise.

    Returns (K, C, H, W), clipped to [0, 1]. What is added looks like the sky of the original (`sky_tile`)
    and has the variance that is missing, if any. On 300 Galaxy Zoo stamps, turned and moved, the noise was
    0.84 of the original's in the median (16 to 84 %: 0.77 to 0.93), and restored 1.00 (0.96 to 1.04).
    """
    images, originals = check_images(images), check_images(originals, name="originals")
    if images.shape[:2] != originals.shape[:2]:
        raise ValueError(f"got {images.shape[:2]} and {originals.shape[:2]} images and channels: must match")
    wanted, found = border_noise(originals), border_noise(images)
    tile = sky_tile(originals, generator=generator)
    tile = tile - tile.mean((2, 3), keepdim=True)
    own = (1.4826 * tile.flatten(2).abs().median(2).values).clamp_min(1e-12)
    missing = (wanted.square() - found.square()).clamp_min(0).sqrt() / own
    rows, columns = (torch.arange(size) % tile.shape[-1] for size in images.shape[-2:])
    noise = tile[..., rows[:, None], columns]
    return (images + missing[..., None, None] * noise).clamp(0, 1)


def _to_quantiles(noise: torch.Tensor, ordered: torch.Tensor, levels: int = 256) -> torch.Tensor:
    """Map standard normal values (K, C, S, S) to the distribution of ordered ones (K, C, n)."""
    table = ordered[..., ((torch.arange(levels) + 0.5) / levels * ordered.shape[-1]).long()]
    rank = (torch.special.ndtr(noise) * levels - 0.5).clamp(0, levels - 1).flatten(2)
    lower = rank.long().clamp(max=levels - 2)
    return torch.lerp(table.gather(2, lower), table.gather(2, lower + 1), rank - lower).view_as(noise)


FILLS = {"zeros": fill_zeros, "reflect": _fill_reflect, "noise": fill_noise}
