"""Run a named experiment from data to checkpoints, for machines without a notebook."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from galnb import images
from galnb.blending import Perturbation
from galnb.blending.batches import blend_batches, image_batches, labelled_batches, mix_batches
from galnb.gans import Batch, Gan
from galnb.gans.deblender import deblender
from galnb.gans.features import feature_network
from galnb.gans.lightweight import lightweight
from galnb.gans.radio import radio
from galnb.training import History, TrainingConfig, train
from galnb.training.checkpoints import load_checkpoint
from galnb.training.presets import DeblenderExperiment, GanExperiment, experiment


def galaxy_zoo_frames(folder: str | Path, *, split: str = "train", limit: int | None = None) -> torch.Tensor:
    """Read whole Galaxy Zoo frames as bytes; as floats 1,400 of them would take 3 GB, while joined 6.

    Parameters
    ----------
    folder, split, limit
        As in `galnb.images.galaxy_zoo`.

    Returns
    -------
    torch.Tensor, shape (B, 3, 424, 424), uint8 in 0..255

    Raises
    ------
    FileNotFoundError, ValueError
        As `galnb.images.galaxy_zoo`.

    Notes
    -----
    Chapter: The deblender GAN
    """
    probe = images.galaxy_zoo(folder, size=1, crop=424, split=split, limit=1)  # refuses what cannot be read
    files = images._list_images(Path(folder))
    names = sorted(files)
    names = names[-images.GALAXY_ZOO_TEST :] if split == "test" else names[: probe.record["found"]]
    frames = torch.empty(len(names[:limit]), 3, 424, 424, dtype=torch.uint8)
    for frame, name in zip(frames, names, strict=False):
        frame.copy_(images._decode(files[name], name, crop=424)[0].mul_(255).round_())
    return frames


def deblender_batches(data: str, chosen: DeblenderExperiment, *, seed: int) -> Callable[[int], Batch]:
    """Build the endless blends that a deblender experiment trains on.

    Parameters
    ----------
    data : str
        ``"hubble"``, ``"galaxyzoo:FOLDER"`` or ``"galaxyzoo:FOLDER,hubble"``. With both, one blend in sixteen
        shows Hubble galaxies. The last 300 Galaxy Zoo images by name are never used: they are the test set.
    chosen : DeblenderExperiment
        Batch size, number of images, rule and fill.
    seed : int
        Seed of the batches.

    Raises
    ------
    ValueError
        If a source is unknown.

    Notes
    -----
    Galaxy Zoo follows the protocol of Reiman & Göhre 2019: warp at 424 px, crop 240, box average to 80.
    Chapter: The deblender GAN
    """
    kinds = [source.partition(":")[0] for source in data.split(",")]
    folder = data.split(",")[0].partition(":")[2]
    if kinds not in (["hubble"], ["galaxyzoo"], ["galaxyzoo", "hubble"]) or bool(folder) != (
        "galaxyzoo" in kinds
    ):
        raise ValueError(
            f"data {data!r} are unknown; give hubble, galaxyzoo:FOLDER or galaxyzoo:FOLDER,hubble"
        )
    common = {"rule": chosen.rule, "count": chosen.model.count, "seed": seed}
    few = max(1, chosen.batch_size // 16) if len(kinds) > 1 else chosen.batch_size
    made = []
    if "galaxyzoo" in kinds:
        frames, fill = galaxy_zoo_frames(folder, limit=chosen.images or None), Perturbation(fill=chosen.fill)
        many, sizes = chosen.batch_size - few * (len(kinds) > 1), {"crop": 240, "size": chosen.model.size}
        made.append(blend_batches(frames, batch_size=many, perturbation=fill, **sizes, **common))
    if "hubble" in kinds:
        stamps = images.hubble_deep_field(size=chosen.model.size).pixels
        # A Hubble stamp has no surroundings to turn in; zeros would fill a third of it.
        fill = Perturbation(fill="reflect")
        made.append(blend_batches(stamps, batch_size=few, perturbation=fill, **common))
    return mix_batches(*made)


def run_deblender(
    name: str,
    preset: str,
    *,
    data: str = "hubble",
    folder: str | Path,
    steps: int | None = None,
    resume: bool = False,
    progress: bool = True,
    features: str | None = None,
    start: str | Path | None = None,
) -> History:
    """Train a deblender as a preset says and leave its checkpoints in a folder.

    Parameters
    ----------
    name : str
        Key of `TRAINABLE`.
    preset : str
        ``"quick"``, ``"laptop"`` or ``"gpu"``.
    data : str
        See `deblender_batches`.
    folder : str or Path
        Receives ``early.safetensors``, ``middle.safetensors``, ``final.safetensors``, the resume point and
        ``history.json``.
    steps : int, optional
        Another number of steps than the preset's.
    resume : bool
        Continue a run that was stopped.
    progress : bool
        Show a progress bar.
    features : str, optional
        Key of `galnb.gans.features.FEATURES`: the network that compares images during burn-in, in place of the
        reconstruction loss.
    start : str or Path, optional
        Shipped weights or a checkpoint of the same networks to begin with, in place of fresh ones.

    Returns
    -------
    History

    Raises
    ------
    ValueError, FileNotFoundError
        If a name, the data or the weights to start with do not fit.

    Notes
    -----
    Chapter: The deblender GAN
    """
    known, chosen, training = _plan(name, preset, steps, run_deblender)
    batches = deblender_batches(data, chosen, seed=training.seed)
    story = {
        "name": known,
        "preset": preset,
        "data": ",".join(source.partition(":")[0] for source in data.split(",")),
        "batch_size": chosen.batch_size,
        "images": chosen.images,
        "rule": chosen.rule,
        "fill": chosen.fill,
    }
    if features is not None:
        story["features"] = features
    gan = deblender(chosen.model, features=feature_network(features) if features else None)
    if start is not None:
        _begin_with(gan, start)
        story["start"] = Path(start).stem
    return train(gan, batches, training, folder=folder, resume=resume, experiment=story, progress=progress)


def _begin_with(gan: Gan, start: str | Path) -> None:
    given = load_checkpoint(start).gan
    for part in ("generator", "discriminator"):
        try:
            getattr(gan, part).load_state_dict(getattr(given, part).state_dict())
        except RuntimeError as error:  # one line per weight; the reason is the same for all
            raise ValueError(
                f"{start} holds a {part} of other sizes ({given.config}) than this experiment trains "
                f"({gan.config}); start with weights of the same name"
            ) from error


def class_numbers(labels: Sequence[str]) -> torch.Tensor:
    """Return the position (B,) of each class name in `galnb.images.RADIO_CLASSES`.

    Chapter: A GAN for radio galaxies
    """
    known = images.RADIO_CLASSES
    unknown = sorted(set(labels) - set(known))
    if unknown:
        raise ValueError(f"classes {unknown} are unknown; known are {', '.join(known)}")
    return torch.tensor([known.index(label) for label in labels], dtype=torch.long)


def run_radio(
    name: str,
    preset: str,
    *,
    folder: str | Path,
    steps: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> History:
    """Train a radio-galaxy GAN on the training split of FIRST and leave its checkpoints in a folder.

    Parameters
    ----------
    name : str
        ``"radio-plain"`` or ``"radio-smeared"``.
    preset, folder, steps, resume, progress
        As for `run_deblender`.

    Returns
    -------
    History

    Raises
    ------
    ValueError, ModuleNotFoundError
        If a name does not fit, or ``firstgalaxydata`` is not installed.

    Notes
    -----
    Chapter: A GAN for radio galaxies
    """
    known, chosen, training = _plan(name, preset, steps, run_radio)
    size = chosen.model.size
    found = images.first_radio(split="train", size=min(300, 2 * size), limit=chosen.images or None)
    batches = labelled_batches(
        found.pixels, class_numbers(found.labels), batch_size=chosen.batch_size, seed=training.seed, size=size
    )
    story = {
        "name": known, "preset": preset, "data": "first", "split": "train",
        "batch_size": chosen.batch_size, "images": chosen.images,
    }  # fmt: skip
    return train(
        radio(chosen.model),
        batches,
        training,
        folder=folder,
        resume=resume,
        experiment=story,
        progress=progress,
    )


def run_lightweight(
    name: str,
    preset: str,
    *,
    data: str = "hubble",
    folder: str | Path,
    steps: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> History:
    """Train a Lightweight GAN on single galaxies and leave its checkpoints in a folder.

    Parameters
    ----------
    name : str
        ``"lightweight-64"``.
    data : str
        ``"hubble"`` or ``"galaxyzoo:FOLDER"``, of which the last 300 images by name are never used.
    preset, folder, steps, resume, progress
        As for `run_deblender`.

    Returns
    -------
    History

    Raises
    ------
    ValueError, FileNotFoundError
        If a name or the data do not fit.

    Notes
    -----
    Chapter: New galaxies
    """
    known, chosen, training = _plan(name, preset, steps, run_lightweight)
    kind, _, place = data.partition(":")
    if kind not in ("hubble", "galaxyzoo") or bool(place) != (kind == "galaxyzoo"):
        raise ValueError(f"data {data!r} are unknown; give hubble or galaxyzoo:FOLDER")
    size, limit = chosen.model.size, chosen.images or None
    found = (
        images.galaxy_zoo(place, size=size, crop=max(size, 240), split="train", limit=limit)
        if place
        else images.hubble_deep_field(size=size, limit=limit)
    )
    batches = image_batches(found.pixels, batch_size=chosen.batch_size, seed=training.seed)
    story = {
        "name": known, "preset": preset, "data": kind, "split": "train", "batch_size": chosen.batch_size,
        "images": chosen.images,
    }  # fmt: skip
    return train(
        lightweight(chosen.model),
        batches,
        training,
        folder=folder,
        resume=resume,
        experiment=story,
        progress=progress,
    )


@dataclass(frozen=True)
class Trainable:
    """Name the experiment of a GAN, the function that runs it, and the options which that one takes.

    Chapter: The deblender GAN
    """

    experiment: str
    run: Callable[..., History]
    options: tuple[str, ...] = ()


_DEBLENDER = (run_deblender, ("data", "features", "start"))
TRAINABLE = {
    "deblender": Trainable("deblender-paper", *_DEBLENDER),
    "deblender-paper": Trainable("deblender-paper", *_DEBLENDER),
    "deblender-bounded": Trainable("deblender-bounded", *_DEBLENDER),
    "deblender-sum": Trainable("deblender-sum", *_DEBLENDER),
    "lightweight": Trainable("lightweight-64", run_lightweight, ("data",)),
    "lightweight-64": Trainable("lightweight-64", run_lightweight, ("data",)),
    "radio": Trainable("radio-plain", run_radio),
    "radio-plain": Trainable("radio-plain", run_radio),
    "radio-smeared": Trainable("radio-smeared", run_radio),
}


def _plan(
    name: str, preset: str, steps: int | None, run: Callable[..., History]
) -> tuple[str, DeblenderExperiment | GanExperiment, TrainingConfig]:
    """Return the name of the experiment, if this function can run it, what it is, and how it is trained."""
    names = [known for known, entry in TRAINABLE.items() if entry.run is run]
    if name not in names:
        raise ValueError(f"{name!r} cannot be trained here; known are {', '.join(names)}")
    known = TRAINABLE[name].experiment
    chosen = experiment(known, preset)
    return known, chosen, chosen.training if steps is None else replace(chosen.training, steps=steps)
