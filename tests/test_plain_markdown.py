"""The text of a notebook reads well in JupyterLab and Colab, which know plain Markdown only."""

import re
from pathlib import Path
from urllib.parse import quote, unquote

import nbformat
import pytest
from pybtex.database import parse_file
from pybtex.richtext import Text

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WORKS = parse_file(str(ROOT / "book" / "references.bib")).entries
PAGE_OF_WORKS = "../book/bibliography.md"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def prose(path):
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]


def without_code(text):
    return re.sub(r"```.*?```|(?<!\})`[^`\n]*`", "", text, flags=re.DOTALL)


RAW = {
    "role": r"\{[a-z][\w:-]*\}`",
    "directive": r"^\s*(:{3,}|`{3,}|~{3,})\s*\{|^\s*:{3,}",
    "target": r"^\([\w -]+\)=\s*$",
    "footnote": r"\[\^",
    "attribute": r"\]\([^)]*\)\{",
    "definition list": r"^: ",
}


def raw_markup(text):
    """Return what would be shown as it is typed."""
    texts = {name: text if name == "directive" else without_code(text) for name in RAW}
    return [name for name in RAW if re.search(RAW[name], texts[name], re.MULTILINE)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see {doc}`/book/claims`", ["role"]),
        ("by {cite:t}`li2020`", ["role"]),
        (":::{note}\nx\n:::", ["directive"]),
        ("```{figure} a.png\n```", ["directive"]),
        ("(here)=\n## Here", ["target"]),
        ("a claim [^one]", ["footnote"]),
        ("[a](b.md){.wide}", ["attribute"]),
        ("term\n: meaning", ["definition list"]),
        ("> **Note.** $x^{2}$, `f{x}` and `x[^y]`", []),
        ("```python\n{a: 1}\n```\nand $\\hat{x}$ (a)=b", []),
    ],
)
def test_raw_markup_is_seen(text, found):
    assert raw_markup(text) == found


@each_notebook
def test_nothing_in_the_text_needs_more_than_markdown(path):
    for text in prose(path):
        assert not raw_markup(text), text[:200]


# ---- works


def surnames(work):
    names = [" ".join(person.prelast_names + person.last_names) for person in work.persons["author"]]
    return [str(Text.from_latex(name)) for name in names]


def address(work):
    """Return where a work can be read: the page of works, where the book knows of no better one."""
    fields = work.fields
    if "doi" in fields:
        return "https://doi.org/" + quote(fields["doi"], safe="/:")
    number = fields.get("eprint") or "".join(re.findall(r"arXiv:([\d.]+)", fields.get("note", "")))
    return f"https://arxiv.org/abs/{number}" if number else fields.get("url", PAGE_OF_WORKS)


def ways_to_name(work):
    names, year = surnames(work), work.fields["year"]
    short = names[0] if len(names) == 1 else " and ".join(names) if len(names) == 2 else f"{names[0]} et al."
    every = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return {year} | {form for who in (short, every) for form in (f"{who} {year}", f"{who} ({year})")}


def test_every_work_can_be_told_from_the_others():
    addresses = [address(work) for work in WORKS.values()]
    assert len({a for a in addresses if a != PAGE_OF_WORKS}) == len(addresses) - addresses.count(
        PAGE_OF_WORKS
    )
    assert addresses.count(PAGE_OF_WORKS) <= 2, "give the work a doi, an eprint or a url"


@each_notebook
def test_works_are_named_as_in_the_bibliography(path):
    known = {}
    for work in WORKS.values():
        known.setdefault(address(work), set()).update(ways_to_name(work))
    for text, target in LINK.findall("\n".join(prose(path))):
        if target in known:
            assert " ".join(text.split()) in known[target] or text.startswith(("doi:", "arXiv:")), (
                text,
                target,
            )
        if re.search(r"\((?:19|20)\d\d\)$| (?:19|20)\d\d$", text) and not target.startswith("#"):
            assert target in known, f"[{text}]({target}) is not in references.bib"


# ---- links inside the book


def slug(heading):
    """GitHub's: lower case, punctuation away, spaces to hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "").replace("*", "")).replace(" ", "-")


def headings(path):
    text = "\n".join(prose(path)) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    found = {slug(title) for title in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)}
    return found | set(re.findall(r"^\(([\w-]+)\)=$", text, flags=re.MULTILINE))


@each_notebook
def test_links_inside_the_book_lead_somewhere(path):
    for text, target in LINK.findall("\n".join(prose(path))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, place = target.partition("#")
        goal = (path.parent / unquote(file)).resolve() if file else path
        assert goal.is_file(), f"[{text}]({target})"
        if place and goal.suffix in (".md", ".ipynb"):
            assert unquote(place) in headings(goal), f"[{text}]({target})"
        if number := re.fullmatch(r"[Cc]hapter (\d+)", " ".join(text.split())):
            assert goal.name.startswith(f"{int(number[1]):02d}_"), f"[{text}]({target})"


# ---- what a lone copy may read


@each_notebook
def test_a_lone_copy_finds_its_records_in_the_package(path):
    cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    for name in re.findall(r'\brecord\("(\w+)"\)', "\n".join(cells)):
        assert (ROOT / "galnb" / "records" / f"{name}.json").is_file(), name
    for source in cells:
        code = re.sub(r"#.*|\"[^\"\n]*\bpapermill\b[^\"\n]*\"|\"-p [^\"\n]*\"", "", source)
        assert "../" not in code, "nothing lies beside a lone copy"
