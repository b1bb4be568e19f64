"""Running and rendering the book: nothing stale, nothing silently wrong."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from book.render import pack, substitutions
from book.run_notebooks import (
    Executed,
    _plain_python,
    cache_key,
    check_parameters,
    galnb_modules,
    merge,
    notebook_paths,
    run,
)

ROOT = Path(__file__).parents[1]
RECORD = """
import json, os, pathlib
folder = pathlib.Path(out_dir) / "01_small"
folder.mkdir(parents=True)
(folder / "results.json").write_text(json.dumps({"seed": seed, "cwd": os.getcwd(), "width": width}))
print("seed", seed)
"""


def write_notebook(root, *sources, name="01_small"):
    cells = [
        new_markdown_cell("# Small\n\nFirst prose.", id="opening"),
        new_code_cell(
            'preset = "quick"\nseed = 0\nout_dir = ""\nwidth = 3  # pixels',
            id="settings",
            metadata={"tags": ["parameters"]},
        ),
        *(new_code_cell(source, id=f"cell-{number}") for number, source in enumerate(sources)),
    ]
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def edit(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.fixture
def root(tmp_path):
    """A book of its own: a package of modules, a room, weights, records; constraints; no notebook yet."""
    package = tmp_path / "galnb"
    (package / "weights").mkdir(parents=True)
    for name in ("small", "small@early", "other"):
        (package / "weights" / f"{name}.safetensors").write_bytes(b"weights")
    (package / "__init__.py").write_text("")
    (package / "first.py").write_text("from galnb.second import value\n")
    (package / "second.py").write_text("def value():\n    from . import third\n    return third\n")
    (package / "third.py").write_text("third = 3\n")
    (package / "apart.py").write_text("apart = 4\n")
    for folder in ("room", "records"):
        (package / folder).mkdir()
    (package / "room" / "__init__.py").write_text("from galnb.room.inner import five\n")
    (package / "room" / "inner.py").write_text(
        "from ..apart import apart\n\nfive = 5\nFILE = 'presets.toml'\n"
    )
    (package / "room" / "corner.py").write_text("def shape(name):\n    return 6\n")
    (package / "room" / "presets.toml").write_text("value = 7\n")
    for name in ("01_small.json", "01_small.npz", "02_other.json"):
        (package / "records" / name).write_text("8\n")
    (tmp_path / "constraints.txt").write_text("numpy==2.4.6\n")
    return tmp_path


# ---- parameters


def test_unknown_parameter_is_an_error_that_names_the_known_ones(root):
    path = write_notebook(root, RECORD)
    check_parameters(path, ["preset", "seed", "width"])
    with pytest.raises(ValueError, match=r"no parameter heigth.*preset, seed, out_dir, width"):
        run(path, root=root, extra={"heigth": 4})
    assert not (root / "_build").exists()


# ---- cache key


ROOM = {"room/__init__.py", "room/inner.py", "apart.py"}


def names_of(found, root):
    return {path.relative_to(root / "galnb").as_posix() for path in found}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from galnb import first", {"first.py", "second.py", "third.py"}),
        ("import galnb.second as second", {"second.py", "third.py"}),
        ("from galnb import room", ROOM),
        ("from galnb.room.corner import shape", ROOM | {"room/corner.py"}),
        ("from galnb.room import corner", ROOM | {"room/corner.py"}),
        ("from galnb import room as r\nr.corner.shape()", ROOM | {"room/corner.py"}),
        ("import galnb\ngalnb.room.corner.shape()", ROOM | {"room/corner.py"}),
        ('load("galnb.room.corner")', ROOM | {"room/corner.py"}),
        ("import galnb", set()),
    ],
)
def test_modules_are_found_through_one_another(root, source, expected):
    assert names_of(galnb_modules(source, root), root) == expected | {"__init__.py"}
    assert galnb_modules("import numpy\nnumpy.room.corner", root) == set()


@pytest.mark.parametrize("module", ["training", "plots", "phantom", "smearing", "mosaic", "explorer"])
def test_modules_agree_with_what_python_imports(module):
    script = f"import sys, galnb.{module}; print(*(m for m in sys.modules if m.startswith('galnb')))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    loaded = subprocess.check_output([sys.executable, "-c", script], env=environment, text=True).split()
    places = [ROOT.joinpath(*name.split(".")) for name in loaded]
    witnessed = {place / "__init__.py" if place.is_dir() else place.with_suffix(".py") for place in places}
    assert witnessed <= galnb_modules(f"from galnb import {module}")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("galnb/third.py", "3", "33"),
        ("galnb/room/inner.py", "5", "55"),
        ("galnb/room/corner.py", "6", "66"),
        ("galnb/room/presets.toml", "7", "77"),
        ("galnb/weights/small@early.safetensors", "weights", "others"),
        ("galnb/records/01_small.json", "8", "88"),
        ("galnb/records/01_small.npz", "8", "88"),
        ("constraints.txt", "2.4.6", "2.4.7"),
    ],
)
def test_key_reacts_to_everything_that_can_change_outputs(root, file, old, new):
    sources = ("from galnb import first, room", "room.corner.shape('small@early')", "%matplotlib inline")
    path = write_notebook(root, *sources, 'notebook.start("01_small")')
    other = write_notebook(root, "from galnb import apart", name="02_other")
    keys = [cache_key(path, {"seed": 0}, root), cache_key(other, {"seed": 0}, root)]
    edit(root / file, old, new)
    assert cache_key(path, {"seed": 0}, root) != keys[0]
    assert (cache_key(other, {"seed": 0}, root) != keys[1]) == (file == "constraints.txt")


@pytest.mark.parametrize(
    "source",
    ['load(f"radio-{kind}")', 'shipped_names("radio")', "from galnb import apart", "load('radio-plain')"],
)
def test_key_reacts_to_weights_that_are_named_by_a_part(root, source):
    """Written out, put together, asked for by a prefix, here or in a module."""
    edit(root / "galnb" / "apart.py", "4", 'shipped_names("radio-")')
    weights = root / "galnb" / "weights" / "radio-plain@step5.safetensors"
    weights.write_bytes(b"weights")
    path, other = (write_notebook(root, x, name=n) for x, n in ((source, "01_a"), ("load('small')", "02_b")))
    keys = cache_key(path, {}, root), cache_key(other, {}, root)
    weights.write_bytes(b"others")
    assert cache_key(path, {}, root) != keys[0] and cache_key(other, {}, root) == keys[1]


def test_key_reacts_to_parameters_and_code(root):
    path = write_notebook(root, "from galnb import first")
    keys = [cache_key(path, {"seed": 0}, root), cache_key(path, {"seed": 1}, root)]
    edit(path, "import first", "import second")
    assert len({*keys, cache_key(path, {"seed": 0}, root)}) == 3


def test_code_below_a_magic_command_is_still_read(root):
    source = "if not there:\n    %pip install galnb\nfrom galnb import second\n!ls"
    assert names_of(galnb_modules(_plain_python(source), root), root) >= {"second.py", "third.py"}


def test_key_ignores_prose_and_what_the_notebook_does_not_use(root):
    path = write_notebook(root, "from galnb import first")
    key = cache_key(path, {}, root)
    edit(path, "First prose", "Second prose")
    edit(root / "galnb" / "apart.py", "4", "44")
    (root / "galnb" / "weights" / "other.safetensors").write_bytes(b"others")
    edit(root / "galnb" / "records" / "02_other.json", "8", "88")
    edit(root / "galnb" / "room" / "corner.py", "6", "66")
    edit(root / "galnb" / "room" / "presets.toml", "7", "77")
    assert cache_key(path, {}, root) == key


# ---- running


def test_run_repeats_only_when_it_must_and_always_shows_present_prose(root):
    path = write_notebook(root, RECORD)
    first = run(path, root=root, seed=5)
    assert not first.cached and first.seconds > 0 and 0.01 < first.peak_memory_gib < 2
    assert first.results["seed"] == 5 and first.results["width"] == 3
    assert not Path(first.results["cwd"]).is_relative_to(root), "the notebook must run in a foreign folder"

    edit(path, "First prose", "Second prose")
    second = run(path, root=root, seed=5)
    assert second.cached and second.results == first.results
    copy = nbformat.read(second.notebook, 4)
    assert "Second prose" in copy.cells[0].source
    assert copy.cells[1].source == 'preset = "quick"\nseed = 5\nout_dir = ""\nwidth = 3  # pixels'
    assert copy.cells[2].outputs[0].text == "seed 5\n"
    assert "injected-parameters" not in json.dumps(copy)

    edit(path, "print(", "print('now',")
    third = run(path, root=root, seed=5)
    assert not third.cached
    assert nbformat.read(third.notebook, 4).cells[2].outputs[0].text == "now seed 5\n"


def test_merge_refuses_outputs_of_another_notebook():
    source = new_notebook(cells=[new_code_cell("1"), new_code_cell("2")])
    with pytest.raises(ValueError, match="shorter"):
        merge(source, new_notebook(cells=[new_code_cell("1")]), {})


def test_notebooks_run_in_the_order_of_their_numbers(root):
    for name in ("10_late", "02_early", "draft"):
        write_notebook(root, name=name)
    assert [path.stem for path in notebook_paths(root)] == ["02_early", "10_late"]


# ---- the whole command


def build(root):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "book.build", "--root", str(root)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def small_book(root):
    shutil.copy(ROOT / "_config.yml", root)
    (root / "CHANGELOG.md").write_text("# Changes\n")
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nchapters:\n- file: notebooks/01_small\n"
    )
    static = root / "book" / "_static"
    shutil.copytree(ROOT / "book" / "_static", static)
    (root / "book" / "references.bib").write_text("")
    (root / "book" / "index.md").write_text("# Welcome\n\nWidth {{ r_01_small_width }}.\n")
    return root


def test_failing_cell_gives_a_non_zero_exit_and_no_page(small_book):
    write_notebook(small_book, "1 / 0")
    done = build(small_book)
    assert done.returncode == 1
    assert "01_small.ipynb failed (exit code 1)" in done.stderr and "ZeroDivisionError" in done.stderr
    assert not (small_book / "_build" / "html").exists()


def test_good_book_is_rendered_and_a_warning_fails_it(small_book):
    write_notebook(small_book, RECORD)
    done = build(small_book)
    assert done.returncode == 0, done.stderr
    html = small_book / "_build" / "html"
    assert "Width 3." in (html / "book" / "index.html").read_text()
    assert "seed 0" in (html / "notebooks" / "01_small.html").read_text()

    with open(small_book / "book" / "index.md", "a") as page:
        page.write("\nSee {doc}`nowhere`.\n")
    done = build(small_book)
    assert done.returncode == 1 and "nowhere" in done.stderr


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum as a witness")
def test_archive_holds_the_book_and_its_checksum(tmp_path):
    page = tmp_path / "_build" / "html" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("<p>book</p>")
    archive = pack(tmp_path)
    assert zipfile.ZipFile(archive).read("index.html") == b"<p>book</p>"
    told = subprocess.check_output(["sha256sum", archive.name], cwd=archive.parent, text=True)
    assert archive.with_suffix(".zip.sha256").read_text() == told


# ---- numbers for prose pages


def test_substitutions_name_each_result_and_round_to_three_figures(tmp_path):
    results = {
        "psnr": 23.456,
        "kept": 61,
        "by rule": {"max": 0.51234},
        "run": {"versions": {}},
        "exercises": {},
    }
    values = substitutions([Executed("02_blending", tmp_path, results, 12.3, 0.9, False)])
    assert values["r_02_blending_psnr"] == "23.5"
    assert values["r_02_blending_kept"] == "61"
    assert values["r_02_blending_by_rule_max"] == "0.512"
    assert "| 12 | 0.9 GiB |" in values["run_times"]
    assert not any("exercises" in name or "run_versions" in name for name in values)
