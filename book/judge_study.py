"""Say what the judge of every shipped deblender is worth: `python -m book.judge_study GALAXY_ZOO_FOLDER`.

The folder (or zip) holds Galaxy Zoo images. 300 blends of those that no training saw are made; each
generator takes them apart, and its judge sees true and drawn galaxies one at a time. Where the judge of a
deblender misses the limit, a fresh one is trained on drawings of the frozen generator, from galaxies of the
training part, and its figures stand beside. Some four minutes of one core, and four for each fresh judge.
`galnb/records/judges.json`, which is written, is what chapters 04 and 06 to 09 quote beside their maps.
"""

import argparse
import datetime
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from galnb import __version__, evaluation, images, notebook
from galnb.blending.batches import blend_batches
from galnb.checks import one_of
from galnb.files import write_atomically
from galnb.gans import Gan, deblender
from galnb.gans.losses import discriminator_bce
from galnb.relevance import polarized_relevance
from galnb.training import Checkpoint, load_checkpoint, shipped
from galnb.training.checkpoints import shipped_names

RECORD = notebook.RECORDS / "judges.json"
COUNT = 300  # blends: every held-out galaxy comes first once
MAPS = 100  # held-out galaxies, uncut, whose maps are searched for the network's own frame
FRESH_STEPS, FRESH_BATCH, FRESH_RATE = 700, 8, 5e-4
ENLARGED, ENLARGED_STEPS = 8.0, 250


def figures_of(checkpoint: Checkpoint, folder: Path, *, count: int = COUNT) -> dict:
    """Return the single-image figures of a deblender's judge on held-out blends.

    The blends add up by the rule that the network learned; the fill is zeros for all.
    """
    blends = evaluation.held_out_blends(folder, count=count, rule=checkpoint.experiment.get("rule", "max"))
    drawn = deblender.deblend(checkpoint.gan, blends.blended)
    return evaluation.judge_figures(checkpoint.gan, blends.galaxies, drawn)


def enlargement(step: int) -> float:
    """Return by how much the errors of drawings are enlarged at this step: 8 at first, 1 from step 250 on.

    Without, a fresh judge of good drawings finds nothing to begin with and stays at chance.
    """
    return 1 + (ENLARGED - 1) * max(0.0, 1 - step / ENLARGED_STEPS)


def enlarged(true: torch.Tensor, drawn: torch.Tensor, step: int) -> torch.Tensor:
    """Return drawings in [0, 1] whose errors are enlarged as is right at this step."""
    factor = enlargement(step)
    return drawn if factor == 1 else (true + factor * (drawn - true)).clamp(0, 1)


def optimizer_of(gan: Gan) -> torch.optim.Optimizer:
    """Return what trains the judge, which goes to training mode."""
    return torch.optim.Adam(gan.discriminator.train().parameters(), lr=FRESH_RATE)


def learn(gan: Gan, optimizer: torch.optim.Optimizer, real: torch.Tensor, drawn: torch.Tensor) -> None:
    """Take one step of a judge on real and drawn images (B, C, H, W) in [0, 1], both in one batch."""
    images = gan.prepare(torch.cat([real, drawn])).contiguous(memory_format=torch.channels_last)
    real_logits, fake_logits = gan.discriminator(images).chunk(2)
    optimizer.zero_grad()
    discriminator_bce(real_logits, fake_logits).backward()
    optimizer.step()


def with_fresh_judge(
    gan: Gan, frames: torch.Tensor, *, rule: str, steps: int = FRESH_STEPS, seed: int = 1
) -> Gan:
    """Return a deblender with a new judge of the same config, trained while the generator stands still.

    frames: training galaxies, (B, C, 424, 424) in 0..255.
    """
    size, crop = gan.config.size, 3 * gan.config.size
    judge = deblender.deblender(replace(gan.config, seed=seed)).discriminator
    fresh = replace(gan, discriminator=judge.to(memory_format=torch.channels_last))
    feed = blend_batches(frames, batch_size=FRESH_BATCH, seed=seed, rule=rule, crop=crop, size=size)
    optimizer = optimizer_of(fresh)
    for step in range(steps):
        batch = feed(step)
        true, drawn = batch["galaxies"], deblender.deblend(gan, batch["blended"])
        learn(fresh, optimizer, true.flatten(0, 1), enlarged(true, drawn, step).flatten(0, 1))
    judge.eval()
    return fresh


def fresh_figures(checkpoint: Checkpoint, folder: Path, *, count: int = COUNT) -> dict:
    """Return the figures of a fresh judge on the same held-out blends, and how long it learned."""
    frames = images.galaxy_zoo(folder, split="train", size=424, crop=424, dtype=torch.uint8).pixels
    gan = with_fresh_judge(checkpoint.gan, frames, rule=checkpoint.experiment.get("rule", "max"))
    return {"steps": FRESH_STEPS, **figures_of(replace(checkpoint, gan=gan), folder, count=count)}


def border_mass(judge: nn.Module, given: torch.Tensor) -> dict[str, float]:
    """Return the share of the paper's maps, both signs together, in the outer two pixels at each side.

    given: (B, C, H, W) as the judge takes them, and without any frame of their own. Medians over the images
    whose maps are not empty; even maps would have 2 / W at a side, so more is the network's own frame.
    """
    maps = polarized_relevance(judge, given)
    mass = sum(maps.per_pixel()).squeeze(1)
    total = mass.sum((1, 2))
    mass = mass[total > 0] / total[total > 0, None, None]
    sides = {"left": mass[..., :2], "right": mass[..., -2:], "top": mass[:, :2], "bottom": mass[:, -2:]}
    return {side: float(part.sum((1, 2)).median()) for side, part in sides.items()}


def measure(name: str, folder: Path, *, count: int = COUNT) -> dict:
    """Return the figures of one shipped judge, its border mass, the hash of its weights and its rule.

    Under "fresh" those of a fresh judge, where the judge of a deblender misses `evaluation.LEAST_AUC`.
    """
    checkpoint = load_checkpoint(name)
    gan, digest = checkpoint.gan, hashlib.sha256(shipped(name).read_bytes()).hexdigest()
    rule = checkpoint.experiment.get("rule", "max")
    whole = images.galaxy_zoo(folder, split="test", size=80, crop=240, limit=min(count, MAPS)).pixels
    border = {
        "kernel": gan.config.discriminator_kernel,
        "border_mass": border_mass(gan.discriminator, gan.prepare(whole)),
    }
    figures = figures_of(checkpoint, folder, count=count)
    if name.startswith("deblender") and min(figures["auc"]) < evaluation.LEAST_AUC:
        figures["fresh"] = fresh_figures(checkpoint, folder, count=count)
    return {"sha256": digest, "rule": rule, **border, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", help="shipped weights to measure; of others the record is kept")
    chosen = parser.parse_args()
    names = [*shipped_names("deblender"), *shipped_names("phantom")]
    for name in chosen.only or ():
        one_of("name of a shipped deblender", name, names)
    known = notebook.record("judges")["judges"] if chosen.only else {}
    kept = {name: figures for name, figures in known.items() if name not in chosen.only}
    record = {
        "command": "python -m book.judge_study GALAXY_ZOO_FOLDER",
        "date": datetime.date.today().isoformat(),
        "versions": {"galnb": __version__, "torch": torch.__version__},
        "blends": f"{COUNT} of the 300 Galaxy Zoo galaxies that no training saw, filled with zeros",
        "judges": {name: kept.get(name) or measure(name, chosen.folder) for name in names},
    }
    write_atomically(RECORD, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
