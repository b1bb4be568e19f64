"""Chapter 12, Systematics: one task at every point of a grid; what is finished is not run again."""

import contextlib
import hashlib
import importlib
import inspect
import itertools
import json
import math
import os
import queue
import re
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from galnb import __version__
from galnb.checks import at_least, optional
from galnb.files import imported, write_atomically

_STARTS = 3  # of a notebook's kernel
_Point = dict[str, Any]
_Task = Callable[..., Mapping[str, Any]]
_Calls = Mapping[Path, tuple]  # file of a point -> task, point, file
_Outcomes = Iterator[tuple[Path, _Point]]


def sweep(
    task: _Task | str | Path,
    grid: Mapping[str, Sequence] | Sequence[Mapping],
    *,
    folder: str | Path,
    executor: futures.Executor | None = None,
    workers: int = 2,
    attempts: int = 3,
    progress: bool = True,
) -> list[_Point]:
    """Run a task at every point that has no result in the folder yet; return the results of all points.

    task: a function of a module that takes a point (a dictionary) and returns a dictionary, its address
        "module:function", or a notebook (`.ipynb`), which papermill runs with the point as its parameters;
        its result is what it recorded, and "executed", its executed copy.
    grid: name -> values (numbers, text, booleans, None), all combinations of which are the points, the last
        name running fastest; or the points themselves.
    folder: takes one JSON file per point; on a cluster, a folder that all workers see.
    executor: what runs the points, such as `dask_executor`'s; it stays open. Default: `workers` local
        processes; after as many deaths of its process as `attempts` a point has failed.
    Returns, in the order of the points, their parameters and results. A RuntimeError names the points that
    failed (error, exit, death); all others are kept, and a later call repeats only these.
    A file is named by a hash of the point and of the code that can change its result: the task's module, what
    that imports (installed packages apart), and galnb. The worker writes it whole, as soon as the point ends.
    """
    at_least(1, workers=workers, attempts=attempts)
    points = _expand(grid) if isinstance(grid, Mapping) else [dict(point) for point in grid]
    run = _resolve(task, points)
    folder = Path(folder).expanduser().resolve()
    name, code = _name_and_code(run)
    keys = (hashlib.sha256(json.dumps([code, p], sort_keys=True).encode()).hexdigest() for p in points)
    paths = [folder / f"{name}-{key[:16]}.json" for key in keys]
    folder.mkdir(parents=True, exist_ok=True)
    calls = {p: (run, point, p) for p, point in zip(paths, points, strict=True) if not p.exists()}
    ended = _on_executor(executor, calls) if executor else _on_processes(calls, workers, attempts)
    failed: list[str] = []
    for path, outcome in tqdm(ended, total=len(calls), unit="point", disable=not progress):
        if "error" in outcome and not path.exists():
            failed.append(f"  {json.dumps(calls[path][1])}: {outcome['error']}")
        elif not path.exists():  # the workers of some clusters write to disks of their own
            _save(path, outcome)
    if failed:
        text = f"{len(failed)} of {len(points)} points failed, the other {len(points) - len(failed)} are kept"
        more = f"\n  ... and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise RuntimeError(f"{text} in {folder.name}:\n" + "\n".join(failed[:5]) + more)
    return [_row(path) for path in paths]


@contextlib.contextmanager
def dask_executor(scheduler: Any, *, timeout: float = 10.0) -> Iterator[futures.Executor]:
    """Open an executor on a Dask cluster; the cluster itself stays as it is.

    scheduler: address such as "tcp://node17:8786", or a cluster object, such as one of dask-jobqueue, which
        submits the workers to a batch system. timeout: s to wait for it; then ConnectionError.
    """
    distributed = optional("distributed", extra="dask", purpose="a cluster")
    try:
        client = distributed.Client(scheduler, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        said = f"no Dask scheduler answers at {scheduler} within {timeout:g} s"
        raise ConnectionError(said + "; start 'dask scheduler' and give the address it prints") from error
    with client:
        yield client.get_executor()


@dataclass(frozen=True)
class _Notebook:
    """A notebook as a task: papermill runs a copy for each point, in a folder of its own."""

    path: Path

    def __call__(self, point: _Point, folder: Path) -> _Point:
        import papermill

        copy = folder / self.path.name
        folder.mkdir(parents=True, exist_ok=True)
        how = {"kernel_name": "python3", "cwd": folder, "progress_bar": False}
        for start in range(1, _STARTS + 1):
            try:
                papermill.execute_notebook(self.path, copy, {**point, "out_dir": str(folder)}, **how)
                break
            except RuntimeError as error:  # kernels that start at once may take one another's port
                if start == _STARTS or not str(error).startswith(("Kernel didn't", "Kernel died before")):
                    raise
        written = sorted(folder.rglob("results.json"))
        if len(written) != 1:
            raise ValueError(f"{copy.name} wrote {len(written)} results.json below out_dir; expected one")
        kept = json.loads(written[0].read_text(encoding="utf-8")) | {"executed": f"{folder.name}/{copy.name}"}
        return {name: value for name, value in kept.items() if name not in ("run", "exercises")}

    def check(self, points: Sequence[_Point]) -> None:
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no notebook {self.path}")
        papermill = optional("papermill", extra="book", purpose="a notebook as the task")
        known = list(papermill.inspect_notebook(str(self.path)))
        unknown = sorted({name for point in points for name in point} - (set(known) - {"out_dir"}))
        if unknown or "out_dir" not in known:
            wrong = f"no parameter {', '.join(unknown)} to vary" if unknown else "not the parameter out_dir"
            raise ValueError(f"{self.path.name} has {wrong}; its cell 'parameters' has: {', '.join(known)}")


def _expand(grid: Mapping[str, Sequence]) -> list[_Point]:
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"{name} is {values!r}; expected a list with at least one value")
        if len({_text(name, value) for value in values}) < len(values):
            raise ValueError(f"{name} has a value twice in {list(values)}; name each once")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()) if grid]


def _resolve(task: _Task | str | Path, points: Sequence[_Point]) -> _Task:
    """Return the task as something to call, after a look at it and at the points."""
    if not points:
        raise ValueError("there is no point to run; expected a grid with at least one parameter")
    for name, value in itertools.chain(*(point.items() for point in points)):
        _text(name, value)
    if isinstance(task, Path) or str(task).endswith(".ipynb"):
        notebook = _Notebook(Path(task).expanduser().resolve())
        notebook.check(points)
        return notebook
    if isinstance(task, str):
        module, _, name = task.partition(":")
        try:
            task = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"task is {task!r} ({error}); expected a .ipynb or 'module:function'") from error
    if not inspect.isfunction(task):
        raise ValueError(f"task is {task!r}; expected a function of a module, or the path of a notebook")
    if (
        "<" in task.__qualname__ or _file(task) is None
    ):  # <lambda>, <locals>, typed in: no file tells a change
        raise ValueError(f"other processes cannot import {task.__qualname__}; put it into a .py file")
    return task


def _name_and_code(run: _Task) -> tuple[str, str]:
    """Return the task's name and a hash of all code that can change its results."""
    if isinstance(run, _Notebook):
        cells = json.loads(run.path.read_text(encoding="utf-8"))["cells"]
        own = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        name, file, text = run.path.stem, run.path, re.sub(r"(?m)^([ \t]*)[%!].*$", r"\1pass", "\n".join(own))
    else:
        name, own, file = run.__name__, [run.__qualname__], Path(_file(run))
        text = file.read_text(encoding="utf-8")
    stdlib, package = sysconfig.get_path("stdlib"), Path(__file__).parent
    roots = [p for p in sys.path if not p.startswith(stdlib) and not re.search("(site|dist)-packages", p)]
    found = imported(text, file.resolve().parent, roots=[Path(place).resolve() for place in roots])
    files = {*found, *package.rglob("*.py"), *package.rglob("*.toml"), package / "weights" / "index.json"}
    parts = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file())
    return name, hashlib.sha256(json.dumps([__version__, name, own, text, parts]).encode()).hexdigest()


def _file(task: _Task) -> str | None:
    return getattr(sys.modules.get(task.__module__), "__file__", None)


def _run_point(run: _Task, point: _Point, path: Path) -> _Point:
    """Run one point in a worker and write its file; an error comes back as text, not all of them pickle."""
    if path.exists():  # a scheduler hands a point out again if its worker died after the point had ended
        return json.loads(path.read_text(encoding="utf-8"))
    started = time.perf_counter()
    try:
        values = run(dict(point), *([path.with_suffix("")] if isinstance(run, _Notebook) else []))
        if not isinstance(values, Mapping):
            raise ValueError(f"the task returned {type(values).__name__}; expected a dictionary")
        if shared := sorted(set(values) & set(point)):
            raise ValueError(f"the task returned {shared}, which are parameters; give results other names")
        seconds = round(time.perf_counter() - started, 3)
        _save(path, {"galnb": __version__, "point": point, "values": dict(values), "seconds": seconds})
    except BaseException as error:  # whatever it is, also an exit: it is this point's outcome
        return {"error": f"{type(error).__name__}: {str(error).strip()[-2000:]}"}
    return json.loads(path.read_text(encoding="utf-8"))


def _on_executor(executor: futures.Executor, calls: _Calls, run: Callable = _run_point) -> _Outcomes:
    """Yield points as they end on an executor; what it raises is the outcome of the point."""
    running: dict[futures.Future, Path] = {}
    try:
        for path, call in calls.items():
            running[executor.submit(run, *call)] = path
        for future in futures.as_completed(running):
            try:
                yield running[future], future.result()
            except Exception as error:  # a lost worker has another name in each kind of executor
                yield running[future], {"error": f"worker lost, {type(error).__name__}: {error}"}
    finally:
        for future in running:
            future.cancel()


def _on_processes(calls: _Calls, workers: int, attempts: int) -> _Outcomes:
    """Yield points as they end on local processes, each on one of its own: a death costs no other point."""
    width, pools = max(1, min(workers, len(calls))), queue.SimpleQueue()
    how = (1, get_context("spawn"), _limit_threads, (max(1, (os.cpu_count() or 1) // width),))

    def run(*call: Any) -> _Point:
        for _ in range(attempts):
            pool = pools.get() or futures.ProcessPoolExecutor(*how)
            try:
                return pool.submit(_run_point, *call).result()
            except futures.BrokenExecutor:
                pool = pool.shutdown()
            finally:
                pools.put(pool)
        return {"error": f"its worker died in each of {attempts} attempts (out of memory?)"}

    for _ in range(width):
        pools.put(None)
    try:
        with futures.ThreadPoolExecutor(width) as watchers:
            yield from _on_executor(watchers, calls, run)
    finally:
        while not pools.empty():
            if pool := pools.get():
                pool.shutdown()


def _limit_threads(threads: int) -> None:
    """Share the cores between workers: runs before a worker imports torch, and its kernels inherit it."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))


def _save(path: Path, outcome: _Point) -> None:
    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):  # tensors, arrays and their scalars
            return value.tolist()
        raise ValueError(f"the task returned a {type(value).__name__}; expected numbers, text, lists, dicts")

    write_atomically(path, json.dumps(outcome, indent=1, allow_nan=False, default=plain).encode())


def _row(path: Path) -> _Point:
    try:
        outcome = json.loads(path.read_text(encoding="utf-8"))
        return {**outcome["point"], **outcome["values"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of a sweep; move it away to run its point again") from error


def _text(name: str, value: Any) -> str:
    """Return a value as JSON, in which 1, 1.0 and True differ."""
    if isinstance(value, bool | int | str | None) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    raise ValueError(f"{name} is {value!r}; expected a finite number, a text, True, False or None")
