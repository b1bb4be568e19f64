"""Tests of galnb/pages.py: the slider and the zoom view, complete without scripts and alive with them."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image

from galnb import pages

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync"
ALT = "A field of coloured stripes, one pixel wide"


# ---- slider


FRAMES, LABELS, ALTS = (
    [b"one", b"two"],
    ["early", "final"],
    ['The "early" stage', "The final </script> stage"],
)


def slider():
    return pages.frame_slider(FRAMES, labels=LABELS, alts=ALTS, name="stages", title="stage")


def test_first_picture_stands_still_without_scripts():
    body = BeautifulSoup(slider(), "html.parser")
    (image,) = body.find_all("img")
    assert base64.b64decode(image["src"].partition(",")[2]) == b"one" and image["alt"] == ALTS[0]
    assert body.find("figcaption").has_attr("hidden"), "a control that does nothing must not be shown"


def test_slider_has_a_label_and_one_step_per_picture():
    body = BeautifulSoup(slider(), "html.parser")
    control = body.find("label").find("input", type="range")
    assert (control["min"], control["max"], control["step"]) == ("0", "1", "1")


def test_script_holds_every_picture_with_its_text():
    (script,) = BeautifulSoup(slider(), "html.parser").find_all("script")
    rows = json.loads(re.search(r"const frames = (\[.*?\]), figure", script.string).group(1))
    assert [row["label"] for row in rows] == LABELS and [row["alt"] for row in rows] == ALTS
    assert [base64.b64decode(row["src"].partition(",")[2]) for row in rows] == FRAMES
    assert not re.search(r"https?://", slider())


@pytest.mark.parametrize(
    "wrong", [{"frames": []}, {"labels": ["one"]}, {"alts": []}, {"name": "two words"}], ids=str
)
def test_a_slider_of_what_does_not_match_is_refused(wrong):
    given = {"frames": FRAMES, "labels": LABELS, "alts": ALTS, "name": "stages", "title": "stage"} | wrong
    with pytest.raises(ValueError, match="expected at least one frame"):
        pages.frame_slider(given.pop("frames"), **given)


# ---- zoom view


@pytest.fixture
def field() -> torch.Tensor:
    """Fine stripes on a slow ramp (3, 700, 1100): an overview cannot show them."""
    image = torch.linspace(0, 0.5, 1100).expand(3, 700, -1).clone()
    image[..., 1::2] += 0.4
    return image


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(pages, "_TILE", 256)


def levels_of(page):
    return json.loads(re.search(r"const \{ levels, tile, marks \} = (\{.*\}), figure", page)[1])


def decode(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))


def test_full_size_tiles_are_the_picture(field, small_tiles):
    page = pages.zoom_view(field, name="field", alt=ALT, marks={})
    levels = levels_of(page)["levels"]
    assert [(one["width"], one["height"]) for one in levels] == [(275, 175), (550, 350), (1100, 700)]
    rows = [np.concatenate([decode(source) for source in row], 1) for row in levels[-1]["rows"]]
    whole = np.concatenate(rows) / 255
    assert abs(whole - field.movedim(0, -1).numpy()).mean() < 0.02  # JPEG
    still = decode(re.search(r'<img src="([^"]+)" alt="' + ALT, page)[1])
    assert still.shape == (175, 275, 3)
    assert "http" not in re.sub(r"data:image/jpeg;base64,[^\"]*", "", page), "nothing from elsewhere"


def test_marks_and_text_are_escaped(field):
    page = pages.zoom_view(field, name="f", alt='</script>"x"', marks={"found": np.ones((2, 3))})
    assert levels_of(page)["marks"][0]["circles"] == [[1, 1, 1], [1, 1, 1]]
    assert page.count("</script>") == 1 and "&quot;x&quot;" in page
    assert 'alt="see @DATA@"' in pages.zoom_view(field, name="f", alt="see @DATA@", marks={})


def test_a_view_of_what_does_not_fit_is_refused(field):
    for wrong in ({"name": "a b"}, {"alt": " "}):
        with pytest.raises(ValueError, match="expected letters"):
            pages.zoom_view(field, **{"name": "a", "alt": ALT, "marks": {}, **wrong})
    for image in (field[:1], field[None], torch.zeros(3, 0, 5)):
        with pytest.raises(ValueError, match="one image"):
            pages.zoom_view(image, name="a", alt=ALT, marks={})
    for image, message in (
        (field * np.nan, "NaN"),
        (field + np.inf, "inf"),
        ((255 * field).byte(), "uint8"),
        (field - 1, "from -1 to"),
    ):
        with pytest.raises(ValueError, match=message):
            pages.zoom_view(image, name="a", alt=ALT, marks={})
    for circles in (np.zeros((2, 2)), np.zeros(3), np.full((1, 3), np.nan)):
        with pytest.raises(ValueError, match=r"'found' are .*; expected finite \(K, 3\)"):
            pages.zoom_view(field, name="a", alt=ALT, marks={"found": circles})
    with pytest.raises(ValueError, match="known are found, missed"):
        pages.zoom_view(field, name="a", alt=ALT, marks={"odd": np.zeros((1, 3))})


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_floating_type_gives_the_same_view(field, kind):
    halves = (field * 4).round() / 4  # all types hold quarters exactly
    views = [pages.zoom_view(x, name="a", alt=ALT, marks={}) for x in (halves, halves.to(kind))]
    assert views[0] == views[1]


@contextlib.contextmanager
def opened(address):
    """A page in a headless Chromium that must say no error."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=FLAGS.split())
        context = chromium.new_context(viewport={"width": 640, "height": 600}, has_touch=True)
        shown, said = context.new_page(), []
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
        shown.goto(address)
        shown.wait_for_function("document.querySelector('figure canvas').dataset.zoom === '1.000'")
        yield shown
        assert not said
        chromium.close()


@pytest.fixture
def page(field, small_tiles, tmp_path):
    """The view alone in a page."""
    marks = {"found": np.array([[300, 300, 20.0]])}
    view = pages.zoom_view(field, name="field", alt=ALT, marks=marks)
    text = f'<!doctype html><body style="width:600px">{view}<p style="height:2000px">'
    (tmp_path / "page.html").write_text(text)
    with opened((tmp_path / "page.html").as_uri()) as shown:
        yield shown


def contrast(page):
    """Mean step between neighbouring screen pixels along the middle row of the canvas."""
    return page.evaluate("""() => { const c = document.querySelector("canvas");
        const d = c.getContext("2d").getImageData(0, c.height / 2, c.width, 1).data;
        let sum = 0; for (let i = 4; i < d.length; i += 4) sum += Math.abs(d[i] - d[i - 4]);
        return sum / c.width; }""")


def zoom(page):
    return float(page.locator("figure canvas").get_attribute("data-zoom"))


def test_zooming_in_shows_what_the_overview_cannot(page):
    coarse = contrast(page)
    canvas = page.locator("canvas")
    canvas.focus()
    for _ in range(6):
        canvas.press("+")
    page.wait_for_function("document.querySelector('canvas').dataset.level === '2'")
    page.wait_for_timeout(300)
    assert zoom(page) > 5 and contrast(page) > 5 * coarse, "single pixels of the picture"
    canvas.press("ArrowRight")
    assert "centre x 5" in page.locator("output").inner_text()
    canvas.press("0")
    assert zoom(page) == 1


def test_mouse_buttons_and_marks(page):
    canvas = page.locator("canvas")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(200)
    assert zoom(page) == 1, "before a click the wheel scrolls the page"
    page.evaluate("scrollTo(0, 0)")
    page.get_by_role("button", name="Zoom in").click()
    before = page.locator("output").inner_text()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 180, steps=3)
    page.mouse.up()
    assert page.locator("output").inner_text() != before, "dragging moves"
    page.mouse.wheel(0, -300)
    page.wait_for_function("+document.querySelector('canvas').dataset.zoom > 2")
    page.get_by_role("button", name="whole field").click()
    assert zoom(page) == 1
    plain = page.screenshot()
    page.get_by_role("checkbox").check()
    assert page.screenshot() != plain and "found (1)" in page.locator("figcaption").inner_text()


def test_two_fingers_zoom(page):
    page.evaluate("""() => { const c = document.querySelector("canvas"), r = c.getBoundingClientRect();
        c.setPointerCapture = () => {};
        const send = (kind, id, x, y) => c.dispatchEvent(new PointerEvent(kind, {
            pointerId: id, pointerType: "touch", clientX: r.x + x, clientY: r.y + y }));
        send("pointerdown", 1, 200, 200); send("pointerdown", 2, 300, 200);
        send("pointermove", 2, 400, 200); send("pointermove", 1, 100, 200);
        send("pointerup", 1, 100, 200); send("pointerup", 2, 400, 200); }""")
    assert zoom(page) == pytest.approx(3, rel=0.01)


@pytest.mark.book
def test_field_in_the_book_can_be_zoomed():
    chapter = Path(__file__).parents[1] / "_build" / "html" / "notebooks" / "14_mosaic.html"
    if not chapter.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "chapter 14 is not rendered; run make book first"
        )
    with opened(chapter.as_uri()) as page:
        canvas = page.locator("figure canvas")
        canvas.focus()
        first = canvas.get_attribute("data-level")
        for _ in range(8):
            canvas.press("+")
        assert zoom(page) > 4 and canvas.get_attribute("data-level") > first, "larger tiles are shown"
        still = page.locator("figure#zoom-field img")
        assert (
            len(still.get_attribute("alt")) > 20 and "found" in page.locator("figure#zoom-field").inner_text()
        )
