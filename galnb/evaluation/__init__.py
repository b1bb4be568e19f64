"""Compare deblenders on the same blends, and say what a judge (a discriminator) is worth.

Chapter 05, Evaluation; the judge's figures stand in chapters 04 and 06 to 09.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import torch
from scipy import stats
from torch.nn import functional

from galnb import checks, images
from galnb.blending import Blends, Perturbation, make_blends
from galnb.evaluation import metrics
from galnb.evaluation.classical import detect  # noqa: F401
from galnb.evaluation.distances import frechet_distance  # noqa: F401
from galnb.evaluation.metrics import psnr, ssim
from galnb.evaluation.neighbours import nearest  # noqa: F401
from galnb.gans import Gan
from galnb.gans.layers import batch_dependent, evaluating

MOST_PSNR = 60.0  # dB: an error of a quarter of a grey level of 255; what is exact counts as this
_TOO_LITTLE = ": too little to read much into its map."
_CHUNK = 50  # frames of 424 px in floats at a time: 108 MB


def held_out_blends(
    folder: str | Path | None, *, count: int = 1000, rule: str = "max", seed: int = 2019
) -> Blends:
    """Make the blends on which deblenders are compared: two galaxies, 80 px; equal arguments, equal blends.

    folder: folder or zip of Galaxy Zoo images, of which the last 300 by name are taken: nothing here is
        trained on them. None takes Hubble stamps instead, which are not held out: shipped weights know them.
    count: fewer are the first of more.
    rule: key of `blending.BLEND_RULES`; the galaxies are the same for all.
    seed: another one gives other pairs and perturbations.
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
    generator = torch.Generator().manual_seed(seed)
    made = []
    for chosen in _rounds(len(bank), count, generator):
        frames = bank[chosen].float() / 255
        made.append(make_blends(frames, rule=rule, generator=generator, **options))
    joined = {field.name: torch.cat([getattr(part, field.name) for part in made]) for field in fields(Blends)}
    return Blends(**{name: values[:count] for name, values in joined.items()})


def _rounds(size: int, count: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield chunks of indices that go through all of 0..size-1 in random order, again and again."""
    made = 0
    while made < count:
        for chosen in torch.randperm(size, generator=generator).tensor_split(-(-size // _CHUNK)):
            if made < count:
                yield chosen
            made += len(chosen)


def evaluate(
    deblended: torch.Tensor, blends: Blends, *, apertures: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Score every galaxy that a deblender returned; each score is (B, N).

    deblended: (B, N, C, H, W) in [0, 1], in the order of `blends.galaxies`.
    apertures: from `true_apertures`, to be measured once for many deblenders.
    ``psnr`` in dB (at most 60) and ``ssim``, data range 1; ``ssim_range_2``, the figure of the older
    literature, which took 2 for images in [0, 1]; ``cosine`` similarity; ``flux`` error relative to the true
    flux, signed; ``centroid`` error in px; ``ellipticity`` error. NaN: nothing in the aperture.
    """
    truth = blends.galaxies
    _check_galaxies("deblended", deblended)
    if deblended.shape != truth.shape:
        given, wanted = tuple(deblended.shape), tuple(truth.shape)
        raise ValueError(f"got deblended galaxies {given}, expected {wanted} as the truth of these blends")
    deblended = deblended.to(truth.device)
    aperture = true_apertures(blends) if apertures is None else apertures
    return {
        "psnr": psnr(deblended, truth, data_range=1).clamp(max=MOST_PSNR),
        "ssim": ssim(deblended, truth, data_range=1),
        "ssim_range_2": ssim(deblended, truth, data_range=2),
        "cosine": metrics.cosine_similarity(deblended, truth),
        "flux": metrics.flux_error(deblended, truth, aperture=aperture),
        "centroid": metrics.centroid_error(deblended, truth, aperture=aperture),
        "ellipticity": metrics.ellipticity_error(deblended, truth, aperture=aperture),
    }


def true_apertures(blends: Blends) -> torch.Tensor:
    """Find the pixels (B, N, 1, H, W) of each galaxy where it truly is, by `metrics.apertures`."""
    return metrics.apertures(blends.galaxies, offsets=blends.offsets)


def summarise(scores: Mapping[str, torch.Tensor]) -> dict[str, dict[str, dict[str, float] | None]]:
    """Summarise the scores (B, 2) of `evaluate` per score and branch.

    ``[score][branch]`` holds the statistics of `metrics.summary`, or None where all is NaN; branches are
    "first", "second" and "both" (every galaxy is a sample). "flux_size" is the flux error without its sign.
    """
    for name, values in scores.items():
        if values.ndim != 2 or values.shape[1] != 2:
            raise ValueError(f"{name} has shape {tuple(values.shape)}; expected (B, 2)")
    if "flux" in scores:
        scores = {**scores, "flux_size": scores["flux"].abs()}
    table = {}
    for name, values in scores.items():
        parts = {"both": values, "first": values[:, 0], "second": values[:, 1]}
        table[name] = {
            branch: None if part.isnan().all() else metrics.summary(part) for branch, part in parts.items()
        }
    return table


def judge_figures(gan: Gan, true: torch.Tensor, drawn: torch.Tensor) -> dict:
    """Say what a judge is worth on single images: one look at each, in eval mode, so that no batch helps it.

    true, drawn: (B, N, C, H, W) in [0, 1], held-out galaxies and what the generator made of their blends.
    A dict that JSON can hold, each figure a list over the N positions: ``auc``, the chance that a true
    galaxy's logit lies above a drawn one's (ties count half); ``true_called_fake`` and ``drawn_called_real``,
    shares with a logit below 0, and not below 0; ``cross_entropy`` in nats, the mean over both kinds (0.693:
    a guess). ``images``: B; ``batch_dependent``: whether the judge's layers see other images of a batch while
    it trains.
    """
    if not isinstance(gan, Gan):
        raise ValueError(f"gan is a {type(gan).__name__}; expected a Gan, such as load_checkpoint(...).gan")
    _check_galaxies("true", true)
    _check_galaxies("drawn", drawn)
    if true.shape != drawn.shape:
        shapes = tuple(true.shape), tuple(drawn.shape)
        raise ValueError(f"got true {shapes[0]} and drawn {shapes[1]}; expected the same shape")
    real, fake = (_logits(gan, galaxies) for galaxies in (true, drawn))
    count = len(real)
    # ranks from 1, of equal logits their mean: they count the drawn logits below, and the true ones
    ranks = stats.rankdata(torch.cat([real, fake]).numpy(), axis=0)[:count].sum(0)
    surprise = (functional.softplus(-real) + functional.softplus(fake)).mean(0) / 2
    return {
        "images": count,
        "batch_dependent": bool(batch_dependent(gan.discriminator)),
        "auc": ((ranks - count * (count + 1) / 2) / count**2).tolist(),
        "true_called_fake": (real < 0).double().mean(0).tolist(),
        "drawn_called_real": (fake >= 0).double().mean(0).tolist(),
        "cross_entropy": surprise.tolist(),
    }


def judge_sentence(figures: Mapping, *, least: float = 0.9) -> str:
    """Say in one sentence for a caption what `judge_figures` found, and whether a map of it is worth reading.

    least: AUC in [0, 1] that a judge needs at every position.
    """
    if not isinstance(figures, Mapping) or not {"auc", "true_called_fake"} <= set(figures):
        raise ValueError(f"figures is {figures!r}; expected what judge_figures returns")
    if not 0 <= least <= 1:
        raise ValueError(f"least is {least!r}; expected an AUC from 0 to 1, usually 0.9")
    # .8999 must not read as the .90 that it misses
    auc = [value if value >= least else min(value, least - 0.006) for value in figures["auc"]]
    known = [f"{value:.2f}".removeprefix("0") for value in auc]
    missed = [f"{100 * value:.0f} %" for value in figures["true_called_fake"]]
    known, missed = (" / ".join(words[:1] if len({*words}) == 1 else words) for words in (known, missed))
    start = f"This judge tells true from drawn galaxies with an AUC of {known} and calls {missed} of the true"
    return start + " ones fake" + (_TOO_LITTLE if min(figures["auc"]) < least else ".")


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


def _check_galaxies(name: str, galaxies: torch.Tensor) -> None:
    if not isinstance(galaxies, torch.Tensor) or galaxies.ndim != 5:
        given = tuple(galaxies.shape) if isinstance(galaxies, torch.Tensor) else type(galaxies).__name__
        raise ValueError(f"{name}: got {given}; expected a tensor (blends, galaxies, C, H, W) in [0, 1]")
    images.check_images(galaxies.flatten(0, 1), name=name)
