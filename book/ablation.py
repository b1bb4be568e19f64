"""What is each choice in `deblender-bounded` worth? `python -m book.ablation GALAXY_ZOO_FOLDER OUT_FOLDER`.

Every variant changes one thing of a small network (a seventh of the weights) and a short run, from each of
three seeds. Training uses the first galaxies by name, scores come from the last 100 before the test set, so
that no choice is made on test data. Each run leaves a JSON file in OUT_FOLDER; those that exist are not
repeated. The table goes to `galnb/records/04_deblender.json`, which chapter 4 shows.
"""

import argparse
import datetime
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

import galnb
from galnb import blending, images, notebook, training
from galnb.blending import batches
from galnb.evaluation import metrics
from galnb.files import write_atomically
from galnb.gans import Gan, deblender
from galnb.training import experiments

RECORD = notebook.RECORDS / "04_deblender.json"
SEEDS, VALIDATION, STEPS, BATCH = (0, 1, 2), 100, 250, 8
SHIPPED = experiments.experiment("deblender-bounded", "laptop")
MODEL = replace(SHIPPED.model, widths=(24, 48, 64, 64), blocks=(1, 1, 1, 1), discriminator_width=8)
TRAINING = replace(
    SHIPPED.training,
    steps=STEPS,
    learning_rate=3e-3,  # what is shorter and smaller must go faster
    warmup=50,
    ema=0.99,
    save_every=STEPS,
    device="cpu",
)
# name: (changes of the model, of the training, of the data)
VARIANTS = {
    "as shipped, but small": ({}, {}, {}),
    "paints instead of sharing": ({"generator": "unet"}, {}, {}),
    "plain squared error": ({"reconstruction": "mse"}, {}, {}),
    "no adversary": ({"adversarial_weight": 0.0}, {}, {}),
    "no running mean": ({}, {"ema": 0.0}, {}),
    "a quarter of the galaxies": ({}, {}, {"share": 0.25}),
    "twice the steps": ({}, {"steps": 2 * STEPS, "save_every": 2 * STEPS}, {}),
}


def score(gan: Gan, blends: blending.Blends) -> dict[str, float]:
    """Return mean PSNR (dB) and SSIM (range 1) over all galaxies of the blends."""
    drawn, truth = deblender.deblend(gan, blends.blended).flatten(0, 1), blends.galaxies.flatten(0, 1)
    return {
        "psnr": metrics.psnr(drawn, truth, data_range=1.0).mean().item(),
        "ssim": metrics.ssim(drawn, truth, data_range=1.0).mean().item(),
    }


def train_variant(name: str, seed: int, frames: torch.Tensor, blends: blending.Blends) -> dict:
    """Train one variant from one seed and score it."""
    model, schedule, data = VARIANTS[name]
    gan = deblender.deblender(replace(MODEL, seed=seed, **model))
    fresh = batches.blend_batches(
        frames[: int(len(frames) * data.get("share", 1))],
        batch_size=BATCH,
        seed=seed,
        crop=240,
        size=80,
    )
    started = time.process_time()
    training.train(gan, fresh, replace(TRAINING, seed=seed, **schedule))
    weights = sum(weight.numel() for weight in gan.generator.parameters())
    return {**score(gan, blends), "cpu_seconds": time.process_time() - started, "weights": weights}


def table(runs: dict[str, list[dict]]) -> dict[str, dict]:
    """Average over seeds; differences are paired by seed with the first variant."""
    base = next(iter(VARIANTS))
    rows = {}
    for name in filter(runs.get, VARIANTS):
        pairs = zip(runs[name], runs[base], strict=True)
        gains = torch.tensor([mine["psnr"] - other["psnr"] for mine, other in pairs])
        values = {key: [run[key] for run in runs[name]] for key in runs[name][0]}
        rows[name] = {
            **{key: sum(found) / len(found) for key, found in values.items()},
            "psnr_of_seeds": values["psnr"],
            "gain_db": gains.mean().item(),
            "gain_spread_db": gains.std().item(),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("galaxyzoo", type=Path)
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    frames = images.galaxy_zoo(chosen.galaxyzoo, size=424, crop=424, split="train", dtype=torch.uint8).pixels
    frames, held_out = frames[:-VALIDATION], frames[-VALIDATION:].float() / 255
    draw = torch.Generator().manual_seed(0)
    blends = blending.make_blends(held_out, generator=draw, crop=240, size=80)
    runs = {}
    for seed in SEEDS:
        for name in VARIANTS:
            file = chosen.out / f"{name.replace(' ', '_')}_{seed}.json"
            if not file.exists():
                found = train_variant(name, seed, frames, blends)
                write_atomically(file, json.dumps(found).encode())
            runs.setdefault(name, []).append(json.loads(file.read_text()))
    content = {
        "ablation": table(runs),
        "seeds": list(SEEDS),
        "steps": STEPS,
        "batch_size": BATCH,
        "galaxies": len(frames),
        "validation_blends": len(blends.blended),
        "source": f"Galaxy Zoo, without the {images.GALAXY_ZOO_TEST} test images",
        "command": "python -m book.ablation GALAXY_ZOO_FOLDER OUT_FOLDER",
        "date": datetime.date.today().isoformat(),
        "versions": {"galnb": galnb.__version__, "torch": torch.__version__},
    }
    write_atomically(RECORD, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
