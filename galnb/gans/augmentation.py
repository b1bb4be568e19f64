"""Augmentation that gradients pass through: the discriminator sees true and drawn images changed alike.

Chapter 13, New galaxies.
"""

from dataclasses import dataclass
from numbers import Real

import torch
from torch.nn import functional

from galnb.checks import check_floats, check_generator


@dataclass(frozen=True)
class Augmentation:
    """Say how images are changed before the discriminator sees them.

    hue: probability that the hue of an image is rotated by a random angle.
    translation: largest shift, as a share of the side.
    cutout: probability that a square of 2 (side // 4) + 1 px, about half the side, is blanked.
    ValueError if one is outside [0, 1]. A change with a probability well below 1 does not leak into what the
    generator draws (Karras et al. 2020, NeurIPS 33, 12104).
    """

    hue: float = 0.25
    translation: float = 0.125
    cutout: float = 0.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise ValueError(f"{name} is {value!r}; expected a number from 0 to 1")


def rotate_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate the hue of each image and keep saturation and value; grey stays grey. Differentiable in images.

    images: (B, 3, H, W), RGB of any range: hue depends on differences of channels alone, so [0, 1] and
    [-1, 1] give the same.
    turns: (B,), angle as a share of the full circle; 1/3 makes red green, whole numbers change nothing.
    ValueError if images are not RGB floats, or there is not one angle per image.

    With V = max, C = max - min and the hue h in sixths of the circle, channel n = 5, 3, 1 (red, green, blue)
    is V - C max(0, min(k, 4 - k, 1)) with k = (n + h) mod 6 (HSV; Smith 1978, SIGGRAPH 12, 12).
    """
    check_floats(images)
    if images.ndim != 4 or images.shape[1] != 3 or turns.shape != (len(images),):
        raise ValueError(
            f"images {tuple(images.shape)} and turns {tuple(turns.shape)}: expected (B, 3, H, W), since only "
            "RGB has a hue, and (B,)"
        )
    red, green, blue = images.unbind(1)
    value, brightest = images.max(1)
    chroma = value - images.amin(1)
    safe = chroma.where(chroma > 0, torch.ones_like(chroma))
    around = torch.stack([(green - blue) / safe, (blue - red) / safe + 2, (red - green) / safe + 4], 1)
    hue = around.gather(1, brightest[:, None])[:, 0] + 6 * turns.to(images)[:, None, None]
    parts = []
    for start in (5, 3, 1):
        k = (start + hue) % 6
        parts.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(parts, 1)


def augment(images: torch.Tensor, how: Augmentation, *, generator: torch.Generator) -> torch.Tensor:
    """Change each image at random: hue, place, and a blanked square (Zhao et al. 2020, NeurIPS 33, 7559).

    images: (B, C, S, S), floats in [-1, 1], where -1 is black, as is what moves in from outside the frame.
    generator: on the CPU. The result is differentiable in images. ValueError if images are not square or no
    floats, hue is asked for and they are not RGB, or the generator is none.
    """
    check_floats(images)
    check_generator(generator)
    if images.ndim != 4 or images.shape[-2] != images.shape[-1]:
        raise ValueError(f"images are {tuple(images.shape)}; expected squares (B, C, S, S)")
    count, side = len(images), images.shape[-1]

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator).to(images.device)

    if how.hue:
        chosen, angles = draw(count) < how.hue, draw(count)
        images = torch.where(chosen[:, None, None, None], rotate_hue(images, angles), images)
    reach = round(how.translation * side)
    if reach:
        images = _shifted(images, (draw(2, count) * (2 * reach + 1)).long(), reach)
    if how.cutout:
        chosen, corner = draw(count) < how.cutout, draw(2, count)
        images = torch.where(_square(corner, side) & chosen[:, None, None, None], -1.0, images)
    return images


def _shifted(images: torch.Tensor, start: torch.Tensor, reach: int) -> torch.Tensor:
    """Cut each image out of its black surroundings at its own place; start (2, B) from 0 to 2 reach."""
    framed = functional.pad(images, [reach] * 4, value=-1.0)
    steps = torch.arange(images.shape[-1], device=images.device)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    rows, columns = start[0][:, None, None] + steps[:, None], start[1][:, None, None] + steps
    return framed.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)


def _square(corner: torch.Tensor, side: int) -> torch.Tensor:
    """Mark a square of 2 (side // 4) + 1 px, centred anywhere: (2, B) in [0, 1] -> (B, 1, S, S)."""
    steps = torch.arange(side, device=corner.device)
    near = ((corner * side).long()[..., None] - steps).abs() <= side // 4
    return (near[0][:, :, None] & near[1][:, None, :])[:, None]
