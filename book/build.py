"""Make the book: run every notebook that needs it, render all pages strictly, print the address.

python -m book.build [--preset quick] [--seed 0]
"""

import argparse
import sys
import time
from pathlib import Path

from book.render import RenderFailed, pack, render
from book.run_notebooks import CELL_SECONDS, ROOT, NotebookFailed, run_all


def main() -> int:
    """Return 0 if every notebook ran and Sphinx had nothing to complain about, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="quick", choices=CELL_SECONDS)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--root", default=ROOT, type=Path, help="folder of another book with the same layout")
    parser.add_argument("--archive", action="store_true", help="also zip the book, with a checksum")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    started = time.perf_counter()
    try:
        executed = run_all(preset=arguments.preset, seed=arguments.seed, root=root)
        print("rendering ...", flush=True)
        first_page = render(executed, root=root)
    except (NotebookFailed, RenderFailed, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"The book is ready after {time.perf_counter() - started:.0f} s:\n  {first_page.as_uri()}")
    if arguments.archive:
        print(f"  {pack(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
