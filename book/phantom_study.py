"""Does the fill reach the discriminator? `python -m book.phantom_study GALAXY_ZOO_FOLDER OUT_FOLDER`.

Fifteen small deblender GANs: three fills (zeros, reflection, sky noise), each from five seeds. Same galaxies,
same warps, same first weights, same order; only the fill differs. The generator paints (`"unet"`) and the
losses are those of Li et al. and of Reiman and Goehre: squared error and 1e-3 times the adversary. Each run
leaves its weights in OUT; those that exist are not repeated, and a run that was stopped goes on.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from galnb import batches, blending, deblender, experiments, presets, training

FILLS, SEEDS = ("zeros", "reflect", "noise"), (0, 1, 2, 3, 4)


def train_one(fill: str, seed: int, frames: torch.Tensor, folder: Path, preset: str = "laptop") -> Path:
    """Train the networks of one fill and one seed; return the file that holds them."""
    file = folder / f"{fill}_{seed}" / "final.safetensors"
    if file.is_file():
        return file
    chosen = presets.experiment("phantom", preset)
    fresh = batches.blend_batches(
        frames, batch_size=chosen.batch_size, seed=seed, perturbation=blending.Perturbation(fill=fill),
        crop=240, size=80,
    )  # fmt: skip
    gan = deblender.deblender(replace(chosen.model, seed=seed))
    story = {
        "name": "phantom", "preset": preset, "data": "galaxyzoo", "batch_size": chosen.batch_size,
        "images": len(frames), "rule": "max", "fill": fill,
    }  # fmt: skip
    schedule = replace(chosen.training, seed=seed)
    training.train(gan, fresh, schedule, folder=file.parent, resume=True, experiment=story)
    return file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("galaxyzoo", type=Path)
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()
    frames = experiments.galaxy_zoo_frames(chosen.galaxyzoo)
    for seed in SEEDS:
        for fill in FILLS:
            train_one(fill, seed, frames, chosen.out)


if __name__ == "__main__":
    main()
