"""Audit a set of images: padding, clipped sky, seams, mirrored edges, repeats and other traces.

Chapter 09, The phantom boundary.
"""

import base64
import html
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from string import Template

import numpy as np
import torch
from scipy.ndimage import binary_dilation
from skimage.measure import approximate_polygon, find_contours

from galnb.images.readers import open_stack
from galnb.phantom.traces import TRACES, alike, measure, quiet, regions, to_grey

_BATCH = 2**20  # values measured at a time
SERIOUS, _HABIT = 0.5, 0.1  # severity from which a finding is serious; taken off where most images share it
_AREAS = ("padding", "constant")
_SHOWN, _LISTED, _PAIRS = 8, 50, 1000  # per kind: pictures and lines of the page; like images looked at
_ALIKE = 0.97  # by hand: correlation of thumbnails from which two images are compared
_COPY = 0.9999  # by hand: correlation of equal images whose sky holds no noise


@dataclass(frozen=True)
class Finding:
    """Hold one finding of a kind in `TRACES`, worse with its severity in [0, 1].

    image: its number in `Report.names`, None for the whole set; place: polygon of (x, y) in px, may be empty.
    """

    kind: str
    severity: float
    image: int | None
    text: str
    place: tuple = ()


@dataclass(frozen=True)
class Report:
    """Hold what an audit found.

    names: the images that could be read.
    severity: (B,) worst finding of each in [0, 1], 0 = clean; repeats, a fault of the set, do not count.
    findings: worst first; unreadable: files left out -> why.
    evidence: image -> PNG, for those that the HTML report shows.
    """

    names: list[str]
    severity: torch.Tensor
    findings: list[Finding]
    unreadable: dict[str, str]
    evidence: dict[int, bytes] = field(repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings of each kind, the kind with the worst first."""
        return dict(Counter(finding.kind for finding in self.findings))

    @property
    def serious(self) -> bool:
        """Whether anything of severity 0.5 or more was found."""
        return any(finding.severity >= SERIOUS for finding in self.findings)

    def to_json(self) -> str:
        """Return everything but the pictures as JSON."""
        found = []
        for one in self.findings:
            trace, name = TRACES[one.kind], None if one.image is None else self.names[one.image]
            found.append({**asdict(one), "fix": trace.fix, "why": trace.why, "name": name})
        facts = {"images": len(self.names), "clean": self._clean(), "serious": self.serious}
        facts |= {"counts": self.counts, "unreadable": self.unreadable, "findings": found}
        return json.dumps(facts, indent=1)

    def to_html(self) -> str:
        """Return one page that needs no other file."""
        lines = []
        for kind, count in self.counts.items():
            found = [finding for finding in self.findings if finding.kind == kind][:_LISTED]
            fix, more = html.escape(TRACES[kind].fix), "and more, named by to_json" if count > _LISTED else ""
            lines.append(f"<h2>{kind} ({count})</h2><p><b>What to do:</b> {fix}.</p><div>")
            lines += [*map(self._entry, found), f"</div><p>{more}</p>"]
        page = Template(Path(__file__).with_name("report.html").read_text("utf-8"))
        return page.substitute(images=len(self.names), clean=self._clean(), findings="\n".join(lines))

    def _clean(self) -> int:
        return int((self.severity == 0).sum())

    def _entry(self, finding: Finding) -> str:
        name = "" if finding.image is None else f"{self.names[finding.image]}: "
        line = html.escape(f"{name}{finding.text} (severity {finding.severity:.2f})")
        if finding.image not in self.evidence:
            return f"<p>{line}</p>"
        picture = self.evidence[finding.image]
        width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))  # of the PNG header
        points = " ".join(f"{x:.4g},{y:.4g}" for x, y in finding.place)
        return (
            f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{line}">'
            f'<image width="{width}" height="{height}" href="data:image/png;base64,'
            f'{base64.b64encode(picture).decode()}"/>'
            f'<polygon points="{points}"/></svg><figcaption>{line}</figcaption></figure>'
        )


def audit(images) -> Report:
    """Look for traces of processing in each image and in the whole set.

    images: (B, C, H, W) tensor or array in any range; or a folder of JPEG, PNG, FITS; or a FITS or HDF5 file.
    FileNotFoundError or ValueError if there are no images; a file that cannot be read is a finding.
    Every measure is relative to the image's own noise or span: units do not matter. In memory are one batch
    of pixels and about 2 kB an image.
    """
    readers, unreadable = open_stack(images)
    table, kept = _measured(readers, unreadable)
    names, readers = list(kept), list(kept.values())
    findings = [*_of_images(table), *_of_set(table, unreadable), *_repeats(table, readers)]
    findings.sort(key=lambda finding: -finding.severity)
    severity, seen, evidence = torch.zeros(len(names)), Counter(), {}
    for number, finding in enumerate(findings):
        if finding.image is None:
            continue
        if finding.kind != "repeats":
            severity[finding.image] = max(float(severity[finding.image]), finding.severity)
        seen[finding.kind] += 1
        if seen[finding.kind] <= _SHOWN:
            picture = readers[finding.image]()
            evidence[finding.image] = _png(picture)
            if finding.kind in _AREAS:
                findings[number] = replace(finding, place=_polygon(picture, finding.kind == "padding"))
    return Report(names, severity, findings, unreadable, evidence)


def _measured(readers: dict[str, Callable], unreadable: dict[str, str]) -> tuple[dict, dict[str, Callable]]:
    """Measure batches of neighbours of one shape: the table, and the readers in it; adds to `unreadable`."""
    parts, kept, held = [], {}, []
    for name, read in readers.items():
        try:
            image = read()
            if min(image.shape[-2:]) < 16:
                raise ValueError(f"{image.shape[-1]} x {image.shape[-2]} pixels; expected at least 16 x 16")
        except (OSError, ValueError) as error:
            unreadable[name] = str(error)
            continue
        if held and (held[0].shape != image.shape or len(held) * image.size >= _BATCH):
            parts.append(measure(np.stack(held)))
            held = []
        held.append(image)
        kept[name] = read
    if not kept:
        raise ValueError(f"no image could be read: {dict(list(unreadable.items())[:3])}")
    parts.append(measure(np.stack(held)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, kept


def _finding(kind: str, image: int | None, *values) -> Finding:
    """Say what `TRACES` says; half of an area adds to its severity, and a habit of the set is less bad."""
    trace, whole = TRACES[kind], TRACES[kind].whole if image is None else ""
    severity = round(trace.severity - _HABIT, 6) if whole else trace.severity
    severity += float(values[0]) / 2 if kind in _AREAS else 0
    return Finding(kind, severity, image, (whole or trace.text).format(*values))


def _of_images(table: dict[str, np.ndarray]) -> Iterator[Finding]:
    """Findings of the kinds that are measured in each image, some of them along both axes."""
    found = {}
    for kind in [kind for kind in TRACES if kind in table]:
        measured = table[kind].reshape(len(table[kind]), -1)
        found[kind] = measured > TRACES[kind].limit
        for other in TRACES[kind].unless:
            found[kind] &= ~found[other].any(1, keepdims=True)
        if TRACES[kind].whole and found[kind].mean() >= 0.5:
            yield _finding(kind, None, found[kind].mean(), np.median(measured[found[kind]]))
            continue
        places = table.get(f"{kind} at", measured)
        for image, axis in np.argwhere(found[kind]).tolist():
            yield _finding(kind, image, measured[image, axis], "xy"[axis], places[image, axis])


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
    known = np.flatnonzero(table["smooth"] > 0)
    if len(known) >= 20:  # by hand: fewer have no usual noise
        logs = np.log(table["smooth"][known])
        usual = np.median(logs)
        sigma = max(1.4826 * np.median(np.abs(logs - usual)), 0.02)
        for image in known[np.abs(logs - usual) / sigma > TRACES["resampled"].limit].tolist():
            yield _finding("resampled", image, table["smooth"][image], np.exp(usual))
        if np.exp(usual) < 0.8:
            yield _finding("resampled", None, np.exp(usual))


def _repeats(table: dict[str, np.ndarray], readers: list[Callable]) -> Iterator[Finding]:
    """Pairs of like thumbnails whose pixels are alike too."""
    for a, b in alike(table["thumbnail"], _ALIKE)[:_PAIRS]:
        one, other = readers[a](), readers[b]()
        if one.shape == other.shape:
            match = _noise(one) @ _noise(other)
            if match > (_COPY if max(table["clipped"][[a, b]]) > 0.5 else TRACES["repeats"].limit):
                yield _finding("repeats", b, a, match)


def _noise(image: np.ndarray) -> np.ndarray:
    """Differences of neighbours, of unit length: in them noise outweighs the shape of a galaxy."""
    change = np.diff(to_grey(np.nan_to_num(image)[None])[0]).ravel()
    return change / max(float(np.linalg.norm(change)), 1e-30)


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
