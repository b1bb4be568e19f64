"""Audit a set of images: padding, clipped sky, seams, mirrored edges, repeats and other traces."""

import dataclasses
import io
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.ndimage import binary_dilation
from scipy.spatial import cKDTree
from skimage.measure import approximate_polygon, find_contours

from galnb.images.stacks import Stack, open_stack
from galnb.phantom.findings import LISTED, SHOWN, Finding, Report
from galnb.phantom.traces import measure, quiet, regions, to_grey

BATCH = 2**20  # values measured at a time
# Set on the first 1,400 images of Galaxy Zoo by name, so that each raises at most 1 false alarm in 700.
PADDING, CONSTANT = 0.009, 0.009  # share of the image
SEAM, MIRROR, SMOOTH = 7.5, 0.02, 12.0  # sigma; part of the usual difference; sigma of the set
ALIKE, SAME, COPY = 0.97, 0.6, 0.9999  # correlations: of thumbnails, of noise, of what has no noise


def audit(images, *, checkpoint=None) -> Report:
    """Look for traces of processing in each image and in the whole set.

    Parameters
    ----------
    images : torch.Tensor, array, str or Path
        (B, C, H, W) in any range; or a folder of JPEG, PNG, FITS; or a FITS or HDF5 file.
    checkpoint : galnb.training.checkpoints.Checkpoint, optional
        A GAN whose discriminator is asked for straight edges in its relevance maps of up to 64 images.

    Returns
    -------
    Report

    Raises
    ------
    FileNotFoundError, ValueError
        If there are no images, or the checkpoint does not fit them. A file that cannot be read is listed.

    Notes
    -----
    One batch of pixels and about 0.7 kB per image are in memory. Every measure is relative to the image's own
    noise or span, so that units do not matter. Chapter: The phantom boundary
    """
    stack, unreadable = images if isinstance(images, Stack) else open_stack(images), {}
    parts, kept, shapes, pending = [], [], [], deque()
    with ThreadPoolExecutor(1) as pool:  # reads the next batch while one is measured
        for indices, batch in _batches(stack, unreadable):
            pending.append(pool.submit(measure, batch))
            kept += indices
            shapes += [batch.shape[1:]] * len(batch)
            if len(pending) > 2:
                parts.append(pending.popleft().result())
        parts += [job.result() for job in pending]
    if not kept:
        raise ValueError(f"no image could be read: {dict(list((stack.unreadable | unreadable).items())[:3])}")
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    findings = [*_of_images(table), *_of_set(table, shapes, stack.unreadable | unreadable)]
    findings += _repeats(table, lambda image: stack.read(kept[image]))
    if checkpoint is not None:
        findings += _of_model(stack, kept, shapes, checkpoint)
    severity = torch.zeros(len(kept))
    for finding in findings:
        if finding.image is not None and finding.kind != "repeats":
            severity[finding.image] = max(float(severity[finding.image]), finding.severity)
    counts = dict(Counter(finding.kind for finding in findings))
    listed, evidence, seen = [], {}, Counter()
    for finding in sorted(findings, key=lambda finding: -finding.severity):
        seen[finding.kind] += 1
        if finding.image is not None and seen[finding.kind] <= SHOWN:
            picture = stack.read(kept[finding.image])
            evidence[finding.image] = _png(picture)
            if finding.kind in ("padding", "constant"):
                finding = dataclasses.replace(finding, place=_polygon(picture, finding.kind == "padding"))
        if seen[finding.kind] <= LISTED:
            listed.append(finding)
    names = [stack.names[index] for index in kept]
    return Report(names, severity, listed, counts, stack.unreadable | unreadable, evidence)


def _batches(stack: Stack, unreadable: dict) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield numbers and (B, C, H, W) of neighbours of one shape; note what cannot be read."""
    indices, held = [], []
    for index, name in enumerate(stack.names):
        try:
            image = stack.read(index)
            if min(image.shape[-2:]) < 16:
                raise ValueError(f"{image.shape[-1]} x {image.shape[-2]} pixels; expected at least 16 x 16")
        except (OSError, ValueError, SyntaxError) as error:  # one or the other, by damage
            unreadable[name] = str(error)
            continue
        if held and (held[0].shape != image.shape or len(held) * image.size >= BATCH):
            yield indices, np.stack(held)
            indices, held = [], []
        indices.append(index)
        held.append(image)
    if held:
        yield indices, np.stack(held)


def _of_images(table: dict[str, np.ndarray]) -> Iterator[Finding]:
    """Findings that each image's own measures give."""
    blank = (table["span"] == 0) | (table["bad"] > 0.5)
    cut = ~blank & (table["at_low"] > 0.9)  # more than any frame: the noise was clipped
    if cut.mean() >= 0.5:  # a habit of the set, no fault of one image
        part = np.median(table["at_low"][cut])
        yield Finding(
            "clipped", 0.4, None, f"{cut.mean():.0%} of images have {part:.1%} of pixels at their minimum"
        )
    else:
        yield from _each("clipped", 0.5, cut, "{:.1%} of pixels at their minimum", table["at_low"])
    rest = ~blank & ~cut
    yield from _each("blank", 1.0, blank, "no pixel differs from another (or most are not numbers)")
    yield from _each(
        "not finite", 0.9, ~blank & (table["bad"] > 0), "{:.2%} of pixels are not numbers", table["bad"]
    )
    for kind, limit in (("padding", PADDING), ("constant", CONSTANT)):
        where = "at the border" if kind == "padding" else "inside"
        found, text = rest & (table[kind] > limit), f"{{:.1%}} of the image are one constant region {where}"
        yield from _each(kind, 0.5 + table[kind] / 2, found, text, table[kind])
    found = rest & (table["at_high"] > 0.01) & (table["at_high"] < 0.5)
    found &= (table["padding"] < PADDING) & (table["constant"] < CONSTANT)
    yield from _each("saturated", 0.3, found, "{:.1%} of pixels at their maximum", table["at_high"])
    for kind, found in (("seam", table["seam"] > SEAM), ("mirrored", table["mirror"] < MIRROR)):
        for axis, side in enumerate("xy"):
            text = f"a line across the whole image at {side} = {{:g}} px"
            single = rest & found[:, axis] & (table["padding"] < PADDING)
            yield from _each(kind, 0.5, single, text, table[f"{kind.removesuffix('ed')}_at"][:, axis])


def _each(kind: str, severity, found: np.ndarray, text: str, values=None) -> Iterator[Finding]:
    severity = np.broadcast_to(severity, found.shape)
    for image in np.flatnonzero(found):
        value = () if values is None else (values[image],)
        yield Finding(kind, float(severity[image]), int(image), text.format(*value))


def _of_set(table: dict[str, np.ndarray], shapes: list, unreadable: dict[str, str]) -> Iterator[Finding]:
    """Findings that only a comparison of images gives."""
    if unreadable:
        yield Finding("unreadable", 0.6, None, f"{len(unreadable)} files could not be read; see the list")
    for kind, of in (
        ("mixed sizes", [f"{s[2]} x {s[1]}" for s in shapes]),
        ("mixed channels", [s[0] for s in shapes]),
    ):
        if len(counted := Counter(of)) > 1:
            said = ", ".join(f"{count} of {value}" for value, count in counted.most_common(5))
            yield Finding(kind, 0.6, None, f"{said} ({'pixels' if kind == 'mixed sizes' else 'channels'})")
    lit = table["span"] > 0
    if lit.any():
        usual = np.median((table["high"] - table["low"])[lit])
        factor = np.maximum(
            (table["high"] - table["low"]) / usual, usual / np.maximum(table["high"] - table["low"], 1e-30)
        )
        most_signed = np.median(table["low"][lit]) < -0.5
        other = lit & (
            (factor > 30) | ((table["low"] < -0.5) != most_signed) & (np.median(table["high"][lit]) <= 1.001)
        )
        values = [f"{low:.3g} to {high:.3g}" for low, high in zip(table["low"], table["high"], strict=True)]
        yield from _each("mixed ranges", 0.6, other, f"values {{}}; the usual span is {usual:.3g}", values)
    smooth = table["smooth"]
    if (known := smooth > 0).sum() >= 20:
        logs = np.log(np.where(known, smooth, 1))
        middle = np.median(logs[known])
        score = (logs - middle) / max(1.4826 * np.median(np.abs(logs[known] - middle)), 0.02)
        text = f"noise of neighbours is {{:.2f}} of that 3 px apart; {np.exp(middle):.2f} in the set"
        yield from _each("resampled", 0.3, known & (np.abs(score) > SMOOTH), text, smooth)
        if np.exp(middle) < 0.8:
            text = (
                f"all noise is smooth: neighbours differ {np.exp(middle):.2f} times as much as pixels 3 apart"
            )
            yield Finding("resampled", 0.2, None, text)


def _repeats(table: dict[str, np.ndarray], read: Callable[[int], np.ndarray]) -> Iterator[Finding]:
    """Pairs of like thumbnails whose pixels are alike too, at most `LISTED` of them looked at."""
    thumbnails = table["thumbnail"]
    known = np.flatnonzero(thumbnails.any(1))
    if len(known) < 2:
        return
    sample = thumbnails[known[:: max(1, len(known) // 2048)]].astype(np.float32)
    axes = np.linalg.svd(sample - sample.mean(0), full_matrices=False)[2][:12]  # no points move apart
    points = np.concatenate(
        [thumbnails[part].astype(np.float32) @ axes.T for part in np.array_split(known, 64)]
    )
    tree, reach = cKDTree(points), np.sqrt(2 - 2 * ALIKE)
    near = tree.query(points, k=min(3, len(known)), distance_upper_bound=reach)[1]
    first, place = np.nonzero(near < len(known))
    pairs = np.sort(np.stack([known[first], known[near[first, place]]], 1), 1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    alike = np.concatenate([_alike(thumbnails, part) for part in np.array_split(pairs, 64)])
    for a, b in pairs[np.argsort(-alike)][: min(LISTED, int((alike > ALIKE).sum()))]:
        one, other = read(a), read(b)
        if one.shape == other.shape:
            match = _noise(one) @ _noise(other)
            if match > (COPY if max(table["at_low"][[a, b]]) > 0.5 else SAME):
                yield Finding(
                    "repeats", 0.5, int(b), f"the same as image number {a} (correlation {match:.4f})"
                )


def _alike(thumbnails: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    return (thumbnails[pairs[:, 0]].astype(np.float32) * thumbnails[pairs[:, 1]]).sum(1)


def _noise(image: np.ndarray) -> np.ndarray:
    """Differences of neighbours, of unit length: in them noise outweighs the shape of a galaxy."""
    change = np.diff(to_grey(np.nan_to_num(image)[None])[0]).ravel()
    return change / max(float(np.linalg.norm(change)), 1e-30)


def _of_model(stack: Stack, kept: list[int], shapes: list, checkpoint) -> Iterator[Finding]:
    """Ask the discriminator of a checkpoint for straight edges."""
    from galnb.phantom import straight_edges
    from galnb.relevance import polarized_relevance

    config, gan = checkpoint.gan.config, checkpoint.gan
    wanted = (getattr(config, "channels", 3), config.size, config.size)
    if wrong := Counter(shapes).keys() - {wanted}:
        given = ", ".join(str(tuple(shape)) for shape in sorted(wrong)[:3])
        raise ValueError(f"images of (channels, height, width) {given}, but the checkpoint takes {wanted}")
    chosen = kept[:: max(1, len(kept) // 64)][:64]
    images = torch.from_numpy(np.stack([stack.read(index) for index in chosen]))
    maps = polarized_relevance(gan.discriminator, gan.prepare(images)).positive
    found = straight_edges(maps).found
    share = float(found.float().mean())
    if share > 0.05:
        text = f"{share:.0%} of {len(chosen)} relevance maps have a straight line where no galaxy is"
        yield Finding("straight edges", 0.6, None, text)


def _polygon(image: np.ndarray, border: bool) -> tuple:
    """Outline of the largest quiet region at the border or inside, as (x, y) in px."""
    grey = to_grey(np.nan_to_num(image[None]))[0]
    labels, areas, touching = regions(quiet(grey[None])[0])
    areas = areas * (touching == border)
    if not areas.any():
        return ()
    mask = np.pad(binary_dilation(labels == 1 + areas.argmax()), 1)  # quiet pixels end one before the edge
    outline = max(find_contours(mask.astype(float), 0.5), key=len) - 0.5  # pixel centres lie at halves
    return tuple((float(x), float(y)) for y, x in approximate_polygon(outline, 0.6))


def _png(image: np.ndarray) -> bytes:
    """Grey picture, at most 512 px, stretched so that the sky is seen."""
    from PIL import Image

    grey = np.nan_to_num(image).mean(0)
    low, high = np.percentile(grey, (0.5, 99.5))
    scaled = np.arcsinh(10 * ((grey - low) / max(high - low, 1e-12)).clip(0, 1)) / np.arcsinh(10)
    file = io.BytesIO()
    Image.fromarray((255 * scaled).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
