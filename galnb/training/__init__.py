"""The one training loop of the book: any `Gan`, any device, stopped and continued at will. Chapter 04."""

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm

from galnb.checks import check_kind
from galnb.gans import Batch, Gan
from galnb.training.checkpoints import Checkpoint as Checkpoint
from galnb.training.checkpoints import claim_folder, read_resume_point, save_checkpoint, write_resume_point
from galnb.training.checkpoints import load_checkpoint as load_checkpoint
from galnb.training.checkpoints import shipped as shipped
from galnb.training.steps import History, State, TrainingConfig, begin, networks, take_step


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
    progress: bool | None = None,
) -> History:
    """Train a GAN in place: burn-in, then discriminator and generator in turn; it ends in eval mode.

    batches: index -> that batch, a dict of tensors. Only the index may matter; it is called from threads.
    folder: for checkpoints, resume.pt and history.json; ValueError if it holds a run, and neither
        resume (go on from resume.pt, or start where nothing is) nor overwrite (replace the run) is asked for.
    callback: called after each step with (step, losses, gan), the gan with its mean generator if it has one.
    experiment: what else made the run (data, batch size), as JSON; goes into the checkpoints.
    progress: whether to draw a bar with losses and remaining time; None: where somebody watches a notebook.
    FloatingPointError if a loss or weight is not finite: what was saved stays. Under torchrun each process
    takes its share of every batch, so a run on several devices follows that on one (batch norm apart).
    """
    check_kind(Gan, "such as deblender(config), or load_checkpoint(...).gan", gan=gan)
    check_kind(TrainingConfig, "of an experiment give .training", config=config)
    if not callable(batches):
        wanted = "a function such as galnb.blending.batches.blend_batches(images, ...)"
        raise ValueError(f"batches: got {type(batches).__name__}, expected {wanted}")
    story = {"config": asdict(config), "model": {"gan": gan.name, **asdict(gan.config)}}
    story = json.loads(json.dumps({**story, "experiment": dict(experiment or {})}))  # as a file holds it
    goes_on = claim_folder(folder, config.stages, resume, overwrite)
    state = begin(gan, config)
    with _told(state, folder):
        if goes_on:
            read_resume_point(Path(folder) / "resume.pt", story, state)
        shown = (_watched() if progress is None else progress) and state.fabric.is_global_zero
        steps = range(state.step, config.steps)
        bar = tqdm(steps, total=config.steps, initial=state.step, disable=not shown, unit="step")
        with closing(_ahead(batches, state)) as feed, bar:
            for step in bar:
                losses = take_step(state, feed)
                _save(state, losses, folder, story)
                bar.set_postfix({n: x for n, x in losses.items() if n.endswith("total")}, refresh=False)
                if callback is not None:
                    callback(step, losses, state.kept())
    return state.history


def _watched() -> bool:
    """Say whether somebody watches this notebook: papermill and its kin say that nobody answers `input`."""
    kernel = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    request = getattr(kernel, "get_parent", dict)()
    return bool(request.get("content", {}).get("allow_stdin"))


@contextmanager
def _told(state: State, folder: str | Path | None) -> Iterator[None]:
    """Say where a run stopped and how it goes on; leave its networks in eval mode."""
    try:
        yield
        if state.average is not None:
            state.gan.generator.load_state_dict(state.average.state_dict())
    except KeyboardInterrupt as stop:
        way = "nothing is on disk; build the networks anew, or give a folder to be able to go on"
        way = "resume=True (--resume), not overwrite, goes on from the last resume point" if folder else way
        raise KeyboardInterrupt(f"stopped after step {state.step} of {state.config.steps}; {way}") from stop
    finally:
        networks(state.gan).eval()


def _ahead(batches: Callable[[int], Batch], state: State) -> Iterator[Batch]:
    """Hand out this process's share of each batch while threads make the next ones."""
    fabric, per_step = state.fabric, state.config.discriminator_steps
    upcoming = iter(range(state.step * per_step, state.config.steps * per_step))
    # A CPU that trains has no time to spare; a GPU must not wait.
    workers = 4 if fabric.device.type == "cuda" else 1
    rank, world = fabric.global_rank, fabric.world_size
    with ThreadPoolExecutor(workers) as pool:
        coming = deque(pool.submit(batches, index) for index in islice(upcoming, workers))
        while coming:
            batch = coming.popleft().result()
            coming.extend(pool.submit(batches, index) for index in islice(upcoming, 1))
            if (size := len(next(iter(batch.values())))) % world:
                raise ValueError(f"a batch of {size} for {world} processes; make it a multiple of {world}")
            yield {name: tensor[rank::world].to(fabric.device) for name, tensor in batch.items()}


def _save(state: State, losses: Mapping[str, float], folder: str | Path | None, story: Mapping) -> None:
    """Write what this step asks for, checkpoints and the resume point, unless a number is not finite."""
    config = state.config
    bad = [f"{name} is {value}" for name, value in losses.items() if not abs(value) <= config.loss_limit]
    stages = [name for name, share in config.stages if max(1, round(share * config.steps)) == state.step]
    due = folder is not None and (stages or state.step % config.save_every == 0 or state.step == config.steps)
    if due:  # a loss can be finite where its gradient is not: such weights must not replace good ones
        weights = networks(state.gan).named_parameters()
        bad += [f"{name} is not finite" for name, weight in weights if not weight.isfinite().all()]
    if bad:
        kept = "" if folder is None else f"; what {folder} holds is from before"
        cure = f"learning_rate (now {config.learning_rate}) or set gradient_clip (now {config.gradient_clip})"
        raise FloatingPointError(f"{bad[0]} at step {state.step - 1}{kept}. Lower {cure}")
    if due and state.fabric.is_global_zero:
        told = {**story["experiment"], "training": story["config"]}
        for name in stages:
            place = Path(folder) / f"{name}.safetensors"
            save_checkpoint(place, state.kept(), experiment=told, step=state.step)
        write_resume_point(Path(folder), story, state)
