"""Run the notebooks, apart from rendering: each alone, from a foreign folder, once per content.

For a notebook NN_name and a preset, `_build/executed/<preset>/` then holds

* `NN_name.ipynb`: the source as it is now, with the outputs of the run (used for pages, tests and download);
* `NN_name/`: what the notebook wrote, `results.json` first; `run.json` with seconds, memory, cache key.

A run is repeated when its code cells, its parameters, a `galnb` module it uses (through any number of
imports), a data file of such a module, weights and records that it names, or `constraints.txt` change. Prose,
captions and alt text are no reason.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import papermill

from galnb.files import imported

ROOT = Path(__file__).resolve().parents[1]
CELL_SECONDS = {"quick": 600, "laptop": 6 * 3600, "gpu": 48 * 3600}


class NotebookFailed(RuntimeError):
    """A cell raised; the message holds the end of papermill's report."""


@dataclasses.dataclass(frozen=True)
class Executed:
    """One notebook that has run: its executed copy, its results and the cost of the run."""

    name: str
    notebook: Path
    results: dict
    seconds: float
    peak_memory_gib: float | None
    cached: bool


def notebook_paths(root: Path = ROOT) -> list[Path]:
    """Return the notebooks of the book in the order of their numbers."""
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def run(path: Path, *, preset: str = "quick", seed: int = 0, root: Path = ROOT, extra: dict | None = None):
    """Bring the executed copy of one notebook up to date and return it as `Executed`.

    `extra` holds further parameters by name. An unknown one is a `ValueError`: papermill itself would only
    warn and run with the default.
    """
    parameters = {"preset": preset, "seed": seed, **(extra or {})}
    check_parameters(path, [*parameters, "out_dir"])
    place = root / "_build" / "executed" / preset
    folder, key = place / path.stem, cache_key(path, parameters, root)
    record = _read_json(folder / "run.json")
    cached = record.get("key") == key
    if not cached:
        record = {"key": key, **_execute(path, folder, parameters, root)}
        _write(folder / "run.json", json.dumps(record, indent=2))
    merged = merge(nbformat.read(path, 4), nbformat.read(folder / "executed.ipynb", 4), parameters)
    target = place / path.name
    _write(target, nbformat.writes(merged) + "\n")
    results = _read_json(folder / "results.json")
    return Executed(path.stem, target, results, record["seconds"], record["peak_memory_gib"], cached)


def check_parameters(path: Path, names: list[str]) -> None:
    """Raise `ValueError` for a name that the notebook's parameters cell does not define."""
    known = papermill.inspect_notebook(str(path))
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(
            f"{path.name} has no parameter {', '.join(unknown)}; its cell tagged 'parameters' defines: "
            f"{', '.join(known) or 'none'}"
        )


def cache_key(path: Path, parameters: dict, root: Path = ROOT) -> str:
    """Return a digest of everything that can change the outputs of a notebook."""
    code = code_of(path)
    digest = hashlib.sha256(json.dumps([code, parameters, sys.version_info[:2]], sort_keys=True).encode())
    sources = "\n".join(source for source, _ in code)
    modules = galnb_modules(_plain_python(sources), root)
    for file in [*sorted(modules), *_data(sources, modules, root), root / "constraints.txt"]:
        if file.exists():
            digest.update(str(file.relative_to(root)).encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def code_of(path: Path) -> list[tuple[str, list[str]]]:
    """Return source and tags of each code cell that is run: what decides the outputs of a notebook."""
    cells = nbformat.read(path, 4).cells
    ran = [cell for cell in cells if cell.cell_type == "code" and "skip-execution" not in _tags(cell)]
    return [(cell.source, _tags(cell)) for cell in ran]


def galnb_modules(source: str, root: Path = ROOT) -> set[Path]:
    """Return the files of `galnb` that Python source uses, directly or through one another."""
    return {file for file in imported(source, root, roots=[root]) if root / "galnb" in file.parents}


def _data(sources: str, modules: set[Path], root: Path) -> list[Path]:
    """Return weights and records that the notebook names, and other data that its modules name."""
    texts = "\n".join(file.read_text(encoding="utf-8") for file in modules)
    prefixes = re.findall(r'f"([a-z]+-)\{', sources)  # as in f"radio-{kind}"
    prefixes += re.findall(r'shipped_names\("([\w@-]+)"\)', sources + texts)
    named = []
    for file in sorted((root / "galnb").rglob("*.*")):
        if file.suffix == ".safetensors":
            if re.split("[@.]", file.name)[0] in sources or file.name.startswith(tuple(prefixes)):
                named.append(file)
        elif file.parent.name == "records":
            if re.search(rf'\b(record|start)\(\s*"{file.stem}"', sources):
                named.append(file)
        elif file.suffix in (".toml", ".html") and file.name in texts:
            named.append(file)
    return named


def _plain_python(source: str) -> str:
    return re.sub(r"^([ \t]*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)


def _execute(path: Path, folder: Path, parameters: dict, root: Path) -> dict:
    """Run a notebook in a process of its own; replace `folder` only when it has run to its end."""
    with tempfile.TemporaryDirectory(prefix=f"galnb-{path.stem}-") as name:
        work = Path(name).resolve()
        outputs = work / "galnb_output"
        values = {**parameters, "out_dir": str(outputs)}
        command = [
            sys.executable,
            "-m",
            "papermill",
            str(path),
            str(work / "executed.ipynb"),
            "--no-progress-bar",
        ]
        command += ["--kernel", "python3", "--cwd", str(work), "--parameters_yaml", json.dumps(values)]
        command += ["--execution-timeout", str(CELL_SECONDS.get(parameters["preset"], 600))]
        environment = {name: value for name, value in os.environ.items() if name != "GALNB_DATA"}
        environment["PYTHONPATH"] = str(root)  # this checkout, whatever is installed
        started = time.perf_counter()
        with open(work / "log.txt", "w+", encoding="utf-8") as log:
            child = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=work)
            code, cost = _wait(child)
            log.seek(0)
            report = log.read()
        if code:
            cell = max(report.rfind("Exception encountered"), 0)  # what is above is papermill's own stack
            raise NotebookFailed(f"{path.name} failed (exit code {code}):\n{report[cell:][-4000:]}")
        record = {"seconds": round(time.perf_counter() - started, 1), **cost}
        (outputs / path.stem).mkdir(parents=True, exist_ok=True)
        shutil.move(work / "executed.ipynb", outputs / path.stem / "executed.ipynb")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(outputs / path.stem, folder)
    return record


def _wait(child: subprocess.Popen) -> tuple[int, dict]:
    """Wait for a process; return its exit code and what it and its own children cost (GiB, CPU seconds)."""
    if not hasattr(os, "wait4"):
        return child.wait(), {"peak_memory_gib": None}
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    memory = round(usage.ru_maxrss * unit / 2**30, 2)
    return child.returncode, {
        "peak_memory_gib": memory,
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
    }


def merge(source: nbformat.NotebookNode, executed: nbformat.NotebookNode, parameters: dict):
    """Put the outputs of a run into the present source and show the parameters it ran with."""
    ran = [
        cell
        for cell in executed.cells
        if cell.cell_type == "code" and "injected-parameters" not in _tags(cell)
    ]
    for cell, done in zip([c for c in source.cells if c.cell_type == "code"], ran, strict=True):
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
        if "parameters" in _tags(cell):
            cell.source = _with_values(cell.source, parameters)
    for name in ("kernelspec", "language_info", "widgets"):
        if name in executed.metadata:
            source.metadata[name] = executed.metadata[name]
    return source


def _with_values(source: str, parameters: dict) -> str:
    for name, value in parameters.items():
        literal = json.dumps(value) if isinstance(value, str) else repr(value)
        source = re.sub(rf"^{name} = [^#\n]*?(?=\s*#|$)", f"{name} = {literal}", source, flags=re.MULTILINE)
    return source


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def run_all(*, preset: str = "quick", seed: int = 0, root: Path = ROOT) -> list[Executed]:
    """Bring every notebook up to date, one after the other, saying what each cost."""
    executed = []
    for path in notebook_paths(root):
        print(f"{path.stem} ... ", end="", flush=True)
        one = run(path, preset=preset, seed=seed, root=root)
        print(
            f"{'unchanged' if one.cached else 'ran'} ({one.seconds:.0f} s, {one.peak_memory_gib} GiB)",
            flush=True,
        )
        executed.append(one)
    return executed


def main() -> None:
    """Command line: `python -m book.run_notebooks [--preset quick] [--seed 0]`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--preset", default="quick", choices=CELL_SECONDS)
    parser.add_argument("--seed", default=0, type=int)
    arguments = parser.parse_args()
    run_all(preset=arguments.preset, seed=arguments.seed)


if __name__ == "__main__":
    main()
