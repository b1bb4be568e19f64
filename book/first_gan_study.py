"""The student report's trainings in small. `python -m book.first_gan_study GALAXY_ZOO_FOLDER OUT_FOLDER`.

Galaxies are the central 240 px of Galaxy Zoo images at 32 px; the last 300 names judge and never teach. Every
training leaves a JSON file in OUT_FOLDER, those that exist are not repeated, and whatever is there makes the
record `galnb/records/03_first_gan.json`:

    runs: [{group, name, seed, rate, batch, images, steps, epochs, loss: [generator, means of 20 steps],
        judge: [the same of the discriminator], final (last tenth), largest (of a single step),
        rank (Spearman's rank correlation of ten means with time), at: {step: {distance, spread}}}]
    pipeline: [{kind, seed, at: {step: {way: {psnr, ssim, removed, other, follows, follows_other, own}}},
        drawn: {step: {distance, spread}}}]
    floors: {distance, spread, black, pairs, ways: {"segment": {...}, "black": {...}},
        lost: [share of light that the first and the second galaxy lose, medians]}
    sheets: {name: JPEG in base64, rows are steps, columns drawings from the same noise}

`distance` is the energy distance between 300 drawings and the 300 test galaxies, `spread` the mean distance
of two drawings over that of two galaxies. A *way* is what a generator was given: noise-trained ones get the
segment as it is ("as is") or shifted and scaled to the mean and variance of their noise ("scaled").
"""

import argparse
import base64
import datetime
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from scipy import stats

import galnb
from galnb import blending, images, notebook, training
from galnb.blending import batches
from galnb.evaluation import metrics
from galnb.files import write_atomically
from galnb.gans import Batch, Gan, in_batches, to_signed, vanilla

RECORD = notebook.RECORDS / "03_first_gan.json"
SIZE, CROP, WIDTH, LATENT = 32, 240, 16, 64
SHIFT, NOISE = round(50 * SIZE / CROP), 0.1  # the report's 50 px; noise as in chapter 2
SEEDS = (0, 1, 2)
IMAGES = 1_000  # the report's first set
MILD = (0.5, 0.999)  # less momentum than Adam's usual 0.9 (Radford et al. 2016)


def rates(rate: float, discriminator: float | None = None, betas=(0.9, 0.999)) -> dict:
    """Return the settings of Adam for both networks."""
    return {"learning_rate": rate, "discriminator_learning_rate": discriminator or rate, "betas": betas}


# group, name, settings of Adam, images per batch, images, steps
RUNS = [
    ("report", "0.003, batch 100", rates(3e-3), 100, IMAGES, 120),
    ("report", "0.003, batch 10", rates(3e-3), 10, IMAGES, 400),
    ("report", "0.005, batch 10", rates(5e-3), 10, IMAGES, 400),
    ("report", "0.006, batch 10", rates(6e-3), 10, IMAGES, 400),
    ("report", "0.006, batch 100", rates(6e-3), 100, IMAGES, 120),
    ("cure", "0.0002", rates(2e-4), 10, IMAGES, 400),
    ("cure", "0.0002, less momentum", rates(2e-4, betas=MILD), 10, IMAGES, 400),
    ("cure", "0.001, less momentum", rates(1e-3, betas=MILD), 10, IMAGES, 400),
    ("cure", "0.006, less momentum", rates(6e-3, betas=MILD), 10, IMAGES, 400),
    ("cure", "0.006, discriminator 0.0002", rates(6e-3, 2e-4), 10, IMAGES, 400),
    ("few", "100 images", rates(1e-3, betas=MILD), 10, 100, 400),
    ("minimax", "minimax", rates(1e-3, betas=MILD), 10, IMAGES, 400),
]
LONG = [
    ("long", "0.006, batch 10, long", rates(6e-3), 10, IMAGES, 2_400),
    ("long", "0.001, batch 16, long", rates(1e-3, betas=MILD), 16, 0, 2_400),
]
KINDS = {
    "noise": ({"latent": 0}, rates(1e-3, betas=MILD)),
    "condition": ({"condition": True}, rates(1e-3, 5e-4, MILD)),
    "condition and pixels": ({"condition": True, "pixel_weight": 100.0}, rates(1e-3, 2e-4, MILD)),
}
PIPELINE_STEPS, PIPELINE_BATCH = 1_000, 8


@cache
def galaxies(folder: str, split: str) -> torch.Tensor:
    """Read a split of Galaxy Zoo once."""
    return images.galaxy_zoo(folder, size=SIZE, crop=CROP, split=split).pixels


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """Return the energy distance of two sets of images and the mean distance within the first.

    Distances are root-mean-square differences of pixels; 2 E|A - B| - E|A - A'| - E|B - B'| is 0 for equal
    distributions (Szekely and Rizzo 2013).
    """
    a, b = _flat(a), _flat(b)
    across, (in_a, in_b) = torch.cdist(a, b).mean(), (torch.pdist(x).mean() for x in (a, b))
    return (2 * across - in_a - in_b).item(), in_a.item()


def quality(gan: Gan, test: torch.Tensor) -> dict[str, float]:
    """Compare as many drawings as there are test galaxies with them."""
    drawn = vanilla.generate(gan, len(test), generator=torch.Generator().manual_seed(300))
    distance, within = energy_distance(drawn, test)
    return {
        "distance": round(distance, 5),
        "spread": round(within / torch.pdist(_flat(test)).mean().item(), 4),
    }


def _flat(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.flatten(1) / pixels[0].numel() ** 0.5


def sheet(rows: list[torch.Tensor]) -> str:
    """Return rows of drawings (steps, B, 3, S, S) as a JPEG in base64."""
    pixels = torch.cat([torch.cat(list(row), -1) for row in rows], -2)
    array = (pixels.movedim(0, -1) * 255).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(
        file, "JPEG", quality=95, subsampling=0
    )  # noise makes a PNG three times as large
    return base64.b64encode(file.getvalue()).decode()


def train_from_noise(folder: str, group, name, adam, batch, count, steps, seed) -> dict:
    """Train one generator from a random vector and describe its losses and drawings."""
    pixels, test = galaxies(folder, "train")[: count or None], galaxies(folder, "test")
    chosen = "minimax" if group == "minimax" else "non_saturating"
    gan = vanilla.vanilla(vanilla.VanillaConfig(SIZE, WIDTH, LATENT, generator_loss=chosen, seed=seed))
    moments, at, rows = [steps // part for part in (40, 16, 8, 4, 2, 1)], {}, []

    def watch(step: int, losses: dict, kept: Gan) -> None:
        if step + 1 in moments:
            at[step + 1] = quality(gan, test)
            rows.append(vanilla.generate(gan, 10, generator=torch.Generator().manual_seed(1)))

    config = training.TrainingConfig(steps, schedule="constant", device="cpu", seed=seed, **adam)
    feed = batches.image_batches(pixels, batch_size=batch, seed=seed)
    losses = training.train(gan, feed, config, callback=watch).losses
    loss, judge = (torch.tensor(losses[f"{part}/total"]) for part in ("generator", "discriminator"))
    tenths = loss.view(10, -1).mean(1).tolist()
    return {
        "group": group, "name": name, "seed": seed, "rate": adam["learning_rate"], "batch": batch,
        "images": len(pixels), "steps": steps, "epochs": steps * batch / len(pixels),
        "loss": every_20(loss), "judge": every_20(judge), "final": tenths[-1],
        "largest": loss.max().item(),
        "rank": float(stats.spearmanr(range(10), tenths).statistic),
        "at": at, "sheet": sheet(rows) if group == "long" else None,
    }  # fmt: skip


def every_20(values: torch.Tensor) -> list[float]:
    """Return the mean of every 20 steps."""
    return [round(value, 4) for value in values.view(-1, 20).mean(1).tolist()]


def pairs(pixels: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Blend by the report's rule and cut apart again: segments, true galaxies, and where they lost pixels.

    Each (2 B, ...), first and second galaxy in turn. The empty strip beside the second counts as no loss.
    """
    blends = blending.fixed_shift_blends(pixels, shift=SHIFT, generator=generator)
    segments = blending.segment(blends, noise=NOISE, generator=generator)
    light = blends.galaxies.mean(2, keepdim=True)
    gone = (light < light.amax(1, keepdim=True)) & blends.footprints
    return segments.flatten(0, 1), blends.galaxies.flatten(0, 1), gone.flatten(0, 1)


def pair_batches(pixels: torch.Tensor, *, batch_size: int, seed: int) -> Callable[[int], Batch]:
    """Draw fresh pairs for every step; all of a batch are turned alike."""

    def feed(index: int) -> Batch:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        chosen = pixels[torch.randperm(len(pixels), generator=generator)[: batch_size // 2]]
        turn = int(torch.randint(8, (), generator=generator))
        segments, truth, _ = pairs(images.turned(chosen, turn), generator)
        return {"images": truth, "condition": segments}

    return feed


def follow(outputs: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Correlate the luminance of each output with that of its segment, pixel by pixel: (B,)."""
    a, b = (x.mean(1).flatten(1) for x in (outputs, segments))
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-9)


def score(
    outputs: torch.Tensor, segments: torch.Tensor, truth: torch.Tensor, gone: torch.Tensor
) -> dict[str, float]:
    """Score what was made of segments; what belongs to another galaxy is the control.

    `removed` is the PSNR in the removed pixels alone, `other` the PSNR against the truth of another galaxy,
    `follows` the correlation with the segment and `follows_other` with another one, `own` the share of
    outputs whose nearest galaxy, of all, is their own.
    """
    error = ((outputs - truth).square() * gone).sum((1, 2, 3)) / (3 * gone.sum((1, 2, 3)).clamp_min(1))
    some = gone.any(3).any(2)[:, 0]
    # exact, so that a galaxy that stands in two blends is equally far twice
    far = torch.cdist(_flat(outputs), _flat(truth), compute_mode="donot_use_mm_for_euclid_dist")
    other = torch.arange(len(truth)).roll(2)  # the same place in the blend, another galaxy
    return {
        key: round(float(values.float().mean()), 4)
        for key, values in {
            "psnr": metrics.psnr(outputs, truth, data_range=1.0).clamp(max=60),
            "ssim": metrics.ssim(outputs, truth, data_range=1.0),
            "removed": -10 * error[some].clamp_min(1e-6).log10(),
            "other": metrics.psnr(outputs, truth[other], data_range=1.0),
            "follows": follow(outputs, segments),
            "follows_other": follow(outputs, segments[other]),
            "own": far.diagonal() <= far.amin(1),
        }.items()
    }


def give(gan: Gan, segments: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what the generator makes of segments, for each way to give them."""
    given = to_signed(segments)
    ways = {"as is": given}
    if not gan.config.condition:
        ways["scaled"] = (given - given.mean((1, 2, 3), keepdim=True)) / given.std((1, 2, 3), keepdim=True)
    return {way: in_batches(gan.generator, inputs, batch=len(inputs)) for way, inputs in ways.items()}


def test_pairs(folder: str) -> tuple[torch.Tensor, ...]:
    """Return the pairs that every generator is judged on."""
    return pairs(galaxies(folder, "test"), torch.Generator().manual_seed(2019))


def train_for_segments(folder: str, kind: str, seed: int) -> dict:
    """Train one generator of image-shaped input and give it the test segments now and then."""
    sizes, adam = KINDS[kind]
    pixels, test = galaxies(folder, "train"), galaxies(folder, "test")
    segments, truth, gone = test_pairs(folder)
    gan = vanilla.vanilla(vanilla.VanillaConfig(SIZE, WIDTH, seed=seed, **sizes))
    at, drawn = {}, {}

    def watch(step: int, losses: dict, kept: Gan) -> None:
        if step + 1 in (PIPELINE_STEPS // 10, PIPELINE_STEPS // 4, PIPELINE_STEPS // 2, PIPELINE_STEPS):
            at[step + 1] = {
                way: score(made, segments, truth, gone) for way, made in give(gan, segments).items()
            }
            if not gan.config.condition:
                drawn[step + 1] = quality(gan, test)

    config = training.TrainingConfig(PIPELINE_STEPS, schedule="constant", device="cpu", seed=seed, **adam)
    if gan.config.condition:
        feed = pair_batches(pixels, batch_size=PIPELINE_BATCH, seed=seed)
    else:
        feed = batches.image_batches(pixels, batch_size=PIPELINE_BATCH, seed=seed)
    training.train(gan, feed, config, callback=watch)
    return {"kind": kind, "seed": seed, "at": at, "drawn": drawn}


def floors(folder: str) -> dict:
    """Score what knows nothing: real galaxies against real ones, the segments themselves, black pictures."""
    train, test = galaxies(folder, "train"), galaxies(folder, "test")
    segments, truth, gone = test_pairs(folder)
    sky = truth.flatten(2).quantile(0.25, dim=2)[..., None, None]
    light = (truth - sky).clamp_min(0)
    lost = ((light * gone).sum((1, 2, 3)) / light.sum((1, 2, 3))).view(-1, 2).median(0).values
    distance, within = energy_distance(train[: len(test)], test)
    return {
        "distance": distance,
        "black": energy_distance(torch.zeros_like(test), test)[0],
        "spread": within / torch.pdist(_flat(test)).mean().item(),
        "ways": {
            "segment": score(segments, segments, truth, gone),
            "black": score(torch.zeros_like(truth), segments, truth, gone),
        },
        "lost": lost.tolist(),
        "pairs": len(truth),
    }


def kept(file: Path, make: Callable[[], dict]) -> dict:
    """Read a result, or make it and keep it."""
    if not file.is_file():
        write_atomically(file, json.dumps(make()).encode())
    return json.loads(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("galaxy_zoo")
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--only", default="", help="train what begins with this: run, pipeline, or - for nothing"
    )
    chosen = parser.parse_args()
    folder, out = chosen.galaxy_zoo, chosen.out
    out.mkdir(parents=True, exist_ok=True)
    tasks = {}
    for seed in SEEDS:
        for kind in KINDS:
            tasks[f"pipeline {kind} {seed}"] = (train_for_segments, kind, seed)
        for setting in RUNS:
            tasks[f"run {setting[1]} {seed}"] = (train_from_noise, *setting, seed)
        for setting in LONG if seed == 0 else ():
            tasks[f"run {setting[1]}"] = (train_from_noise, *setting, seed)
    files = {out / f"{name.replace(',', '').replace(' ', '_')}.json": task for name, task in tasks.items()}
    results = {
        file: kept(file, lambda task=task: task[0](folder, *task[1:]))
        for file, task in files.items()
        if file.is_file() or file.name.startswith(chosen.only)
    }
    runs = [result for file, result in results.items() if file.name.startswith("run_")]
    content = {
        "source": "Galaxy Zoo, the central 240 px at 32 px; 1,400 galaxies teach, 300 judge",
        "command": "python -m book.first_gan_study GALAXY_ZOO_FOLDER OUT_FOLDER",
        "date": datetime.date.today().isoformat(),
        "versions": {"galnb": galnb.__version__, "torch": torch.__version__},
        "settings": {"size": SIZE, "width": WIDTH, "latent": LATENT, "shift": SHIFT, "noise": NOISE},
        "floors": floors(folder),
        "sheets": {run["name"]: run["sheet"] for run in runs if run["group"] == "long"},
        "runs": [{key: value for key, value in run.items() if key != "sheet"} for run in runs],
        "pipeline": [result for file, result in results.items() if file.name.startswith("pipeline_")],
    }
    write_atomically(RECORD, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
