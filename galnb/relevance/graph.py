"""Send relevance backwards through any graph of known layers.

Chapter 06, Polarized LRP. Inside ``with recording(model) as tape`` every known layer notes what went in and
out; `propagate` walks the notes backwards. Between layers PyTorch's own gradient carries relevance through
what only moves or copies numbers (views, padding, concatenation, max pooling); anything else there raises.

Private to torch, relied on and held by one test: names of autograd nodes (`_COPIES`), their `next_functions`
and `variable`, `TorchDispatchMode` and schemas, one `data_ptr` of a tensor and its view, and in `operators`
the frame of a convolution.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from galnb.relevance.operators import Call, Role, bind, cross, framed, known_layers
from galnb.relevance.rules import Rule

LOW = (torch.float16, torch.bfloat16)  # too coarse for relevance: computed in float32 instead
# What a tensor was copied together from: noted leaves, and whether there are constants, too.
_Source = tuple[list[Tensor], bool]
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
    """Keep the calls of the last `record`, the images and the output."""

    calls: list[Call] = field(default_factory=list)
    images: Tensor | None = None
    output: Tensor | None = None
    source: _Source | None = None
    overwritten: list[tuple[str, Tensor]] = field(default_factory=list)  # by layers that work in place
    inside: bool = False  # a known layer is at work

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


def record(tape: _Tape, model: nn.Module, images: Tensor) -> Tensor:
    """Run the model once with its calls noted, merge batch norms where they may be, return the output."""
    with torch.enable_grad(), _Watch(tape):
        _run(tape, model, images)
    output, known = tape.output, isinstance(tape.output, Tensor)
    if not known or output.shape[:1] != images.shape[:1] or output.dtype in LOW:
        got = f"{output.dtype} of shape {tuple(output.shape)}" if known else f"a {type(output).__name__}"
        wanted = "one tensor of float32 or float64, one row per image"
        raise ValueError(f"the model returns {got} for {len(images)} images; expected {wanted}")
    makers = {id(call.output): call for call in tape.calls}
    known = {id(tape.images), *makers}
    for call in tape.calls:
        call.sources = [_source(x, call.name, known) for x in call.inputs]
    tape.source = _source(output, "the output", known)
    sources = [tape.source, *(source for call in tape.calls for source in call.sources)]
    uses = Counter(id(leaf) for leaves, _ in sources for leaf in leaves)
    for norm in tape.calls:
        if isinstance(norm.module, nn.BatchNorm1d | nn.BatchNorm2d):
            _merge(norm, [makers[id(x)] for x in norm.sources[0][0] if uses[id(x)] == 1 and id(x) in makers])
    return output.detach()


@torch.no_grad()
def propagate(
    tape: _Tape, seed: Tensor, rules: Sequence[Rule], *, references: int = 0, bias: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
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
        lost["(output)"] = total(seed) - arrived
    while tape.calls:
        call = tape.calls.pop()
        if call.role == "merged" or id(call.output) not in waiting:
            continue
        relevance = waiting.pop(id(call.output))
        shares = cross(call, relevance, rules[call.position], references, bias)
        inputs = zip(call.inputs, shares, call.sources, strict=True)
        arrived = sum(_scatter(x, share, source, waiting) for x, share, source in inputs)
        if call.role != "pass" or call.sources[0][1]:
            lost[call.name] = lost.get(call.name, 0) + total(relevance) - arrived
    if id(tape.images) not in waiting:
        raise ValueError("no relevance reaches the images; does the model use no_grad or detach?")
    return waiting[id(tape.images)], lost


class _Watch(TorchDispatchMode):
    """Refuse what changes numbers in place outside a known layer; autograd may show it as a copy."""

    def __init__(self, tape: _Tape):
        super().__init__()
        self.tape, self.seen = tape, []  # what was on the graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function._schema.name.removeprefix("aten::")
        if self.tape.inside:
            return function(*args, **kwargs)
        given = [x for x in tree_leaves((kwargs, args)) if isinstance(x, Tensor)]  # `out=` first
        on_graph = any(x.requires_grad for x in given)
        _check_overwritten(self.tape, given)
        if function._schema.is_mutable and given:
            # without gradients, and by an alias behind its back, autograd would not know
            alias = not given[0].requires_grad and any(_share_memory(given[0], x) for x in self.seen)
            if alias or (on_graph and not (name in _COPIES_IN_PLACE and torch.is_grad_enabled())):
                way = "Make it a module (galnb.gans.layers.Add for sums), or write a new tensor instead"
                told = f"the model computes {name} in place outside a known layer"
                raise ValueError(f"{told}, where relevance would go astray. {way}")
        found = function(*args, **kwargs)
        if on_graph and torch.is_grad_enabled() and "_like" not in name and not name.startswith("new_"):
            self.seen += [found] if isinstance(found, Tensor) else found
        return found


def _run(tape: _Tape, model: nn.Module, images: Tensor) -> None:
    """Run the model on channels-last images, which convolutions like; on plain ones if it reads `.view`."""
    for layout in (torch.channels_last, torch.contiguous_format)[images.ndim != 4 :]:
        tape.calls.clear()
        tape.overwritten.clear()
        tape.images = images.detach().clone(memory_format=layout).requires_grad_()
        try:
            tape.output = model(tape.images.view_as(tape.images))
            return
        except RuntimeError as error:
            failure = error
    weights = ", ".join(sorted({str(x.dtype) for x in model.parameters()}))
    told = f"the model does not take images of shape {tuple(images.shape)} and {images.dtype}"
    why = f"(its weights are {weights or 'none'}), or changes a tensor in place outside a layer: {failure}"
    raise ValueError(f"{told} {why}") from failure


def _note(tape: _Tape, name: str, module: nn.Module, role: Role, forward: Callable, *args, **kwargs):
    """Run one layer apart from the graph and note the call; the graph goes on from a fresh leaf."""
    inputs, forward = bind(name, forward, args, kwargs)
    _check_overwritten(tape, inputs)
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
    bias = output.new_zeros(()) if bias is None else bias.detach().view(-1, *[1] * (weight.ndim - 2))
    if role == "weights":
        inputs = (framed(module, inputs[0]),)
    elif role == "sum":
        inputs = torch.broadcast_tensors(*inputs)
    tape.overwritten += [(name, x) for x in inputs if in_place]
    output = output.detach().requires_grad_()
    before = sum(call.role == "weights" for call in tape.calls)
    position = before if role == "weights" else max(before - 1, 0)
    tape.calls.append(Call(name, module, role, forward, tuple(inputs), output, weight, bias, position))
    return output.view_as(output)


def _check_overwritten(tape: _Tape, given: Iterable[Tensor]) -> None:
    """Refuse to use again what a layer overwrites that works in place: noted, it kept a copy."""
    for name, gone in tape.overwritten:
        if any(_share_memory(gone, x) for x in given):
            raise ValueError(f"{name!r} overwrites what the model uses again; build it with inplace=False")


def _merge(norm: Call, makers: list[Call]) -> None:
    """Let the layer before a batch norm take it over; makers: the calls that feed nothing else."""
    if norm.module.running_mean is None:
        raise ValueError(f"layer {norm.name!r} has no running statistics: maps would depend on the batch")
    for before in makers:
        if before.role == "weights" and _is_same(norm.inputs[0], before.output):
            before.output, before.norm, norm.role = norm.output, norm.module, "merged"
            before.name += f"+{norm.name}"


def _source(tensor: Tensor, name: str, known: set[int]) -> _Source:
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
            way = "Make it a module: galnb.gans.layers.Add for sums, nn.AvgPool2d for means, ..."
            told = f"before {name!r} the model computes {kind} outside a known layer"
            raise ValueError(f"{told}, where relevance would go astray. {way}")
        leaf = getattr(node, "variable", None)
        found += [leaf] if id(leaf) in known else []
        mixed |= leaf is not None and id(leaf) not in known
        mixed |= kind.startswith(("ConstantPad", "torch::autograd::CopySlices"))
        mixed |= None in before and kind.startswith(("Cat", "Stack"))
        waiting += [one for one in before if one is not None]
    return found, mixed


def _scatter(tensor: Tensor, relevance: Tensor, source: _Source, waiting: dict[int, Tensor]) -> Tensor:
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
    return sum(map(total, shares), 0 * total(relevance)) if mixed else total(relevance)


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _is_same(*tensors: Tensor) -> bool:
    return len({(x.data_ptr(), x.shape, x.stride()) for x in tensors}) == 1


def total(relevance: Tensor) -> Tensor:
    """Add up maps of relevance (S, B, ...): (B, S)."""
    axes = tuple(range(2, relevance.ndim))  # flatten would copy what is channels-last
    return (relevance.sum(axes) if axes else relevance).T
