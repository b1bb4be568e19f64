"""Hold what an audit found, and write it as JSON or as one HTML page with its evidence."""

import base64
import dataclasses
import html
import json

import torch

SERIOUS = 0.5
SHOWN, LISTED = 8, 1000  # evidence pictures and named images per kind
FIXES = {
    "unreadable": "fetch the files again or remove them",
    "mixed sizes": "crop or average all images to one size",
    "mixed channels": "convert all images to colour, or all to grey",
    "mixed ranges": "bring all images to [0, 1] before they are mixed",
    "not finite": "replace or mask these pixels, or drop the image",
    "blank": "remove the image",
    "padding": "fill with noise like the image's own sky (galnb.blending.fills), crop, or drop the image",
    "constant": "look at the region: a mask, a saturated core or a lost block; mask it or drop the image",
    "mirrored": "crop the edge: rows or columns repeat their neighbours exactly",
    "seam": "crop to one side of the line, or make the mosaic anew with matched skies",
    "clipped": "keep the noise below the sky level, or know that a network sees where it was cut",
    "saturated": "use a softer stretch or a longer range of values",
    "resampled": "make all images go through the same resampling, or restore the noise (galnb.blending.fills)",
    "repeats": "keep one image of each group, above all across training and test parts",
    "straight edges": "the discriminator looks along straight lines: look for a frame, and mend the fill",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """Hold one finding; ``image`` is None where it concerns the whole set.

    Notes
    -----
    ``place`` is a polygon of (x, y) in pixels, empty where there is none. Chapter: The phantom boundary
    """

    kind: str
    severity: float
    image: int | None
    text: str
    place: tuple = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """Hold what an audit found.

    Parameters
    ----------
    names : list of str
        The images that could be read.
    severity : torch.Tensor, shape (B,)
        Worst finding of each image in [0, 1]: 0 = clean, from 0.5 = serious. Repeats do not count: they are a
        fault of the set.
    findings : list of Finding
        The worst `LISTED` per kind, worst first; `counts` has them all.
    counts : dict of str to int
        Findings per kind.
    unreadable : dict of str to str
        Files left out and why.
    evidence : dict of int to bytes
        PNG of the images that the HTML report shows.

    Notes
    -----
    Chapter: The phantom boundary
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
        """Return everything but the pictures as JSON.

        Chapter: The phantom boundary
        """
        found = [dataclasses.asdict(finding) | {"fix": FIXES[finding.kind]} for finding in self.findings]
        for entry in found:
            entry["name"] = None if entry["image"] is None else self.names[entry["image"]]
        clean = int((self.severity == 0).sum())
        summary = {"images": len(self.names), "clean": clean, "serious": self.serious, "counts": self.counts}
        return json.dumps(summary | {"unreadable": self.unreadable, "findings": found}, indent=1)

    def to_html(self) -> str:
        """Return one page that needs no other file.

        Chapter: The phantom boundary
        """
        clean = int((self.severity == 0).sum())
        lines = [HEAD, f"<p>{len(self.names)} images, {clean} without a finding of their own.</p>"]
        for kind in sorted(self.counts, key=lambda kind: -max(f.severity for f in self._of(kind))):
            found, fix = self._of(kind), html.escape(FIXES[kind])
            lines.append(f"<h2>{kind} ({self.counts[kind]})</h2><p><b>What to do:</b> {fix}.</p><div>")
            shown = [f for f in found if f.image in self.evidence][:SHOWN]
            lines += [self._figure(finding) for finding in shown] + ["</div><ul>"]
            rest = [finding for finding in found if finding not in shown]
            lines += [f"<li>{html.escape(self._line(finding))}</li>" for finding in rest[:50]] + ["</ul>"]
        lines += [f"<p>{html.escape(f'{name}: {why}')}</p>" for name, why in self.unreadable.items()]
        return "\n".join([*lines, "</body></html>"])

    def _of(self, kind: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == kind]

    def _line(self, finding: Finding) -> str:
        name = "" if finding.image is None else f"{self.names[finding.image]}: "
        return f"{name}{finding.text} (severity {finding.severity:.2f})"

    def _figure(self, finding: Finding) -> str:
        picture = self.evidence[finding.image]
        width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))  # of the PNG header
        points = " ".join(f"{x:.4g},{y:.4g}" for x, y in finding.place)
        source = base64.b64encode(picture).decode()
        line = html.escape(self._line(finding))
        return (
            f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{line}">'
            f'<image width="{width}" height="{height}" href="data:image/png;base64,{source}"/>'
            f'<polygon points="{points}"/></svg>'
            f"<figcaption>{line}</figcaption></figure>"
        )


HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Audit of images</title><style>
body{font:16px/1.5 sans-serif;max-width:70em;margin:auto;padding:1em}div{display:flex;flex-wrap:wrap;gap:1em}
figure{width:14em;margin:0}svg{width:100%;image-rendering:pixelated}figcaption{font-size:.8em;overflow-wrap:anywhere}
polygon{fill:none;stroke:#e69f00;stroke-width:2;vector-effect:non-scaling-stroke}</style></head><body>
<h1>Audit of images</h1>"""
