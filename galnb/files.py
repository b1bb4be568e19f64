"""Writing files as a whole or not at all; finding the Python files that code uses."""

import ast
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

RESERVED = ("run", "exercises", "solutions")  # of results.json: what no chapter records


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole: a reader sees the old content or the new, never a part; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with open(scratch, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def imported(source: str, folder: Path, *, roots: Sequence[Path]) -> set[Path]:
    """Return the Python files below `roots` that source in a folder uses.

    Directly or through one another; a module is used where it is imported, reached as an attribute
    (`package.module`) or named in a text of its own ("package.module"), and the `__init__` above it with it.
    """
    found: set[Path] = set()
    waiting = [(source, folder)]
    while waiting:
        text, folder = waiting.pop()
        for level, parts in _names(text):
            for base in [folder, *folder.parents][level - 1 : level] if level else roots:
                for depth in range(0 if level else 1, len(parts) + 1):
                    place = base.joinpath(*parts[:depth])
                    for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
                        if file not in found and file.is_file():
                            found.add(file)
                            waiting.append((file.read_text(encoding="utf-8"), file.parent))
    return found


def _names(source: str) -> Iterator[tuple[int, list[str]]]:
    """Yield dotted names that may be modules, in parts, each with the number of dots in front."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # who runs it reports it
        return
    bound: dict[str, tuple[int, list[str]]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                parts = f"{getattr(node, 'module', None) or ''}.{alias.name}".strip(".").split(".")
                bound[alias.asname or alias.name] = getattr(node, "level", 0), parts
                yield getattr(node, "level", 0), parts
    for text in set(re.findall(r"\w+(?:\.\w+)+", source)):  # an attribute, or a text of its own
        first, *rest = text.split(".")
        level, parts = bound.get(first, (0, [first]))
        yield level, [*parts, *rest]
