"""Does the fill reach the discriminator? `python -m book.phantom_study GALAXY_ZOO_FOLDER OUT_FOLDER`.

Fifteen small deblender GANs: three fills (zeros, reflection, sky noise), each from five seeds. Same galaxies,
same warps, same first weights, same order; only the fill differs. The generator paints (`"unet"`) and the
losses are those of Li et al. and of Reiman and Goehre: squared error and 1e-3 times the adversary. Each run
leaves its weights in OUT; those that exist are not repeated, and a run that was stopped goes on.

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
from book import phantom_data, phantom_measure
from galnb import blending, images, notebook, training
from galnb.blending import batches
from galnb.files import write_atomically
from galnb.gans import Gan, deblender
from galnb.gans.losses import discriminator_bce
from galnb.images import turned
from galnb.training import experiments

FILLS, SEEDS = ("zeros", "reflect", "noise"), (0, 1, 2, 3, 4)
RECORD = notebook.RECORDS / "09_phantom_boundary.json"
EXAM_SEED = 2009
JUDGES = (0.0, 0.1, 1.0)  # part of the generator's error in what a judge must call drawn
JUDGE_SEEDS, JUDGE_IMAGES, JUDGE_STEPS, JUDGE_BATCH, JUDGE_RATE = (0, 1, 2), 400, 120, 8, 5e-4


def train_one(fill: str, seed: int, frames: torch.Tensor, folder: Path, preset: str = "laptop") -> Path:
    """Train the networks of one fill and one seed; return the file that holds them."""
    file = folder / f"{fill}_{seed}" / "final.safetensors"
    if file.is_file():
        return file
    chosen = experiments.experiment("phantom", preset)
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


def judge_bank(gan: Gan, frames: torch.Tensor, seed: int) -> tuple[torch.Tensor, ...]:
    """Return second galaxies (B, C, 80, 80) with zeros and with noise, and the errors of drawing them."""
    chosen = torch.randperm(len(frames), generator=torch.Generator().manual_seed(seed))[:JUDGE_IMAGES]
    pair = phantom_measure.same_blends(
        frames[chosen], seed=1000 + seed, fills=("zeros", "noise"), crop=240, size=80
    )
    real, clean = (pair[fill].galaxies[:, 1] for fill in ("zeros", "noise"))
    return real, clean, deblender.deblend(gan, pair["noise"].blended)[:, 1] - clean


def train_judge(gan: Gan, bank: tuple[torch.Tensor, ...], share: float, seed: int) -> Gan:
    """Train a fresh discriminator; real and drawn galaxies share each batch, and so its statistics."""
    judge = deblender.deblender(replace(gan.config, seed=1000 + seed)).discriminator.train()
    optimizer = torch.optim.Adam(judge.parameters(), lr=JUDGE_RATE)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(JUDGE_STEPS):
        chosen = torch.randint(len(bank[0]), (JUDGE_BATCH,), generator=draw)
        turn = int(torch.randint(8, (), generator=draw))
        real, clean, error = (part[chosen] for part in bank)
        images = torch.cat([real, (clean + share * error).clamp(0, 1)])
        real_logits, fake_logits = judge(gan.prepare(turned(images, turn))).chunk(2)
        optimizer.zero_grad()
        discriminator_bce(real_logits, fake_logits).backward()
        optimizer.step()
    return replace(gan, discriminator=judge.eval())


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


def across(values: list[float]) -> list[float]:
    """Return mean and 95 % interval (Student's t) of one number of each seed."""
    found = torch.tensor(values, dtype=torch.float64)
    half = float(stats.t.ppf(0.975, len(found) - 1) * found.std() / len(found) ** 0.5)
    return [float(found.mean()), float(found.mean()) - half, float(found.mean()) + half]


def pool(runs: list):
    """Put mean and interval over the runs in the place of every number of equal dictionaries.

    Runs that have no such number (an empty map has no contrast) are left out; None if fewer than two have.
    """
    known = [run for run in runs if run is not None]
    if len(known) < 2:
        return None
    if isinstance(known[0], dict):
        return {key: pool([run[key] for run in known]) for key in known[0]}
    if isinstance(known[0], list):
        return [pool(list(values)) for values in zip(*known, strict=True)]
    return across(known)


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


def write_record(content: dict, **more) -> None:
    """Write the record: every run, and mean and interval over the seeds."""
    of_fill = {fill: [content["runs"][f"{fill}_{seed}"] for seed in SEEDS] for fill in FILLS}
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
        "fills_of_training": {fill: pool(found) for fill, found in of_fill.items()},
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
    runs, judges = {}, {}
    for seed in SEEDS:
        for fill in FILLS:
            file = train_one(fill, seed, frames, chosen.out)
            gan = training.load_checkpoint(file).gan
            make = partial(phantom_measure.measure, gan, exam, fill)
            runs[f"{fill}_{seed}"] = stored(file.with_name("measured.json"), make) | {
                "on_zeros": stored(
                    file.with_name("on_zeros.json"), partial(phantom_measure.on_zeros, gan, exam)
                )
            }
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
