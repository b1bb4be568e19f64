"""Serve the explorer as an app: `make app PORT=8866`, or `.venv/bin/python -m book.app --no-browser`.

The cells of chapter 8 that are tagged "app" become a notebook of their own, which voila shows without code.
"""

import argparse
import json
import os
import socket
import sys
from pathlib import Path

import nbformat

from book.run_notebooks import ROOT, _tags, _with_values, _write

CHAPTER = "08_explorer"


def extract(target: Path, *, parameters: dict, root: Path = ROOT) -> Path:
    """Write a notebook of the chapter's parameters, its first cell and its cells tagged "app"."""
    chapter = nbformat.read(root / "notebooks" / f"{CHAPTER}.ipynb", 4)
    kept = []
    for cell in chapter.cells:
        if "parameters" in _tags(cell):
            cell.source = _with_values(cell.source, parameters)
        elif cell.id != "start" and "app" not in _tags(cell):
            continue
        cell.metadata.pop("tags", None)  # skip-execution would leave the app itself out
        kept.append(cell)
    # the app shows its widgets and nothing else
    kept[0].source += "\nprint = lambda *_, **__: None"
    chapter.cells = kept
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, nbformat.writes(chapter) + "\n")
    return target


def write_template(folder: Path) -> None:
    """Write voila's own page without the style sheets that it would fetch from elsewhere."""
    own = Path(sys.prefix, "share", "jupyter", "voila", "templates", "lab", "index.html.j2")
    local = [line for line in own.read_text(encoding="utf-8").splitlines() if "https://cdn." not in line]
    target = folder / "voila" / "templates" / "explorer"
    target.mkdir(parents=True, exist_ok=True)
    _write(target / "index.html.j2", "\n".join(local) + "\n")
    _write(target / "conf.json", json.dumps({"base_template": "lab"}))


def command(notebook: Path, *, port: int, browser: bool) -> list[str]:
    """Return the call of voila for this notebook, on this machine only."""
    options = [f"--port={port}", "--strip_sources=True", "--template=explorer", "--Voila.ip=127.0.0.1"]
    return [sys.executable, "-m", "voila", str(notebook), *options, *([] if browser else ["--no-browser"])]


def refuse_taken(port: int) -> None:
    """Exit with a sentence where a program listens there already: voila would silently take another port."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            way = f"stop it, or take another one: make app PORT={port + 1}"
            sys.exit(f"Port {port} is taken, perhaps by an app that runs already; {way}")


def main() -> None:
    """Command line; stays until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", default=8866, type=int)
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.add_argument("--galaxyzoo", default="", help="folder or zip of Galaxy Zoo images to offer, too")
    chosen = parser.parse_args()
    refuse_taken(chosen.port)
    values = {"out_dir": str(Path.cwd() / "galnb_output"), "galaxyzoo": chosen.galaxyzoo}
    folder = ROOT / "_build" / "app"
    notebook = extract(folder / "explorer.ipynb", parameters=values)
    write_template(folder)
    os.environ["JUPYTER_PATH"] = str(folder)
    os.environ["PYTHONPATH"] = str(ROOT)  # the kernel takes this checkout, whatever is installed
    called = command(notebook, port=chosen.port, browser=not chosen.no_browser)
    print(f"The explorer: http://127.0.0.1:{chosen.port}/  (Ctrl+C ends it)", flush=True)
    os.execv(called[0], called)


if __name__ == "__main__":
    main()
