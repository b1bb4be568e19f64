"""Say how relevance crosses each type of layer, and show one use of it to the rules.

Chapter 06, Polarized LRP.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature

import torch
from torch import nn

from galnb.gans.layers import Add, Concat, Gate, Multiply
from galnb.relevance.rules import Layer, Rule, divide

_Parts = tuple[
    torch.Tensor, torch.Tensor | None, bool
]  # weight, scale of its outputs, whether to take |weight|
_Operator = Callable[[torch.Tensor, _Parts], torch.Tensor]
Role = str | Callable[[nn.Module, tuple, torch.Tensor], tuple[torch.Tensor, ...]]


def _share_gate(module: nn.Module, inputs: tuple, relevance: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Share a product, light x share of the light, equally between its two factors."""
    return relevance.sum(2) / 2, relevance.flatten(2, 3) / 2


def _share_glu(module: nn.Module, inputs: tuple, relevance: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Give all to the signal and nothing to the gate that scales it."""
    axis = module.dim if module.dim < 0 else module.dim + 1
    return (torch.cat([relevance, torch.zeros_like(relevance)], axis),)


def _share_signal(module: nn.Module, inputs: tuple, relevance: torch.Tensor) -> tuple[torch.Tensor, ...]:
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
    position: index of its rule; weight-free sums follow the layer with weights before them
    sources: for each input, what it was copied together from
    norm: the batch norm merged into the layer, whose output then stands in `output`
    prepared: weight, its absolute value and the bias, as the rules take them
    """

    name: str
    module: nn.Module
    role: Role
    forward: Callable
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor
    position: int = 0
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    sources: list = field(default_factory=list)
    norm: nn.Module | None = None
    prepared: tuple = (None, None, 0.0)


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
    if not kwargs and all(isinstance(value, torch.Tensor) for value in args):
        return args, forward
    bound = signature(forward).bind(*args, **kwargs)
    given = [(key, value) for key, value in bound.arguments.items() if value is not None]
    inputs = [value for _, value in given if isinstance(value, torch.Tensor)]
    other = {key: value for key, value in given if not isinstance(value, torch.Tensor)}
    if not inputs or not other.keys() <= {"output_size"}:
        raise ValueError(f"layer {name!r} is called with {sorted(other) or 'nothing'}; expected tensors only")
    return tuple(inputs), partial(forward, **other)


def prepare(call: Call, known: dict) -> None:
    """Bring a layer and the batch norm merged into it to the form that the rules take, once per weight.

    Both together scale the products of input and weight by a number per output. Absolute values of a large
    matrix would take longer to store than to use: they are formed in pieces when needed.
    """
    raw, norm, scale, bias = call.weight, call.norm, None, call.bias
    matrix = isinstance(call.module, nn.Linear)
    layout = torch.channels_last if raw.ndim == 4 else torch.contiguous_format
    before = known.get(id(call.module))
    if before is None or not (before[0].data_ptr() == raw.data_ptr() or torch.equal(before[0], raw)):
        magnitude = raw if matrix else raw.clone(memory_format=layout).abs_()
        before = known[id(call.module)] = raw, magnitude
    weight, magnitude = before
    if bias is not None and not matrix:
        bias = bias.view(-1, *(1,) * (raw.ndim - 2))
    if norm is not None:
        scale = _norm_scale(norm, call.output)[0].detach()  # broadcasts against the outputs, as the bias does
        shift = 0.0 if norm.bias is None else norm.bias.view_as(scale)
        bias = ((0.0 if bias is None else bias) - norm.running_mean.view_as(scale)) * scale + shift
    bias = 0.0 if bias is None else bias.detach()
    size = None if scale is None else scale.abs()
    call.prepared = (weight, scale, False), (magnitude, size, matrix), bias


def cross(
    call: Call, relevance: torch.Tensor, rule: Rule, references: int, bias: bool
) -> tuple[torch.Tensor, ...]:
    """Carry relevance (S, B, ...) from the output of a call to each of its inputs."""
    if callable(call.role):
        return call.role(call.module, call.inputs, relevance)
    if call.role == "pass" or (call.role == "norm" and not bias):
        return (relevance,)
    if call.role == "norm":
        signal = call.inputs[0] * _norm_scale(call.module, call.inputs[0])
        size, shift = signal.abs(), (call.output - signal).abs()
        return (divide(relevance * size, size + shift, torch.zeros_like(size)),)
    shares = rule(_as_layer(call, references), relevance)
    return shares.unbind(2) if len(call.inputs) > 1 else (shares,)


def _as_layer(call: Call, references: int) -> Layer:
    """Show a call to a rule: plain activations, or differences to each of the references in the last rows."""
    several = len(call.inputs) > 1
    inputs = torch.stack([x.detach() for x in call.inputs], 1) if several else call.inputs[0].detach()
    outputs, (weight, magnitude, bias) = call.output.detach(), call.prepared
    if references:
        bias = 0.0
        inputs, outputs = (x[None, :-references] - x[-references:, None] for x in (inputs, outputs))
    else:
        inputs, outputs = inputs[None], outputs[None]
    if several:
        push, pull = _addition(len(call.inputs))
    elif call.role == "sum":
        push, pull = _weight_free(call, inputs.shape[2:])
    elif isinstance(call.module, nn.Linear):
        push, pull = _push_linear, _pull_linear
    else:
        push, pull = _convolution(call.module, inputs.shape[3:], outputs.shape[3:])
    return Layer(inputs, outputs, bias, weight, magnitude, push, pull)


def _push_linear(x: torch.Tensor, parts: _Parts) -> torch.Tensor:
    weight, scale, absolute = parts
    pieces = [x @ piece.abs().T for piece in _pieces(weight)] if absolute else [x @ weight.T]
    out = pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)
    return out if scale is None else out * scale


def _pull_linear(share: torch.Tensor, parts: _Parts) -> torch.Tensor:
    weight, scale, absolute = parts
    share = share if scale is None else share * scale
    if not absolute:
        return share @ weight
    pieces = _pieces(weight)
    shares = share.split(len(pieces[0]), -1)
    out = shares[0] @ pieces[0].abs()
    for one, piece in zip(shares[1:], pieces[1:], strict=True):
        out += one @ piece.abs()
    return out


def _pieces(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cut a matrix into rows that fit into the cache of a processor (1 MB)."""
    return weight.split(max(1, 2**18 // weight.shape[1]))


def _convolution(
    module: nn.Module, shape: Sequence[int], target: Sequence[int]
) -> tuple[_Operator, _Operator]:
    """Return a convolution, or a transposed one, from images of a shape to a target, and what undoes it."""
    axes, stride = range(len(shape)), module.stride
    # Copying modes have padded the input already, and "same" may pad unevenly: nothing is left to
    # convolution.
    explicit = module.padding_mode != "zeros" or isinstance(module.padding, str)
    padding = (0,) * len(shape) if explicit else module.padding
    same = isinstance(module.padding, str) and module.padding_mode == "zeros"
    frame = padding_frame(module) if same else [0] * (2 * len(shape))
    reach = [module.dilation[i] * (module.kernel_size[i] - 1) + 1 - 2 * padding[i] for i in axes]
    # Output padding tells a transposed convolution which of several sizes to return.
    if module.transposed:
        extra = [target[i] - (shape[i] - 1) * stride[i] - reach[i] for i in axes]
    else:
        extra = [(shape[i] + sum(frame[-2 * i - 2 :][:2]) - reach[i]) % stride[i] for i in axes]
    none, inside = [0] * len(shape), (..., *map(slice, shape))

    def pad(x: torch.Tensor, frame: Sequence[int]) -> torch.Tensor:
        return nn.functional.pad(x, frame) if any(frame) else x  # torch would copy

    def apply(x: torch.Tensor, weight: torch.Tensor, back: bool) -> torch.Tensor:
        geometry = (stride, padding, module.dilation, back, extra if back else none, module.groups)
        return torch.convolution(x.flatten(0, 1), weight, None, *geometry).unflatten(0, x.shape[:2])

    def push(x: torch.Tensor, parts: _Parts) -> torch.Tensor:
        weight, scale, _ = parts
        out = apply(x if module.transposed else pad(x, frame), weight, module.transposed)
        return out if scale is None else out.mul_(scale)

    def pull(share: torch.Tensor, parts: _Parts) -> torch.Tensor:
        weight, scale, _ = parts
        out = apply(share if scale is None else share * scale, weight, not module.transposed)
        return out[inside] if module.transposed else pad(out, [-side for side in frame])

    return push, pull


def _addition(count: int) -> tuple[_Operator, _Operator]:
    """Return the sum of tensors stacked along axis 2 and its transpose."""
    return lambda x, _: x.sum(2), lambda share, _: torch.stack([share] * count, 2)


def _weight_free(call: Call, shape: Sequence[int]) -> tuple[_Operator, _Operator]:
    """Return an average or enlargement and its transpose, which autograd knows."""
    if getattr(call.module, "mode", "") == "bicubic":
        raise ValueError(f"layer {call.name!r}: bicubic weights may be negative; use bilinear or nearest")

    def pull(share: torch.Tensor, _: None) -> torch.Tensor:
        with torch.enable_grad():
            x = share.new_zeros(share.shape[0] * share.shape[1], *shape, requires_grad=True)
            (back,) = torch.autograd.grad(call.forward(x), x, share.flatten(0, 1))
        return back.unflatten(0, share.shape[:2])

    return lambda x, _: call.forward(x.flatten(0, 1)).unflatten(0, x.shape[:2]), pull


def _norm_scale(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the factor by which a norm scales its input, statistics taken as constants."""
    weight = 1.0 if module.weight is None else module.weight
    if isinstance(module, nn.LayerNorm):
        axes = tuple(range(-len(module.normalized_shape), 0))
        return weight * torch.rsqrt(x.var(axes, unbiased=False, keepdim=True) + module.eps)
    batch = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    if not batch and not getattr(module, "track_running_stats", False):  # the image's own statistics
        groups = getattr(module, "num_groups", x.shape[1])
        variance = x.reshape(len(x), groups, -1).var(2, unbiased=False)
        scale = torch.rsqrt(variance + module.eps).repeat_interleave(x.shape[1] // groups, 1) * weight
    else:
        scale = (torch.rsqrt(module.running_var + module.eps) * weight)[None]
    return scale.view(scale.shape + (1,) * (x.ndim - 2))


def padding_frame(module: nn.Module) -> Sequence[int]:
    """Return what a convolution pads on each side, last axis first, as nn.functional.pad takes it."""
    return module._reversed_padding_repeated_twice  # private to torch; a test holds it
