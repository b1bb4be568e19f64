"""A release, on a copy of the repository: one number and one tag everywhere, and back again."""

import json
import re
import shutil
from pathlib import Path

import pytest

from book import notebooks, release
from book.run_notebooks import notebook_paths

ROOT = Path(__file__).parents[1]
KEPT = ("README.md", "CHANGELOG.md", "CITATION.cff", "_config.yml", "pyproject.toml", "galnb/__init__.py")


@pytest.fixture
def copy(tmp_path):
    for name in KEPT:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "book").mkdir()
    for page in (ROOT / "book").glob("*.md"):
        shutil.copy(page, tmp_path / "book")
    shutil.copytree(
        ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*", "*_output")
    )
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(
        changelog.read_text().replace("\n## ", "\n## 9.8.7 (unreleased)\n\n- New.\n\n## ", 1)
    )
    return tmp_path


def contents(root):
    return {path.relative_to(root): path.read_text() for path in root.rglob("*.*") if path.is_file()}


def install_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if "install" in cell["metadata"].get("tags", [])]


def test_a_release_writes_one_number_and_one_tag_everywhere(copy):
    before = contents(copy)
    assert release.main(["9.8.7", "--root", str(copy), "--no-build"]) == 0
    after = contents(copy)
    assert '__version__ = "9.8.7"' in after[Path("galnb/__init__.py")]
    assert "\nversion: 9.8.7\n" in after[Path("CITATION.cff")]
    assert re.search(r"\n## 9\.8\.7 \(\d{4}-\d\d-\d\d\)\n", after[Path("CHANGELOG.md")])
    assert "version 9.8.7, chapter" in after[Path("book/how_to_cite.md")]
    assert "\n  branch: v9.8.7\n" in after[Path("_config.yml")]
    for path, text in after.items():
        assert set(re.findall(r"galnb/galnb@([\w.-]*\w)", text)) <= {"v9.8.7"}, path
    for path in notebook_paths(copy):
        assert install_cells(path) == [notebooks.install_cell(copy)] and "@v9.8.7" in path.read_text(), (
            path.name
        )
    untouched = {path for path in before if before[path] == after[path]}
    assert Path("pyproject.toml") in untouched and Path("book/glossary.md") in untouched


def test_after_a_release_everything_goes_back_to_the_branch(copy):
    release.main(["9.8.7", "--root", str(copy), "--no-build"])
    assert release.main(["main", "--root", str(copy)]) == 0
    for path in notebook_paths(copy):
        assert install_cells(path) == [notebooks.install_cell(copy)] and "v9.8.7" not in path.read_text()
    assert "\n  branch: main\n" in (copy / "_config.yml").read_text()
    assert '__version__ = "9.8.7"' in (copy / "galnb/__init__.py").read_text(), "the number stays"


@pytest.mark.parametrize(
    ("version", "said"),
    [("v9.8.7", "three numbers"), ("9.8", "three numbers"), ("9.9.9", "CHANGELOG.md has no")],
)
def test_a_release_that_cannot_be_changes_nothing(copy, version, said, capsys):
    before = contents(copy)
    assert release.main([version, "--root", str(copy), "--no-build"]) == 1
    assert said in capsys.readouterr().err and contents(copy) == before
