"""Named experiments: what each notebook and training does at a preset, and a run of them without a notebook.

They stand in `presets.toml`; a file of yours in the same form works as well. Chapter: How to run.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
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
from galnb.training.checkpoints import GANS

PRESETS = ("quick", "laptop", "gpu")
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
class DeblenderExperiment:
    """Say how a deblender is trained.

    gan: key of `checkpoints.GANS`; batch_size: blends per step; rule, fill: how light adds up and what fills the
    uncovered frame; turn_first: see `blend_batches`; else as in `Experiment`.
    """

    minutes: float
    memory_gib: float
    model: DeblenderConfig
    training: TrainingConfig
    gan: str = "deblender"
    batch_size: int = 16
    images: int = 0
    rule: str = "max"
    fill: str = "zeros"
    turn_first: float = 0.0


@dataclass(frozen=True)
class GanExperiment:
    """Say how a GAN that draws galaxies from random numbers is trained; batch_size: images per discriminator step."""

    minutes: float
    memory_gib: float
    model: LightweightConfig | RadioConfig | VanillaConfig
    training: TrainingConfig
    gan: str
    batch_size: int = 32
    images: int = 0


def experiment(name: str, preset: str) -> Experiment | DeblenderExperiment | GanExperiment:
    """Look up what a notebook or a training does at a preset.

    name: a notebook such as "04_deblender", a training such as "deblender-bounded", or a file: "my.toml", and
        "my.toml:NAME" if it holds several tables. preset: one of `PRESETS`.
    ValueError names the file, table and field that are unknown or do not fit; FileNotFoundError the missing file.
    """
    one_of("preset", preset, PRESETS)
    file, table, tables = _tables(name)
    where = f"{file}, [{table}] at preset {preset!r}"
    values, presets = _resolved(tables, table, preset, where, seen=())
    if presets and preset not in presets:
        raise ValueError(f"{where}: the table has only the presets {', '.join(sorted(presets))}")
    kind = Experiment
    try:
        if "gan" in values:
            one_of("gan", values["gan"], GANS)
            kind = DeblenderExperiment if values["gan"] == "deblender" else GanExperiment
            model = GANS[values["gan"]][0]
            values["model"] = _built(model, values.get("model", {}))
        return _built(kind, values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _tables(name: str) -> tuple[Path, str, dict[str, dict]]:
    """Return the file of an experiment, its name in there, and all tables that `like` may mean."""
    known = _read(_FILE)
    file, dot, table = name.partition(".toml")
    if not dot:
        if name not in known:
            raise ValueError(f"no experiment is named {name!r}; known are {sorted(known)}, or give a .toml file")
        return _FILE, name, known
    file, table = Path(f"{file}.toml"), table.removeprefix(":")
    own = _read(file)
    if not table and len(own) != 1:
        raise ValueError(f"{file} holds {len(own)} tables; give one as {file}:NAME, of {', '.join(own) or 'none'}")
    table = table or next(iter(own))
    one_of(f"{file}: table", table, own)
    return file, table, {**known, **own}


def _read(file: Path) -> dict[str, dict]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileNotFoundError(f"{file} cannot be read ({error.strerror}); give the path of a .toml file") from error
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
    values, presets = {}, {key for key in table if key in PRESETS}
    shared = {key: value for key, value in table.items() if key not in PRESETS}
    for layer in (shared, table.get(preset, {})):
        if not isinstance(layer, dict):
            raise ValueError(f"{where}: {preset} = {layer!r}; expected a table of fields")
        if "like" in layer:
            like = str(layer["like"])
            other, _, at = like.rpartition(".") if like.endswith(PRESETS) else (like, "", preset)
            found, more = _resolved(tables, other, at, where, (*seen, (name, preset)))
            values, presets = _merged(values, found), presets | more
        values = _merged(values, {key: value for key, value in layer.items() if key != "like"})
    return values, presets


def _merged(values: Mapping, more: Mapping) -> dict[str, Any]:
    """Lay a table over another, field by field."""
    both = {name for name in more if isinstance(values.get(name), dict) and isinstance(more[name], dict)}
    return {**values, **more, **{name: _merged(values[name], more[name]) for name in both}}


def _built(kind: type, values: Mapping[str, Any]) -> Any:
    """Build a frozen dataclass from a table; ValueError names a field of another type."""
    hints, values = get_type_hints(kind), dict(values)
    for name, value in values.items():
        hint = hints.get(name)
        if is_dataclass(hint) and isinstance(value, dict):
            values[name] = _built(hint, value)
        elif hint is not None and not _fits(value, hint):
            raise ValueError(f"{kind.__name__}: {name} = {value!r}, expected {getattr(hint, '__name__', hint)}")
    return from_json(kind, values)


def _fits(value: Any, hint: Any) -> bool:
    inner = get_args(hint)
    if get_origin(hint) is tuple:
        wanted = inner[:1] * len(value) if inner[-1] is Ellipsis and isinstance(value, list) else inner
        return isinstance(value, list) and len(value) == len(wanted) and all(map(_fits, value, wanted))
    if inner:
        return any(_fits(value, each) for each in inner)
    return type(value) is int if hint in (int, float) and type(value) is int else type(value) is hint


def _blends(
    sources: Mapping[str, str], plan: DeblenderExperiment, seed: int
) -> Callable[[int], Batch]:
    """Build the endless blends that a deblender learns from; with both sources one in sixteen is Hubble's.

    Galaxy Zoo follows the protocol of Reiman & Göhre 2019: warp at 424 px, crop 240, box average to 80.
    """
    size = plan.model.size
    common = {"rule": plan.rule, "count": plan.model.count, "seed": seed}
    few = max(1, plan.batch_size // 16) if len(sources) > 1 else plan.batch_size
    made = []
    if "galaxyzoo" in sources:
        fill = Perturbation(fill=plan.fill)
        frames = _galaxies(sources["galaxyzoo"], 424, plan.images, crop=424, dtype=torch.uint8)
        many = plan.batch_size - few * (len(sources) > 1)
        made.append(blend_batches(frames, batch_size=many, perturbation=fill, crop=240, size=size, **common))
    if "hubble" in sources:
        # A Hubble stamp has no surroundings to turn in; zeros would fill a third of it.
        fill = Perturbation(fill="reflect")
        stamps = images.hubble_deep_field(size=size).pixels
        made.append(blend_batches(stamps, batch_size=few, perturbation=fill, **common))
    return mix_batches(*made)


def _galaxies(folder: str, size: int, limit: int, **options: Any) -> torch.Tensor:
    return images.galaxy_zoo(folder, size=size, split="train", limit=limit or None, **options).pixels


def _single(sources: Mapping[str, str], plan: GanExperiment, seed: int) -> Callable[[int], Batch]:
    size = plan.model.size
    if "hubble" in sources:
        pixels = images.hubble_deep_field(size=size, limit=plan.images or None).pixels
    else:
        pixels = _galaxies(sources["galaxyzoo"], size, plan.images, crop=max(size, 240))
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
    """Train a GAN as an experiment says; leave checkpoints, the resume point and history.json in the folder.

    name, preset: see `experiment`. data: "hubble", "galaxyzoo:FOLDER" or, for blends, "galaxyzoo:FOLDER,hubble";
        "first" for radio galaxies. The last 300 Galaxy Zoo images by name are never used: they are the test set.
    start: shipped weights or a checkpoint to begin with. Its generator must have the sizes of this one; a judge
        of another make begins anew, and the story says so.
    features: key of `gans.features.FEATURES`: compares images during a deblender's burn-in.
    steps: other than the preset's. resume, overwrite, progress: see `train`.
    """
    plan = experiment(name, preset)
    if isinstance(plan, Experiment):
        trained = [known for known in _read(_FILE) if hasattr(experiment(known, PRESETS[0]), "training")]
        raise ValueError(f"{name!r} cannot be trained; known are {', '.join(trained)}, or give a .toml file")
    training = plan.training if steps is None else replace(plan.training, steps=steps)
    if features and plan.gan != "deblender":
        raise ValueError(f"{name} takes no features ({features!r}); they belong to the burn-in of a deblender")
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
    if plan.gan == "deblender":
        story |= {"rule": plan.rule, "fill": plan.fill}
    story |= {"features": features} if features else {}
    build = GANS[plan.gan][1]
    gan = build(plan.model, features=feature_network(features)) if features else build(plan.model)
    story |= _begin_with(gan, start) if start else {}
    return train(
        gan, make(sources, plan, training.seed), training, folder=folder, resume=resume, overwrite=overwrite,
        experiment=story, progress=progress,
    )  # fmt: skip


def _begin_with(gan: Gan, start: str | Path) -> dict[str, str]:
    """Take the weights of `start`, and say in the story what was taken."""
    given = load_checkpoint(start).gan
    taken = []
    for part in ("generator", "discriminator"):
        mine, other = getattr(gan, part), getattr(given, part).state_dict()
        own = {name: tensor.shape for name, tensor in mine.state_dict().items()}
        if own == {name: tensor.shape for name, tensor in other.items()}:
            mine.load_state_dict(other)
            taken.append(part)
    if "generator" not in taken:
        raise ValueError(
            f"{start} holds a generator of other sizes ({given.config}) than this experiment trains "
            f"({gan.config}); start with weights of the same name"
        )
    return {"start": Path(start).stem, "start_parts": ", ".join(taken)}
