"""One step of GAN training, and the numbers that rule it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from galnb.gans import Batch, Gan
from galnb.training.resume import State

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS = ("32-true", "bf16-mixed")  # fp16 would need its losses scaled
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
        object.__setattr__(
            self, "betas", tuple(float(beta) for beta in self.betas)
        )  # lists when read back from JSON
        object.__setattr__(self, "stages", tuple((name, share) for name, share in self.stages))
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
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is unknown; known are {PRECISIONS}")
        if not self.ema < 1:
            raise ValueError(f"ema is {self.ema}; expected less than 1, for example 0.999")
        if any(not 0 < share <= 1 for _, share in self.stages):
            raise ValueError(f"stages are {self.stages}; each share of the run must be in (0, 1]")


def take_step(
    gan: Gan, state: State, feed: Iterator[Batch], config: TrainingConfig, fabric: "Fabric"
) -> dict[str, float]:
    """Take one generator step and the discriminator steps before it.

    Parameters
    ----------
    gan : Gan
        The networks of `state`, maybe compiled.
    state : State
        Its weights and optimisers change; its step is not counted here.
    feed : iterator
        Batches on the device, in order.
    config : TrainingConfig
        How to train.
    fabric : lightning_fabric.Fabric
        Device, precision and processes.

    Returns
    -------
    dict
        Each loss by name, averaged over the processes.

    Raises
    ------
    RuntimeError
        If memory runs out; the message says what to lower.

    Notes
    -----
    Chapter: The deblender GAN
    """
    try:
        return _learn(gan, state, feed, config, fabric)
    except (RuntimeError, MemoryError) as error:
        # the allocators of CPUs (Linux, Windows) and GPUs each have their own words
        words = ("allocate memory", "not enough memory", "out of memory")
        if not isinstance(error, MemoryError) and not any(known in str(error) for known in words):
            raise
        raise RuntimeError(
            f"memory ran out in step {state.step}: lower batch_size first, then the width of the networks, "
            "or use a smaller preset"
        ) from error


def _learn(
    gan: Gan, state: State, feed: Iterator[Batch], config: TrainingConfig, fabric: "Fabric"
) -> dict[str, float]:
    step = state.step
    pace = SCHEDULES[config.schedule](step / config.steps) * min(1.0, (step + 1) / max(1, config.warmup))
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
            _descend(parts["total"], state.discriminator_optimizer, config, fabric)
            losses |= {f"discriminator/{name}": value for name, value in parts.items()}
    burning = step < config.burn_in and gan.burn_in_loss is not None
    with _frozen(state.gan.discriminator):
        with fabric.autocast():
            parts = (gan.burn_in_loss if burning else gan.generator_loss)(gan, batch, noise)
        _descend(parts["total"], state.generator_optimizer, config, fabric)
    losses |= {f"{'burn_in' if burning else 'generator'}/{name}": value for name, value in parts.items()}
    if state.average is not None:
        _update_average(state.average, state.gan.generator, min(config.ema, (step + 1) / (step + 10)))
    means = fabric.all_reduce(torch.stack([value.detach().float() for value in losses.values()]))
    return dict(zip(losses, means.tolist(), strict=True))


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Let gradients pass and change nothing: batch statistics neither, or they would count fakes twice."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    norms = [module for module in network.modules() if getattr(module, "track_running_stats", False)]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True


def _descend(
    loss: torch.Tensor, optimizer: torch.optim.Optimizer, config: TrainingConfig, fabric: "Fabric"
) -> None:
    optimizer.zero_grad()
    loss.backward()
    learning = [weight for weight in optimizer.param_groups[0]["params"] if weight.grad is not None]
    if fabric.world_size > 1:
        mean = fabric.all_reduce(torch.cat([weight.grad.flatten() for weight in learning]), reduce_op="mean")
        for weight, part in zip(learning, mean.split([weight.numel() for weight in learning]), strict=True):
            weight.grad.copy_(part.view_as(weight))
    if config.gradient_clip:
        nn.utils.clip_grad_norm_(learning, config.gradient_clip)
    optimizer.step()


def _update_average(average: nn.Module, network: nn.Module, memory: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - memory)
        for mine, other in zip(average.buffers(), network.buffers(), strict=True):
            mine.copy_(other)
