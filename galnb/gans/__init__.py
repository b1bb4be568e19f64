"""What every GAN of the book is: two networks, their losses, how images enter and how they are drawn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, nn

from galnb.checks import at_least, check_floats, check_kind
from galnb.gans.layers import evaluating

Batch = dict[str, Tensor]
Losses = dict[str, Tensor]
Loss = Callable[["Gan", Batch, torch.Generator], Losses]


@dataclass(frozen=True)
class Gan:
    """Hold one GAN so that one training loop can serve all of them.

    name: key of `galnb.training.checkpoints.GANS`; config: frozen dataclass that rebuilds both networks.
    prepare: images in [0, 1] -> the tensor that both networks take, here always [-1, 1] (`enter`).
    generator_loss, discriminator_loss, burn_in_loss (of the generator alone, or None): (gan, batch, random
    generator on the CPU) -> scalars, with the key "total" and one per named part.
    """

    name: str
    config: Any
    generator: nn.Module
    discriminator: nn.Module
    prepare: Callable[[Tensor], Tensor]
    generator_loss: Loss
    discriminator_loss: Loss
    burn_in_loss: Loss | None = None


def build_gan(
    name: str,
    config: Any,
    networks: tuple[type, type],
    losses: tuple[Loss, ...],
    first: Callable | None = None,
) -> Gan:
    """Build a GAN with first weights that ``config.seed`` fixes; the caller's random state stays.

    networks: config -> generator, config -> discriminator; losses: in the order of `Gan`.
    first: draws the weights of both anew, in place; without it they stay as PyTorch draws them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator, discriminator = (network(config) for network in networks)
        if first:
            first(generator, discriminator)
    return Gan(name, config, generator, discriminator, partial(enter, generator), *losses)


def check_gan(gan: Gan, name: str) -> None:
    """Refuse anything but a GAN of that name."""
    if not isinstance(gan, Gan) or gan.name != name:
        given = f"a {gan.name!r} GAN" if isinstance(gan, Gan) else f"a {type(gan).__name__}"
        raise ValueError(f"got {given}, expected a {name!r} GAN: that of load_checkpoint(...) is its .gan")


def tensors_of(batch: Batch, **shapes: tuple[int, ...]) -> list[Tensor]:
    """Return a batch's tensors of those names, each (B, *shape); ValueError if one is missing or another."""
    given = {name: tuple(batch[name].shape) if name in batch else None for name in shapes}
    count = (next(iter(given.values())) or (0,))[0]
    wanted = {name: (count or "B", *shape) for name, shape in shapes.items()}
    if given != wanted:
        raise ValueError(f"batch holds {given}; expected {wanted}, at least one of each; "
                         "cut and average images to that size, or build the networks for yours")  # fmt: skip
    return [batch[name] for name in shapes]


def to_signed(images: Tensor) -> Tensor:
    """Map [0, 1] to [-1, 1]: an input of exactly 0 receives no relevance, so black must not be 0."""
    return images * 2 - 1


def to_unit(images: Tensor) -> Tensor:
    """Map [-1, 1] back to [0, 1] and clip what lies outside."""
    return ((images + 1) / 2).clamp(0, 1)


def enter(network: nn.Module, images: Tensor) -> Tensor:
    """Turn floats in [0, 1] of any precision into [-1, 1] in the network's own; ValueError for all else."""
    check_floats(images)
    return to_signed(images.to(next(network.parameters()).dtype))


def in_batches(
    network: nn.Module, *inputs: Tensor, batch: int, draw: Callable[..., Tensor] | None = None
) -> Tensor:
    """Draw from a network: eval mode, no gradient; the result in [0, 1], float32, on the CPU.

    inputs: tensors of one length, taken `batch` at a time to the network's device, floats in its precision.
    draw: pieces of the inputs -> images in [0, 1]; without it ``to_unit(network(*pieces))``.
    The network gets its mode back.
    """
    at_least(1, batch=batch)
    own, drawn = next(network.parameters()), []
    with evaluating(network), torch.no_grad():
        for pieces in zip(*(tensor.split(batch) for tensor in inputs), strict=True):
            given = [piece.to(own if piece.is_floating_point() else own.device) for piece in pieces]
            drawn.append((draw(*given) if draw else to_unit(network(*given).float())).float().cpu())
    return torch.cat(drawn)


def from_json(kind: type, values: Mapping[str, Any]) -> Any:
    """Build a frozen config from what JSON or TOML holds of it: lists become tuples, tables nested configs.

    ValueError if values is no mapping, a field is unknown or missing, or the dataclass `kind` refuses one.
    """
    check_kind(Mapping, "a table of its fields", **{kind.__name__: values})
    hints = get_type_hints(kind)
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}; known are {', '.join(hints)}")
    try:
        return kind(**{name: _typed(hints[name], value) for name, value in values.items()})
    except TypeError as error:  # a field is missing, or holds what cannot be compared
        raise ValueError(f"{kind.__name__} cannot be built from {dict(values)}: {error}") from error


def _typed(hint: Any, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_typed(None, each) for each in value)
    nested = [each for each in (hint, *get_args(hint)) if is_dataclass(each)]
    return from_json(nested[0], value) if nested and isinstance(value, Mapping) else value
