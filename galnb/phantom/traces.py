"""Measure the traces of processing in images: quiet regions, seams, mirrored edges, smooth noise."""

import numpy as np
from scipy import ndimage

QUIET = 0.05  # a pixel is quiet if it differs from its neighbours by less than this part of the usual
RUN = 9  # quiet pixels in a row along the border that count as padding even one pixel wide
SIDE = 16  # pixels across a thumbnail


def measure(images: np.ndarray) -> dict[str, np.ndarray]:
    """Measure each image of a batch.

    Parameters
    ----------
    images : np.ndarray
        (B, C, H, W) float32, any range, at least 16 x 16 pixels.

    Returns
    -------
    dict of str to np.ndarray
        One row per image: ``low``, ``high``, ``span``; shares of pixels ``bad`` (not finite), ``at_low``,
        ``at_high``, ``padding`` (largest constant region at the border), ``constant`` (inside);
        ``seam`` and ``mirror`` per axis (B, 2) with their places; ``smooth`` (noise of neighbours relative to
        that of pixels 3 apart: 1 for white noise); ``thumbnail`` (B, 256), unit length.

    Notes
    -----
    Everything is relative to the image's own noise. Chapter: The phantom boundary
    """
    finite = np.isfinite(images)
    bad = 1 - finite.mean((1, 2, 3))
    images = images if finite.all() else np.where(finite, images, 0)
    grey = (
        images.mean(1)
        if images.shape[1] != 3
        else images[:, 0] * 0.299 + images[:, 1] * 0.587 + images[:, 2] * 0.114
    )
    low, high = grey.min((1, 2)), grey.max((1, 2))
    along = [_lines(turned) for turned in (grey, np.ascontiguousarray(grey.transpose(0, 2, 1)))]
    seam, seam_at, mirror, mirror_at, smooth = (np.stack(pair, 1) for pair in zip(*along, strict=True))
    padding, constant = np.array([_areas(flat) for flat in quiet(grey)]).T
    return {
        "bad": bad, "low": images.min((1, 2, 3)), "high": images.max((1, 2, 3)), "span": high - low,
        "at_low": (grey == low[:, None, None]).mean((1, 2)),
        "at_high": (grey == high[:, None, None]).mean((1, 2)),
        "padding": padding, "constant": constant, "seam": seam, "seam_at": seam_at,
        "mirror": mirror, "mirror_at": mirror_at, "smooth": smooth.mean(1), "thumbnail": _thumbnails(grey),
    }  # fmt: skip


def to_grey(images: np.ndarray) -> np.ndarray:
    """Weigh the channels of (B, C, H, W), unequally so that no change in one hides another's.

    Chapter: The phantom boundary
    """
    weights = np.arange(images.shape[1], 0, -1, dtype=np.float32) + 0.3
    return np.einsum("bchw,c->bhw", images, weights / weights.sum(), optimize=True)


def quiet(grey: np.ndarray) -> np.ndarray:
    """Mark the pixels of (B, H, W) that hardly differ from their neighbours, or lie in a long border run.

    Chapter: The phantom boundary
    """
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    across, down = np.abs(np.diff(padded[:, 1:-1])), np.abs(np.diff(padded[:, :, 1:-1], axis=1))
    across, down = across[..., 1:] + across[..., :-1], down[:, 1:] + down[:, :-1]
    activity = across + down
    usual = np.median(activity[:, ::2, ::2].reshape(len(grey), -1), 1)
    # The floor is above the rounding of float32 averages.
    limit = np.maximum(QUIET * usual, 4e-6 * np.abs(grey).max((1, 2)))[:, None, None]
    flat = activity <= limit
    for edge, along in (
        (np.s_[:, 0], across),
        (np.s_[:, -1], across),
        (np.s_[:, :, 0], down),
        (np.s_[:, :, -1], down),
    ):
        flat[edge] |= ndimage.binary_opening(along[edge] <= limit[:, 0] / 2, np.ones((1, RUN)))
    return flat


def regions(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label the connected regions of (H, W): labels, area of each in pixels, and whether it meets the border.

    Chapter: The phantom boundary
    """
    labels, count = ndimage.label(flat)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    touching = np.zeros(count + 1, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        touching[edge] = True
    return labels, areas, touching[1:]


def _areas(flat: np.ndarray) -> tuple[float, float]:
    if np.count_nonzero(flat) < 0.005 * flat.size:
        return 0.0, 0.0
    _, areas, touching = regions(flat)
    return areas[touching].max(initial=0) / flat.size, areas[~touching].max(initial=0) / flat.size


def _lines(grey: np.ndarray) -> tuple[np.ndarray, ...]:
    """Seams and mirrored edges along columns of (B, H, W), their places in px, and smoothness of noise."""
    first, second = (np.abs(grey[..., lag:] - grey[..., :-lag]) for lag in (1, 2))
    apart = np.abs(grey[..., 3:] - grey[..., :-3])
    noise = [np.median(d[:, ::2, ::3].reshape(len(grey), -1), 1) for d in (first, apart)]
    smooth = np.divide(*noise, out=np.zeros(len(grey), np.float32), where=noise[1] > 0)
    mirror, mirror_at = np.ones(len(grey)), np.zeros(len(grey))
    for lag, difference in ((1, first), (2, second)):
        columns = difference.mean(1)
        usual = np.median(columns, 1, keepdims=True)
        ratio = np.divide(columns, usual, out=np.ones_like(columns), where=usual > 0)
        smaller = ratio.min(1) < mirror
        mirror[smaller], mirror_at[smaller] = ratio.min(1)[smaller], ratio.argmin(1)[smaller] + (1 + lag) / 2
    third = max(1, grey.shape[1] // 3)  # galaxies stand in the middle: the outer thirds are mostly sky
    jump = np.diff(np.concatenate([grey[:, :third], grey[:, -third:]], 1))
    noise = np.median(np.abs(jump[:, ::2, ::2]).reshape(len(grey), -1), 1)[:, None]
    limit = 3 * noise[..., None]
    level = np.abs(jump.clip(-limit, limit).mean(1))  # of each line between two columns; stars count little
    usual = np.empty_like(level)
    block = np.arange(1, level.shape[1] + 1) % 8 == 0  # the edges of JPEG blocks
    for lines in (block, ~block):
        usual[:, lines] = np.median(level[:, lines], 1, keepdims=True)
    usual = 1.4826 * np.maximum(usual, noise / np.sqrt(2 * third))
    seam = np.divide(level, usual, out=np.zeros_like(level), where=usual > 0)
    return seam.max(1), seam.argmax(1) + 1, mirror, mirror_at, smooth


def _thumbnails(grey: np.ndarray) -> np.ndarray:
    """(B, 256) float16 of unit length: box means on an asinh scale that faint sources weigh in."""
    rows, columns = (np.linspace(0, side, SIDE + 1).astype(int)[:-1] for side in grey.shape[1:])
    sums = np.add.reduceat(np.add.reduceat(grey, rows, 1), columns, 2)
    ones = np.add.reduceat(np.add.reduceat(np.ones_like(grey[0]), rows, 0), columns, 1)
    means = (sums / ones).reshape(len(grey), -1)
    level, sky = np.median(means, 1, keepdims=True), np.quantile(means, 0.1, axis=1, keepdims=True)
    spread = np.median(np.abs(means - level), 1, keepdims=True)
    spread = np.maximum(spread, 0.01 * (means.max(1, keepdims=True) - sky))  # a clipped sky has no spread
    scaled = np.arcsinh(np.divide(means - sky, spread, out=np.zeros_like(means), where=spread > 0))
    scaled -= scaled.mean(1, keepdims=True)
    length = np.sqrt((scaled**2).sum(1, keepdims=True))
    return np.divide(scaled, length, out=np.zeros_like(scaled), where=length > 0).astype(np.float16)
