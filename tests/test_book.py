"""The rendered pages: all there, complete without a kernel, a network or scripts, every link alive."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlparse

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

pytestmark = pytest.mark.book
ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]


def toc_pages():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    names = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    return [f"{name}.html" for name in names]


each_page = pytest.mark.parametrize("name", toc_pages())


@pytest.fixture(scope="session")
def pages():
    """All pages of the book by name, parsed."""
    if not (HTML / "index.html").exists():
        message = "there is no _build/html; run make book first"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return {name: BeautifulSoup((HTML / name).read_text(), "html.parser") for name in toc_pages()}


def article(page):
    return page.find("article", class_="bd-article")


@each_page
def test_page_exists_and_says_something(pages, name):
    body = article(pages[name])
    assert body.find("h1")
    assert len(body.get_text(" ", strip=True)) > 300, "a page must be readable without running scripts"


@each_page
def test_page_shows_no_traceback_and_no_raw_markup(pages, name):
    body = article(pages[name])
    assert "Traceback (most recent call last)" not in body.get_text()
    assert not body.select(".output.traceback, .system-message, .problematic")
    for code in body.find_all(["pre", "code"]):
        code.decompose()
    text = body.get_text(" ")
    assert not re.search(r"\{(doc|ref|cite|term|numref|eq)(:[a-z]+)?\}|:::|\{\{", text)
    assert not re.search(r"\|\s*:?[-–—]+:?\s*\|", text), "a table that was not parsed"


@each_page
def test_every_image_has_written_alt_text(pages, name):
    for image in article(pages[name]).find_all("img"):
        alt = image.get("alt", "")
        assert len(alt) >= 20 and " " in alt, f"{image['src']}: {alt!r}"
        assert not re.search(r"\.(png|svg|jpe?g|gif)\b|_images/|_build", alt), alt


@each_page
def test_internal_links_resolve(pages, name):
    ids = {}
    for link in pages[name].find_all("a", href=True):
        address = urlparse(link["href"])
        if address.scheme or address.netloc or link["href"] == "#":
            continue
        target = (HTML / name).parent / unquote(address.path) if address.path else HTML / name
        target = target.resolve()
        assert target.exists(), f"{link['href']} on {name}"
        if address.fragment and target.suffix == ".html":
            if target not in ids:
                ids[target] = set(re.findall(r'\b(?:id|name)="([^"]+)"', target.read_text()))
            assert unquote(address.fragment) in ids[target], f"{link['href']} on {name}"


@each_page
def test_launch_and_edit_links_name_files_of_the_repository(pages, name):
    prefix = CONFIG["url"].removeprefix("https://github.com/")
    found = []
    for link in pages[name].find_all("a", href=re.compile(r"colab\.research|github\.com/.*/(edit|blob)/")):
        match = re.search(rf"{prefix}/(?:blob|edit)/{CONFIG['branch']}/(.+)$", link["href"])
        assert match, link["href"]
        assert (ROOT / match[1]).is_file(), link["href"]
        found.append("colab" in link["href"])
    assert any(found) == name.startswith("notebooks/"), "Colab opens notebooks and nothing else"
    assert False in found, "no edit link"


@each_page
def test_nothing_is_loaded_from_elsewhere(pages, name):
    loaded = [*pages[name].find_all("script", src=True), *pages[name].find_all("img", src=True)]
    addresses = [element["src"] for element in loaded]
    addresses += [
        link["href"] for link in pages[name].find_all("link", rel=["stylesheet", "preload", "icon"])
    ]
    for address in addresses:
        if address.startswith("data:"):  # the pictures of a slider are part of the page
            continue
        assert not urlparse(address).netloc, address
        assert ((HTML / name).parent / urlparse(address).path).exists(), address


@each_page
def test_solutions_and_quizzes_open_without_scripts(pages, name):
    body = article(pages[name])
    for hidden in body.select(".cell.tag_hide-cell, .cell.tag_hide-input, .cell.tag_hide-output"):
        assert hidden.find("details"), "folded cells must be <details>"
    if re.fullmatch(r"book/part_\d\.html", name):
        assert len(body.select("details.sd-dropdown")) >= 3


@pytest.mark.parametrize("name", [page for page in toc_pages() if page.startswith("notebooks/")])
def test_download_is_the_executed_notebook(pages, name):
    link = pages[name].find("a", class_="btn-download-source-button", href=True)
    notebook = nbformat.read((HTML / name).parent / link["href"], 4)
    ran = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.execution_count]
    assert len(ran) >= 5 and any(cell.outputs for cell in ran)


def test_run_times_are_those_of_the_last_run(pages):
    text = article(pages["book/run_times.html"]).get_text(" ")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert re.search(rf"{path.stem}\s+quick\s+cpu|{path.stem}\s+quick\s+cuda", text), path.stem


def test_every_row_of_the_ledger_shows_a_number_and_a_verdict(pages):
    tables = article(pages["book/claims.html"]).find_all("table")
    heads = [[cell.get_text(strip=True) for cell in table.find_all("th")] for table in tables]
    assert len(tables) > 8 and "how sure we are" in heads[0]
    for table, head in zip(tables, heads, strict=True):
        (place,) = [place for place, text in enumerate(head) if text.startswith("our number")]
        for row in table.find("tbody").find_all("tr"):
            cells = [cell.get_text(" ", strip=True) for cell in row.find_all("td")]
            assert all(cells) and re.search(r"\d|^none\b|: no ring$", cells[place]), cells


def test_first_address_leads_to_the_welcome_page(pages):
    assert "book/index.html" in (HTML / "index.html").read_text()
