"""Ask a network what its score rests on: relevance by one rule, and Polarized-LRP in four readings."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from galnb.gans.layers import evaluating
from galnb.relevance.propagation import propagate, record, recording
from galnb.relevance.rules import READINGS, RULES, Rule

__all__ = ["READINGS", "RULES", "Polarized", "Relevance", "deletion_gate", "polarized_relevance", "relevance"]

CHUNK = 32  # images per pass: enough to keep all threads busy, few enough to bound memory


@dataclass(frozen=True)
class Relevance:
    """Hold the map of one rule.

    Parameters
    ----------
    map : torch.Tensor, shape of the images
        Relevance per input element.
    score, leak : torch.Tensor, shape (B,)
        The explained output (with a seed, the sum of seed x output); sum of the seed minus sum of the map.
    lost : dict of str to torch.Tensor, shape (B,)
        The leak layer by layer: what entered minus what left, output first.

    Chapter: Polarized LRP
    """

    map: torch.Tensor
    score: torch.Tensor
    leak: torch.Tensor
    lost: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Polarized:
    """Hold both maps of Polarized-LRP.

    Parameters
    ----------
    positive, negative : torch.Tensor, shape of the images, >= 0
        Evidence for "real" and for "fake". Readings ``"paper"`` and ``"output"``: each sums to 1 - leak.
        Readings ``"composite"`` and ``"reference"``: the two signs of one map, positive - negative, whose sum
        is score - reference_score - leak.
    score, reference_score : torch.Tensor, shape (B,)
        Logit of each image; mean logit of the references, else 0.
    leak : torch.Tensor, shape (B, 2)
        What did not arrive, in units of the maps; for a signed map the same number twice.
    reading : str
        Key of `READINGS`.
    lost : dict of str to torch.Tensor, shape (B, maps)
        The leak layer by layer, output first; one column per map (two, one signed, or one per reference).

    Chapter: Polarized LRP
    """

    positive: torch.Tensor
    negative: torch.Tensor
    score: torch.Tensor
    leak: torch.Tensor
    reading: str
    reference_score: torch.Tensor
    lost: dict[str, torch.Tensor]

    def per_pixel(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Add up the channels: two tensors (B, 1, H, W) >= 0; a signed map is netted first, then split.

        Chapter: Polarized LRP
        """
        if self.reading in ("paper", "output"):
            return self.positive.sum(1, keepdim=True), self.negative.sum(1, keepdim=True)
        return _split((self.positive - self.negative).sum(1, keepdim=True))


def relevance(
    model: nn.Module, images: torch.Tensor, *, rule: str | Rule, seed: torch.Tensor | None = None
) -> Relevance:
    """Distribute an output over the input elements by one rule in every layer.

    Parameters
    ----------
    model : torch.nn.Module
        Any graph of the layers in `galnb.relevance.propagation.LAYERS`; runs in eval mode and is left as it was.
    images : torch.Tensor, shape (B, C, H, W)
        Exactly what the model takes; for a GAN of this package ``gan.prepare(images)``.
    rule : str or callable
        Key of `RULES`, or ``rule(layer, relevance) -> relevance`` for a `galnb.relevance.rules.Layer`.
    seed : torch.Tensor, shape of the output, optional
        Relevance to start from. Default: 1 per image, for a model with one output; the map times `score` is
        then the relevance of the logit. To explain a part of a generated image, seed with the output inside
        that part and 0 outside.

    Raises
    ------
    ValueError
        If the rule is unknown, images or seed do not fit, or the model holds what has no rule.

    Chapter: Polarized LRP
    """
    chosen = _rule(rule, "rule")
    _check(images, "images")

    def start(output: torch.Tensor, first: int) -> torch.Tensor:
        if seed is None:
            return _one_each(output)[None]
        expected = (len(images), *output.shape[1:])
        if seed.shape != expected:
            raise ValueError(f"seed has shape {tuple(seed.shape)}, expected that of the output, {expected}")
        return seed[None, first : first + len(output)].to(output)

    output, seeds, maps, lost = _run(model, images, start, lambda position, count: chosen)
    leak = (_per_image(seeds) - _per_image(maps))[0]
    by_layer = {name: values[:, 0] for name, values in lost.items()}
    return Relevance(maps[0], _per_image(seeds * output)[0], leak, by_layer)


def polarized_relevance(
    model: nn.Module,
    images: torch.Tensor,
    *,
    reading: str = "paper",
    bias: bool = False,
    references: torch.Tensor | None = None,
    first_layer: str | Rule | None = None,
) -> Polarized:
    """Compute the positive and the negative relevance map of a network with one output.

    Parameters
    ----------
    model : torch.nn.Module
        A discriminator, as for `relevance`.
    images : torch.Tensor, shape (B, C, H, W)
        Exactly what the model takes; for a GAN of this package ``gan.prepare(images)``.
    reading : str
        ``"paper"``: Eq. 3 to the letter, its sign kept in every layer. ``"output"``: its sign chosen at the
        last layer only. ``"composite"``: one signed map; signed contributions in the last two layers, those
        of the unit's own sign below. ``"reference"``: one signed map of the differences to `references`,
        averaged over them; signed contributions in the upper half of the layers.
    bias : bool
        Readings "paper" and "output": keep the biases in the denominators, as printed. Their share then
        leaks, so that Eq. 1 (conservation) holds only without.
    references : torch.Tensor, shape (K, C, H, W)
        Needed by "reference": eight real and generated images, or one image of sky as the cheap form.
    first_layer : str or callable, optional
        Another rule for the first layer, such as ``"zbox"`` (bounds -1 and 1) or ``"flat"``.

    Raises
    ------
    ValueError
        If an argument is unknown or does not fit, or the model holds what has no rule.

    Notes
    -----
    Eq. 3 of Li et al. (2020): R_i = sum_j [z_ij]± / (sum_k [z_kj]± + [b_j]±) R_j with z_ij = x_i w_ij;
    products are truncated, not weights. Both maps of "paper" and "output" start from 1. On planted truth
    these two do not tell evidence for "real" from evidence for "fake", and "reference" does.
    Chapter: Polarized LRP
    """
    if reading not in READINGS:
        raise ValueError(f"reading {reading!r} is unknown; known are {sorted(READINGS)}")
    first = first_layer and _rule(first_layer, "first_layer")
    _check(images, "images")
    if (references is not None) != (reading == "reference"):
        raise ValueError("references are needed by reading='reference', and only by it")
    if references is not None:
        _check(references, "references")
        if references.shape[1:] != images.shape[1:]:
            got, expected = tuple(references.shape), tuple(images.shape)
            raise ValueError(f"references of shape {got} do not fit images of shape {expected}")

    def plan(position: int, count: int) -> Rule:
        return first if first and position == 0 else READINGS[reading](position, count, bias)

    def start(output: torch.Tensor, _: int) -> torch.Tensor:
        one = _one_each(output)
        if reading == "reference":
            return output[None, : -len(references)] - output[-len(references) :, None]
        return output[None] if reading == "composite" else torch.stack([one, one])

    output, seeds, maps, lost = _run(model, images, start, plan, references=references, bias=bias)
    leak, score = (_per_image(seeds) - _per_image(maps)).T, output.flatten()
    neutral = score - _per_image(seeds).mean(0) if reading == "reference" else torch.zeros_like(score)
    if reading in ("paper", "output"):
        positive, negative = maps.clamp(min=0)  # rounding may leave -1e-9 where there is nothing
    else:
        positive, negative = _split(maps.mean(0))
        leak = leak.mean(1, keepdim=True).expand(-1, 2)
    return Polarized(positive, negative, score, leak, reading, neutral, lost)


def deletion_gate(
    model: nn.Module,
    images: torch.Tensor,
    polarized: Polarized,
    *,
    share: float = 0.06,
    generator: torch.Generator,
    fill: torch.Tensor | None = None,
) -> torch.Tensor:
    """Fill the strongest pixels of each map with sky and see whether the logit moves the right way.

    Parameters
    ----------
    model, images, polarized
        As given to `polarized_relevance`, and its answer.
    share : float
        Fraction of the pixels to fill, above 0 and below 1.
    generator : torch.Generator
        On the CPU; draws the sky noise.
    fill : torch.Tensor, broadcastable to the images, optional
        What to fill with. Default: noise with the median of each image and channel, as wide as its darker
        half.

    Returns
    -------
    torch.Tensor, shape (B, 2)
        Change of the logit by filling the top of the positive (< 0 passes) and the negative map (> 0 passes).

    Raises
    ------
    ValueError
        If the maps are not those of the images or the share is not between 0 and 1.

    Chapter: Polarized LRP
    """
    _check(images, "images")
    if polarized.positive.shape != images.shape or not 0 < share < 1:
        got = f"maps {tuple(polarized.positive.shape)} for images {tuple(images.shape)}, share {share}"
        raise ValueError(f"got {got}; expected maps of these images and a share between 0 and 1")
    if fill is None:
        level = images.flatten(2).median(2).values[..., None, None]
        below = torch.where(images <= level, level - images, torch.nan).flatten(2)
        spread = 1.4826 * below.nanmedian(2).values[..., None, None]  # standard deviation of a normal sky
        fill = level + spread * torch.randn(images.shape, generator=generator).to(images)
    count, versions = max(1, round(share * images[0, 0].numel())), [images]
    for strength in polarized.per_pixel():
        weakest = strength.flatten(1).topk(count).values[:, -1].view(-1, 1, 1, 1)
        versions.append(torch.where((strength >= weakest) & (strength > 0), fill, images))
    with evaluating(model), torch.no_grad():
        scores = torch.stack([model(version).flatten() for version in versions], 1)
    return scores[:, 1:] - scores[:, :1]


def _run(
    model: nn.Module,
    images: torch.Tensor,
    start: Callable[[torch.Tensor, int], torch.Tensor],
    plan: Callable[[int, int], Rule],
    *,
    references: torch.Tensor | None = None,
    bias: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Propagate by chunks; return outputs (B, ...), seeds and maps (S, B, ...), losses (B, S) by layer."""
    parts = []
    with recording(model) as tape:
        for first in range(0, len(images), CHUNK):
            chunk = images[first : first + CHUNK]
            behind = [] if references is None else [references.to(chunk)]
            output = record(tape, model, torch.cat([chunk, *behind]))
            seeds = start(output, first)
            maps, lost = propagate(tape, seeds, plan, references=len(output) - len(chunk), bias=bias)
            parts.append((output[: len(chunk)], seeds, maps, lost))
    outputs, seeds, maps, lost = zip(*parts, strict=True)
    by_layer = {name: torch.cat([values[name] for values in lost]) for name in lost[0]}
    return torch.cat(outputs), torch.cat(seeds, 1), torch.cat(maps, 1), by_layer


def _per_image(relevance: torch.Tensor) -> torch.Tensor:
    return relevance.reshape(*relevance.shape[:2], -1).sum(2)


def _split(signed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return signed.clamp(min=0), (-signed).clamp(min=0)


def _rule(rule: str | Rule, argument: str) -> Rule:
    if isinstance(rule, str) and rule not in RULES:
        raise ValueError(f"{argument} {rule!r} is unknown; known are {sorted(RULES)}")
    return RULES[rule] if isinstance(rule, str) else rule


def _check(images: torch.Tensor, name: str) -> None:
    tensor = isinstance(images, torch.Tensor)
    if not tensor or not images.is_floating_point() or images.ndim < 2 or 0 in images.shape:
        got = f"{images.dtype} of shape {tuple(images.shape)}" if tensor else type(images).__name__
        raise ValueError(f"{name}: got {got}, expected a float tensor (B, C, H, W), as the model takes it")
    if not images.isfinite().all():
        raise ValueError(f"{name}: got NaN or infinite values; see torch.nan_to_num")


def _one_each(output: torch.Tensor) -> torch.Tensor:
    if output[0].numel() != 1:
        got = f"{output[0].numel()} outputs per image, shape {tuple(output.shape)}"
        raise ValueError(f"the model has {got}; say which to explain by relevance(..., seed=) of that shape")
    return torch.ones_like(output)
