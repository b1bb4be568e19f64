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
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import galnb
from book import colab, notebooks

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = PROJECT["urls"]["Repository"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXTRAS = PROJECT["optional-dependencies"]
BRANCH = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["branch"]  # or a tag
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
    # Installing galnb there must replace none of what is there.
    groups = [PROJECT["dependencies"], *(EXTRAS[name] for name in ("radio", "sky", "features"))]
    for requirement in map(Requirement, itertools.chain(*groups)):
        if found := colab.pins().get(canonicalize_name(requirement.name)):
            assert requirement.specifier.contains(found), requirement


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
    assert BRANCH in ("main", f"v{galnb.__version__}")
    for name in ("README.md", "book/how_to_run.md"):
        assert re.findall(rf"{ADDRESS}@([\w.]+)", (ROOT / name).read_text()) == [BRANCH], name


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


def run_install_cell(monkeypatch, found, code=0, stderr=""):
    """Run the install cell where `found` is what Python knows of galnb; return what it asks pip."""
    asked = []

    def pip(command, **options):
        asked.append(command)
        return SimpleNamespace(returncode=code, stderr=stderr)

    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: found)
        patch.setattr("subprocess.run", pip)
        exec(notebooks.install_cell(), {})
    return asked


def test_the_install_cell_is_the_same_in_every_notebook():
    for path in NOTEBOOKS:
        (cell,) = [cell for cell in code(path) if "install" in tags(cell)]
        assert cell.source == notebooks.install_cell(), f"{path.name}: run python -m book.notebooks"


def test_the_install_cell_does_nothing_where_galnb_is(monkeypatch, capfd):
    assert not run_install_cell(monkeypatch, SimpleNamespace(origin="galnb/__init__.py"), code=1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "found", [None, SimpleNamespace(origin=None)], ids=["nothing", "a folder of that name"]
)
def test_the_install_cell_installs_quietly_where_galnb_is_not(found, monkeypatch, capfd):
    ((*command, wanted),) = run_install_cell(monkeypatch, found)
    assert command == [sys.executable, "-m", "pip", "install", "--quiet"]
    asked, place = wanted.split(" @ ")
    assert Requirement(asked).extras <= set(EXTRAS) and Requirement(asked).name == PROJECT["name"]
    assert place == f"git+{ADDRESS}@{BRANCH}"
    assert capfd.readouterr() == ("", "")


def test_the_install_cell_says_what_to_do_where_it_cannot_install(monkeypatch):
    with pytest.raises(ModuleNotFoundError, match=r"choose the kernel.*pip install 'galnb(?s:.*)no route"):
        run_install_cell(monkeypatch, None, code=1, stderr="no route to host")


@pytest.mark.parametrize(
    ("given", "marks"),
    [
        (["hide-input"], {"cellView": "form", "jupyter": {"source_hidden": True}}),
        (
            ["hide-cell", "solution"],
            {"cellView": "form", "jupyter": {"source_hidden": True, "outputs_hidden": True}},
        ),
        (["hide-cell", "install"], {"cellView": "form", "jupyter": {"source_hidden": True}}),
        (["parameters"], {}),
    ],
)
def test_a_cell_that_a_page_folds_is_folded_in_jupyterlab_and_colab(given, marks):
    cell = nbformat.v4.new_code_cell("1", metadata={"tags": given, "cellView": "code", "jupyter": {"x": 1}})
    notebooks.fold(cell)
    assert dict(cell.metadata) == {"tags": given, **marks}


@each_notebook
def test_notebook_is_in_order(path, tmp_path):
    copy = Path(shutil.copy(path, tmp_path))
    assert not notebooks.keep(copy), f"{path.name}: run python -m book.notebooks"


@each_notebook
def test_notebook_opens_as_the_template_says(path):
    opening, install, parameters, start = read(path).cells[:4]
    assert opening.cell_type == "markdown" and opening.source.startswith("# ")
    for part in ("**You will learn to**", "| concept | importance |", "Time", "(../book/run_times.md)"):
        assert part.lower() in re.sub(r"\s*\|\s*", " | ", opening.source).lower(), part
    assert {"skip-execution", "hide-cell", "install"} <= set(tags(install))
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
        assert "solution=True" in solution.source, f"{solution.id} would answer for the reader"
        assert not re.search(r"\banswer\b *=", solution.source), (
            f"{solution.id} takes the reader's answer away"
        )


def ledger():
    """Rows of the tables of the ledger, as dictionaries by the beginning of the column's head."""
    found, head = [], None
    for line in (ROOT / "book/claims.md").read_text().splitlines():
        cells = line.strip("| ").split(" | ")
        if not line.startswith("|"):
            head = None
        elif head is None:
            head = [re.split(r",? on \{\{", cell)[0] for cell in cells]
        elif set(line) - set("|:- "):
            found.append(dict(zip(head, cells, strict=True)))
    return found


def test_the_ledger_keeps_to_the_vocabulary_of_verdicts():
    verdicts = [row["verdict"] for row in ledger() if "verdict" in row]
    assert len(verdicts) > 70
    for verdict in verdicts:
        words = r"reproduced|partly|not reproduced|open: needs |done|reached in|completeness: |\{\{"
        assert re.match(words, verdict), verdict


def test_every_row_of_the_ledger_has_our_number():
    rows = ledger()
    assert 8 <= sum("how sure we are" in row for row in rows) <= 15, "a first screen"
    for row in rows:
        number = re.sub(r"\{\w+(:\w+)?\}`[^`]*`|chapter \d+", "", row["our number"])  # where it stands
        assert "{{" in number or re.search(r"\d", number) or re.match(r"none\b", number), number


def test_the_ledger_quotes_what_the_notebooks_record():
    kept = {path.stem: recorded(path) for path in NOTEBOOKS}
    quoted = re.findall(r"\{\{ r_(\w+) \}\}", (ROOT / "book/claims.md").read_text())
    assert len(set(quoted)) > 100
    for value in quoted:
        (name,) = [name for name in kept if value.startswith(f"{name}_")]
        rest = value.removeprefix(f"{name}_")
        assert any(rest == key or rest.startswith(f"{key}_") for key in kept[name]), value


def recorded(path):
    """Names that the code of a notebook gives to `run.record`."""
    trees = (ast.parse(re.sub(r"(?m)^( *)%.*$", r"\1pass", cell.source)) for cell in code(path))
    calls = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    asked = (call for call in calls if ast.unparse(call.func) == "run.record")
    return {keyword.arg for call in asked for keyword in call.keywords} - {None}


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


BARE = re.compile(r"(?<![\w/!])python -m (galnb|book|benchmarks)\b")


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "book").glob("*.md")), *NOTEBOOKS])
def test_commands_name_the_environment_that_make_builds(path):
    """Taken literally after `make book`, a bare `python` is the system's, which has no galnb."""
    texts = [path.read_text(encoding="utf-8")]
    if path.suffix == ".ipynb":
        texts = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    found = [line for text in texts for line in text.splitlines() if BARE.search(line)]
    assert [line for line in found if ".venv/bin/activate" not in line] == [], "say .venv/bin/python -m ..."
