"""Tiny runs that several test files share; as a program, a run to be killed or started twice by torchrun.

python -m tests.tiny_runs slow FOLDER       a run that takes its time, for SIGKILL
python -m tests.tiny_runs torn FOLDER       a run that kills itself in the middle of writing a resume point
torchrun -m tests.tiny_runs shared FOLDER   a run without batch norm, by any number of processes
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from galnb.blending.batches import blend_batches
from galnb.gans import Gan, to_signed
from galnb.gans.deblender import DeblenderConfig, deblender
from galnb.gans.losses import discriminator_bce, generator_bce, mse
from galnb.training import TrainingConfig, checkpoints, train

SIZES = {"root_blocks": 1, "branch_blocks": 1, "widths": (8, 8), "blocks": (1, 1)}
WRONG_SIZES = [{"count": wrong} for wrong in (0, 2.0, True, None)] + [{"batch": 0}, {"batch": -1}]
TINY = DeblenderConfig(size=16, width=4, discriminator_width=4, dense=8, **SIZES)
# Everything that a resume point must bring back: burn-in, schedule, warm-up, mean, clipping, two D steps.
RUN = TrainingConfig(
    steps=12,
    burn_in=4,
    learning_rate=1e-3,
    discriminator_learning_rate=1e-3,
    schedule="cosine",
    warmup=3,
    discriminator_steps=2,
    discriminator_every=2,
    ema=0.9,
    gradient_clip=1.0,
    weight_decay=1e-2,
    device="cpu",
    save_every=2,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Import it where networks are tiny: more threads only wait for each other, and sums keep their order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(count: int = 12, size: int = 16, channels: int = 3) -> torch.Tensor:
    """Blobs of random width and colour."""
    generator = torch.Generator().manual_seed(1)
    grid = torch.linspace(-1, 1, size)
    width = 0.1 + 0.3 * torch.rand(count, 1, 1, 1, generator=generator)
    blob = torch.exp(-(grid[:, None].square() + grid.square()) / width)
    return (blob * torch.rand(count, channels, 1, 1, generator=generator)).clamp(0, 1)


def batches(batch_size: int = 4, **options):
    return blend_batches(images(), batch_size=batch_size, seed=7, **options)


@dataclass(frozen=True)
class PlainConfig:
    """Of the smallest GAN: no norm, no noise."""

    width: int = 4


def plain_gan() -> Gan:
    """Build a GAN from plain torch modules, to show that the loop asks for nothing else."""

    def generator_loss(gan, batch, noise):
        drawn = gan.generator(gan.prepare(batch["blended"])).unflatten(1, (2, 3))
        parts = {"mse": mse(drawn, gan.prepare(batch["galaxies"]))}
        parts["adversarial"] = generator_bce(gan.discriminator(drawn.flatten(0, 1)))
        return {"total": parts["mse"] + 0.1 * parts["adversarial"], **parts}

    def discriminator_loss(gan, batch, noise):
        with torch.no_grad():
            fake = gan.generator(gan.prepare(batch["blended"])).unflatten(1, (2, 3)).flatten(0, 1)
        real = gan.prepare(batch["galaxies"]).flatten(0, 1)
        return {"total": discriminator_bce(gan.discriminator(real), gan.discriminator(fake))}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 6, 3, padding=1))
        discriminator = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.SiLU(), nn.Flatten(), nn.Linear(64, 1))
    return Gan(
        "plain", PlainConfig(), generator, discriminator, to_signed, generator_loss, discriminator_loss
    )


def run(folder: Path | None, *, resume: bool = False, config: TrainingConfig = RUN, callback=None):
    """The run whose end must not depend on whether it was stopped; returns the GAN and the history."""
    gan = deblender(TINY)
    return gan, train(gan, batches(), config, folder=folder, resume=resume, callback=callback)


def shared_losses() -> dict[str, list[float]]:
    """Losses of 12 steps of the plain GAN, whose batches of 4 any 1, 2 or 4 processes can share."""
    config = TrainingConfig(steps=12, learning_rate=1e-2, discriminator_learning_rate=1e-2, device="cpu")
    return train(plain_gan(), batches(), config).losses


def _tear(target: Path, content: bytes) -> None:
    """Die half-way through the third resume point, as `write_atomically` would."""
    half_written = target.with_name(f".{target.name}.{os.getpid()}.part")
    _tear.seen += target.name == "resume.pt"
    if _tear.seen < 3:
        return _tear.write(target, content)
    half_written.write_bytes(content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, target_folder = sys.argv[1], Path(sys.argv[2])
    if mode == "slow":
        run(target_folder, callback=lambda step, losses, gan: time.sleep(0.05))
    elif mode == "torn":
        _tear.seen, _tear.write = 0, checkpoints.write_atomically
        checkpoints.write_atomically = _tear
        run(target_folder)
    elif mode == "shared":
        found = shared_losses()
        if torch.distributed.get_rank() == 0:
            report = {"processes": torch.distributed.get_world_size(), "losses": found}
            (target_folder / "report.json").write_text(json.dumps(report))
