"""Look into a large picture at any scale: a viewer that is part of the page, and standard Deep Zoom tiles."""

import base64
import html
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from galnb.files import write_atomically
from galnb.images.imageset import check_images

DZI = """<?xml version="1.0" encoding="UTF-8"?>
<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="jpg" Overlap="0" TileSize="{tile}">
<Size Width="{width}" Height="{height}"/></Image>
"""
MARKS = {"found": ("#56B4E9", []), "missed": ("#E69F00", [4, 3]), "not in the truth": ("#CC79A7", [1, 2])}


def zoom_view(
    image: torch.Tensor,
    *,
    name: str,
    alt: str,
    marks: dict[str, np.ndarray] | None = None,
    tile: int = 512,
    quality: int = 80,
) -> str:
    """Return HTML in which a picture can be zoomed, without kernel, network or any file beside the page.

    Parameters
    ----------
    image : torch.Tensor, shape (3, H, W)
        In [0, 1].
    name : str
        Of the view, once in a page: letters and digits.
    alt : str
        What the picture shows, for those who do not see it.
    marks : dict of numpy.ndarray (K, 3), optional
        Circles (x, y, radius), finite, px, that the reader can switch on, by a name of `MARKS`.
    tile : int
        Side of a tile, px; the overview is the largest halving of the picture with no side above two tiles.
    quality : int
        Of the JPEG tiles, 1 to 95.

    Returns
    -------
    str
        About 1.8 times the size of the picture as one JPEG. Mouse, touch (one finger moves, two zoom), keys
        (arrows, + and -, 0, m); without scripts the overview shows.

    Raises
    ------
    ValueError
        If the image, the name, the tile or the marks do not fit.

    Notes
    -----
    Chapter: A sky of new galaxies
    """
    pixels = _pixels(image, tile, quality)
    unknown = set(marks or {}) - set(MARKS)
    if not name.isalnum() or not alt.strip() or unknown:
        raise ValueError(
            f"got name {name!r}, alt {alt!r}, unknown marks {sorted(unknown)}; expected letters and digits, "
            f"a text, and marks among {list(MARKS)}"
        )
    for kind, circles in (marks or {}).items():
        if np.ndim(circles) != 2 or np.shape(circles)[1] != 3 or not np.isfinite(circles).all():
            raise ValueError(f"marks {kind!r} are {np.shape(circles)}; expected finite (K, 3): x, y, radius")
    levels = []
    for level in _halvings(pixels, 2 * tile):
        edge = 2 * tile if not levels else tile  # the overview is one tile
        rows = [["data:image/jpeg;base64," + base64.b64encode(part).decode() for part in row]
                for row in _tiles(level, edge, quality)]  # fmt: skip
        levels.append({"width": level.shape[1], "height": level.shape[0], "tile": edge, "rows": rows})
    shown = [
        {"name": kind, "colour": MARKS[kind][0], "dash": MARKS[kind][1],
         "circles": np.round(circles, 1).tolist()}
        for kind, circles in (marks or {}).items()
    ]  # fmt: skip
    overview, levels[0]["rows"] = levels[0]["rows"][0][0], []  # its data stand in the <img> already
    data = json.dumps({"levels": levels, "marks": shown}, separators=(",", ":")).replace("</", "<\\/")
    filled = {"NAME": f"zoom-{name}", "ALT": html.escape(alt, quote=True), "OVERVIEW": overview, "DATA": data}
    return re.sub(f"@({'|'.join(filled)})@", lambda found: filled[found[1]], VIEWER)


def write_deep_zoom(path: str | Path, image: torch.Tensor, *, tile: int = 254, quality: int = 85) -> Path:
    """Write standard Deep Zoom tiles, which OpenSeadragon and other viewers read.

    Parameters
    ----------
    path : str or pathlib.Path
        File to write, ending in .dzi; the tiles lie beside it in a folder NAME_files.
    image, tile, quality
        As for `zoom_view`.

    Returns
    -------
    pathlib.Path
        The .dzi file, written last: where it is, the tiles are whole. If writing fails, an older one and
        its tiles are put back.

    Raises
    ------
    ValueError
        If the image or the ending does not fit, or NAME_files is there and holds anything but tiles.

    Notes
    -----
    Level n, of sides halved and rounded up n times from the full size, ends at one pixel as level 0.

    Chapter: A sky of new galaxies
    """
    path, pixels = Path(path), _pixels(image, tile, quality)
    if path.suffix != ".dzi" or path.is_dir():
        raise ValueError(f"got {path}; expected a file whose name ends in .dzi")
    target = path.with_name(f"{path.stem}_files")
    if os.path.lexists(target) and not _is_folder_of_tiles(target):
        raise ValueError(f"{target} is not a folder of tiles; move it or choose another name")
    scratch = path.with_name(f".{path.stem}.{os.getpid()}.{threading.get_ident()}.part")
    height, width = pixels.shape[:2]
    try:
        for number, level in enumerate(_halvings(pixels, 1)):
            folder = scratch / "new" / str(number)
            folder.mkdir(parents=True)
            for y, row in enumerate(_tiles(level, tile, quality)):
                for x, content in enumerate(row):
                    (folder / f"{x}_{y}.jpg").write_bytes(content)
        _exchange(path, DZI.format(tile=tile, width=width, height=height).encode(), target, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _is_folder_of_tiles(folder: Path) -> bool:
    """Say whether a folder holds numbered folders of x_y.jpg and nothing else."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    names = [part.relative_to(folder).as_posix() + "/" * part.is_dir() for part in folder.rglob("*")]
    return all(re.fullmatch(r"\d+/(\d+_\d+\.jpg)?", name) for name in names)


def _exchange(path: Path, content: bytes, target: Path, scratch: Path) -> None:
    """Put new tiles and their .dzi in place of the old ones; after an error the old ones are back."""
    moved = []
    try:
        # the .dzi goes first and comes last: a killed run leaves none beside tiles that are not its own
        for place, new in ((path, scratch / "old.dzi"), (target, scratch / "old"), (scratch / "new", target)):
            if os.path.lexists(place):
                os.replace(place, new)
                moved.append((place, new))
        write_atomically(path, content)
    except BaseException:
        for place, new in reversed(moved):
            os.replace(new, place)
        raise


def _pixels(image: torch.Tensor, tile: int, quality: int) -> np.ndarray:
    """Return (H, W, 3) bytes."""
    if not isinstance(image, torch.Tensor) or image.ndim != 3 or len(image) != 3 or not image.numel():
        raise ValueError(f"got {getattr(image, 'shape', type(image))}, expected one image (3, H, W)")
    if not (tile >= 16 and 1 <= quality <= 95):
        raise ValueError(f"got tile {tile}, quality {quality}; expected 16 or more, and 1 to 95")
    pixels = torch.empty(image.shape, dtype=torch.uint8)
    bands = zip(image.detach().cpu().split(256, dim=1), pixels.split(256, dim=1), strict=True)
    for band, place in bands:  # in parts: checking and rounding copy what they get
        check_images(band[None], name="image")
        place.copy_((255 * band.clamp(0, 1)).round())
    return pixels.movedim(0, -1).numpy()


def _halvings(pixels: np.ndarray, smallest: int) -> list[np.ndarray]:
    """Return the picture at full size, halved, halved again ..., small ones first."""
    levels = [Image.fromarray(pixels)]
    while max(levels[-1].size) > smallest:
        levels.append(levels[-1].resize([-(-side // 2) for side in levels[-1].size], Image.Resampling.BOX))
    return [np.asarray(level) for level in reversed(levels)]


def _tiles(pixels: np.ndarray, tile: int, quality: int) -> Iterator[list[bytes]]:
    for y in range(0, pixels.shape[0], tile):
        row = []
        for x in range(0, pixels.shape[1], tile):
            content = io.BytesIO()
            part = Image.fromarray(np.ascontiguousarray(pixels[y : y + tile, x : x + tile]))
            part.save(content, format="jpeg", quality=quality, optimize=True)
            row.append(content.getvalue())
        yield row


VIEWER = """<figure id="@NAME@" style="margin:0;padding:4px;background:white;color:#222">
<div style="position:relative;overflow:hidden;background:black">
<img src="@OVERVIEW@" alt="@ALT@" style="display:block;width:100%;background:black">
<canvas hidden tabindex="0" role="application"
 style="position:absolute;inset:0;width:100%;height:100%;cursor:grab"
 aria-label="Zoom view. Arrow keys move, plus and minus zoom, 0 shows all, m switches marks."></canvas>
</div>
<figcaption hidden style="color:#222;display:none;flex-wrap:wrap;gap:.4em;align-items:center;padding-top:4px">
<button type="button" data-do="in" aria-label="Zoom in">+</button>
<button type="button" data-do="out" aria-label="Zoom out">&minus;</button>
<button type="button" data-do="home">whole field</button>
<label hidden><input type="checkbox"> marks</label> <span class="legend"></span>
<output aria-live="polite" style="margin-left:auto;font-variant-numeric:tabular-nums"></output>
</figcaption></figure>
<script>(() => {
const { levels, marks } = @DATA@, figure = document.getElementById("@NAME@");
const find = what => figure.querySelector(what);
const canvas = find("canvas"), still = find("img"), bar = find("figcaption"), box = find("input");
const said = find("output"), pen = canvas.getContext("2d"), loaded = new Map(), fingers = new Map();
const full = levels[levels.length - 1], state = { x: full.width / 2, y: full.height / 2, zoom: 1 };
const fit = () => canvas.clientWidth / full.width;                 // screen px per picture px at zoom 1
const most = () => Math.max(1, 4 / fit());                        // at most 4 screen px for one px
const tileOf = (source, key) => {
  if (!loaded.has(key)) {
    const picture = new Image();
    picture.onload = draw;
    picture.src = source;
    loaded.set(key, picture);
  }
  return loaded.get(key);
};
function draw() {
  const ratio = window.devicePixelRatio || 1, scale = fit() * state.zoom;
  const [w, h] = [canvas.clientWidth, canvas.clientHeight];
  if (!w) return;
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio); canvas.height = Math.round(h * ratio);
  }
  const [left, top] = [state.x - w / scale / 2, state.y - h / scale / 2];
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.fillStyle = "black"; pen.fillRect(0, 0, w, h);
  pen.imageSmoothingEnabled = scale * ratio < 2;
  const put = (picture, x, y, size) => picture.complete && picture.naturalWidth && pen.drawImage(picture,
    (x - left) * scale, (y - top) * scale,
    picture.naturalWidth * size * scale, picture.naturalHeight * size * scale);
  put(still, 0, 0, full.width / levels[0].width);
  const wanted = levels.findIndex(level => level.width / full.width >= scale * ratio * 0.8);
  const number = wanted < 0 ? levels.length - 1 : wanted, level = levels[number];
  const size = full.width / level.width;                            // picture px per px of the level
  level.rows.forEach((row, j) => row.forEach((source, i) => {
    const [x, y, side] = [i * level.tile * size, j * level.tile * size, level.tile * size];
    if (x < left + w / scale && x + side > left && y < top + h / scale && y + side > top)
      put(tileOf(source, `${number}/${i}/${j}`), x, y, size);
  }));
  if (box.checked) for (const kind of marks) {
    pen.strokeStyle = kind.colour; pen.setLineDash(kind.dash); pen.lineWidth = 1.5;
    for (const [x, y, r] of kind.circles) {
      pen.beginPath();
      pen.arc((x + 0.5 - left) * scale, (y + 0.5 - top) * scale, Math.max(3, r * scale), 0, 7);
      pen.stroke();
    }
  }
  canvas.dataset.level = number; canvas.dataset.zoom = state.zoom.toFixed(3);
  // at the overview one finger scrolls the page
  canvas.style.touchAction = state.zoom > 1.001 ? "none" : "pan-y";
  const [x, y] = [state.x, state.y].map(Math.round);
  said.textContent = `${state.zoom.toFixed(1)} times, centre x ${x}, y ${y} px`;
}
function move(x, y, zoom) {
  state.zoom = Math.min(most(), Math.max(1, zoom));
  const half = [full.width, full.height].map(side => side / state.zoom / 2);
  state.x = Math.min(full.width - half[0], Math.max(half[0], x));
  state.y = Math.min(full.height - half[1], Math.max(half[1], y));
  draw();
}
function zoomAt(factor, px, py) {                                   // what lies at the pointer stays there
  const scale = fit() * state.zoom, zoom = Math.min(most(), Math.max(1, state.zoom * factor));
  const [dx, dy] = [(px - canvas.clientWidth / 2) / scale, (py - canvas.clientHeight / 2) / scale];
  const kept = 1 - state.zoom / zoom;
  move(state.x + dx * kept, state.y + dy * kept, zoom);
}
const middle = () => [canvas.clientWidth / 2, canvas.clientHeight / 2];
const pan = (dx, dy) =>
  move(state.x - dx / fit() / state.zoom, state.y - dy / fit() / state.zoom, state.zoom);
const acts = {
  in: () => zoomAt(1.5, ...middle()), out: () => zoomAt(1 / 1.5, ...middle()),
  home: () => move(full.width / 2, full.height / 2, 1),
};
const toggle = () => { if (marks.length) { box.checked = !box.checked; draw(); } };
const keys = { "+": acts.in, "=": acts.in, "-": acts.out, 0: acts.home, Home: acts.home, m: toggle,
  ArrowLeft: () => pan(60, 0), ArrowRight: () => pan(-60, 0),
  ArrowUp: () => pan(0, 60), ArrowDown: () => pan(0, -60) };
canvas.addEventListener("keydown", event => {
  if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault(); event.stopPropagation(); keys[event.key]();  // Jupyter has keys of its own
});
canvas.addEventListener("wheel", event => {
  if (document.activeElement !== canvas && !event.ctrlKey) return;  // until it is clicked, the page scrolls
  event.preventDefault(); zoomAt(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
}, { passive: false });
canvas.addEventListener("dblclick", event => zoomAt(2, event.offsetX, event.offsetY));
canvas.addEventListener("pointerdown", event => {
  canvas.focus({ preventScroll: true }); canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
});
canvas.addEventListener("pointermove", event => {
  if (!fingers.has(event.pointerId)) return;
  const before = [...fingers.values()], old = fingers.get(event.pointerId);
  const now = [event.offsetX, event.offsetY];
  fingers.set(event.pointerId, now);
  if (before.length === 1) return pan(now[0] - old[0], now[1] - old[1]);
  const after = [...fingers.values()], apart = p => Math.hypot(p[0][0] - p[1][0], p[0][1] - p[1][1]) || 1;
  pan((now[0] - old[0]) / 2, (now[1] - old[1]) / 2);
  zoomAt(apart(after) / apart(before), (after[0][0] + after[1][0]) / 2, (after[0][1] + after[1][1]) / 2);
});
for (const end of ["pointerup", "pointercancel"])
  canvas.addEventListener(end, event => fingers.delete(event.pointerId));
for (const button of figure.querySelectorAll("button"))
  button.addEventListener("click", acts[button.dataset.do]);
box.addEventListener("change", draw);
find("label").hidden = !marks.length;
find(".legend").innerHTML = marks.map(kind => `<span style="border-bottom:2px ${
  kind.dash.length ? (kind.dash[0] > 2 ? "dashed" : "dotted") : "solid"} ${kind.colour};margin-right:.6em">${
  kind.name} (${kind.circles.length.toLocaleString("en")})</span>`).join("");
canvas.hidden = false; bar.hidden = false; bar.style.display = "flex";
new ResizeObserver(draw).observe(canvas);
still.complete ? draw() : still.addEventListener("load", draw);
})();</script>
"""
