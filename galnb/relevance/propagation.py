"""Send relevance backwards through any graph of known layers.

Inside ``with recording(model) as tape`` every known layer notes what went in and out; `propagate` then walks
the notes backwards. Between layers, PyTorch's own gradient carries relevance through what only moves or
copies numbers (views, padding, concatenation, max pooling). Anything else there raises: no sum is passed in
silence.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from galnb.gans.layers import evaluating
from galnb.relevance.operators import (
    COPIES,
    LAYERS,
    Call,
    Role,
    as_layer,
    is_transposed,
    norm_scale,
    prepare_weights,
)
from galnb.relevance.rules import Rule, divide


@dataclass
class Tape:
    """Keep the calls of the last `record`, the images and the output.

    Chapter: Polarized LRP
    """

    calls: list[Call] = field(default_factory=list)
    images: torch.Tensor | None = None
    output: torch.Tensor | None = None


@contextmanager
def recording(model: nn.Module) -> Iterator[Tape]:
    """Patch the known layers of a model, in eval mode, for the length of a `with` block.

    Whatever happens inside, afterwards each layer has its own forward and each submodule its own mode again.

    Raises
    ------
    ValueError
        If a layer with parameters is of a type that `LAYERS` does not know.

    Notes
    -----
    Chapter: Polarized LRP
    """
    layers = list(_known_layers(model, ""))
    own = [(module, module.__dict__.get("forward")) for _, module, _ in layers]
    tape = Tape()
    try:
        for name, module, role in layers:
            module.forward = partial(_note, tape, Call(name, module, role, module.forward, (), None))
        with torch.inference_mode(False), evaluating(model):
            yield tape
    finally:
        for module, forward in own:
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward


def record(tape: Tape, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Run the model once with its calls noted, merge batch norms where they may be, return the output.

    Chapter: Polarized LRP
    """
    tape.calls.clear()
    layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
    with torch.enable_grad():
        tape.images = images.detach().clone(memory_format=layout).requires_grad_()
        try:
            tape.output = model(tape.images.view_as(tape.images))
        except RuntimeError as error:
            raise ValueError(
                f"the model does not take images of shape {tuple(images.shape)} and {images.dtype}, or "
                f"changes a tensor in place outside a layer: {error}"
            ) from error
    if not isinstance(tape.output, torch.Tensor):
        kind = type(tape.output).__name__
        raise ValueError(f"the model returns a {kind}; wrap it so that it returns one tensor")
    if tape.output.shape[:1] != images.shape[:1]:
        got = f"{tuple(tape.output.shape)} for {len(images)} images"
        raise ValueError(f"the model returns shape {got}; expected one row per image")
    uses = Counter(id(leaf) for leaf in _leaves(tape.output, "the output"))
    uses.update(id(leaf) for call in tape.calls for x in call.inputs for leaf in _leaves(x, call.name))
    if not uses[id(tape.images)]:
        raise ValueError("the output does not depend on the images; does the model use no_grad or detach?")
    makers = {call.output.data_ptr(): call for call in tape.calls if call.role == "weights"}
    for call in tape.calls:
        if isinstance(call.module, nn.BatchNorm1d | nn.BatchNorm2d):
            before = makers.get(call.inputs[0].data_ptr())
            _merge(before if before and uses[id(before.output)] == 1 else None, call)
    for call in makers.values():
        prepare_weights(call)
    return tape.output.detach()


@torch.no_grad()
def propagate(
    tape: Tape,
    seed: torch.Tensor,
    plan: Callable[[int, int], Rule],
    *,
    references: int = 0,
    bias: bool = False,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Carry relevance from the recorded output back to the images; a record serves once.

    Parameters
    ----------
    tape : Tape
        After `record` on B images and, behind them, the references.
    seed : torch.Tensor, shape (S, B, ...)
        Relevance of the output, for each of S maps; with references there is one map for each.
    plan : callable
        ``plan(position, count) -> Rule`` for layer `position` of the `count` layers with weights; weight-free
        sums follow the layer with weights before them.
    references : int
        How many of the last rows are references.
    bias : bool
        Let the shifts of norms that could not be merged take their share, as biases do.

    Returns
    -------
    map : torch.Tensor, shape (S, B, C, H, W)
    lost : dict of str to torch.Tensor, shape (B, S)
        What arrived at each layer minus what left it towards the images, output first.

    Notes
    -----
    Chapter: Polarized LRP
    """
    position = count = sum(call.role == "weights" for call in tape.calls)
    waiting: dict[int, torch.Tensor] = {}
    lost: dict[str, torch.Tensor] = {}
    _scatter(tape.output, seed, waiting)
    while tape.calls:
        call = tape.calls.pop()
        position -= call.role == "weights"
        relevance = None if call.role == "merged" else waiting.pop(id(call.output), None)
        if relevance is None:
            continue
        rule = plan(max(position - (call.role == "sum"), 0), count)
        shares = list(zip(call.inputs, _cross(call, relevance, rule, references, bias), strict=True))
        if call.role != "pass":
            left = sum(_total(share) for x, share in shares if x.requires_grad)
            lost[call.name] = lost.get(call.name, 0) + _total(relevance) - left
        for x, share in shares:
            _scatter(x, share, waiting)
    return waiting[id(tape.images)], lost


def _known_layers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module, Role]]:
    role = next((LAYERS[kind] for kind in type(module).__mro__ if _is_plain(module, kind)), None)
    if role is None and next(module.parameters(recurse=False), None) is not None:
        kind = type(module).__name__
        raise ValueError(
            f"layer {name or 'model'!r} is a {kind}, for which no relevance rule is known. Build it from "
            "known layers (galnb.gans.layers.Add for sums), or say how relevance crosses it: "
            f"galnb.relevance.propagation.LAYERS[{kind}] = 'pass', 'norm', 'sum' or a function"
        )
    if role is None:
        for child_name, child in module.named_children():
            yield from _known_layers(child, f"{name}.{child_name}".lstrip("."))
    elif role != "copy":
        yield name or type(module).__name__, module, role


def _is_plain(module: nn.Module, kind: type) -> bool:
    """Tell whether a module computes what its known base class does (as weight and spectral norm let it)."""
    methods = ("forward", "_conv_forward")
    return kind in LAYERS and all(getattr(type(module), m, 0) is getattr(kind, m, 0) for m in methods)


def _note(tape: Tape, call: Call, *inputs: torch.Tensor) -> torch.Tensor:
    """Run one layer apart from the graph and note the call; the graph goes on from a fresh leaf."""
    module, in_place = call.module, getattr(call.module, "inplace", False)
    with torch.no_grad():
        output = call.forward(*(x.detach().clone() if in_place else x.detach() for x in inputs))
    call = replace(call, inputs=inputs, output=output.detach().requires_grad_())
    if call.role == "weights":
        # Read now, after the pre-forward hooks: the effective weight, also under spectral or weight norm.
        call.weight, call.bias = module.weight.detach(), module.bias
        if getattr(module, "padding_mode", "zeros") != "zeros":  # copied pixels contribute like any others
            frame = module._reversed_padding_repeated_twice
            call.inputs = (nn.functional.pad(inputs[0], frame, module.padding_mode),)
    tape.calls.append(call)
    return call.output.view_as(call.output)


def _merge(before: Call | None, norm: Call) -> None:
    """Let the layer before a batch norm take it over, where that layer feeds nothing else."""
    if norm.module.running_mean is None:
        raise ValueError(
            f"layer {norm.name!r} has no running statistics: maps would depend on the whole batch"
        )
    if before is None or not _is_same(norm.inputs[0], before.output):
        return
    if is_transposed(before) and before.module.groups > 1:
        return  # torch's fusion does not know this case
    before.output, before.norm, norm.role = norm.output, norm.module, "merged"
    before.name += f"+{norm.name}"


def _cross(
    call: Call, relevance: torch.Tensor, rule: Rule, references: int, bias: bool
) -> tuple[torch.Tensor, ...]:
    """Carry relevance (S, B, ...) from the output of a call to each of its inputs."""
    if callable(call.role):
        return call.role(call.module, call.inputs, relevance)
    if call.role == "pass" or (call.role == "norm" and not bias):
        return (relevance,)
    if call.role == "norm":
        signal = call.inputs[0] * norm_scale(call.module, call.inputs[0])
        size, shift = signal.abs(), (call.output - signal).abs()
        return (divide(relevance * size, size + shift, torch.zeros_like(size)),)
    shares = rule(as_layer(call, references), relevance)
    return shares.unbind(2) if len(call.inputs) > 1 else (shares,)


def _leaves(tensor: torch.Tensor, name: str) -> list[torch.Tensor]:
    """Find the noted outputs that a tensor was copied together from."""
    if not tensor.requires_grad:
        return []
    found, seen, waiting = [], set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if not COPIES.fullmatch(node.name()):
            raise ValueError(
                f"before {name!r} the model computes {node.name()} outside a known layer, where relevance "
                "would go astray. Make it a module: galnb.gans.layers.Add for sums, nn.AvgPool2d for means, ..."
            )
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [before for before, _ in node.next_functions]
    return found


def _scatter(tensor: torch.Tensor, relevance: torch.Tensor, waiting: dict[int, torch.Tensor]) -> None:
    """Carry relevance through what lies between two layers, and add it up at the leaves."""
    leaves = _leaves(tensor, "")
    if len(leaves) == 1 and _is_same(tensor, leaves[0]):
        shares = [relevance]
    else:
        missing = len(tensor) - relevance.shape[1]  # rows of references carry none
        full = torch.cat([relevance, relevance.new_zeros(len(relevance), missing, *relevance.shape[2:])], 1)
        rows = [torch.autograd.grad(tensor, leaves, one, retain_graph=True) for one in full if leaves]
        shares = [torch.stack(share)[:, : relevance.shape[1]] for share in zip(*rows, strict=True)]
    for leaf, share in zip(leaves, shares, strict=True):
        waiting[id(leaf)] = waiting[id(leaf)] + share if id(leaf) in waiting else share


def _is_same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    at, shape, stride = tensor.data_ptr(), tensor.shape, tensor.stride()
    return (at, shape, stride) == (other.data_ptr(), other.shape, other.stride())


def _total(relevance: torch.Tensor) -> torch.Tensor:
    axes = tuple(range(2, relevance.ndim))  # flatten would copy what is channels-last
    return (relevance.sum(axes) if axes else relevance).T
