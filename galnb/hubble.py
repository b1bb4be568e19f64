"""Find the galaxies of a deep field: sky level, sources, and why a source is not a good stamp."""

import numpy as np


def sky_level(image: np.ndarray, *, clip: float = 3.0) -> tuple[float, float]:
    """Measure level and noise of the sky by sigma clipping.

    Parameters
    ----------
    image : numpy.ndarray
        Any shape and unit; NaN pixels are left out.
    clip : float
        Pixels further than this many standard deviations from the median are dropped, until none are.

    Returns
    -------
    level, noise : float
        Median and standard deviation of the pixels that remain, in the unit of the image.

    Chapter: Galaxies as pixels
    """
    values = np.asarray(image, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    if values.size == 0:
        raise ValueError("image: got no finite pixel, expected at least one; check the mask or the file")
    for _ in range(20):
        spread = 1.4826 * np.median(
            np.abs(values - np.median(values))
        )  # standard deviation of a Gaussian from its MAD
        kept = values[np.abs(values - np.median(values)) <= clip * spread]
        if kept.size == values.size:
            break
        values = kept
    return float(np.median(values)), float(values.std())


def find_sources(luminance: np.ndarray, noise: float) -> tuple[np.ndarray, list]:
    """Segment a sky-subtracted field into sources.

    Parameters
    ----------
    luminance : numpy.ndarray
        Shape (H, W), sky at 0.
    noise : float
        Standard deviation of the sky, same unit.

    Returns
    -------
    segments : numpy.ndarray
        Shape (H, W), int; 0 is sky, k is source k.
    sources : list of skimage.measure.RegionProperties
        One per source, measured on ``luminance``.

    Notes
    -----
    Connected pixels above 3 sigma of the sky after smoothing by 1 px, split by a watershed at the peaks that
    are left after smoothing by 2 px. Chapter: Galaxies as pixels
    """
    from scipy import ndimage
    from skimage import feature, measure, segmentation

    smooth = ndimage.gaussian_filter(luminance, 2.0)
    detected = ndimage.gaussian_filter(luminance, 1.0) > 3 * noise
    peaks = feature.peak_local_max(
        smooth, min_distance=4, threshold_abs=5 * noise, labels=measure.label(detected), exclude_border=False
    )
    markers = np.zeros(luminance.shape, dtype=np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    segments = segmentation.watershed(-smooth, markers, mask=detected)
    return segments, measure.regionprops(segments, intensity_image=luminance)


def why_dropped(source, field_rgb, luminance, segments, *, crop: int, isolated: bool) -> str | None:
    """Name the reason why a source gives no good stamp, or return None if it does.

    Parameters
    ----------
    source : skimage.measure.RegionProperties
        One of ``find_sources``.
    field_rgb, luminance, segments : numpy.ndarray
        The field (H, W, 3), its sky-subtracted luminance (H, W) and segmentation (H, W).
    crop : int
        Side of the stamp, field pixels.
    isolated : bool
        Whether neighbours with more than a quarter of the source's light are a reason.

    Returns
    -------
    str or None
        "too small", "cut by the edge", "star", "crowded" or None.

    Chapter: Galaxies as pixels
    """
    if source.area < 60:  # below this a galaxy (about 4 px across its half light) cannot be told from a star
        return "too small"
    y, x = (round(centre) - crop // 2 for centre in source.centroid_weighted)
    top, left, bottom, right = source.bbox
    height, width = luminance.shape
    touches = top == 0 or left == 0 or bottom == height or right == width
    if touches or y < 0 or x < 0 or y + crop > height or x + crop > width:
        return "cut by the edge"
    if spike_strength(field_rgb, source) > 0.04:  # the two stars: 0.07, 0.05; every galaxy: below 0.025
        return "star"
    window = np.s_[y : y + crop, x : x + crop]
    others = luminance[window][(segments[window] > 0) & (segments[window] != source.label)].sum()
    if isolated and others > 0.25 * source.intensity_mean * source.area:
        return "crowded"
    return None


def spike_strength(field_rgb: np.ndarray, source) -> float:
    """Measure the diffraction cross of a star: four-fold blue-minus-red amplitude 8 to 16 px from the peak.

    Notes
    -----
    The arms of the visible (blue) and infrared (red) camera stand 45 degrees apart. A neighbour lights one
    quadrant, a cross all four: hence the median over quadrants. Chapter: Galaxies as pixels
    """
    from scipy import ndimage

    peak = np.argmax(ndimage.gaussian_filter(source.image_intensity, 1.0))
    y, x = np.unravel_index(peak, source.image.shape)
    radius = np.arange(8, 16, 0.5)[:, None]
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    where = [y + source.bbox[0] + radius * np.sin(angle), x + source.bbox[1] + radius * np.cos(angle)]
    colour = field_rgb[..., 2] - field_rgb[..., 0]
    ring = np.median(ndimage.map_coordinates(colour, where, order=1, mode="nearest"), axis=0)
    quadrant = np.median(ring.reshape(4, 30), axis=0)
    return float((quadrant * np.cos(4 * angle[:30])).mean())
