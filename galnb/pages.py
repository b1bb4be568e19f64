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

from galnb.checks import at_least, one_of

_MARKS = {"found": ("#56B4E9", []), "missed": ("#E69F00", [4, 3]), "not in the truth": ("#CC79A7", [1, 2])}


def to_png(figure: Figure, *, compress: int = 1) -> bytes:
    """Return a figure as the content of a PNG file; compress 1 is quick, 9 small."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=figure.dpi, pil_kwargs={"compress_level": compress})
    return content.getvalue()


def frame_slider(
    frames: Sequence[bytes], *, labels: Sequence[str], alts: Sequence[str], name: str, title: str
) -> str:
    """Return HTML with a slider over pictures.

    frames: PNG files; the first one is the still that shows where scripts are off.
    labels, alts: for each frame, what is said beside the slider and read in place of the picture.
    name: of the slider, once in a page: letters and digits. title: what the slider moves.
    """
    if not frames or not len(frames) == len(labels) == len(alts) or not name.isalnum():
        got = f"{len(frames)} frames, {len(labels)} labels, {len(alts)} alts, name {name!r}"
        raise ValueError(
            f"got {got}; expected at least one frame, as many of each, a name of letters and digits"
        )
    sources = [_inline(frame, "png") for frame in frames]
    rows = [{"src": s, "alt": a, "label": t} for s, a, t in zip(sources, alts, labels, strict=True)]
    texts = {"ALT": html.escape(alts[0]), "TITLE": html.escape(title), "LAST": str(len(frames) - 1)}
    return _filled("slider.html", NAME=f"slider-{name}", FIRST=sources[0], FRAMES=_script(rows), **texts)


def zoom_view(
    image: torch.Tensor,
    *,
    name: str,
    alt: str,
    marks: dict[str, np.ndarray] | None = None,
    tile: int = 512,
) -> str:
    """Return HTML in which a picture (3, H, W) in [0, 1] can be zoomed.

    name: of the view, once in a page: letters and digits. alt: what the picture shows, read in its place.
    marks: circles (K, 3) of x, y, radius, px, that can be switched on: "found", "missed", "not in the truth".
    tile: side, px, >= 16; the overview is the largest halving of the picture with no side above two tiles.
    The page grows by about 1.8 times the picture as one JPEG.
    Mouse, touch (one finger moves, two zoom), keys (arrows, + - 0 m); without scripts the overview shows.
    """
    if not name.isalnum() or not alt.strip():
        raise ValueError(f"got name {name!r}, alt {alt!r}; expected letters and digits, and a text")
    for kind, circles in (marks or {}).items():
        one_of("mark", kind, _MARKS)
        if np.ndim(circles) != 2 or np.shape(circles)[1] != 3 or not np.isfinite(circles).all():
            raise ValueError(f"marks {kind!r} are {np.shape(circles)}; expected finite (K, 3): x, y, radius")
    at_least(16, tile=tile)
    levels = [Image.fromarray(_bytes(image))]
    while max(levels[-1].size) > 2 * tile:
        levels.append(levels[-1].resize([-(-side // 2) for side in levels[-1].size], Image.Resampling.BOX))
    (overview,), *_ = _tiles(levels[-1], 2 * tile)  # one tile; its data stand in the <img> already
    shown = [{"width": levels[-1].width, "height": levels[-1].height, "tile": 2 * tile, "rows": []}]
    for level in reversed(levels[:-1]):
        rows = _tiles(level, tile)
        shown.append({"width": level.width, "height": level.height, "tile": tile, "rows": rows})
    circles = [
        {"name": kind, "colour": _MARKS[kind][0], "dash": _MARKS[kind][1], "circles": np.round(c, 1).tolist()}
        for kind, c in (marks or {}).items()
    ]
    data = _script({"levels": shown, "marks": circles})
    return _filled("zoom.html", NAME=f"zoom-{name}", ALT=html.escape(alt), OVERVIEW=overview, DATA=data)


def _bytes(image: torch.Tensor) -> np.ndarray:
    """Return an image (3, H, W) as (H, W, 3) bytes."""
    if not isinstance(image, torch.Tensor) or image.ndim != 3 or len(image) != 3 or not image.numel():
        raise ValueError(f"got {getattr(image, 'shape', type(image))}, expected one image (3, H, W)")
    if not image.is_floating_point():
        raise ValueError(
            f"got dtype {image.dtype}, expected floats in [0, 1]; from 8 bit use x.float() / 255"
        )
    pixels = torch.empty(image.shape, dtype=torch.uint8)
    for band, place in zip(image.detach().split(256, dim=1), pixels.split(256, dim=1), strict=True):
        low, high = (float(value) for value in torch.aminmax(band))  # in parts: rounding copies what it gets
        if not (low >= -1e-5 and high <= 1 + 1e-5):
            raise ValueError(
                f"got values from {low:.4g} to {high:.4g} (NaN?), expected finite ones in [0, 1]"
            )
        place.copy_((255 * band.cpu().float().clamp(0, 1)).round())
    return pixels.movedim(0, -1).numpy()


def _tiles(picture: Image.Image, tile: int) -> list[list[str]]:
    rows = []
    for y in range(0, picture.height, tile):
        rows.append([])
        for x in range(0, picture.width, tile):
            content = io.BytesIO()
            part = picture.crop((x, y, min(x + tile, picture.width), min(y + tile, picture.height)))
            part.save(content, format="jpeg", quality=80, optimize=True)
            rows[-1].append(_inline(content.getvalue(), "jpeg"))
    return rows


def _inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def _script(data: list | dict) -> str:
    return json.dumps(data, separators=(",", ":")).replace("</", "<\\/")


def _filled(file: str, **values: str) -> str:
    """Return a file of the package with @NAME@ and so on replaced, in one pass: values may hold such."""
    text = importlib.resources.files("galnb").joinpath(file).read_text(encoding="utf-8")
    return re.sub(f"@({'|'.join(values)})@", lambda found: values[found[1]], text)
