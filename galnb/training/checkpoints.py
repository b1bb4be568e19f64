"""Checkpoints: weights, the whole config and where they came from, in one safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from galnb.files import write_atomically
from galnb.gans import Gan, from_json

FORMAT = "galnb-1"
SCALE = ":scale"  # after the name of a tensor in 8 bits: what each of its rows is multiplied by
# module, config class and builder of each GAN; imported when asked for
GANS = {
    "deblender": ("galnb.gans.deblender", "DeblenderConfig", "deblender"),
    "lightweight": ("galnb.gans.lightweight", "LightweightConfig", "lightweight"),
    "radio": ("galnb.gans.radio", "RadioConfig", "radio"),
    "vanilla": ("galnb.gans.vanilla", "VanillaConfig", "vanilla"),
}
WEIGHTS = Path(__file__).parents[1] / "weights"
PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8)
HEADER = {"gan": str, "config": dict, "experiment": dict, "step": (int, float), "metrics": dict}


@dataclass(frozen=True)
class Checkpoint:
    """Hold a model rebuilt from a file, and the file's account of it.

    Parameters
    ----------
    gan : Gan
        Both networks in eval mode.
    experiment : dict
        What made it: data, training config, seeds.
    step : int
        Generator steps taken.
    metrics : dict
        Figures measured when it was saved.

    Notes
    -----
    Chapter: The deblender GAN
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
    """Write both networks with their config to one file.

    Parameters
    ----------
    path : str or Path
        Target, ending in ``.safetensors``.
    gan : Gan
        What to save.
    experiment : mapping
        How it was made; must be JSON.
    step : int
        Generator steps taken.
    metrics : mapping, optional
        Figures measured with these weights; must be JSON.
    dtype : torch.dtype
        Precision of the stored weights, one of `PRECISIONS`. Batch statistics and counters keep theirs.
        ``torch.int8`` stores the generator's kernels and matrices in 8 bits with one scale per row, the rest
        in float16.

    Returns
    -------
    Path
        The file written. It appears whole or not at all.

    Raises
    ------
    ValueError
        If the name ends otherwise, `dtype` is none of these, or it cannot hold a weight.

    Notes
    -----
    Chapter: The deblender GAN
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path is {path}; expected a name that ends in .safetensors")
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype is {dtype!r}; expected one of {PRECISIONS}")
    tensors = {}
    for part, module in (("generator", gan.generator), ("discriminator", gan.discriminator)):
        for name, tensor in module.state_dict().items():
            precision = dtype
            if dtype == torch.int8 and (part == "discriminator" or tensor.ndim < 2):
                precision = torch.float16
            if not tensor.is_floating_point() or "running_" in name:
                precision = tensor.dtype
            tensors |= _stored(f"{part}.{name}", tensor.detach().cpu(), precision)
    header = {
        "gan": gan.name,
        "config": asdict(gan.config),
        "experiment": dict(experiment),
        "step": step,
        "metrics": dict(metrics or {}),
        "torch": torch.__version__,
    }
    write_atomically(path, save(tensors, metadata={"format": FORMAT, "galnb": json.dumps(header)}))
    return path


def _stored(name: str, tensor: torch.Tensor, precision: torch.dtype) -> dict[str, torch.Tensor]:
    """Return what a file holds of one tensor."""
    if precision != torch.int8:
        stored = {name: tensor.to(precision).contiguous()}
        lost = tensor.isfinite() & ~stored[name].isfinite()
    else:
        scale = tensor.flatten(1).abs().amax(1).clamp_min(1e-12).float() / 127
        rows = scale.view(-1, *[1] * (tensor.ndim - 1))
        stored = {name: (tensor / rows).round().to(torch.int8).contiguous(), name + SCALE: scale}
        lost = ~scale.isfinite()  # one infinite weight would take its row with it
    if lost.any():
        raise ValueError(f"{name} holds values that {precision} cannot store; save with dtype=torch.float32")
    return stored


def load_checkpoint(path: str | Path, *, device: str | torch.device = "cpu") -> Checkpoint:
    """Rebuild a GAN from a file alone.

    Parameters
    ----------
    path : str or Path
        A file that `save_checkpoint` wrote, or the name of shipped weights.
    device : str or torch.device
        Where the networks go.

    Returns
    -------
    Checkpoint
        Networks in float32, in eval mode.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, foreign or of a GAN that this version does not know.

    Notes
    -----
    Nothing in the file is executed: safetensors holds numbers and text only. Chapter: The deblender GAN
    """
    path = Path(path)
    if not path.is_file():
        if path.suffix == "" and path.name == str(path):
            path = shipped(str(path))
        else:
            raise FileNotFoundError(
                f"no checkpoint at {path}; expected a .safetensors file of save_checkpoint"
            )
    header, tensors = _read(path)
    module, config_class, build = GANS[header["gan"]]
    module = import_module(module)
    try:
        config = from_json(getattr(module, config_class), header["config"])
    except ValueError as error:
        raise ValueError(f"{path} has a config of another galnb version ({error}); update galnb") from error
    gan = getattr(module, build)(config)
    for part, network in (("generator", gan.generator), ("discriminator", gan.discriminator)):
        own = {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"{path}: the weights of the {part} do not fit its config: {error}") from error
        network.to(device).eval()
    return Checkpoint(gan, header["experiment"], header["step"], header["metrics"])


def _read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); get it again") from error
    if metadata.get("format") != FORMAT or "galnb" not in metadata:
        found = metadata.get("format")
        raise ValueError(
            f"{path} was not written by this galnb: its format is {found!r}, expected {FORMAT!r}"
        )
    try:
        header = json.loads(metadata["galnb"])
        fits = all(isinstance(header[name], kind) for name, kind in HEADER.items())
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise ValueError(f"{path} has a damaged header; expected JSON with {list(HEADER)}; get it again")
    if header["gan"] not in GANS:
        raise ValueError(f"{path} holds a {header['gan']!r}; this version knows {sorted(GANS)}")
    scaled = {name.removesuffix(SCALE) for name in tensors if name.endswith(SCALE)}
    for name in scaled | {name for name, tensor in tensors.items() if tensor.dtype == torch.int8}:
        whole, scale = tensors.get(name), tensors.pop(name + SCALE, None)
        if whole is None or scale is None or scale.shape != whole.shape[:1]:
            raise ValueError(f"{path} is damaged: {name!r} needs its 8 bits and one scale per row")
        tensors[name] = whole * scale.view(-1, *[1] * (whole.ndim - 1))
    return header, tensors


def shipped(name: str) -> Path:
    """Find weights that come with the package.

    Parameters
    ----------
    name : str
        For example ``"deblender-bounded"``; earlier stages are ``"deblender-bounded@early"`` and
        ``"@middle"``.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If there are no such weights; the message lists those that exist.

    Notes
    -----
    Chapter: The deblender GAN
    """
    known = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
    if name not in known:
        raise ValueError(f"no shipped weights are named {name!r}; known are {known or 'none yet'}")
    return WEIGHTS / f"{name}.safetensors"
