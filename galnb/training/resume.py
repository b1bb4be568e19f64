"""What a run has reached: its history, and the point from which a stopped run goes on."""

import io
import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from galnb.files import write_atomically
from galnb.gans import Gan

# fields of the training config that may change without making it another run
FREE = {"steps", "save_every", "device", "stages", "compile"}


@dataclass
class History:
    """Collect what a run reported: one entry per step and named loss.

    Parameters
    ----------
    steps : list of int
        Step numbers, counted from 0.
    losses : dict of str to list of float
        Values by name, for example ``"generator/total"``; NaN where a step had no such loss.

    Notes
    -----
    Chapter: The deblender GAN
    """

    steps: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)

    def add(self, step: int, losses: Mapping[str, float]) -> None:
        """Append one step."""
        for name in losses:
            self.losses.setdefault(name, [math.nan] * len(self.steps))
        for name, values in self.losses.items():
            values.append(float(losses.get(name, math.nan)))
        self.steps.append(step)


@dataclass
class State:
    """Hold all that changes during a run.

    Parameters
    ----------
    gan : Gan
        The networks in training.
    average : torch.nn.Module or None
        Running mean of the generator's weights.
    generator_optimizer, discriminator_optimizer : torch.optim.Optimizer
        With their memories.
    history : History
        Losses so far.
    step : int
        Generator steps taken.

    Notes
    -----
    Chapter: The deblender GAN
    """

    gan: Gan
    average: nn.Module | None
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    history: History = field(default_factory=History)
    step: int = 0

    def kept(self) -> Gan:
        """Return the GAN as it is saved and shown: with the mean generator where there is one."""
        return self.gan if self.average is None else replace(self.gan, generator=self.average)

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """Return what has a state dict, by name."""
        parts = {
            "generator": self.gan.generator,
            "discriminator": self.gan.discriminator,
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }
        return parts if self.average is None else {**parts, "average": self.average}


def describe(gan: Gan, training: Mapping, experiment: Mapping | None) -> dict[str, dict]:
    """Say in JSON terms which run this is, so that a resume point of another run is recognised.

    Raises
    ------
    TypeError
        If the experiment is not JSON.

    Chapter: The deblender GAN
    """
    model = {"gan": gan.name, **asdict(gan.config)}
    return json.loads(json.dumps({"config": training, "model": model, "experiment": experiment or {}}))


def write_resume_point(folder: Path, state: State, run: Mapping[str, dict]) -> None:
    """Write ``resume.pt``, whole or not at all, and ``history.json`` (null where a step had no such loss).

    Chapter: The deblender GAN
    """
    history = {"steps": state.history.steps, "losses": state.history.losses}
    states = {name: part.state_dict() for name, part in state.parts().items()}
    content = io.BytesIO()
    torch.save({**run, "step": state.step, "history": history, **states}, content)
    write_atomically(folder / "resume.pt", content.getvalue())
    losses = {
        name: [None if math.isnan(value) else value for value in values]
        for name, values in state.history.losses.items()
    }
    write_atomically(folder / "history.json", json.dumps({**history, "losses": losses}).encode())


def read_resume_point(path: Path, state: State, run: Mapping[str, dict]) -> None:
    """Put a run back to where it was saved.

    Parameters
    ----------
    path : Path
        A ``resume.pt``. Nothing in it is executed: it is read as numbers and text only.
    state : State
        Receives weights, optimisers, history and step.
    run : mapping
        From `describe`; must agree with the file but for `FREE`.

    Raises
    ------
    ValueError
        If the file is damaged, no resume point, or of another run.

    Notes
    -----
    Chapter: The deblender GAN
    """
    cure = "delete it to start anew, or put a good copy in its place"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is damaged or no resume point ({type(error).__name__}); {cure}") from error
    if not isinstance(saved, dict) or not {"config", "step", "history", "generator"} <= saved.keys():
        raise ValueError(f"{path} is no resume point of galnb; {cure}")
    _check_same_run(path, saved, run)
    try:
        for name, part in state.parts().items():
            part.load_state_dict(saved[name])
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} does not fit these networks; use another folder ({error})") from error
    state.step, state.history = saved["step"], History(**saved["history"])


def _check_same_run(path: Path, saved: Mapping, run: Mapping[str, dict]) -> None:
    changed = {}
    for part, now in run.items():
        before = json.loads(json.dumps(saved.get(part, {})))  # tuples become lists, as in `run`
        for name in now:
            free = part == "config" and name in FREE
            if name in before and before[name] != now[name] and not free:
                changed[f"{part}.{name}"] = before[name]
    if changed:
        raise ValueError(
            f"{path} belongs to another run: {sorted(changed)} differ; use another folder, "
            f"or resume with {changed}"
        )
