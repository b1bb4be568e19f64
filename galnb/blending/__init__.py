"""Perturb galaxies, blend N of them by a named rule, return the truth and the footprint of each.

Chapter 02, Blending. Images of any floating type are taken; what comes out is float32.
"""

import math
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch.nn import functional as F

from galnb.blending.fills import FILLS
from galnb.checks import at_least, check_generator, check_kind, one_of
from galnb.images import check_images
from galnb.images.pixels import ring_level


@dataclass(frozen=True)
class Perturbation:
    """Say how other galaxies are drawn; the ranges are those of Reiman and Göhre (2019), MNRAS 485, 2617.

    flip, rotate: mirror each axis with probability 1/2; turn by an angle uniform in [0, 2 pi).
    scale: bounds of the magnification, drawn log-uniformly.
    shift: bounds of the distance from the centre along each axis, as a fraction of the stamp's side.
    fill: what stands where the warped image has no data, a key of `galnb.blending.fills.FILLS`.
    """

    flip: bool = True
    rotate: bool = True
    scale: tuple[float, float] = (math.exp(-1), math.exp(0.5))
    # Their code draws whole numbers, -50..-11 or 10..49 px at 424 px and a crop of 240; here continuous.
    shift: tuple[float, float] = (10 / 240, 49 / 240)
    fill: str = "zeros"

    def __post_init__(self) -> None:
        if torch.as_tensor(self.scale).shape != (2,) or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale is {self.scale}; expected two finite numbers, 0 < low <= high")
        if torch.as_tensor(self.shift).shape != (2,) or not 0 <= self.shift[0] <= self.shift[1] < 1:
            raise ValueError(f"shift is {self.shift}; expected fractions of the side, 0 <= low <= high < 1")
        one_of("fill", self.fill, FILLS)


@dataclass(frozen=True)
class Blends:
    """Hold blended images with their truth.

    blended: (B, C, H, W) in [0, 1].
    galaxies: (B, N, C, H, W) in [0, 1]: what went in; galaxy 0 is centred and unperturbed.
    footprints: (B, N, 1, H, W) bool: False where fill took part in a pixel.
    offsets: (B, N, 2): place of each galaxy, x to the right and y down from the stamp's centre, px.
    scales: (B, N): magnification of each galaxy.
    """

    blended: torch.Tensor
    galaxies: torch.Tensor
    footprints: torch.Tensor
    offsets: torch.Tensor
    scales: torch.Tensor

    def __post_init__(self) -> None:
        b, n, *stamp = self.galaxies.shape
        shapes = {"blended": (b, *stamp), "footprints": (b, n, 1, *stamp[1:]), "offsets": (b, n, 2)}
        for name, expected in {**shapes, "scales": (b, n)}.items():
            if (got := tuple(getattr(self, name).shape)) != expected:
                raise ValueError(f"{name}: got shape {got}; expected {expected}, galaxies (B, N, C, H, W)")
        if self.footprints.dtype != torch.bool:
            raise ValueError(f"footprints: got {self.footprints.dtype}, expected torch.bool")

    def __len__(self) -> int:
        return len(self.blended)


def _blend_sum(galaxies: torch.Tensor) -> torch.Tensor:
    """Add the light of (B, N, C, H, W) above the first's sky: first + sum(others - sky), cut to [0, 1]."""
    sky = ring_level(galaxies[:, 0])
    return (galaxies.sum(1) - (galaxies.shape[1] - 1) * sky).clamp(0, 1)


# The brightest galaxy of (B, N, C, H, W) hides the rest, or their light adds up.
BLEND_RULES = {"max": partial(torch.amax, dim=1), "sum": _blend_sum}
_PIECE = 2**22  # input values that are warped at a time


def make_blends(
    images: torch.Tensor,
    *,
    rule: str = "max",
    count: int = 2,
    perturbation: Perturbation = Perturbation(),
    generator: torch.Generator,
    crop: int | None = None,
    size: int | None = None,
    partners: torch.Tensor | None = None,
) -> Blends:
    """Blend every image with `count - 1` perturbed others.

    images: (B, C, H, W) in [0, 1]; image i is galaxy 0 of blend i.
    rule: how light adds up, a key of `BLEND_RULES`.
    count: galaxies in each blend, at least 2; no image is drawn twice for one blend.
    perturbation: ranges and fill of the warp.
    generator: source of all randomness. Equal seeds give equal geometry under every fill and rule.
    crop: side of the centred square that is kept after the warp, which sees the whole image; default: all.
        Reiman and Göhre (2019) take 240 of 424 px, and size 80.
    size: side of the stamps, by box averages of crop / size pixels; default: `crop`.
    partners: (M, C, H', W') in [0, 1], of which the perturbed galaxies are drawn in place of `images`. If it
        holds the images too, one may meet itself, as in the code of Reiman and Göhre.
    """
    images = check_images(images)
    bank = images if partners is None else check_images(partners, name="partners")
    one_of("rule", rule, BLEND_RULES)
    at_least(2, count=count)
    check_generator(generator)
    check_kind(Perturbation, 'such as Perturbation(fill="noise")', perturbation=perturbation)
    crop, size = fitting_sizes(images, crop, size)
    area = (crop // size) ** 2
    if bank.shape[1] != images.shape[1]:
        raise ValueError(f"partners: got {bank.shape[1]} channels, expected {images.shape[1]} as in images")
    others = _draw_others(len(images), bank, count, generator, with_self=partners is not None)
    shift, scale, matrix = _draw_geometry(others.shape, perturbation, generator, images.device)
    galaxies = images.new_empty(len(images), count, images.shape[1], size, size)
    footprints = torch.ones(len(images), count, 1, size, size, dtype=torch.bool, device=images.device)
    galaxies[:, 0] = _boxes(centre(images, crop), size, torch.add) / area
    # In pieces, whose intermediate results stay small: faster, and memory is bounded.
    for part in torch.arange(len(images)).split(max(1, _PIECE // bank[:1].numel() // (count - 1))):
        grid, covered = _sampling_grid(matrix[part].flatten(0, 1), shift[part].flatten(0, 1), bank, crop)
        pixels = FILLS[perturbation.fill](bank[others[part].flatten()], grid, generator)
        galaxies[part, 1:] = _boxes(pixels, size, torch.add).unflatten(0, (-1, count - 1)) / area
        footprints[part, 1:] = _boxes(covered, size, torch.logical_and).unflatten(0, (-1, count - 1))
    offsets, scales = F.pad(size * shift, (0, 0, 1, 0)), F.pad(scale, (1, 0), value=1.0)
    return Blends(BLEND_RULES[rule](galaxies), galaxies, footprints, offsets, scales)


def fixed_shift_blends(images: torch.Tensor, *, shift: int = 50, generator: torch.Generator) -> Blends:
    """Blend each image with another one, `shift` pixels to the right, by the per-pixel maximum.

    images: (B, C, H, W) in [0, 1], at least two.
    shift: pixels, 0 <= shift < W; the strip left behind is 0. generator: draws the pairs.

    Usaid, Ahmed and Jamal, "Deblending Galaxies Using Generative Adversarial Networks" (Habib University).
    """
    images = check_images(images)
    at_least(0, shift=shift)
    check_generator(generator)
    batch, _, height, width = images.shape
    if shift >= width:
        raise ValueError(f"shift is {shift}; expected 0 <= shift < {width}, the width of the images")
    second = images[_draw_others(batch, images, 2, generator)[:, 0], :, :, : width - shift]
    galaxies = torch.stack([images, F.pad(second, (shift, 0))], 1)
    footprints = torch.ones(batch, 2, 1, height, width, dtype=torch.bool, device=images.device)
    footprints[:, 1, ..., :shift] = False
    offsets = images.new_tensor([[0, 0], [shift, 0]]).repeat(batch, 1, 1)
    return Blends(galaxies.amax(1), galaxies, footprints, offsets, images.new_ones(batch, 2))


def segment(blends: Blends, *, noise: float, generator: torch.Generator) -> torch.Tensor:
    """Invert a maximum blend: give each galaxy the pixels that it won, and noise elsewhere.

    noise: standard deviation of the Gaussian noise in the removed pixels, >= 0. generator: draws it.

    Returns (B, N, C, H, W) in [0, 1], "half galaxies". The report of `fixed_shift_blends` states no exact
    rule. Ours: a galaxy keeps the pixels where its mean of channels is the highest; on a tie both do.
    """
    check_kind(Blends, "what make_blends(images, ...) returns", blends=blends)
    at_least(0.0, noise=noise)
    check_generator(generator)
    luminance = blends.galaxies.mean(2, keepdim=True)
    kept = luminance == luminance.amax(1, keepdim=True)
    drawn = noise * torch.randn(blends.galaxies.shape, generator=generator, device=generator.device)
    return torch.where(kept, blends.blended[:, None], drawn.clamp(0, 1).to(blends.blended))


def fitting_sizes(images: torch.Tensor, crop: int | None, size: int | None) -> tuple[int, int]:
    """Return crop and size of the stamps of (B, C, H, W), defaults filled in; refuse what does not fit."""
    height, width = images.shape[-2:]
    crop = min(height, width) if crop is None else crop
    size = crop if size is None else size
    at_least(1, crop=crop, size=size)
    if crop % size:
        raise ValueError(f"crop is {crop}, size {size}; expected crop to be a multiple of size")
    if crop > min(height, width) or (height - crop) % 2 or (width - crop) % 2:
        raise ValueError(f"crop is {crop}; {height} x {width} px need an even margin >= 0")
    return crop, size


def _draw_others(batch, bank, count, generator, *, with_self=False) -> torch.Tensor:
    """(batch, count - 1) indices into the bank, distinct within a blend and, without self, from its own."""
    needed = count - 1 if with_self else count
    if len(bank) < needed:
        raise ValueError(f"got {len(bank)} images for blends of {count} galaxies; expected at least {needed}")
    lots = torch.rand(batch, len(bank), generator=generator, device=generator.device)
    if not with_self:
        lots.fill_diagonal_(-1)
    return lots.topk(count - 1, 1).indices.to(bank.device)


def _draw_geometry(shape, perturbation, generator, device):
    """Shifts (B, N - 1, 2) in units of the side, scales, matrices (..., 2, 2) from stamp back to image."""
    draw = torch.rand(*shape, 8, generator=generator, device=generator.device).to(device)
    sign = 1 - 2 * draw[..., :4].round()
    mirror, side = sign[..., :2] if perturbation.flip else torch.ones_like(sign[..., :2]), sign[..., 2:]
    angle = 2 * math.pi * draw[..., 4] * perturbation.rotate
    low, high = map(math.log, perturbation.scale)
    scale = torch.exp(low + (high - low) * draw[..., 5])
    low, high = perturbation.shift
    shift = side * (low + (high - low) * draw[..., 6:])
    cos, sin = angle.cos() / scale, angle.sin() / scale
    turn_back = torch.stack([cos, sin, -sin, cos], -1).unflatten(-1, (2, 2))
    return shift, scale, mirror[..., None] * turn_back


def _sampling_grid(matrix, shift, bank, crop) -> tuple[torch.Tensor, torch.Tensor]:
    """Grid (K, crop, crop, 2) for `grid_sample`, and where it meets image data alone (K, 1, crop, crop)."""
    frame = torch.tensor([bank.shape[-1], bank.shape[-2]], device=matrix.device)  # width, height
    matrix = matrix * (crop / frame)[:, None]  # -1 ... 1 across the stamp -> -1 ... 1 across the frame
    origin = -2 * matrix @ shift[..., None]
    along = (torch.arange(crop, device=matrix.device) + 0.5) * (2 / crop) - 1
    columns, rows = matrix[:, :, 0, None] * along + origin, matrix[:, :, 1, None] * along
    places = rows[..., None] + columns[:, :, None]  # (K, x and y, crop, crop)
    # Real as far as the centre of the last pixel, 0.001 px of slack for float32; further out fill takes part.
    x, y = (places.abs() <= (1 - (1 - 0.002) / frame)[:, None, None]).unbind(1)
    return places.permute(0, 2, 3, 1), (x & y)[:, None]


def centre(images: torch.Tensor, crop: int) -> torch.Tensor:
    """Cut the central square (..., crop, crop) out of images (..., H, W)."""
    top, left = ((side - crop) // 2 for side in images.shape[-2:])
    return images[..., top : top + crop, left : left + crop]


def _boxes(images: torch.Tensor, size: int, join) -> torch.Tensor:
    """Join the pixels of each box of (..., S, S) to (..., size, size), 3 times as fast as avg_pool2d."""
    step = images.shape[-1] // size
    rows = reduce(join, [images[..., i::step, :] for i in range(step)])
    return reduce(join, [rows[..., i::step] for i in range(step)])
