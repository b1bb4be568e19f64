"""Keep in every notebook what all notebooks share: the install cell, and cells that are folded everywhere.

python -m book.notebooks      after a cell was added that is folded, or a notebook

The tags `hide-input` and `hide-cell` fold a cell on a page. JupyterLab and Colab do not know them; each has a
mark of its own in the cell's metadata. The install cell asks for the branch or tag of `_config.yml`.
"""

import tomllib
from pathlib import Path

import nbformat
import yaml

from book.run_notebooks import ROOT, notebook_paths
from galnb.files import write_atomically

INSTALL = """\
# @title Install galnb, unless it is there
import importlib.util
import subprocess
import sys

wanted = "galnb[radio,sky,features] @ git+{address}@{reference}"
if not getattr(importlib.util.find_spec("galnb"), "origin", None):
    ask = [sys.executable, "-m", "pip", "install", "--quiet", wanted]
    told = subprocess.run(ask, capture_output=True, text=True)
    importlib.invalidate_caches()
    if told.returncode:
        raise ModuleNotFoundError(
            "galnb is not in the environment of this kernel, and pip could not fetch it. "
            "On Colab run this cell once more. On a computer choose the kernel that has galnb "
            f"(make lab does), or run in a terminal, with a network: pip install '{{wanted}}'\\n"
            + told.stderr.strip()[-300:]
        )
"""


def install_cell(root: Path = ROOT) -> str:
    """Return the source of the install cell at the branch or tag that the links of the book lead to."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    names = {"address": project["urls"]["Repository"], "reference": config["repository"]["branch"]}
    return INSTALL.format(**names).rstrip("\n")


def fold(cell: nbformat.NotebookNode) -> None:
    """Give a code cell the marks of JupyterLab and Colab that agree with its tags, and no others."""
    tags = set(cell.metadata.get("tags", []))
    folded = bool(tags & {"hide-input", "hide-cell"})
    marks = {"source_hidden": True} if folded else {}
    if "hide-cell" in tags and "install" not in tags:  # what the install cell says must be seen
        marks["outputs_hidden"] = True
    for name, value in (("jupyter", marks), ("cellView", "form" if folded else None)):
        cell.metadata.pop(name, None)
        if value:
            cell.metadata[name] = value


def keep(path: Path, root: Path = ROOT) -> bool:
    """Bring one notebook into order; return whether anything changed."""
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            fold(cell)
            if "install" in cell.metadata.get("tags", []):
                cell.source = install_cell(root)
    after = nbformat.writes(notebook) + "\n"
    if after != before:
        write_atomically(path, after.encode())
    return after != before


def main() -> None:
    """Bring every notebook into order and name those that changed."""
    changed = [path.name for path in notebook_paths() if keep(path)]
    print("\n".join(changed) or "all in order")


if __name__ == "__main__":
    main()
