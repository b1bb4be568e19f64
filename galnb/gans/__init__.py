"""What every GAN of the book is: two networks, their losses, and the way images enter them."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

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


def from_json(kind: type, values: Mapping[str, Any]) -> Any:
    """Build a frozen config from what JSON or TOML holds of it: lists become tuples, tables nested configs.

    kind: dataclass; values: its fields, any with a default may be missing. Returns an instance of `kind`.
    ValueError if values is no mapping, a field is unknown or missing, or `kind` refuses a value.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{kind.__name__}: got {type(values).__name__}, expected a table of its fields")
    known = {field.name: field for field in fields(kind) if field.init}
    needed = {name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(
            f"{kind.__name__} has no field {', '.join(unknown)}; known are {', '.join(known)}. "
            "Correct the name, or update galnb if a newer one wrote it"
        )
    if missing := sorted(needed - set(values)):
        raise ValueError(f"{kind.__name__} needs {', '.join(missing)}; given are {sorted(values)}")
    hints = get_type_hints(kind)
    return kind(**{name: _from_json(hints[name], value) for name, value in values.items()})


def _from_json(hint: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        nested = [each for each in (hint, *get_args(hint)) if is_dataclass(each)]
        return from_json(nested[0], value) if nested else value
    if isinstance(value, list | tuple):
        inner = [each for each in get_args(hint) if each is not Ellipsis]
        return tuple(_from_json(inner[min(i, len(inner) - 1)] if inner else Any, v) for i, v in enumerate(value))
    return value
