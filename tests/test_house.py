"""The house: which room may import which, how large it may be, and what is admitted to it."""

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "galnb"
FILES = sorted(HOUSE.rglob("*.py"))
ANYWHERE = {"files", "checks"}
MAY_IMPORT = {
    "files": set(),
    "checks": set(),
    "images": set(),
    "blending": {"images"},
    "gans": {"images"},
    "training": {"gans", "blending", "images"},
    "relevance": {"gans"},
    "phantom": {"gans", "images"},
    "smearing": {"gans", "training", "images"},
    "evaluation": {"images", "blending", "gans"},
    "mosaic": {"images", "evaluation"},
    "classifiers": {"images", "blending", "gans"},
    "explorer": {"images", "blending", "gans", "relevance"},
    "plots": set(),
    "pages": set(),
    "notebook": {"training"},
    "sweeps": set(),
    "__init__": set(),
}


def room(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Dotted names of this package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "galnb":
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("galnb.")}
    return found


def arrows() -> set[tuple[str, str]]:
    pairs = {(room(path), name.split(".")[1]) for path in FILES for name in imported(path)}
    return {(start, end) for start, end in pairs if start != end and not end.startswith("__")}


def test_each_room_imports_only_what_stands_before_it():
    known = set(MAY_IMPORT) | {"__main__"}
    assert {room(path) for path in FILES} == known
    wrong = {
        (start, end)
        for start, end in arrows()
        if start != "__main__" and end not in MAY_IMPORT[start] | ANYWHERE
    }
    assert not wrong, f"imports against the direction of the house: {sorted(wrong)}"
    assert not {end for _, end in arrows() if end in ("__main__", "explorer", "pages")} - {"explorer"}


def test_the_allowed_imports_have_no_circle():
    order, left = [], dict(MAY_IMPORT)
    while left:
        ready = [name for name, needs in left.items() if not needs & set(left)]
        assert ready, f"a circle among {sorted(left)}"
        order += ready
        left = {name: needs for name, needs in left.items() if name not in ready}


def test_files_of_a_room_import_one_another_in_one_direction():
    def target(name: str) -> Path | None:
        parts = name.split(".")[1:]
        for length in (len(parts), len(parts) - 1):
            for path in (
                HOUSE.joinpath(*parts[:length]).with_suffix(".py"),
                HOUSE.joinpath(*parts[:length], "__init__.py"),
            ):
                if path in FILES and length:
                    return path
        return None

    needs = {path: {target(name) for name in imported(path)} - {None, path} for path in FILES}
    while needs:
        ready = {path for path, others in needs.items() if not others & set(needs)}
        assert ready, f"a circle of files: {sorted(str(path.relative_to(HOUSE)) for path in needs)}"
        needs = {path: others for path, others in needs.items() if path not in ready}


def code_lines(path: Path) -> int:
    """Lines that hold a token outside docstrings and comments."""
    documented = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                documented |= set(range(first.lineno, first.end_lineno + 1))
    silent = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
    }  # fmt: skip
    text, lines = path.read_text(encoding="utf-8"), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - documented)


def test_the_house_stays_small():
    lengths = {str(path.relative_to(HOUSE)): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: length for name, length in lengths.items() if length > 300}
    assert len(FILES) <= 45
    assert sum(lengths.values()) <= 8_000  # neither number may be raised
    assert sum(map(code_lines, FILES)) <= 5_000
    assert len(arrows()) <= 70


def public_names(path: Path) -> list[str]:
    names = []
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return [name for name in names if not name.startswith("_")]


@cache
def words(path: Path) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", path.read_text(encoding="utf-8")))


def readers() -> list[Path]:
    """What uses the package: chapters, studies and pages, benchmarks."""
    places = ("notebooks/*.ipynb", "book/*.py", "book/*.md", "benchmarks/*.py")
    return [path for place in places for path in sorted(ROOT.glob(place))] + [ROOT / "README.md"]


def test_every_public_name_has_a_user_outside_its_file():
    lonely = [
        f"{path.relative_to(HOUSE)}: {name}"
        for path in FILES
        for name in public_names(path)
        if not any(name in words(other) for other in [*FILES, *readers()] if other != path)
    ]
    assert not lonely, "make these private, or delete them"


def companions(path: Path) -> set[str]:
    """Types and constants that what is public in the same file works with: they come in with it."""
    public = [
        node for node in tree(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]  # fmt: skip
    return {
        word for node in public for part in node.body for word in re.findall(r"\b[A-Z]\w+", ast.unparse(part))
    } | {word for node in public for word in re.findall(r"\b[A-Z]\w+", ast.unparse(node).split("\n")[0])}


def test_rule_of_admission():
    """Two readers, or another room, or one reader and a test of its own in tests/."""
    tested = frozenset().union(*(words(path) for path in sorted((ROOT / "tests").glob("test_*.py"))))
    refused = []
    for path in FILES:
        if room(path) == "__main__":
            continue
        for name in public_names(path):
            used = sum(name in words(reader) for reader in readers())
            inside = any(name in words(other) for other in FILES if other != path)
            if not (inside or used >= 2 or (used and name in tested) or name in companions(path)):
                refused.append(f"{path.relative_to(HOUSE)}: {name}")
    assert not refused, "code that one chapter alone uses, and no test, is notebook code"


def test_no_room_is_a_facade():
    for path in FILES:
        defined = [node for node in tree(path).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert defined or path.parent == HOUSE, f"{path.relative_to(HOUSE)} only shows what stands elsewhere"


def rows(heading: str) -> list[list[str]]:
    """Cells of the table under a heading line of the contributor page."""
    page = (ROOT / "book" / "contributing.md").read_text(encoding="utf-8")
    table = page[page.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_map_of_the_house_is_true():
    drawn = {line[0].strip("` "): set(re.findall(r"`(\w+)`", line[2])) for line in rows("| room |")}
    assert drawn == {name: needs for name, needs in MAY_IMPORT.items() if name != "__init__"}


def test_each_place_for_a_new_thing_exists():
    for thing, place in rows("| a new … |"):
        named = re.findall(r"`(galnb/[\w/.]+)`", place)
        assert named and all((ROOT / name).exists() for name in named), thing
        for name in re.findall(r"`([A-Z_]{4,})`", place):
            texts = [(ROOT / file).read_text() for file in named if file.endswith(".py")]
            assert any(re.search(rf"^{name}\b.*=", text, re.MULTILINE) for text in texts), (thing, name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_docstrings_have_no_rulers_and_every_public_function_has_one(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"^\s*-{4,}\s*$", text, re.MULTILINE)
    assert ast.get_docstring(tree(path)), "a sentence that says what the file does"
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
