"""The three histograms of radio galaxies, their relative MAE, and the floor of it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from galnb.images.imageset import check_images, check_sizes
from galnb.smearing.pairs import ROUNDING

# edges of the published bins, in grey levels of 255, pixels and grey levels (Rustige et al. 2023)
EDGES = {
    "intensity": torch.arange(257, dtype=torch.float64),
    "active": torch.cat(
        [torch.linspace(0, 500, 10, dtype=torch.float64), torch.tensor([600, 700, 800, 900, 1000, 2000])]
    ).double(),
    "total": torch.cat(
        [torch.linspace(0, 25_000, 15, dtype=torch.float64), torch.tensor([50_000, 75_000])]
    ).double(),
}
_BINS = [len(edges) - 1 for edges in EDGES.values()]
_WIDTHS = torch.cat([edges.diff() for edges in EDGES.values()])


def image_counts(images: torch.Tensor) -> torch.Tensor:
    """Count what each image adds to the bins of the three histograms.

    Parameters
    ----------
    images : torch.Tensor, shape (B, 1, H, W)
        In [0, 1].

    Returns
    -------
    torch.Tensor, shape (B, 287), float32
        256 bins of pixel values, 15 of lit pixels, 16 of total light; whole numbers. An image outside the
        range of a histogram adds nothing to it.

    Raises
    ------
    ValueError
        If the images break the image convention or have colours.

    Notes
    -----
    Pixels become whole grey levels, floor(255 x), as published for generated images; for real ones, which
    hold whole levels, it is the rounding that was published. A pixel is lit from level 1.
    Chapter: A GAN for radio galaxies
    """
    check_images(images)
    if images.shape[1] != 1:
        raise ValueError(f"got images with {images.shape[1]} channels; the histograms are made for one")
    flat = images.detach().cpu().float().flatten(1)
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
        columns.append(functional.one_hot(place, len(EDGES[name]) + 1)[:, 1:-1].float())
    return torch.cat(columns, 1)


def histograms(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Make the three published histograms of a set of images.

    Parameters
    ----------
    images : torch.Tensor, shape (B, 1, H, W)
        In [0, 1].

    Returns
    -------
    dict of torch.Tensor
        ``"intensity"`` (256,): pixel values; ``"active"`` (15,): lit pixels per image; ``"total"`` (16,):
        sum of the levels per image. Counts divided by bin width, then by their sum; `EDGES` has the bins.

    Raises
    ------
    ValueError
        As `image_counts`.

    Notes
    -----
    Images above the last edge (2,000 lit pixels, a sum of 75,000) are left out, as in the published choice of
    checkpoints; where all are, the histogram is 0 throughout. Nothing falls below 0.
    Chapter: A GAN for radio galaxies
    """
    density = _density(image_counts(images).sum(0, dtype=torch.float64))
    return dict(zip(EDGES, density.split(_BINS), strict=True))


def _density(counts: torch.Tensor) -> torch.Tensor:
    """Divide counts (..., 287) by bin width and bring each histogram to a sum of 1."""
    parts = (counts.double() / _WIDTHS).split(_BINS, -1)
    return torch.cat([part / part.sum(-1, keepdim=True).clamp_min(1e-300) for part in parts], -1)


def relative_mae(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Compare two histograms bin by bin, relative to their height.

    Parameters
    ----------
    generated, real : torch.Tensor, shape (bins,)
        Heights of the same bins, >= 0.

    Returns
    -------
    float
        0 where they are equal, 2 where no bin is filled in both.

    Raises
    ------
    ValueError
        If the shapes differ, a height is negative or not finite, or a histogram is empty.

    Notes
    -----
    Mean over the bins with r + g > 0 of 2 |r - g| / (r + g) (Rustige et al. 2023).
    Chapter: A GAN for radio galaxies
    """
    if generated.shape != real.shape or real.ndim != 1:
        raise ValueError(f"got histograms of {tuple(generated.shape)} and {tuple(real.shape)} bins; "
                         "expected one shape (bins,)")  # fmt: skip
    for name, heights in (("generated", generated), ("real", real)):
        if not (torch.isfinite(heights).all() and (heights >= 0).all() and heights.sum() > 0):
            raise ValueError(
                f"the {name} histogram has negative, infinite or no counts; expected heights >= 0"
            )
    return float(_relative_mae(generated.double(), real.double()))


def _relative_mae(generated: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    both = generated + real
    filled = both > 0
    error = 2 * (real - generated).abs() / torch.where(filled, both, 1)
    return error.sum(-1) / filled.sum(-1).clamp_min(1)


def score_counts(generated: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the relative MAE of each of the three histograms (..., 3) from counts (..., 287).

    Chapter: A GAN for radio galaxies
    """
    pairs = zip(_density(generated).split(_BINS, -1), _density(real).split(_BINS, -1), strict=True)
    return torch.stack([_relative_mae(ours, theirs) for ours, theirs in pairs], -1)


def score(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Average the relative MAE over the three histograms of two sets of images (B, 1, H, W).

    Chapter: A GAN for radio galaxies
    """
    check_images(generated, name="generated images")
    check_images(real, name="real images")
    check_same_size(generated, real)
    return float(score_counts(image_counts(generated).sum(0), image_counts(real).sum(0)).mean())


def resampled_scores(
    generated: torch.Tensor,
    real: torch.Tensor,
    *,
    count: int,
    rounds: int = 400,
    generator: torch.Generator,
) -> torch.Tensor:
    """Score again and again, each time with other generated images.

    Parameters
    ----------
    generated, real : torch.Tensor, shape (N, 287) and (M, 287)
        From `image_counts`.
    count : int
        Images of `generated` per round, drawn without repeats.
    rounds : int
        How often.
    generator : torch.Generator
        CPU generator of the draws.

    Returns
    -------
    torch.Tensor, shape (rounds,)
        Mean over the three histograms.

    Raises
    ------
    ValueError
        If a set is empty or holds fewer than `count` images.

    Notes
    -----
    Relative MAE grows where images are few, so two figures compare only at equal numbers of images, and a
    bootstrap, which draws with repeats, would be too large.
    Chapter: A GAN for radio galaxies
    """
    check_sizes(count=count, rounds=rounds)
    if len(generated) < count or not len(real):
        raise ValueError(f"got {len(generated)} and {len(real)} images; expected at least {count} and 1")
    chosen = torch.rand(rounds, len(generated), generator=generator).argsort(1)[:, :count]
    picked = torch.zeros(rounds, len(generated)).scatter_(1, chosen, 1.0)
    return score_counts(picked @ generated, real.sum(0)).mean(-1)


@dataclass(frozen=True)
class Floor:
    """Hold how far real galaxies are from real ones: median and 95 % range of the score, images each side.

    Chapter: A GAN for radio galaxies
    """

    median: float
    low: float
    high: float
    count: int


def real_floor(
    real: torch.Tensor, *, count: int | None = None, rounds: int = 400, generator: torch.Generator
) -> Floor:
    """Score real galaxies against other real ones of their class: what no generator can be asked to beat.

    Parameters
    ----------
    real : torch.Tensor, shape (B, 1, H, W)
        In [0, 1], one class.
    count : int, optional
        Images on each side; half of them all if left out. A generator is to be compared with the floor at
        the same number on both sides (`resampled_scores`).
    rounds : int
        Random splits.
    generator : torch.Generator
        CPU generator of the splits.

    Returns
    -------
    Floor

    Raises
    ------
    ValueError
        If there are fewer than 2 `count` images.

    Notes
    -----
    The two sides share no image. Chapter: A GAN for radio galaxies
    """
    count = len(real) // 2 if count is None else count
    check_sizes(count=count, rounds=rounds)
    if len(real) < 2 * count:
        raise ValueError(f"got {len(real)} images; two sides of {count} need {2 * count}")
    counts = image_counts(real)
    order = torch.rand(rounds, len(real), generator=generator).argsort(1)
    sides = [
        torch.zeros(rounds, len(real)).scatter_(1, part, 1.0) @ counts
        for part in (order[:, :count], order[:, count : 2 * count])
    ]
    scores = score_counts(*sides).mean(-1)
    low, median, high = scores.quantile(torch.tensor([0.025, 0.5, 0.975], dtype=scores.dtype)).tolist()
    return Floor(median, low, high, count)


def check_same_size(generated: torch.Tensor, real: torch.Tensor) -> None:
    """Refuse generated and real images of different sizes.

    Chapter: A GAN for radio galaxies
    """
    if generated.shape[1:] != real.shape[1:]:
        raise ValueError(f"generated images are {tuple(generated.shape[1:])}, real ones "
                         f"{tuple(real.shape[1:])}; crop the real ones to the size of the GAN")  # fmt: skip
