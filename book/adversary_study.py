"""What does an adversary buy? `python -m book.adversary_study GALAXY_ZOO_FOLDER PHANTOM_FOLDER`.

PHANTOM_FOLDER is the OUT_FOLDER of `book.phantom_study`. There each run comes twice: its generator learns
from the squared error and 1e-3 of the adversarial loss, or ("alone") from the squared error only. Both start
with the same generator, `common`, and see the same blends in the same order. The runs with zeros in empty
corners take the 300 held-out blends apart, half a minute each; what was measured stays beside the run. The
scores: PSNR and SSIM; the Fréchet distance of drawn from true galaxies in the eyes of a feature network; and
fine structure, `fine_structure` below. Differences are paired by seed; an interval needs two pairs, and a
verdict five. `galnb/records/adversary.json`, which is written, is what chapter 04 shows.
"""

import argparse
import datetime
import json
from pathlib import Path

import torch
from scipy import stats

import galnb
from galnb import blending, evaluation, notebook
from galnb.evaluation import distances, metrics
from galnb.files import write_atomically
from galnb.gans import Gan, deblender
from galnb.gans.features import feature_network
from galnb.training import load_checkpoint

RECORD = notebook.RECORDS / "adversary.json"
COUNT = 300  # blends: every held-out galaxy comes first once
FEATURES = "efficientnet-lite0"
FILL, SEEDS = "zeros", range(5)
WAVES = (3.0, 10.0)  # px, of fine structure: finer is pixel noise, coarser is the galaxy's outline


def spectrum(images: torch.Tensor) -> torch.Tensor:
    """Return the complex amplitudes (B, K) of the waves of `WAVES` in the luminance of images (B, C, H, W).

    A Hann window in both directions lets the light end smoothly where the stamp ends.
    """
    light = images.double().mean(1)
    light = light - light.mean((1, 2), keepdim=True)
    height, width = light.shape[-2:]
    window = torch.hann_window(height).double()[:, None] * torch.hann_window(width).double()
    rate = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])  # waves per px
    return torch.fft.rfft2(light * window)[:, (rate > 1 / WAVES[1]) & (rate < 1 / WAVES[0])]


def fine_structure(drawn: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Compare fine structure of drawn and true galaxies (B, C, H, W); medians over the galaxies.

    ``detail``: power drawn over true power, 1 if there is as much of it. ``detail_agrees``: correlation of
    the amplitudes, 1 if it is the same structure in the same places, and 0 if it is invented.
    """
    found, wanted = spectrum(drawn), spectrum(truth)
    power, true_power = (wave.abs().square().sum(1).clamp_min(1e-12) for wave in (found, wanted))
    shared = (found * wanted.conj()).sum(1).real
    return {
        "detail": (power / true_power).median().item(),
        "detail_agrees": (shared / (power * true_power).sqrt()).median().item(),
    }


def measure(gan: Gan, blends: blending.Blends, seen: torch.Tensor, features: torch.nn.Module) -> dict:
    """Score one generator, all galaxies of all blends; `seen` are the features (B, D) of the true ones."""
    drawn, truth = deblender.deblend(gan, blends.blended).flatten(0, 1), blends.galaxies.flatten(0, 1)
    return {
        "psnr": metrics.psnr(drawn, truth, data_range=1).mean().item(),
        "ssim": metrics.ssim(drawn, truth, data_range=1).mean().item(),
        "frechet": distances.frechet_distance(
            distances.embed(drawn, features), seen, features=features
        ).value,
        **fine_structure(drawn, truth),
    }


def kept(file: Path, blends: blending.Blends, *exam) -> dict[str, float]:
    """Return what was measured of the run whose weights are in `file`; measure it first if it was not."""
    place = file.with_name("adversary.json")
    known = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {"blends": 0}
    if known["blends"] != len(blends):
        known = {"blends": len(blends), "scores": measure(load_checkpoint(file).gan, blends, *exam)}
        write_atomically(place, json.dumps(known).encode())
    return known["scores"]


def paired(runs: dict[str, dict[str, dict]]) -> dict[str, list[float]]:
    """Return mean and 95 % interval (Student's t) over seeds of each score, with minus without adversary.

    Nothing for fewer than two pairs.
    """
    pairs, found = [run for run in runs.values() if len(run) == 2], {}
    for key in pairs[0]["with"] if len(pairs) > 1 else ():
        gains = torch.tensor([run["with"][key] - run["without"][key] for run in pairs]).double()
        half = stats.t.ppf(0.975, len(gains) - 1) * gains.std().item() / len(gains) ** 0.5
        found[key] = [gains.mean().item(), gains.mean().item() - half, gains.mean().item() + half]
    return found


def finished(folder: Path) -> dict[str, dict[str, Path]]:
    """Return the files of the arms that have ended, by seed; the arm with an adversary comes first."""
    found = {}
    for seed in SEEDS:
        ends = {"with": f"{FILL}_{seed}", "without": f"{FILL}_{seed}_alone"}
        files = {arm: folder / name / "final.safetensors" for arm, name in ends.items()}
        if files["with"].is_file():
            found[str(seed)] = {arm: file for arm, file in files.items() if file.is_file()}
    if not found:
        wanted = f"at least {FILL}_SEED/final.safetensors; run book.phantom_study first"
        raise FileNotFoundError(f"{folder} has no finished run; expected {wanted}")
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("galaxyzoo", type=Path)
    parser.add_argument("phantom", type=Path)
    chosen = parser.parse_args(arguments)
    ended = finished(chosen.phantom)
    blends = evaluation.held_out_blends(chosen.galaxyzoo, count=COUNT)
    features = feature_network(FEATURES, pooled=True)
    exam = blends, distances.embed(blends.galaxies.flatten(0, 1), features), features
    runs = {seed: {arm: kept(file, *exam) for arm, file in files.items()} for seed, files in ended.items()}
    common = chosen.phantom / "common" / "final.safetensors"
    story = load_checkpoint(next(iter(ended.values()))["with"])
    record = {
        "command": "python -m book.adversary_study GALAXY_ZOO_FOLDER PHANTOM_FOLDER",
        "date": datetime.date.today().isoformat(),
        "versions": {"galnb": galnb.__version__, "torch": torch.__version__},
        "source": f"{COUNT} blends of Galaxy Zoo galaxies that no training saw",
        "features": features.name,
        "waves_px": list(WAVES),
        "steps": story.step,
        "batch_size": story.experiment["batch_size"],
        "reconstruction": story.gan.config.reconstruction,
        "adversarial_weight": story.gan.config.adversarial_weight,
        "start": kept(common, *exam),
        "runs": runs,
        "difference": paired(runs),
    }
    write_atomically(RECORD, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
