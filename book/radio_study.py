"""Five folds of FIRST: generators, smearing, classifiers. `python -m book.radio_study OUT_FOLDER`.

The 1,758 training images of FIRST are dealt into five blocks, class by class. For each block, two GANs are
trained on the other four: a plain one and one that smears (sigma 1 px, 3 x 3) before its clamp, from the same
seed (the number of the fold). The block itself chooses their checkpoints, class by class; the 200 test images
give the final figures. Two classifiers then learn from the four blocks and from images of the fold's plain
generator in growing proportion. Last, a scan of learning rates on the package's own split.

Every training leaves its file in OUT_FOLDER, those that exist are not repeated, and whatever is there makes
the record `galnb/records/12_systematics.json`:

    folds: [{fold, train, block: {class: number}}]
    generators: [{fold, kind: "plain" | "smeared", smear: "none" | "after 0.5" | "after 1" | "inside 1",
        chosen: {class: step}, block: {class: score}, test: {class: score}, test_old: {class: score}}]
        (`chosen` by the new rule, on the block; `test` its score; `test_old` that of the four checkpoints
        which are best overall on the block)
    floors: {"block" | "test": {class: {median, low, high, count}}}: real training images take the
        generator's place
    classifiers: [{fold, network, ratio, accuracy, brier, "recall FRI", ...}] on the test images
    shipped: [{network, ratio, seed, accuracy, brier, ...}]: the same with the whole training split and the
        images of `radio-plain`, which was trained six times as long
    rates: [{network, learning_rate, seed, curve: [{step, loss, accuracy, brier}], roughness, best, last}]

A score is the mean relative MAE of the three histograms, over as many generated images as there are real ones
and averaged over 200 draws of them, so that it compares with its floor.
"""

import argparse
import datetime
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

import galnb
from galnb import classifiers, images, notebook, smearing, sweeps, training
from galnb.blending import batches
from galnb.files import write_atomically
from galnb.gans import radio
from galnb.smearing.histograms import choose, image_counts, score_counts
from galnb.training import load_checkpoint
from galnb.training.experiments import class_numbers, experiment

RECORD = notebook.RECORDS / "12_systematics.json"
FOLDS, SIZE, STEPS, STAGES = 5, 64, 300, 6
KINDS = {"plain": 0.0, "smeared": 1.0}
SHIPPED = experiment("radio-plain", "laptop")
MODEL = replace(SHIPPED.model, width=8)
TRAINING = replace(
    SHIPPED.training, steps=STEPS, save_every=STEPS // STAGES, device="cpu",
    stages=tuple((f"step{STEPS * part // STAGES}", part / STAGES) for part in range(1, STAGES + 1)),
)  # fmt: skip
SMEARS = {"plain": {"none": 0.0, "after 0.5": 0.5, "after 1": 1.0}, "smeared": {"inside 1": 0.0}}
DRAWN, DRAWS = 300, 200  # images per class and checkpoint; draws of as many of them as there are real ones
RATIOS, WIDE = (0, 1, 2, 3), 92  # 92 px: no empty corner in a crop of 64 px after turning
CLASSIFIER = classifiers.ClassifierConfig(steps=400, every=400)
RATES, RATE_SEEDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3), (0, 1)


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


@cache
def first(split: str, size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Read a split of FIRST once: pixels and class numbers."""
    found = images.first_radio(split=split, size=size)
    return found.pixels, class_numbers(found.labels)


def by_class(values) -> dict:
    """Name the four values of something by their class."""
    return dict(zip(images.RADIO_CLASSES, [round(float(value), 5) for value in values], strict=True))


def checkpoints(out: str, kind: str, fold: int) -> list[Path]:
    """Return the files of one training in the order of their steps."""
    return [Path(out) / f"{kind}_{fold}" / f"{name}.safetensors" for name, _ in TRAINING.stages]


def count_drawn(files: list[Path], sigma: float, seed: int) -> torch.Tensor:
    """Let each checkpoint draw every class, smear what it drew, count: (checkpoints, classes, DRAWN, 287)."""
    blur, counted = smearing.Smear(sigma), []
    for file in files:
        gan, generator = load_checkpoint(file).gan, torch.Generator().manual_seed(seed)
        for label in range(len(images.RADIO_CLASSES)):
            drawn = radio.generate(gan, torch.full((DRAWN,), label), generator=generator)
            counted.append(image_counts(blur(drawn).clamp(0, 1)))
    return torch.stack(counted).unflatten(0, (len(files), -1))


def resampled_scores(
    generated: torch.Tensor, real: torch.Tensor, *, count: int, generator: torch.Generator
) -> torch.Tensor:
    """Score (DRAWS,) counts (N, 287) again and again, each time with `count` other images, without repeats.

    Relative MAE grows where images are few, so two figures compare only at equal numbers of images, and a
    bootstrap, which draws with repeats, would be too large.
    """
    if len(generated) < count or not len(real):
        raise ValueError(f"got {len(generated)} and {len(real)} images; expected at least {count} and 1")
    chosen = torch.rand(DRAWS, len(generated), generator=generator).argsort(1)[:, :count]
    picked = torch.zeros(DRAWS, len(generated)).scatter_(1, chosen, 1.0)
    return score_counts(picked @ generated, real.sum(0)).mean(-1)


def score_classes(generated: list[torch.Tensor], pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Score (classes,) counted images of each class against the real ones, at equal numbers."""
    found, generator = [], torch.Generator().manual_seed(0)
    for label, counts in enumerate(generated):
        real = image_counts(pixels[labels == label])
        scores = resampled_scores(counts, real, count=min(len(real), len(counts)), generator=generator)
        found.append(scores.mean())
    return torch.stack(found)


def score_smear(point: dict) -> dict:
    """Choose the checkpoints of a training on its block, for one way to smear; score them on the test set."""
    pixels, labels = first("train")
    block = deal(labels) == point["fold"]
    files = checkpoints(point["out"], point["kind"], point["fold"])
    sigma = SMEARS[point["kind"]][point["smear"]]
    counts = count_drawn(files, sigma, seed=1)
    scores = torch.stack([score_classes(list(of), pixels[block], labels[block]) for of in counts])
    old, new = choose(scores)
    fresh = count_drawn(files, sigma, seed=2)
    mine = [fresh[number, label] for label, number in enumerate(new.tolist())]
    mixed = [fresh[old, label].flatten(0, 1) for label in range(len(mine))]
    steps = [load_checkpoint(files[number]).step for number in new.tolist()]
    return {
        "chosen": dict(zip(images.RADIO_CLASSES, steps, strict=True)),
        "block": by_class(scores.min(0).values),
        "test": by_class(score_classes(mine, *first("test"))),
        "test_old": by_class(score_classes(mixed, *first("test"))),
    }


def train_and_score(real: tuple, made: torch.Tensor, drawn: torch.Tensor, *, network: str, seed: int) -> dict:
    """Train a classifier on real and generated images (classes `drawn`); score it on the test images."""
    edge = (WIDE - SIZE) // 2
    pixels = torch.cat([real[0], torch.nn.functional.pad(made, (edge,) * 4)])
    config = replace(CLASSIFIER, network=network, seed=seed, balanced=not len(drawn))
    trained, _ = classifiers.train_classifier(
        pixels, torch.cat([real[1], drawn]), first("valid"), config, size=SIZE
    )
    return classifiers.scores(trained, *first("test"))


def balanced_counts(labels: torch.Tensor, ratio: float) -> torch.Tensor:
    """Say how many images of each class (4,) to generate so that all classes become equally frequent.

    labels: (B,), classes of the real images.
    ratio: generated images per real one, 0 or more; their sum is round(ratio B).
    Class total z = (ratio + 1) B / 4, share of class c: (z - n_c) / (ratio B) (Rustige et al. 2023). A class
    that has more than its share already gets none.
    """
    if not ratio >= 0:
        raise ValueError(f"ratio is {ratio}; expected 0 or more generated images per real one")
    counts = torch.bincount(labels, minlength=len(images.RADIO_CLASSES)).double()
    wanted = round(ratio * len(labels))
    short = ((ratio + 1) * len(labels) / len(counts) - counts).clamp_min(0)
    exact = short / short.sum().clamp_min(1e-9) * wanted
    whole = exact.floor()
    for index in (exact - whole).argsort(descending=True)[: int(wanted - whole.sum())]:
        whole[index] += 1
    return whole.long()


def classify(point: dict) -> dict:
    """Train a classifier on the four blocks and on what their generator draws, and score it."""
    (pixels, labels), fold = first("train", WIDE), point["fold"]
    keep = deal(labels) != fold
    real = pixels[keep], labels[keep]
    wanted = balanced_counts(real[1], point["ratio"])
    made, generator = [torch.empty(0, 1, SIZE, SIZE)], torch.Generator().manual_seed(fold)
    for label, step in enumerate(point["steps"].split()):  # no steps: real images alone
        gan = load_checkpoint(Path(point["out"]) / f"plain_{fold}" / f"step{step}.safetensors").gan
        made.append(radio.generate(gan, torch.full((int(wanted[label]),), label), generator=generator))
    drawn = torch.arange(len(wanted)).repeat_interleave(wanted)
    return train_and_score(real, torch.cat(made), drawn, network=point["network"], seed=fold)


def classify_shipped(point: dict) -> dict:
    """Train a classifier on the whole training split and on images of the longest training there is."""
    real, seed = first("train", WIDE), point["seed"]
    wanted = balanced_counts(real[1], point["ratio"])
    drawn = torch.arange(len(wanted)).repeat_interleave(wanted)
    gan, generator = load_checkpoint("radio-plain").gan, torch.Generator().manual_seed(seed)
    made = radio.generate(gan, drawn, generator=generator)
    return train_and_score(real, made, drawn, network=point["network"], seed=seed)


def roughness(curve: list[float]) -> float:
    """Measure how much a curve jumps: root mean square of its second differences / sqrt(6).

    A straight climb has none; independent noise of standard deviation s around it has s.
    """
    second = torch.tensor(curve, dtype=torch.float64).diff(n=2)
    return (second.square().mean() / 6).sqrt().item()


def scan(point: dict) -> dict:
    """Train a classifier at one learning rate and keep its curve on the validation images."""
    rate, seed = point["learning_rate"], point["seed"]
    config = replace(CLASSIFIER, network=point["network"], learning_rate=rate, seed=seed, every=20)
    _, curve = classifiers.train_classifier(*first("train", WIDE), first("valid"), config, size=SIZE)
    accuracy = [entry["accuracy"] for entry in curve]
    return {
        "curve": curve,
        "roughness": roughness(accuracy),
        "best": max(accuracy),
        "last": accuracy[-1],
    }


def floors() -> dict[str, dict]:
    """Score real training images in the generator's place."""
    pixels, labels = first("train")
    block, generator, found = deal(labels) == 0, torch.Generator().manual_seed(0), {}
    sides = {"block": (pixels[~block], labels[~block], pixels[block], labels[block])}
    sides["test"] = (pixels, labels, *first("test"))
    for name, (mine, mine_labels, other, other_labels) in sides.items():
        found[name] = {}
        for label, title in enumerate(images.RADIO_CLASSES):
            real = image_counts(other[other_labels == label])
            scores = resampled_scores(
                image_counts(mine[mine_labels == label]), real, count=len(real),
                generator=generator,
            )  # fmt: skip
            low, median, high = scores.quantile(scores.new_tensor([0.025, 0.5, 0.975])).tolist()
            found[name][title] = {"median": median, "low": low, "high": high, "count": len(real)}
    return found


def measure(out: Path) -> dict:
    """Score and classify with all folds whose two generators are there; each figure is measured once."""
    done = [
        fold
        for fold in range(FOLDS)
        if all(checkpoints(str(out), kind, fold)[-1].is_file() for kind in KINDS)
    ]
    ways = [(kind, smear) for kind, smears in SMEARS.items() for smear in smears]
    points = [
        {"out": str(out), "fold": fold, "kind": kind, "smear": smear} for fold in done for kind, smear in ways
    ]
    generators = sweeps.sweep(score_smear, points, folder=out / "scores", workers=1)
    chosen = {row["fold"]: row["chosen"].values() for row in generators if row["smear"] == "none"}
    points = [
        {"out": str(out), "fold": fold, "network": network, "ratio": ratio,
         "steps": " ".join(map(str, chosen[fold])) if ratio else ""}
        for fold in done for network in classifiers.CLASSIFIERS for ratio in RATIOS
    ]  # fmt: skip
    classified = sweeps.sweep(classify, points, folder=out / "classifiers", workers=1)
    grid = {"network": list(classifiers.CLASSIFIERS), "learning_rate": list(RATES), "seed": list(RATE_SEEDS)}
    rates = sweeps.sweep(scan, grid, folder=out / "rates", workers=1)
    grid = {"network": list(classifiers.CLASSIFIERS), "ratio": list(RATIOS[:3]), "seed": [0, 1, 2]}
    shipped = sweeps.sweep(classify_shipped, grid, folder=out / "shipped", workers=1)
    _, labels = first("train")
    blocks = [labels[deal(labels) == fold] for fold in done]
    counted = [torch.bincount(block, minlength=4) for block in blocks]
    hide = {"out"}
    return {
        "folds": [
            {"fold": fold, "train": len(labels) - len(block), "block": by_class(count)}
            for fold, block, count in zip(done, blocks, counted, strict=True)
        ],
        "generators": [{k: v for k, v in row.items() if k not in hide} for row in generators],
        "floors": floors(),
        "classifiers": [{k: v for k, v in row.items() if k not in hide | {"steps"}} for row in classified],
        "shipped": shipped,
        "rates": rates,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--measure", action="store_true", help="train no generator: measure what is there")
    chosen = parser.parse_args()
    out = chosen.out.resolve()
    if not chosen.measure:
        found = images.first_radio(split="train", size=2 * SIZE)
        for fold in range(FOLDS):
            for kind in KINDS:
                train_generator(fold, kind, found, out)
    content = measure(out) | {
        "settings": {
            "width": MODEL.width, "steps": STEPS, "batch_size": SHIPPED.batch_size, "size": SIZE,
            "sigma": KINDS["smeared"], "drawn": DRAWN, "draws": DRAWS, "classifier_steps": CLASSIFIER.steps,
        },
        "source": "FIRST, training split in five blocks; scores on its test split",
        "command": "python -m book.radio_study OUT_FOLDER",
        "date": datetime.date.today().isoformat(),
        "versions": {"galnb": galnb.__version__, "torch": torch.__version__},
    }  # fmt: skip
    write_atomically(RECORD, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
