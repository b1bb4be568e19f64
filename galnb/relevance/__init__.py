"""Ask a network what its score rests on: relevance by one rule, and Polarized-LRP in four readings.

Chapter 06, Polarized LRP. Images are exactly what the model takes (for a GAN of this package
``gan.prepare(images)``), float (B, C, H, W). The model runs in eval mode, without autocast, and in float32
where it or its images are coarser; it is left as it was.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from galnb.checks import check_floats, check_generator, check_kind, one_of
from galnb.gans.layers import batch_dependent, check_network, evaluating
from galnb.relevance.graph import LOW, propagate, record, recording, total
from galnb.relevance.rules import READINGS, RULES, Rule

_SIGNED = ("composite", "reference")  # readings whose two maps are the signs of one
_CHUNK = 32  # images per pass: enough to keep all threads busy, few enough to bound memory


class JudgeWarning(UserWarning):
    """A judge's maps are asked for that saw other images of each batch while it learned."""


@dataclass(frozen=True)
class Relevance:
    """Hold the map of one rule.

    map: shape of the images, relevance per input element
    score: (B,), the explained output; with a seed, the sum of seed x output
    leak: (B,), sum of the seed minus sum of the map
    lost: the leak layer by layer, (B,) each: what entered minus what left, output first
    """

    map: Tensor
    score: Tensor
    leak: Tensor
    lost: dict[str, Tensor]


@dataclass(frozen=True)
class Polarized:
    """Hold both maps of Polarized-LRP.

    positive, negative: shape of the images, >= 0, evidence for "real" and for "fake". Readings "paper" and
        "output": each sums to 1 - leak. "composite" and "reference": the two signs of one map, positive -
        negative, whose sum is score - reference_score - leak
    score, reference_score: (B,), logit of each image; mean logit of the references, else 0
    leak: (B, 2), what did not arrive, in units of the maps; for a signed map the same number twice
    reading: key of `READINGS`
    lost: the leak layer by layer, output first, (B, maps): two, one signed, or one per reference
    """

    positive: Tensor
    negative: Tensor
    score: Tensor
    leak: Tensor
    reading: str
    reference_score: Tensor
    lost: dict[str, Tensor]

    def per_pixel(self) -> tuple[Tensor, Tensor]:
        """Add up the channels: two tensors (B, 1, H, W) >= 0; a signed map is netted first, then split."""
        if self.reading in _SIGNED:
            return _split((self.positive - self.negative).sum(1, keepdim=True))
        return self.positive.sum(1, keepdim=True), self.negative.sum(1, keepdim=True)


def relevance(model: nn.Module, images: Tensor, *, rule: str | Rule, seed: Tensor | None = None) -> Relevance:
    """Distribute an output over the input elements by one rule in every layer.

    model: any graph of the layers in `galnb.relevance.operators.LAYERS`
    rule: key of `RULES`, or `rule(layer, relevance) -> relevance` for a `galnb.relevance.rules.Layer`
    seed: shape of the output, relevance to start from; default 1 per image, for a model with one output. To
        explain a part of a generated image, seed with the output inside that part and 0 outside
    """
    if not callable(rule):
        one_of("rule", rule, RULES)
        rule = RULES[rule]
    images = _checked(images, "images")

    def start(output: Tensor, first: int) -> Tensor:
        if seed is None:
            return _one_each(output)[None]
        expected = (len(images), *output.shape[1:])
        if getattr(seed, "shape", None) != expected or not seed.isfinite().all():
            given = tuple(seed.shape) if isinstance(seed, Tensor) else seed
            raise ValueError(f"seed: got {given!r}, expected finite numbers shaped as the output, {expected}")
        return seed.detach()[None, first : first + len(output)].to(output)

    output, seeds, maps, lost = _run(model, images, start, lambda count: [rule] * count)
    leak, score = (total(seeds) - total(maps))[:, 0], total(seeds * output)[:, 0]
    return Relevance(maps[0], score, leak, {name: values[:, 0] for name, values in lost.items()})


def polarized_relevance(
    model: nn.Module,
    images: Tensor,
    *,
    reading: str = "paper",
    bias: bool = False,
    references: Tensor | None = None,
) -> Polarized:
    """Compute the positive and the negative relevance map of a network with one output.

    reading: "paper", Eq. 3 of Li et al. (2020) to the letter, its sign kept in every layer; "output", that
        sign chosen at the last layer only; "composite", one signed map, signed contributions in the last two
        layers, those of the unit's own sign below; "reference", one signed map of the differences to
        `references`, averaged over them, signed contributions in the upper half of the layers
    bias: "paper" and "output" keep the biases in the denominators, as printed; their share then leaks, so
        that Eq. 1 (conservation) holds only without
    references: (K, C, H, W), for "reference": eight real and generated images, none of them among `images`;
        or cheaper, one of sky

    R_i = sum_j [z_ij]± / (sum_k [z_kj]± + [b_j]±) R_j with z_ij = x_i w_ij (Eq. 3): products are truncated,
    not weights. Both maps of "paper" and "output" start from 1. On planted truth these two do not tell
    evidence for "real" from evidence for "fake", and "reference" does, but not behind group norm. Batch norm
    draws a `JudgeWarning`.
    """
    one_of("reading", reading, READINGS)
    if layers := batch_dependent(model):
        text = f"{layers[0]} ({len(layers)} such layers) saw the other images of each batch in training, so"
        advice = "may know nothing of one image alone: say evaluation.judge_figures beside its maps"
        warnings.warn(f"{text} this judge {advice}", JudgeWarning, stacklevel=2)
    images = _checked(images, "images")
    if (references is not None) != (reading == "reference"):
        raise ValueError("references are needed by reading='reference', and only by it")
    if references is not None:
        references = _fitting(_checked(references, "references"), images)

    def start(output: Tensor, _: int) -> Tensor:
        one = _one_each(output)
        if references is not None:
            return output[None, : -len(references)] - output[-len(references) :, None]
        return output[None] if reading == "composite" else torch.stack([one, one])

    rules = partial(READINGS[reading], bias=bias)
    output, seeds, maps, lost = _run(model, images, start, rules, references=references, bias=bias)
    leak, score = total(seeds) - total(maps), output.flatten()
    neutral = torch.zeros_like(score) if references is None else score - total(seeds).mean(1)
    if reading in _SIGNED:
        positive, negative = _split(maps.mean(0))
        leak = leak.mean(1, keepdim=True).expand(-1, 2)
    else:
        positive, negative = maps.clamp(min=0)  # rounding may leave -1e-9 where there is nothing
    return Polarized(positive, negative, score, leak, reading, neutral, lost)


def deletion_gate(
    model: nn.Module,
    images: Tensor,
    polarized: Polarized,
    *,
    share: float = 0.06,
    generator: torch.Generator,
    fill: Tensor | None = None,
) -> Tensor:
    """Fill the strongest pixels of each map with sky and see whether the logit moves the right way.

    model, images, polarized: as given to `polarized_relevance`, and its answer
    share: fraction of the pixels to fill, above 0 and below 1
    generator: on the CPU; draws the sky noise
    fill: broadcastable to the images, what to fill with; default noise with the median of each image and
        channel, as wide as its darker half
    Returns the change of the logit (B, 2) by filling the top of the positive (< 0 passes) and of the negative
    map (> 0 passes).
    """
    images = _checked(images, "images")
    check_kind(Polarized, "what polarized_relevance returns", polarized=polarized)
    shape, given = tuple(images.shape), tuple(polarized.positive.shape)
    if len(shape) != 4 or given != shape or not 0 < share < 1:
        got = f"maps {given} for images {shape}, share {share}"
        raise ValueError(f"got {got}; expected maps of these images (B, C, H, W), a share between 0 and 1")
    if fill is None:
        check_generator(generator)
        level = images.flatten(2).median(2).values[..., None, None]
        below = torch.where(images <= level, level - images, torch.nan).flatten(2)
        spread = 1.4826 * below.nanmedian(2).values[..., None, None]  # standard deviation of a normal sky
        fill = level + spread * torch.randn(images.shape, generator=generator).to(images)
    fill = torch.as_tensor(fill).to(images)
    fits = all(one in (1, other) for one, other in zip(fill.shape[::-1], shape[::-1], strict=False))
    if fill.ndim > 4 or not fits or not fill.isfinite().all():
        raise ValueError(f"fill {tuple(fill.shape)}: expected finite values, broadcastable to {shape}")
    count, versions = max(1, round(share * images[0, 0].numel())), [images]
    for strength in polarized.per_pixel():
        weakest = strength.flatten(1).topk(count).values[:, -1].view(-1, 1, 1, 1)
        filled = torch.where((strength >= weakest) & (strength > 0), fill, images)
        versions.append(images.clone().copy_(filled))  # in the layout of the images
    with _settled(model, images.device.type), torch.no_grad():
        outputs = [model(version) for version in versions]
    _one_each(outputs[0])
    scores = torch.stack([output.flatten() for output in outputs], 1)
    return scores[:, 1:] - scores[:, :1]


def _run(
    model: nn.Module,
    images: Tensor,
    start: Callable[[Tensor, int], Tensor],
    rules: Callable[[int], Sequence[Rule]],
    *,
    references: Tensor | None = None,
    bias: bool = False,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Propagate by chunks; return outputs (B, ...), seeds and maps (S, B, ...), losses (B, S) by layer."""
    parts = []
    with _settled(model, images.device.type), recording(model) as tape:
        for first in range(0, len(images), _CHUNK):
            chunk = images[first : first + _CHUNK]
            behind = [] if references is None else [references.to(chunk)]
            output = record(tape, model, torch.cat([chunk, *behind]))
            seeds, chosen = start(output, first), rules(tape.count())
            maps, lost = propagate(tape, seeds, chosen, references=len(output) - len(chunk), bias=bias)
            parts.append((output[: len(chunk)], seeds, maps, lost))
    outputs, seeds, maps, lost = zip(*parts, strict=True)
    by_layer = {name: torch.cat([values[name] for values in lost]) for name in lost[0]}
    return torch.cat(outputs), torch.cat(seeds, 1), torch.cat(maps, 1), by_layer


@contextmanager
def _settled(model: nn.Module, device: str) -> Iterator[None]:
    """Hold a model in eval mode, in float32 where it is coarser, without autocast; then as it was."""
    check_network(model)
    tensors = (*model.parameters(), *model.buffers())
    coarse = [(tensor, tensor.data) for tensor in tensors if tensor.dtype in LOW]
    try:
        for tensor, data in coarse:
            tensor.data = data.float()
        with torch.inference_mode(False), torch.autocast(device, enabled=False), evaluating(model):
            yield
    finally:
        for tensor, data in coarse:
            tensor.data = data


def _split(signed: Tensor) -> tuple[Tensor, Tensor]:
    return signed.clamp(min=0), (-signed).clamp(min=0)


def _checked(images: Tensor, name: str) -> Tensor:
    """Return finite float images, in float32 where they are coarser."""
    check_floats(images, name=name, finite=True)
    if images.ndim < 2 or 0 in images.shape:
        raise ValueError(f"{name}: got shape {tuple(images.shape)}, expected (B, C, H, W), for the model")
    return images.float() if images.dtype in LOW else images


def _fitting(references: Tensor, images: Tensor) -> Tensor:
    """Refuse references of another shape, and one that equals an image: it explains no part of that one."""
    if references.shape[1:] != images.shape[1:]:
        raise ValueError(f"references {tuple(references.shape)} do not fit images {tuple(images.shape)}")
    references = references.to(images)
    for index, image in enumerate(images):
        if (same := (references == image).flatten(1).all(1)).any():
            which = f"reference {int(same.nonzero()[0])} equals image {index}"
            raise ValueError(f"{which}, whose difference to it is 0: give references that are not explained")
    return references


def _one_each(output: Tensor) -> Tensor:
    if output[0].numel() != 1:
        way = f"say which to explain by relevance(..., seed=), of shape {tuple(output.shape)}"
        raise ValueError(f"the model has {output[0].numel()} outputs per image; {way}")
    return torch.ones_like(output)
