"""Settings, results and records of a notebook: what its first cells need.

Page "How to run".
"""

import dataclasses
import importlib.metadata
import json
import math
import platform
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from galnb.checks import at_least, one_of
from galnb.files import RESERVED, write_atomically
from galnb.training import experiments

RECORDS = Path(__file__).parent / "records"
_PACKAGES = ("galnb", "torch", "torchvision", "numpy", "scikit-image", "matplotlib")


def record(name: str) -> dict[str, Any]:
    """Read the record of a study: what a long run gave, with its command, date and versions.

    name: of the chapter's notebook without its ending, such as "05_evaluation"; ValueError lists those known.
    Where the record holds arrays, they come under "arrays": NumPy arrays by name.
    """
    one_of("record", name, sorted(path.stem for path in RECORDS.glob("*.json")))
    kept = _read(RECORDS / f"{name}.json")
    if (place := RECORDS / f"{name}.npz").exists():
        with np.load(place) as arrays:
            kept["arrays"] = dict(arrays)
    return kept


def verdict(
    reproduced: bool, partly: bool = False, *, needs: Mapping[str, bool] = MappingProxyType({})
) -> str:
    """Return "reproduced", "partly", "not reproduced", or "open: needs ..." with every need that is not met.

    needs: what must hold before the question can be decided at all, by the name that a reader shall see.
    A number is a ValueError: NaN above a limit is False, and would pass for "not reproduced".
    """
    for name, found in {"reproduced": reproduced, "partly": partly, **needs}.items():
        if str(getattr(found, "dtype", type(found).__name__)).removeprefix("torch.") != "bool":
            raise ValueError(f"{name} is {found!r}; expected True or False: compare it with its limit first")
    missing = [name for name, met in needs.items() if not met]
    if missing:
        return f"open: needs {', '.join(missing)}"
    return "reproduced" if reproduced else "partly" if partly else "not reproduced"


@dataclasses.dataclass(frozen=True)
class Run:
    """Hold the settings of one run of a notebook and write its `results.json`."""

    name: str
    preset: str
    seed: int
    device: torch.device
    folder: Path  # all that the notebook writes goes here
    experiment: Any  # of the preset, with `.minutes` and `.memory_gib`
    generator: torch.Generator  # on the CPU, already seeded
    started: float  # reading of `time.perf_counter`, s

    def summary(self) -> str:
        """Say in one paragraph what will run, where, how long it takes (minutes) and its memory (GiB)."""
        minutes, memory = self.experiment.minutes, self.experiment.memory_gib
        below = self.folder.is_relative_to(Path.cwd())  # a page for others shows no path of this machine
        folder = self.folder.relative_to(Path.cwd()) if below else Path("…", *self.folder.parts[-2:])
        length = "less than a minute" if minutes < 1 else f"about {minutes:g} minute{'s' * (minutes != 1)}"
        return (
            f"Preset {self.preset!r}, seed {self.seed}: {length} and up to {memory:g} GiB of memory.\n"
            f"{_device_sentence(self.preset, self.device)}\nResults go to {folder}"
        )

    def record(self, **values: Any) -> None:
        """Merge values into `results.json`, all of them or none; a name that is there already is replaced.

        values: finite numbers, text, booleans, None, tensors, arrays, paths, or lists and dicts of these;
            anything else, and the names in RESERVED, are a ValueError.
        """
        if taken := sorted(values.keys() & set(RESERVED)):
            raise ValueError(f"results.json keeps {taken} for itself; record the value under another name")
        self._merge({key: _plain(value, key) for key, value in values.items()})

    def check(
        self,
        name: str,
        answer: Any,
        expected: Any,
        *,
        tolerance: float = 0.0,
        hint: str,
        solution: bool = False,
    ) -> str:
        """Compare the answer of an exercise with the expected one, remember the outcome and say it.

        name: of the exercise, once in a chapter.
        answer, expected: numbers, text, tensors, arrays or sequences; `answer=None`: nobody has answered yet.
        tolerance: largest absolute difference that still counts as right, >= 0. hint: said if it is wrong.
        solution: the answer is the book's, not the reader's, and is remembered apart.
        """
        at_least(0.0, tolerance=tolerance)
        right = None if answer is None else _agree(answer, expected, tolerance)
        place = "solutions" if solution else "exercises"
        known = _read(self.folder / "results.json").get(place, {})
        self._merge({place: {**known, name: right}})
        if answer is None:
            return "No answer yet."
        return ("The solution is right." if solution else "Right.") if right else f"Not yet: {hint}"

    def finish(self) -> str:
        """Record time and peak memory once more, and say them (s, GiB)."""
        self._merge({})
        seconds, memory = time.perf_counter() - self.started, _peak_memory_gib()
        return f"Took {seconds:.0f} s" + (f" and at most {memory:.1f} GiB of memory." if memory else ".")

    def _merge(self, values: dict[str, Any]) -> None:
        path = self.folder / "results.json"
        run = {"name": self.name, "preset": self.preset, "seed": self.seed, "device": str(self.device)}
        run |= {"seconds": round(time.perf_counter() - self.started, 3), "versions": _versions()}
        run |= {"peak_memory_gib": _peak_memory_gib()}
        _write(path, {**_read(path), **values, "run": run})


def start(name: str, *, preset: str = "quick", seed: int = 0, device: str = "auto", out_dir: str = "") -> Run:
    """Start a run of a notebook: resolve its settings and begin an empty `results.json`.

    name: of the notebook without its ending, such as "02_blending".
    seed: of the run's generator, >= 0.
    device: "auto" (CUDA if there is one, else CPU) or a name that PyTorch knows, such as "cuda:1".
    out_dir: folder to write into, default `galnb_output` where the notebook runs; each notebook takes a
        sub-folder of its own name in it, so that two of them never collide.
    An unknown setting, or a folder that cannot be written, is a ValueError.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"name is {name!r}; expected the notebook's name without folder and ending")
    at_least(0, seed=seed)
    experiment, chosen = experiments.experiment(name, preset), _device(device)
    folder = (Path(out_dir or "galnb_output").expanduser() / name).resolve()
    generator = torch.Generator().manual_seed(seed)
    run = Run(name, preset, int(seed), chosen, folder, experiment, generator, time.perf_counter())
    try:
        _write(folder / "results.json", {})  # numbers of an earlier run must not survive
        run.record()
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error}); set out_dir to a folder of yours") from error
    return run


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"PyTorch cannot use the device {device!r} here; take 'auto' or 'cpu'") from error


def _device_sentence(preset: str, device: torch.device) -> str:
    if device.type != "cpu":
        return f"Networks run on {device}; numbers may differ from a CPU's in the last digits."
    text = f"Networks run on the CPU ({torch.get_num_threads()} threads)"
    if preset == "gpu":
        return text + ": the preset was sized for a GPU and will take many times longer than stated."
    return text + ": everything works, only the trainings are smaller than with preset 'gpu' on a GPU."


def _agree(answer: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(expected, str):
        return isinstance(answer, str) and answer.strip().casefold() == expected.strip().casefold()
    wanted = torch.as_tensor(expected).detach().to("cpu", torch.float64)
    try:
        given = torch.as_tensor(answer).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):  # text, or a ragged list
        return False
    return given.shape == wanted.shape and bool(((given - wanted).abs() <= tolerance).all())


def _plain(value: Any, key: str) -> Any:
    """Turn a value into what JSON can hold; NaN has no place in it."""
    if isinstance(value, dict):
        return {str(name): _plain(item, f"{key}.{name}") for name, item in value.items()}
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item, key) for item in value]
    if isinstance(value, Path | torch.device | torch.dtype):
        return str(value)
    if isinstance(value, int | str | None) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{key} is {value!r}; expected finite numbers, text, or lists and dicts of these")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(values, indent=2, allow_nan=False).encode())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _peak_memory_gib() -> float | None:
    """Return the largest resident memory of this process so far; None where the system is not Linux."""
    with suppress(OSError, TypeError):  # `resource` would give the parent's, if that is larger
        return round(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20, 3)
