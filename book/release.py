"""Make a release in one command: its number and its tag everywhere, then the book as one archive.

python -m book.release 0.2.0     (make release VERSION=0.2.0)
python -m book.release main      links and install cells back at the branch, for the work after it

Nothing is committed or sent; the last lines say what to do.
"""

import argparse
import datetime
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from book.run_notebooks import ROOT, notebook_paths
from galnb.files import write_atomically

BRANCH = "main"
NUMBER = r"\d+\.\d+\.\d+"


def refer(reference: str, root: Path = ROOT) -> None:
    """Let every link and install cell lead to a branch or tag of the repository."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project["urls"]["Repository"]
    pattern = rf"{re.escape(address)}@[\w.-]*\w"
    for path in [root / "README.md", *sorted((root / "book").glob("*.md")), *notebook_paths(root)]:
        _replace(path, pattern, f"{address}@{reference}", optional=True)
    _replace(root / "_config.yml", r"(?m)^  branch: .+$", f"  branch: {reference}")


def number(version: str, root: Path = ROOT) -> None:
    """Write the number of a version where it is told; its heading must stand in the changelog already."""
    today = datetime.date.today().isoformat()
    _replace(root / "CHANGELOG.md", rf"(?m)^## {re.escape(version)} \(.+\)$", f"## {version} ({today})")
    _replace(root / "galnb" / "__init__.py", r'__version__ = ".+"', f'__version__ = "{version}"')
    _replace(root / "CITATION.cff", r"(?m)^version: .+$", f"version: {version}")
    _replace(root / "book" / "how_to_cite.md", rf"version {NUMBER}", f"version {version}")


def _replace(path: Path, pattern: str, new: str, *, optional: bool = False) -> None:
    before = path.read_text(encoding="utf-8")
    after, count = re.subn(pattern, lambda _: new, before)
    if not (count or optional):
        raise ValueError(f"{path.name} has no line like {pattern!r}; a release wants to write {new!r} there")
    if after != before:
        write_atomically(path, after.encode())


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if everything was written and the book could be built, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", help=f"such as 0.2.0, or {BRANCH!r}")
    parser.add_argument("--root", default=ROOT, type=Path, help="another folder with the same layout")
    parser.add_argument("--no-build", action="store_true", help="write the files only")
    given = parser.parse_args(arguments)
    version, root = given.version, given.root.resolve()
    try:
        if version == BRANCH:
            refer(BRANCH, root)
            return 0
        if not re.fullmatch(NUMBER, version):
            raise ValueError(f"version is {version!r}; expected three numbers such as 0.2.0, or {BRANCH!r}")
        number(version, root)
        refer(f"v{version}", root)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if not given.no_build:  # in a process of its own: this one has read the old number already
        build = [sys.executable, "-m", "book.build", "--archive", "--root", str(root)]
        if subprocess.run(build, cwd=ROOT).returncode:
            return 1
    print(f"Now look at the changes, then: git commit -am 'Release {version}' && git tag v{version}")
    print(f"Push both, attach the archive to the release, and go on with: python -m book.release {BRANCH}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
