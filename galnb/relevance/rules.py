"""Share the relevance of a linear layer among its inputs: the rules, and which layer gets which rule.

Chapter 06, Polarized LRP. [z]± is the positive or negative part of z; as 2 [z]± = z ± |z|, both signs come
from one extra pass of absolute values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

Rule = Callable[["Layer", torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """Show one use of a linear layer to a rule: outputs = inputs x weight + bias.

    inputs, outputs: (1 or K, B, ...), activations of B images; with K references their differences to each
    bias: broadcasts against outputs; 0 with references
    weight, magnitude: effective weight and its absolute value, as push and pull take them; None for
        weight-free sums, whose every weight is >= 0
    push, pull: `push(x, weight)` applies the layer without bias, `pull(share, weight)` its transpose, both to
        tensors with the axes (map or reference, image, ...)
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    bias: torch.Tensor | float
    weight: object
    magnitude: object
    push: Callable[[torch.Tensor, object], torch.Tensor]
    pull: Callable[[torch.Tensor, object], torch.Tensor]


def _epsilon(layer: Layer, relevance: torch.Tensor) -> torch.Tensor:
    """Share by signed contributions: R_i = sum_j z_ij R_j / z_j, where z_j includes its bias (LRP-0)."""
    axes = tuple(range(2, layer.outputs.ndim))
    floor = layer.outputs.abs().amax(axes, keepdim=True) * torch.finfo(relevance.dtype).eps
    return layer.inputs * layer.pull(divide(relevance, layer.outputs, floor), layer.weight)


def _polarized(
    layer: Layer, relevance: torch.Tensor, *, signs: tuple[int, ...], bias: bool = False
) -> torch.Tensor:
    """Share by the contributions of one sign, +1 or -1 for each map (S, B, ...) of relevance.

    R_i = sum_j [z_ij]± / (sum_k [z_kj]± + [b_j]±) R_j with z_ij = x_i w_ij, Eq. 3 of Li et al. (2020). With
    bias the share of [b_j]± is lost. Weight-free sums know no sign and share by |z|.
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


def _same_sign(layer: Layer, relevance: torch.Tensor) -> torch.Tensor:
    """Share by the contributions that have the unit's own sign (the gamma rule for gamma to infinity)."""
    size, total, magnitude, floor = _sizes(layer)
    sign = torch.where(layer.outputs < 0, -1.0, 1.0).to(layer.outputs.dtype)
    share = divide(relevance, magnitude + sign * total, floor)
    result = layer.pull(share, layer.magnitude).mul_(size)
    return result.addcmul_(layer.pull(share.mul_(sign), layer.weight), layer.inputs)


RULES: dict[str, Rule] = {
    "epsilon": _epsilon,
    "zplus": partial(_polarized, signs=(1,)),
    "zminus": partial(_polarized, signs=(-1,)),
    "same_sign": _same_sign,
}

# One rule for each of n layers with weights, images first; `bias` as in `polarized_relevance`.
# paper: Eq. 3 to the letter, each map keeps its sign. output: the sign is chosen at the last layer only.
# composite and reference: signed contributions above, those of the unit's own sign below.
READINGS: dict[str, Callable[[int, bool], list[Rule]]] = {
    "paper": lambda n, bias: [partial(_polarized, signs=(1, -1), bias=bias)] * n,
    "output": lambda n, bias: (
        [partial(_polarized, signs=(1, 1), bias=bias)] * (n - 1)
        + [partial(_polarized, signs=(1, -1), bias=bias)]
    ),
    "composite": lambda n, bias: [_same_sign] * (n - 2) + [_epsilon] * min(n, 2),
    "reference": lambda n, bias: [_same_sign] * ((n - 1) // 2) + [_epsilon] * (n - (n - 1) // 2),
}


def divide(relevance: torch.Tensor, denominator: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """Return R / denominator, and 0 where the denominator is no more than rounding error (0/0 = 0).

    Nothing is added to a denominator: "+ epsilon" would push a negative one towards zero.
    """
    return (relevance / denominator).masked_fill_(denominator.abs() <= floor, 0)


def _sizes(layer: Layer, bias: bool = False) -> tuple[torch.Tensor, ...]:
    """Return |x|, sum of z, sum of |z| (with or without the bias) and what of these is rounding error."""
    size, shift = layer.inputs.abs(), torch.as_tensor(layer.bias).abs()
    magnitude = layer.push(size, layer.magnitude)
    floor = (magnitude + shift).mul_(16 * torch.finfo(magnitude.dtype).eps)
    if bias:
        return size, layer.outputs, magnitude + shift, floor
    return size, layer.outputs - layer.bias, magnitude, floor
