"""Say how relevance crosses each type of layer, and turn one use of it into what the rules work with."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from galnb.gans.layers import Add, Concat, Gate, Multiply
from galnb.relevance.rules import Layer

Operator = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
Role = str | Callable[[nn.Module, tuple, torch.Tensor], tuple[torch.Tensor, ...]]


def share_gate(module: nn.Module, inputs: tuple, relevance: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Share a product, light x share of the light, equally between its two factors.

    Chapter: Polarized LRP
    """
    return relevance.sum(2) / 2, relevance.flatten(2, 3) / 2


def share_glu(module: nn.Module, inputs: tuple, relevance: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Give all to the signal and nothing to the gate that scales it.

    Chapter: Polarized LRP
    """
    axis = module.dim if module.dim < 0 else module.dim + 1
    return (torch.cat([relevance, torch.zeros_like(relevance)], axis),)


def share_signal(module: nn.Module, inputs: tuple, relevance: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Give all to the signal and nothing to the second input, the gate that scales it.

    Chapter: New galaxies
    """
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
    nn.GLU: share_glu,
    Multiply: share_signal,
    Gate: share_gate,
}
# Nodes of the autograd graph that only move or copy numbers: their gradient is the relevance.
COPIES = re.compile(
    r"(View|UnsafeView|Alias|Clone|ToCopy|Transpose|T|Permute|Squeeze|Unsqueeze|Expand|Repeat|Slice|Select|Index|"
    r"IndexSelect|Split|SplitWithSizes|Unbind|Cat|Stack|Flip|Roll|PixelShuffle|PixelUnshuffle|ChannelShuffle|"
    r"ConstantPadNd|ReflectionPad[12]D|ReplicationPad[12]D|MaxPool2DWithIndices|AdaptiveMaxPool2D|"
    r"UpsampleNearest2D)Backward\d+|torch::autograd::(AccumulateGrad|CopySlices)"
)


@dataclass
class Call:
    """Note one use of a known layer: its role, what entered (on the graph), and the fresh leaf that left.

    `norm` is the batch norm merged into the layer, whose output then stands in `output`.
    Chapter: Polarized LRP
    """

    name: str
    module: nn.Module
    role: Role
    forward: Callable
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor
    weight: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    norm: nn.Module | None = None


# Fused weight and bias, and |weight|, of the layers seen last. An entry serves only while all parameters have
# the same projection on a fixed vector; version counters would miss changes made through `.data`.
_PREPARED: WeakKeyDictionary[nn.Module, tuple[torch.Tensor, ...]] = WeakKeyDictionary()


def prepare_weights(call: Call) -> None:
    """Fuse the batch norm into weight and bias, and lay out the weight and its absolute value for speed.

    Chapter: Polarized LRP
    """
    norm, rows = call.norm, call.weight.flatten(1)
    vectors = [] if norm is None else [norm.running_mean, norm.running_var, norm.weight, norm.bias]
    stamp = [rows @ torch.arange(1, rows.shape[1] + 1).to(rows).sin(), call.bias, *vectors]
    stamp = torch.cat([vector.detach() for vector in stamp if vector is not None])
    known = _PREPARED.get(call.module)
    if known is None or known[1].shape != call.weight.shape or not _is_equal(known[0], stamp):
        weight, bias = call.weight, call.bias
        if norm is not None:
            statistics, transposed = (*vectors[:2], norm.eps, *vectors[2:]), is_transposed(call)
            fused = fuse_conv_bn_weights(weight, bias, *statistics, transpose=transposed)
            weight, bias = (value.detach() for value in fused)
        layout = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
        weight = weight.contiguous(memory_format=layout)
        known = _PREPARED[call.module] = stamp, weight, bias, weight.abs()
    call.weight, call.bias, call.magnitude = known[1:]


def as_layer(call: Call, references: int) -> Layer:
    """Show a call to a rule: plain activations, or differences to each of the references in the last rows.

    Chapter: Polarized LRP
    """
    several = len(call.inputs) > 1
    inputs = torch.stack([x.detach() for x in call.inputs], 1) if several else call.inputs[0].detach()
    outputs, bias = call.output.detach(), 0.0
    if references:
        inputs, outputs = (x[None, :-references] - x[-references:, None] for x in (inputs, outputs))
    else:
        inputs, outputs = inputs[None], outputs[None]
        if call.bias is not None:
            bias = call.bias.detach().view((-1,) + (1,) * (call.weight.ndim - 2))
    if several:
        push, pull = _addition(len(call.inputs))
    elif call.role == "sum":
        push, pull = _weight_free(call, inputs.shape[2:])
    elif isinstance(call.module, nn.Linear):
        push, pull = _linear
    else:
        push, pull = _convolution(call.module, inputs.shape[3:])
    return Layer(inputs, outputs, bias, call.weight, call.magnitude, push, pull)


_linear = (lambda x, weight: x @ weight.T, lambda share, weight: share @ weight)


def _convolution(module: nn.Module, shape: Sequence[int]) -> tuple[Operator, Operator]:
    """Return a convolution over images of a shape, or a transposed one, and what undoes it."""
    axes, kernel, stride, dilation = len(shape), module.kernel_size, module.stride, module.dilation
    # Copying modes have padded the input already, and "same" may pad unevenly: nothing is left to
    # convolution.
    explicit = module.padding_mode != "zeros" or isinstance(module.padding, str)
    padding = (0,) * axes if explicit else module.padding
    frame = [0] * (2 * axes)
    if isinstance(module.padding, str) and module.padding_mode == "zeros":
        frame = module._reversed_padding_repeated_twice  # last axis first, as nn.functional.pad takes it
    sides = [
        side + frame[2 * i] + frame[2 * i + 1] for side, i in zip(shape, reversed(range(axes)), strict=True)
    ]
    # Output padding tells a transposed convolution which of several input sizes to return.
    extra = [(sides[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) % stride[i] for i in range(axes)]

    def apply(x: torch.Tensor, weight: torch.Tensor, back: bool, extra: Sequence[int]) -> torch.Tensor:
        geometry = (stride, padding, dilation, back, extra, module.groups)
        return torch.convolution(x.flatten(0, 1), weight, None, *geometry).unflatten(0, x.shape[:2])

    pad, none = nn.functional.pad, [0] * axes
    if module.transposed:
        inside = (..., *map(slice, shape))
        return (
            lambda x, weight: apply(x, weight, True, module.output_padding),
            lambda share, weight: apply(share, weight, False, none)[inside],
        )
    return (
        lambda x, weight: apply(pad(x, frame), weight, False, none),
        lambda share, weight: pad(apply(share, weight, True, extra), [-side for side in frame]),
    )


def _addition(count: int) -> tuple[Operator, Operator]:
    """Return the sum of tensors stacked along axis 2 and its transpose."""
    return lambda x, _: x.sum(2), lambda share, _: torch.stack([share] * count, 2)


def _weight_free(call: Call, shape: Sequence[int]) -> tuple[Operator, Operator]:
    """Return an average or enlargement and its transpose, which autograd knows."""
    if getattr(call.module, "mode", "") == "bicubic":
        raise ValueError(f"layer {call.name!r}: bicubic weights may be negative; use bilinear or nearest")

    def pull(share: torch.Tensor, _: None) -> torch.Tensor:
        with torch.enable_grad():
            x = share.new_zeros(share.shape[0] * share.shape[1], *shape, requires_grad=True)
            (back,) = torch.autograd.grad(call.forward(x), x, share.flatten(0, 1))
        return back.unflatten(0, share.shape[:2])

    return lambda x, _: call.forward(x.flatten(0, 1)).unflatten(0, x.shape[:2]), pull


def norm_scale(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the factor by which a norm scales its input, statistics taken as constants.

    Chapter: Polarized LRP
    """
    weight = 1.0 if module.weight is None else module.weight
    if isinstance(module, nn.LayerNorm):
        axes = tuple(range(-len(module.normalized_shape), 0))
        return weight * torch.rsqrt(x.var(axes, unbiased=False, keepdim=True) + module.eps)
    if isinstance(module, nn.GroupNorm | nn.InstanceNorm2d):
        groups = getattr(module, "num_groups", x.shape[1])
        variance = x.reshape(len(x), groups, -1).var(2, unbiased=False)
        scale = torch.rsqrt(variance + module.eps).repeat_interleave(x.shape[1] // groups, 1) * weight
    else:
        scale = (torch.rsqrt(module.running_var + module.eps) * weight)[None]
    return scale.view(scale.shape + (1,) * (x.ndim - 2))


def is_transposed(call: Call) -> bool:
    """Tell whether a call is of a transposed convolution.

    Chapter: Polarized LRP
    """
    return getattr(call.module, "transposed", False)


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.dtype, one.device) == (other.dtype, other.device) and torch.equal(one, other)
