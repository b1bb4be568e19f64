"""What every GAN of the book is: two networks, their losses, and the way images enter them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

Batch = dict[str, torch.Tensor]
Losses = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Gan:
    """Hold one GAN so that one training loop can serve all of them.

    Parameters
    ----------
    name : str
        Which GAN this is, a key of `galnb.training.checkpoints.GANS`.
    config : dataclass
        Frozen config that rebuilds both networks; it travels with the weights.
    generator, discriminator : torch.nn.Module
        The two networks.
    prepare : callable
        Turns images in [0, 1] into the tensor that both networks take, here always [-1, 1].
    generator_loss, discriminator_loss : callable
        ``(gan, batch, generator) -> dict`` of scalars with the key ``"total"`` and one entry per named part.
        `generator` is a CPU random generator for losses that draw noise.
    burn_in_loss : callable or None
        Loss of the generator alone during burn-in, the same signature.

    Notes
    -----
    Chapter: The deblender GAN
    """

    name: str
    config: object
    generator: nn.Module
    discriminator: nn.Module
    prepare: Callable[[torch.Tensor], torch.Tensor]
    generator_loss: Callable[["Gan", Batch, torch.Generator], Losses]
    discriminator_loss: Callable[["Gan", Batch, torch.Generator], Losses]
    burn_in_loss: Callable[["Gan", Batch, torch.Generator], Losses] | None = None


def images_of(batch: Batch, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the images (B, *shape) of that name from a batch; a ValueError if they are not there, or others.

    Chapter: A first GAN
    """
    given = tuple(batch[name].shape) if name in batch else None
    if not given or not given[0] or given[1:] != shape:
        raise ValueError(
            f"batch holds {name} {given}; expected (B, {', '.join(map(str, shape))}), at least one"
        )
    return batch[name]


def to_signed(images: torch.Tensor) -> torch.Tensor:
    """Map [0, 1] to [-1, 1], the range that the networks take.

    Chapter: Polarized LRP (an input of exactly 0 receives no relevance, so black must not be 0)
    """
    return images * 2 - 1


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Map [-1, 1] back to [0, 1] and clip what lies outside.

    Chapter: The deblender GAN
    """
    return ((images + 1) / 2).clamp(0, 1)
