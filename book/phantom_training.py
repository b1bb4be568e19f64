"""The trainings of `book.phantom_study`: a common generator, and what it becomes under each fill.

A judge has to be able to judge before its maps say anything, and a fresh one learns nothing from the drawings
of a generator of 30 dB. So each first learns alone, from drawings whose errors are enlarged; then both
learn in turn; then the judge alone once more, since in the game each is always a step behind the other.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from book.judge_study import FRESH_BATCH, enlargement, learn, optimizer_of
from galnb import blending, training
from galnb.blending import batches
from galnb.gans import Gan, deblender
from galnb.gans.losses import RECONSTRUCTIONS
from galnb.images import turned
from galnb.training import experiments

FILLS, COMMON_SEED = ("zeros", "reflect", "noise"), 100
START_BLENDS, START_STEPS, SETTLE_STEPS = 2800, 600, 100


def feed_of(frames: torch.Tensor, fill: str, batch_size: int, seed: int, turn_first: float = 0.0):
    """Return batches of blends of frames (N, 3, 424, 424), bytes, by their index."""
    perturbation = blending.Perturbation(fill=fill)
    how = {"perturbation": perturbation, "crop": 240, "size": 80, "turn_first": turn_first}
    return batches.blend_batches(frames, batch_size=batch_size, seed=seed, **how)


def reconstruction_alone(gan: Gan, batch: dict, noise: torch.Generator) -> dict[str, torch.Tensor]:
    """Return the generator's loss without its adversarial part, which then costs nothing."""
    drawn = gan.generator(gan.prepare(batch["blended"]))
    return {"total": RECONSTRUCTIONS[gan.config.reconstruction](drawn, gan.prepare(batch["galaxies"]))}


def train_common(frames: torch.Tensor, folder: Path, preset: str = "laptop") -> Path:
    """Train the generator from which all others start, on all three fills in turn and without adversary."""
    file = folder / "common" / "final.safetensors"
    if file.is_file():
        return file
    chosen = experiments.experiment("phantom-common", preset)
    feeds = [feed_of(frames, fill, chosen.batch_size, COMMON_SEED, turn_first=0.5) for fill in FILLS]
    gan = deblender.deblender(replace(chosen.model, seed=COMMON_SEED))
    training.train(
        replace(gan, burn_in_loss=reconstruction_alone),
        lambda index: feeds[index % len(feeds)](index),
        replace(chosen.training, burn_in=chosen.training.steps),
        folder=file.parent,
        resume=True,
        experiment={"name": "phantom-common", "preset": preset, "data": "galaxyzoo", "images": len(frames)},
    )
    return file


def start_bank(fill: str, frames: torch.Tensor, common: Path) -> tuple[torch.Tensor, ...]:
    """Return galaxies (B, 2, C, 80, 80), float16, of blends and the common generator's drawings of them."""
    file = common.with_name(f"{fill}.pt")
    if not file.is_file():
        gan, feed = training.load_checkpoint(common).gan, feed_of(frames, fill, 8, COMMON_SEED + 1)
        parts = [feed(index) for index in range(START_BLENDS // 8)]
        real = torch.cat([part["galaxies"].half() for part in parts])
        drawn = torch.cat([deblender.deblend(gan, part["blended"]).half() for part in parts])
        torch.save((real, drawn), file)
    return torch.load(file)


def learn_alone(gan: Gan, bank: tuple[torch.Tensor, ...], steps: int, seed: int) -> None:
    """Train the judge on a bank of (real, clean, error), in place; drawn is clean + error, enlarged at first.

    Each (N, C, H, W) or (N, 2, C, H, W) in [0, 1]; both kinds of a batch are turned alike, one of 8 ways.
    """
    optimizer, draw = optimizer_of(gan), torch.Generator().manual_seed(seed)
    for step in range(steps):
        chosen = torch.randint(len(bank[0]), (FRESH_BATCH,), generator=draw)
        turn = int(torch.randint(8, (), generator=draw))
        real, clean, error = (part[chosen].float().flatten(0, -4) for part in bank)
        drawn = (clean + enlargement(step) * error).clamp(0, 1)
        learn(gan, optimizer, turned(real, turn), turned(drawn, turn))
    gan.discriminator.eval()


def settle(gan: Gan, feed: Callable[[int], dict]) -> None:
    """Train the judge alone against the finished generator, in place."""
    optimizer = optimizer_of(gan)
    for step in range(SETTLE_STEPS):
        batch = feed(step)
        drawn = deblender.deblend(gan, batch["blended"])
        learn(gan, optimizer, batch["galaxies"].flatten(0, 1), drawn.flatten(0, 1))
    gan.discriminator.eval()


def train_one(run: str, frames: torch.Tensor, common: Path, folder: Path, preset: str = "laptop") -> Path:
    """Train the networks of one run, FILL_SEED or FILL_SEED_alone; return the file that holds them.

    All start with the common generator; seeds differ in the judge's first weights and in the blends. The
    generator of an "alone" run hears no judge. Else `game.safetensors` keeps both as the game left them.
    """
    file = folder / run / "final.safetensors"
    if file.is_file():
        return file
    fill, seed, *alone = run.split("_")
    chosen = experiments.experiment("phantom", preset)
    feed = feed_of(frames, fill, chosen.batch_size, int(seed))
    story = {
        "name": "phantom", "preset": preset, "data": "galaxyzoo", "batch_size": chosen.batch_size,
        "images": len(frames), "rule": "max", "fill": fill, "start": "phantom-common",
        "judge_alone": 0 if alone else SETTLE_STEPS,
    }  # fmt: skip
    gan = deblender.deblender(replace(chosen.model, seed=int(seed)))
    gan.generator.load_state_dict(training.load_checkpoint(common).gan.generator.state_dict())
    schedule = replace(chosen.training, seed=int(seed), stages=(("final" if alone else "game", 1.0),))
    if alone:
        gan = replace(gan, burn_in_loss=reconstruction_alone)
        schedule = replace(schedule, burn_in=schedule.steps)
    elif not (file.parent / "resume.pt").is_file():
        real, drawn = start_bank(fill, frames, common)
        learn_alone(gan, (real, real, drawn - real), START_STEPS, int(seed))
    training.train(gan, feed, schedule, folder=file.parent, resume=True, experiment=story)
    if not alone:
        settle(gan, lambda step: feed(schedule.steps + step))
        told = training.load_checkpoint(file.with_name("game.safetensors")).experiment
        training.save_checkpoint(file, gan, experiment=told, step=schedule.steps)
    return file
