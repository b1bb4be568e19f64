"""Say how relevance crosses each type of layer, and show one use of it to the rules.

Chapter 06, Polarized LRP.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature

import torch
from torch import Tensor, nn

from galnb.gans.layers import Add, Concat, Gate, Multiply
from galnb.relevance.rules import Layer, Rule

_Operator = Callable[[Tensor, Tensor | None], Tensor]
Role = str | Callable[[nn.Module, tuple, Tensor], tuple[Tensor, ...]]


def _share_gate(module: nn.Module, inputs: tuple, relevance: Tensor) -> tuple[Tensor, ...]:
    """Share a product, light x share of the light, equally between its two factors."""
    return relevance.sum(2) / 2, relevance.flatten(2, 3) / 2


def _share_glu(module: nn.Module, inputs: tuple, relevance: Tensor) -> tuple[Tensor, ...]:
    """Give all to the signal and nothing to the gate that scales it."""
    axis = module.dim if module.dim < 0 else module.dim + 1
    return (torch.cat([relevance, torch.zeros_like(relevance)], axis),)


def _share_signal(module: nn.Module, inputs: tuple, relevance: Tensor) -> tuple[Tensor, ...]:
    """Give all to the signal and nothing to the second input, the gate that scales it."""
    return relevance, relevance.new_zeros(*relevance.shape[:1], *inputs[1].shape)


# How relevance crosses each type of layer: by the rule ("weights", and "sum" for averages without weights),
# unchanged ("pass" for functions of one number, "norm" with its statistics as constants), along the copies
# ("copy"), or by a function (module, inputs, relevance) -> one relevance per input, axes (map, image, ...).
LAYERS: dict[type[nn.Module], Role] = {
    **dict.fromkeys((nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d), "weights"),
    **dict.fromkeys((Add, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d), "sum"),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingBilinear2d), "sum"),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d), "norm"),
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh), "pass"),
    **dict.fromkeys((nn.Hardtanh, nn.ReLU6, nn.Softplus, nn.Mish, nn.Hardswish), "pass"),
    **dict.fromkeys((Concat, nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d), "copy"),
    **dict.fromkeys((nn.PixelShuffle, nn.PixelUnshuffle, nn.MaxPool2d, nn.AdaptiveMaxPool2d), "copy"),
    **dict.fromkeys((nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.UpsamplingNearest2d), "copy"),
    nn.GLU: _share_glu,
    Multiply: _share_signal,
    Gate: _share_gate,
}


@dataclass
class Call:
    """Note one use of a known layer: what entered (on the graph) and the fresh leaf that left.

    forward: the layer as a function of `inputs` alone
    weight, bias: effective weight (None for weight-free sums); bias, broadcasts against the output
    position: index of its rule; weight-free sums follow the layer with weights before them
    sources: for each input, what it was copied together from
    norm: the batch norm merged into the layer, whose output then stands in `output`
    """

    name: str
    module: nn.Module
    role: Role
    forward: Callable
    inputs: tuple[Tensor, ...]
    output: Tensor
    weight: Tensor | None
    bias: Tensor
    position: int
    sources: list = field(default_factory=list)
    norm: nn.Module | None = None


def known_layers(module: nn.Module, name: str, seen: set[int]) -> Iterator[tuple[str, nn.Module, Role]]:
    """Find every layer with a role once, under its first name; an unknown one with parameters is refused."""
    if id(module) in seen:  # registered twice
        return
    seen.add(id(module))
    role = next((LAYERS[kind] for kind in type(module).__mro__ if _is_plain(module, kind)), None)
    if role is None and next(module.parameters(recurse=False), None) is not None:
        kind = type(module).__name__
        raise ValueError(
            f"layer {name or 'model'!r} is a {kind}, for which no relevance rule is known. Build it from "
            "known layers (galnb.gans.layers.Add for sums), or say how relevance crosses it: "
            f"galnb.relevance.operators.LAYERS[{kind}] = 'pass', 'norm', 'sum' or a function"
        )
    if role is None:
        for child_name, child in module.named_children():
            yield from known_layers(child, f"{name}.{child_name}".lstrip("."), seen)
    elif role != "copy":
        yield name or type(module).__name__, module, role


def _is_plain(module: nn.Module, kind: type) -> bool:
    """Tell whether a module computes what its known base class does (as weight and spectral norm let it)."""
    methods = ("forward", "_conv_forward")
    return kind in LAYERS and all(getattr(type(module), m, 0) is getattr(kind, m, 0) for m in methods)


def bind(name: str, forward: Callable, args: tuple, kwargs: dict) -> tuple[tuple, Callable]:
    """Return the tensors of a call in the layer's own order, and the layer as a function of them alone."""
    if not kwargs and all(isinstance(value, Tensor) for value in args):
        return args, forward
    given = {k: v for k, v in signature(forward).bind(*args, **kwargs).arguments.items() if v is not None}
    inputs = tuple(value for value in given.values() if isinstance(value, Tensor))
    other = {key: value for key, value in given.items() if not isinstance(value, Tensor)}
    if not inputs or not other.keys() <= {"output_size"}:
        raise ValueError(f"layer {name!r} is called with {sorted(other) or 'nothing'}; expected tensors only")
    return inputs, partial(forward, **other)


def cross(call: Call, relevance: Tensor, rule: Rule, references: int, bias: bool) -> tuple[Tensor, ...]:
    """Carry relevance (S, B, ...) from the output of a call to each of its inputs."""
    if callable(call.role):
        return call.role(call.module, call.inputs, relevance)
    if call.role == "pass" or (call.role == "norm" and not bias):
        return (relevance,)
    if call.role == "norm":
        signal = call.inputs[0] * _norm_scale(call.module, call.inputs[0])
        size, shift = signal.abs(), (call.output - signal).abs()
        return ((relevance * size / (size + shift)).masked_fill_(size == 0, 0),)
    shares = rule(_as_layer(call, references), relevance)
    return shares.unbind(2) if len(call.inputs) > 1 else (shares,)


def _as_layer(call: Call, references: int) -> Layer:
    """Show a call to a rule: plain activations, or differences to each of the references in the last rows."""
    several, weight = len(call.inputs) > 1, call.weight
    inputs = (torch.stack(call.inputs, 1) if several else call.inputs[0]).detach()
    outputs, norm, scale, bias = call.output.detach(), call.norm, None, call.bias
    if norm is not None:  # a number per output scales the products; broadcasts against the outputs
        scale = _norm_scale(norm, outputs)[0]
        bias = (bias - norm.running_mean.view_as(scale)) * scale
        bias = bias if norm.bias is None else bias + norm.bias.view_as(scale)
    if references:
        bias = outputs.new_zeros(())
        inputs, outputs = (x[None, :-references] - x[-references:, None] for x in (inputs, outputs))
    else:
        inputs, outputs = inputs[None], outputs[None]
    if weight is None:
        push, pull = _weight_free(call, inputs.shape[2:])
    elif isinstance(call.module, nn.Linear):
        push, pull = nn.functional.linear, torch.matmul
    else:
        push, pull = _convolution(call.module, inputs.shape[3:], outputs.shape[3:])
        if weight.ndim == 4:  # once for all products: each would copy it to the layout of the images
            weight = weight.contiguous(memory_format=torch.channels_last)
    return Layer(inputs, outputs, weight, scale, bias, push, pull)


def _convolution(
    module: nn.Module, shape: Sequence[int], target: Sequence[int]
) -> tuple[_Operator, _Operator]:
    """Return a convolution, or a transposed one, from images of a shape to a target, and what undoes it."""
    stride, dilation, none = module.stride, module.dilation, (0,) * len(shape)
    padding = none if _frames_itself(module) else module.padding
    large, small = (target, shape) if module.transposed else (shape, target)
    sides = zip(large, small, stride, padding, dilation, module.kernel_size, strict=True)
    # Says which of several sizes the way from small to large images returns.
    extra = [a - (b - 1) * s + 2 * p - d * (k - 1) - 1 for a, b, s, p, d, k in sides]

    def apply(x: Tensor, weight: Tensor, enlarge: bool) -> Tensor:
        geometry = (stride, padding, dilation, enlarge, extra if enlarge else none, module.groups)
        return torch.convolution(x.flatten(0, 1), weight, None, *geometry).unflatten(0, x.shape[:2])

    return partial(apply, enlarge=module.transposed), partial(apply, enlarge=not module.transposed)


def _weight_free(call: Call, shape: Sequence[int]) -> tuple[_Operator, _Operator]:
    """Return an average, an enlargement or a sum along axis 2, and its transpose, which autograd knows."""
    if getattr(call.module, "mode", "") == "bicubic":
        raise ValueError(f"layer {call.name!r}: bicubic weights may be negative; use bilinear or nearest")

    def push(x: Tensor, _: None) -> Tensor:
        parts = x.flatten(0, 1)
        return call.forward(*(parts.unbind(1) if len(call.inputs) > 1 else [parts])).unflatten(0, x.shape[:2])

    def pull(share: Tensor, _: None) -> Tensor:
        with torch.enable_grad():
            x = share.new_zeros(*share.shape[:2], *shape, requires_grad=True)
            return torch.autograd.grad(push(x, None), x, share)[0]

    return push, pull


def _norm_scale(module: nn.Module, x: Tensor) -> Tensor:
    """Return the factor by which a norm scales its input, statistics taken as constants."""
    weight, running = 1.0 if module.weight is None else module.weight, getattr(module, "running_var", None)
    if isinstance(module, nn.LayerNorm):
        axes = tuple(range(-len(module.normalized_shape), 0))
        return weight * torch.rsqrt(x.var(axes, unbiased=False, keepdim=True) + module.eps)
    if running is None:  # the image's own statistics
        groups = getattr(module, "num_groups", x.shape[1])
        own = x.reshape(len(x), groups, -1).var(2, unbiased=False)
        running = own.repeat_interleave(x.shape[1] // groups, 1)
    scale = torch.rsqrt(running + module.eps) * weight
    return scale.view(-1, *scale.shape[-1:], *[1] * (x.ndim - 2))


def framed(module: nn.Module, x: Tensor) -> Tensor:
    """Put the frame of a convolution around images where that is a step of its own, before it."""
    if not _frames_itself(module):
        return x
    mode = module.padding_mode.replace("zeros", "constant")
    return nn.functional.pad(x, module._reversed_padding_repeated_twice, mode)  # private to torch


def _frames_itself(module: nn.Module) -> bool:
    """Tell whether copied pixels contribute like any others, or "same" may pad unevenly."""
    mode, padding = getattr(module, "padding_mode", "zeros"), getattr(module, "padding", 0)
    return mode != "zeros" or isinstance(padding, str)
