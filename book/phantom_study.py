"""Does the fill reach the discriminator? `python -m book.phantom_study GALAXY_ZOO_FOLDER OUT_FOLDER`.

Thirty small deblender GANs: three fills (zeros, reflection, sky noise), each from five seeds, with and
without adversary (`book.phantom_training`). All start with one common generator; same galaxies, same
warps, same order; only the fill differs. The generator paints (`"unet"`), the losses are those of Li et al.
and of Reiman and Goehre: squared error and 1e-3 times the adversary. Each run leaves its weights in OUT;
those that exist are not repeated, and a run that was stopped goes on.

All are then measured on the 300 test images (`book.phantom_measure`), and so are judges: discriminators that
learn alone, to tell galaxies with a zero fill from drawings that lie between the same galaxies without the
frame and what the generator makes of them. Last come the fills themselves and audits of two sets of images.
Each part leaves a JSON file in OUT; together they are `galnb/records/09_phantom_boundary.json`.
"""

import argparse
import datetime
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from scipy import stats

import galnb
from book import phantom_data, phantom_measure, phantom_training
from book.phantom_training import FILLS
from galnb import images, notebook, training
from galnb.files import write_atomically
from galnb.gans import Gan, deblender

SEEDS = (0, 1, 2, 3, 4)
RECORD = notebook.RECORDS / "09_phantom_boundary.json"
EXAM_SEED = 2009
JUDGES = (0.0, 0.1, 1.0)  # part of the generator's error in what a judge must call drawn
JUDGE_SEEDS, JUDGE_IMAGES, JUDGE_STEPS = (0, 1, 2), 400, 600
BOUNDED = {"auc", "auc_apart", "accuracy", "p_real", "p_drawn", "paired", "share_in_fill"}  # in [0, 1]


def judge_bank(gan: Gan, frames: torch.Tensor, seed: int) -> tuple[torch.Tensor, ...]:
    """Return second galaxies (B, C, 80, 80) with zeros and with noise, and the errors of drawing them."""
    chosen = torch.randperm(len(frames), generator=torch.Generator().manual_seed(seed))[:JUDGE_IMAGES]
    pair = phantom_measure.same_blends(
        frames[chosen], seed=1000 + seed, fills=("zeros", "noise"), crop=240, size=80
    )
    real, clean = (pair[fill].galaxies[:, 1] for fill in ("zeros", "noise"))
    return real, clean, deblender.deblend(gan, pair["noise"].blended)[:, 1] - clean


def train_judge(gan: Gan, bank: tuple[torch.Tensor, ...], share: float, seed: int) -> Gan:
    """Train a fresh discriminator; what it must call drawn has this share of the generator's error."""
    fresh = deblender.deblender(replace(gan.config, seed=1000 + seed)).discriminator
    judge = replace(gan, discriminator=fresh)
    real, clean, error = bank
    phantom_training.learn_alone(judge, (real, clean, share * error), JUDGE_STEPS, seed)
    return judge


def measure_judge(judge: Gan, exam: phantom_measure.Exam, share: float) -> dict:
    """Measure a judge as a discriminator of the study, against drawings of its own kind."""
    clean = exam.blends["noise"].galaxies[:, 1]
    error = deblender.deblend(judge, exam.blends["noise"].blended)[:, 1] - clean
    drawn = torch.stack([exam.blends["noise"].galaxies[:, 0], (clean + share * error).clamp(0, 1)], 1)
    return {
        "judgement": phantom_measure.judgement(judge, drawn, exam, "zeros"),
        "probe": phantom_measure.probe(judge, exam),
        "relevance": phantom_measure.relevance(judge, exam, "zeros"),
    }


def stored(file: Path, make: Callable[[], dict]) -> dict:
    """Return what a JSON file holds; make it first if it is not there."""
    if not file.is_file():
        write_atomically(file, json.dumps(rounded(make(), 6), allow_nan=False).encode())
    return json.loads(file.read_text())


def across(values: list[float], bounded: bool = False) -> list[float]:
    """Return mean and 95 % interval (Student's t) of one number of each seed.

    bounded: of numbers in [0, 1]; the interval is that of arcsin sqrt x, taken back, and lies in [0, 1] too.
    """
    found = torch.tensor(values, dtype=torch.float64)
    scaled = found.clamp(0, 1).sqrt().asin() if bounded else found
    half = float(stats.t.ppf(0.975, len(found) - 1) * scaled.std() / len(found) ** 0.5)
    ends = [float(scaled.mean()) - half, float(scaled.mean()) + half]
    if bounded:
        ends = [math.sin(min(max(end, 0.0), math.pi / 2)) ** 2 for end in ends]
    return [float(found.mean()), *ends]


def pool(runs: list, bounded: bool = False):
    """Put mean and interval over the runs in the place of every number of equal dictionaries.

    Runs that have no such number (an empty map has no contrast) are left out; None if fewer than two have.
    """
    known = [run for run in runs if run is not None]
    if len(known) < 2:
        return None
    if isinstance(known[0], dict):
        return {key: pool([run[key] for run in known], bounded or key in BOUNDED) for key in known[0]}
    if isinstance(known[0], list):
        return [pool(list(values), bounded) for values in zip(*known, strict=True)]
    return across(known, bounded)


def rounded(values, digits: int = 4):
    """Shorten the numbers of a record; what is not a number becomes None."""
    if isinstance(values, dict):
        return {name: rounded(value, digits) for name, value in values.items()}
    if isinstance(values, list):
        return [rounded(value, digits) for value in values]
    if isinstance(values, float):
        return round(values, digits) if math.isfinite(values) else None
    return values


def judge_all(gan: Gan, frames: torch.Tensor, exam: phantom_measure.Exam, seed: int) -> dict[str, dict]:
    """Train and measure the judges of one generator, one per share."""
    bank = judge_bank(gan, frames, seed)
    return {f"{share:g}": measure_judge(train_judge(gan, bank, share, seed), exam, share) for share in JUDGES}


def with_frame_share(found: dict) -> dict:
    """Add what part of the distance between real and drawn galaxies the frame makes up."""
    moved, padded = found["probe"]["logit"], found["judgement"]["padded"]
    apart = padded["logit_real"] - padded["logit_drawn"]
    return found | {"frame_share": (moved["zeros"] - moved["noise"]) / apart if apart else None}


def audits(galaxyzoo: Path, first: Path | None) -> dict:
    """Audit both sets as they lie there, and test stamps with a planted frame."""
    stamps = images.galaxy_zoo(galaxyzoo, split="test").pixels
    found = {"planted": phantom_data.planted(stamps), "Galaxy Zoo": phantom_data.audited(galaxyzoo)}
    return found | ({"FIRST": phantom_data.audited(first)} if first else {})


def measure_run(run: str, gan: Gan, exam: phantom_measure.Exam, folder: Path) -> dict:
    """Measure the networks of a run; without adversary the generator alone, else the judges too."""
    fill, _, *alone = run.split("_")
    if alone:
        return {"quality": phantom_measure.qualities(gan, exam)}
    found = phantom_measure.measure(gan, exam, fill) | {"on_zeros": phantom_measure.on_zeros(gan, exam)}
    game = training.load_checkpoint(folder / "game.safetensors").gan
    drawn = deblender.deblend(game, exam.blends[fill].blended)
    return found | {"in_game": phantom_measure.judgement(game, drawn, exam, fill)}


def write_record(content: dict, **more) -> None:
    """Write the record: every run, and mean and interval over the seeds."""
    runs = content["runs"]
    of_fill = {
        fill + end: pool([runs[f"{fill}_{seed}{end}"] for seed in SEEDS])
        for fill in FILLS
        for end in ("", "_alone")
    }
    of_share = {
        f"{share:g}": [with_frame_share(content["judges"][seed][f"{share:g}"]) for seed in JUDGE_SEEDS]
        for share in JUDGES
    }
    record = {
        "date": datetime.date.today().isoformat(),
        "command": "python -m book.phantom_study GALAXY_ZOO_FOLDER OUT_FOLDER --first FIRST_FOLDER",
        "versions": {"galnb": galnb.__version__, "torch": torch.__version__},
        "source": f"the {images.GALAXY_ZOO_TEST} Galaxy Zoo test images",
        "seeds": list(SEEDS),
        "judge_seeds": list(JUDGE_SEEDS),
        **more,
        "fills_of_training": of_fill,
        "judges": {share: pool(found) for share, found in of_share.items()},
        **{part: content[part] for part in ("boxes", "fills", "audit", "runs")},
    }
    write_atomically(RECORD, (json.dumps(rounded(record)) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("galaxyzoo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--first", type=Path, help="a folder of FIRST images to audit")
    chosen = parser.parse_args()
    whole = {"size": 424, "crop": 424, "dtype": torch.uint8}
    frames = images.galaxy_zoo(chosen.galaxyzoo, split="train", **whole).pixels
    test = images.galaxy_zoo(chosen.galaxyzoo, split="test", **whole).pixels
    exam = phantom_measure.make_exam(test, frames[:2], seed=EXAM_SEED)
    common = phantom_training.train_common(frames, chosen.out)
    runs, judges = {}, {}
    for run in [f"{fill}_{seed}{end}" for end in ("", "_alone") for seed in SEEDS for fill in FILLS]:
        file = phantom_training.train_one(run, frames, common, chosen.out)
        make = partial(measure_run, run, training.load_checkpoint(file).gan, exam, file.parent)
        runs[run] = stored(file.with_name("measured.json"), make)
    for seed in JUDGE_SEEDS:
        gan = training.load_checkpoint(chosen.out / f"zeros_{seed}" / "final.safetensors").gan
        make = partial(judge_all, gan, frames, exam, seed)
        judges[seed] = stored(chosen.out / f"judges_{seed}.json", make)
    content = {
        "runs": runs,
        "judges": judges,
        "boxes": stored(chosen.out / "boxes.json", partial(phantom_data.told_apart, exam.blends)),
        "fills": stored(chosen.out / "fills.json", partial(phantom_data.measure_fills, test)),
        "audit": stored(chosen.out / "audit.json", partial(audits, chosen.galaxyzoo, chosen.first)),
    }
    padded = exam.padding[exam.padding >= phantom_measure.PADDED]
    write_record(content, padded=len(padded), area=float(padded.mean()), images=len(test))


if __name__ == "__main__":
    main()
