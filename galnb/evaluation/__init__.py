"""Compare deblenders on the same blends, and say what a judge (a discriminator) is worth.

Chapter 05, Evaluation; the judge's figures stand in chapters 04 and 06 to 09.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from scipy import stats
from torch.nn import functional

from galnb import checks, images
from galnb.blending import Blends, Perturbation, make_blends
from galnb.evaluation.classical import detect  # noqa: F401
from galnb.evaluation.distances import frechet_distance  # noqa: F401
from galnb.evaluation.metrics import psnr, ssim  # noqa: F401
from galnb.evaluation.neighbours import nearest  # noqa: F401
from galnb.gans import Gan
from galnb.gans.layers import batch_dependent, evaluating

LEAST_AUC = 0.9  # of a judge whose maps are worth reading, at every position
_CHUNK = 50  # frames of 424 px in floats at a time: 108 MB


def held_out_blends(folder: str | Path | None, *, count: int = 1000, rule: str = "max") -> Blends:
    """Make the blends on which deblenders are compared: two galaxies, 80 px; equal arguments, equal blends.

    folder: folder or zip of Galaxy Zoo images, of which the last 300 by name are taken: nothing here is
        trained on them. None takes Hubble stamps instead, which are not held out: shipped weights know them.
    count: fewer are the first of more.
    rule: key of `blending.BLEND_RULES`; the galaxies are the same for all.
    Protocol of Reiman & Göhre 2019: warp at 424 px with zeros outside, crop 240, box average to 80. Every
    galaxy comes first equally often, its partner is drawn from 49 others. Hubble stamps have no surroundings:
    they are warped as they are, with their reflection outside. `FileNotFoundError` for a missing folder.
    """
    checks.at_least(1, count=count)
    if folder is None:
        bank = images.hubble_deep_field(size=80).pixels.mul(255).round().byte()
        options = {"perturbation": Perturbation(fill="reflect")}
    else:
        bank = images.galaxy_zoo(folder, size=424, crop=424, split="test", dtype=torch.uint8).pixels
        options = {"crop": 240, "size": 80}
    generator = torch.Generator().manual_seed(2019)
    made, chunks = [], ()
    while sum(len(part) for part in made) < count:
        if not chunks:
            chunks = torch.randperm(len(bank), generator=generator).tensor_split(-(-len(bank) // _CHUNK))
        frames, chunks = bank[chunks[0]].float() / 255, chunks[1:]
        made.append(make_blends(frames, rule=rule, generator=generator, **options))
    names = [field.name for field in fields(Blends)]
    return Blends(*(torch.cat([getattr(part, name) for part in made])[:count] for name in names))


def judge_figures(gan: Gan, true: torch.Tensor, drawn: torch.Tensor) -> dict:
    """Say what a judge is worth on single images: one look at each, in eval mode, so that no batch helps it.

    true, drawn: (B, N, C, H, W) in [0, 1], held-out galaxies and what the generator made of their blends.
    A dict that JSON can hold, each figure a list over the N positions: ``auc``, the chance that a true
    galaxy's logit lies above a drawn one's (ties count half); ``true_called_fake`` and ``drawn_called_real``,
    shares with a logit below 0, and not below 0; ``cross_entropy`` in nats, the mean over both kinds (0.693:
    a guess). ``images``: B; ``batch_dependent``: whether the judge's layers see other images of a batch while
    it trains.
    """
    checks.check_kind(Gan, "such as load_checkpoint(...).gan", gan=gan)
    for name, galaxies in (("true", true), ("drawn", drawn)):
        if not isinstance(galaxies, torch.Tensor) or galaxies.ndim != 5 or galaxies.shape != true.shape:
            given = tuple(getattr(galaxies, "shape", ())) or type(galaxies).__name__
            wanted = "two tensors (blends, galaxies, C, H, W) in [0, 1] of one shape"
            raise ValueError(f"{name}: got {given}; expected {wanted}")
        images.check_images(galaxies.flatten(0, 1), name=name)
    real, fake = (_logits(gan, galaxies) for galaxies in (true, drawn))
    count = len(real)
    # ranks from 1, of equal logits their mean: they count the drawn logits below, and the true ones
    ranks = stats.rankdata(torch.cat([real, fake]).numpy(), axis=0)[:count].sum(0)
    return {
        "images": count,
        "batch_dependent": bool(batch_dependent(gan.discriminator)),
        "auc": ((ranks - count * (count + 1) / 2) / count**2).tolist(),
        "true_called_fake": (real < 0).double().mean(0).tolist(),
        "drawn_called_real": (fake >= 0).double().mean(0).tolist(),
        "cross_entropy": ((functional.softplus(-real) + functional.softplus(fake)).mean(0) / 2).tolist(),
    }


def judge_sentence(figures: Mapping) -> str:
    """Say in one sentence for a caption what `judge_figures` found, and whether a map of it is worth reading.

    A judge is worth that from an AUC of `LEAST_AUC` at every position on.
    """
    if not isinstance(figures, Mapping) or not {"auc", "true_called_fake"} <= set(figures):
        raise ValueError(f"figures is {figures!r}; expected what judge_figures returns")
    # .8999 must not read as the .90 that it misses
    auc = [value if value >= LEAST_AUC else min(value, LEAST_AUC - 0.006) for value in figures["auc"]]
    known = [f"{value:.2f}".removeprefix("0") for value in auc]
    missed = [f"{100 * value:.0f} %" for value in figures["true_called_fake"]]
    known, missed = (" / ".join(words[:1] if len({*words}) == 1 else words) for words in (known, missed))
    start = f"This judge tells true from drawn galaxies with an AUC of {known} and calls {missed} of the true"
    weak = "" if min(auc) >= LEAST_AUC else ": too little to read much into its map"
    return f"{start} ones fake{weak}."


def _logits(gan: Gan, galaxies: torch.Tensor) -> torch.Tensor:
    """Return the logit of each galaxy alone, (B, N) in double precision."""
    judge, found = gan.discriminator, []
    weight = next(judge.parameters(), galaxies)
    with evaluating(judge), torch.no_grad():
        for image in galaxies.flatten(0, 1).split(1):
            logit = judge(gan.prepare(image.to(weight)))
            if logit.numel() != 1 or not logit.isfinite().all():
                given = f"{tuple(logit.shape)}: {logit.flatten()[:3].tolist()}"
                raise ValueError(f"the judge answers one image with {given}; expected one finite logit")
            found.append(logit.double().cpu().reshape(()))
    return torch.stack(found).reshape(galaxies.shape[:2])
