"""Tests of galnb/notebook.py."""

import hashlib
import importlib.resources
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from galnb import notebook
from galnb.training import experiments, shipped
from galnb.training.checkpoints import shipped_names

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "galnb" / "records").glob("*.json"))


@pytest.fixture
def run(tmp_path):
    return notebook.start("02_blending", preset="quick", seed=3, device="cpu", out_dir=str(tmp_path))


def test_a_verdict_is_open_before_it_is_anything_else():
    assert notebook.verdict(True) == notebook.verdict(True, True) == "reproduced"
    assert notebook.verdict(False, torch.tensor(2) > 1) == "partly"
    assert notebook.verdict(False) == notebook.verdict(np.bool_(False), False) == "not reproduced"
    needs = {"a ring": False, "trained networks": True, "a judge above .90": np.False_}
    assert notebook.verdict(True, needs=needs) == "open: needs a ring, a judge above .90"
    assert notebook.verdict(False, True, needs={"a ring": True}) == "partly"


@pytest.mark.parametrize("given", [0.7, 2, None, "yes", torch.tensor(0.5), float("nan")])
def test_a_verdict_takes_no_numbers(given):
    for found in ((given,), (False, given)):
        with pytest.raises(ValueError, match="compare it with its limit first"):
            notebook.verdict(*found)
    with pytest.raises(ValueError, match="power is"):
        notebook.verdict(True, needs={"power": given})


def results(run):
    return json.loads((run.folder / "results.json").read_text())


def test_start_writes_provenance_and_keeps_notebooks_apart(tmp_path, run):
    other = notebook.start("01_images", out_dir=str(tmp_path))
    assert run.folder == tmp_path / "02_blending" and other.folder == tmp_path / "01_images"
    kept = results(run)["run"]
    assert (kept["name"], kept["preset"], kept["seed"], kept["device"]) == ("02_blending", "quick", 3, "cpu")
    assert kept["versions"]["torch"] == torch.__version__.split("+")[0] and kept["seconds"] >= 0
    assert run.experiment == experiments.experiment("02_blending", "quick")


def test_generator_is_that_of_the_seed(run):
    expected = torch.rand(4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.rand(4, generator=run.generator), expected)


def test_empty_out_dir_is_below_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert notebook.start("01_images").folder == tmp_path / "galnb_output" / "01_images"


def test_a_new_run_forgets_the_numbers_of_an_earlier_one(tmp_path, run):
    run.record(stale=1)
    notebook.start("02_blending", out_dir=str(tmp_path))
    assert "stale" not in results(run)


def test_record_merges_and_takes_tensors(run):
    run.record(first=torch.tensor([1.5, 2.0]), path=Path("a"), nothing=None)
    run.record(second={"deep": (1, True)}, first=torch.tensor(0.25, requires_grad=True))
    kept = results(run)
    assert (kept["first"], kept["second"], kept["path"], kept["nothing"]) == (
        0.25,
        {"deep": [1, True]},
        "a",
        None,
    )
    assert [path.name for path in run.folder.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": float("nan")}, "loss is nan"),
        ({"loss": torch.tensor([0.0, float("inf")])}, "loss is inf"),
        ({"table": {"row": float("nan")}}, "table.row is nan"),
        ({"model": object()}, "model is <object"),
        ({"run": 1}, "keeps"),
        ({"exercises": {}}, "keeps"),
        ({"solutions": {}}, "keeps"),
    ],
)
def test_record_refuses_all_or_nothing(run, values, message):
    before = results(run)
    with pytest.raises(ValueError, match=message):
        run.record(good=1.0, **values)
    assert results(run) == before


def test_a_failed_write_leaves_the_old_file(run, monkeypatch):
    run.record(kept=1)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        run.record(lost=2)
    kept = results(run)
    assert kept["kept"] == 1 and "lost" not in kept
    assert [path.name for path in run.folder.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("answer", "expected", "tolerance", "right"),
    [
        (0.5, 0.5, 0.0, True),
        (0.52, 0.5, 0.01, False),
        (0.505, 0.5, 0.01, True),
        (torch.tensor([1.0, 2.0]), [1, 2], 0.0, True),
        ([1.0], [1.0, 2.0], 5.0, False),
        (float("nan"), 0.5, 9.0, False),
        (" Zeros", "zeros", 0.0, True),
        ("3", 3, 0.0, False),
        (False, True, 0.0, False),
        (["a"], 1.0, 0.0, False),
        (object(), 1.0, 0.0, False),
    ],
)
def test_check_answers_and_remembers(run, answer, expected, tolerance, right):
    said = run.check("one", answer, expected, tolerance=tolerance, hint="look again")
    assert said == ("Right." if right else "Not yet: look again")
    assert results(run)["exercises"] == {"one": right}


def test_check_without_an_answer(run):
    assert run.check("one", None, 1.0, hint="look again") == "No answer yet."
    assert results(run)["exercises"] == {"one": None}
    assert run.check("one", 1, 1.0, hint="look again") == "Right."
    run.check("two", 2, 1.0, hint="")
    assert results(run)["exercises"] == {"one": True, "two": False}
    with pytest.raises(ValueError, match="tolerance"):
        run.check("one", 1, 1.0, tolerance=-1, hint="")


def test_a_solution_does_not_answer_the_exercise(run):
    """As when all cells of a chapter are run at once: exercise, then its folded solution."""
    assert run.check("one", None, 1.0, hint="look again") == "No answer yet."
    assert run.check("one", 1, 1.0, hint="look again", solution=True) == "The solution is right."
    assert run.check("two", 2, 1.0, hint="look again", solution=True) == "Not yet: look again"
    assert results(run)["exercises"] == {"one": None}
    assert results(run)["solutions"] == {"one": True, "two": False}


def test_summary_and_finish_speak_plainly(run, tmp_path):
    assert all(word in run.summary() for word in ("'quick'", "seed 3", "GiB", "CPU", "02_blending"))
    assert str(tmp_path) not in run.summary()  # pages for others show no path of the machine that made them
    assert (
        "many times longer"
        in notebook.start("01_images", preset="gpu", device="cpu", out_dir=str(tmp_path)).summary()
    )
    assert run.finish().startswith("Took ")


def test_auto_takes_cuda_when_there_is_one(tmp_path):
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert notebook.start("01_images", out_dir=str(tmp_path)).device.type == expected


def test_peak_memory_is_that_of_this_process_not_of_its_parent(run):
    ballast = bytearray(400 * 2**20)  # inherited through ru_maxrss by a child on Linux
    code = "import sys; sys.path.insert(0, sys.argv[1]); import re, pathlib; from galnb import notebook; "
    code += "print(notebook._peak_memory_gib())"
    root = str(Path(notebook.__file__).parents[1])
    child = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=True)
    own = results(run)["run"]["peak_memory_gib"]
    if own is None:
        pytest.skip("this system does not tell")
    del ballast
    assert 0.02 < float(child.stdout) < notebook._peak_memory_gib()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "huge"}, "quick"),
        ({"seed": -1}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"device": "abacus"}, "abacus"),
        ({"name": "../elsewhere"}, "name"),
    ],
)
def test_start_refuses(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        notebook.start(**{"name": "01_images", "out_dir": str(tmp_path), **values})
    assert not list(tmp_path.iterdir())


def test_start_says_when_the_folder_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out_dir"):
        notebook.start("01_images", out_dir=str(tmp_path / "file"))


# ---- records


@pytest.mark.parametrize("name", NAMES)
def test_a_record_says_when_and_by_which_command_it_was_made(name):
    kept = notebook.record(name)
    for one in [kept] if "date" in kept else kept.values():
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", one["date"]) and re.match(
            "python |papermill ", one["command"]
        )
    assert "arrays" not in json.loads((notebook.RECORDS / f"{name}.json").read_text())


def test_arrays_of_a_record_come_with_it():
    arrays = notebook.record("13_lightweight_gan")["arrays"]
    assert arrays["features test"].shape == (300, 1280) and arrays["drawn all"].shape == (12, 3, 64, 64)
    assert "arrays" not in notebook.record("04_deblender")


@pytest.mark.parametrize("name", ["05", "../records/05_evaluation", "", None])
def test_an_unknown_record_lists_those_known(name):
    with pytest.raises(ValueError, match=r"unknown; known are 03_first_gan, .*14_mosaic"):
        notebook.record(name)


def weights_named(tree, *above):
    """Yield each place of a record that names weights with their hash: (weights, SHA-256)."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from weights_named(value, *above, key)
    elif isinstance(tree, str) and re.fullmatch("[0-9a-f]{64}", tree) and above[-1] != "fingerprint":
        named = [name for name in above if name in shipped_names()]
        yield (named[-1] if named else "lightweight-64"), tree


def test_records_were_made_with_the_weights_that_are_shipped():
    found = [(name, *pair) for name in NAMES for pair in weights_named(notebook.record(name))]
    assert {name[:2] for name, *_ in found} >= {"05", "07", "13"} and len(found) >= 10
    for name, weights, digest in found:
        content = shipped(weights).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, f"{name} was made with another {weights}"


def test_data_files_are_packaged():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert project["wheel"] == {"packages": ["galnb"]} and "/galnb" in project["sdist"]["include"]
    data = [path for path in (ROOT / "galnb").rglob("*.*") if path.suffix not in (".py", ".pyc")]
    names = {path.relative_to(ROOT / "galnb").as_posix() for path in data if path.is_file()}
    wanted = {f"records/{name}.json" for name in NAMES} | {"records/13_lightweight_gan.npz"}
    wanted |= {
        "zoom.html",
        "slider.html",
        "training/presets.toml",
        "weights/index.json",
        "weights/deblender-paper.safetensors",
    }
    assert wanted <= names and len(NAMES) >= 9
    # hatch takes every file of the package that git does not ignore
    asked = subprocess.run(["git", "check-ignore", *map(str, data)], cwd=ROOT, capture_output=True, text=True)
    assert not asked.stdout
    assert all(importlib.resources.files("galnb").joinpath(name).is_file() for name in names)
