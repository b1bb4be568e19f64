"""Show pre-computed pictures behind a slider that works in a static page."""

import base64
import html
import io
import json
from collections.abc import Sequence

from matplotlib.figure import Figure


def to_png(figure: Figure, *, compress: int = 1) -> bytes:
    """Return a figure as the content of a PNG file; compress 1 is quick, 9 small.

    Chapter: Training stages
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=figure.dpi, pil_kwargs={"compress_level": compress})
    return content.getvalue()


SLIDER = """<figure id="{name}" style="margin:0;padding:4px;background:white;color:#222">
<img src="{first}" alt="{alt}" style="max-width:100%;background:white">
<figcaption hidden style="color:#222"><label>{title}: <input type="range" min="0"
 max="{last}" value="0" step="1" style="width:16em;vertical-align:middle"></label>
 <output aria-live="polite"></output></figcaption></figure>
<script>(() => {{
const frames = {frames}, figure = document.getElementById("{name}");
const [img, control, said] = ["img", "input", "output"].map(tag => figure.querySelector(tag));
const show = () => {{ const one = frames[control.value]; img.alt = one.alt;
 if (img.src !== one.src) img.src = one.src;
 said.textContent = one.label; control.ariaValueText = one.label; }};
control.addEventListener("input", show); figure.querySelector("figcaption").hidden = false; show();
}})();</script>"""


def frame_slider(
    frames: Sequence[bytes], *, labels: Sequence[str], alts: Sequence[str], name: str, title: str
) -> str:
    """Return HTML with a slider over pictures that needs neither a kernel nor a network.

    Parameters
    ----------
    frames : sequence of bytes
        PNG files; the first one is the still that shows where scripts are off.
    labels, alts : sequence of str
        For each frame, what is said beside the slider and read in place of the picture.
    name : str
        Of the slider, once in a page: letters and digits.
    title : str
        What the slider moves.

    Raises
    ------
    ValueError
        If there is nothing to show, or not one label and one text per frame.

    Notes
    -----
    Chapter: Training stages
    """
    if not frames or not len(frames) == len(labels) == len(alts) or not name.isalnum():
        got = f"{len(frames)} frames, {len(labels)} labels, {len(alts)} alts, name {name!r}"
        raise ValueError(
            f"got {got}; expected at least one frame, as many of each, a name of letters and digits"
        )
    data = ["data:image/png;base64," + base64.b64encode(frame).decode() for frame in frames]
    rows = [{"src": s, "alt": a, "label": t} for s, a, t in zip(data, alts, labels, strict=True)]
    return SLIDER.format(
        name=f"slider-{name}",
        title=html.escape(title, quote=True),
        first=data[0],
        alt=html.escape(alts[0], quote=True),
        last=len(frames) - 1,
        frames=json.dumps(rows).replace("</", "<\\/"),
    )
