"""What every GAN of the book is: two networks, their losses, how images enter and how they are drawn.

Chapters 03, A first GAN, and 04, The deblender GAN.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import torch
from torch import nn

from galnb.checks import at_least, check_floats
from galnb.gans.layers import evaluating

Batch = dict[str, torch.Tensor]
Losses = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Gan:
    """Hold one GAN so that one training loop can serve all of them.

    name: key of `galnb.training.checkpoints.GANS`.
    config: frozen dataclass that rebuilds both networks; it travels with the weights.
    prepare: images in [0, 1] -> the tensor that both networks take, here always [-1, 1] (`enter`).
    generator_loss, discriminator_loss, burn_in_loss: (gan, batch, generator) -> scalars, with the key "total"
    and one per named part; generator is a CPU random generator for losses that draw noise. Burn-in trains the
    generator network alone; None where there is none.
    """

    name: str
    config: object
    generator: nn.Module
    discriminator: nn.Module
    prepare: Callable[[torch.Tensor], torch.Tensor]
    generator_loss: Callable[["Gan", Batch, torch.Generator], Losses]
    discriminator_loss: Callable[["Gan", Batch, torch.Generator], Losses]
    burn_in_loss: Callable[["Gan", Batch, torch.Generator], Losses] | None = None


def check_gan(gan: Gan, name: str) -> None:
    """Refuse anything but a GAN of that name."""
    if not isinstance(gan, Gan) or gan.name != name:
        given = f"a {gan.name!r} GAN" if isinstance(gan, Gan) else f"a {type(gan).__name__}"
        raise ValueError(f"got {given}, expected a {name!r} GAN: that of load_checkpoint(...) is its .gan")


def images_of(batch: Batch, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a batch's images of that name, (B, *shape); ValueError if they are not there, or others."""
    given = tuple(batch[name].shape) if name in batch else None
    if not given or not given[0] or given[1:] != shape:
        raise ValueError(
            f"batch holds {name} {given}; expected (B, {', '.join(map(str, shape))}), at least one"
        )
    return batch[name]


def to_signed(images: torch.Tensor) -> torch.Tensor:
    """Map [0, 1] to [-1, 1]: an input of exactly 0 receives no relevance, so black must not be 0."""
    return images * 2 - 1


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Map [-1, 1] back to [0, 1] and clip what lies outside."""
    return ((images + 1) / 2).clamp(0, 1)


def enter(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Turn floats in [0, 1] of any precision into [-1, 1] in the network's own; ValueError for all else."""
    check_floats(images)
    return to_signed(images.to(next(network.parameters()).dtype))


def in_batches(
    network: nn.Module, *inputs: torch.Tensor, batch: int, draw: Callable[..., torch.Tensor] | None = None
) -> torch.Tensor:
    """Draw from a network: eval mode, no gradient; the result in [0, 1], float32, on the CPU.

    inputs: tensors of one length, taken `batch` at a time to the network's device, floats in its precision.
    draw: pieces of the inputs -> images in [0, 1]; without it ``to_unit(network(*pieces))``.
    ValueError if batch is no whole number of at least 1. The network gets its mode back.
    """
    at_least(1, batch=batch)
    own = next(network.parameters())

    def moved(piece: torch.Tensor) -> torch.Tensor:
        return piece.to(own) if piece.is_floating_point() else piece.to(own.device)

    drawn = []
    with evaluating(network), torch.no_grad():
        for pieces in zip(*(tensor.split(batch) for tensor in inputs), strict=True):
            given = [moved(piece) for piece in pieces]
            drawn.append((draw(*given) if draw else to_unit(network(*given).float())).float().cpu())
    return torch.cat(drawn)


def seeded(
    seed: int, *builders: Callable[[], nn.Module], first: Callable[..., None] | None = None
) -> tuple[nn.Module, ...]:
    """Build networks with first weights that the seed fixes; the caller's random state stays.

    first: draws the weights of all of them anew, in place; without it they stay as PyTorch draws them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = tuple(build() for build in builders)
        if first:
            first(*networks)
    return networks


def from_json(kind: type, values: Mapping[str, Any]) -> Any:
    """Build a frozen config from what JSON or TOML holds of it: lists become tuples, tables nested configs.

    kind: dataclass; values: its fields, any with a default may be missing. Returns an instance of `kind`.
    ValueError if values is no mapping, a field is unknown or missing, or `kind` refuses a value.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{kind.__name__}: got {type(values).__name__}, expected a table of its fields")
    known = [field.name for field in fields(kind) if field.init]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(
            f"{kind.__name__} has no field {', '.join(unknown)}; known are {', '.join(known)}. "
            "Correct the name, or update galnb if a newer one wrote it"
        )
    hints = get_type_hints(kind)
    try:
        return kind(**{name: _typed(hints[name], value) for name, value in values.items()})
    except TypeError as error:  # a field is missing, or holds what cannot be compared
        raise ValueError(f"{kind.__name__} cannot be built from {dict(values)}: {error}") from error


def _typed(hint: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        nested = [each for each in (hint, *get_args(hint)) if is_dataclass(each)]
        return from_json(nested[0], value) if nested else value
    if isinstance(value, list | tuple):
        inner = [each for each in get_args(hint) if each is not Ellipsis] or [Any]
        return tuple(_typed(inner[min(i, len(inner) - 1)], each) for i, each in enumerate(value))
    return value
