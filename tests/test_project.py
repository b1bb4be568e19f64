"""The frame of the project: what its files say must agree, and nothing of one machine may stand in them."""

import ast
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import galnb

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = PROJECT["urls"]["Repository"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXTRAS = PROJECT["optional-dependencies"]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, 4)


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


# ---- environment


def test_environment_yml_asks_for_the_same_as_pyproject():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    by_pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    asked = [entry for entry in [*listed, *by_pip] if isinstance(entry, str) and not entry.startswith("--")]
    conda = {canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, asked)}
    conda["torch"] = conda.pop("pytorch")
    assert conda.pop("python") == PROJECT["requires-python"]
    conda.pop("pip")
    groups = [PROJECT["dependencies"], *(EXTRAS[name] for name in EXTRAS if name != "dask")]
    pip = {canonicalize_name(r.name): str(r.specifier) for group in groups for r in map(Requirement, group)}
    assert conda == pip


@pytest.mark.parametrize("python", ["3.11.7", "3.12.4", "3.13.1"])
def test_constraints_pin_each_requirement_once_per_python(python):
    environment = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    pins = {}
    for requirement in pinned():
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in pins, f"{name} is pinned twice for Python {python}"
            assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"{requirement} is not exact"
            pins[name] = requirement.specifier
    for group in [PROJECT["dependencies"], *EXTRAS.values()]:
        for requirement in map(Requirement, group):
            pin = next(iter(pins[canonicalize_name(requirement.name)]))
            assert requirement.specifier.contains(pin.version), f"{requirement} against {pin}"


def test_torch_and_torchvision_are_a_pair():
    pins = {r.name: str(r.specifier) for r in pinned() if r.name in ("torch", "torchvision")}
    assert pins == {"torch": "==2.14.1", "torchvision": "==0.29.1"}


def test_floors_are_met_by_colab():
    # Versions of Colab's runtime of August 2026; installing galnb there must replace none of them.
    colab = {
        "ipywidgets": "7.7.1",
        "matplotlib": "3.10.0",
        "numpy": "2.1.3",
        "pillow": "11.3.0",
        "safetensors": "0.8.0",
        "scikit-image": "0.25.2",
        "scipy": "1.16.3",
        "torch": "2.11.0",
        "tqdm": "4.67.3",
        "astropy": "7.2.2",
    }
    for requirement in map(Requirement, [*PROJECT["dependencies"], *EXTRAS["sky"], *EXTRAS["radio"]]):
        if requirement.name in colab:
            assert requirement.specifier.contains(colab[requirement.name]), requirement


# ---- address, version, citation


def test_the_public_address_is_the_same_everywhere():
    owner_and_name = ADDRESS.removeprefix("https://github.com/")
    assert re.fullmatch(r"[\w-]+/[\w-]+", owner_and_name)
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["repository"]["url"] == ADDRESS
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == ADDRESS
    for path in [ROOT / "README.md", *(ROOT / "book").glob("*.md"), *NOTEBOOKS]:
        for found in re.findall(r"github\.com/([\w.-]+/galnb)\b", path.read_text(encoding="utf-8")):
            assert found == owner_and_name, path


def test_the_version_is_the_same_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == galnb.__version__
    assert f"## {galnb.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"{ADDRESS}@v{galnb.__version__}" in (ROOT / "README.md").read_text()


def test_citation_file_is_valid():
    schema = json.loads((ROOT / "tests/data/citation-file-format-1.2.0.schema.json").read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    jsonschema.validate(citation, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**citation, "licence": "BSD-3-Clause"}, schema)


def test_licences_agree():
    assert PROJECT["license"] == yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"]
    assert (ROOT / "LICENSE").read_text().startswith("BSD 3-Clause")
    assert "CC BY 4.0" in (ROOT / "LICENSE-TEXT").read_text()


# ---- what must not be in git


def test_nothing_of_one_machine_stands_in_the_repository():
    forbidden = re.compile(
        r"/(?:work|root|tmp|opt|mnt)/\w|/home/\w|/Users/\w|[A-Z]:\\Users|file://|\.pyenv|localhost:\d"
        r"|pypi\.org|pythonhosted|download\.pytorch\.org|registry\.npmjs|conda\.anaconda"
    )
    own = {Path(__file__), ROOT / "tests/data/citation-file-format-1.2.0.schema.json"}
    for path in set(tracked_files()) - own:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        assert not (hit := forbidden.search(text)), f"{path.relative_to(ROOT)}: {hit.group()}"


def test_no_large_files_in_git():
    large = {path.name: path.stat().st_size for path in tracked_files() if path.stat().st_size > 6 * 2**20}
    assert not large


# ---- table of contents


def toc_files():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def test_toc_names_every_notebook_and_page_once():
    listed = toc_files()
    assert len(listed) == len(set(listed))
    pages = {f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")}
    notebooks = {f"notebooks/{path.stem}" for path in NOTEBOOKS}
    assert set(listed) - {"CHANGELOG"} == pages | notebooks


# ---- notebook lint


@each_notebook
def test_notebook_has_no_outputs_and_readable_ids(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert not {"papermill", "widgets"} & set(notebook.metadata)
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z][a-z0-9_-]{2,}", cell.id), cell.id
        assert not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f-]+)?", cell.id), f"{cell.id} is a random id"
        assert not {"papermill", "execution"} & set(cell.metadata)
    for cell in code(path):
        assert not cell.outputs and cell.execution_count is None, cell.id


def test_the_hook_that_strips_outputs_leaves_the_sources_as_they_are(tmp_path):
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    options = shlex.split(next(hook["entry"] for hook in hooks if hook["id"] == "strip-outputs"))[1:]
    copies = [Path(shutil.copy(path, tmp_path)) for path in NOTEBOOKS]
    subprocess.run([sys.executable, "-m", "nbstripout", *options, *map(str, copies)], check=True)
    for path, copy in zip(NOTEBOOKS, copies, strict=True):
        assert json.loads(copy.read_text()) == json.loads(path.read_text()), path.stem


def asked_of_pip(source):
    """Run an install cell as IPython would and return what it hands to pip."""
    asked = []
    shell = SimpleNamespace(run_line_magic=lambda name, line: asked.append(line))
    exec(TransformerManager().transform_cell(source), {"get_ipython": lambda: shell})
    return asked


@pytest.mark.parametrize(
    "found", [None, SimpleNamespace(origin=None)], ids=["nothing", "a folder of that name"]
)
def test_the_install_cell_installs_where_galnb_is_not(found, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    for path in NOTEBOOKS:
        (line,) = asked_of_pip(read(path).cells[1].source)
        assert line.startswith("install --quiet") and ADDRESS in line


@each_notebook
def test_notebook_opens_as_the_template_says(path):
    opening, install, parameters, start = read(path).cells[:4]
    assert opening.cell_type == "markdown" and opening.source.startswith("# ")
    for part in ("**You will learn to**", "| concept | importance |", "Time", "(../book/run_times.md)"):
        assert part.lower() in re.sub(r"\s*\|\s*", " | ", opening.source).lower(), part
    assert {"skip-execution", "hide-cell", "install"} <= set(tags(install))
    target = f"{ADDRESS}@v{galnb.__version__}"
    asks = rf'%pip install --quiet "galnb(\[[a-z,]+\])? @ git\+{re.escape(target)}"'
    assert re.fullmatch(asks, install.source.splitlines()[-1].strip())
    assert asked_of_pip(install.source) == []
    extras = re.findall(r"[a-z]+", (re.search(r"\[(.+)\]", install.source) or [""])[0])
    assert set(extras) <= set(EXTRAS)
    assert tags(parameters) == ["parameters"]
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(parameters.source).body}
    asked = {"preset": "quick", "seed": 0, "device": "auto", "out_dir": ""}
    assert {name: values[name] for name in asked} == asked
    assert f'notebook.start("{path.stem}"' in re.sub(r"\(\s+", "(", start.source)
    assert "print(run.summary())" in start.source


@each_notebook
def test_notebook_has_the_headings_of_the_template(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    headings = re.findall(r"^(#+) (.+)$", text, flags=re.MULTILINE)
    assert [level for level, _ in headings].count("#") == 1
    depths = [len(level) for level, _ in headings]
    assert all(after <= before + 1 for before, after in itertools.pairwise(depths))
    sections = [title for level, title in headings if level == "##"]
    assert sections[-4:] == ["Summary", "Exercises", "What's next", "References"]
    assert len(sections) >= 6


@each_notebook
def test_notebook_has_three_exercises_with_solutions(path):
    cells = code(path)
    asked = [i for i, cell in enumerate(cells) if re.search(r"^answer = None\b", cell.source, re.MULTILINE)]
    assert len(asked) >= 3
    for index in asked:
        exercise, solution = cells[index], cells[index + 1]
        assert {"hide-cell", "solution"} <= set(tags(solution)), exercise.id
        name = r"run\.check\(\s*(['\"][^'\"]+['\"])"
        assert re.findall(name, exercise.source) == re.findall(name, solution.source) != [], exercise.id


def test_the_ledger_keeps_to_the_vocabulary_of_verdicts():
    rows = [line for line in (ROOT / "book/claims.md").read_text().splitlines() if line.startswith("| ")]
    verdicts = [row.strip("| ").split(" | ")[-1] for row in rows]
    assert len(verdicts) > 70
    for verdict in verdicts:
        words = (
            r"reproduced|partly|not reproduced|open: needs |done|reached in|completeness: |verdict|:-- |\{\{"
        )
        assert re.match(words, verdict) or verdict == ":--", verdict


@each_notebook
def test_notebook_cells_are_short_and_plain(path):
    for cell in read(path).cells:
        assert "{{" not in cell.source, "substitutions do not work in Jupyter or Colab"
        assert not re.search(r"^(AFTER|BEFORE)$|\b(TODO|FIXME|XXX|TBD)\b", cell.source, re.MULTILINE), cell.id
        assert "raises-exception" not in tags(cell), "papermill would fail; show errors with try/except"
    for cell in code(path):
        tree = ast.parse(re.sub(r"(?m)^( *)%.*$", r"\1pass", cell.source))
        statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
        count = sum(not isinstance(node, ast.Import | ast.ImportFrom) for node in statements)
        folded = {"hide-input", "hide-cell"} & set(tags(cell))
        assert count <= (40 if folded else 20), (
            f"{cell.id} has {count} statements; move what repeats into galnb"
        )


@each_notebook
def test_named_figures_have_alt_text_and_caption(path):
    names = []
    for cell in code(path):
        figure, image = (cell.metadata.get("mystnb", {}).get(key, {}) for key in ("figure", "image"))
        if figure or image:
            names.append(figure["name"])
            assert figure["name"].startswith("fig-") and figure["caption"].rstrip().endswith((".", "?"))
            assert len(image["alt"]) >= 40, f"{cell.id}: say what is seen"
            assert image["alt"] != figure["caption"]
    assert names and len(names) == len(set(names))


def test_figure_names_are_unique_in_the_book():
    named = [
        cell.metadata.get("mystnb", {}).get("figure", {}).get("name") for p in NOTEBOOKS for cell in code(p)
    ]
    names = [name for name in named if name]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
