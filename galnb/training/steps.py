"""One step of GAN training, the numbers that rule it, and what it changes. Chapter 04, The deblender GAN."""

import copy
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from galnb.checks import at_least, one_of
from galnb.gans import Batch, Gan

_SCHEDULES = {
    "constant": lambda progress: 1.0,
    "drop": lambda progress: 1.0 if progress < 0.5 else 0.1,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "late_decay": lambda progress: min(1.0, max(0.0, (1 - progress) / 0.25)),
}


@dataclass(frozen=True)
class TrainingConfig:
    """Say how a GAN is trained."""

    steps: int = 1000  # generator steps in all, burn-in included
    burn_in: int = 0  # first steps, in which the generator alone learns from `Gan.burn_in_loss`
    learning_rate: float = 1e-4  # Adam's step size of the generator
    discriminator_learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)  # Adam's memory of the gradient's mean and of its square
    weight_decay: float = 0.0  # decoupled, of the generator
    schedule: str = "drop"  # how the step size falls; the paper's "drop": to a tenth at half-time
    warmup: int = 0  # steps in which the step size climbs from zero
    discriminator_steps: int = 1  # per turn
    discriminator_every: int = 1  # a turn every so many generator steps
    ema: float = 0.0  # memory of the generator's running mean, which is then kept and shown; 0 for none
    gradient_clip: float = 0.0  # longest gradient that is let through, 0 for no limit
    precision: str = "32-true"  # or "bf16-mixed"
    device: str = "auto"  # or "cpu", "cuda"
    channels_last: bool = False  # faster memory layout
    compile: bool = False  # graph compilation, needs a C++ compiler
    loss_limit: float = 1e6  # a loss beyond it counts as exploded
    save_every: int = 200  # steps between two resume points
    # checkpoints to keep: name, share of the run after which it is taken
    stages: tuple[tuple[str, float], ...] = (("early", 0.01), ("middle", 0.3), ("final", 1.0))
    seed: int = 0  # of what the losses draw; data have their own

    def __post_init__(self):
        counts = ("steps", "save_every", "discriminator_steps", "discriminator_every")
        at_least(1, **{name: getattr(self, name) for name in counts})
        at_least(0, burn_in=self.burn_in, warmup=self.warmup)
        at_least(0.0, ema=self.ema, gradient_clip=self.gradient_clip, weight_decay=self.weight_decay)
        positive = ("learning_rate", "discriminator_learning_rate", "loss_limit")
        at_least(1e-12, **{name: getattr(self, name) for name in positive})
        one_of("schedule", self.schedule, _SCHEDULES)
        one_of("precision", self.precision, ("32-true", "bf16-mixed"))  # fp16 would need its losses scaled
        if not self.ema < 1:
            raise ValueError(f"ema is {self.ema}; expected less than 1, for example 0.999")
        fine = {name for name, share in self.stages if 0 < share <= 1 and Path(name).name == name}
        if len(fine) < len(self.stages):
            raise ValueError(f"stages {self.stages}: expected unlike file names, each with a share in (0, 1]")


@dataclass
class History:
    """Collect what a run reported: steps from 0 and, by name, a loss per step, NaN where it had none."""

    steps: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)

    def add(self, step: int, losses: Mapping[str, float]) -> None:
        """Append one step."""
        for name in losses:
            self.losses.setdefault(name, [math.nan] * len(self.steps))
        for name, values in self.losses.items():
            values.append(float(losses.get(name, math.nan)))
        self.steps.append(step)


def networks(gan: Gan) -> nn.ModuleDict:
    """Return both networks as one module, whose weights are named "generator.…" and "discriminator.…"."""
    return nn.ModuleDict({"generator": gan.generator, "discriminator": gan.discriminator})


@dataclass
class State:
    """Hold all that a run works with and changes."""

    gan: Gan
    fast: Gan  # the same weights, as the steps use them: compiled, in another layout
    config: TrainingConfig
    fabric: Any  # device and processes
    average: nn.Module | None  # running mean of the generator
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    history: History = field(default_factory=History)
    step: int = 0  # generator steps taken

    def kept(self) -> Gan:
        """Return the GAN that is shown and saved: with the mean generator, if there is one."""
        return self.gan if self.average is None else replace(self.gan, generator=self.average)

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """Return what has a state dict, by name."""
        own = ("generator_optimizer", "discriminator_optimizer", "average")
        parts = {**networks(self.gan), **{name: getattr(self, name) for name in own}}
        return {name: part for name, part in parts.items() if part is not None}


def begin(gan: Gan, config: TrainingConfig) -> State:
    """Bring both networks to the device, ready to learn; under torchrun in all processes that it started."""
    from lightning_fabric import Fabric  # as slow to import as torch: only those who train pay

    local, nodes = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    fabric = Fabric(accelerator=config.device, devices=local, num_nodes=nodes, precision=config.precision)
    fabric.launch()
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    networks(gan).to(fabric.device, memory_format=layout).train()
    average = copy.deepcopy(gan.generator).requires_grad_(False).eval() if config.ema else None
    optimizers = (  # each step sets their rates
        torch.optim.AdamW(network.parameters(), betas=config.betas, weight_decay=decay)
        for network, decay in ((gan.generator, config.weight_decay), (gan.discriminator, 0.0))
    )

    def prepare(images: torch.Tensor) -> torch.Tensor:
        images = gan.prepare(images)
        return images.to(memory_format=layout) if images.dim() == 4 else images

    compiled = {part: torch.compile(network) for part, network in networks(gan).items() if config.compile}
    fast = replace(gan, prepare=prepare, **compiled)
    return State(gan, fast, config, fabric, average, *optimizers)


def take_step(state: State, feed: Iterator[Batch]) -> dict[str, float]:
    """Take one generator step and the discriminator steps before it; return each loss, mean of all processes.

    feed: batches on the device, in order. Weights, optimisers, history and step of `state` change.
    """
    gan, config, fabric, step = state.fast, state.config, state.fabric, state.step
    pace = _SCHEDULES[config.schedule](step / config.steps) * min(1.0, (step + 1) / max(1, config.warmup))
    state.generator_optimizer.param_groups[0]["lr"] = config.learning_rate * pace
    state.discriminator_optimizer.param_groups[0]["lr"] = config.discriminator_learning_rate * pace
    if step == config.burn_in:
        # Adam's memory of the burn-in gradients would turn the first steps on another loss into leaps.
        state.generator_optimizer.state.clear()
    noise = torch.Generator().manual_seed(config.seed * 1_000_003 + step + (fabric.global_rank << 40))
    losses = {}
    turn = step >= config.burn_in and (step - config.burn_in) % config.discriminator_every == 0
    for _ in range(config.discriminator_steps):
        batch = next(feed)
        if turn:
            with fabric.autocast():
                parts = gan.discriminator_loss(gan, batch, noise)
            _descend(parts["total"], state.discriminator_optimizer, state)
            losses |= {f"discriminator/{name}": value for name, value in parts.items()}
    burning = step < config.burn_in and gan.burn_in_loss is not None
    with _frozen(state.gan.discriminator):
        with fabric.autocast():
            parts = (gan.burn_in_loss if burning else gan.generator_loss)(gan, batch, noise)
        _descend(parts["total"], state.generator_optimizer, state)
    losses |= {f"{'burn_in' if burning else 'generator'}/{name}": value for name, value in parts.items()}
    if state.average is not None:
        _update_average(state.average, state.gan.generator, min(config.ema, (step + 1) / (step + 10)))
    means = fabric.all_reduce(torch.stack([value.detach().float() for value in losses.values()]))
    losses = dict(zip(losses, means.tolist(), strict=True))
    state.history.add(step, losses)
    state.step += 1
    return losses


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Let gradients pass and change nothing: batch statistics neither, or they would count fakes twice."""
    switched = [(weight, "requires_grad") for weight in network.parameters() if weight.requires_grad]
    norms = (module for module in network.modules() if getattr(module, "track_running_stats", False))
    switched += [(norm, "track_running_stats") for norm in norms]
    try:
        for thing, switch in switched:
            setattr(thing, switch, False)
        yield
    finally:
        for thing, switch in switched:
            setattr(thing, switch, True)


def _descend(loss: torch.Tensor, optimizer: torch.optim.Optimizer, state: State) -> None:
    optimizer.zero_grad()
    loss.backward()
    learning = [weight for weight in optimizer.param_groups[0]["params"] if weight.grad is not None]
    if state.fabric.world_size > 1:
        for weight in learning:
            weight.grad.copy_(state.fabric.all_reduce(weight.grad, reduce_op="mean"))
    if state.config.gradient_clip:
        nn.utils.clip_grad_norm_(learning, state.config.gradient_clip)
    optimizer.step()


def _update_average(average: nn.Module, network: nn.Module, memory: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - memory)
        for mine, other in zip(average.buffers(), network.buffers(), strict=True):
            mine.copy_(other)
