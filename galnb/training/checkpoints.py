"""Checkpoints (weights, config and story in one safetensors file) and resume points of stopped runs.

Chapter 04, The deblender GAN.
"""

import io
import json
import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from galnb.files import write_atomically
from galnb.gans import Gan, from_json
from galnb.gans.deblender import DeblenderConfig, deblender
from galnb.gans.lightweight import LightweightConfig, lightweight
from galnb.gans.radio import RadioConfig, radio
from galnb.gans.vanilla import VanillaConfig, vanilla

GANS: dict[str, tuple[type, Callable[..., Gan]]] = {
    "deblender": (DeblenderConfig, deblender),
    "lightweight": (LightweightConfig, lightweight),
    "radio": (RadioConfig, radio),
    "vanilla": (VanillaConfig, vanilla),
}
WEIGHTS = Path(__file__).parents[1] / "weights"
_SCALE = ":scale"  # after the name of a tensor in 8 bits: what each of its rows is multiplied by
_FORMAT = "galnb-1"
_PARTS = ("generator", "discriminator")
_PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8)
_HEADER = {"gan": str, "config": dict, "experiment": dict, "step": (int, float), "metrics": dict}
# fields of the training config that may change without making it another run
_FREE = {"steps", "save_every", "device", "stages", "compile"}


@dataclass(frozen=True)
class Checkpoint:
    """Hold a GAN rebuilt from a file, both networks in eval mode, and the file's account of it.

    experiment: what made it (data, training config, seeds); step: generator steps taken; metrics: figures
    measured with these weights, such as those of the judge under "judge"; empty where nobody measured.
    """

    gan: Gan
    experiment: dict
    step: int
    metrics: dict


def save_checkpoint(
    path: str | Path,
    gan: Gan,
    *,
    experiment: Mapping,
    step: int,
    metrics: Mapping | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write both networks with their config to one file, whole or not at all; return its path.

    path: ends in .safetensors; experiment, metrics: how it was made, what it achieves, as JSON.
    dtype: precision of the stored weights (a float type, or torch.int8: the generator's kernels and matrices
        in 8 bits with one scale a row, the rest in float16). Batch statistics and counters keep theirs.
    Compiled and DataParallel networks are saved as what they wrap. ValueError if the path is none, dtype
    cannot hold a weight, or a network is not the one of the config: such a file could not be loaded.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(f"path is {path}; expected a file name that ends in .safetensors, not a folder")
    if dtype not in _PRECISIONS:
        raise ValueError(f"dtype is {dtype!r}; expected one of {_PRECISIONS}")
    tensors = {}
    for part, name, tensor in _unwrapped(gan):
        coarse = part == "generator" and tensor.ndim > 1
        precision = torch.float16 if dtype == torch.int8 and not coarse else dtype
        if not tensor.is_floating_point() or "running_" in name:
            precision = tensor.dtype
        tensors |= _stored(f"{part}.{name}", tensor.detach().cpu(), precision)
    header = {"gan": gan.name, "config": asdict(gan.config), "experiment": dict(experiment), "step": step}
    header |= {"metrics": dict(metrics or {}), "torch": torch.__version__}
    content = save(tensors, metadata={"format": _FORMAT, "galnb": json.dumps(header)})
    try:
        write_atomically(path, content)
    except (FileExistsError, NotADirectoryError) as error:  # a parent is a file
        raise ValueError(f"cannot write {path}: {error}; choose another folder") from error
    return path


def _unwrapped(gan: Gan) -> Iterable[tuple[str, str, torch.Tensor]]:
    """Return part, name and tensor of all that is saved, under the names that an unwrapped network gives."""
    fresh = GANS[gan.name][1](gan.config) if gan.name in GANS else None
    for part in _PARTS:
        state = getattr(gan, part).state_dict()
        state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
        while state and all(name.startswith("module.") for name in state):
            state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        if fresh and (other := differences(getattr(fresh, part).state_dict(), state)):
            raise ValueError(
                f"the {part} is not the network that its config builds: {', '.join(other[:3])} differ. Save "
                "the network itself, not a wrapper around it, together with its own config"
            )
        yield from ((part, name, tensor) for name, tensor in state.items())


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Name the tensors that are missing, superfluous, or of another shape or kind of number."""

    def kind(tensor: Any) -> tuple | None:
        return (tensor.shape, tensor.is_floating_point()) if isinstance(tensor, torch.Tensor) else None

    every = dict.fromkeys([*expected, *found])
    return [n for n in every if not kind(expected.get(n)) or kind(expected[n]) != kind(found.get(n))]


def _stored(name: str, tensor: torch.Tensor, precision: torch.dtype) -> dict[str, torch.Tensor]:
    """Return what a file holds of one tensor."""
    if precision != torch.int8:
        stored = {name: tensor.to(precision).contiguous()}
        lost = tensor.isfinite() & ~stored[name].isfinite()
    else:
        scale = tensor.flatten(1).abs().amax(1).clamp_min(1e-12).float() / 127
        rows = scale.view(-1, *[1] * (tensor.ndim - 1))
        stored = {name: (tensor / rows).round().to(torch.int8).contiguous(), name + _SCALE: scale}
        lost = ~scale.isfinite()  # one infinite weight would take its row with it
    if lost.any():
        raise ValueError(f"{name} holds values that {precision} cannot store; save with dtype=torch.float32")
    return stored


def load_checkpoint(path: str | Path, *, device: str | torch.device = "cpu") -> Checkpoint:
    """Rebuild a GAN from a file alone: networks in float32, in eval mode, on the device.

    path: a file that `save_checkpoint` wrote, or the name of shipped weights. Nothing in it is executed.
    FileNotFoundError if there is none; ValueError if it is damaged, foreign or of a GAN unknown here.
    """
    path = Path(path)
    if not path.is_file():
        bare = path.suffix == "" and path.name == str(path)
        if path.is_dir() and not (bare and path.name in shipped_names()):
            held = ", ".join(sorted(file.name for file in path.glob("*.safetensors"))) or "none"
            raise ValueError(f"{path} is a folder; expected a .safetensors file, in there are: {held}")
        if not bare:
            raise FileNotFoundError(f"no checkpoint at {path}; expected a file of save_checkpoint")
        path = shipped(str(path))
    header, tensors = _read(path)
    config_class, build = GANS[header["gan"]]
    try:
        gan = build(from_json(config_class, header["config"]))
    except ValueError as error:
        raise ValueError(f"{path} has a config that this galnb refuses ({error}); update galnb") from error
    for part in _PARTS:
        network = getattr(gan, part)
        own = {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
        if other := differences(network.state_dict(), own):
            raise ValueError(
                f"{path}: the weights of the {part} do not fit its config: {', '.join(other[:3])}"
            )
        network.load_state_dict(own)
        network.to(device).eval()
    return Checkpoint(gan, header["experiment"], header["step"], header["metrics"])


def _read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); get it again") from error
    if (found := metadata.get("format")) != _FORMAT or "galnb" not in metadata:
        raise ValueError(f"{path} was not written by this galnb: its format is {found!r}, not {_FORMAT!r}")
    try:
        header = json.loads(metadata["galnb"])
        fits = all(isinstance(header[name], kind) for name, kind in _HEADER.items())
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise ValueError(f"{path} has a damaged header; expected JSON with {list(_HEADER)}; get it again")
    if header["gan"] not in GANS:
        raise ValueError(f"{path} holds a {header['gan']!r}; this version knows {sorted(GANS)}")
    scaled = {name.removesuffix(_SCALE) for name in tensors if name.endswith(_SCALE)}
    for name in scaled | {name for name, tensor in tensors.items() if tensor.dtype == torch.int8}:
        whole, scale = tensors.get(name), tensors.pop(name + _SCALE, None)
        if whole is None or scale is None or scale.shape != whole.shape[:1]:
            raise ValueError(f"{path} is damaged: {name!r} needs its 8 bits and one scale per row")
        tensors[name] = whole * scale.view(-1, *[1] * (whole.ndim - 1))
    return header, tensors


def shipped_names(prefix: str = "") -> list[str]:
    """Return the sorted names of the weights that come with the package and begin so."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors") if path.stem.startswith(prefix))


def shipped(name: str) -> Path:
    """Find weights that come with the package, such as "deblender-bounded" or "deblender-bounded@early".

    ValueError, with those that exist, if there are none of that name.
    """
    if name not in (known := shipped_names()):
        raise ValueError(f"no shipped weights are named {name!r}; known are {known or 'none yet'}")
    return WEIGHTS / f"{name}.safetensors"


def claim_folder(folder: Path, stages: Mapping[str, int], first: int, resume: bool, overwrite: bool) -> bool:
    """Make a run's folder ready; return whether there is a resume point to go on from.

    stages: steps after which the checkpoints of that name are written; first: step of the first resume point.
    ValueError if a file of a run would be replaced and nobody said `overwrite`, or this is no folder.
    """
    if resume and overwrite:
        raise ValueError("resume=True goes on with a run and overwrite=True replaces it; give one of them")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write into {folder} ({error}); give a folder of yours") from error
    if resume and (folder / "resume.pt").is_file():
        return True
    # A run that was stopped before its first resume point may have left the checkpoints of its first stages.
    own = [f"{stage}.safetensors" for stage, step in stages.items() if not (resume and step < first)]
    found = [name for name in ("resume.pt", "history.json", *own) if (folder / name).exists()]
    if found and not overwrite:
        go_on = "put its resume.pt back" if resume else "go on with it by resume=True (--resume)"
        raise ValueError(
            f"{folder} already holds a run ({', '.join(found)}): {go_on}, give another folder, or replace it "
            "by overwrite=True (--overwrite)"
        )
    for name in found:
        (folder / name).unlink(missing_ok=True)
    return False


def write_resume_point(
    folder: Path, run: Mapping, parts: Mapping[str, Any], *, step: int, history: Mapping
) -> None:
    """Write `resume.pt` and `history.json`, each whole or not at all (null where a step had no such loss)."""
    states = {name: part.state_dict() for name, part in parts.items()}
    content = io.BytesIO()
    torch.save({**run, "step": step, "history": dict(history), **states}, content)
    write_atomically(folder / "resume.pt", content.getvalue())
    losses = {name: [None if math.isnan(x) else x for x in loss] for name, loss in history["losses"].items()}
    write_atomically(folder / "history.json", json.dumps({**history, "losses": losses}).encode())


def read_resume_point(path: Path, run: Mapping[str, dict], parts: Mapping[str, Any]) -> tuple[int, dict]:
    """Put networks and optimisers back to where a run was saved; return its step and history.

    run: config, model and experiment as JSON. Nothing in the file is executed. ValueError if it is damaged or
    of another run.
    """
    cure = "delete it to start anew, or put a good copy in its place"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is damaged or no resume point ({type(error).__name__}); {cure}") from error
    if not isinstance(saved, dict) or not {"config", "step", "history", "generator"} <= saved.keys():
        raise ValueError(f"{path} is no resume point of galnb; {cure}")
    changed = {}
    for group, now in run.items():
        before = json.loads(json.dumps(saved.get(group, {})))  # tuples become lists, as in `run`
        for name in now.keys() & before.keys():
            if before[name] != now[name] and not (group == "config" and name in _FREE):
                changed[f"{group}.{name}"] = before[name]
    if changed:
        raise ValueError(
            f"{path} belongs to another run: {sorted(changed)} differ; use another folder, "
            f"or resume with {changed}"
        )
    try:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} does not fit these networks; use another folder ({error})") from error
    return saved["step"], saved["history"]
