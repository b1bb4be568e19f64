"""The trial as on Colab: what it installs, how it runs a lone copy, what it calls complete."""

import json
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book import colab

PICTURE = new_output("display_data", {"image/png": "", "text/plain": "<Figure>"})
SAID = new_output("stream", name="stdout", text="1")
WARNED = new_output("stream", name="stderr", text="Warning")


def test_pins_are_exact():
    pins = colab.pins()
    assert {"torch", "numpy", "matplotlib", "ipywidgets", "ipython", "ipykernel"} <= set(pins)
    assert pins["ipywidgets"].startswith("7.") and pins["ipython"].startswith("7."), "the old front end"


def ran(**outputs):
    cells = [new_code_cell("1", id=name, outputs=list(those)) for name, those in outputs.items()]
    for cell in cells:
        cell.execution_count = 1
    return new_notebook(cells=[new_markdown_cell("text", id="text"), *cells])


def test_a_notebook_is_complete_if_each_cell_shows_what_it_shows_in_the_book():
    book = ran(fig=[PICTURE], table=[SAID])
    assert colab.differences(ran(fig=[PICTURE], table=[SAID, SAID]), book) == []
    (lost,) = colab.differences(ran(fig=[], table=[SAID]), book)
    assert lost.startswith("fig: shows []") and "image/png" in lost
    (noisy,) = colab.differences(ran(fig=[PICTURE], table=[SAID, WARNED]), book)
    assert noisy.startswith("table") and "stderr" in noisy
    assert len(colab.differences(ran(fig=[PICTURE]), book)) == 1, "a cell that is not there"


def test_cells_that_the_book_leaves_out_need_no_equal():
    book = ran(app=[], table=[SAID])
    book.cells[1].execution_count = None
    assert colab.differences(ran(app=[PICTURE], table=[SAID]), book) == []


def test_what_was_decided_is_read_from_the_only_results(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "results.json").write_text(json.dumps({"verdicts": {"a": "open"}, "found": 1}))
    assert colab.decided(colab.results(tmp_path)) == {"verdicts": {"a": "open"}}


def test_a_lone_copy_runs_all_cells_in_an_empty_folder(tmp_path):
    sources = ["import os, sys; print(os.listdir(), sys.executable)", "print('installed')"]
    cells = [new_code_cell(source, id=f"cell-{n}") for n, source in enumerate(sources)]
    cells[1].metadata["tags"] = ["skip-execution"]
    path = tmp_path / "01_small.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    done = colab.run_alone(path, Path(sys.executable), tmp_path / "alone")
    said = [cell.outputs[0].text for cell in done.cells]
    assert said[0].split() == ["['01_small.ipynb']", sys.executable] and said[1] == "installed\n"
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0", id="cell-0")]), path)
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="ZeroDivisionError"):
        colab.run_alone(path, Path(sys.executable), tmp_path / "alone")
