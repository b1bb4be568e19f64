"""What each notebook and training does at a preset: `presets.toml` or a file of yours. Page How to run."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from galnb import images
from galnb.blending import Perturbation
from galnb.blending.batches import blend_batches, image_batches, labelled_batches, mix_batches
from galnb.checks import one_of
from galnb.gans import Batch, Gan, from_json
from galnb.gans.features import feature_network
from galnb.training import History, TrainingConfig, load_checkpoint, train
from galnb.training.checkpoints import GANS, differences

_PRESETS = ("quick", "laptop", "gpu")
_FILE = Path(__file__).with_name("presets.toml")


@dataclass(frozen=True)
class Experiment:
    """Say how much a notebook without training does."""

    minutes: float  # what to expect on two cores ("gpu": on one current GPU)
    memory_gib: float
    images: int = 0  # galaxies to load, 0 for all
    blends: int = 0  # blends to make, 0 for all


@dataclass(frozen=True)
class GanExperiment:
    """Say how a GAN is trained."""

    minutes: float
    memory_gib: float
    gan: str  # key of `checkpoints.GANS`
    model: Any  # config of its networks
    training: TrainingConfig
    batch_size: int  # blends, or images per discriminator step
    images: int = 0
    rule: str = "max"  # this and the rest: of a deblender's blends, see `blend_batches`
    fill: str = "zeros"
    turn_first: float = 0.0


def experiment(name: str, preset: str) -> Experiment | GanExperiment:
    """Look up what a notebook or a training does at a preset.

    name: a notebook such as "04_deblender", a training such as "deblender-bounded", or a file: "my.toml"
        for its first table, or "my.toml:NAME". preset: one of `_PRESETS`.
    ValueError names the file and the field of what is unknown or does not fit.
    """
    one_of("preset", preset, _PRESETS)
    try:
        table, tables = _tables(name)
        kind, values = Experiment, _resolved(tables, table, preset)
        if "gan" in values:
            one_of("gan", values["gan"], GANS)
            model = from_json(GANS[values["gan"]][0], values.get("model", {}))
            kind, values = GanExperiment, {**values, "model": model}
        return from_json(kind, values)
    except ValueError as error:
        raise ValueError(f"{name} at preset {preset!r}: {error}") from error


def _tables(name: str) -> tuple[str, dict[str, Any]]:
    """Return the table that a name means, and all tables that `like` may mean."""
    path, dot, table = name.partition(".toml")
    own = _read(Path(path + dot) if dot else _FILE)
    table = (table.removeprefix(":") or next(iter(own), "")) if dot else name
    one_of("experiment", table, own)
    return table, {**_read(_FILE), **own}


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileNotFoundError(f"{file} cannot be read ({error.strerror}); give its path") from error


def _resolved(tables: Mapping[str, Any], name: str, preset: str, above: tuple[str, ...] = ()) -> dict:
    """Return the fields of a table at a preset, laid over those of the table that it is `like`."""
    if name not in tables or name in above:
        raise ValueError(f"like = {name!r} is unknown or leads back; known are {', '.join(tables)}")
    table = tables[name]
    if not isinstance(table, dict) or not isinstance(table.get(preset, {}), dict):
        raise ValueError(f"[{name}] is {table!r}; expected a table of fields, and such a table at {preset!r}")
    like = _resolved(tables, str(table["like"]), preset, (*above, name)) if "like" in table else {}
    shared = {field: value for field, value in table.items() if field not in ("like", *_PRESETS)}
    return _merged(_merged(like, shared), table.get(preset, {}))


def _merged(values: Mapping, more: Mapping) -> dict[str, Any]:
    """Lay a table over another, field by field."""
    both = {name for name in more if isinstance(values.get(name), dict) and isinstance(more[name], dict)}
    return {**values, **more, **{name: _merged(values[name], more[name]) for name in both}}


def _blends(sources: Mapping[str, str], plan: GanExperiment, seed: int) -> Callable[[int], Batch]:
    """Build the endless blends that a deblender learns from; with both sources one in sixteen is Hubble's.

    Galaxy Zoo follows the protocol of Reiman & Göhre 2019: warp at 424 px, crop 240, box average to 80.
    """
    both, made = len(sources) > 1, []
    few = max(1, plan.batch_size // 16) if both else plan.batch_size
    blends = partial(blend_batches, seed=seed, rule=plan.rule, count=plan.model.count)
    if "galaxyzoo" in sources:
        frames = _galaxy_zoo(sources["galaxyzoo"], plan, size=424, crop=424, dtype=torch.uint8)
        how = {"perturbation": Perturbation(fill=plan.fill), "turn_first": plan.turn_first}
        many = plan.batch_size - few if both else few
        made.append(blends(frames, batch_size=many, crop=240, size=plan.model.size, **how))
    if "hubble" in sources:
        # A Hubble stamp has no surroundings to turn in; zeros would fill a third of it.
        how = {"perturbation": Perturbation(fill="reflect"), "turn_first": 0.0 if both else plan.turn_first}
        stamps = images.hubble_deep_field(size=plan.model.size).pixels
        made.append(blends(stamps, batch_size=few, **how))
    return mix_batches(*made)


def _galaxy_zoo(folder: str, plan: GanExperiment, **how: Any) -> torch.Tensor:
    return images.galaxy_zoo(folder, split="train", limit=plan.images or None, **how).pixels


def _single(sources: Mapping[str, str], plan: GanExperiment, seed: int) -> Callable[[int], Batch]:
    size = plan.model.size
    if "galaxyzoo" in sources:
        pixels = _galaxy_zoo(sources["galaxyzoo"], plan, size=size, crop=max(size, 240))
    else:
        pixels = images.hubble_deep_field(size=size, limit=plan.images or None).pixels
    return image_batches(pixels, batch_size=plan.batch_size, seed=seed)


def _radio(sources: Mapping[str, str], plan: GanExperiment, seed: int) -> Callable[[int], Batch]:
    size = plan.model.size
    found = images.first_radio(split="train", size=min(300, 2 * size), limit=plan.images or None)
    labels = class_numbers(found.labels)
    return labelled_batches(found.pixels, labels, batch_size=plan.batch_size, seed=seed, size=size)


def class_numbers(labels: Sequence[str]) -> torch.Tensor:
    """Return the position (B,) of each class name in `galnb.images.RADIO_CLASSES`."""
    for label in set(labels):
        one_of("class", label, images.RADIO_CLASSES)
    return torch.tensor([images.RADIO_CLASSES.index(label) for label in labels], dtype=torch.long)


_ZOO = "galaxyzoo:FOLDER"
# how each GAN's batches are made, and from which data; the first are taken when none are named
_DATA = {
    "deblender": (_blends, ("hubble", _ZOO, f"{_ZOO},hubble")),
    "lightweight": (_single, ("hubble", _ZOO)),
    "radio": (_radio, ("first",)),
    "vanilla": (_single, ("hubble", _ZOO)),
}


def run(
    name: str,
    preset: str,
    *,
    data: str | None = None,
    folder: str | Path,
    start: str | Path | None = None,
    features: str | None = None,
    steps: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> History:
    """Train a GAN as an experiment says; leave checkpoints, resume.pt and history.json in the folder.

    name, preset: see `experiment`. data: "hubble", "galaxyzoo:FOLDER" or, for blends, both with a comma;
        "first" for radio galaxies. The last 300 Galaxy Zoo images by name are never used (test set).
    start: shipped weights or a checkpoint to begin with. Its generator must have the sizes of this one; a
        judge of another make is left out and begins anew, and the story says so.
    features: key of `gans.features.FEATURES`: compares images during a deblender's burn-in.
    steps: other than the preset's. resume, overwrite, progress: see `train`.
    """
    plan = experiment(name, preset)
    if isinstance(plan, Experiment):
        raise ValueError(f"{name!r} has no gan to train; give deblender-bounded, ... or a .toml file")
    blends = plan.gan == "deblender"
    if features and not blends:
        raise ValueError(f"{name} takes no features ({features!r}); only a deblender has a burn-in")
    make, known = _DATA[plan.gan]
    sources = [source.partition(":")[::2] for source in (data or known[0]).split(",")]
    if ",".join(f"{kind}:FOLDER" if place else kind for kind, place in sources) not in known:
        raise ValueError(f"data {data!r} are unknown for {name}; give {' or '.join(known)}")
    story = {"name": _tables(name)[0], "preset": preset, "data": ",".join(kind for kind, _ in sources)}
    told = ("batch_size", "images", *(("rule", "fill", "turn_first") if blends else ()))
    story |= {"split": "train", **{field: getattr(plan, field) for field in told}}
    story |= {"features": features} if features else {}
    gan = GANS[plan.gan][1](plan.model, **({"features": feature_network(features)} if features else {}))
    story |= _begin_with(gan, start) if start else {}
    training = plan.training if steps is None else replace(plan.training, steps=steps)
    batches, how = make(dict(sources), plan, training.seed), {"resume": resume, "overwrite": overwrite}
    return train(gan, batches, training, folder=folder, experiment=story, progress=progress, **how)


def _begin_with(gan: Gan, start: str | Path) -> dict[str, str]:
    """Take the weights of `start`, and say in the story what was taken."""
    given, taken = load_checkpoint(start).gan, []
    for part in ("generator", "discriminator"):
        mine, other = getattr(gan, part), getattr(given, part).state_dict()
        if not differences(mine.state_dict(), other):
            mine.load_state_dict(other)
            taken.append(part)
    if "generator" not in taken:
        told = f"{start} holds a generator of other sizes ({given.config})"
        raise ValueError(f"{told} than {gan.config}; start with weights of the same name")
    return {"start": Path(start).stem, "start_parts": ", ".join(taken)}
