"""Five folds of FIRST: generators, smearing, classifiers. `python -m book.radio_study OUT_FOLDER`.

The 1,758 training images of FIRST are dealt into five blocks, class by class. For each block, two GANs are
trained on the other four: a plain one and one that smears (sigma 1 px, 3 x 3) before its clamp, from the same
seed (the number of the fold). The block itself chooses their checkpoints, class by class; the 200 test images
give the final figures. Two classifiers then learn from the four blocks and from images of the fold's plain
generator in growing proportion. Last, a scan of learning rates on the package's own split.

Every training leaves its file in OUT_FOLDER, those that exist are not repeated, and whatever is there makes
the record `book/records/12_systematics.json`:

    folds: [{fold, seed, train, block: {class: number}}]
    generators: [{fold, kind: "plain" | "smeared", smear: none | "after 0.5" | "after 1" | "inside 1",
        chosen: {class: step}, block: {class: score}, test: {class: score}, old: {class: score} (four best
        overall, on the block), new: {class: score} (the same images' best per class)}]
    floors: {block | test: {class: {median, low, high, count}}}
    classifiers: [{fold, network, ratio, kind, accuracy, brier, "recall FRI", ...}] (test images)
    rates: [{network, learning_rate, seed, curve: [{step, loss, accuracy, brier}], roughness, best, last}]

A score is the mean relative MAE of the three histograms, over as many generated images as there are real ones
(mean over draws), so that it compares with its floor.
"""

import argparse
import datetime
import json
from concurrent.futures import Executor
from dataclasses import asdict, replace
from pathlib import Path

import torch

import galnb
from galnb import batches, classifiers, images, presets, radio, smearing, training
from galnb.checkpoints import load_checkpoint, write_atomically
from galnb.experiments import class_numbers
from galnb.layers import Smear

RECORD = Path(__file__).parent / "records" / "12_systematics.json"
FOLDS, SIZE, STEPS, STAGES = 5, 64, 600, 6
KINDS = {"plain": 0.0, "smeared": 1.0}
SHIPPED = presets.experiment("radio-plain", "laptop")
MODEL = replace(SHIPPED.model, width=8)
TRAINING = replace(
    SHIPPED.training, steps=STEPS, save_every=STEPS // STAGES, device="cpu",
    stages=tuple((f"step{STEPS * part // STAGES}", part / STAGES) for part in range(1, STAGES + 1)),
)  # fmt: skip
RATIOS = (0, 1, 2, 3)
CLASSIFIER = classifiers.ClassifierConfig(steps=500)
RATES, RATE_SEEDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3), (0, 1, 2)


def deal(labels: torch.Tensor, *, folds: int = FOLDS) -> torch.Tensor:
    """Return the block (B,) of each image: each class is dealt out evenly, in a fixed random order."""
    generator = torch.Generator().manual_seed(0)
    block = torch.empty_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        order = members[torch.randperm(len(members), generator=generator)]
        block[order] = torch.arange(len(members)) % folds
    return block


def train_generator(fold: int, kind: str, found: images.ImageSet, folder: Path) -> list[Path]:
    """Train one GAN without the images of its block; return its checkpoints."""
    place = folder / f"{kind}_{fold}"
    files = [place / f"{name}.safetensors" for name, _ in TRAINING.stages]
    if not files[-1].is_file():
        labels = class_numbers(found.labels)
        keep = deal(labels) != fold
        fresh = batches.labelled_batches(
            found.pixels[keep], labels[keep], batch_size=SHIPPED.batch_size, seed=fold, size=SIZE
        )
        gan = radio.radio(replace(MODEL, sigma=KINDS[kind], seed=fold))
        story = {"name": f"radio-{kind}", "data": "first", "fold": fold, "batch_size": SHIPPED.batch_size}
        training.train(gan, fresh, replace(TRAINING, seed=fold), folder=place, resume=True, experiment=story)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=("generators",), help="train the generators and stop")
    chosen = parser.parse_args()
    found = images.first_radio(split="train", size=2 * SIZE)
    for fold in range(FOLDS):
        for kind in KINDS:
            train_generator(fold, kind, found, chosen.out)


if __name__ == "__main__":
    main()
