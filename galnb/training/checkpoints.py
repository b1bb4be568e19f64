"""Checkpoints (weights, config and story in one file) and resume points of stopped runs. Chapter 04."""

import io
import json
import math
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from galnb.checks import check_kind, one_of
from galnb.files import write_atomically
from galnb.gans import Gan, deblender, from_json, lightweight, radio, vanilla
from galnb.training.steps import History, State, networks

GANS: dict[str, tuple[type, Callable[..., Gan]]] = {
    "deblender": (deblender.DeblenderConfig, deblender.deblender),
    "lightweight": (lightweight.LightweightConfig, lightweight.lightweight),
    "radio": (radio.RadioConfig, radio.radio),
    "vanilla": (vanilla.VanillaConfig, vanilla.vanilla),
}
WEIGHTS = Path(__file__).parents[1] / "weights"
_WRAPPER = r"(^\w+\.)(?:module\.|_orig_mod\.)+|_orig_mod\."  # in names of DataParallel and torch.compile
_SCALE = ":scale"  # after the name of a tensor in 8 bits: what each of its rows is multiplied by
_FORMAT = "galnb-1"
_PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8)
# fields of the training config that may change without making it another run
_FREE = {"steps", "save_every", "device", "stages", "compile"}


@dataclass(frozen=True)
class Checkpoint:
    """Hold a GAN rebuilt from a file, both networks in eval mode, and the file's account of it."""

    gan: Gan
    experiment: dict  # what made it: data, training config, seeds
    step: int  # generator steps taken
    metrics: dict  # measured with these weights, its judge's under "judge"; empty where nobody measured


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

    path: ends in .safetensors. experiment, metrics: how it was made, what it achieves, as JSON.
    dtype: precision of the stored weights, a float type; or torch.int8: the generator's kernels and matrices
        in 8 bits with one scale a row, the rest in float16. Batch statistics and counters keep theirs.
    Compiled and DataParallel networks are saved as what they wrap. ValueError if the path is none, dtype
    cannot hold a weight, or a network is not the one of the config: such a file could not be loaded.
    """
    check_kind(Gan, "of a checkpoint give .gan", gan=gan)
    path = Path(path)
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(f"path is {path}; expected a file name that ends in .safetensors, not a folder")
    one_of("dtype", dtype, _PRECISIONS)
    state = networks(gan).state_dict().items()
    whole = {re.sub(_WRAPPER, r"\1", name): tensor.detach().cpu() for name, tensor in state}
    if gan.name in GANS:
        _check_fit(GANS[gan.name][1](gan.config), whole)
    tensors = {}
    for name, tensor in whole.items():
        tensors |= _stored(name, tensor, dtype)
    header = {"gan": gan.name, "config": asdict(gan.config), "experiment": dict(experiment), "step": step}
    header |= {"metrics": dict(metrics or {}), "torch": torch.__version__}
    write_atomically(path, save(tensors, metadata={"format": _FORMAT, "galnb": json.dumps(header)}))
    return path


def _check_fit(gan: Gan, tensors: Mapping[str, torch.Tensor]) -> None:
    if other := differences(networks(gan).state_dict(), tensors):
        told = f"the networks are not those that their config builds: {', '.join(other[:3])} differ"
        raise ValueError(f"{told}; save them without a wrapper, together with their own config")


def differences(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> list[str]:
    """Name the tensors that only one has, or that have another shape or kind of number."""
    kinds = [{(name, t.shape, t.is_floating_point()) for name, t in state.items()} for state in (one, other)]
    return sorted({name for name, *_ in kinds[0] ^ kinds[1]})


def _stored(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return what a file holds of one tensor."""
    if not tensor.is_floating_point() or "running_" in name:
        return {name: tensor.contiguous()}
    if dtype == torch.int8 and name.startswith("generator.") and tensor.ndim > 1:
        scale = tensor.flatten(1).abs().amax(1).clamp_min(1e-12).float() / 127
        rows = scale.view(-1, *[1] * (tensor.ndim - 1))
        stored = {name: (tensor / rows).round().to(torch.int8).contiguous(), name + _SCALE: scale}
        lost = ~scale.isfinite()  # one infinite weight would take its row with it
    else:
        dtype = torch.float16 if dtype == torch.int8 else dtype
        stored = {name: tensor.to(dtype).contiguous()}
        lost = tensor.isfinite() & ~stored[name].isfinite()
    if lost.any():
        raise ValueError(f"{name} holds values that {dtype} cannot store; save with dtype=torch.float32")
    return stored


def load_checkpoint(path: str | Path, *, device: str | torch.device = "cpu") -> Checkpoint:
    """Rebuild a GAN from a file alone: networks in float32, in eval mode, on the device.

    path: a file that `save_checkpoint` wrote, or the name of shipped weights. Nothing in it is executed.
    FileNotFoundError if there is none; ValueError if it is damaged, foreign or of a GAN unknown here.
    """
    path = Path(path)
    if not path.is_file():
        if path.suffix or path.name != str(path):
            raise FileNotFoundError(f"no file at {path}; expected one that save_checkpoint wrote")
        path = shipped(str(path))
    try:
        return _rebuilt(path, device)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        told = f"{path} is damaged, or of another program or version ({type(error).__name__}: {error})"
        raise ValueError(f"{told}; get it again, or update galnb") from error


def _rebuilt(path: Path, device: str | torch.device) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    one_of("format", metadata.get("format"), [_FORMAT])
    header = json.loads(metadata["galnb"])
    one_of("gan", header["gan"], GANS)
    config, build = GANS[header["gan"]]
    gan = build(from_json(config, header["config"]))
    for name in [name for name, tensor in tensors.items() if tensor.dtype == torch.int8]:
        whole, scale = tensors[name], tensors.pop(name + _SCALE)
        if scale.shape != whole.shape[:1]:
            raise ValueError(f"{name} needs one scale per row")
        tensors[name] = whole * scale.view(-1, *[1] * (whole.ndim - 1))
    _check_fit(gan, tensors)
    networks(gan).to(device).eval().load_state_dict(tensors)
    return Checkpoint(gan, header["experiment"], header["step"], header["metrics"])


def shipped_names(prefix: str = "") -> list[str]:
    """Return the sorted names of the weights that come with the package and begin so."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors") if path.stem.startswith(prefix))


def shipped(name: str) -> Path:
    """Find weights that come with the package, such as "deblender-bounded@early"; ValueError lists them."""
    one_of("name of shipped weights", name, shipped_names())
    return WEIGHTS / f"{name}.safetensors"


def claim_folder(folder: str | Path | None, stages: Iterable, resume: bool, overwrite: bool) -> bool:
    """Make a folder ready for a run with stages (name, share); return whether there is one to go on with.

    ValueError if this is no folder, or a file of a run would be replaced and nobody said `overwrite`.
    """
    if (resume and overwrite) or (folder is None and (resume or overwrite)):
        told = "resume=True goes on with the run in a folder, overwrite=True replaces it"
        raise ValueError(f"{told}; give one of them and the folder, got folder={folder}")
    if folder is None:
        return False
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write into {folder} ({error}); give a folder of yours") from error
    if resume and (folder / "resume.pt").is_file():
        return True
    names = ["resume.pt", "history.json", *(f"{stage}.safetensors" for stage, _ in stages)]
    found = [name for name in names if (folder / name).exists()]
    if found and not overwrite:
        cure = "resume=True (--resume), give another folder, or replace it by overwrite=True (--overwrite)"
        raise ValueError(f"{folder} already holds a run ({', '.join(found)}): go on from resume.pt by {cure}")
    for name in found:
        (folder / name).unlink(missing_ok=True)
    return False


def write_resume_point(folder: Path, story: Mapping, state: State) -> None:
    """Write `resume.pt` and `history.json`, each whole or not at all (null where a step had no such loss)."""
    states = {name: part.state_dict() for name, part in state.parts().items()}
    content, history = io.BytesIO(), vars(state.history)
    torch.save({**story, "step": state.step, "history": history, **states}, content)
    write_atomically(folder / "resume.pt", content.getvalue())
    losses = {name: [None if math.isnan(x) else x for x in loss] for name, loss in history["losses"].items()}
    write_atomically(folder / "history.json", json.dumps({**history, "losses": losses}).encode())


def read_resume_point(path: Path, story: Mapping[str, dict], state: State) -> None:
    """Put networks, optimisers, step and history back to where a run was saved; nothing in it is executed.

    story: config, model and experiment as JSON. ValueError if the file is damaged or of another run.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        changed = {
            f"{group}.{name}": before
            for group, now in story.items()
            for name, before in saved[group].items()
            if name not in _FREE and now.get(name, before) != before
        }
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is damaged or no resume point; delete it to start anew") from error
    if changed:
        told = f"{path} belongs to another run: {sorted(changed)} differ"
        raise ValueError(f"{told}; use another folder, or resume with {changed}")
    for name, part in state.parts().items():
        part.load_state_dict(saved[name])
    state.step = saved["step"]
    state.history = History(**saved["history"])
