"""Compose a blend by hand, and ask a network about it; the figure and the widgets are in the chapter.

Chapter 08, The explorer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from galnb.blending import BLEND_RULES
from galnb.blending.fills import FILLS
from galnb.checks import check_floats, check_kind, one_of
from galnb.gans import Gan
from galnb.images import check_images
from galnb.relevance import Polarized, deletion_gate, polarized_relevance


@dataclass(frozen=True)
class Placement:
    """Say where the second galaxy of a blend stands.

    x, y: px from the centre, to the right and down
    angle: degrees, counter-clockwise
    scale, flux: magnification, > 0; factor on the light above the sky, >= 0
    """

    x: float = 10.0
    y: float = 0.0
    angle: float = 0.0
    scale: float = 1.0
    flux: float = 1.0

    def __post_init__(self) -> None:
        finite = all(math.isfinite(value) for value in vars(self).values())
        if not (finite and self.scale > 0 and self.flux >= 0):
            raise ValueError(f"got {self}; expected finite numbers, scale > 0 and flux >= 0")


@dataclass(frozen=True)
class Examination:
    """Hold what a discriminator says about one image (C, H, W) in [0, 1].

    maps: its answer, a batch of one
    positive, negative: (1, H, W) >= 0, both maps per pixel
    gate: changes of the logit by `galnb.relevance.deletion_gate`, positive map first
    """

    image: torch.Tensor
    maps: Polarized
    positive: torch.Tensor
    negative: torch.Tensor
    gate: tuple[float, float]


def compose(
    first: torch.Tensor,
    second: torch.Tensor,
    placement: Placement,
    *,
    rule: str = "max",
    fill: str = "noise",
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend two galaxies as placed by hand; return the blend (C, H, W) and the truth (2, C, H, W).

    first, second: (C, H, W) in [0, 1], square, of one shape; the first stays in the centre
    rule, fill: keys of `galnb.blending.BLEND_RULES` and `galnb.blending.fills.FILLS`
    generator: for fills that draw noise
    """
    check_kind(Placement, "such as Placement(x=10.0)", placement=placement)
    for name, image in (("first", first), ("second", second)):
        check_floats(image, name=name)
        check_images(image[None], name=name)
    if first.shape != second.shape or first.shape[1] != first.shape[2]:
        got = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"got galaxies of shape {got}; expected two square images of one shape")
    one_of("rule", rule, BLEND_RULES)
    one_of("fill", fill, FILLS)
    angle, size = math.radians(placement.angle), first.shape[-1]
    cos, sin = math.cos(angle) / placement.scale, math.sin(angle) / placement.scale
    back = torch.tensor([[cos, -sin], [sin, cos]])  # rows run down, so this turns counter-clockwise
    shift = torch.tensor([[placement.x], [placement.y]]) * (2 / size)
    grid = F.affine_grid(torch.cat([back, -back @ shift], 1)[None], [1, 1, size, size], align_corners=False)
    moved = FILLS[fill](second[None], grid, generator)[0]
    sky = second.flatten(1).median(1).values[:, None, None]
    galaxies = torch.stack([first, (sky + placement.flux * (moved - sky)).clamp(0, 1)])
    return BLEND_RULES[rule](galaxies[None])[0], galaxies


def examine(
    gan: Gan,
    image: torch.Tensor,
    *,
    reading: str = "reference",
    references: torch.Tensor | None = None,
    generator: torch.Generator,
) -> Examination:
    """Ask the discriminator of a GAN about one image: score, both maps, deletion gate.

    image: (C, H, W) in [0, 1]
    reading: key of `galnb.relevance.READINGS`
    references: (K, C, H, W) in [0, 1], used by reading "reference" only; the image is none of them
    generator: draws the sky noise of the gate
    """
    check_kind(Gan, "such as load_checkpoint(...).gan", gan=gan)
    check_floats(image, name="image")
    check_images(image[None], name="image")
    given = gan.prepare(image[None])
    others = gan.prepare(references) if reading == "reference" and references is not None else None
    maps = polarized_relevance(gan.discriminator, given, reading=reading, references=others)
    gate = deletion_gate(gan.discriminator, given, maps, generator=generator)[0]
    positive, negative = (part[0] for part in maps.per_pixel())
    return Examination(image, maps, positive, negative, tuple(gate.tolist()))


def radial_profile(maps: torch.Tensor, *, width: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Average square maps (B, C, H, W) over rings about their centre, channels added.

    width: of a ring, px; rings that leave the image are left out
    Returns the middle of each ring (R,), px, and the mean per pixel of the ring (B, R).
    """
    check_floats(maps, name="maps", finite=True)
    if maps.ndim != 4 or maps.shape[-1] != maps.shape[-2] or not 0 < width <= maps.shape[-1] / 2:
        raise ValueError(f"got shape {tuple(maps.shape)}, width {width}; expected square (B, C, H, W) maps")
    size = maps.shape[-1]
    line = torch.arange(size) - (size - 1) / 2
    ring = (torch.hypot(line, line[:, None]) / width).long().flatten()
    count = int(size / 2 / width)
    member = F.one_hot(ring.clamp(max=count), count + 1)[:, :count].to(maps)
    return (torch.arange(count) + 0.5) * width, maps.sum(1).flatten(1) @ member / member.sum(0)


def gate_verdicts(gate: Sequence[float]) -> tuple[str, str]:
    """Say "passed", "FAILED" or "empty map" for both changes of the logit."""
    wanted = zip(gate, (-1, 1), strict=True)
    return tuple("passed" if x * sign > 0 else "FAILED" if x else "empty map" for x, sign in wanted)
