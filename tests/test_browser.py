"""Pages in a real browser, with no network: figures are there, formulas are set, the console is silent."""

import functools
import http.server
import io
import os
import shutil
import threading
from pathlib import Path

import pytest
from PIL import Image, ImageStat

pytestmark = pytest.mark.book
ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
PICTURES = ROOT / "_build" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync"
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
VIEW = {"width": 1280, "height": 900}
HEADER = 60  # px that the book's bar hides at the top of the window
STEP = VIEW["height"] - HEADER
PAGES = ["book/index.html", *(f"notebooks/{name}.html" for name in CHAPTERS)]


def give_up(message):
    pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


@pytest.fixture(scope="module")
def address():
    """Address of the book, served on this machine only."""
    if not (HTML / "index.html").exists():
        give_up("there is no _build/html; run make book first")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of the system."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        give_up("no Chromium on this machine")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS.split())
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_page_in_browser(browser, address, name, scheme):
    context = browser.new_context(color_scheme=scheme, viewport=VIEW)
    page, said, foreign = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda request: foreign.append(request.url) if not is_local(request.url, address) else None
    )
    page.goto(address + name, wait_until="networkidle")

    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    sizes = "i => [i.naturalWidth, i.clientWidth, i.clientHeight]"
    figures = page.evaluate(f"[...document.querySelectorAll('article img')].map({sizes})")
    assert figures or name.startswith("book/")
    assert all(min(figure) > 50 for figure in figures), figures
    sources = page.evaluate("document.querySelectorAll('article .math').length")
    assert page.evaluate("document.querySelectorAll('article mjx-container').length") >= sources
    assert page.evaluate("document.documentElement.scrollWidth") <= VIEW["width"], "the page scrolls sideways"

    picture = as_scrolled(page)
    PICTURES.mkdir(parents=True, exist_ok=True)
    picture.save(PICTURES / f"{name.replace('/', '_').removesuffix('.html')}.{scheme}.png")
    text = page.locator("article").first.bounding_box()
    left, right = int(text["x"]), int(text["x"] + text["width"])
    last = max(HEADER, picture.height - STEP)
    for top in (*range(HEADER, last, STEP), last):
        window = picture.crop((left, top, right, top + STEP)).convert("L")
        assert ImageStat.Stat(window).stddev[0] > 5, f"nothing to see from {top} px on"
    assert (ImageStat.Stat(picture.convert("L")).median[0] > 128) == (scheme == "light")
    assert not foreign and not said, (foreign, said)
    context.close()


def as_scrolled(page):
    """Return a picture of the page, put together window by window: in one go Chromium leaves most of a
    long page empty."""
    height = page.evaluate("document.documentElement.scrollHeight")
    picture = Image.new("RGB", (VIEW["width"], height))
    for top in range(0, height - HEADER, STEP):
        at = page.evaluate(f"window.scrollTo({{top: {top}, behavior: 'instant'}}); window.scrollY")
        window = Image.open(io.BytesIO(page.screenshot()))
        hidden = HEADER if at else 0
        picture.paste(window.crop((0, hidden, *window.size)), (0, int(at) + hidden))
    return picture


def is_local(url, address):
    return url.startswith((address, "data:", "blob:"))
