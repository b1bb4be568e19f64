"""Commands for machines without a notebook: `python -m galnb check`, `train`, `audit` and `sweep`.

Each returns its exit code; bad input is one sentence on standard error and exit code 2. Chapter: How to run.
"""

import argparse
import contextlib
import csv
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_Outcome = tuple[bool, str, str]  # whether it is fine, what was found, what to do if not
_NEEDED = ("galnb", "torch", "numpy", "scikit-image", "matplotlib", "lightning-fabric", "safetensors")


def check() -> int:
    """Check that galnb can work here: versions, data and a short real run; 1 if something does not."""
    advice = []
    for step in (_versions, _data, _run):
        try:
            outcomes = list(step())
        except Exception as error:  # any failure is an answer here
            outcomes = [(False, f"{step.__name__[1:]}: {type(error).__name__}: {error}", _cure(error))]
        for fine, found, cure in outcomes:
            print("+" if fine else "!", found, flush=True)
            advice += [] if fine else [cure]
    numbered = enumerate(dict.fromkeys(advice), 1)
    print(
        *(["\nWhat to do:", *(f"  {n}. {cure}" for n, cure in numbered)] if advice else ["All good."]),
        sep="\n",
    )
    return 1 if advice else 0


def _versions() -> Iterator[_Outcome]:
    """Name versions and device; see that torch and torchvision are a pair of matching builds."""
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield sys.version_info >= (3, 11), found, "install Python 3.11 or newer and create the environment anew"
    for package in _NEEDED:
        version = _version(package)
        yield bool(version), f"{package} {version or 'is missing'}", f"pip install {package}"
    if not _version("torch"):
        return
    import torch

    threads = torch.get_num_threads()
    gpu = torch.cuda.is_available() and f"GPU {torch.cuda.get_device_name(0)}"
    yield True, gpu or f"no CUDA GPU; preset 'quick' is made for this CPU ({threads} threads)", ""
    if version := _version("torchvision"):
        pair = f"torchvision {version} with torch {_version('torch')}"
        try:
            import torchvision.ops  # noqa: F401

            yield True, f"{pair}: matching builds (VGG19 as a feature network)", ""
        except Exception as error:  # a foreign build fails with whatever its first operator meets
            cure = "install torch and torchvision together: pip install --force-reinstall torch torchvision"
            yield False, f"{pair} do not match ({error})", cure


def _data() -> Iterator[_Outcome]:
    """Read the galaxies that come with scikit-image, and the radio galaxies if they are installed."""
    from galnb import images

    yield True, f"Hubble Deep Field: {len(images.hubble_deep_field(size=32))} galaxies", ""
    if _version("firstgalaxydata"):
        yield True, f"FIRST: {len(images.first_radio(limit=20))} of the radio galaxies read", ""


def _run() -> Iterator[_Outcome]:
    """Blend real galaxies, train a tiny GAN on them, take a blend apart and explain the discriminator."""
    from galnb import images, relevance, training
    from galnb.blending.batches import blend_batches
    from galnb.gans import deblender

    started = time.perf_counter()
    galaxies = images.hubble_deep_field(size=32, limit=24).pixels
    batches = blend_batches(galaxies, batch_size=4, seed=0)
    sizes = {"width": 8, "root_blocks": 1, "branch_blocks": 1, "discriminator_width": 8, "dense": 16}
    gan = deblender.deblender(deblender.DeblenderConfig(size=32, **sizes))
    steps = len(training.train(gan, batches, training.TrainingConfig(steps=12, learning_rate=1e-3)).steps)
    drawn = deblender.deblend(gan, batches(10_000)["blended"])
    device = next(gan.discriminator.parameters()).device
    maps = relevance.polarized_relevance(gan.discriminator, gan.prepare(drawn[:, 0]).to(device))
    fine = bool(drawn.isfinite().all() and maps.positive.isfinite().all())
    found = f"blended, trained {steps} steps, deblended, explained: {time.perf_counter() - started:.0f} s"
    yield fine, found, "a network gave numbers that are not finite; please report this output"


def train(what: str, preset: str, folder: str, **options: object) -> int:
    """Train one of the book's GANs, or that of a .toml file, as its preset says."""
    from galnb.training import experiments

    target = folder or f"runs/{Path(what).stem}"
    history = experiments.run(what, preset, folder=target, **options)
    print(f"{len(history.steps)} steps done; checkpoints are in {target}")
    return 0


def audit(source: str, model: str, out: str) -> int:
    """Audit images, write `audit.json` and `audit.html`; 1 if something serious was found."""
    from galnb.files import write_atomically
    from galnb.phantom.auditing import audit as run
    from galnb.training import load_checkpoint

    report, target = run(source, checkpoint=load_checkpoint(model) if model else None), Path(out)
    for name, text in (("audit.json", report.to_json()), ("audit.html", report.to_html())):
        write_atomically(target / name, text.encode())
    for name, why in report.unreadable.items():
        print(f"left out {name}: {why}")
    counts = ", ".join(f"{n} {kind}" for kind, n in report.counts.items()) or "clean"
    print(f"{len(report.names)} images; {counts}")
    print(f"report: {target / 'audit.html'}" + ("; something serious was found" if report.serious else ""))
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
    name, equals, values = text.partition("=")
    if not (equals and name and values):
        raise ValueError(f"--grid got {text!r}; expected NAME=VALUE,VALUE,... such as sigma=0,0.5,1")
    return name.strip(), [_value(value) for value in values.split(",")]


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:  # a text without quotation marks
        return text.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cure(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"install the environment once more (pip install galnb): the module {error.name} is missing"
    if isinstance(error, MemoryError) or "memory" in str(error):
        return "close other programs; 2 GiB of free memory suffice"
    return "see the page Troubleshooting of the book, or report this output"


_COMMANDS: dict[str, Callable[..., int]] = {"check": check, "train": train, "audit": audit, "sweep": sweep}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m galnb", description="Galaxies that overlap, without a notebook."
    )
    commands = parser.add_subparsers(dest="command", metavar="command")
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
    add("--model", default="", help="checkpoint or shipped name: ask its discriminator too")
    add("--out", default="audit", help="folder of the report (default: audit)")
    add = commands.add_parser("sweep", help="run a notebook or function over a grid").add_argument
    add("what", help="notebook (.ipynb) or module:function")
    add("--grid", nargs="+", action="extend", required=True, metavar="NAME=VALUE,VALUE")
    add("--scheduler", default="", help="a Dask scheduler's tcp://... (default: processes)")
    add("--workers", type=int, default=2, help="local processes (default: 2)")
    add("--out", default="", help="folder of the results (default: sweeps/NAME)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; without one, print the help."""
    parser = _parser()
    chosen = vars(parser.parse_args(arguments))
    name = chosen.pop("command")
    if name is None:
        parser.print_help()
        return 0
    try:
        return _COMMANDS[name](**chosen)
    except ModuleNotFoundError as error:  # sentences of ours name the cure
        print(error if "pip install" in str(error) else f"{error}; {_cure(error)}", file=sys.stderr)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(error, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
