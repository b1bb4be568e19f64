"""Commands for machines without a notebook: `python -m galnb check`, `train`, `audit` and `sweep`.

Each returns its exit code; bad input is one sentence on standard error and exit code 2. Chapter: How to run.
"""

import argparse
import contextlib
import csv
import importlib.metadata
import importlib.util
import json
import platform
import sys
from pathlib import Path

_NEEDED = ("galnb", "torch", "numpy", "scikit-image", "matplotlib", "lightning-fabric", "safetensors")


def check() -> int:
    """Check that galnb can work here: versions, data and a short real run; 1 if something does not."""
    cures = {
        _versions: "Install the environment once more: pip install galnb",
        _torch: "Install both together: pip install --force-reinstall torch torchvision",
        _data: "See the page Troubleshooting of the book, or report this output.",
        _run: "Close other programs (2 GiB of free memory suffice), or report this output.",
    }
    failed = []
    for step, cure in cures.items():
        try:
            print("+", step(), flush=True)
        except Exception as error:  # any failure is an answer here
            print(f"! {step.__name__[1:]}: {type(error).__name__}: {error}", flush=True)
            failed.append(cure)
    print(*failed or ["All good."], sep="\n")
    return int(bool(failed))


def _versions() -> str:
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    return ", ".join([found, *(f"{name} {importlib.metadata.version(name)}" for name in _NEEDED)])


def _torch() -> str:
    """Name the device; see that torch and torchvision, if there, are a pair of matching builds."""
    import torch

    found = f"no CUDA GPU; preset 'quick' is made for this CPU ({torch.get_num_threads()} threads)"
    if torch.cuda.is_available():
        found = f"GPU {torch.cuda.get_device_name(0)}"
    if importlib.util.find_spec("torchvision"):
        import torchvision.ops  # a foreign build fails with whatever its first operator meets

        found += f"; torch {torch.__version__}, torchvision {torchvision.__version__}: matching builds"
    return found


def _data() -> str:
    """Read the galaxies that come with scikit-image, and the radio galaxies if they are installed."""
    from galnb import images

    found = f"Hubble Deep Field: {len(images.hubble_deep_field(size=32))} galaxies"
    if importlib.util.find_spec("firstgalaxydata"):
        found += f"; FIRST: {len(images.first_radio(limit=20))} of the radio galaxies read"
    return found


def _run() -> str:
    """Blend real galaxies, train a tiny GAN on them, take a blend apart and explain the discriminator."""
    from galnb import images, relevance, training
    from galnb.blending.batches import blend_batches
    from galnb.gans import deblender

    batches = blend_batches(images.hubble_deep_field(size=32, limit=24).pixels, batch_size=4, seed=0)
    sizes = {"width": 8, "root_blocks": 1, "branch_blocks": 1, "discriminator_width": 8, "dense": 16}
    gan = deblender.deblender(deblender.DeblenderConfig(size=32, discriminator_norm="group", **sizes))
    training.train(gan, batches, training.TrainingConfig(steps=12, learning_rate=1e-3))
    drawn = deblender.deblend(gan, batches(10_000)["blended"])[:, 0]
    maps = relevance.polarized_relevance(gan.discriminator.cpu(), gan.prepare(drawn))
    if not (drawn.isfinite().all() and maps.positive.isfinite().all()):
        raise FloatingPointError("a network gave numbers that are not finite")
    return "blended, trained, deblended, explained"


def train(what: str, preset: str, folder: str, **options: object) -> int:
    """Train one of the book's GANs, or that of a .toml file, as its preset says."""
    from galnb.training import experiments

    target = folder or f"runs/{Path(what).stem}"
    history = experiments.run(what, preset, folder=target, **options)
    print(f"{len(history.steps)} steps done; checkpoints are in {target}")
    return 0


def audit(source: str, out: str) -> int:
    """Audit images, write `audit.json` and `audit.html`; 1 if something serious was found."""
    from galnb.files import write_atomically
    from galnb.phantom.auditing import audit as run

    report, target = run(source), Path(out)
    for name, text in (("audit.json", report.to_json()), ("audit.html", report.to_html())):
        write_atomically(target / name, text.encode())
    for name, why in report.unreadable.items():
        print(f"left out {name}: {why}")
    counts = ", ".join(f"{n} {kind}" for kind, n in report.counts.items()) or "clean"
    serious = "; something serious was found" if report.serious else ""
    print(f"{len(report.names)} images; {counts}{serious}; report: {target / 'audit.html'}")
    return int(report.serious)


def sweep(what: str, grid: list[str], scheduler: str, workers: int, out: str) -> int:
    """Run a notebook or function over a grid, write `table.csv`."""
    from galnb import sweeps

    target, values = Path(out or f"sweeps/{Path(what).stem.replace(':', '.')}"), dict(map(_axis, grid))
    try:
        with sweeps.dask_executor(scheduler) if scheduler else contextlib.nullcontext() as executor:
            rows = sweeps.sweep(what, values, folder=target, executor=executor, workers=workers)
    except RuntimeError as error:  # points that failed: their names, not our stack
        raise ValueError(str(error)) from error
    with open(target / "table.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        table.writeheader()
        table.writerows(rows)
    print(f"{len(rows)} points; table: {target / 'table.csv'}")
    return 0


def _axis(text: str) -> tuple[str, list]:
    name, _, values = text.partition("=")
    if not (name and values):
        raise ValueError(f"--grid got {text!r}; expected NAME=VALUE,VALUE,... such as sigma=0,0.5,1")
    return name.strip(), [_value(value) for value in values.split(",")]


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:  # a text without quotation marks
        return text.strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m galnb", description="Galaxies without a notebook.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="see that everything works here (about 10 seconds)")
    add = commands.add_parser("train", help="train a GAN without a notebook").add_argument
    add("what", help="deblender-bounded, -paper, -sum, lightweight-64, radio-plain, ..., or a .toml file")
    add("--preset", default="laptop", help="quick, laptop or gpu (default: laptop)")
    add("--data", help="hubble, galaxyzoo:FOLDER or, for blends, both with a comma")
    add("--folder", default="", help="where checkpoints go (default: runs/NAME)")
    add("--steps", type=int, help="another number of steps than the preset's")
    add("--resume", action="store_true", help="continue a run that was stopped")
    add("--overwrite", action="store_true", help="replace the run that is in the folder")
    add("--features", help="network of the burn-in loss: efficientnet-lite0 or vgg19")
    add("--start", help="weights to begin with: a shipped name or a checkpoint file")
    add = commands.add_parser("audit", help="look for padding, seams, repeats and their kin").add_argument
    add("source", help="folder of JPEG, PNG or FITS files, a FITS file or an HDF5 file")
    add("--out", default="audit", help="folder of the report (default: audit)")
    add = commands.add_parser("sweep", help="run a notebook or function over a grid").add_argument
    add("what", help="notebook (.ipynb) or module:function")
    add("--grid", nargs="+", action="extend", required=True, metavar="NAME=VALUE,VALUE")
    add("--scheduler", default="", help="a Dask scheduler's tcp://... (default: processes)")
    add("--workers", type=int, default=2, help="local processes (default: 2)")
    add("--out", default="", help="folder of the results (default: sweeps/NAME)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    chosen = vars(_parser().parse_args(arguments))
    command = {"check": check, "train": train, "audit": audit, "sweep": sweep}[chosen.pop("command")]
    try:
        return command(**chosen)
    except ModuleNotFoundError as error:  # sentences of ours name the cure
        print(error if "pip install" in str(error) else f"{error}; pip install galnb", file=sys.stderr)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(error, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
