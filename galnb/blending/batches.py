"""Endless batches, each drawn from a seed and its number alone: a run can be continued exactly.

Chapters 04 (The deblender GAN), 10 (A GAN for radio galaxies) and 13 (New galaxies).
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from galnb.blending import Perturbation, centre, fitting_sizes, make_blends
from galnb.checks import at_least
from galnb.images import check_images, turned

_Batches = Callable[[int], dict[str, torch.Tensor]]


def blend_batches(
    images: torch.Tensor,
    *,
    batch_size: int,
    seed: int,
    rule: str = "max",
    count: int = 2,
    perturbation: Perturbation = Perturbation(),  # noqa: B008 (it is frozen)
    crop: int | None = None,
    size: int | None = None,
    turn_first: float = 0.0,
) -> _Batches:
    """Draw fresh blends: `"blended"` (batch, C, size, size) and `"galaxies"` (batch, N, C, size, size).

    images: (B, C, H, W), floats in [0, 1]; or uint8 in 0..255, to keep thousands of large frames in memory.
    turn_first: share of the galaxies 0 that are turned by any angle before the crop, so that they have been
        resampled as the others are. There is no fill: images must be sqrt(2) times as large as `crop`.
    rule, count, perturbation, crop, size: as in `galnb.blending.make_blends`.

    All images of a batch are turned and mirrored alike by one of the 8 symmetries of the square.
    """
    check_images(images, frames=True)
    at_least(1, batch_size=batch_size)
    crop, size = fitting_sizes(images, crop, size)
    how = {"rule": rule, "count": count, "perturbation": perturbation, "crop": crop, "size": size}
    if len(images) < count:
        raise ValueError(f"got {len(images)} images for blends of {count} galaxies; give at least {count}")
    if not 0 <= turn_first <= 1:
        raise ValueError(f"turn_first is {turn_first}; expected a share from 0 to 1")
    if turn_first and min(images.shape[-2:]) < math.sqrt(2) * crop:
        wanted = f"at least {math.sqrt(2) * crop:.1f} px, so that no corner stays empty: give a smaller crop"
        raise ValueError(f"turn_first: got {tuple(images.shape[-2:])} px, crop {crop}; expected {wanted}")
    firsts = images if turn_first else centre(images, crop)

    def batches(index: int) -> dict[str, torch.Tensor]:
        generator = _seeded(seed, index)
        first = _pick(firsts, generator, batch_size)
        if turn_first:
            first = _turn_some(first, turn_first, crop, generator)
        others = _pick(images, generator, max(batch_size, count))
        blends = make_blends(first, partners=others, generator=generator, **how)
        turn = int(torch.randint(8, (), generator=generator))
        return {"blended": turned(blends.blended, turn), "galaxies": turned(blends.galaxies, turn)}

    return batches


def _seeded(seed: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + index)


def _pick(bank: torch.Tensor, generator: torch.Generator, number: int) -> torch.Tensor:
    chosen = bank[torch.randint(len(bank), (number,), generator=generator)]
    return chosen.float().mul_(1 / 255) if bank.dtype == torch.uint8 else chosen.float()


def _turn_some(images: torch.Tensor, share: float, crop: int, generator: torch.Generator) -> torch.Tensor:
    """Central squares (B, C, crop, crop) of images, of which a share is turned; the others stay unchanged."""
    angle = 2 * torch.pi * torch.rand(len(images), generator=generator)
    still = torch.rand(len(images), generator=generator) >= share
    drawn = _turn(images, angle, 1.0, crop, "bilinear").clamp(0, 1)
    return torch.where(still[:, None, None, None], centre(images, crop), drawn)


def _turn(images: torch.Tensor, angle: torch.Tensor, mirror, size: int, mode: str) -> torch.Tensor:
    """Crops (B, C, size, size), turned about the centre, mirrored where mirror is -1; outside is black."""
    turn = torch.stack([angle.cos() * mirror, -angle.sin(), angle.sin() * mirror, angle.cos()], 1)
    sides = torch.tensor([images.shape[-1], images.shape[-2]])[:, None]
    matrix = F.pad(turn.view(-1, 2, 2) * size / sides, (0, 1))
    grid = F.affine_grid(matrix, [*images.shape[:2], size, size], align_corners=False)
    return F.grid_sample(images, grid, mode=mode, align_corners=False)


def mix_batches(*sources: _Batches) -> _Batches:
    """Join the batches of several sources, such as many Galaxy Zoo blends and a few Hubble ones."""

    def batches(index: int) -> dict[str, torch.Tensor]:
        parts = [source(index) for source in sources]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return batches


def labelled_batches(
    images: torch.Tensor, labels: torch.Tensor, *, batch_size: int, seed: int, size: int
) -> _Batches:
    """Draw `"images"` (batch, C, size, size), turned by any angle and mirrored; and `"labels"` (batch,).

    images: (B, C, H, W) in [0, 1]; larger than `size` by about 1.4, or black fills corners after turning.
    labels: (B,), whole numbers. batch_size: images, drawn with replacement. size: side of the crop, px.

    Pixels are picked, not mixed: the sky of FIRST stays exactly 0 and peaks keep their height.
    """
    images = check_images(images)
    labels = torch.as_tensor(labels)
    if labels.shape != (len(images),) or labels.is_floating_point():
        given = f"got {len(images)} images and labels {tuple(labels.shape)} {labels.dtype}"
        raise ValueError(f"{given}; expected one whole number per image")
    at_least(1, batch_size=batch_size, size=size)
    if size > min(images.shape[-2:]):
        raise ValueError(f"size {size}: expected at most the side of the images, {min(images.shape[-2:])}")

    def batches(index: int) -> dict[str, torch.Tensor]:
        generator = _seeded(seed, index)
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        angle = 2 * torch.pi * torch.rand(batch_size, generator=generator)
        mirror = 1 - 2.0 * torch.randint(2, (batch_size,), generator=generator)
        drawn = _turn(images[chosen], angle, mirror, size, "nearest")
        return {"images": drawn, "labels": labels[chosen]}

    return batches


def image_batches(images: torch.Tensor, *, batch_size: int, seed: int) -> _Batches:
    """Draw `"images"` (batch, C, H, H), each turned and mirrored by a random symmetry of the square.

    images: (B, C, H, H) in [0, 1]; no pixel is resampled. batch_size: images, drawn with replacement.
    """
    check_images(images)
    at_least(1, batch_size=batch_size)
    if images.shape[-1] != images.shape[-2]:
        raise ValueError(f"images are {tuple(images.shape)}: expected squares; cut them first")

    def batches(index: int) -> dict[str, torch.Tensor]:
        generator = _seeded(seed, index)
        chosen = torch.randint(len(images), (batch_size,), generator=generator).tolist()
        turns = torch.randint(8, (batch_size,), generator=generator).tolist()
        drawn = [turned(images[i].float(), turn) for i, turn in zip(chosen, turns, strict=True)]
        return {"images": torch.stack(drawn)}

    return batches
