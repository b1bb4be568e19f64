"""Perturb galaxies, blend N of them by a named rule, and return the truth and the footprint of each.

Chapter: Blending
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from galnb.fills import FILLS
from galnb.images import check_images


def _look_up(table, name, kind):
    if name not in table:
        raise ValueError(f"got {kind} {name!r}, expected one of {sorted(table)}")
    return table[name]


@dataclass(frozen=True)
class Perturbation:
    """Ranges from which the flip, turn, magnification and shift of a second galaxy are drawn.

    Parameters
    ----------
    flip : bool
        Mirror each axis with probability 1/2.
    rotate : bool
        Turn by an angle uniform in [0, 2 pi).
    scale : (float, float)
        Bounds of the magnification, drawn log-uniformly; 0.5 shows the galaxy at half its size.
    shift : (float, float)
        Bounds of the distance along each axis as a fraction of the stamp's side, with a random sign.
    fill : str
        What stands where a warped image has no data, a key of `FILLS`.

    Raises
    ------
    ValueError
        If a range is empty or out of bounds, or the fill is unknown.

    References
    ----------
    Reiman and Göhre (2019), MNRAS 485, 2617. Their code shifts by one of the whole numbers -50..-11 or
    10..49 px at 424 px, around a crop of 240 px; here the magnitude is continuous and both signs agree.

    Chapter: Blending
    """

    flip: bool = True
    rotate: bool = True
    scale: tuple[float, float] = (math.exp(-1), math.exp(0.5))
    shift: tuple[float, float] = (10 / 240, 49 / 240)
    fill: str = "zeros"

    def __post_init__(self):
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise ValueError(f"got scale {self.scale}, expected 0 < low <= high")
        low, high = self.shift
        if not 0 <= low <= high < 1:
            raise ValueError(f"got shift {self.shift}, expected 0 <= low <= high < 1 (fractions of the side)")
        _look_up(FILLS, self.fill, "fill")


@dataclass(frozen=True)
class Blends:
    """Blended images with their truth.

    Parameters
    ----------
    blended : torch.Tensor
        (B, C, H, W) in [0, 1].
    galaxies : torch.Tensor
        (B, N, C, H, W) in [0, 1]: what went in; galaxy 0 is the unperturbed, centred one.
    footprints : torch.Tensor
        (B, N, 1, H, W) bool: True where a galaxy's pixels rest on image data alone, False where fill took part.
    offsets : torch.Tensor
        (B, N, 2): shift (x to the right, y downwards) of each galaxy from the centre, in pixels.
    scales : torch.Tensor
        (B, N): magnification of each galaxy.

    Raises
    ------
    ValueError
        If the shapes disagree.

    Chapter: Blending
    """

    blended: torch.Tensor
    galaxies: torch.Tensor
    footprints: torch.Tensor
    offsets: torch.Tensor
    scales: torch.Tensor

    def __post_init__(self):
        if self.galaxies.ndim != 5:
            raise ValueError(f"got galaxies of shape {tuple(self.galaxies.shape)}, expected (B, N, C, H, W)")
        b, n, c, h, w = self.galaxies.shape
        expected = {"blended": (b, c, h, w), "footprints": (b, n, 1, h, w), "offsets": (b, n, 2), "scales": (b, n)}
        for name, shape in expected.items():
            if (got := tuple(getattr(self, name).shape)) != shape:
                raise ValueError(f"got {name} of shape {got}, expected {shape} from galaxies {(b, n, c, h, w)}")
        if self.footprints.dtype != torch.bool:
            raise ValueError(f"got footprints of {self.footprints.dtype}, expected torch.bool")

    def __len__(self):
        return len(self.blended)


def make_blends(
    images,
    *,
    rule="max",
    count=2,
    perturbation=Perturbation(),
    generator,
    crop=None,
    size=None,
    partners=None,
):
    """Blend every image with `count - 1` perturbed others.

    Parameters
    ----------
    images : torch.Tensor
        (B, C, H, W) in [0, 1]; image i becomes galaxy 0 of blend i, centred and unperturbed.
    rule : str
        How light adds up, a key of `BLEND_RULES`.
    count : int
        Galaxies in each blend, at least 2.
    perturbation : Perturbation
        Ranges and fill of the warp.
    generator : torch.Generator
        Source of all randomness. The geometry is drawn first, so equal seeds give equal geometry for all fills.
    crop : int, optional
        Side in pixels of the centred square that is kept after the warp; default: the shorter side.
        The warp sees the whole image, so a crop leaves less to be filled.
    size : int, optional
        Side of the stamps returned, by box average of crop / size pixels; default: `crop`.
    partners : torch.Tensor, optional
        (M, C, H', W') in [0, 1], from which the perturbed galaxies are drawn in place of `images`.
        A bank that holds the images too may blend one with itself, as in the reference code.

    Returns
    -------
    Blends
        Stamps of `size` pixels. Inside one blend no image is drawn twice.

    Raises
    ------
    ValueError
        If a name is unknown, sizes do not fit, or there are too few images.

    Notes
    -----
    Galaxy Zoo by the protocol of Reiman and Göhre: 424-px images, ``crop=240, size=80``.

    Chapter: Blending
    """
    check_images(images)
    if partners is not None:
        check_images(partners, name="partners")
    blend = _look_up(BLEND_RULES, rule, "rule")
    bank = images if partners is None else partners
    crop, size = _check_sizes(images, bank, crop, size)
    batch, others = len(images), _draw_others(images, partners, count, generator)
    geometry = _draw_geometry(others.numel(), perturbation, generator, images.device)
    pixels, covered = _warp(bank[others.flatten()], geometry, crop, size, FILLS[perturbation.fill], generator)
    first = _shrink(_centre(images, crop), size)
    galaxies = torch.cat([first[:, None], pixels.unflatten(0, (batch, -1))], 1)
    footprints = torch.cat([covered.new_ones(batch, 1, 1, size, size), covered.unflatten(0, (batch, -1))], 1)
    offsets = F.pad(geometry["shift"].view(batch, -1, 2) * size, (0, 0, 1, 0))
    scales = F.pad(geometry["scale"].view(batch, -1), (1, 0), value=1.0)
    return Blends(blend(galaxies), galaxies, footprints, offsets, scales)


def blend_max(galaxies):
    """Return the per-pixel, per-channel maximum of (B, N, C, H, W): the brightest galaxy hides the others.

    Chapter: Blending
    """
    return galaxies.amax(1)


def blend_sum(galaxies):
    """Add light above the sky of the first galaxy, cut to [0, 1].

    Parameters
    ----------
    galaxies : torch.Tensor
        (B, N, C, H, W) in [0, 1].

    Returns
    -------
    torch.Tensor
        (B, C, H, W): first + sum(others - sky), sky = per-channel median of the first's outermost ring of pixels.

    Notes
    -----
    One sky for all: where a zero fill stands in another galaxy, the sum falls below the first's own sky.

    Chapter: Blending
    """
    first = galaxies[:, 0]
    ring = torch.cat(
        [first[..., 0, :], first[..., -1, :], first[..., 1:-1, 0], first[..., 1:-1, -1]], -1
    )  # (B, C, ring)
    sky = ring.quantile(0.5, -1)[..., None, None]
    return (galaxies.sum(1) - (galaxies.shape[1] - 1) * sky).clamp(0, 1)


def fixed_shift_blends(images, *, shift=50, generator):
    """Blend each image with another one moved `shift` pixels to the right, by the per-pixel maximum.

    Parameters
    ----------
    images : torch.Tensor
        (B, C, H, W) in [0, 1], at least two.
    shift : int
        Pixels to the right, 0 <= shift < W; the strip left behind is 0.
    generator : torch.Generator
        Draws the pairs.

    Returns
    -------
    Blends
        N = 2 at the size of the images.

    Raises
    ------
    ValueError
        If there are fewer than two images or the shift leaves the image.

    Notes
    -----
    The fixed geometry of the Habib University report: Galaxy Zoo at 424 px, 50 px.

    Chapter: Blending
    """
    check_images(images)
    batch, _, height, width = images.shape
    if not 0 <= shift < width:
        raise ValueError(f"got shift {shift}, expected 0 <= shift < {width}, the width of the images")
    second = images[_draw_others(images, None, 2, generator)[:, 0]]
    second = F.pad(second[..., : width - shift], (shift, 0))
    galaxies = torch.stack([images, second], 1)
    footprints = images.new_ones(batch, 2, 1, height, width).bool()
    footprints[:, 1, ..., :shift] = False
    offsets = images.new_tensor([[0.0, 0.0], [shift, 0.0]]).repeat(batch, 1, 1)
    return Blends(blend_max(galaxies), galaxies, footprints, offsets, images.new_ones(batch, 2))


def segment(blends, *, noise, generator):
    """Invert a maximum blend: give each galaxy the pixels that it won, and noise elsewhere.

    Parameters
    ----------
    blends : Blends
        Blends with their truth.
    noise : float
        Standard deviation of the Gaussian noise in the removed pixels, >= 0.
    generator : torch.Generator
        Draws the noise.

    Returns
    -------
    torch.Tensor
        (B, N, C, H, W) in [0, 1]: "half galaxies".

    Raises
    ------
    ValueError
        If the noise is negative.

    Notes
    -----
    The report (Habib University) does not state its exact rule. Ours: galaxy k keeps the pixels in which its
    luminance (channel mean) is that of the brightest galaxy, ``{B = x}`` and ``{B = y}``; ties stay in both.
    Removed pixels are 0 plus the noise, cut to [0, 1].

    Chapter: Blending
    """
    if not 0 <= noise < math.inf:
        raise ValueError(f"got noise {noise}, expected a standard deviation >= 0")
    luminance = blends.galaxies.mean(2, keepdim=True)
    kept = luminance == luminance.amax(1, keepdim=True)
    removed = noise * torch.randn(blends.galaxies.shape, generator=generator, device=generator.device)
    return torch.where(kept, blends.blended[:, None], removed.to(kept.device).clamp(0, 1))


def _warp(frames, geometry, crop, size, fill, generator):
    """Return the perturbed crops (K, C, size, size) and where they are covered (K, 1, size, size)."""
    frame = torch.tensor([frames.shape[-1], frames.shape[-2]], device=frames.device)  # width, height
    to_frame = geometry["matrix"] * (crop / frame)[:, None]  # stamp in [-1, 1] -> frame in [-1, 1]
    origin = -(to_frame @ (2 * geometry["shift"])[..., None])
    grid = F.affine_grid(torch.cat([to_frame, origin], 2), (len(frames), 1, crop, crop), align_corners=False)
    # Bilinear weight of real pixels: 1 up to the centre of the last pixel, 0 one pixel further out.
    coverage = ((1 - grid.abs()) * (frame / 2) + 0.5).clamp(0, 1).prod(-1)[:, None]
    pixels = fill(frames, grid, coverage, generator).clamp(0, 1)
    covered = (coverage > 0.999).float()  # 0.001 px of slack for float32 coordinates
    return _shrink(pixels, size), _shrink(covered, size) > 1 - 0.5 * (size / crop) ** 2


def _draw_geometry(count, perturbation, generator, device):
    """Draw shifts (K, 2) as fractions of the side, scales (K,) and output-to-input matrices (K, 2, 2)."""
    draw = torch.rand(count, 8, generator=generator, device=generator.device).to(device)
    flip = torch.where(draw[:, 0:2] < 0.5, -1.0, 1.0) if perturbation.flip else torch.ones_like(draw[:, 0:2])
    angle = 2 * math.pi * draw[:, 2] * perturbation.rotate
    low, high = map(math.log, perturbation.scale)
    scale = torch.exp(low + (high - low) * draw[:, 3])
    low, high = perturbation.shift
    shift = (low + (high - low) * draw[:, 4:6]) * torch.where(draw[:, 6:8] < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    turn_back = torch.stack([cos, sin, -sin, cos], -1).view(count, 2, 2)
    return {"shift": shift, "scale": scale, "matrix": flip[..., None] * turn_back}


def _draw_others(images, partners, count, generator):
    """Draw (B, count - 1) indices into the bank, distinct inside a blend."""
    batch, bank = len(images), len(images if partners is None else partners)
    needed = count if partners is None else count - 1
    if count < 2:
        raise ValueError(f"got count {count}, expected at least 2 galaxies in each blend")
    if bank < needed:
        raise ValueError(f"got {bank} images for blends of {count} galaxies, expected at least {needed}")
    lot = torch.rand(batch, bank, generator=generator, device=generator.device)
    if partners is None:
        lot.fill_diagonal_(-1)  # never the image itself
    return lot.topk(count - 1, dim=1).indices.to(images.device)


def _check_sizes(images, bank, crop, size):
    crop = min(images.shape[-2:]) if crop is None else crop
    size = crop if size is None else size
    if crop < 1 or size < 1 or crop % size:
        raise ValueError(f"got crop {crop} and size {size}, expected positive sizes, crop a multiple of size")
    if bank.shape[1] != images.shape[1]:
        raise ValueError(f"got partners with {bank.shape[1]} channels, expected {images.shape[1]} as in images")
    margins = [side - crop for side in images.shape[-2:]]
    if min(margins) < 0 or any(margin % 2 for margin in margins):
        raise ValueError(f"got crop {crop} of images {tuple(images.shape[-2:])}, expected an even margin >= 0")
    return crop, size


def _centre(images, crop):
    top, left = ((side - crop) // 2 for side in images.shape[-2:])
    return images[..., top : top + crop, left : left + crop]


def _shrink(images, size):
    return F.avg_pool2d(images, images.shape[-1] // size)


BLEND_RULES = {"max": blend_max, "sum": blend_sum}
