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

from galnb import __version__, evaluation, notebook
from galnb.files import write_atomically
from galnb.gans import deblender
from galnb.training import Checkpoint, load_checkpoint, shipped
from galnb.training.checkpoints import shipped_names

RECORD = notebook.RECORDS / "judges.json"
COUNT = 300  # blends: every held-out galaxy comes first once


def figures_of(checkpoint: Checkpoint, folder: Path, *, count: int = COUNT) -> dict:
    """Return the single-image figures of a deblender's judge on held-out blends.

    The blends add up by the rule that the network learned; the fill is zeros for all.
    """
    blends = evaluation.held_out_blends(folder, count=count, rule=checkpoint.experiment.get("rule", "max"))
    drawn = deblender.deblend(checkpoint.gan, blends.blended)
    return evaluation.judge_figures(checkpoint.gan, blends.galaxies, drawn)


def measure(name: str, folder: Path, *, count: int = COUNT) -> dict:
    """Return the figures of one shipped judge, with the hash of its weights and the rule of its blends."""
    checkpoint = load_checkpoint(name)
    digest = hashlib.sha256(shipped(name).read_bytes()).hexdigest()
    rule = checkpoint.experiment.get("rule", "max")
    return {"sha256": digest, "rule": rule, **figures_of(checkpoint, folder, count=count)}


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
