"""Named experiments: what each notebook and training does at a preset, and a run of them without a notebook.

They stand in `presets.toml`; a file of yours in the same form works as well. Chapter: How to run.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from inspect import formatannotation
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch

from galnb import images
from galnb.blending import Perturbation
from galnb.blending.batches import blend_batches, image_batches, labelled_batches, mix_batches
from galnb.checks import one_of
from galnb.gans import Batch, Gan, from_json
from galnb.gans.deblender import DeblenderConfig
from galnb.gans.features import feature_network
from galnb.gans.lightweight import LightweightConfig
from galnb.gans.radio import RadioConfig
from galnb.gans.vanilla import VanillaConfig
from galnb.training import History, TrainingConfig, load_checkpoint, train
from galnb.training.checkpoints import GANS, differences

_PRESETS = ("quick", "laptop", "gpu")
_FILE = Path(__file__).with_name("presets.toml")


@dataclass(frozen=True)
class Experiment:
    """Say how much a notebook without training does.

    minutes, memory_gib: what to expect on two cores ("gpu": on one current GPU).
    images, blends: galaxies to load and blends to make; 0 for all.
    """

    minutes: float
    memory_gib: float
    images: int = 0
    blends: int = 0


@dataclass(frozen=True)
class GanExperiment:
    """Say how a GAN is trained.

    gan: key of `checkpoints.GANS`; model: config of its networks; batch_size: blends, or images per
    discriminator step; rule, fill, turn_first: of a deblender's blends, see `blend_batches`.
    """

    minutes: float
    memory_gib: float
    gan: str
    model: DeblenderConfig | LightweightConfig | RadioConfig | VanillaConfig
    training: TrainingConfig
    batch_size: int
    images: int = 0
    rule: str = "max"
    fill: str = "zeros"
    turn_first: float = 0.0


def experiment(name: str, preset: str) -> Experiment | GanExperiment:
    """Look up what a notebook or a training does at a preset.

    name: a notebook such as "04_deblender", a training such as "deblender-bounded", or a file: "my.toml", and
        "my.toml:NAME" if it holds several tables. preset: one of `_PRESETS`.
    ValueError names file, table and field of what is unknown or does not fit.
    """
    one_of("preset", preset, _PRESETS)
    file, table, tables = _tables(name)
    where = f"{file}, [{table}] at preset {preset!r}"
    values, presets = _resolved(tables, table, preset, where, seen=())
    if presets and preset not in presets:
        raise ValueError(f"{where}: the table has only the presets {', '.join(sorted(presets))}")
    try:
        if "gan" not in values:
            return _built(Experiment, values)
        one_of("gan", values["gan"], GANS)
        if values["gan"] != "deblender" and (extra := {"rule", "fill", "turn_first"} & values.keys()):
            raise ValueError(f"{', '.join(sorted(extra))}: only a deblender takes that; leave it out")
        model = _built(GANS[values["gan"]][0], values.get("model", {}))
        return _built(GanExperiment, {**values, "model": model})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _tables(name: str) -> tuple[Path, str, dict[str, dict]]:
    """Return the file of an experiment, its table in there, and all tables that `like` may mean."""
    file, table, known = _FILE, name, _read(_FILE)
    own, (path, dot, place) = known, name.partition(".toml")
    if dot:
        file = Path(path + dot)
        own = _read(file)
        table = place.removeprefix(":") or (next(iter(own)) if len(own) == 1 else "")
    one_of(f"experiment {file.name}:NAME", table, own)
    return file, table, {**known, **own}


def _read(file: Path) -> dict[str, dict]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileNotFoundError(f"{file} cannot be read ({error.strerror}); give its path") from error
    except ValueError as error:  # its message names line and column
        raise ValueError(f"{file} is not TOML: {error}") from error
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ValueError(f"{file}: {name!r} stands outside of a table; write [NAME] above it")
    return tables


def _resolved(
    tables: Mapping, name: str, preset: str, where: str, seen: tuple[tuple[str, str], ...]
) -> tuple[dict[str, Any], set[str]]:
    """Return the fields of a table at a preset, laid over what it is `like`, and the presets that it has."""
    if name not in tables or (name, preset) in seen:
        raise ValueError(f"{where}: like = {name!r} is unknown or leads back; known are {sorted(tables)}")
    table = tables[name]
    values, presets = {}, {key for key in table if key in _PRESETS}
    shared = {key: value for key, value in table.items() if key not in _PRESETS}
    for layer in (shared, table.get(preset, {})):
        if not isinstance(layer, dict):
            raise ValueError(f"{where}: {preset} = {layer!r}; expected a table of fields")
        if "like" in layer:
            other, _, at = str(layer["like"]).rpartition(".")
            other, at = (other, at) if other and at in _PRESETS else (str(layer["like"]), preset)
            found, more = _resolved(tables, other, at, where, (*seen, (name, preset)))
            values, presets = _merged(values, found), presets | more
        values = _merged(values, {key: value for key, value in layer.items() if key != "like"})
    return values, presets


def _merged(values: Mapping, more: Mapping) -> dict[str, Any]:
    """Lay a table over another, field by field."""
    both = {name for name in more if isinstance(values.get(name), dict) and isinstance(more[name], dict)}
    return {**values, **more, **{name: _merged(values[name], more[name]) for name in both}}


def _built(kind: type, values: Any) -> Any:
    """Build a frozen dataclass from a table; ValueError names a field of another type."""
    hints = get_type_hints(kind)
    for name, value in values.items() if isinstance(values, dict) else ():
        hint = hints.get(name, Any)
        if is_dataclass(hint) and isinstance(value, dict):
            values = {**values, name: _built(hint, value)}
        elif hint is not Any and not _fits(value, hint):
            raise ValueError(f"{kind.__name__}: {name} = {value!r}, expected {formatannotation(hint)}")
    return from_json(kind, values)


def _fits(value: Any, hint: Any) -> bool:
    inner = get_args(hint)
    if get_origin(hint) is tuple:
        wanted = inner[:1] * len(value) if inner[-1] is Ellipsis and isinstance(value, list) else inner
        return isinstance(value, list) and len(value) == len(wanted) and all(map(_fits, value, wanted))
    if inner:
        return any(_fits(value, each) for each in inner)
    return type(value) is hint or (hint is float and type(value) is int)


def _blends(sources: Mapping[str, str], plan: GanExperiment, seed: int) -> Callable[[int], Batch]:
    """Build the endless blends that a deblender learns from; with both sources one in sixteen is Hubble's.

    Galaxy Zoo follows the protocol of Reiman & Göhre 2019: warp at 424 px, crop 240, box average to 80.
    """
    size, made = plan.model.size, []
    common = {"rule": plan.rule, "count": plan.model.count, "seed": seed}
    few = max(1, plan.batch_size // 16) if len(sources) > 1 else plan.batch_size
    if "galaxyzoo" in sources:
        frames = _galaxy_zoo(sources["galaxyzoo"], plan, size=424, crop=424, dtype=torch.uint8)
        how = {"perturbation": Perturbation(fill=plan.fill), "turn_first": plan.turn_first, **common}
        many = plan.batch_size - few * (len(sources) > 1)
        made.append(blend_batches(frames, batch_size=many, crop=240, size=size, **how))
    if "hubble" in sources:
        # A Hubble stamp has no surroundings to turn in; zeros would fill a third of it.
        how = {"perturbation": Perturbation(fill="reflect"), **common}
        how["turn_first"] = 0.0 if made else plan.turn_first
        made.append(blend_batches(images.hubble_deep_field(size=size).pixels, batch_size=few, **how))
    return mix_batches(*made)


def _galaxy_zoo(folder: str, plan: GanExperiment, **how: Any) -> torch.Tensor:
    return images.galaxy_zoo(folder, split="train", limit=plan.images or None, **how).pixels


def _single(sources: Mapping[str, str], plan: GanExperiment, seed: int) -> Callable[[int], Batch]:
    size = plan.model.size
    if "hubble" in sources:
        pixels = images.hubble_deep_field(size=size, limit=plan.images or None).pixels
    else:
        pixels = _galaxy_zoo(sources["galaxyzoo"], plan, size=size, crop=max(size, 240))
    return image_batches(pixels, batch_size=plan.batch_size, seed=seed)


def _radio(sources: Mapping[str, str], plan: GanExperiment, seed: int) -> Callable[[int], Batch]:
    size = plan.model.size
    found = images.first_radio(split="train", size=min(300, 2 * size), limit=plan.images or None)
    labels = class_numbers(found.labels)
    return labelled_batches(found.pixels, labels, batch_size=plan.batch_size, seed=seed, size=size)


def class_numbers(labels: Sequence[str]) -> torch.Tensor:
    """Return the position (B,) of each class name in `galnb.images.RADIO_CLASSES`."""
    known = images.RADIO_CLASSES
    unknown = sorted(set(labels) - set(known))
    if unknown:
        raise ValueError(f"classes {unknown} are unknown; known are {', '.join(known)}")
    return torch.tensor([known.index(label) for label in labels], dtype=torch.long)


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
    training = plan.training if steps is None else replace(plan.training, steps=steps)
    make, known = _DATA[plan.gan]
    data = data or known[0]
    sources = dict(source.partition(":")[::2] for source in data.split(","))
    pattern = ",".join(f"{kind}:FOLDER" if place else kind for kind, place in sources.items())
    if pattern not in known or len(sources) != data.count(",") + 1:
        raise ValueError(f"data {data!r} are unknown for {name}; give {' or '.join(known)}")
    story = {
        "name": _tables(name)[1], "preset": preset, "data": ",".join(sources), "split": "train",
        "batch_size": plan.batch_size, "images": plan.images,
    }  # fmt: skip
    if features and plan.gan != "deblender":
        raise ValueError(f"{name} takes no features ({features!r}); only a deblender has a burn-in")
    if plan.gan == "deblender":
        story |= {"rule": plan.rule, "fill": plan.fill, "turn_first": plan.turn_first}
    story |= {"features": features} if features else {}
    gan = GANS[plan.gan][1](plan.model, **({"features": feature_network(features)} if features else {}))
    story |= _begin_with(gan, start) if start else {}
    batches, how = make(sources, plan, training.seed), {"resume": resume, "overwrite": overwrite}
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
        raise ValueError(
            f"{start} holds a generator of other sizes ({given.config}) than this experiment trains "
            f"({gan.config}); start with weights of the same name"
        )
    return {"start": Path(start).stem, "start_parts": ", ".join(taken)}
