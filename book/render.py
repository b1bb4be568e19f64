"""Render the book from executed notebooks: stage a source tree, then build it strictly.

`_build/source` gets the layout of the repository (so that launch, edit and download links come out right),
with executed notebooks in place of the sources, figures and numbers of the run for the prose pages, and
MathJax from an installed package (so that formulas need no network). `_build/html` is the book.
"""

import base64
import hashlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

from book.run_notebooks import ROOT, Executed
from galnb.files import RESERVED

PROMPTS = {
    "solution": "solution",
    "install": "installation, for Colab and other machines",
}  # of folded cells, by tag
STRICT = ["--all", "-n", "-W", "--keep-going"]  # --all: an unchanged page must show its warnings again


class RenderFailed(RuntimeError):
    """Sphinx reported an error or a warning."""


def render(executed: list[Executed], *, root: Path = ROOT) -> Path:
    """Build `_build/html` from executed notebooks and return its first page."""
    source = stage(executed, root=root)
    for leftover in ("html", ".doctrees"):
        shutil.rmtree(root / "_build" / leftover, ignore_errors=True)
    script = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "build", str(source), "--path-output", str(root), *STRICT]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    (root / "_build" / "render.log").write_text(done.stdout, encoding="utf-8")
    if done.returncode:
        shutil.rmtree(root / "_build" / "html", ignore_errors=True)  # half a book must not pass for one
        telling = [line for line in done.stdout.splitlines() if re.search("WARNING|ERROR|Exception", line)]
        raise RenderFailed(
            "\n".join(telling or done.stdout.splitlines()[-40:]) + "\nAll of it: _build/render.log"
        )
    return root / "_build" / "html" / "index.html"


def pack(root: Path = ROOT) -> Path:
    """Zip `_build/html`, which holds the executed notebooks too, with its SHA-256 in a file beside it."""
    archive = Path(
        shutil.make_archive(root / "_build" / "galaxies-that-overlap", "zip", root / "_build" / "html")
    )
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    archive.with_suffix(".zip.sha256").write_text(f"{digest}  {archive.name}\n", encoding="utf-8")
    return archive


def stage(executed: list[Executed], *, root: Path = ROOT) -> Path:
    """Assemble `_build/source` anew and return it."""
    source = root / "_build" / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(
        root / "book", source / "book", ignore=shutil.ignore_patterns("*.py", "__pycache__", ".*")
    )
    (source / "notebooks").mkdir()
    figures = source / "book" / "_figures"
    figures.mkdir()
    for one in executed:
        notebook = nbformat.read(one.notebook, 4)
        save_figures(notebook, figures)
        nbformat.write(with_prompts(notebook), source / "notebooks" / one.notebook.name)
    shutil.copy(root / "_toc.yml", source)
    shutil.copy(root / "CHANGELOG.md", source)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    config["parse"]["myst_substitutions"] = substitutions(executed)
    _use_local_mathjax(config["sphinx"]["config"], source)
    (source / "_config.yml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return source


def with_prompts(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Let each folded cell say what is in it instead of "Show code cell content"."""
    for cell in notebook.cells:
        for tag in set(cell.metadata.get("tags", [])) & set(PROMPTS):
            prompts = {
                f"code_prompt_{verb.lower()}": f"{verb} the {PROMPTS[tag]}" for verb in ("Show", "Hide")
            }
            cell.metadata["mystnb"] = {**prompts, **cell.metadata.get("mystnb", {})}
    return notebook


def save_figures(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Write the first picture of each cell with a figure name as `<name>.png`, for use in prose pages."""
    for cell in notebook.cells:
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        pictures = [o.data["image/png"] for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        if name and pictures:
            (folder / f"{name}.png").write_bytes(base64.b64decode(pictures[0]))


def substitutions(executed: list[Executed]) -> dict[str, str]:
    """Return what prose pages may quote: `r_<notebook>_<key>` for each result, and the tables of the run."""
    values = {"run_times": run_times(executed), "versions": versions(executed)}
    for one in executed:
        for key, value in one.results.items():
            if key not in RESERVED:
                values |= _flat(f"r_{one.name}_{key}", value)
    return values


def _flat(name: str, value) -> dict[str, str]:
    if isinstance(value, dict):
        return {
            key: text for part, item in value.items() for key, text in _flat(f"{name}_{part}", item).items()
        }
    if isinstance(value, list) or value is None:
        return {}
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return {re.sub(r"\W", "_", name): text}


def run_times(executed: list[Executed]) -> str:
    """Return a Markdown table: minutes and peak memory of each notebook, and their sum."""
    rows = ["| notebook | preset | device | seconds | peak memory |", "| :-- | :-- | :-- | --: | --: |"]
    for one in executed:
        ran = one.results.get("run", {})
        memory = f"{one.peak_memory_gib:.1f} GiB" if one.peak_memory_gib else "not known"
        page = f"[{one.name}](../notebooks/{one.name}.ipynb)"
        rows.append(f"| {page} | {ran.get('preset')} | {ran.get('device')} | {one.seconds:.0f} | {memory} |")
    total = sum(one.seconds for one in executed)
    rows.append(f"| **together** | | | **{total:.0f}** ({total / 60:.1f} minutes) | |")
    return "\n".join(rows)


def versions(executed: list[Executed]) -> str:
    """Return a Markdown table of the versions that the notebooks ran with."""
    found: dict[str, str] = {}
    for one in executed:
        found |= one.results.get("run", {}).get("versions", {})
    for package in ("jupyter-book", "sphinx", "myst-nb", "papermill"):
        found[package] = importlib.metadata.version(package)
    return "\n".join(
        ["| package | version |", "| :-- | :-- |", *(f"| {k} | {v} |" for k, v in found.items())]
    )


def _use_local_mathjax(sphinx_config: dict, source: Path) -> None:
    # Its own static folder: Jupyter Book loads every script of the usual one on every page.
    package = importlib.metadata.distribution("sphinx-mathjax-offline")
    folder = source / "_vendor" / "mathjax"
    folder.mkdir(parents=True)
    shutil.copy(package.locate_file("sphinx-mathjax-offline/static/mathjax/tex-svg.js"), folder)
    sphinx_config["html_static_path"] = [*sphinx_config["html_static_path"], "_vendor"]
    sphinx_config["mathjax_path"] = "mathjax/tex-svg.js"


def executed_from_disk(root: Path = ROOT, preset: str = "quick") -> dict[str, dict]:
    """Return the results of the last run by notebook name (tests and benchmarks read them here)."""
    files = sorted((root / "_build" / "executed" / preset).glob("*/results.json"))
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
