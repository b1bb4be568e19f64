"""Put the checkpoints of a finished run into the package: `python -m book.ship RUN_FOLDER NAME`.

Weights are stored in half precision, each stage as `NAME@STAGE`, the last one as `NAME`; with `--eight-bits`
generators, of the earlier stages or of all, take half of that, as `save_checkpoint` says. `index.json` then
holds the SHA-256 and the card of every file in `galnb/weights`, and `README.md` the same for people. Every
stage of a deblender carries what its judge is worth on single held-out images: `--galaxyzoo FOLDER` measures
it, and without these figures nothing is written.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open

from book.judge_study import figures_of
from galnb import evaluation
from galnb.files import write_atomically
from galnb.training import Checkpoint, load_checkpoint, save_checkpoint, shipped
from galnb.training.checkpoints import WEIGHTS, shipped_names

PROGRAMS = {
    "phantom": "python -m book.phantom_study GALAXY_ZOO_FOLDER OUT_FOLDER",
    "lightweight-hubble": "python -m book.lightweight_study train GALAXY_ZOO_FOLDER OUT_FOLDER",
}
LARGEST = 6 * 2**20
FIGURES = {"images", "batch_dependent", "auc", "true_called_fake", "drawn_called_real", "cross_entropy"}


def ship(
    folder: Path,
    name: str,
    stages: list[str],
    metrics: dict,
    earlier: torch.dtype = torch.float16,
    last: torch.dtype = torch.float16,
    *,
    galaxyzoo: Path | None = None,
) -> list[Path]:
    """Convert the stages of a run, stored as told, and write them into the package.

    galaxyzoo: folder of Galaxy Zoo images, on whose held-out part the judges of deblenders are measured. A
        `ValueError` names the stage of a deblender that has no figures; then no file is written.
    """
    found = {stage: load_checkpoint(folder / f"{stage}.safetensors") for stage in stages}
    known = {
        stage: judged(checkpoint, metrics if stage == stages[-1] else {}, galaxyzoo, stage)
        for stage, checkpoint in found.items()
    }
    written = []
    for stage, checkpoint in found.items():
        target = WEIGHTS / f"{name}{'' if stage == stages[-1] else '@' + stage}.safetensors"
        save_checkpoint(
            target,
            checkpoint.gan,
            experiment=checkpoint.experiment,
            step=checkpoint.step,
            metrics=known[stage],
            dtype=last if stage == stages[-1] else earlier,
        )
        if target.stat().st_size > LARGEST:
            raise ValueError(f"{target} has {target.stat().st_size / 2**20:.1f} MiB; at most 6 are shipped")
        written.append(target)
    return written


def judged(checkpoint: Checkpoint, metrics: dict, galaxyzoo: Path | None, stage: str) -> dict:
    """Return the metrics with `judge_figures` under "judge"; a deblender without them is a ValueError."""
    if checkpoint.gan.name != "deblender":
        return metrics
    if galaxyzoo is not None:
        metrics = metrics | {"judge": figures_of(checkpoint, galaxyzoo)}
    missing = FIGURES - set(metrics.get("judge", ()))
    if missing:
        raise ValueError(
            f"stage {stage}: its judge has no {', '.join(sorted(missing))}; a deblender is shipped with what "
            "its judge is worth on single held-out images: give --galaxyzoo FOLDER, which measures it"
        )
    return metrics


def card(path: Path) -> dict:
    """Say what is in a file of weights: everything but the hash is read from the file itself."""
    checkpoint = load_checkpoint(path)
    story = checkpoint.experiment
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "generator_bits": 8 if _has_scales(path) else 16,
        "gan": checkpoint.gan.name,
        "generator_weights": sum(weight.numel() for weight in checkpoint.gan.generator.parameters()),
        "discriminator_weights": sum(weight.numel() for weight in checkpoint.gan.discriminator.parameters()),
        "steps": checkpoint.step,
        "planned_steps": story["training"]["steps"],
        "data": story.get("data"),
        "batch_size": story.get("batch_size"),
        "seeds": {"weights": checkpoint.gan.config.seed, "batches": story["training"]["seed"]},
        "command": command(story),
        "metrics": checkpoint.metrics,
    }


def _has_scales(path: Path) -> bool:
    with safe_open(path, framework="pt") as file:
        return any(file.get_slice(name).get_dtype() == "I8" for name in file.keys())  # noqa: SIM118 (not a dict)


def command(story: dict) -> str:
    """Return the command that trains such weights."""
    if story.get("name") in PROGRAMS:
        return PROGRAMS[story["name"]]
    if story.get("data") == "first":
        given = f"--preset {story['preset']} --steps {story['training']['steps']}"
        return f"python -m galnb train {story['name']} {given} --folder runs/{story['name']}"
    data = story.get("data", "hubble").replace("galaxyzoo", "galaxyzoo:FOLDER")
    options = "".join(f"--{key} {story[key]} " for key in ("features", "start") if key in story)
    return (
        f"python -m galnb train {story.get('name')} --preset {story.get('preset')} --data {data} {options}"
        f"--steps {story['training']['steps']} --folder runs/{story.get('name')}"
    )


def write_index() -> None:
    """Describe all shipped weights in `index.json` and `README.md`."""
    cards = {name: card(shipped(name)) for name in shipped_names()}
    write_atomically(WEIGHTS / "index.json", (json.dumps(cards, indent=1) + "\n").encode())
    lines = [
        "# Shipped weights",
        "",
        "Written by `python -m book.ship`. Half precision, some generators in 8 bits;",
        "each file holds both networks and the config that rebuilds them. Deblenders: trained on Galaxy",
        "Zoo images (SDSS; the last 300 by name never used), most also on Hubble stamps from scikit-image.",
        "Radio: trained on the training split of the FIRST images in firstgalaxydata. Lightweight: Galaxy",
        "Zoo without those 300, or Hubble stamps from the left part of the field. No image is in here.",
        "Stages: `NAME@STAGE`, the last one `NAME`.",
        "",
    ]
    for name, about in cards.items():
        lines += [
            f"## {name}",
            "",
            f"* {about['generator_weights']:,} weights draw ({about['generator_bits']} bits), "
            f"{about['discriminator_weights']:,} judge (16 bits); {about['bytes'] / 2**20:.1f} MiB, "
            f"SHA-256 `{about['sha256']}`",
            f"* {about['steps']:,} of {about['planned_steps']:,} steps, batch {about['batch_size']}, "
            f"seeds {about['seeds']}",
            f"* `{about['command']}`",
            *(
                f"* {key}: {evaluation.judge_sentence(value) if key == 'judge' else value}"
                for key, value in about["metrics"].items()
            ),
            "",
        ]
    write_atomically(WEIGHTS / "README.md", "\n".join(lines).encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", help="folder of the run; none: only write the index anew"
    )
    parser.add_argument("name", nargs="?", help="name of the weights, such as deblender-bounded")
    parser.add_argument("--stages", default="early,middle,final")
    parser.add_argument("--metrics", type=json.loads, default={}, help="JSON to keep with the final stage")
    parser.add_argument("--galaxyzoo", type=Path, help="images whose last 300 measure a deblender's judge")
    parser.add_argument(
        "--eight-bits", choices=("earlier", "all"), help="stages whose generator takes 8 bits"
    )
    chosen = parser.parse_args()
    if chosen.folder:
        earlier = torch.int8 if chosen.eight_bits else torch.float16
        last = torch.int8 if chosen.eight_bits == "all" else torch.float16
        stages = chosen.stages.split(",")
        ship(chosen.folder, chosen.name, stages, chosen.metrics, earlier, last, galaxyzoo=chosen.galaxyzoo)
    write_index()


if __name__ == "__main__":
    main()
