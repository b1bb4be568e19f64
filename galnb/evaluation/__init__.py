"""Compare deblenders on the same blends: fixed test blends, scores per galaxy, and their summary."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import torch

from galnb import images
from galnb.blending import Blends, Perturbation, make_blends
from galnb.evaluation import metrics
from galnb.training.experiments import galaxy_zoo_frames

CHUNK = 50  # frames of 424 px in floats at a time: 108 MB
MOST_PSNR = 60.0  # dB: an error of a quarter of a grey level of 255; what is exact counts as this


def test_blends(
    folder: str | Path | None, *, count: int = 1000, rule: str = "max", seed: int = 2019
) -> Blends:
    """Make the blends on which deblenders are compared: equal arguments give equal blends.

    Parameters
    ----------
    folder : str, Path or None
        Folder or zip of Galaxy Zoo images. The last 300 by name are taken, on which nothing here is trained.
        None takes Hubble deep field stamps instead, which are **not** held out: shipped weights know them.
    count : int
        Number of blends; fewer are the first of more.
    rule : str
        Key of `galnb.blending.BLEND_RULES`; the galaxies are the same for all.
    seed : int
        Another seed gives other pairs and perturbations.

    Returns
    -------
    Blends
        Of two galaxies, 80 px wide.

    Raises
    ------
    ValueError, FileNotFoundError
        If the count is not positive or the folder holds no such images.

    Notes
    -----
    Protocol of Reiman & Göhre 2019: warp at 424 px with zeros outside, crop 240, box average to 80. Every
    galaxy comes first equally often, its partner is drawn from 49 others. Hubble stamps are warped as they
    are, with their reflection outside, because they have no surroundings. Chapter: Evaluation
    """
    if count < 1:
        raise ValueError(f"count is {count}; expected at least 1")
    if folder is None:
        bank = images.hubble_deep_field(size=80).pixels.mul(255).round().byte()
        options = {"perturbation": Perturbation(fill="reflect")}
    else:
        bank, options = galaxy_zoo_frames(folder, split="test"), {"crop": 240, "size": 80}
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
        for chosen in torch.randperm(size, generator=generator).tensor_split(-(-size // CHUNK)):
            if made < count:
                yield chosen
            made += len(chosen)


def evaluate(
    deblended: torch.Tensor, blends: Blends, *, apertures: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Score every galaxy that a deblender returned.

    Parameters
    ----------
    deblended : torch.Tensor, shape (B, N, C, H, W)
        In [0, 1], in the order of `blends.galaxies`.
    blends : Blends
        With the truth.
    apertures : torch.Tensor, shape (B, N, 1, H, W), optional
        From `true_apertures`, to be measured once for many deblenders.

    Returns
    -------
    dict of str to torch.Tensor, shape (B, N)
        ``psnr`` in dB (at most 60) and ``ssim``, data range 1; ``ssim_range_2``, the figure of the older
        literature, which took 2 for images in [0, 1]; ``cosine`` similarity; ``flux`` error relative to the
        true flux, signed; ``centroid`` error in px; ``ellipticity`` error. NaN: nothing in the aperture.

    Raises
    ------
    ValueError
        If shapes or values do not fit.

    Notes
    -----
    Chapter: Evaluation
    """
    if deblended.shape != blends.galaxies.shape:
        raise ValueError(
            f"got deblended galaxies of shape {tuple(deblended.shape)}, "
            f"expected {tuple(blends.galaxies.shape)} as the truth of these blends"
        )
    images.check_images(deblended.flatten(0, 1), name="deblended")
    truth, deblended = blends.galaxies, deblended.to(blends.galaxies)
    aperture = true_apertures(blends) if apertures is None else apertures
    return {
        "psnr": metrics.psnr(deblended, truth, data_range=1).clamp(max=MOST_PSNR),
        "ssim": metrics.ssim(deblended, truth, data_range=1),
        "ssim_range_2": metrics.ssim(deblended, truth, data_range=2),
        "cosine": metrics.cosine_similarity(deblended, truth),
        "flux": metrics.flux_error(deblended, truth, aperture=aperture),
        "centroid": metrics.centroid_error(deblended, truth, aperture=aperture),
        "ellipticity": metrics.ellipticity_error(deblended, truth, aperture=aperture),
    }


def true_apertures(blends: Blends) -> torch.Tensor:
    """Find the pixels (B, N, 1, H, W) of each galaxy where it truly is; see `galnb.evaluation.metrics.apertures`.

    Chapter: Evaluation
    """
    return metrics.apertures(blends.galaxies, offsets=blends.offsets)


def summarise(scores: Mapping[str, torch.Tensor]) -> dict[str, dict[str, dict[str, float] | None]]:
    """Summarise the scores of `evaluate` per score and branch.

    Parameters
    ----------
    scores : mapping of str to torch.Tensor, shape (B, 2)
        Scores per galaxy.

    Returns
    -------
    dict
        ``[score][branch]`` holds the statistics of `galnb.evaluation.metrics.summary`, or None where all is NaN;
        branches are ``"first"``, ``"second"`` and ``"both"`` (every galaxy is a sample). ``"flux_size"`` is
        the flux error without its sign.

    Raises
    ------
    ValueError
        If a score is not of shape (B, 2).

    Notes
    -----
    Chapter: Evaluation
    """
    for name, values in scores.items():
        if values.ndim != 2 or values.shape[1] != 2:
            raise ValueError(f"{name} has shape {tuple(values.shape)}; expected (B, 2)")
    scores = dict(scores)
    if "flux" in scores:
        scores["flux_size"] = scores["flux"].abs()
    branches = {"both": slice(None), "first": 0, "second": 1}
    return {
        name: {branch: _summary(values[:, index]) for branch, index in branches.items()}
        for name, values in scores.items()
    }


def _summary(values: torch.Tensor) -> dict[str, float] | None:
    return None if values.isnan().all() else metrics.summary(values)
