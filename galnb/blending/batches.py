"""Endless batches for training, each a function of its number alone: a run can be continued exactly."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from galnb.blending import Perturbation, make_blends
from galnb.gans import Batch
from galnb.images import check_images


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
) -> Callable[[int], Batch]:
    """Draw fresh blends for every training step.

    Parameters
    ----------
    images : torch.Tensor, shape (B, C, H, W)
        Galaxies, float32 in [0, 1]; or uint8 in 0..255, to keep thousands of large frames in memory.
    batch_size : int
        Blends per batch.
    seed : int
        Batch `index` is drawn by a generator seeded with both.
    rule, count, perturbation, crop, size
        As in `galnb.blending.make_blends`.

    Returns
    -------
    callable
        ``batches(index)`` -> dict with ``"blended"`` (batch, C, size, size) and ``"galaxies"``
        (batch, N, C, size, size).

    Raises
    ------
    ValueError
        If there are fewer images than one blend needs, or a size is not positive.

    Notes
    -----
    All images of a batch are turned and mirrored alike by one of the 8 symmetries of the square: galaxies
    have no preferred direction. Chapter: The deblender GAN
    """
    if images.dtype != torch.uint8:
        check_images(images)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    if len(images) < count:
        raise ValueError(f"got {len(images)} images for blends of {count} galaxies; give at least {count}")

    margin = 0 if crop is None else max(0, (min(images.shape[-2:]) - crop) // 2)
    central = images[..., margin : images.shape[-2] - margin, margin : images.shape[-1] - margin]

    def pick(bank: torch.Tensor, generator: torch.Generator, number: int) -> torch.Tensor:
        chosen = bank[torch.randint(len(bank), (number,), generator=generator)]
        return chosen.float().mul_(1 / 255) if bank.dtype == torch.uint8 else chosen

    def batches(index: int) -> Batch:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        blends = make_blends(
            pick(central, generator, batch_size),
            rule=rule,
            count=count,
            perturbation=perturbation or Perturbation(),
            generator=generator,
            crop=crop,
            size=size,
            partners=pick(images, generator, max(batch_size, count)),
        )
        turn = int(torch.randint(8, (), generator=generator))
        return {"blended": turned(blends.blended, turn), "galaxies": turned(blends.galaxies, turn)}

    return batches


def mix_batches(*sources: Callable[[int], Batch]) -> Callable[[int], Batch]:
    """Join the batches of several sources, for example many Galaxy Zoo blends and a few Hubble ones.

    Chapter: The deblender GAN
    """

    def batches(index: int) -> Batch:
        parts = [source(index) for source in sources]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return batches


def turned(images: torch.Tensor, turn: int) -> torch.Tensor:
    """Apply symmetry `turn`, 0 to 7, of the square: quarter turns, from 4 on mirrored first.

    Chapter: The deblender GAN
    """
    return torch.rot90(images.flip(-1) if turn >= 4 else images, turn % 4, dims=(-2, -1)).contiguous()


def labelled_batches(
    images: torch.Tensor, labels: torch.Tensor, *, batch_size: int, seed: int, size: int
) -> Callable[[int], Batch]:
    """Draw labelled images, each turned by any angle and mirrored at random, then cropped.

    Parameters
    ----------
    images : torch.Tensor, shape (B, C, H, W)
        In [0, 1]; larger than `size` by about 1.4, so that no corner is empty after turning.
    labels : torch.Tensor, shape (B,)
        Whole numbers.
    batch_size : int
        Images per batch, drawn with replacement in the proportions of the set.
    seed : int
        Batch `index` is drawn by a generator seeded with both.
    size : int
        Side of the crop, px.

    Returns
    -------
    callable
        ``batches(index)`` -> dict with ``"images"`` (batch, C, size, size) and ``"labels"`` (batch,).

    Raises
    ------
    ValueError
        If images and labels do not match, or a size does not fit.

    Notes
    -----
    Pixels are picked, not mixed (nearest neighbour): the sky of FIRST stays exactly 0 and peaks keep their
    height. Black (0) fills corners. Chapter: A GAN for radio galaxies
    """
    check_images(images)
    if labels.shape != (len(images),) or labels.is_floating_point():
        raise ValueError(f"got {len(images)} images and labels {tuple(labels.shape)} {labels.dtype}; "
                         "expected one whole number per image")  # fmt: skip
    if batch_size < 1 or not 1 <= size <= min(images.shape[-2:]):
        raise ValueError(f"batch_size {batch_size}, size {size}: expected at least 1, and at most the images")

    def batches(index: int) -> Batch:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        angle = 2 * torch.pi * torch.rand(batch_size, generator=generator)
        mirror = 1 - 2.0 * torch.randint(2, (batch_size,), generator=generator)
        turn = torch.stack([angle.cos() * mirror, -angle.sin(), angle.sin() * mirror, angle.cos()], 1)
        share = torch.tensor([size / images.shape[-1], size / images.shape[-2]])
        turn = F.pad(turn.view(-1, 2, 2) * share, (0, 1))
        grid = F.affine_grid(turn, [batch_size, images.shape[1], size, size], align_corners=False)
        turned = F.grid_sample(images[chosen], grid, mode="nearest", align_corners=False)
        return {"images": turned, "labels": labels[chosen]}

    return batches


def image_batches(images: torch.Tensor, *, batch_size: int, seed: int) -> Callable[[int], Batch]:
    """Draw images, each turned and mirrored by a random symmetry of the square.

    Parameters
    ----------
    images : torch.Tensor, shape (B, C, H, H)
        In [0, 1], square.
    batch_size : int
        Images per batch, drawn with replacement.
    seed : int
        Batch `index` is drawn by a generator seeded with both.

    Returns
    -------
    callable
        ``batches(index)`` -> dict with ``"images"`` (batch, C, H, H).

    Raises
    ------
    ValueError
        If images are no square images in [0, 1], or the batch size is not positive.

    Notes
    -----
    No pixel is resampled, so noise keeps its grain. Chapter: New galaxies
    """
    check_images(images)
    if batch_size < 1 or images.shape[-1] != images.shape[-2]:
        raise ValueError(
            f"batch_size {batch_size}, images {tuple(images.shape)}: expected at least 1, and squares"
        )

    def batches(index: int) -> Batch:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        chosen = torch.randint(len(images), (batch_size,), generator=generator).tolist()
        turns = torch.randint(8, (batch_size,), generator=generator).tolist()
        return {
            "images": torch.stack([turned(images[i], turn) for i, turn in zip(chosen, turns, strict=True)])
        }

    return batches
