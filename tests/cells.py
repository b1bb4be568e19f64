"""Run named cells of a notebook, so that what only a chapter holds has its tests too."""

from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def namespace(notebook: str, *ids: str, **given) -> dict:
    """Return the names that these cells define, with `given` names there before them."""
    cells = {cell.id: cell.source for cell in nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", 4).cells}
    for name in ids:
        exec(cells[name], given)
    return given
