"""Audit a set of images: padding, clipped sky, seams, mirrored edges, repeats and other traces.

Chapter 09, The phantom boundary.
"""

import base64
import dataclasses
import html
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template

import numpy as np
import torch
from scipy.ndimage import binary_dilation
from skimage.measure import approximate_polygon, find_contours

from galnb.images.readers import Stack, open_stack
from galnb.phantom.traces import TRACES, alike, measure, quiet, regions, straight_edges, to_grey

_BATCH = 2**20  # values measured at a time
SERIOUS, _HABIT = 0.5, 0.1  # severity from which a finding is serious; taken off where most images share it
_AREAS = ("padding", "constant")
_SHOWN, _LISTED = 8, 1000  # evidence pictures and named images per kind
_ALIKE = 0.97  # by hand: correlation of thumbnails from which two images are compared
_COPY = 0.9999  # by hand: correlation of equal images whose sky holds no noise
_COMMON = 0.05  # by hand: share of relevance maps with a straight line; 0.01 is what chance gives


@dataclasses.dataclass(frozen=True)
class Finding:
    """Hold one finding of a kind in `TRACES`, worse with its severity in [0, 1].

    image: its number in `Report.names`, None for the whole set; place: polygon of (x, y) in px, may be empty.
    """

    kind: str
    severity: float
    image: int | None
    text: str
    place: tuple = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """Hold what an audit found.

    names: the images that could be read.
    severity: (B,) worst finding of each in [0, 1], 0 = clean; repeats, a fault of the set, do not count.
    findings: the worst 1,000 per kind, worst first; counts: kind -> all of them.
    unreadable: files left out -> why; evidence: image -> PNG, for those that the HTML report shows.
    """

    names: list[str]
    severity: torch.Tensor
    findings: list[Finding]
    counts: dict[str, int]
    unreadable: dict[str, str]
    evidence: dict[int, bytes] = dataclasses.field(repr=False)

    @property
    def serious(self) -> bool:
        """Whether anything of severity 0.5 or more was found."""
        return any(finding.severity >= SERIOUS for finding in self.findings)

    def to_json(self) -> str:
        """Return everything but the pictures as JSON."""
        found = [
            {**dataclasses.asdict(f), "fix": TRACES[f.kind].fix, "why": TRACES[f.kind].why,
             "name": None if f.image is None else self.names[f.image]}
            for f in self.findings
        ]  # fmt: skip
        summary = {"images": len(self.names), "clean": self._clean(), "serious": self.serious}
        rest = {"counts": self.counts, "unreadable": self.unreadable, "findings": found}
        return json.dumps(summary | rest, indent=1)

    def to_html(self) -> str:
        """Return one page that needs no other file."""
        lines = []
        for kind in dict.fromkeys(finding.kind for finding in self.findings):  # worst first
            found = [finding for finding in self.findings if finding.kind == kind]
            fix = html.escape(TRACES[kind].fix)
            lines.append(f"<h2>{kind} ({self.counts[kind]})</h2><p><b>What to do:</b> {fix}.</p><div>")
            shown = [finding for finding in found if finding.image in self.evidence][:_SHOWN]
            lines += [self._figure(finding) for finding in shown] + ["</div><ul>"]
            rest = [finding for finding in found if finding not in shown][:50]
            lines += [f"<li>{self._line(finding)}</li>" for finding in rest]
            left = self.counts[kind] - len(shown) - len(rest)
            lines.append(f"</ul><p>{left} more: to_json names up to {_LISTED}.</p>" if left else "</ul>")
        page = Template(Path(__file__).with_name("report.html").read_text("utf-8"))
        return page.substitute(images=len(self.names), clean=self._clean(), findings="\n".join(lines))

    def _clean(self) -> int:
        return int((self.severity == 0).sum())

    def _line(self, finding: Finding) -> str:
        name = "" if finding.image is None else f"{self.names[finding.image]}: "
        return html.escape(f"{name}{finding.text} (severity {finding.severity:.2f})")

    def _figure(self, finding: Finding) -> str:
        picture = self.evidence[finding.image]
        width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))  # of the PNG header
        points = " ".join(f"{x:.4g},{y:.4g}" for x, y in finding.place)
        source, line = base64.b64encode(picture).decode(), self._line(finding)
        return (
            f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{line}">'
            f'<image width="{width}" height="{height}" href="data:image/png;base64,{source}"/>'
            f'<polygon points="{points}"/></svg><figcaption>{line}</figcaption></figure>'
        )


def audit(images, *, checkpoint=None) -> Report:
    """Look for traces of processing in each image and in the whole set.

    images: (B, C, H, W) tensor or array in any range; or a folder of JPEG, PNG, FITS; or a FITS or HDF5 file.
    checkpoint: a `Checkpoint` whose discriminator is asked for straight edges in relevance maps of 64 images.
    FileNotFoundError or ValueError if there are no images or the checkpoint does not take them; a file that
    cannot be read is a finding. Every measure is relative to the image's own noise or span, so that units do
    not matter. One batch of pixels and about 1 kB per image are in memory.
    """
    stack = open_stack(images)
    table, kept, unreadable = _measured(stack)

    def read(image: int) -> np.ndarray:
        return stack.read(kept[image])

    findings = [*_of_images(table), *_of_set(table, unreadable), *_repeats(table, read)]
    if checkpoint is not None:
        findings += _of_model(table, read, checkpoint)
    severity, counts, listed, evidence = torch.zeros(len(kept)), Counter(), [], {}
    for finding in sorted(findings, key=lambda finding: -finding.severity):
        counts[finding.kind] += 1
        if finding.image is not None and finding.kind != "repeats":
            severity[finding.image] = max(float(severity[finding.image]), finding.severity)
        if finding.image is not None and counts[finding.kind] <= _SHOWN:
            picture = read(finding.image)
            evidence[finding.image] = _png(picture)
            if finding.kind in _AREAS:
                finding = dataclasses.replace(finding, place=_polygon(picture, finding.kind == "padding"))
        if counts[finding.kind] <= _LISTED:
            listed.append(finding)
    return Report([stack.names[i] for i in kept], severity, listed, dict(counts), unreadable, evidence)


def _measured(stack: Stack) -> tuple[dict[str, np.ndarray], list[int], dict[str, str]]:
    """Measure batches of neighbours of one shape: the table, which images it holds, and what was not read."""
    parts, kept, held, unreadable = [], [], [], dict(stack.unreadable)
    for index, name in enumerate(stack.names):
        try:
            image = stack.read(index)
            if min(image.shape[-2:]) < 16:
                raise ValueError(f"{image.shape[-1]} x {image.shape[-2]} pixels; expected at least 16 x 16")
        except (OSError, ValueError) as error:
            unreadable[name] = str(error)
            continue
        if held and (held[0].shape != image.shape or len(held) * image.size >= _BATCH):
            parts.append(measure(np.stack(held)))
            held = []
        held.append(image)
        kept.append(index)
    if not kept:
        raise ValueError(f"no image could be read: {dict(list(unreadable.items())[:3])}")
    parts.append(measure(np.stack(held)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, kept, unreadable


def _finding(kind: str, image: int | None, *values) -> Finding:
    """Say what `TRACES` says; half of an area adds to its severity, and a habit of the set is less bad."""
    trace, whole = TRACES[kind], TRACES[kind].whole if image is None else ""
    severity = round(trace.severity - _HABIT, 6) if whole else trace.severity
    severity += float(values[0]) / 2 if kind in _AREAS else 0
    return Finding(kind, severity, image, (whole or trace.text).format(*values))


def _of_images(table: dict[str, np.ndarray]) -> Iterator[Finding]:
    """Findings that each image's own measures give."""
    over = {kind: table[kind] > TRACES[kind].limit for kind in ("padding", "constant", "seam")}
    over["mirrored"] = table["mirror"] < TRACES["mirrored"].limit
    blank = (table["span"] == 0) | (table["bad"] > TRACES["blank"].limit)
    cut = ~blank & (table["at_low"] > TRACES["clipped"].limit)
    rest, plain = ~blank & ~cut, ~blank & ~cut & ~over["padding"]
    high = (table["at_high"] > TRACES["saturated"].limit) & (table["at_high"] < 0.5)
    if common := cut.mean() >= 0.5:
        yield _finding("clipped", None, cut.mean(), np.median(table["at_low"][cut]))
    judged = [
        ("clipped", cut & ~common, table["at_low"]),
        ("blank", blank, table["bad"]),
        ("not finite", ~blank & (table["bad"] > 0), table["bad"]),
        ("padding", rest & over["padding"], table["padding"]),
        ("constant", rest & over["constant"], table["constant"]),
        ("saturated", plain & ~over["constant"] & high, table["at_high"]),
    ]
    for kind, places in (("seam", table["seam_at"]), ("mirrored", table["mirror_at"])):
        for axis, side in enumerate("xy"):
            said = [f"{side} = {place:g}" for place in places[:, axis]]
            judged.append((kind, plain & over[kind][:, axis], said))
    for kind, found, values in judged:
        yield from (_finding(kind, image, values[image]) for image in np.flatnonzero(found).tolist())


def _of_set(table: dict[str, np.ndarray], unreadable: dict[str, str]) -> Iterator[Finding]:
    """Findings that only a comparison of images gives, and the files that could not be read."""
    for name, why in unreadable.items():
        yield _finding("unreadable", None, f"{name}: {why}")
    for kind, axes in (("mixed sizes", [2, 1]), ("mixed channels", [0])):
        counted = Counter(" x ".join(map(str, shape)) for shape in table["shape"][:, axes].tolist())
        if len(counted) > 1:
            yield _finding(kind, None, ", ".join(f"{n} of {value}" for value, n in counted.most_common(5)))
    low, high, lit = table["low"], table["high"], table["span"] > 0
    if lit.any():
        span, usual = high - low, np.median((high - low)[lit])
        factor = np.maximum(span / usual, usual / np.maximum(span, 1e-30))
        signed = low < -0.5  # by hand: [-1, 1] among [0, 1]
        odd = (signed != (np.median(low[lit]) < -0.5)) & (np.median(high[lit]) <= 1.001)
        for image in np.flatnonzero(lit & ((factor > TRACES["mixed ranges"].limit) | odd)).tolist():
            yield _finding("mixed ranges", image, f"{low[image]:.3g} to {high[image]:.3g}", usual)
    known = table["smooth"] > 0
    if known.sum() >= 20:  # by hand: fewer have no usual noise
        logs = np.log(np.where(known, table["smooth"], 1))
        usual = np.median(logs[known])
        sigma = max(1.4826 * np.median(np.abs(logs[known] - usual)), 0.02)
        found = known & (np.abs(logs - usual) / sigma > TRACES["resampled"].limit)
        for image in np.flatnonzero(found).tolist():
            yield _finding("resampled", image, table["smooth"][image], np.exp(usual))
        if np.exp(usual) < 0.8:
            yield _finding("resampled", None, np.exp(usual))


def _repeats(table: dict[str, np.ndarray], read: Callable[[int], np.ndarray]) -> Iterator[Finding]:
    """Pairs of like thumbnails whose pixels are alike too, at most 1,000 of them looked at."""
    for a, b in alike(table["thumbnail"], _ALIKE)[:_LISTED]:
        one, other = read(a), read(b)
        if one.shape == other.shape:
            match = _noise(one) @ _noise(other)
            if match > (_COPY if max(table["at_low"][[a, b]]) > 0.5 else TRACES["repeats"].limit):
                yield _finding("repeats", b, a, match)


def _noise(image: np.ndarray) -> np.ndarray:
    """Differences of neighbours, of unit length: in them noise outweighs the shape of a galaxy."""
    change = np.diff(to_grey(np.nan_to_num(image)[None])[0]).ravel()
    return change / max(float(np.linalg.norm(change)), 1e-30)


def _of_model(table: dict[str, np.ndarray], read: Callable, checkpoint) -> Iterator[Finding]:
    """Ask the discriminator of a checkpoint for straight edges."""
    from galnb.relevance import polarized_relevance

    if not hasattr(checkpoint, "gan"):
        raise ValueError(
            f"checkpoint: got {type(checkpoint).__name__}, expected what load_checkpoint returns"
        )
    gan, shapes = checkpoint.gan, list(map(tuple, table["shape"].tolist()))
    wanted = (getattr(gan.config, "channels", 3), gan.config.size, gan.config.size)
    if wrong := sorted(set(shapes) - {wanted}):
        given = f"images of (channels, height, width) {', '.join(map(str, wrong[:3]))}"
        cure = f"read them as its chapter does, as images.galaxy_zoo(folder, size={wanted[1]}).pixels does"
        raise ValueError(f"{given}, but the checkpoint takes {wanted}; {cure}, and audit those")
    chosen = range(0, len(shapes), max(1, len(shapes) // 64))[:64]
    images = torch.from_numpy(np.stack([read(image) for image in chosen]))
    strength, _ = straight_edges(polarized_relevance(gan.discriminator, gan.prepare(images)).positive)
    share = float((strength > TRACES["straight edges"].limit).float().mean())
    if share > _COMMON:
        yield _finding("straight edges", None, share, len(chosen))


def _polygon(image: np.ndarray, border: bool) -> tuple:
    """Outline of the largest quiet region at the border or inside, as (x, y) in px."""
    labels, areas, touching = regions(quiet(to_grey(np.nan_to_num(image[None])))[0])
    areas = areas * (touching == border)
    if not areas.any():
        return ()
    mask = np.pad(binary_dilation(labels == 1 + areas.argmax()), 1)  # quiet pixels end one before the edge
    outline = max(find_contours(mask.astype(float), 0.5), key=len) - 0.5  # pixel centres lie at halves
    return tuple((float(x), float(y)) for y, x in approximate_polygon(outline, 0.6))


def _png(image: np.ndarray) -> bytes:
    """Grey picture, stretched so that the sky is seen."""
    from PIL import Image

    grey = to_grey(np.nan_to_num(image)[None])[0]
    low, high = np.percentile(grey, (0.5, 99.5))
    scaled = np.arcsinh(10 * ((grey - low) / max(high - low, 1e-12)).clip(0, 1)) / np.arcsinh(10)
    file = io.BytesIO()
    Image.fromarray((255 * scaled).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
