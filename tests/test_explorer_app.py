"""The app of chapter 8 in a real browser: a slider moves the picture, a bad upload gets a message."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from book import app
from book.app import extract

ROOT = Path(__file__).parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync"
PATIENCE = 180  # seconds to start a kernel, import PyTorch and answer once, on a busy machine


def test_app_holds_the_parameters_and_every_cell_of_the_app(tmp_path):
    notebook = nbformat.read(extract(tmp_path / "app.ipynb", parameters={"out_dir": "elsewhere"}), 4)
    assert 'out_dir = "elsewhere"' in notebook.cells[0].source
    assert all(cell.cell_type == "code" for cell in notebook.cells)
    assert "display(make_app())" in notebook.cells[-1].source
    assert not any(cell.metadata.get("tags") for cell in notebook.cells), "voila would skip the app itself"
    for cell in notebook.cells:
        if not cell.source.startswith("%"):
            compile(cell.source.replace("%matplotlib inline", ""), cell.id, "exec")


def test_a_taken_port_is_said_before_the_address(capsys, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["book.app", f"--port={port}"])
        monkeypatch.setattr(app.os, "execv", lambda *_: pytest.fail("the app was started"))
        with pytest.raises(SystemExit, match=rf"Port {port} is taken.*make app PORT={port + 1}"):
            app.main()
    assert not capsys.readouterr().out
    assert app.refuse_taken(port) is None


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Address of the app, served on this machine only."""
    pytest.importorskip("voila", reason="voila is not installed (extra: app)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = tmp_path_factory.mktemp("app")
    command = [sys.executable, "-m", "book.app", f"--port={port}", "--no-browser"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(place / "log.txt", "w+") as log:
        server = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)
        try:
            started = time.monotonic()
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/static/", timeout=5)
                except urllib.error.HTTPError:
                    break  # it answers
                except OSError:
                    log.seek(0)
                    assert server.poll() is None and time.monotonic() - started < PATIENCE, log.read()
                    time.sleep(0.5)
                else:
                    break
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait(30)


@pytest.mark.book
def test_slider_moves_the_picture_and_bad_upload_gets_a_message(address, tmp_path):
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    bad = tmp_path / "galaxy.jpg"
    bad.write_bytes(b"no picture")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=FLAGS.split())
        page, foreign, picture = browser.new_page(), [], "document.querySelector('img.widget-image')"
        page.set_default_timeout(1000 * PATIENCE)
        own = (address, address.replace("http", "ws"), "data:", "blob:")
        page.on("request", lambda one: foreign.append(one.url) if not one.url.startswith(own) else None)
        page.goto(address)
        page.wait_for_function(f"{picture}?.naturalWidth > 400")
        before = page.evaluate(f"{picture}.src")
        slider = page.locator(".widget-hslider", has=page.get_by_text("x", exact=True))
        slider.locator(".noUi-handle").press("ArrowRight")
        page.wait_for_function(f"old => {picture}.src !== old && {picture}.naturalWidth > 400", arg=before)
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Upload").click()
        chooser.value.set_files(bad)
        page.get_by_text("galaxy.jpg: cannot be used as picture").wait_for()
        shown = "[...document.querySelectorAll('.widget-dropdown, .widget-hslider, img.widget-image')]"
        for width in (1240, 420):
            page.set_viewport_size({"width": width, "height": 900})
            edges = f"{shown}.map(e => e.getBoundingClientRect()).flatMap(r => [r.left, r.right])"
            page.wait_for_function(f"{edges}.every(x => x >= 0 && x <= {width})")
        assert not foreign and not page.get_by_text("Traceback").count()
        browser.close()
