"""Run every benchmark of this folder, each in a fresh process, and keep the tables.

    python -m benchmarks [name ...]        such as: python -m benchmarks importing

A benchmark is a file with a `main()` that returns a Markdown table of ratios taken in one run on one machine.
The tables go to the screen and to `_build/benchmarks.md`.
"""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CODE = "import importlib, sys; print(importlib.import_module('benchmarks.' + sys.argv[1]).main())"


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all; return 1 if one failed, else 0."""
    known = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"no benchmark is named {', '.join(unknown)}; known are {', '.join(known)}", file=sys.stderr)
        return 2
    report = [f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"]
    failed = []
    for name in names or known:
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", CODE, name], cwd=HERE.parent, capture_output=True, text=True
        )
        if done.returncode:
            failed.append(name)
        table = done.stdout.strip() or f"failed:\n\n{done.stderr.strip()[-2000:]}"
        report.append(f"## {name}\n\n{table}\n\n({time.perf_counter() - started:.0f} s)")
        print(report[-1], flush=True)
    target = HERE.parent / "_build" / "benchmarks.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n\n".join(["# Benchmarks", *report]) + "\n", encoding="utf-8")
    print(
        f"\nwritten to {target.relative_to(HERE.parent)}"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
