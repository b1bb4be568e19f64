"""The one training loop of the book: any `Gan`, any device, stopped and continued at will.

Chapter 04, The deblender GAN.
"""

import copy
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from galnb.gans import Batch, Gan
from galnb.training.checkpoints import Checkpoint as Checkpoint
from galnb.training.checkpoints import claim_folder, read_resume_point, save_checkpoint, write_resume_point
from galnb.training.checkpoints import load_checkpoint as load_checkpoint
from galnb.training.checkpoints import shipped as shipped
from galnb.training.steps import History, State, TrainingConfig, take_step


def train(
    gan: Gan,
    batches: Callable[[int], Batch],
    config: TrainingConfig,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callback: Callable[[int, dict[str, float], Gan], None] | None = None,
    experiment: Mapping | None = None,
    progress: bool = False,
) -> History:
    """Train a GAN in place: burn-in, then discriminator and generator in turn; it ends in eval mode.

    batches: ``batches(index)`` returns batch `index` as a dict of tensors. It must depend on the index alone,
        so that a continued run sees what it would have seen, and is called from threads.
    folder: receives checkpoints, resume.pt and history.json; without it nothing is written.
    resume: go on from resume.pt, or start anew where there is none; overwrite: replace the folder's run.
    callback: called after every step with (step, losses, gan), the gan with its mean generator if it has one.
    experiment: what else made the run (data, batch size), as JSON; goes into the checkpoints.
    ValueError if the folder holds a run and neither is asked for, or resume.pt is damaged or another run's;
    FloatingPointError if a loss or weight is not finite: what was saved stays. Ctrl+C says how to go on.
    Under torchrun each process takes its share of every batch and gradients are averaged, so a run on several
    devices follows the run on one (batch norm apart); all of them must see the folder.
    """
    if folder is None and (resume or overwrite):
        raise ValueError("resume=True needs the folder of the run, as does overwrite=True; got folder=None")
    folder = None if folder is None else Path(folder)
    model = {"gan": gan.name, **asdict(gan.config)}
    run = {"config": asdict(config), "model": model, "experiment": dict(experiment or {})}
    run = json.loads(json.dumps(run))  # as a file holds it
    first = min(config.save_every, config.steps)
    goes_on = folder is not None and claim_folder(folder, _stages(config), first, resume, overwrite)
    fabric = _fabric(config)
    state = _start(gan, config, fabric)
    try:
        if goes_on:
            state.step, history = read_resume_point(folder / "resume.pt", run, state.parts())
            state.saved, state.history = state.step, History(**history)
        quiet, per_step = not (progress and fabric.is_global_zero), config.discriminator_steps
        left, fast = range(state.step, config.steps), _accelerated(gan, config)
        bar = tqdm(left, total=config.steps, initial=state.step, disable=quiet, unit="step")
        order = range(state.step * per_step, config.steps * per_step)
        with closing(_ahead(batches, order, fabric)) as feed, bar:
            for step in bar:
                losses = take_step(fast, state, feed, config, fabric)
                _check_finite(losses, step, config, folder)
                state.history.add(step, losses)
                state.step += 1
                _save(folder, state, config, run, fabric)
                if callback is not None:
                    callback(step, losses, state.kept())
                if state.step % 10 == 0:
                    bar.set_postfix({name: f"{losses[name]:.3g}" for name in losses if "total" in name})
    except (RuntimeError, MemoryError) as error:
        error.add_note(f"in step {state.step}; if memory ran out, lower batch_size first, then the width")
        raise
    except KeyboardInterrupt as stop:
        way = f"resume=True (--resume) goes on from step {state.saved}" if folder else "nothing was kept"
        raise KeyboardInterrupt(f"stopped after step {state.step} of {config.steps}; {way}") from stop
    finally:
        gan.generator.eval()
        gan.discriminator.eval()
    if state.average is not None:
        gan.generator.load_state_dict(state.average.state_dict())
    return state.history


def _stages(config: TrainingConfig) -> dict[str, int]:
    """Return after how many steps each checkpoint is taken."""
    return {name: max(1, round(share * config.steps)) for name, share in config.stages}


def _fabric(config: TrainingConfig) -> Any:
    """Set up the device; under torchrun, as many processes and nodes as it started."""
    from lightning_fabric import Fabric  # as slow to import as torch: only those who train pay

    names = ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "WORLD_SIZE")
    local, nodes, world = (int(os.environ.get(name, "1")) for name in names)
    how = {"strategy": "ddp" if world > 1 else "auto", "precision": config.precision}
    fabric = Fabric(accelerator=config.device, devices=local, num_nodes=nodes, **how)
    fabric.launch()
    return fabric


def _start(gan: Gan, config: TrainingConfig, fabric: Any) -> State:
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    for network in (gan.generator, gan.discriminator):
        network.to(fabric.device, memory_format=layout).train()
    average = copy.deepcopy(gan.generator).requires_grad_(False).eval() if config.ema else None
    optimizers = [
        torch.optim.AdamW(network.parameters(), lr=rate, betas=config.betas, weight_decay=decay)
        for network, rate, decay in (
            (gan.generator, config.learning_rate, config.weight_decay),
            (gan.discriminator, config.discriminator_learning_rate, 0.0),
        )
    ]
    return State(gan, average, *optimizers)


def _accelerated(gan: Gan, config: TrainingConfig) -> Gan:
    """The same weights behind compiled forward passes and, on request, channels-last inputs."""

    def prepare(images: torch.Tensor) -> torch.Tensor:
        images = gan.prepare(images)
        last = config.channels_last and images.dim() == 4
        return images.contiguous(memory_format=torch.channels_last) if last else images

    parts = (gan.generator, gan.discriminator)
    generator, discriminator = map(torch.compile, parts) if config.compile else parts
    return replace(gan, prepare=prepare, generator=generator, discriminator=discriminator)


def _ahead(batches: Callable[[int], Batch], order: range, fabric: Any) -> Iterator[Batch]:
    """Hand out this process's share of each batch while threads make the next ones."""
    # A CPU that trains has no time to spare; a GPU must not wait.
    workers = min(4, os.cpu_count() or 1) if fabric.device.type == "cuda" else 1
    rank, world, upcoming = fabric.global_rank, fabric.world_size, iter(order)
    pool = ThreadPoolExecutor(workers)
    try:
        coming = deque(pool.submit(batches, index) for index in islice(upcoming, workers))
        while coming:
            batch = coming.popleft().result()
            coming.extend(pool.submit(batches, index) for index in islice(upcoming, 1))
            for name, tensor in batch.items():
                if len(tensor) % world:
                    raise ValueError(
                        f"{len(tensor)} {name} for {world} processes; make batch_size a multiple of {world}"
                    )
            yield {name: tensor[rank::world].to(fabric.device) for name, tensor in batch.items()}
    finally:
        pool.shutdown(cancel_futures=True)


def _check_finite(losses: Mapping, step: int, config: TrainingConfig, folder: Path | None) -> None:
    for name, value in losses.items():
        if not math.isfinite(value) or abs(value) > config.loss_limit:
            kept = "" if folder is None else f"; checkpoints and the resume point in {folder} are from before"
            raise FloatingPointError(
                f"{name} is {value} at step {step}{kept}. Lower learning_rate (now {config.learning_rate}), "
                f"or set gradient_clip (now {config.gradient_clip})"
            )


def _save(folder: Path | None, state: State, config: TrainingConfig, run: Mapping, fabric: Any) -> None:
    """Write what this step asks for: stage checkpoints, and the resume point."""
    stages = [name for name, step in _stages(config).items() if state.step == step]
    point = state.step % config.save_every == 0 or state.step == config.steps
    if folder is None or not (stages or point):
        return
    # A loss can be finite where its gradient is not: such weights must not replace good ones.
    for part, network in (("generator", state.gan.generator), ("discriminator", state.gan.discriminator)):
        if not all(weight.isfinite().all() for weight in network.parameters()):
            raise FloatingPointError(
                f"a weight of the {part} is not finite after step {state.step - 1}; checkpoints and the "
                f"resume point in {folder} are from before. Lower learning_rate (now {config.learning_rate})"
            )
    if fabric.is_global_zero:
        for name in stages:
            story = {**run["experiment"], "training": run["config"]}
            save_checkpoint(folder / f"{name}.safetensors", state.kept(), experiment=story, step=state.step)
        if point:
            write_resume_point(folder, run, state.parts(), step=state.step, history=vars(state.history))
    if point:
        state.saved = state.step
