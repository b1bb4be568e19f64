"""Say what the judge of every shipped deblender is worth: `python -m book.judge_study GALAXY_ZOO_FOLDER`.

The folder (or zip) holds Galaxy Zoo images. 300 blends of those that no training saw are made; each
generator takes them apart, and its judge sees true and drawn galaxies one at a time. Some four minutes of one
core. `galnb/records/judges.json`, which is written, is what chapters 04 and 06 to 09 quote beside their maps.
"""

import argparse
import datetime
import hashlib
import json
from pathlib import Path

import torch
from torch import nn

from galnb import __version__, evaluation, images, notebook
from galnb.files import write_atomically
from galnb.gans import deblender
from galnb.relevance import polarized_relevance
from galnb.training import Checkpoint, load_checkpoint, shipped
from galnb.training.checkpoints import shipped_names

RECORD = notebook.RECORDS / "judges.json"
COUNT = 300  # blends: every held-out galaxy comes first once
MAPS = 100  # held-out galaxies, uncut, whose maps are searched for the network's own frame


def figures_of(checkpoint: Checkpoint, folder: Path, *, count: int = COUNT) -> dict:
    """Return the single-image figures of a deblender's judge on held-out blends.

    The blends add up by the rule that the network learned; the fill is zeros for all.
    """
    blends = evaluation.held_out_blends(folder, count=count, rule=checkpoint.experiment.get("rule", "max"))
    drawn = deblender.deblend(checkpoint.gan, blends.blended)
    return evaluation.judge_figures(checkpoint.gan, blends.galaxies, drawn)


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
    """Return the figures of one shipped judge, its border mass, the hash of its weights and its rule."""
    checkpoint = load_checkpoint(name)
    gan, digest = checkpoint.gan, hashlib.sha256(shipped(name).read_bytes()).hexdigest()
    rule = checkpoint.experiment.get("rule", "max")
    whole = images.galaxy_zoo(folder, split="test", size=80, crop=240, limit=min(count, MAPS)).pixels
    border = {
        "kernel": gan.config.discriminator_kernel,
        "border_mass": border_mass(gan.discriminator, gan.prepare(whole)),
    }
    return {"sha256": digest, "rule": rule, **border, **figures_of(checkpoint, folder, count=count)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    names = [*shipped_names("deblender"), *shipped_names("phantom")]
    record = {
        "command": "python -m book.judge_study GALAXY_ZOO_FOLDER",
        "date": datetime.date.today().isoformat(),
        "versions": {"galnb": __version__, "torch": torch.__version__},
        "blends": f"{COUNT} of the 300 Galaxy Zoo galaxies that no training saw, filled with zeros",
        "judges": {name: measure(name, folder) for name in names},
    }
    write_atomically(RECORD, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
