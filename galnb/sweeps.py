"""Chapter 12, Systematics: one task at every point of a grid; what is finished is not run again."""

import contextlib
import hashlib
import inspect
import itertools
import json
import math
import os
import pkgutil
import re
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from galnb import __version__
from galnb.checks import at_least, optional
from galnb.files import RESERVED, imported, write_atomically

_ATTEMPTS = 3  # of a point whose process dies
_Point = dict[str, Any]
_Task = Callable[[_Point], Mapping[str, Any]] | Path  # a notebook is its path


def sweep(
    task: _Task | str,
    grid: Mapping[str, Sequence] | Sequence[Mapping],
    *,
    folder: str | Path,
    executor: futures.Executor | None = None,
    workers: int = 2,
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
        processes; a point whose process died three times has failed.
    Returns, in the order of the points, their parameters and results. A RuntimeError names points that failed
    (error, exit, death); all others are kept, and a later call repeats only these.
    A file is named by a hash of the point and of the code that can change its result: the task's module, what
    that imports (installed packages apart), and galnb. The worker writes it whole, as soon as the point ends.
    """
    at_least(1, workers=workers)
    points = _points(grid)
    task, file = _found(task, points)
    folder, code = Path(folder).expanduser().resolve(), _code(task, file)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{file.stem}-{_digest(code, point)[:16]}.json" for point in points]
    missing = {path: point for path, point in zip(paths, points, strict=True) if not path.exists()}
    local = _processes(min(workers, len(missing) or 1))
    with contextlib.nullcontext(executor.submit) if executor else local as submit:
        running = {submit(_run_point, task, point, path): path for path, point in missing.items()}
        ended = tqdm(futures.as_completed(running), total=len(running), unit="point", disable=not progress)
        try:
            errors = {running[future]: _error(future, running[future]) for future in ended}
        finally:
            for future in running:
                future.cancel()
    if failed := [f"  {json.dumps(missing[path])}: {error}" for path, error in errors.items() if error]:
        text = f"{len(failed)} of {len(points)} points failed, the other {len(points) - len(failed)} are kept"
        raise RuntimeError("\n".join([f"{text} in {folder.name}; the first that failed:", *failed[:5]]))
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return [{**row["point"], **row["values"]} for row in rows]


@contextlib.contextmanager
def dask_executor(scheduler: Any, *, timeout: float = 10.0) -> Iterator[futures.Executor]:
    """Open an executor on a Dask cluster; the cluster itself stays as it is.

    scheduler: address such as "tcp://node17:8786", or a cluster object, such as one of dask-jobqueue, which
        submits the workers to a batch system. timeout: s to wait for it; then OSError.
    """
    distributed = optional("distributed", extra="dask", purpose="a cluster")
    with distributed.Client(scheduler, timeout=timeout, set_as_default=False) as client:
        yield client.get_executor()


def _points(grid: Mapping[str, Sequence] | Sequence[Mapping]) -> list[_Point]:
    if isinstance(grid, Mapping):
        for name, values in grid.items():
            listed = isinstance(values, Sequence) and not isinstance(values, str)
            if not listed or len(set(map(repr, values))) < len(values):  # 1, 1.0 and True differ
                raise ValueError(f"{name} is {values!r}; expected a list without a value twice")
        grid = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if not any(grid):
        raise ValueError("there is no point to run; expected a grid with at least one value for each name")
    for name, value in itertools.chain(*(point.items() for point in grid)):
        infinite = isinstance(value, float) and not math.isfinite(value)
        if infinite or not isinstance(value, float | int | str | None):
            raise ValueError(f"{name} is {value!r}; expected a finite number, a text, True, False or None")
    return [dict(point) for point in grid]


def _found(task: _Task | str, points: Sequence[_Point]) -> tuple[_Task, Path]:
    """Return what to call, which other processes must be able to import, and the file it stands in."""
    if str(task).endswith(".ipynb"):
        file = Path(task).expanduser().resolve()
        papermill = optional("papermill", extra="book", purpose="a notebook as the task")
        known = set(papermill.inspect_notebook(str(file))) - {"out_dir"}  # that is ours to give
        if unknown := sorted(set().union(*points) - known):
            raise ValueError(f"{file.name} has no parameter {unknown} to vary; it has {sorted(known)}")
        return file, file
    if isinstance(task, str):
        try:
            task = pkgutil.resolve_name(task)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"task is {task!r} ({error}); expected a .ipynb or 'module:function'") from error
    file = getattr(sys.modules.get(getattr(task, "__module__", "")), "__file__", None)
    if not inspect.isfunction(task) or "<" in task.__qualname__ or not file:  # lambdas, local or typed in
        raise ValueError(f"task is {task!r}; expected a function of a .py file, so that others can import it")
    return task, Path(file).resolve()


def _code(task: _Task, file: Path) -> str:
    """Return a hash of all code that can change the results of a task."""
    own, text = getattr(task, "__qualname__", ""), file.read_text(encoding="utf-8")
    if isinstance(task, Path):
        cells = json.loads(text)["cells"]
        own = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        text = re.sub(r"(?m)^([ \t]*)[%!].*$", r"\1pass", own)
    stdlib, package = sysconfig.get_path("stdlib"), Path(__file__).parent
    roots = [p for p in sys.path if not p.startswith(stdlib) and not re.search("(site|dist)-packages", p)]
    files = imported(text, file.parent, roots=[Path(place).resolve() for place in roots])
    files |= {*package.rglob("*.py"), *package.rglob("*.toml"), package / "weights" / "index.json"}
    return _digest(own, text, sorted(hashlib.sha256(one.read_bytes()).hexdigest() for one in files))


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _run_point(task: _Task, point: _Point, path: Path) -> tuple[bytes, str]:
    """Run a point in a worker, write its file; return its content or the error, as not all of them pickle."""
    if path.exists():  # a scheduler hands a point out again if its worker died after the point had ended
        return path.read_bytes(), ""
    try:
        values = task(dict(point)) if callable(task) else _run_notebook(task, point, path.with_suffix(""))
        if not isinstance(values, Mapping):
            raise ValueError(f"the task returned {type(values).__name__}; expected a dictionary")
        if shared := sorted(set(values) & set(point)):
            raise ValueError(f"the task returned {shared}, which are parameters; give results other names")
        outcome = {"galnb": __version__, "point": point, "values": dict(values)}
        content = json.dumps(outcome, indent=1, allow_nan=False, default=_plain).encode()
        write_atomically(path, content)
        return content, ""
    except BaseException as error:  # whatever it is, also an exit: it is this point's outcome
        return b"", f"{type(error).__name__}: {str(error).strip()[-2000:]}"


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        return value.tolist()
    raise ValueError(f"the task returned a {type(value).__name__}; expected numbers, text, lists, dicts")


def _error(future: futures.Future, path: Path) -> str:
    """Return the error of a point that has ended, if it left no result."""
    try:
        content, error = future.result()
    except Exception as lost:  # a lost worker has another name in each kind of executor
        content, error = b"", f"worker lost, {type(lost).__name__}: {lost}"
    if content and not path.exists():  # the workers of some clusters write to disks of their own
        write_atomically(path, content)
    return "" if path.exists() else error


@contextlib.contextmanager
def _processes(width: int) -> Iterator[Callable[..., futures.Future]]:
    """Open a `submit` to local processes, each watched by a thread: the death of one costs no other point."""
    own = threading.local()

    def renew() -> None:
        pool = futures.ProcessPoolExecutor(1, get_context("spawn"), _share_cores, (width,))
        own.pool = stack.enter_context(pool)

    def watch(*call: Any) -> tuple[bytes, str]:
        for _ in range(_ATTEMPTS):
            try:
                return own.pool.submit(*call).result()
            except futures.BrokenExecutor:
                renew()
        return b"", f"its worker died in each of {_ATTEMPTS} attempts (out of memory?)"

    with contextlib.ExitStack() as stack, futures.ThreadPoolExecutor(width, initializer=renew) as watchers:
        yield partial(watchers.submit, watch)


def _share_cores(workers: int) -> None:
    """Give this process, and the kernels it starts, its share of the cores."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())


def _run_notebook(notebook: Path, point: _Point, folder: Path) -> _Point:
    """Run a copy in a folder of its own; return what it recorded."""
    import papermill

    folder.mkdir(parents=True, exist_ok=True)
    copy, given = folder / notebook.name, {**point, "out_dir": str(folder)}
    papermill.execute_notebook(notebook, copy, given, kernel_name="python3", cwd=folder, progress_bar=False)
    written = sorted(folder.rglob("results.json"))
    if len(written) != 1:
        raise ValueError(f"{copy.name} wrote {len(written)} results.json below out_dir; expected one")
    kept = json.loads(written[0].read_text(encoding="utf-8")) | {"executed": f"{folder.name}/{copy.name}"}
    return {name: value for name, value in kept.items() if name not in RESERVED}
