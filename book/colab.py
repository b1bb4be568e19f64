"""Run every notebook as Colab would: its versions, only the package installed, a lone copy of the notebook.

python -m book.colab [--python python3.13] [--folder _build/colab] [01 02 ...]

Makes an environment with the versions of `book/colab_versions.txt`, installs galnb there from a wheel with
what the install cell asks for, and looks that nothing was replaced. Each notebook is copied into an empty
folder and run by that environment's kernel. A notebook passes if each of its cells shows the kinds of output
that it shows in the book (run here where `_build` does not hold it yet) and its verdicts are the same.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbclient
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from book.notebooks import INSTALL
from book.run_notebooks import ROOT, notebook_paths, run

VERSIONS = ROOT / "book" / "colab_versions.txt"
CELL_SECONDS = 900


def pins() -> dict[str, str]:
    """Return Colab's version of each package by name."""
    lines = VERSIONS.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def environment(folder: Path, python: str) -> Path:
    """Make the environment, install galnb in it anew from a wheel, and return its Python."""
    inside = folder / "environment" / "bin" / "python"
    if not inside.exists():
        subprocess.run([python, "-m", "venv", folder / "environment"], check=True)
        _pip(inside, "install", "-r", VERSIONS)
    wheels = folder / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    _pip(inside, "wheel", "--no-deps", "--wheel-dir", wheels, ROOT)
    (wheel,) = wheels.glob("galnb-*.whl")
    _pip(inside, "uninstall", "--yes", "galnb")
    extras = re.search(r"galnb\[([\w,]+)\]", INSTALL)[1]
    _pip(inside, "install", f"{wheel}[{extras}]")
    replaced = {name: found for name, found in _installed(inside).items() if pins().get(name, found) != found}
    if replaced:
        raise ValueError(
            f"installing galnb replaced packages of Colab: {replaced}; lower a floor in pyproject.toml"
        )
    return inside


def run_alone(path: Path, python: Path, folder: Path) -> nbformat.NotebookNode:
    """Run all cells of a copy of a notebook, in an empty folder, with the kernel of another environment."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    notebook = nbformat.read(shutil.copy(path, folder), 4)
    specification = KernelSpecManager().get_kernel_spec("python3")
    specification.argv = [
        str(python),
        "-Xfrozen_modules=off",
        "-m",
        "ipykernel_launcher",
        "-f",
        "{connection_file}",
    ]
    manager = AsyncKernelManager()
    manager._kernel_spec = specification
    client = nbclient.NotebookClient(
        notebook,
        km=manager,
        timeout=CELL_SECONDS,
        resources={"metadata": {"path": str(folder)}},
        skip_cells_with_tag="no such tag",  # the install cell runs, as when a reader says "run all"
    )
    try:
        return client.execute()
    finally:
        nbformat.write(notebook, folder / path.name)


def shown(notebook: nbformat.NotebookNode) -> dict[str, list[str]]:
    """Return what each code cell shows, by its id: "stdout", "error", or the richest kind of data."""
    kinds = {}
    for cell in notebook.cells:
        found = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            best = [
                kind for kind in ("image/png", "text/html", "text/markdown", "text/plain") if kind in data
            ]
            found.append(output.get("name") or (best or [output.output_type])[0])
        kinds[cell.id] = sorted(set(found))
    return kinds


def differences(here: nbformat.NotebookNode, book: nbformat.NotebookNode) -> list[str]:
    """Return a line for each cell that shows something else than in the book."""
    left_out = {cell.id for cell in book.cells if not cell.get("execution_count")}
    wanted = {name: kinds for name, kinds in shown(book).items() if name not in left_out}
    found = shown(here)
    return [
        f"{name}: shows {found.get(name)}, in the book {kinds}"
        for name, kinds in wanted.items()
        if found.get(name) != kinds
    ]


def results(folder: Path) -> dict:
    """Return the content of the only `results.json` below a folder."""
    (file,) = folder.rglob("results.json")
    return json.loads(file.read_text(encoding="utf-8"))


def decided(results: dict) -> dict:
    """Return what a run decided, out of its results."""
    return {name: results[name] for name in ("verdict", "verdicts", "decided") if name in results}


def _pip(python: Path, *arguments: object) -> None:
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


def _installed(python: Path) -> dict[str, str]:
    listed = subprocess.check_output([python, "-m", "pip", "list", "--format", "json"], text=True)
    return {
        one["name"].lower().replace("_", "-"): one["version"].partition("+")[0] for one in json.loads(listed)
    }


def main() -> int:
    """Return 0 if every notebook that was asked for is as complete as in the book, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", help="numbers such as 03; default all")
    parser.add_argument("--python", default="python3.13", help="what to make the environment with")
    parser.add_argument("--folder", default=ROOT / "_build" / "colab", type=Path)
    given = parser.parse_args()
    folder, failed = given.folder.resolve(), 0
    python = environment(folder, given.python)
    for path in notebook_paths():
        if given.chapters and path.stem[:2] not in given.chapters:
            continue
        book = run(path)  # from _build, unless something changed
        started, place = time.perf_counter(), folder / "runs" / path.stem
        try:
            executed = run_alone(path, python, place)
            wrong = differences(executed, nbformat.read(book.notebook, 4))
            here, there = decided(results(place)), decided(book.results)
            if here != there:
                wrong.append(f"verdicts: {here}, in the book {there}")
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            wrong = [f"{type(error).__name__}: {str(error)[-1000:]}"]
        print(
            f"{path.stem}: {'complete' if not wrong else 'NOT'} ({time.perf_counter() - started:.0f} s)",
            flush=True,
        )
        print("".join(f"  {line}\n" for line in wrong), end="", flush=True)
        failed += bool(wrong)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
