"""What `import galnb` adds to the start of a bare interpreter, and what else it loads."""

import statistics
import subprocess
import sys
import time

ROUNDS = 15
GOAL = 0.3  # seconds
HEAVY = ("torch", "matplotlib", "numpy")


def main() -> str:
    """Return a Markdown table; the two interpreters start in turn, so that both meet the same load."""
    bare, ours = [], []
    for _ in range(ROUNDS):
        bare.append(_seconds("pass"))
        ours.append(_seconds("import galnb"))
    code = f"import sys, galnb; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    start, total = statistics.median(bare), statistics.median(ours)
    added = statistics.median(b - a for a, b in zip(bare, ours, strict=True))
    rows = [
        ("", "median", "goal"),
        ("---", "---", "---"),
        ("bare interpreter", f"{start * 1e3:.1f} ms", ""),
        ("with `import galnb`", f"{total * 1e3:.1f} ms ({total / start:.2f}x)", ""),
        ("added by `import galnb`", f"{added * 1e3:.1f} ms", f"<= {GOAL * 1e3:.0f} ms"),
        (f"loaded of {', '.join(HEAVY)}", loaded or "none", "none"),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _seconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    print(main())
