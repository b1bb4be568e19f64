"""Endless batches for training, each a function of its number alone: a run can be continued exactly.

Chapters 04 (The deblender GAN), 10 (A GAN for radio galaxies) and 13 (New galaxies). A batch is drawn by a
generator that is seeded with the seed and the number of the batch.
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from galnb.blending import Perturbation, make_blends
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
    perturbation: Perturbation | None = None,
    crop: int | None = None,
    size: int | None = None,
    turn_first: float = 0.0,
) -> _Batches:
    """Draw fresh blends: `"blended"` (batch, C, size, size) and `"galaxies"` (batch, N, C, size, size).

    images: (B, C, H, W), floats in [0, 1]; or uint8 in 0..255, to keep thousands of large frames in memory.
    batch_size: blends per batch.
    rule, count, perturbation, crop, size: as in `galnb.blending.make_blends`.
    turn_first: share of the galaxies 0 that are turned by any angle, bilinearly, before the crop, so that
        they have been resampled as the others are. The images must be larger than `crop` by the square root
        of 2: there is no fill.

    All images of a batch are turned and mirrored alike by one of the 8 symmetries of the square: galaxies
    have no preferred direction.
    """
    check_images(images, frames=True)
    at_least(1, batch_size=batch_size)
    if len(images) < count:
        raise ValueError(f"got {len(images)} images for blends of {count} galaxies; give at least {count}")
    if not 0 <= turn_first <= 1:
        raise ValueError(f"turn_first is {turn_first}; expected a share from 0 to 1")
    side = min(images.shape[-2:])
    kept = crop or side
    if turn_first and (side < math.sqrt(2) * kept or any((s - kept) % 2 for s in images.shape[-2:])):
        raise ValueError(
            f"turn_first: got {tuple(images.shape[-2:])} px and crop {kept}; expected an even margin and "
            f"at least {math.sqrt(2) * kept:.1f} px, so that no corner stays empty: give a smaller crop"
        )
    margin = 0 if crop is None else max(0, (side - crop) // 2)
    central = images[..., margin : images.shape[-2] - margin, margin : images.shape[-1] - margin]

    def batches(index: int) -> dict[str, torch.Tensor]:
        generator = _seeded(seed, index)
        first = _pick(images if turn_first else central, generator, batch_size)
        if turn_first:
            first = _turned_by_any_angle(first, crop, turn_first, generator)
        blends = make_blends(
            first,
            rule=rule,
            count=count,
            perturbation=perturbation or Perturbation(),
            generator=generator,
            crop=crop,
            size=size,
            partners=_pick(images, generator, max(batch_size, count)),
        )
        turn = int(torch.randint(8, (), generator=generator))
        return {"blended": turned(blends.blended, turn), "galaxies": turned(blends.galaxies, turn)}

    return batches


def _seeded(seed: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + index)


def _pick(bank: torch.Tensor, generator: torch.Generator, number: int) -> torch.Tensor:
    chosen = bank[torch.randint(len(bank), (number,), generator=generator)]
    return chosen.float().mul_(1 / 255) if bank.dtype == torch.uint8 else chosen.float()


def _turned_by_any_angle(images: torch.Tensor, crop: int, share: float, generator) -> torch.Tensor:
    """Central squares (B, C, crop, crop) of images, of which a share is turned; the others stay unchanged."""
    angle = 2 * torch.pi * torch.rand(len(images), generator=generator)
    angle = torch.where(torch.rand(len(images), generator=generator) < share, angle, torch.zeros(()))
    frame = torch.tensor([images.shape[-1], images.shape[-2]])[:, None]
    out = _sample(images, _turn_by(angle) * crop / frame, crop, "bilinear")
    top, left = ((side - crop) // 2 for side in images.shape[-2:])
    still = images[..., top : top + crop, left : left + crop]
    return torch.where((angle == 0)[:, None, None, None], still, out).clamp(0, 1)


def _turn_by(angle: torch.Tensor, mirror: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Matrices (B, 2, 2) from a place in the result to the one in the image; mirror is 1 or -1."""
    turn = torch.stack([angle.cos() * mirror, -angle.sin(), angle.sin() * mirror, angle.cos()], 1)
    return turn.view(-1, 2, 2)


def _sample(images: torch.Tensor, matrix: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    """Sample (B, C, size, size) about the centres; matrix (B, 2, 2) is in half sides; outside is black."""
    grid = F.affine_grid(F.pad(matrix, (0, 1)), [*images.shape[:2], size, size], align_corners=False)
    return F.grid_sample(images.float(), grid, mode=mode, align_corners=False)


def mix_batches(*sources: _Batches) -> _Batches:
    """Join the batches of several sources, for example many Galaxy Zoo blends and a few Hubble ones."""

    def batches(index: int) -> dict[str, torch.Tensor]:
        parts = [source(index) for source in sources]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return batches


def labelled_batches(
    images: torch.Tensor, labels: torch.Tensor, *, batch_size: int, seed: int, size: int
) -> _Batches:
    """Draw `"images"` (batch, C, size, size), turned by any angle, mirrored, cropped; and `"labels"`
    (batch,).

    images: (B, C, H, W) in [0, 1]; larger than `size` by about 1.4, or black fills corners after turning.
    labels: (B,), whole numbers.
    batch_size: images per batch, drawn with replacement in the proportions of the set.
    size: side of the crop, px.

    Pixels are picked, not mixed (nearest neighbour): the sky of FIRST stays exactly 0 and peaks keep their
    height.
    """
    check_images(images)
    labels = torch.as_tensor(labels)
    if labels.shape != (len(images),) or labels.is_floating_point():
        raise ValueError(
            f"got {len(images)} images and labels {tuple(labels.shape)} {labels.dtype}; "
            "expected one whole number per image"
        )
    at_least(1, batch_size=batch_size, size=size)
    if size > min(images.shape[-2:]):
        raise ValueError(f"size {size}: expected at most the side of the images, {min(images.shape[-2:])}")

    def batches(index: int) -> dict[str, torch.Tensor]:
        generator = _seeded(seed, index)
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        angle = 2 * torch.pi * torch.rand(batch_size, generator=generator)
        mirror = 1 - 2.0 * torch.randint(2, (batch_size,), generator=generator)
        share = torch.tensor([size / images.shape[-1], size / images.shape[-2]])[:, None]
        drawn = _sample(images[chosen], _turn_by(angle, mirror) * share, size, "nearest")
        return {"images": drawn, "labels": labels[chosen]}

    return batches


def image_batches(images: torch.Tensor, *, batch_size: int, seed: int) -> _Batches:
    """Draw `"images"` (batch, C, H, H), each turned and mirrored by a random symmetry of the square.

    images: (B, C, H, H) in [0, 1]; no pixel is resampled, so noise keeps its grain.
    batch_size: images per batch, drawn with replacement.
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
