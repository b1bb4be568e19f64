"""Share the relevance of a linear layer among its inputs: the rules, and which layer gets which rule.

Chapter 06, Polarized LRP. [z]± is the positive or negative part of z; as 2 [z]± = z ± |z|, both signs come
from one extra pass of absolute values. No rule adds "+ epsilon" to a denominator, which would push a negative
one towards zero: what is no more than rounding error counts as 0, and 0/0 as 0.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

Rule = Callable[["Layer", Tensor], Tensor]
_BLOCK = 2**19  # weights (1 MB): stay in the cache of a processor while they are used three times


@dataclass(frozen=True)
class Layer:
    """Show one use of a linear layer to a rule: outputs = scale x (inputs x weight) + bias.

    inputs, outputs: (1 or K, B, ...), activations of B images; with K references their differences to each
    weight: None for weight-free sums, whose every weight is >= 0
    scale, bias: broadcast against outputs; no scale is 1, and the bias is 0 with references
    push, pull: `push(x, weight)` multiplies by the weight, `pull(share, weight)` by its transpose, both
        tensors with the axes (map or reference, image, ...)
    """

    inputs: Tensor
    outputs: Tensor
    weight: Tensor | None
    scale: Tensor | None
    bias: Tensor
    push: Callable[[Tensor, Tensor | None], Tensor]
    pull: Callable[[Tensor, Tensor | None], Tensor]


def _epsilon(layer: Layer, relevance: Tensor) -> Tensor:
    """Share by signed contributions: R_i = sum_j z_ij R_j / z_j, where z_j includes its bias (LRP-0)."""
    size = layer.outputs.abs()
    floor = size.amax(tuple(range(2, size.ndim)), keepdim=True) * torch.finfo(size.dtype).eps
    share = (relevance / layer.outputs).masked_fill_(size <= floor, 0)
    return layer.inputs * layer.pull(_times(share, layer.scale), layer.weight)


def _one_sign(
    layer: Layer, relevance: Tensor, *, signs: tuple[int, ...] | None = None, bias: bool = False
) -> Tensor:
    """Share by the contributions of one sign: +1 or -1 for each map (S, B, ...), or the unit's own.

    R_i = sum_j [z_ij]± / (sum_k [z_kj]± + [b_j]±) R_j with z_ij = x_i w_ij, Eq. 3 of Li et al. (2020). With
    bias the share of [b_j]± is lost. Weight-free sums know no sign of a map and share by |z|. The unit's own
    sign is the gamma rule for gamma to infinity.
    """
    parts = [_share(block, arriving, signs, bias) for block, arriving in _blocks(layer, relevance)]
    return sum(parts[1:], start=parts[0])


def _blocks(layer: Layer, relevance: Tensor) -> Iterator[tuple[Layer, Tensor]]:
    """Cut a dense layer into blocks of its outputs; with many images blocks are larger."""
    weight = layer.weight
    if weight is None or weight.ndim > 2 or layer.scale is not None:
        yield layer, relevance
        return
    rows = max(1, _BLOCK * layer.inputs.shape[:2].numel() // weight.shape[1])
    ends = (layer.bias.expand(len(weight)), layer.outputs, relevance)
    parts = zip(weight.split(rows), *(x.split(rows, -1) for x in ends), strict=True)
    for piece, bias, outputs, arriving in parts:
        yield replace(layer, weight=piece, bias=bias, outputs=outputs), arriving


def _share(layer: Layer, relevance: Tensor, signs: tuple[int, ...] | None, bias: bool) -> Tensor:
    size, shift = layer.inputs.abs(), layer.bias.abs()
    weight, scale = (None if x is None else x.abs() for x in (layer.weight, layer.scale))
    magnitude = _times(layer.push(size, weight), scale)
    floor = (magnitude + shift).mul_(16 * torch.finfo(magnitude.dtype).eps)
    total, magnitude = (layer.outputs, magnitude + shift) if bias else (layer.outputs - layer.bias, magnitude)
    if signs is None:
        sign = torch.where(layer.outputs < 0, -1.0, 1.0).to(total)
    else:
        sign = total.new_tensor(signs).view(-1, *[1] * (total.ndim - 1)) * (layer.weight is not None)
    # Written into a tensor like the relevance: broadcast along the maps, results would lose the layout that
    # convolutions like.
    whole = torch.addcmul(magnitude, total, sign, out=torch.empty_like(relevance))
    share = torch.div(relevance, whole, out=torch.empty_like(whole)).masked_fill_(whole <= floor, 0)
    result = layer.pull(_times(share, scale), weight).mul_(size)
    if sign.any():
        result.addcmul_(layer.pull(_times(share.mul_(sign), layer.scale), layer.weight), layer.inputs)
    return result


def _times(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


RULES: dict[str, Rule] = {
    "epsilon": _epsilon,
    "zplus": partial(_one_sign, signs=(1,)),
    "zminus": partial(_one_sign, signs=(-1,)),
    "same_sign": _one_sign,
}

# One rule for each of n layers with weights, images first; `bias` as in `polarized_relevance`.
# paper: Eq. 3 to the letter, each map keeps its sign. output: the sign is chosen at the last layer only.
# composite and reference: signed contributions above, those of the unit's own sign below.
READINGS: dict[str, Callable[[int, bool], list[Rule]]] = {
    "paper": lambda n, bias: [partial(_one_sign, signs=(1, -1), bias=bias)] * n,
    "output": lambda n, bias: (
        [partial(_one_sign, signs=(1, 1), bias=bias)] * (n - 1)
        + [partial(_one_sign, signs=(1, -1), bias=bias)]
    ),
    "composite": lambda n, bias: [_one_sign] * (n - 2) + [_epsilon] * min(n, 2),
    "reference": lambda n, bias: [_one_sign] * ((n - 1) // 2) + [_epsilon] * (n - (n - 1) // 2),
}
