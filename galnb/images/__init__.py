"""Turn known galaxy sets, folders and FITS files into `[0, 1]` tensors with a record of their origin.

Here: galaxies cut out of the Hubble eXtreme Deep Field, without a network. Chapter 01, Galaxies as pixels.
"""

from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from galnb.checks import at_least
from galnb.images.pixels import ImageSet, area_average, sky_level
from galnb.images.pixels import check_images as check_images
from galnb.images.sources import GALAXY_ZOO_TEST as GALAXY_ZOO_TEST
from galnb.images.sources import RADIO_CLASSES as RADIO_CLASSES
from galnb.images.sources import first_radio, fits_cutouts, galaxy10, galaxy_zoo


def hubble_deep_field(
    *, size: int = 80, crop: int = 40, isolated: bool = True, limit: int | None = None
) -> ImageSet:
    """Cut stamps centred on galaxies out of the Hubble eXtreme Deep Field that comes with scikit-image.

    size: side of a returned stamp, pixels.
    crop: side of the square cut from the 872 x 1000 field, pixels. The default doubles the scale (bicubic),
        as typical half-light radii are 3 to 6 px; `crop=size` keeps the field's own pixels.
    isolated: drop stamps in which other sources hold more than a quarter of the light of the central one.
    limit: keep only the brightest so many.

    Returns the brightest first; names `hdf_<x>_<y>` are field positions; `record` counts the sources found,
    dropped and why, and remaining. Stars are told by their diffraction cross; one with faint arms stays in.
    """
    at_least(1, size=size, crop=crop, limit=1 if limit is None else limit)
    from skimage import data

    field_rgb = data.hubble_deep_field().astype(np.float32) / 255
    luminance, colour = field_rgb.mean(axis=2), field_rgb[..., 2] - field_rgb[..., 0]
    level, noise = sky_level(luminance)
    luminance -= level
    segments, sources = _find_sources(luminance, noise)
    reasons = [_why_dropped(source, colour, luminance, segments, crop, isolated) for source in sources]
    kept = [source for source, reason in zip(sources, reasons, strict=True) if reason is None]
    if not kept:
        raise ValueError(f"crop={crop}: no stamp of the 872 x 1000 field fits; use a smaller crop")
    counts = {"found": len(sources), "dropped": dict(Counter(filter(None, reasons))), "remain": len(kept)}
    kept = sorted(kept, key=lambda source: -source.intensity_mean * source.area)[:limit]
    corners = [[round(centre) - crop // 2 for centre in source.centroid_weighted] for source in kept]
    field = torch.from_numpy(field_rgb.transpose(2, 0, 1).copy())
    stamps = torch.stack([field[:, y : y + crop, x : x + crop] for y, x in corners])
    if size > crop:
        stamps = F.interpolate(stamps, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    names = tuple(f"hdf_{x + crop // 2}_{y + crop // 2}" for y, x in corners)
    record = {**counts, "sky_level": level, "sky_noise": noise, "crop": crop, "size": size}
    source = "Hubble eXtreme Deep Field (scikit-image)"
    return ImageSet(area_average(stamps, size), names, source, record=record)


def _find_sources(luminance: np.ndarray, noise: float) -> tuple[np.ndarray, list]:
    """Segment what stands 3 sigma above the sky (smoothed by 1 px), split by a watershed at its peaks."""
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


def _why_dropped(source, colour, luminance, segments, crop: int, isolated: bool) -> str | None:
    """Name the reason why a source gives no good stamp, or return None if it does."""
    if source.area < 60:  # below this a galaxy (about 4 px across its half light) cannot be told from a star
        return "too small"
    y, x = (round(centre) - crop // 2 for centre in source.centroid_weighted)
    top, left, bottom, right = source.bbox
    height, width = luminance.shape
    margins = [top - 1, left - 1, height - 1 - bottom, width - 1 - right]
    if min(*margins, y, x, height - crop - y, width - crop - x) < 0:
        return "cut by the edge"
    if _spike_strength(colour, source) > 0.04:  # the two stars: 0.07, 0.05; every galaxy: below 0.025
        return "star"
    window = np.s_[y : y + crop, x : x + crop]
    others = luminance[window][(segments[window] > 0) & (segments[window] != source.label)].sum()
    if isolated and others > 0.25 * source.intensity_mean * source.area:
        return "crowded"
    return None


def _spike_strength(colour: np.ndarray, source) -> float:
    """Measure the cross of a star: four-fold blue-minus-red amplitude, 8 to 16 px from the peak.

    The arms of the visible (blue) and infrared (red) camera stand 45 degrees apart. A neighbour lights one
    quadrant, a cross all four: hence the median over quadrants.
    """
    peak = np.argmax(ndimage.gaussian_filter(source.image_intensity, 1.0))
    y, x = np.unravel_index(peak, source.image.shape)
    radius = np.arange(8, 16, 0.5)[:, None]
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    where = [y + source.bbox[0] + radius * np.sin(angle), x + source.bbox[1] + radius * np.cos(angle)]
    ring = np.median(ndimage.map_coordinates(colour, where, order=1, mode="nearest"), axis=0)
    quadrant = np.median(ring.reshape(4, 30), axis=0)
    return float((quadrant * np.cos(4 * angle[:30])).mean())


def turned(images: torch.Tensor, turn: int) -> torch.Tensor:
    """Apply symmetry `turn`, 0 to 7, of the square (..., H, W): quarter turns, from 4 on mirrored first."""
    return torch.rot90(images.flip(-1) if turn >= 4 else images, turn % 4, dims=(-2, -1)).contiguous()


_READERS = (hubble_deep_field, galaxy_zoo, first_radio, galaxy10, fits_cutouts)
SOURCES = {reader.__name__: reader for reader in _READERS}
