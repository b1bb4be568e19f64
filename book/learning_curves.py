"""What does more training bring? `python -m book.learning_curves GALAXY_ZOO_FOLDER PLAN.json`.

PLAN.json lists checkpoints of long trainings, each as a dictionary:

  file      its path, relative to the plan
  network   the curve that it belongs to, such as "deblender-paper"
  before    generator steps of earlier trainings that it went on from
  seconds   of one thread that a step takes
  phase     what the step size did there: "start" (burn-in or warm-up), "full", "falling", "settled" (at zero)

Each takes the same 300 blends of galaxies apart that no training saw, some 20 s of one core; what was found
stays beside it, so that a stopped program goes on. Two lines are fitted to each network, by a rule that was
fixed before any was drawn: PSNR against log2 of the compute, through all "settled" points, and through all
"full" ones. A line needs two points that lie a factor of two apart. The interval is a bootstrap over blends;
what another training would give it does not know, so the two lines, where both exist, say more about how far
to trust an extrapolation. The record is `galnb/records/learning_curves.json`, which chapter 05 shows.
"""

import argparse
import datetime
import hashlib
import json
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import galnb
from galnb import blending, evaluation, notebook
from galnb.evaluation import metrics
from galnb.files import write_atomically
from galnb.gans import Gan, deblender
from galnb.training import load_checkpoint

RECORD = notebook.RECORDS / "learning_curves.json"
COUNT = 300  # blends: every held-out galaxy comes first once
TARGET = 34.61  # dB, reported by Reiman & Goehre 2019
PHASES = ("start", "full", "falling", "settled")
FITTED = ("settled", "full")
SPAN = 2.0  # least factor of compute between the ends of a line
FARTHEST = 100  # log2 of operations that nobody will ever spend
DRAWS = 2000
TRAINING = 3  # passes: one forward, and two backward, to the weights and to the layer before


def operations(gan: Gan, blended: torch.Tensor) -> int:
    """Count the floating-point operations of taking one blend (1, C, H, W) apart."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        gan.generator(gan.prepare(blended))
    return counter.get_total_flops()


def kept(file: Path, gan: Gan, blends: blending.Blends) -> tuple[torch.Tensor, float]:
    """Return the PSNR (B,) in dB of each blend, mean of its galaxies, and the mean SSIM (range 2).

    Both stay in a JSON file beside the checkpoint, so that what was stopped goes on.
    """
    place = file.with_suffix(".json")
    if not place.is_file() or len(json.loads(place.read_text())["psnr"]) != len(blends):
        drawn, truth = deblender.deblend(gan, blends.blended), blends.galaxies
        found = {
            "psnr": metrics.psnr(drawn, truth, data_range=1).mean(1).tolist(),
            "ssim_range_2": metrics.ssim(drawn, truth, data_range=2).mean().item(),
        }
        write_atomically(place, json.dumps(found).encode())
    found = json.loads(place.read_text())
    return torch.tensor(found["psnr"]), found["ssim_range_2"]


def measure(point: dict, folder: Path, blends: blending.Blends) -> tuple[dict, torch.Tensor]:
    """Return what one checkpoint reached, and the PSNR (B,) in dB of each blend, mean of its galaxies."""
    if set(point) != {"file", "network", "before", "seconds", "phase"} or point["phase"] not in PHASES:
        wanted = f"file, network, before, seconds, and phase, one of {', '.join(PHASES)}"
        raise ValueError(f"the plan has {point!r}; expected {wanted}")
    file = folder / point["file"]
    checkpoint = load_checkpoint(file)
    decibel, structure = kept(file, checkpoint.gan, blends)
    steps = point["before"] + checkpoint.step
    seen = steps * checkpoint.experiment["batch_size"]
    found = {
        "steps": steps,
        "blends": seen,
        "hours": steps * point["seconds"] / 3600,
        "operations": TRAINING * operations(checkpoint.gan, blends.blended[:1]) * seen,
        "phase": point["phase"],
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "weights": sum(weight.numel() for weight in checkpoint.gan.generator.parameters()),
        "psnr": decibel.mean().item(),
        "ssim_range_2": structure,
    }
    return found, decibel


def resampled(scores: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    """Return means (draws, P) of scores (P, B) over blends drawn again, the same ones for all points."""
    count = scores.shape[1]
    picked = torch.randint(count, (DRAWS, count), generator=generator)
    weights = torch.zeros(DRAWS, count).scatter_add_(1, picked, torch.ones(DRAWS, count)) / count
    return weights @ scores.T.float()


def limits(values: torch.Tensor) -> list[float]:
    """Return the 2.5th and the 97.5th percentile; infinity counts, so that an open end stays open."""
    ordered = values.sort().values
    return [ordered[round(level * (len(ordered) - 1))].item() for level in (0.025, 0.975)]


def line(compute: torch.Tensor, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit means (draws, P) in dB by log2 of compute (P,); return the slope per doubling and the height."""
    place = compute.double().log2()
    away = place - place.mean()
    slope = (means.double() @ away) / away.square().sum()
    return slope, means.double().mean(-1) - slope * place.mean()


def extrapolate(points: list[dict], means: torch.Tensor, target: float = TARGET) -> dict | None:
    """Fit points, with means (1 + draws, P) of which row 0 is the best guess; None if they span too little.

    ``height``: PSNR on the line at one operation, in dB. ``operations``: what would reach the target, with
    its interval; None: this line does not get there.
    """
    compute = torch.tensor([float(point["operations"]) for point in points], dtype=torch.float64)
    if len(points) < 2 or compute.max() < SPAN * compute.min():
        return None
    slope, height = line(compute, means)
    needed = torch.where(slope > 0, (target - height) / slope, torch.inf)  # log2
    ends = [value if value < FARTHEST else None for value in [needed[0].item(), *limits(needed[1:])]]
    return {
        "points": len(points),
        "db_per_doubling": [slope[0].item(), *limits(slope[1:])],
        "height": height[0].item(),
        "target": target,
        "operations": [None if value is None else 2**value for value in ends],
    }


def curve(plan: list[dict], folder: Path, blends: blending.Blends) -> dict:
    """Measure the points of one network in the order of their steps, and draw the lines through them."""
    both = sorted((measure(point, folder, blends) for point in plan), key=lambda pair: pair[0]["steps"])
    points, scores = [pair[0] for pair in both], torch.stack([pair[1] for pair in both])
    means = resampled(scores, generator=torch.Generator().manual_seed(0))
    for point, drawn in zip(points, means.T, strict=True):
        point["psnr"] = [point["psnr"], *limits(drawn)]
    means, lines = torch.cat([scores.mean(1)[None], means]), {}
    for phase in FITTED:
        chosen = [index for index, point in enumerate(points) if point["phase"] == phase]
        lines[phase] = extrapolate([points[index] for index in chosen], means[:, chosen])
    return {"points": points, "lines": lines}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("galaxyzoo", type=Path)
    parser.add_argument("plan", type=Path)
    chosen = parser.parse_args(arguments)
    plan = json.loads(chosen.plan.read_text(encoding="utf-8"))
    blends = evaluation.held_out_blends(chosen.galaxyzoo, count=COUNT)
    names = dict.fromkeys(point["network"] for point in plan)
    record = {
        "command": "python -m book.learning_curves GALAXY_ZOO_FOLDER PLAN.json",
        "date": datetime.date.today().isoformat(),
        "versions": {"galnb": galnb.__version__, "torch": torch.__version__},
        "source": f"{COUNT} blends of Galaxy Zoo galaxies that no training saw",
        "networks": {
            name: curve([point for point in plan if point["network"] == name], chosen.plan.parent, blends)
            for name in names
        },
    }
    write_atomically(RECORD, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
