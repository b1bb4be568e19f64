"""Tests of galnb/sweeps.py. How often a point ran is counted by the files that its runs leave."""

import importlib
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

from galnb import __main__ as command_line
from galnb import sweeps

posix = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
# Other processes must be able to import the tasks, so they stand in a module of their own.
TASKS = """
import os, signal, time, uuid
from pathlib import Path

def started(point):
    Path(point["folder"], f"{point['value']}-{os.getpid()}-{uuid.uuid4().hex}").write_text("")

def square(point):
    started(point)
    time.sleep(point.get("seconds", 0))
    return {"square": point["value"] ** 2}

def deadly(point):
    started(point)
    if point["value"] == 2:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    return {}

def flaky(point):
    if point["value"] == 2 and not Path(point["folder"], "mended").exists():
        raise ValueError("value 2 is not mended")
    return square(point)

def odd(point):
    return {"answer": [float("nan"), object()][point["value"]]} if point["value"] < 2 else None

def leaving(point):
    started(point)
    if point["value"] == 1:
        raise SystemExit("enough")
    if point["value"] == 2:
        raise KeyboardInterrupt
    if point["value"] == 3:
        os._exit(3)
    return {"square": point["value"] ** 2}

def echo(point):
    return {"twice": 2 * point["value"]}

def threads(point):
    import torch
    return {"threads": torch.get_num_threads(), "of kernels": int(os.environ["OMP_NUM_THREADS"])}

def shadow(point):
    return {"value": point["value"] + 9, "square": 1}
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    (tmp_path / "sweep_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sweep_tasks", raising=False)
    import sweep_tasks

    return sweep_tasks


@pytest.fixture
def marks(tmp_path):
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


def finished(folder):
    """Return the rows of all points that have a file."""
    kept = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [{**one["point"], **one["values"]} for one in kept]


def runs(marks, value):
    """Count how often a point was begun."""
    return len(list(marks.glob(f"{value}-*")))


def kill_one_worker(marks, folder, after):
    """Wait until so many points are finished, then kill the worker of the youngest; return the finished."""
    while True:
        done = {row["value"] for row in finished(folder)}
        running = [mark for mark in marks.iterdir() if int(mark.name.split("-")[0]) not in done]
        if len(done) >= after and running:
            youngest = max(running, key=lambda mark: mark.stat().st_mtime_ns)
            os.kill(int(youngest.name.split("-")[1]), signal.SIGKILL)
            return done
        time.sleep(0.01)


def grid(marks, values, **more):
    return {"value": values, "folder": [str(marks)], **{name: [value] for name, value in more.items()}}


def test_expand_is_the_product_of_the_values():
    given = {"sigma": [0, 0.5, 1], "size": [3, 5], "name": ["a"]}
    expected = [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]
    assert sweeps._points(given) == expected and len(expected) == 6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sigma": []}, "at least one value"),
        ({}, "at least one value"),
        ([], "at least one value"),
        ({"sigma": "0,1"}, "expected a list"),
        ({"sigma": 1}, "expected a list"),
        ({"sigma": [0, 1, 0]}, "twice"),
        ({"sigma": [float("nan")]}, "finite"),
        ({"sigma": [{1}]}, "expected a finite number, a text"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(given, said, tasks, tmp_path):
    with pytest.raises(ValueError, match=said):
        sweeps.sweep(tasks.square, given, folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_any_executor_serves_and_a_second_call_runs_nothing(tasks, marks, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        options = {"folder": tmp_path / "out", "executor": pool, "progress": False}
        rows = sweeps.sweep(tasks.square, grid(marks, [3, 1, 2]), **options)
        assert [(row["value"], row["square"]) for row in rows] == [(3, 9), (1, 1), (2, 4)]
        again = sweeps.sweep("sweep_tasks:square", grid(marks, [1, 2, 3, 4]), **options)
    assert [row["square"] for row in again] == [1, 4, 9, 16]
    assert [runs(marks, value) for value in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert sorted(row["value"] for row in finished(tmp_path / "out")) == [1, 2, 3, 4]


@posix
def test_a_killed_worker_loses_nothing_and_no_finished_point_runs_twice(tasks, marks, tmp_path):
    values, out = list(range(8)), tmp_path / "out"
    with ThreadPoolExecutor(1) as background:
        killer = background.submit(kill_one_worker, marks, out, after=3)
        rows = sweeps.sweep(tasks.square, grid(marks, values, seconds=0.3), folder=out, progress=False)
        finished_before = killer.result(timeout=5)
    assert [row["square"] for row in rows] == [value**2 for value in values]
    assert all(runs(marks, value) == 1 for value in finished_before)
    assert len(values) < len(list(marks.iterdir())) <= len(values) + 2, "one or two points were interrupted"


@posix
def test_a_point_that_kills_its_worker_again_is_reported(tasks, marks, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "_ATTEMPTS", 2)
    with pytest.raises(RuntimeError, match=r"1 of 4 points failed(.|\n)*\"value\": 2.*2 attempts"):
        sweeps.sweep(tasks.deadly, grid(marks, [1, 2, 3, 4]), folder=tmp_path / "out", progress=False)
    assert runs(marks, 2) == 2
    assert sorted(row["value"] for row in finished(tmp_path / "out")) == [1, 3, 4]


@posix
@pytest.mark.parametrize("local", [True, False], ids=["processes", "threads"])
def test_a_point_that_leaves_is_reported_and_the_others_are_kept(tasks, marks, tmp_path, local, monkeypatch):
    monkeypatch.setattr(sweeps, "_ATTEMPTS", 1)
    values = [0, 1, 2, 3, 4] if local else [0, 1, 2, 4]  # _exit in a thread would end this process
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError) as failure:
        options = {"folder": tmp_path / "out", "executor": None if local else pool, "progress": False}
        sweeps.sweep(tasks.leaving, grid(marks, values), **options)
    said = str(failure.value).splitlines()
    expected = {1: "SystemExit: enough", 2: "KeyboardInterrupt", 3: "its worker died in each of 1 attempts"}
    assert len(said) == len(values) - 1 and f"{len(values) - 2} of {len(values)} points failed" in said[0]
    for value in set(values) & set(expected):
        assert any(f'"value": {value}' in line and expected[value] in line for line in said[1:])
    assert sorted(row["value"] for row in finished(tmp_path / "out")) == [0, 4]


def test_local_processes_share_the_cores(tasks, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for row in sweeps.sweep(tasks.threads, {"value": [1, 2]}, folder=tmp_path, progress=False):
        assert row["threads"] == row["of kernels"] <= max(1, os.cpu_count() // 2)


def test_a_result_does_not_take_the_name_of_a_parameter(tasks, tmp_path):
    options = {"folder": tmp_path / "out", "progress": False}
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(RuntimeError, match=r"ValueError: .*\['value'\], which are"),
    ):
        sweeps.sweep(tasks.shadow, {"value": [1]}, executor=pool, **options)
    assert not finished(tmp_path / "out")


MODULES = {
    "own.py": "import own_helper\nfrom own_rooms import part\n\ndef task(point):\n    "
    "from own_late import late\n    return {'sum': own_helper.one() + part.two() + late() + add()}\n\n"
    "def add():\n    return 1\n",
    "own_helper.py": "def one():\n    return 10\n",
    "own_late.py": "def late():\n    return 1000\n",
    "own_rooms/__init__.py": "",
    "own_rooms/part.py": "from .deep import DEEP\n\ndef two():\n    return DEEP\n",
    "own_rooms/deep.py": "DEEP = 100\n",
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A task that uses another function of its module, another module, a package and a late import."""
    (tmp_path / "code" / "own_rooms").mkdir(parents=True)
    for name, text in MODULES.items():
        (tmp_path / "code" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield tmp_path / "code"
    for name in [name for name in sys.modules if name.startswith("own")]:
        del sys.modules[name]


def run_own(folder):
    """Run the task anew, as after a restart."""
    for name in [name for name in sys.modules if name.startswith("own")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    with ThreadPoolExecutor(1) as pool:
        rows = sweeps.sweep("own:task", {"a": [1]}, folder=folder, executor=pool, progress=False)
    return rows[0]["sum"], len(list(folder.glob("*.json")))


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("own.py", "return 1\n", "return 21\n", 1131),
        ("own_helper.py", "10", "330", 1431),
        ("own_late.py", "1000", "4000", 4111),
        ("own_rooms/deep.py", "100", "5500", 6511),
    ],
)
def test_a_changed_helper_is_run_again(own, tmp_path, file, old, new, expected):
    assert run_own(tmp_path / "out") == (1111, 1) == run_own(tmp_path / "out")
    (own / file).write_text(MODULES[file].replace(old, new))
    assert run_own(tmp_path / "out") == (expected, 2)
    (own / "apart.py").write_text("not used")
    assert run_own(tmp_path / "out") == (expected, 2)


def test_a_changed_galnb_is_run_again(tasks, notebook, tmp_path, monkeypatch):
    package = tmp_path / "galnb"
    shutil.copytree(
        Path(sweeps.__file__).parent, package, ignore=shutil.ignore_patterns("*.safetensors", "*.npz")
    )
    monkeypatch.setattr(sweeps, "__file__", str(package / "sweeps.py"))
    for run in ((tasks.echo, Path(tasks.__file__)), (notebook, notebook)):
        before = sweeps._code(*run)
        assert sweeps._code(*run) == before
        for name in ("files.py", "images/__init__.py", "weights/index.json"):
            (package / name).write_text((package / name).read_text() + "\n")
            after = sweeps._code(*run)
            assert after != before, name
            before = after


def test_only_failed_points_are_repeated(tasks, marks, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        options = {"folder": tmp_path / "out", "executor": pool, "progress": False}
        with pytest.raises(
            RuntimeError, match=r"the other 2 are kept in out(.|\n)*ValueError: value 2 is not"
        ):
            sweeps.sweep(tasks.flaky, grid(marks, [1, 2, 3]), **options)
        (marks / "mended").write_text("")
        assert len(sweeps.sweep(tasks.flaky, grid(marks, [1, 2, 3]), **options)) == 3
        assert [runs(marks, value) for value in (1, 2, 3)] == [1, 1, 1]
        with pytest.raises(
            RuntimeError,
            match=r"3 of 3(.|\n)*JSON compliant(.|\n)*returned a object(.|\n)*returned NoneType; exp",
        ):
            sweeps.sweep(tasks.odd, grid(marks, [0, 1, 2]), **options)


@posix
def test_a_dask_cluster_loses_a_worker_but_no_point(tasks, marks, tmp_path):
    distributed = pytest.importorskip("distributed")
    points, out = sweeps._points(grid(marks, list(range(6)), seconds=0.3)), tmp_path / "out"
    local = {"dashboard_address": None, "local_directory": str(tmp_path)}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, **local) as cluster,
        sweeps.dask_executor(cluster.scheduler_address) as executor,
        ThreadPoolExecutor(1) as background,
    ):
        killer = background.submit(kill_one_worker, marks, out, after=2)
        rows = sweeps.sweep(tasks.square, points, folder=out, executor=executor, progress=False)
        finished_before = killer.result(timeout=5)
    assert [row["square"] for row in rows] == [0, 1, 4, 9, 16, 25]
    assert all(runs(marks, value) == 1 for value in finished_before)


def test_a_scheduler_that_does_not_answer_is_named_soon():
    pytest.importorskip("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(OSError, match=f"Timed out trying to connect to {address} after 0.5 s"):
        sweeps.dask_executor(address, timeout=0.5).__enter__()


@pytest.fixture
def notebook(tmp_path):
    cells = [
        nbformat.v4.new_code_cell('sigma = 1\nout_dir = ""', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "import json, pathlib\n"
            "folder = pathlib.Path(out_dir, 'tiny')\nfolder.mkdir()\n"
            "values = {'twice': 2 * sigma, 'run': {}, 'exercises': {}}\n"
            "folder.joinpath('results.json').write_text(json.dumps(values))"
        ),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = tmp_path / "tiny.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def test_a_notebook_is_run_at_each_point_and_its_copy_kept(notebook, tmp_path, capsys):
    pytest.importorskip("papermill")
    arguments = ["sweep", str(notebook), "--grid", "sigma=0,0.5", "--out", str(tmp_path / "out")]
    arguments += ["--workers", "1"]  # kernels that start at once may take one another's port
    assert command_line.main(arguments) == 0, capsys.readouterr().err
    table = (tmp_path / "out/table.csv").read_text().splitlines()
    assert table[0] == "sigma,twice,executed" and [line.split(",")[:2] for line in table[1:]] == [
        ["0", "0"],
        ["0.5", "1.0"],
    ]
    copy = nbformat.read(tmp_path / "out" / table[2].split(",")[2], 4)
    assert any("sigma = 0.5" in cell.source for cell in copy.cells) and copy.cells[-1].outputs


def test_a_notebook_without_the_parameter_lists_those_it_has(notebook, tmp_path, capsys):
    pytest.importorskip("papermill")
    assert command_line.main(["sweep", str(notebook), "--grid", "sigmma=0,1"]) == 2
    assert "has no parameter ['sigmma'] to vary; it has ['sigma']" in capsys.readouterr().err
    with pytest.raises(ValueError, match="out_dir"):
        sweeps.sweep(notebook, {"out_dir": ["here"]}, folder=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"none\.ipynb"):
        sweeps.sweep(tmp_path / "none.ipynb", {"sigma": [1]}, folder=tmp_path / "out")


def test_bad_input_is_one_sentence(tasks, tmp_path, capsys):
    options = {"folder": tmp_path / "out", "progress": False}
    scope = {"__name__": "__typed_in__"}
    exec("def task(point):\n    return {}", scope)
    for task in (lambda point: {}, scope["task"]):  # nothing would tell that they changed
        with pytest.raises(ValueError, match=r"expected a function of a \.py file"):
            sweeps.sweep(task, {"value": [1]}, **options)
    with pytest.raises(ValueError, match="module:function"):
        sweeps.sweep("sweep_tasks:cube", {"value": [1]}, **options)
    with pytest.raises(ValueError, match="expected a function"):
        sweeps.sweep(print, {"value": [1]}, **options)
    with pytest.raises(ValueError, match="workers=0"):
        sweeps.sweep(tasks.square, {"value": [1]}, workers=0, **options)
    assert not Path(options["folder"]).exists()
    with ThreadPoolExecutor(1) as pool:
        options["executor"] = pool
        sweeps.sweep(tasks.echo, {"value": [1]}, **options)
    assert command_line.main(["sweep", "sweep_tasks:square", "--grid", "value"]) == 2
    assert "expected NAME=VALUE" in capsys.readouterr().err
