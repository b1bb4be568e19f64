"""The one training loop of the book: any `Gan`, any device, stopped and continued at will."""

import copy
import io
import json
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn
from tqdm.auto import tqdm

from galnb.checkpoints import save_checkpoint, write_atomically
from galnb.gan import Batch, Gan, Losses

SCHEDULES = {
    "constant": lambda progress: 1.0,
    "drop": lambda progress: 1.0 if progress < 0.5 else 0.1,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "late_decay": lambda progress: min(1.0, max(0.0, (1 - progress) / 0.25)),
}


@dataclass(frozen=True)
class TrainingConfig:
    """Say how a GAN is trained.

    Parameters
    ----------
    steps : int
        Generator steps in all, burn-in included.
    burn_in : int
        First steps, in which the generator alone learns from `Gan.burn_in_loss`.
    learning_rate, discriminator_learning_rate : float
        Adam's step size of the two networks.
    betas : tuple of float
        Adam's memory of the mean and of the square of the gradient.
    weight_decay : float
        Decoupled weight decay of the generator.
    schedule : str
        Key of `SCHEDULES`: how the step size falls. The paper's is ``"drop"``, to a tenth at half-time.
    warmup : int
        Steps in which the step size climbs from zero.
    discriminator_steps, discriminator_every : int
        Discriminator steps per turn, and a turn every so many generator steps.
    ema : float
        Memory of the running mean of the generator's weights, 0 for none. The mean is what is kept and shown.
    gradient_clip : float
        Longest gradient that is let through, 0 for no limit.
    precision : str
        Lightning Fabric's name: ``"32-true"`` or ``"bf16-mixed"``.
    device : str
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    channels_last, compile : bool
        Faster memory layout; graph compilation (needs a C++ compiler).
    loss_limit : float
        A loss beyond it counts as exploded.
    save_every : int
        Steps between two resume points.
    stages : tuple of (str, float)
        Checkpoints to keep, each a name and the share of the run after which it is taken.
    seed : int
        Seed of what the losses draw. Data have their own.

    Notes
    -----
    Chapter: The deblender GAN
    """

    steps: int = 1000
    burn_in: int = 0
    learning_rate: float = 1e-4
    discriminator_learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: str = "drop"
    warmup: int = 0
    discriminator_steps: int = 1
    discriminator_every: int = 1
    ema: float = 0.0
    gradient_clip: float = 0.0
    precision: str = "32-true"
    device: str = "auto"
    channels_last: bool = False
    compile: bool = False
    loss_limit: float = 1e6
    save_every: int = 200
    stages: tuple[tuple[str, float], ...] = (("early", 0.01), ("middle", 0.3), ("final", 1.0))
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "discriminator_steps", "discriminator_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("burn_in", "warmup", "ema", "gradient_clip", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("learning_rate", "discriminator_learning_rate", "loss_limit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r} is unknown; known are {sorted(SCHEDULES)}")


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
        for name in losses.keys() - self.losses.keys():
            self.losses[name] = [math.nan] * len(self.steps)
        for name, values in self.losses.items():
            values.append(float(losses.get(name, math.nan)))
        self.steps.append(step)


@dataclass
class _State:
    """What a resume point must hold, beside the config."""

    gan: Gan
    average: nn.Module | None
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    history: History
    step: int = 0

    def parts(self) -> dict[str, object]:
        parts = {
            "generator": self.gan.generator,
            "discriminator": self.gan.discriminator,
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }
        return parts if self.average is None else {**parts, "average": self.average}


def train(
    gan: Gan,
    batches: Callable[[int], Batch],
    config: TrainingConfig,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    callback: Callable[[int, dict[str, float], Gan], None] | None = None,
    experiment: Mapping | None = None,
    progress: bool = False,
) -> History:
    """Train a GAN: burn-in, then discriminator and generator in turn.

    Parameters
    ----------
    gan : Gan
        Trained in place. With `TrainingConfig.ema` its generator ends as the running mean of its weights.
    batches : callable
        ``batches(index)`` returns batch `index` as a dict of tensors. It must depend on the index alone, so that a run
        that is continued sees the batches it would have seen.
    config : TrainingConfig
        How to train.
    folder : str or Path, optional
        Where checkpoints, the resume point and ``history.json`` go. Without it nothing is written.
    resume : bool
        Continue from the resume point in `folder`, or start anew where there is none.
    callback : callable, optional
        Called after every step with ``(step, losses, gan)``.
    experiment : mapping, optional
        Goes into the checkpoints beside the training config.
    progress : bool
        Show a progress bar with losses and remaining time.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If `resume` is asked for without a folder, or the resume point belongs to another run.
    FloatingPointError
        If a loss is not finite or exceeds its limit. The last good resume point and checkpoints stay.
    RuntimeError
        If memory runs out; the message says what to lower.

    Notes
    -----
    Under ``torchrun`` each process takes its share of every batch and gradients are averaged, so a run on several
    devices follows the run on one (batch norm apart, whose statistics are per device). Chapter: The deblender GAN
    """
    if resume and folder is None:
        raise ValueError("resume=True needs the folder of the run to continue; got folder=None")
    folder = None if folder is None else Path(folder)
    fabric = _fabric(config)
    state = _start(gan, config, fabric)
    if resume and (folder / "resume.pt").is_file():
        _read_state(folder / "resume.pt", state, config)
    fast = _accelerated(gan, config)
    first, per_step = state.step, config.discriminator_steps
    with ThreadPoolExecutor(1) as ahead:
        feed = _Feed(batches, fabric, config, ahead, first * per_step)
        steps = tqdm(range(first, config.steps), initial=first, total=config.steps, disable=not progress, unit="step")
        for step in steps:
            try:
                losses = _step(fast, state, feed, config, fabric, step)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                raise _memory_advice(error) from error
            _check_finite(losses, step, config)
            state.history.add(step, losses)
            state.step = step + 1
            if progress and step % 10 == 0:
                steps.set_postfix({name: f"{value:.3g}" for name, value in losses.items() if "total" in name})
            if folder is not None and fabric.is_global_zero:
                _save(folder, state, config, experiment)
            if callback is not None:
                callback(step, losses, gan)
    if state.average is not None:
        gan.generator.load_state_dict(state.average.state_dict())
    gan.generator.eval()
    gan.discriminator.eval()
    return state.history


def _fabric(config: TrainingConfig) -> Fabric:
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    fabric = Fabric(
        accelerator="auto" if config.device == "auto" else config.device,
        devices=processes,
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")) if processes > 1 else 1,
        strategy="ddp" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "auto",
        precision=config.precision,
    )
    fabric.launch()
    return fabric


def _start(gan: Gan, config: TrainingConfig, fabric: Fabric) -> _State:
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    for network in (gan.generator, gan.discriminator):
        network.to(fabric.device, memory_format=layout).train()
    average = copy.deepcopy(gan.generator).requires_grad_(False) if config.ema else None
    optimizers = [
        torch.optim.AdamW(network.parameters(), lr=rate, betas=config.betas, weight_decay=decay)
        for network, rate, decay in (
            (gan.generator, config.learning_rate, config.weight_decay),
            (gan.discriminator, config.discriminator_learning_rate, 0.0),
        )
    ]
    return _State(gan, average, *optimizers, History())


def _accelerated(gan: Gan, config: TrainingConfig) -> Gan:
    """The same weights behind compiled forward passes and, on request, channels-last inputs."""

    def prepare(images: torch.Tensor) -> torch.Tensor:
        images = gan.prepare(images)
        last = config.channels_last and images.dim() == 4
        return images.contiguous(memory_format=torch.channels_last) if last else images

    if config.compile:
        gan = replace(
            gan, generator=torch.compile(gan.generator), discriminator=torch.compile(gan.discriminator)
        )
    return replace(gan, prepare=prepare)


class _Feed:
    """Hand out batches in order, the next one being made while the current one is used."""

    def __init__(self, batches, fabric: Fabric, config: TrainingConfig, ahead: Executor, index: int):
        self.batches, self.fabric, self.ahead, self.index = batches, fabric, ahead, index
        self.last = config.steps * config.discriminator_steps
        self.coming = ahead.submit(batches, index) if index < self.last else None

    def next(self) -> Batch:
        batch = self.coming.result()
        self.index += 1
        self.coming = self.ahead.submit(self.batches, self.index) if self.index < self.last else None
        rank, world = self.fabric.global_rank, self.fabric.world_size
        return {name: tensor[rank::world].to(self.fabric.device) for name, tensor in batch.items()}


def _step(gan: Gan, state: _State, feed: _Feed, config: TrainingConfig, fabric: Fabric, step: int) -> dict[str, float]:
    """One generator step and the discriminator steps before it."""
    pace = SCHEDULES[config.schedule](step / config.steps) * min(1.0, (step + 1) / max(1, config.warmup))
    state.generator_optimizer.param_groups[0]["lr"] = config.learning_rate * pace
    state.discriminator_optimizer.param_groups[0]["lr"] = config.discriminator_learning_rate * pace
    noise = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    losses = {}
    turn = step >= config.burn_in and (step - config.burn_in) % config.discriminator_every == 0
    for _ in range(config.discriminator_steps):
        batch = feed.next()
        if turn:
            with fabric.autocast():
                parts = gan.discriminator_loss(gan, batch, noise)
            _descend(parts["total"], state.discriminator_optimizer, state.gan.discriminator, config, fabric)
            losses |= {f"discriminator/{name}": value for name, value in parts.items()}
    burning = step < config.burn_in and gan.burn_in_loss is not None
    state.gan.discriminator.requires_grad_(False)
    with fabric.autocast():
        parts = (gan.burn_in_loss if burning else gan.generator_loss)(gan, batch, noise)
    _descend(parts["total"], state.generator_optimizer, state.gan.generator, config, fabric)
    state.gan.discriminator.requires_grad_(True)
    losses |= {f"{'burn_in' if burning else 'generator'}/{name}": value for name, value in parts.items()}
    if state.average is not None:
        _update_average(state.average, state.gan.generator, min(config.ema, (step + 1) / (step + 10)))
    return {name: fabric.all_reduce(value.detach().float()).item() for name, value in losses.items()}


def _descend(loss: torch.Tensor, optimizer, network: nn.Module, config: TrainingConfig, fabric: Fabric) -> None:
    optimizer.zero_grad()
    loss.backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    if fabric.world_size > 1:
        mean = fabric.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduce_op="mean")
        for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
    if config.gradient_clip:
        nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
    optimizer.step()


def _update_average(average: nn.Module, network: nn.Module, memory: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - memory)
        for mine, other in zip(average.buffers(), network.buffers(), strict=True):
            mine.copy_(other)


def _check_finite(losses: Losses, step: int, config: TrainingConfig) -> None:
    for name, value in losses.items():
        if not math.isfinite(value) or abs(value) > config.loss_limit:
            raise FloatingPointError(
                f"{name} is {value} at step {step}; training stopped, earlier checkpoints are kept. "
                f"Lower learning_rate (now {config.learning_rate}) or set gradient_clip"
            )


def _memory_advice(error: Exception) -> Exception:
    short = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    if not short:
        return error
    return RuntimeError(
        "memory ran out in a training step: lower batch_size first, then the width of the networks, "
        "or use the smaller preset"
    )


def _save(folder: Path, state: _State, config: TrainingConfig, experiment: Mapping | None) -> None:
    """Write what this step asks for: stage checkpoints, and the resume point with the history."""
    story = {**(experiment or {}), "training": asdict(config)}
    kept = state.gan if state.average is None else replace(state.gan, generator=state.average)
    for name, share in config.stages:
        if state.step == max(1, round(share * config.steps)):
            save_checkpoint(folder / f"{name}.safetensors", kept, experiment=story, step=state.step)
    if state.step % config.save_every == 0 or state.step == config.steps:
        content = io.BytesIO()
        states = {name: part.state_dict() for name, part in state.parts().items()}
        saved = {"config": asdict(config), "step": state.step, "history": asdict(state.history), **states}
        torch.save(saved, content)
        write_atomically(folder / "resume.pt", content.getvalue())
        write_atomically(folder / "history.json", json.dumps(asdict(state.history)).encode())


def _read_state(path: Path, state: _State, config: TrainingConfig) -> None:
    saved = torch.load(path, map_location="cpu", weights_only=True)
    free = {"steps", "save_every", "device", "stages", "compile"}  # may change without making it another run
    before, now = ({k: v for k, v in c.items() if k not in free} for c in (saved["config"], asdict(config)))
    changed = sorted(name for name in now if before.get(name) != now[name])
    if changed:
        raise ValueError(
            f"{path} belongs to another run: {changed} differ; use another folder, or resume with "
            f"{ {name: before.get(name) for name in changed} }"
        )
    for name, part in state.parts().items():
        part.load_state_dict(saved[name])
    state.step, history = saved["step"], saved["history"]
    state.history.steps, state.history.losses = history["steps"], history["losses"]
