"""The three histograms of radio galaxies, their relative MAE, and which checkpoint draws which class best.

Chapter 10, A GAN for radio galaxies.
"""

from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from galnb.checks import at_least, check_floats, check_generator, check_kind
from galnb.gans.radio import generate
from galnb.images import RADIO_CLASSES, check_images
from galnb.training.checkpoints import load_checkpoint

# edges of the published bins, in grey levels of 255, pixels and grey levels (Rustige et al. 2023)
_LINES = torch.linspace(0, 500, 10, dtype=torch.float64), torch.linspace(0, 25_000, 15, dtype=torch.float64)
EDGES = {
    "intensity": torch.arange(257, dtype=torch.float64),
    "active": torch.cat([_LINES[0], torch.tensor([600, 700, 800, 900, 1000, 2000])]),
    "total": torch.cat([_LINES[1], torch.tensor([50_000, 75_000])]),
}
_BINS = [len(edges) - 1 for edges in EDGES.values()]
_WIDTHS = torch.cat([edges.diff() for edges in EDGES.values()])
_KEPT = 4  # checkpoints that the old rule of choice keeps
ROUNDING = 1e-3  # grey levels; x / 255 * 255 may end just below a whole number
_Scores = namedtuple("_Scores", "steps parts scores counts")


def whole_levels(images: torch.Tensor) -> torch.Tensor:
    """Turn images of any precision to float32; grey levels that half precision rounded are whole again."""
    full = images.detach().float()
    if images.dtype in (torch.float16, torch.bfloat16):
        whole = (255 * full).round() / 255
        full = torch.where(whole.to(images.dtype) == images, whole, full)
    return full


def check_partners(generated: torch.Tensor, real: torch.Tensor) -> None:
    """Refuse two sets that are no images (B, C, H, W) in [0, 1] of one size."""
    check_images(generated, name="generated images")
    check_images(real, name="real images")
    if generated.shape[1:] != real.shape[1:]:
        raise ValueError(f"generated images are {tuple(generated.shape[1:])}, real ones "
                         f"{tuple(real.shape[1:])}; crop or average them to one size")  # fmt: skip


def image_counts(images: torch.Tensor) -> torch.Tensor:
    """Count what each image adds to the bins of the three histograms: (B, 287) float32, whole numbers.

    images: (B, 1, H, W) in [0, 1], else ValueError; any floating precision.
    The bins: 256 of pixel values, 15 of lit pixels, 16 of total light; what lies outside them adds nothing.
    Pixels become whole grey levels, floor(255 x), as published for generated images; for real ones, which
    hold whole levels, it is the rounding that was published. A pixel is lit from level 1.
    """
    check_images(images, channels=1)
    flat = whole_levels(images).cpu().flatten(1)
    return torch.cat([_count(part.numpy()) for part in flat.split(100)])  # what the processor's cache holds


def _count(pixels: np.ndarray) -> torch.Tensor:
    """Count for flat images (B, P); most pixels are black and are counted by what is left."""
    number, size = pixels.shape
    lit = np.flatnonzero(pixels >= np.float32((1 - ROUNDING) / 255))
    level = (pixels.reshape(-1)[lit] * np.float32(255) + np.float32(ROUNDING)).astype(np.int64)
    owner = lit // size
    intensity = np.bincount(owner * 256 + level, minlength=256 * number).reshape(number, 256)
    active = intensity.sum(1)
    intensity[:, 0] += size - active
    columns = [torch.from_numpy(intensity).float()]
    for name, values in (("active", active), ("total", np.bincount(owner, level, number))):
        place = torch.bucketize(torch.from_numpy(values).double(), EDGES[name], right=True)  # [low, high)
        columns.append(F.one_hot(place, len(EDGES[name]) + 1)[:, 1:-1].float())
    return torch.cat(columns, 1)


def histograms(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Make the three published histograms of images (B, 1, H, W) in [0, 1], else ValueError.

    Returns ``"intensity"`` (256,): pixel values; ``"active"`` (15,): lit pixels per image; ``"total"`` (16,):
    sum of the levels per image. Counts divided by bin width, then by their sum; `EDGES` has the bins.
    Images above the last edge (2,000 lit pixels, a sum of 75,000) are left out, as in the published choice of
    checkpoints; where all are, the histogram is 0 throughout. Nothing falls below 0.
    """
    density = _density(image_counts(images).sum(0, dtype=torch.float64))
    return dict(zip(EDGES, density.split(_BINS), strict=True))


def _density(counts: torch.Tensor) -> torch.Tensor:
    """Divide counts (..., 287) by bin width and bring each histogram to a sum of 1."""
    parts = (counts.double() / _WIDTHS).split(_BINS, -1)
    return torch.cat([part / part.sum(-1, keepdim=True).clamp_min(1e-300) for part in parts], -1)


def relative_mae(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Compare two histograms (bins,) relative to their heights: 0 if equal, 2 if no bin is filled in both.

    Mean over the bins with r + g > 0 of 2 |r - g| / (r + g) (Rustige et al. 2023).
    ValueError if the shapes differ, a height is negative or not finite, or a histogram is empty.
    """
    way = 'one of the histograms, such as histograms(images)["active"]'
    check_kind(torch.Tensor, way, generated=generated, real=real)
    if generated.shape != real.shape or real.ndim != 1:
        raise ValueError(f"got histograms of {tuple(generated.shape)} and {tuple(real.shape)} bins; "
                         "expected one shape (bins,)")  # fmt: skip
    ours, theirs = generated.double(), real.double()
    for name, heights in (("generated", ours), ("real", theirs)):
        if not (torch.isfinite(heights).all() and (heights >= 0).all() and heights.sum() > 0):
            raise ValueError(f"the {name} histogram has negative, infinite or no counts; expected them >= 0")
    return float(_relative_mae(ours, theirs))


def _relative_mae(generated: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    both = generated + real
    filled = both > 0
    error = 2 * (real - generated).abs() / torch.where(filled, both, 1)
    return error.sum(-1) / filled.sum(-1).clamp_min(1)


def score_counts(generated: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the relative MAE of each of the three histograms (..., 3) from counts (..., 287)."""
    pairs = zip(_density(generated).split(_BINS, -1), _density(real).split(_BINS, -1), strict=True)
    return torch.stack([_relative_mae(ours, theirs) for ours, theirs in pairs], -1)


def score(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Average the relative MAE over the three histograms of two sets of images (B, 1, H, W)."""
    check_partners(generated, real)
    return float(score_counts(image_counts(generated).sum(0), image_counts(real).sum(0)).mean())


def score_checkpoints(
    paths: Sequence[str | Path],
    real: torch.Tensor,
    labels: torch.Tensor,
    *,
    count: int = 1000,
    generator: torch.Generator,
) -> _Scores:
    """Let each of K checkpoints draw galaxies of all C classes, and compare them with real ones.

    paths: files or names of shipped weights; each model is rebuilt from its file alone, smearing included.
    real: (B, 1, H, W) in [0, 1], not used in training; labels: (B,) positions in `images.RADIO_CLASSES`.
    count: galaxies drawn per class, from the same random vectors (CPU generator) for every checkpoint.
    Returns steps of the generator (K,); parts (K, C, 3), relative MAE of each histogram; scores (K, C), their
    mean; counts (K, C, count, 287), `image_counts` of what was drawn, for intervals.
    ValueError if a class has no image, the sizes differ, or a file holds no radio GAN or no config.
    """
    at_least(1, count=count)
    check_generator(generator)
    truth = _class_counts(real, labels)
    if not paths:
        raise ValueError("no checkpoints were given; expected at least one path or shipped name")
    seed = int(torch.randint(2**31, (), generator=generator))
    steps, counts = [], []
    for path in paths:
        kept = load_checkpoint(path)
        if kept.gan.name != "radio":
            raise ValueError(f"{path} holds a {kept.gan.name!r} GAN; expected a radio GAN")
        same = torch.Generator().manual_seed(seed)
        steps.append(kept.step)
        for label in range(len(RADIO_CLASSES)):
            images = generate(kept.gan, torch.full((count,), label), generator=same)
            check_partners(images, real)
            counts.append(image_counts(images))
    counts = torch.stack(counts).unflatten(0, (len(paths), -1))
    parts = score_counts(counts.sum(2), truth)
    return _Scores(tuple(steps), parts, parts.mean(-1), counts)


def choose(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose checkpoints from scores (K, C), lower is better, by the old and the new rule of the talk.

    Returns old (4,): the best by the mean over classes, one of which then draws each image at random; and
    new (C,): the best of each class, which draws that class alone.
    ValueError if there are fewer than four checkpoints, or a score is not finite.
    """
    check_floats(scores, name="scores", finite=True)
    if scores.ndim != 2 or len(scores) < _KEPT:
        raise ValueError(f"got scores {tuple(scores.shape)}; expected finite ones (K, C) of {_KEPT} "
                         "checkpoints or more")  # fmt: skip
    return scores.mean(1).argsort(stable=True)[:_KEPT], scores.argmin(0)


def _class_counts(real: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum `image_counts` over each class: (C, 287). A class without an image is refused."""
    if labels.shape != (len(real),):
        raise ValueError(f"got {len(real)} images and labels {tuple(labels.shape)}; expected one label each")
    missing = [name for number, name in enumerate(RADIO_CLASSES) if not (labels == number).any()]
    if missing:
        raise ValueError(f"there is no image of {', '.join(missing)}; every class needs at least one")
    counts = image_counts(real)
    return torch.stack([counts[labels == number].sum(0) for number in range(len(RADIO_CLASSES))])
