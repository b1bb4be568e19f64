"""Sweeps: one task at every point of a grid, on local processes or a cluster, resumed by hash."""

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import json
import math
import os
import pickle
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from galnb import __version__
from galnb.files import write_atomically

STARTS = 3  # of a notebook's kernel
Point = dict[str, Any]
Task = Callable[..., Mapping[str, Any]]


def expand(grid: Mapping[str, Sequence]) -> list[Point]:
    """Return every combination of the values, the last name running fastest.

    Parameters
    ----------
    grid : mapping
        Parameter name to its values: numbers, text, booleans or None, each once.

    Returns
    -------
    list of dict
        One dictionary of parameters per point.

    Raises
    ------
    ValueError
        If there is no parameter, one has no value or a value twice, or JSON cannot hold a value.

    Notes
    -----
    Chapter: Systematics
    """
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"{name} is {values!r}; expected a list with at least one value")
        if len({_text(name, value) for value in values}) < len(values):
            raise ValueError(f"{name} has a value twice in {list(values)}; name each once")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()) if grid]


def sweep(
    task: Task | str | Path,
    grid: Mapping[str, Sequence] | Sequence[Mapping],
    *,
    folder: str | Path,
    executor: futures.Executor | None = None,
    workers: int = 2,
    attempts: int = 3,
    progress: bool = True,
) -> list[Point]:
    """Run a task at every point that has no result in the folder yet; return the results of all points.

    Parameters
    ----------
    task : callable, str or Path
        A function of a module that takes a point and returns a dictionary, or its text "module:function",
        or the path of a notebook (`.ipynb`), which papermill runs with the point as its parameters.
    grid : mapping or sequence of mappings
        Values for `expand`, or the points themselves (such as a fold together with its seed).
    folder : str or Path
        Where results go: one JSON file per point. On a cluster, a folder that all workers see.
    executor : concurrent.futures.Executor, optional
        What runs the points, such as `dask_executor`'s; it stays open. Default: local processes.
    workers : int, default 2
        Number of local processes; they share the cores of the machine.
    attempts : int, default 3
        How often a point may lose its local worker before it counts as failed. (Dask counts by itself.)
    progress : bool, default True
        Whether to show a bar.

    Returns
    -------
    list of dict
        In the order of the points: the parameters and what the task returned for them. A notebook returns
        its `results.json` without "run" and "exercises", and "executed", its executed copy in `folder`.

    Raises
    ------
    ValueError, FileNotFoundError
        If the task, the points or a number makes no sense; nothing has run then.
    RuntimeError
        If points failed. All others have run, and a later call repeats only the failed ones.

    Notes
    -----
    A file is named by a hash of the task (its own source text, or the code of the notebook), the point and
    galnb's version. The worker writes it as a whole, as soon as the point ends: whatever is killed, a
    finished point is not run again. After a local worker has died, the points that it may have run are
    tried one by one, so that a point that kills its worker takes no other with it.

    Chapter: Systematics
    """
    if workers < 1 or attempts < 1:
        raise ValueError(f"workers is {workers} and attempts {attempts}; expected 1 or more of each")
    points = expand(grid) if isinstance(grid, Mapping) else [dict(point) for point in grid]
    run = _resolve(task, points, spawned=executor is None)
    folder = Path(folder).expanduser().resolve()
    paths = [folder / f"{name}.json" for name in _names(run, points)]
    folder.mkdir(parents=True, exist_ok=True)
    calls = {p: (run, point, p) for p, point in zip(paths, points, strict=True) if not p.exists()}
    failed: list[str] = []
    with tqdm(total=len(points), initial=len(points) - len(calls), unit="point", disable=not progress) as bar:
        ended = _on_executor(executor, calls) if executor else _on_processes(calls, workers, attempts)
        for path, outcome in ended:
            if "error" in outcome:
                failed.append(f"  {json.dumps(calls[path][1])}: {outcome['error']}")
            elif not path.exists():  # the workers of some clusters write to disks of their own
                _save(path, outcome)
            bar.update()
    if failed:
        text = f"{len(failed)} of {len(points)} points failed, the other {len(points) - len(failed)} are kept"
        more = [f"  ... and {len(failed) - 5} more"] if len(failed) > 5 else []
        raise RuntimeError("\n".join([f"{text} in {folder.name}:", *failed[:5], *more]))
    return [_row(path) for path in paths]


def finished(folder: str | Path) -> list[Point]:
    """Return every result in the folder of a sweep, also after a failure; ordered by file name.

    Notes
    -----
    Chapter: Systematics
    """
    return [_row(path) for path in sorted(Path(folder).expanduser().glob("*.json"))]


@contextlib.contextmanager
def dask_executor(scheduler: Any, *, timeout: float = 10.0) -> Iterator[futures.Executor]:
    """Open an executor on a Dask cluster; the cluster itself stays as it is.

    Parameters
    ----------
    scheduler : str or Dask cluster
        Address such as "tcp://node17:8786", or a cluster object.
    timeout : float, default 10
        Seconds to wait for the scheduler.

    Raises
    ------
    ConnectionError
        If no scheduler answers.
    ModuleNotFoundError
        If Dask is not installed.

    Notes
    -----
    Under a batch system, dask-jobqueue submits the workers::

        cluster = dask_jobqueue.SLURMCluster(cores=4, memory="8GB", walltime="04:00:00")
        cluster.scale(jobs=20)
        with dask_executor(cluster) as executor:
            rows = sweep(task, grid, folder="shared/folder", executor=executor)

    Chapter: Systematics
    """
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a cluster needs Dask: pip install 'dask[distributed]'") from error
    try:
        client = Client(scheduler, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {scheduler} within {timeout:g} s; start one with 'dask scheduler' "
            "and give the address that it prints"
        ) from error
    with client:
        yield client.get_executor()


@dataclass(frozen=True)
class _Notebook:
    """A notebook as a task: papermill runs a copy for each point, in a folder of its own."""

    path: Path

    def __call__(self, point: Point, folder: Path) -> Point:
        import papermill

        copy = folder / self.path.name
        folder.mkdir(parents=True, exist_ok=True)
        values = {**point, "out_dir": str(folder)}
        for start in range(1, STARTS + 1):
            try:
                papermill.execute_notebook(
                    self.path, copy, values, kernel_name="python3", cwd=folder, progress_bar=False
                )
                break
            except RuntimeError as error:  # kernels that start at once may take one another's port
                if start == STARTS or not str(error).startswith(("Kernel didn't", "Kernel died before")):
                    raise
        written = sorted(folder.rglob("results.json"))
        if len(written) != 1:
            raise ValueError(
                f"{self.path.name} wrote {len(written)} results.json below out_dir; expected one"
            )
        results = json.loads(written[0].read_text(encoding="utf-8"))
        kept = {name: value for name, value in results.items() if name not in ("run", "exercises")}
        return {**kept, "executed": f"{folder.name}/{copy.name}"}

    def check(self, points: Sequence[Point]) -> None:
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no notebook {self.path}")
        if importlib.util.find_spec("papermill") is None:
            raise ModuleNotFoundError("a notebook as the task needs papermill: pip install papermill")
        import papermill

        known = list(papermill.inspect_notebook(str(self.path)))
        unknown = sorted(
            {name for point in points for name in point if name not in known or name == "out_dir"}
        )
        if unknown or "out_dir" not in known:
            wrong = (
                f"has no parameter {', '.join(unknown)} to vary" if unknown else "lacks the parameter out_dir"
            )
            raise ValueError(
                f"{self.path.name} {wrong}; its cell tagged 'parameters' has: {', '.join(known)}"
            )


def _resolve(task: Task | str | Path, points: Sequence[Point], *, spawned: bool) -> Task:
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
            text = f"task is {task!r} ({error}); expected a notebook (.ipynb) or 'module:function'"
            raise ValueError(text) from error
    if not inspect.isfunction(task):
        raise ValueError(f"task is {task!r}; expected a function of a module, or the path of a notebook")
    try:
        pickle.dumps(task)
        typed_in = task.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__")
    except (pickle.PicklingError, AttributeError):
        typed_in = True
    if spawned and typed_in:
        raise ValueError(f"other processes cannot import {task.__qualname__}; put it into a .py file")
    return task


def _names(run: Task, points: Sequence[Point]) -> Iterator[str]:
    """Yield a file name per point: the task's name and a hash of all that can change the result."""
    if isinstance(run, _Notebook):
        name, cells = run.path.stem, json.loads(run.path.read_text(encoding="utf-8"))["cells"]
        source = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    else:
        name, source = run.__name__.strip("<>"), f"{run.__module__}.{run.__qualname__}"
        with contextlib.suppress(OSError, TypeError):  # typed in, or compiled from text
            source = inspect.getsource(run)
    for point in points:
        content = json.dumps([__version__, name, source, point], sort_keys=True)
        yield f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _run_point(run: Task, point: Point, path: Path) -> Point:
    """Run one point in a worker and write its file; an error comes back as text, not all of them pickle."""
    if path.exists():  # a scheduler hands a point out again if its worker died after the point had ended
        return json.loads(path.read_text(encoding="utf-8"))
    started = time.perf_counter()
    try:
        folder = (path.with_suffix(""),) if isinstance(run, _Notebook) else ()
        values = dict(run(dict(point), *folder))
        seconds = round(time.perf_counter() - started, 3)
        _save(path, {"galnb": __version__, "point": point, "values": values, "seconds": seconds})
    except Exception as error:  # whatever it is, it is this point's outcome
        return {"error": f"{type(error).__name__}: {str(error).strip()[-2000:]}"}
    return json.loads(path.read_text(encoding="utf-8"))


def _on_executor(executor: futures.Executor, calls: Mapping[Path, tuple]) -> Iterator[tuple[Path, Point]]:
    """Yield points as they end on an executor that looks after its own workers."""
    running = {executor.submit(_run_point, *call): path for path, call in calls.items()}
    try:
        for future in futures.as_completed(running):
            try:
                yield running[future], future.result()
            except Exception as error:  # a lost worker has another name in each kind of executor
                yield running[future], {"error": f"worker lost, {type(error).__name__}: {error}"}
    finally:
        for future in running:
            future.cancel()


def _on_processes(calls: Mapping[Path, tuple], workers: int, attempts: int) -> Iterator[tuple[Path, Point]]:
    """Yield points as they end on local processes; after a death a new pool tries the suspects one by one."""
    waiting, suspects, deaths = deque(calls), deque(), Counter()
    while waiting or suspects:
        queue, width = (suspects, 1) if suspects else (waiting, min(workers, len(waiting)))
        threads = max(1, (os.cpu_count() or 1) // width)
        running: dict[futures.Future, Path] = {}
        pool = futures.ProcessPoolExecutor(width, get_context("spawn"), _limit_threads, (threads,))
        with pool, contextlib.suppress(futures.BrokenExecutor):
            while queue or running:
                while queue and len(running) < width:  # none waits in the pool: a death names its suspects
                    running[pool.submit(_run_point, *calls[queue[0]])] = queue[0]
                    queue.popleft()
                for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                    outcome = future.result()
                    yield running.pop(future), outcome
        for path in running.values():  # empty, unless a worker died
            deaths[path] += 1
            if deaths[path] < attempts or path.exists():
                suspects.append(path)
            else:
                yield path, {"error": f"its worker died in each of {attempts} attempts (out of memory?)"}


def _limit_threads(threads: int) -> None:
    """Share the cores between workers: runs before a worker imports torch, and its kernels inherit it."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))


def _save(path: Path, outcome: Point) -> None:
    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):  # tensors, arrays and their scalars
            return value.tolist()
        raise ValueError(
            f"the task returned a {type(value).__name__}; expected numbers, text, lists or dicts"
        )

    write_atomically(path, json.dumps(outcome, indent=1, allow_nan=False, default=plain).encode())


def _row(path: Path) -> Point:
    try:
        outcome = json.loads(path.read_text(encoding="utf-8"))
        return {**outcome["point"], **outcome["values"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of a sweep; move it away to run its point again") from error


def _text(name: str, value: Any) -> str:
    """Return a value as JSON, in which 1, 1.0 and True differ."""
    finite = not isinstance(value, float) or math.isfinite(value)
    if not (isinstance(value, bool | int | float | str | None) and finite):
        raise ValueError(f"{name} is {value!r}; expected a finite number, a text, True, False or None")
    return json.dumps(value)
