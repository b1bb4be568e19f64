"""Scripts that show pictures in a static page: neither kernel nor network nor a file beside the page.

Chapters 07, Training stages (slider) and 14, A sky of new galaxies (zoom view).
"""

import base64
import html
import importlib.resources
import io
import json
import re
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from galnb.checks import check_floats, one_of

_TILE = 512  # px
_MARKS = {"found": ("#56B4E9", []), "missed": ("#E69F00", [4, 3]), "not in the truth": ("#CC79A7", [1, 2])}


def to_png(figure: Figure, *, compress: int = 1) -> bytes:
    """Return a figure as the content of a PNG file; compress 1 is quick, 9 small."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=figure.dpi, pil_kwargs={"compress_level": compress})
    return content.getvalue()


def frame_slider(
    frames: Sequence[bytes], *, labels: Sequence[str], alts: Sequence[str], name: str, title: str
) -> str:
    """Return HTML with a slider over PNG files; the first one is the still where scripts are off.

    labels, alts: for each frame, what is said beside the slider and read in place of the picture.
    name: of the slider, once in a page: letters and digits. title: what the slider moves.
    """
    if not len(frames) == len(labels) == len(alts) > 0 or not name.isalnum():
        got = f"{len(frames)} frames, {len(labels)} labels, {len(alts)} alts, name {name!r}"
        raise ValueError(f"got {got}; expected at least one frame, as many of each, a plain name")
    sources = [_inline(frame, "png") for frame in frames]
    rows = [{"src": s, "alt": a, "label": t} for s, a, t in zip(sources, alts, labels, strict=True)]
    texts = {"ALT": html.escape(alts[0]), "TITLE": html.escape(title), "LAST": str(len(frames) - 1)}
    return _filled("slider.html", NAME=f"slider-{name}", FIRST=sources[0], FRAMES=_script(rows), **texts)


def zoom_view(image: torch.Tensor, *, name: str, alt: str, marks: dict[str, np.ndarray]) -> str:
    """Return HTML in which a picture (3, H, W) in [0, 1] can be zoomed; it takes 1.8 times its JPEG.

    name: of the view, once in a page: letters and digits. alt: what the picture shows, read in its place.
    marks: circles (K, 3) of x, y, radius, px, that can be switched on: "found", "missed", "not in the truth".
    Mouse, touch (one finger moves, two zoom), keys (arrows, + - 0 m); without scripts an overview shows.
    """
    if not name.isalnum() or not alt.strip():
        raise ValueError(f"got name {name!r}, alt {alt!r}; expected letters and digits, and a text")
    for kind, circles in marks.items():
        one_of("mark", kind, _MARKS)
        if np.shape(circles)[1:] != (3,) or not np.isfinite(circles).all():
            raise ValueError(f"marks {kind!r} are {np.shape(circles)}; expected finite (K, 3): x, y, radius")
    levels = [Image.fromarray(_bytes(image))]
    while max(levels[0].size) > 2 * _TILE:
        levels.insert(0, levels[0].resize([-(-side // 2) for side in levels[0].size], Image.Resampling.BOX))
    shown = [{"width": one.width, "height": one.height, "rows": _tiles(one)} for one in levels]
    shown[0]["rows"] = []  # the overview stands in the <img> already
    circles = [
        {"name": kind, "colour": _MARKS[kind][0], "dash": _MARKS[kind][1], "circles": np.round(c, 1).tolist()}
        for kind, c in marks.items()
    ]
    data = _script({"levels": shown, "tile": _TILE, "marks": circles})
    texts = {"ALT": html.escape(alt), "OVERVIEW": _jpeg(levels[0]), "DATA": data}
    return _filled("zoom.html", NAME=f"zoom-{name}", **texts)


def _bytes(image: torch.Tensor) -> np.ndarray:
    """Return an image (3, H, W) as (H, W, 3) bytes."""
    check_floats(image, name="image")
    if image.ndim != 3 or len(image) != 3 or not image.numel():
        raise ValueError(f"got {tuple(image.shape)}, expected one image (3, H, W)")
    low, high = (float(value) for value in image.aminmax())
    if not (low >= -1e-5 and high <= 1 + 1e-5):
        raise ValueError(f"got values from {low:.4g} to {high:.4g} (NaN?), expected finite ones in [0, 1]")
    return (255 * image.detach().cpu().float().clamp(0, 1)).round().byte().movedim(0, -1).numpy()


def _tiles(picture: Image.Image) -> list[list[str]]:
    columns, rows = ([(x, min(x + _TILE, side)) for x in range(0, side, _TILE)] for side in picture.size)
    return [[_jpeg(picture.crop((left, top, right, low))) for left, right in columns] for top, low in rows]


def _jpeg(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, format="jpeg", quality=80, optimize=True)
    return _inline(content.getvalue(), "jpeg")


def _inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def _script(data: list | dict) -> str:
    return json.dumps(data, separators=(",", ":")).replace("</", "<\\/")


def _filled(file: str, **values: str) -> str:
    """Return a file of the package with @NAME@ and so on replaced, in one pass: values may hold such."""
    text = importlib.resources.files("galnb").joinpath(file).read_text(encoding="utf-8")
    return re.sub(f"@({'|'.join(values)})@", lambda found: values[found[1]], text)
