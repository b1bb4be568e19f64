"""Which checkpoint draws which class: scores of many checkpoints, the old rule and the new one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from galnb.gans.radio import generate
from galnb.images import RADIO_CLASSES
from galnb.images.imageset import check_images, check_sizes
from galnb.smearing.histograms import check_same_size, image_counts, score_counts
from galnb.training import load_checkpoint


@dataclass(frozen=True)
class Scores:
    """Hold the scores of K checkpoints on C classes.

    Parameters
    ----------
    names, steps : tuple
        File names without ending, and generator steps.
    parts : torch.Tensor, shape (K, C, 3)
        Relative MAE of each histogram.
    counts : torch.Tensor, shape (K, C, count, 287)
        `image_counts` of the images drawn, for intervals.

    Notes
    -----
    Chapter: A GAN for radio galaxies
    """

    names: tuple[str, ...]
    steps: tuple[int, ...]
    parts: torch.Tensor
    counts: torch.Tensor

    @property
    def scores(self) -> torch.Tensor:
        """Mean over the three histograms, shape (K, C)."""
        return self.parts.mean(-1)


def score_checkpoints(
    paths: Sequence[str | Path],
    real: torch.Tensor,
    labels: torch.Tensor,
    *,
    count: int = 1000,
    generator: torch.Generator,
) -> Scores:
    """Let each checkpoint draw galaxies of every class, and compare them with real ones.

    Parameters
    ----------
    paths : sequence of str or Path
        Files or names of shipped weights. Each model is rebuilt from its file alone, smearing included.
    real : torch.Tensor, shape (B, 1, H, W)
        In [0, 1], not used in training.
    labels : torch.Tensor, shape (B,)
        Positions of their classes in `galnb.images.RADIO_CLASSES`.
    count : int
        Galaxies drawn per class, from the same random vectors for every checkpoint.
    generator : torch.Generator
        CPU generator of those vectors.

    Returns
    -------
    Scores

    Raises
    ------
    ValueError
        If a class has no image, the sizes differ, or a file holds no radio GAN or no config.

    Notes
    -----
    Chapter: A GAN for radio galaxies
    """
    check_images(real, name="real images")
    check_sizes(count=count)
    truth = class_counts(real, labels)
    if not paths:
        raise ValueError("no checkpoints were given; expected at least one path or shipped name")
    seed = int(torch.randint(2**31, (), generator=generator))
    names, steps, parts, counts = [], [], [], []
    for path in paths:
        kept = load_checkpoint(path)
        if kept.gan.name != "radio":
            raise ValueError(f"{path} holds a {kept.gan.name!r} GAN; expected a radio GAN")
        same = torch.Generator().manual_seed(seed)
        drawn = []
        for label in range(len(RADIO_CLASSES)):
            images = generate(kept.gan, torch.full((count,), label), generator=same)
            check_same_size(images, real)
            drawn.append(image_counts(images))
        counts.append(torch.stack(drawn))
        parts.append(score_counts(counts[-1].sum(1), truth))
        names.append(Path(path).stem)
        steps.append(kept.step)
    return Scores(tuple(names), tuple(steps), torch.stack(parts), torch.stack(counts))


def class_counts(real: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum `image_counts` over each class: (C, 287). A class without an image is refused.

    Chapter: A GAN for radio galaxies
    """
    if labels.shape != (len(real),):
        raise ValueError(f"got {len(real)} images and labels {tuple(labels.shape)}; expected one label each")
    missing = [name for number, name in enumerate(RADIO_CLASSES) if not (labels == number).any()]
    if missing:
        raise ValueError(f"there is no image of {', '.join(missing)}; every class needs at least one")
    counts = image_counts(real)
    return torch.stack([counts[labels == number].sum(0) for number in range(len(RADIO_CLASSES))])


def choose(scores: torch.Tensor, *, overall: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose checkpoints from scores (K, C) by the old and by the new rule of the talk.

    Parameters
    ----------
    scores : torch.Tensor, shape (K, C)
        Lower is better.
    overall : int
        How many the old rule keeps.

    Returns
    -------
    torch.Tensor, shape (overall,)
        Old: the best by the mean over classes; each image is then drawn by one of them at random.
    torch.Tensor, shape (C,)
        New: the best of each class, which draws that class alone.

    Raises
    ------
    ValueError
        If there are fewer checkpoints than `overall`, or a score is not finite.

    Notes
    -----
    Chapter: A GAN for radio galaxies
    """
    if scores.ndim != 2 or len(scores) < overall or not torch.isfinite(scores).all():
        raise ValueError(f"got scores {tuple(scores.shape)}; expected finite ones (K, C) of {overall} "
                         "checkpoints or more")  # fmt: skip
    return scores.mean(1).argsort(stable=True)[:overall], scores.argmin(0)


def draw_from(
    paths: Sequence[str | Path], choice: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator
) -> torch.Tensor:
    """Draw galaxies (B, 1, H, W), each by the checkpoint that `choice` (B,) names for it.

    Chapter: A GAN for radio galaxies
    """
    if choice.shape != labels.shape:
        raise ValueError(
            f"got {tuple(choice.shape)} choices for {tuple(labels.shape)} labels; expected one each"
        )
    drawn = {}
    for number in choice.unique().tolist():
        images = generate(load_checkpoint(paths[number]).gan, labels[choice == number], generator=generator)
        drawn.update(zip((choice == number).nonzero()[:, 0].tolist(), images, strict=True))
    return torch.stack([drawn[index] for index in range(len(labels))])
