"""Send relevance backwards through any graph of known layers.

Chapter 06, Polarized LRP. Inside ``with recording(model) as tape`` every known layer notes what went in and
out; `propagate` walks the notes backwards. Between layers PyTorch's own gradient carries relevance through
what only moves or copies numbers (views, padding, concatenation, max pooling); anything else there raises.

Private to torch, relied on and held by one test: names of autograd nodes (`_COPIES`), their `next_functions`
and `variable`, `TorchDispatchMode` and schemas, one `data_ptr` of a tensor and its view, `padding_frame`.
"""

import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from galnb.relevance.operators import Call, Role, bind, cross, known_layers, padding_frame, prepare
from galnb.relevance.rules import Rule

LOW = (torch.float16, torch.bfloat16)  # too coarse for relevance: computed in float32 instead
# What a tensor was copied together from: noted leaves, and whether there are constants, too.
_Source = tuple[list[torch.Tensor], bool]
# Nodes of the autograd graph that only move or copy numbers: their gradient is the relevance.
_COPIES = re.compile(
    r"(View|UnsafeView|Alias|Clone|ToCopy|Transpose|T|Permute|Squeeze|Unsqueeze|Expand|Repeat|Slice|Select|Index|"
    r"IndexSelect|Split|SplitWithSizes|Unbind|Cat|Stack|Flip|Roll|PixelShuffle|PixelUnshuffle|ChannelShuffle|"
    r"ConstantPadNd|ReflectionPad[12]D|ReplicationPad[12]D|MaxPool2DWithIndices|AdaptiveMaxPool2D|"
    r"UpsampleNearest2D)Backward\d+|torch::autograd::(AccumulateGrad|CopySlices)"
)
# In place into a slice, these copy; autograd calls any operation there CopySlices.
_COPIES_IN_PLACE = ("copy_", "fill_", "zero_", "squeeze_", "unsqueeze_", "transpose_", "t_", "detach_")


@dataclass
class _Tape:
    """Keep the calls of the last `record`, the images, the output, and weights prepared for the rules."""

    calls: list[Call] = field(default_factory=list)
    images: torch.Tensor | None = None
    output: torch.Tensor | None = None
    source: _Source | None = None
    prepared: dict = field(default_factory=dict)
    inside: bool = False  # a known layer is at work
    plain: bool = False  # the layers run as they are

    def count(self) -> int:
        """Count the calls that follow a rule of their own; at least 1."""
        return max(1, sum(call.role == "weights" for call in self.calls))


@contextmanager
def recording(model: nn.Module) -> Iterator[_Tape]:
    """Patch the known layers of a model for the length of a `with` block.

    Afterwards each layer has its own forward again, whatever happened inside.
    """
    layers = list(known_layers(model, "", set()))
    own = [(module, module.__dict__.get("forward")) for _, module, _ in layers]
    tape = _Tape()
    try:
        for name, module, role in layers:
            module.forward = partial(_note, tape, name, module, role, module.forward)
        yield tape
    finally:
        for module, forward in own:
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward


def record(tape: _Tape, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Run the model once with its calls noted, merge batch norms where they may be, return the output."""
    with torch.enable_grad(), _Watch(tape):
        _run(tape, model, images)
    output, one = tape.output, "one tensor of float32 or float64, one row per image"
    if not isinstance(output, torch.Tensor):
        raise ValueError(f"the model returns a {type(output).__name__}; wrap it so that it returns {one}")
    if output.shape[:1] != images.shape[:1] or output.dtype in LOW:
        got = f"{output.dtype} of shape {tuple(output.shape)} for {len(images)} images"
        raise ValueError(f"the model returns {got}; expected {one}")
    _check_in_place(tape, model, images)
    known = {id(tape.images), *(id(call.output) for call in tape.calls)}
    for call in tape.calls:
        call.sources = [_source(x, call.name, known) for x in call.inputs]
    tape.source = _source(tape.output, "the output", known)
    sources = [tape.source, *(source for call in tape.calls for source in call.sources)]
    uses = Counter(id(leaf) for leaves, _ in sources for leaf in leaves)
    if not uses[id(tape.images)]:
        raise ValueError("the output does not depend on the images; does the model use no_grad or detach?")
    makers = {call.output.data_ptr(): call for call in tape.calls if call.role == "weights"}
    for call in tape.calls:
        before = makers.get(call.inputs[0].data_ptr())
        if isinstance(call.module, nn.BatchNorm1d | nn.BatchNorm2d):
            _merge(before if before and uses[id(before.output)] == 1 else None, call)
    for call in makers.values():
        prepare(call, tape.prepared)
    return tape.output.detach()


@torch.no_grad()
def propagate(
    tape: _Tape, seed: torch.Tensor, rules: Sequence[Rule], *, references: int = 0, bias: bool = False
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Carry relevance from the recorded output back to the images; a record serves once.

    seed: (S, B, ...), relevance of the output for each of S maps; with references there is one map for each
    rules: one for each of the `tape.count()` layers with weights, images first
    references: how many of the last rows of the record are references
    bias: let the shifts of norms that could not be merged take their share, as biases do
    Returns the maps (S, B, C, H, W) and, output first, what arrived at each layer minus what left it (B, S).
    """
    waiting, lost = {}, {}  # relevance by id of the leaf it waits at; losses by name
    arrived = _scatter(tape.output, seed, tape.source, waiting)
    if tape.source[1]:
        lost["(output)"] = _total(seed) - arrived
    while tape.calls:
        call = tape.calls.pop()
        if call.role == "merged" or id(call.output) not in waiting:
            continue
        relevance = waiting.pop(id(call.output))
        shares = cross(call, relevance, rules[call.position], references, bias)
        inputs = zip(call.inputs, shares, call.sources, strict=True)
        arrived = sum(_scatter(x, share, source, waiting) for x, share, source in inputs)
        if call.role != "pass" or call.sources[0][1]:
            lost[call.name] = lost.get(call.name, 0) + _total(relevance) - arrived
    if id(tape.images) not in waiting:
        raise ValueError("no relevance reaches the images; does the model use no_grad or detach?")
    return waiting[id(tape.images)], lost


class _Watch(TorchDispatchMode):
    """Refuse what changes numbers in place outside a known layer; autograd may show it as a copy."""

    def __init__(self, tape: _Tape):
        super().__init__()
        self.tape, self.copies = tape, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function._schema.name.removeprefix("aten::")
        if self.tape.inside:
            return function(*args, **kwargs)
        parts = [*kwargs.values(), *(x for arg in args for x in (arg if isinstance(arg, list) else [arg]))]
        given = [x for x in parts if isinstance(x, torch.Tensor)]
        on_graph = any(x.requires_grad for x in given)
        if function._schema.is_mutable and given:
            self._check(name, given[0], on_graph)
        found = function(*args, **kwargs)
        if on_graph and torch.is_grad_enabled() and "_like" not in name and not name.startswith("new_"):
            self.copies += [found] if isinstance(found, torch.Tensor) else found
        return found

    def _check(self, name: str, target: torch.Tensor, on_graph: bool) -> None:
        at = target.untyped_storage().data_ptr()
        kept = [self.tape.images, *(call.output for call in self.tape.calls)]
        kept += [] if target.requires_grad else self.copies
        owned = any(x.untyped_storage().data_ptr() == at for x in kept if isinstance(x, torch.Tensor))
        hidden = owned or not torch.is_grad_enabled()  # autograd would not know
        if (on_graph or owned) and (hidden or name not in _COPIES_IN_PLACE):
            raise ValueError(
                f"the model computes {name} in place outside a known layer, where relevance would go astray. "
                "Make it a module (galnb.gans.layers.Add for sums, ...), or write a new tensor instead"
            )


def _run(tape: _Tape, model: nn.Module, images: torch.Tensor) -> None:
    """Run the model on channels-last images, which convolutions like; on plain ones if it reads `.view`."""
    for layout in (torch.channels_last, torch.contiguous_format)[images.ndim != 4 :]:
        tape.calls.clear()
        tape.images = images.detach().clone(memory_format=layout).requires_grad_()
        try:
            tape.output = model(tape.images.view_as(tape.images))
            return
        except RuntimeError as error:
            failure = error
    other = sorted({str(x.dtype) for x in model.parameters()} - {str(images.dtype)})
    weights = f" (its weights are {', '.join(other)})" if other else ""
    last = traceback.extract_tb(failure.__traceback__)[-1]
    raise ValueError(
        f"the model does not take images of shape {tuple(images.shape)} and {images.dtype}{weights}, or "
        f"changes a tensor in place outside a layer: {failure}, at {last.line or last.name!r}"
    ) from failure


def _note(tape: _Tape, name: str, module: nn.Module, role: Role, forward: Callable, *args, **kwargs):
    """Run one layer apart from the graph and note the call; the graph goes on from a fresh leaf."""
    if tape.plain:
        return forward(*args, **kwargs)
    inputs, forward = bind(name, forward, args, kwargs)
    if any(x.dtype in LOW for x in inputs):
        raise ValueError(f"layer {name!r} is given {inputs[0].dtype}; expected float32: leave that cast out")
    in_place, weight, bias = getattr(module, "inplace", False), None, None
    tape.inside = True
    try:
        with torch.no_grad(), torch.autocast(inputs[0].device.type, enabled=False):
            output = forward(*(x.detach().clone() if in_place else x.detach() for x in inputs))
            if role == "weights":
                # now, after the pre-forward hooks: the effective weight, also under spectral or weight norm
                weight, bias = module.weight.detach(), module.bias
    finally:
        tape.inside = False
    if role == "weights" and getattr(module, "padding_mode", "zeros") != "zeros":
        # copied pixels contribute like any others
        inputs = (nn.functional.pad(inputs[0], padding_frame(module), module.padding_mode),)
    if role == "sum" and len({x.shape for x in inputs}) > 1:
        inputs = torch.broadcast_tensors(*inputs)
    output = output.detach().requires_grad_()
    before = sum(call.role == "weights" for call in tape.calls)
    position = before if role == "weights" else max(before - 1, 0)
    tape.calls.append(Call(name, module, role, forward, tuple(inputs), output, position, weight, bias))
    return output.view_as(output)


def _check_in_place(tape: _Tape, model: nn.Module, images: torch.Tensor) -> None:
    """Refuse a layer that works in place where what it overwrites is used again: noted, it kept a copy."""
    names = sorted({call.name for call in tape.calls if getattr(call.module, "inplace", False)})
    if not names:
        return
    tape.plain = True
    try:
        with torch.no_grad():
            wanted = model(images.detach().clone())
    finally:
        tape.plain = False
    if not torch.allclose(tape.output, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())):
        raise ValueError(f"of {names} one overwrites what the model uses again; build it with inplace=False")


def _merge(before: Call | None, norm: Call) -> None:
    """Let the layer before a batch norm take it over, where that layer feeds nothing else."""
    if norm.module.running_mean is None:
        raise ValueError(f"layer {norm.name!r} has no running statistics: maps would depend on the batch")
    if before and _is_same(norm.inputs[0], before.output):
        before.output, before.norm, norm.role = norm.output, norm.module, "merged"
        before.name += f"+{norm.name}"


def _source(tensor: torch.Tensor, name: str, known: set[int]) -> _Source:
    """Find the noted leaves that a tensor was copied together from, and whether constants are among it."""
    if not tensor.requires_grad:
        return [], True
    found, seen, waiting, mixed = [], set(), [tensor.grad_fn], False
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        kind, before = node.name(), [one for one, _ in node.next_functions]
        if not _COPIES.fullmatch(kind):
            raise ValueError(
                f"before {name!r} the model computes {kind} outside a known layer, where relevance would go "
                "astray. Make it a module: galnb.gans.layers.Add for sums, nn.AvgPool2d for means, ..."
            )
        leaf = getattr(node, "variable", None)
        found += [leaf] if id(leaf) in known else []
        mixed |= leaf is not None and id(leaf) not in known
        mixed |= kind.startswith(("ConstantPad", "torch::autograd::CopySlices"))
        mixed |= None in before and kind.startswith(("Cat", "Stack"))
        waiting += [one for one in before if one is not None]
    return found, mixed


def _scatter(
    tensor: torch.Tensor, relevance: torch.Tensor, source: _Source, waiting: dict[int, torch.Tensor]
) -> torch.Tensor:
    """Carry relevance through what lies between two layers, add it up at the leaves, return what arrived."""
    leaves, mixed = source
    if len(leaves) == 1 and _is_same(tensor, leaves[0]):
        shares = [relevance]
    else:
        missing = len(tensor) - relevance.shape[1]  # rows of references carry none
        full = torch.cat([relevance, relevance.new_zeros(len(relevance), missing, *relevance.shape[2:])], 1)
        rows = [torch.autograd.grad(tensor, leaves, one, retain_graph=True) for one in full if leaves]
        shares = [torch.stack(share)[:, : relevance.shape[1]] for share in zip(*rows, strict=True)]
    for leaf, share in zip(leaves, shares, strict=True):
        waiting[id(leaf)] = waiting[id(leaf)] + share if id(leaf) in waiting else share
    total = _total(relevance)
    return sum(map(_total, shares), torch.zeros_like(total)) if mixed else total


def _is_same(*tensors: torch.Tensor) -> bool:
    return len({(x.data_ptr(), x.shape, x.stride()) for x in tensors}) == 1


def _total(relevance: torch.Tensor) -> torch.Tensor:
    axes = tuple(range(2, relevance.ndim))  # flatten would copy what is channels-last
    return (relevance.sum(axes) if axes else relevance).T
