"""Train the small Lightweight GANs of the chapter New galaxies and measure the shipped one.

    python -m book.lightweight_study train GALAXY_ZOO_FOLDER OUT_FOLDER
    python -m book.lightweight_study shipped GALAXY_ZOO_FOLDER OUT_FOLDER
    python -m book.lightweight_study runs GALAXY_ZOO_FOLDER OUT_FOLDER

The first trains one network per row of `RUNS` (some minutes each, continued when called again). The others
measure the shipped `lightweight-64` and those networks, and write their parts of
`galnb/records/13_lightweight_gan.json` and, beside it, of an `.npz` with features of real images and with
generated images. No real image is in either. Stages of `lightweight-64` are read from OUT_FOLDER.
"""

import datetime
import hashlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from galnb import images, notebook, training
from galnb.blending.batches import image_batches
from galnb.evaluation import distances, neighbours
from galnb.files import write_atomically
from galnb.gans import Batch, Gan
from galnb.gans.features import FeatureNetwork, feature_network
from galnb.gans.layers import Augmentation, rotate_hue
from galnb.gans.lightweight import generate, lightweight
from galnb.smearing import gaussian_kernel
from galnb.training import TrainingConfig, train
from galnb.training.experiments import experiment

STEPS, BATCH, FEW = 1_500, 8, 283
COUNT, DRAWS, FORTY, HELD, SHOWN = 300, 20, 40, 150, 12
FEATURES = "efficientnet-lite0"
RECORD = notebook.RECORDS / "13_lightweight_gan.json"
BARE, WITH = Augmentation(hue=0.0, translation=0.0, cutout=0.0), Augmentation()


@dataclass(frozen=True)
class Run:
    """One small training: which images, which augmentation, and whether hue is turned in the data itself."""

    data: str
    count: int = 0
    augmentation: Augmentation = WITH
    hue_in_data: float = 0.0


RUNS = {
    "hubble": Run("hubble"),
    "hubble-bare": Run("hubble", augmentation=BARE),
    "few": Run("galaxyzoo", FEW),
    "few-bare": Run("galaxyzoo", FEW, BARE),
    "all": Run("galaxyzoo"),
    "hue-in-data": Run("galaxyzoo", augmentation=Augmentation(hue=0.0), hue_in_data=0.25),
}


def hubble_halves(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Isolated Hubble stamps left and right of a line in the sky, none that reaches over it."""
    found = images.hubble_deep_field(size=size)
    x = torch.tensor([int(name.split("_")[1]) for name in found.names])
    half = found.record["crop"] // 2
    return found.pixels[x + half <= 650], found.pixels[x - half >= 650]


def training_images(run: Run, folder: str) -> torch.Tensor:
    if run.data == "hubble":
        return hubble_halves()[0]
    return images.galaxy_zoo(folder, size=64, split="train", limit=run.count or None).pixels


def hue_turned(batches: Callable[[int], Batch], share: float) -> Callable[[int], Batch]:
    """Turn the hue of a share of the images before anybody sees them, as the report did."""

    def changed(index: int) -> Batch:
        pixels = batches(index)["images"]
        noise = torch.Generator().manual_seed(10_000_019 + index)
        chosen, turns = torch.rand(2, len(pixels), generator=noise)
        turned = rotate_hue(pixels, turns).clamp(0, 1)
        return {"images": torch.where((chosen < share)[:, None, None, None], turned, pixels)}

    return changed


def train_all(folder: str, out: Path) -> None:
    small = experiment("lightweight-64", "quick")
    config = TrainingConfig(
        steps=STEPS,
        learning_rate=1e-3,
        discriminator_learning_rate=1e-3,
        betas=(0.5, 0.9),
        schedule="late_decay",
        ema=0.995,
        save_every=250,
        stages=(("half", 0.5), ("final", 1.0)),
    )
    for name, run in RUNS.items():
        pixels = training_images(run, folder)
        batches = image_batches(pixels, batch_size=BATCH, seed=0)
        if run.hue_in_data:
            batches = hue_turned(batches, run.hue_in_data)
        story = {"name": f"lightweight-{name}", "data": run.data, "batch_size": BATCH, "images": len(pixels)}
        gan = lightweight(replace(small.model, augmentation=run.augmentation))
        history = train(gan, batches, config, folder=out / name, resume=True, experiment=story)
        print(
            name, len(pixels), {key: round(value[-1], 3) for key, value in history.losses.items()}, flush=True
        )


def distance_table(generated: torch.Tensor, real: dict[str, torch.Tensor], noise: torch.Generator) -> dict:
    """Both distances of generated vectors to the test vectors, beside other real ones at the same count."""
    test, found = real["test"], {}
    for name, distance in (("frechet", distances.frechet_distance), ("kernel", distances.kernel_distance)):
        once = distance(generated[:COUNT], test, features=FEATURES)
        drawn, floor = (
            [
                distance(
                    vectors[torch.randperm(len(vectors), generator=noise)[:COUNT]], test, features=FEATURES
                )
                for _ in range(DRAWS)
            ]
            for vectors in (generated, real["train"])
        )
        found[name] = {
            "value": once.value,
            "interval": [once.low, once.high],
            "floor": float(np.mean([one.value for one in floor])),
            "floor_range": [min(one.value for one in floor), max(one.value for one in floor)],
        }
        if name == "frechet":  # the floor of the kernel distance is zero, give or take
            ratios = sorted(a.value / b.value for a, b in zip(drawn, floor, strict=True))
            found[name] |= {"ratio": float(np.median(ratios)), "ratio_range": [ratios[0], ratios[-1]]}
    return found


def memorised(generated: torch.Tensor, held_out: torch.Tensor, bank: torch.Tensor) -> dict:
    """Nearest training images of generated and of held-out images, each turned and mirrored every way."""
    near = [neighbours.nearest(part, bank, symmetries=True) for part in (generated, held_out)]
    levels = (0.95, 0.99) if len(held_out) >= 100 else (0.95,)
    about: neighbours.Memorisation = neighbours.memorisation(near[0].scores, near[1].scores, levels=levels)
    return {
        "generated": near[0].scores[:, 0].tolist(),
        "held_out": near[1].scores[:, 0].tolist(),
        "fractions": {str(level): list(values) for level, values in about.fractions.items()},
        "suspects": len(about.suspects),
    }


def scores(gan: Gan, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([gan.discriminator(gan.prepare(part))[:, 0] for part in pixels.split(100)])


def preference(higher: torch.Tensor, lower: torch.Tensor) -> float:
    """How often a score of the first kind beats one of the second (AUC); .5 when they are alike."""
    return float((higher[:, None] > lower).double().mean() + 0.5 * (higher[:, None] == lower).double().mean())


def rare_hues(pixels: torch.Tensor) -> float:
    """Share of the light's colour that is green or cyan: hues of 90 to 210 degrees, weighed by chroma."""
    red, green, blue = pixels.unbind(1)
    angle = torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue).rad2deg() % 360
    chroma = pixels.amax(1) - pixels.amin(1)
    chroma = chroma * (pixels.amax(1) > 0.2)
    return float((chroma * ((angle > 90) & (angle < 210))).sum() / chroma.sum())


def blurred(pixels: torch.Tensor, sigma: float = 1.0) -> torch.Tensor:
    weight = gaussian_kernel(sigma, 7).expand(3, 1, -1, -1)
    return functional.conv2d(functional.pad(pixels, [3] * 4, mode="replicate"), weight, groups=3)


def measure_small(run: Run, gan: Gan, pixels: dict, real: dict, network: FeatureNetwork) -> tuple:
    drawn = generate(gan, COUNT, generator=torch.Generator().manual_seed(0))
    halves = hubble_halves() if run.data == "hubble" else (pixels["train"], pixels["test"])
    bank, held_out = halves[0][: run.count or None], halves[1]
    result = {
        "images": len(bank),
        "memorised": memorised(drawn[:FORTY], held_out[:HELD], bank),
        "prefers_training": preference(scores(gan, bank), scores(gan, held_out)),
        "rare_hues": rare_hues(drawn),
    }
    if run.data != "hubble":
        vectors = distances.embed(drawn, network)
        result["frechet"] = distances.frechet_distance(vectors, real["test"], features=FEATURES).value
    return result, drawn[:SHOWN]


def real_images(folder: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], FeatureNetwork]:
    """Pixels and features of both splits of Galaxy Zoo, and the network that saw them."""
    pixels = {split: images.galaxy_zoo(folder, size=64, split=split).pixels for split in ("train", "test")}
    network = feature_network(FEATURES, pooled=True)
    return pixels, {split: distances.embed(found, network) for split, found in pixels.items()}, network


def measure_shipped(folder: str, out: Path) -> None:
    noise = torch.Generator().manual_seed(0)
    pixels, real, network = real_images(folder)
    shipped = training.load_checkpoint("lightweight-64")
    drawn = generate(shipped.gan, 3 * COUNT, generator=torch.Generator().manual_seed(0))
    vectors = distances.embed(drawn, network)
    some, test = pixels["train"][:COUNT], real["test"]
    others = {
        "blurred by 1 px": blurred(some),
        "a quarter turn of hue": rotate_hue(some, torch.full((COUNT,), 0.25)).clamp(0, 1),
        "random pixels": torch.rand(COUNT, 3, 64, 64, generator=noise),
    }

    def frechet(given: torch.Tensor, count: int = COUNT) -> float:
        return distances.frechet_distance(given[-count:], test[:count], features=FEATURES).value

    steps = sorted(out.glob("lightweight-64/step*.safetensors"), key=lambda path: int(path.stem[4:]))
    by_step = {}
    for path in [*steps[::2], training.shipped("lightweight-64")]:
        stage = training.load_checkpoint(path)
        seen = generate(stage.gan, COUNT, generator=torch.Generator().manual_seed(0))
        by_step[str(stage.step)] = frechet(distances.embed(seen, network))
    known, held = scores(shipped.gan, pixels["train"]), scores(shipped.gan, pixels["test"])
    keep(
        {
            "date": datetime.date.today().isoformat(),
            "command": "python -m book.lightweight_study shipped GALAXY_ZOO_FOLDER OUT_FOLDER",
            "weights": hashlib.sha256(training.shipped("lightweight-64").read_bytes()).hexdigest(),
            "steps": shipped.step,
            "count": COUNT,
            "features": FEATURES,
            "distances": distance_table(vectors, real, noise),
            "others": {name: frechet(distances.embed(given, network)) for name, given in others.items()},
            "by_count": {
                str(count): [frechet(given, count) for given in (vectors, real["train"])]
                for count in (40, 75, 150, COUNT)
            },
            "by_step": by_step,
            "memorised": memorised(drawn[:FORTY], pixels["test"][:HELD], pixels["train"]),
            "prefers_training": preference(known, held),
            "real_over_generated": preference(held, scores(shipped.gan, drawn)),
            "rare_hues": {"real": rare_hues(pixels["test"]), "lightweight-64": rare_hues(drawn)},
        },
        {f"features {split}": given[-COUNT:].half().numpy() for split, given in real.items()},
    )


def measure_runs(folder: str, out: Path) -> None:
    pixels, real, network = real_images(folder)
    found, drawn = {}, {}
    for name, run in RUNS.items():
        gan = training.load_checkpoint(out / name / "final.safetensors").gan
        found[name], drawn[name] = measure_small(run, gan, pixels, real, network)
    pictures = {f"drawn {name}": (part * 255).round().byte().numpy() for name, part in drawn.items()}
    keep({"runs": found}, pictures)


def keep(part: dict, arrays: dict) -> None:
    """Put a part of the record and its arrays beside what is there."""
    place = RECORD.with_suffix(".npz")
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    stored = dict(np.load(place)) if place.exists() else {}
    write_atomically(RECORD, (json.dumps(known | _rounded(part), indent=1) + "\n").encode())
    content = io.BytesIO()
    np.savez_compressed(content, **(stored | arrays))
    write_atomically(place, content.getvalue())


def _rounded(value):
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    what, folder, out = sys.argv[1:]
    {"train": train_all, "shipped": measure_shipped, "runs": measure_runs}[what](folder, Path(out))


if __name__ == "__main__":
    main()
