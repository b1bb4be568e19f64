"""Share the relevance of a linear layer among its inputs: the rules of layer-wise relevance propagation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

Rule = Callable[["Layer", torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """Hold what a rule needs to know of one linear layer: outputs = inputs x weight + bias.

    Parameters
    ----------
    inputs, outputs : torch.Tensor, shapes (1 or K, B, ...)
        Activations of B images; with K references their differences to each, and then `bias` is 0.
    bias : torch.Tensor or float
        Broadcasts against `outputs`.
    weight, magnitude : torch.Tensor or None
        The effective weight and its absolute value; None for weight-free sums, whose every weight is >= 0.
    push, pull : callable
        ``push(x, weight)`` applies the layer without its bias, ``pull(share, weight)`` its transpose, both to
        tensors with the axes (map or reference, image, ...).

    Notes
    -----
    Chapter: Polarized LRP
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    bias: torch.Tensor | float
    weight: torch.Tensor | None
    magnitude: torch.Tensor | None
    push: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
    pull: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def epsilon(layer: Layer, relevance: torch.Tensor) -> torch.Tensor:
    """Share by signed contributions: R_i = sum_j z_ij R_j / z_j, where z_j includes its bias (LRP-0).

    Chapter: Polarized LRP
    """
    axes = tuple(range(2, layer.outputs.ndim))
    floor = layer.outputs.abs().amax(axes, keepdim=True) * torch.finfo(relevance.dtype).eps
    return layer.inputs * layer.pull(divide(relevance, layer.outputs, floor), layer.weight)


def polarized(
    layer: Layer, relevance: torch.Tensor, *, signs: tuple[int, ...] = (1, -1), bias: bool = False
) -> torch.Tensor:
    """Share by the contributions of one sign, map by map.

    Parameters
    ----------
    layer : Layer
    relevance : torch.Tensor, shape (maps, B, ...)
        What reached the outputs of the layer.
    signs : tuple of int
        +1 or -1 for each map.
    bias : bool
        Keep [b]± in the denominator, as printed; its share of the relevance is then lost.

    Notes
    -----
    R_i = sum_j [z_ij]± / (sum_k [z_kj]± + [b_j]±) R_j with z_ij = x_i w_ij, Eq. 3 of Li et al. (2020). As
    2 [z]± = z ± |z|, both signs come from one extra pass of absolute values. Weight-free sums know no sign
    and share by |z|. Chapter: Polarized LRP
    """
    size, total, magnitude, floor = _sizes(layer, bias)
    if layer.weight is None:
        signs = (0,) * len(signs)
    share = torch.empty_like(relevance)
    # Map by map: broadcast along an axis of maps, results would lose the layout that convolutions like.
    for one, sign, out in zip(relevance, signs, share, strict=True):
        denominator = torch.add(magnitude[0], total[0], alpha=sign)
        torch.div(one, denominator, out=out).masked_fill_(denominator <= floor[0], 0)
    result = layer.pull(share, layer.magnitude)
    signed = layer.pull(share, layer.weight) if any(signs) else result
    for one, product, sign in zip(result, signed, signs, strict=True):
        one.mul_(size[0])
        if sign:
            one.addcmul_(product, layer.inputs[0], value=sign)
    return result


def same_sign(layer: Layer, relevance: torch.Tensor) -> torch.Tensor:
    """Share by the contributions that have the unit's own sign (the gamma rule for gamma to infinity).

    Chapter: Polarized LRP
    """
    size, total, magnitude, floor = _sizes(layer)
    sign = _sign(layer.outputs)
    share = divide(relevance, magnitude + sign * total, floor)
    result = layer.pull(share, layer.magnitude).mul_(size)
    return result.addcmul_(layer.pull(share.mul_(sign), layer.weight), layer.inputs)


def gamma(layer: Layer, relevance: torch.Tensor, *, weight: float = 0.25) -> torch.Tensor:
    """Share by signed contributions, those of the unit's own sign favoured: z_ij + weight [z_ij]^sign(z_j).

    Chapter: Polarized LRP
    """
    size, total, magnitude, floor = _sizes(layer)
    sign = _sign(layer.outputs)
    share = divide(relevance, layer.outputs + weight / 2 * (sign * magnitude + total), floor)
    signed = layer.inputs * layer.pull(share, layer.weight)
    return signed + weight / 2 * (signed + size * layer.pull(sign * share, layer.magnitude))


def zbox(layer: Layer, relevance: torch.Tensor, *, low: float = -1.0, high: float = 1.0) -> torch.Tensor:
    """Share by the distance from the darkest and brightest possible pixel: x w - low [w]+ - high [w]-.

    A first-layer rule; the default bounds are those of the images that the networks take.

    Chapter: Polarized LRP
    """
    offset, half = layer.inputs - (low + high) / 2, (high - low) / 2
    total = layer.push(offset, layer.weight) + layer.push(torch.full_like(offset, half), layer.magnitude)
    share = divide(relevance, total, torch.zeros_like(total))
    return offset * layer.pull(share, layer.weight) + half * layer.pull(share, layer.magnitude)


def flat(layer: Layer, relevance: torch.Tensor) -> torch.Tensor:
    """Share equally among all inputs of a unit, whatever they are; a first-layer rule that shows only where.

    Chapter: Polarized LRP
    """
    ones = None if layer.weight is None else torch.ones_like(layer.weight)
    count = layer.push(torch.ones_like(layer.inputs), ones)
    return layer.pull(relevance / count, ones)


RULES: dict[str, Rule] = {
    "epsilon": epsilon,
    "zplus": partial(polarized, signs=(1,)),
    "zminus": partial(polarized, signs=(-1,)),
    "same_sign": same_sign,
    "gamma": gamma,
    "zbox": zbox,
    "flat": flat,
}


def _paper(position: int, count: int, bias: bool) -> Rule:
    """Eq. 3 to the letter: each map keeps its sign in every layer."""
    return partial(polarized, signs=(1, -1), bias=bias)


def _output(position: int, count: int, bias: bool) -> Rule:
    """Choose the sign at the last layer only; below, both maps share by z+."""
    return partial(polarized, signs=(1, -1 if position == count - 1 else 1), bias=bias)


def _composite(position: int, count: int, bias: bool) -> Rule:
    """Signed contributions in the last two layers, those of the unit's own sign below."""
    return RULES["epsilon" if position >= count - 2 else "same_sign"]


def _reference(position: int, count: int, bias: bool) -> Rule:
    """Signed contributions in the upper half, those of the unit's own sign below; all of them differences."""
    return RULES["epsilon" if position >= (count - 1) // 2 else "same_sign"]


READINGS: dict[str, Callable[[int, int, bool], Rule]] = {
    "paper": _paper,
    "output": _output,
    "composite": _composite,
    "reference": _reference,
}


def divide(relevance: torch.Tensor, denominator: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """Return R / denominator, and 0 where the denominator is no more than rounding error (0/0 = 0).

    Nothing is added to a denominator: "+ epsilon" would push a negative one towards zero.
    Chapter: Polarized LRP
    """
    return (relevance / denominator).masked_fill_(denominator.abs() <= floor, 0)


def _sizes(layer: Layer, bias: bool = False) -> tuple[torch.Tensor, ...]:
    """Return |x|, sum of z, sum of |z| (with or without the bias) and what of these is rounding error."""
    size, total, shift = layer.inputs.abs(), layer.outputs, torch.as_tensor(layer.bias).abs()
    magnitude = layer.push(size, layer.magnitude)
    floor = (magnitude + shift) * (16 * torch.finfo(magnitude.dtype).eps)
    if bias:
        return size, total, magnitude + shift, floor
    return size, total - layer.bias, magnitude, floor


def _sign(outputs: torch.Tensor) -> torch.Tensor:
    return torch.where(outputs < 0, -1.0, 1.0).to(outputs.dtype)
