"""Find sources and take blends apart by the means of surveys: nothing here learns.

Chapters 05 and 14, Evaluation and A sky of new galaxies. Of a blend that was taken apart, the first galaxy is
the source nearest to the middle of the stamp, the second the brightest of the others; where neither has light
of its own it shows flat sky. SEP (Bertin & Arnouts 1996, A&AS 117, 393; Barbary 2016, JOSS 1, 58), photutils
and astropy come with the extra ``galnb[sky]``; a `ModuleNotFoundError` names the one that is missing.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy import ndimage

from galnb import checks
from galnb.evaluation.metrics import DETECTION_KERNEL, LEAST_NOISE, RING, check_places
from galnb.images import check_images

_COLUMNS = np.dtype([("x", "f8"), ("y", "f8"), ("radius", "f8"), ("flux", "f8"), ("area", "i4")])
_FIELD_NOISE = 0.001  # least, for a sky without any, such as FIRST's: a quarter of a level of 8 bits
_MESH = 64  # px, side of the cells in which the background of a field is estimated
_load = partial(checks.optional, extra="sky", purpose="finding sources")


@dataclass(frozen=True)
class Detection:
    """Say what counts as a source; the defaults are SourceExtractor's.

    threshold: of a pixel, in standard deviations of the sky noise.
    min_area: pixels that a source has at least.
    levels: thresholds at which a source may fall apart.
    contrast: share of the light that makes a part a source.
    """

    threshold: float = 1.5
    min_area: int = 5
    levels: int = 32
    contrast: float = 0.005

    def __post_init__(self):
        if not (self.threshold > 0 and self.min_area >= 1 and self.levels >= 1 and 0 <= self.contrast <= 1):
            raise ValueError(f"got {self}; expected threshold > 0, area and levels >= 1, contrast in [0, 1]")


TUNED = Detection(levels=64, contrast=0.0003)  # for JPEG images, whose stretch flattens the peaks


def sky_and_noise(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure the sky along the border of images (B, C, H, W): medians of the outer 5 px, clipped at 3 sigma.

    Returns the level of each channel (B, C), and level (B,) and standard deviation (B,), at least 0.003, of
    the luminance, the sum of the channels. At most 5 rounds of clipping. Unlike the sky of `metrics`, which
    takes the lower of two middle values, a median of an even number is their mean.
    """
    check_images(images)
    if min(images.shape[-2:]) <= 2 * RING:
        raise ValueError(f"got images of {tuple(images.shape[-2:])} px, expected more than {2 * RING} a side")
    clipped = _load("astropy.stats").sigma_clipped_stats
    border = np.ones(images.shape[-2:], bool)
    border[RING:-RING, RING:-RING] = False
    ring = _array(images)[..., border]  # (B, C, pixels)
    _, channels, _ = clipped(ring, sigma=3, maxiters=5, axis=-1)
    _, level, noise = clipped(ring.sum(1), sigma=3, maxiters=5, axis=-1)
    return channels, level, np.maximum(noise, LEAST_NOISE)


def sep_segments(blended: torch.Tensor, *, detection: Detection = Detection()) -> torch.Tensor:
    """Cut blends (B, C, H, W) along the segments that SEP, SourceExtractor's core, finds: (B, 2, C, H, W).

    Pixels of further sources belong to neither galaxy. Without a second source the second image is sky,
    without any the first image is the blend. `TUNED` finds both galaxies of a JPEG image more often.
    """
    return _cut(blended, _by_sep, detection)


def photutils_segments(blended: torch.Tensor, *, detection: Detection = Detection()) -> torch.Tensor:
    """Cut blends along the segments that photutils finds: as `sep_segments`, with a watershed.

    Unlike SEP, photutils keeps what may be noise on the wings of a brighter source.
    """
    return _cut(blended, _by_photutils, detection)


def symmetry_templates(
    blended: torch.Tensor, *, detection: Detection = Detection(), centres: torch.Tensor | None = None
) -> torch.Tensor:
    """Share the light of blends among galaxies that are symmetric about their peaks, which SEP finds.

    centres: (B, 2, 2), tells where both galaxies lie instead: (x, y) from the middle in px, as
        `Blends.offsets`, used to the half pixel.
    f is the light above the sky where the luminance exceeds the threshold, f_k the same turned by 180 degrees
    about peak k (0 from outside). Templates T_k = min(f, f_k) share f as T_k / sum_j T_j in each channel, and
    1 / (1 + r_k²) does where all are 0. So do SDSS (Stoughton et al. 2002, AJ 123, 485) and LSST (Bosch et
    al. 2018, PASJ 70, S5), with weights and monotony, which are left out.
    """
    channels, level, noise = sky_and_noise(blended)
    if centres is not None:
        check_places("centres", centres, (len(blended), 2, 2))
    images = _array(blended)
    parts = np.repeat(np.broadcast_to(channels[..., None, None], images.shape)[:, None], 2, axis=1)
    for index, (image, part) in enumerate(zip(images, parts, strict=True)):
        light = image.sum(0) - level[index]
        if centres is None:
            found, _ = _by_sep(light, noise[index], detection)
            peaks = np.stack([found["xpeak"], found["ypeak"]], 1)
            chosen = _choose(peaks, found["flux"], light)
        else:
            peaks, chosen = _array(centres[index]) + _middle(light), [0, 1]
        if not chosen:
            part[0] = image
            continue
        above = (image - channels[index, :, None, None]) * (light > detection.threshold * noise[index])
        part[: len(chosen)] += above * _shares(above.clip(0), peaks)[chosen]
    return torch.from_numpy(parts).to(blended).clamp(0, 1)


def detect(image: torch.Tensor, *, method: str = "SEP", detection: Detection = Detection()) -> np.ndarray:
    """Find sources in a field (C, H, W) in [0, 1], 8 px or more a side; the mean of the channels is searched.

    method: "SEP", or "photutils", which is slower, for small fields.
    Returns a structured array, one row per source: ``x``, ``y`` px, (0, 0) = middle of the first pixel;
    ``radius``: half-light radius, px; ``flux``: light above the background in the pixels of the source, as in
    `Mosaic.catalogue` but for the wings below the threshold; ``area``: pixels.
    """
    checks.one_of("method", method, _DETECTORS)
    checks.check_floats(image, name="image")
    if image.ndim != 3 or min(image.shape[-2:]) < 8:
        wanted = "one image (C, H, W) of 8 px or more a side; of several take images[0]"
        raise ValueError(f"got {tuple(image.shape)}, expected {wanted}")
    light = check_images(image[None], name="image")[0].detach().cpu().mean(0).contiguous().numpy()
    found, radius = _DETECTORS[method](light, detection, min(_MESH, *light.shape))
    columns = found["x"], found["y"], radius, found["flux"], found["npix"]
    return np.array(list(zip(*columns, strict=True)), _COLUMNS)


def _cut(blended: torch.Tensor, find: Callable, detection: Detection) -> torch.Tensor:
    channels, level, noise = sky_and_noise(blended)
    masks = np.zeros((len(blended), 2, 1, *blended.shape[-2:]), bool)
    for light, sigma, mask in zip(_array(blended).sum(1) - level[:, None, None], noise, masks, strict=True):
        found, segments = find(light, sigma, detection)[:2]
        chosen = _choose(np.stack([found["x"], found["y"]], 1), found["flux"], light)
        for part, source in enumerate(chosen):
            mask[part, 0] = segments == source + 1
        mask[0] |= not chosen
    sky = torch.from_numpy(channels).to(blended)[:, None, :, None, None]
    return torch.where(torch.from_numpy(masks).to(blended.device), blended[:, None], sky)


def _choose(places: np.ndarray, fluxes: np.ndarray, light: np.ndarray) -> list[int]:
    """Return the indices of the first and second galaxy, fewer where fewer were found."""
    if not len(places):
        return []
    first = int(np.linalg.norm(places - _middle(light), axis=1).argmin())
    return [first, *[int(index) for index in np.argsort(-fluxes) if index != first][:1]]


def _shares(light: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """Return which share of `light` (C, H, W) >= 0 each of the K peaks gets, (K, C, H, W), summing to 1."""
    y, x = np.indices(light.shape[-2:])
    templates = np.minimum(light, [_turned(light, *np.rint(2 * peak).astype(int)) for peak in peaks])
    near = np.array([1 / (1 + (x - peak[0]) ** 2 + (y - peak[1]) ** 2) for peak in peaks])[:, None]
    weights = np.where(templates.sum(0) > 0, templates, near)
    return weights / weights.sum(0)


def _turned(light: np.ndarray, twice_x: int, twice_y: int) -> np.ndarray:
    """Turn (C, H, W) by 180 degrees about (twice_x, twice_y) / 2; what comes from outside is 0."""
    height, width = light.shape[-2:]
    return ndimage.shift(light[:, ::-1, ::-1], (0, twice_y - height + 1, twice_x - width + 1), order=0)


def _by_sep(light: np.ndarray, noise: float, detection: Detection) -> tuple[np.ndarray, np.ndarray]:
    """Return SEP's table of sources and their segments (H, W), 1..K."""
    sep = _load("sep")  # its own limits, which are raised for good, are for a small, empty field
    sep.set_extract_pixstack(max(sep.get_extract_pixstack(), light.size // 16))
    sep.set_sub_object_limit(max(sep.get_sub_object_limit(), 8192))
    steps = {"deblend_nthresh": detection.levels, "deblend_cont": detection.contrast}
    steps |= {"minarea": detection.min_area, "segmentation_map": True}
    return sep.extract(np.ascontiguousarray(light), detection.threshold, noise, **steps)


def _field_by_sep(light: np.ndarray, detection: Detection, mesh: int) -> tuple[np.ndarray, np.ndarray]:
    """Return SEP's table of the sources of a field, and their half-light radii (K,)."""
    sep = _load("sep")
    background = sep.Background(light, bw=mesh, bh=mesh)
    background.subfrom(light)
    # of a sky that is exactly empty SEP says that its noise is 1
    noise = max(_FIELD_NOISE, background.globalrms if background.rms().any() else 0)
    found, _ = _by_sep(light, noise, detection)
    x, y, flux, reach = found["x"], found["y"], found["flux"], 6 * found["a"].clip(0.5)
    return found, sep.flux_radius(light, x, y, reach, 0.5, normflux=flux, subpix=5)[0]


def _by_photutils(light: np.ndarray, noise: float, detection: Detection):
    """Return the columns of `_by_sep`, the segments, and photutils' catalogue, None where nothing is found.

    The light in which sources are searched is smoothed as SEP does.
    """
    segmentation = _load("photutils.segmentation")
    kernel = DETECTION_KERNEL / np.sum(DETECTION_KERNEL)
    smooth = ndimage.convolve(light, kernel, mode="constant")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No sources were found")  # None says so too
        found = segmentation.detect_sources(smooth, detection.threshold * noise, detection.min_area)
        if found is None:
            return dict.fromkeys(("x", "y", "flux", "npix"), ()), np.zeros(light.shape, int), None
        steps = {"n_levels": detection.levels, "contrast": detection.contrast}
        if _load("photutils").__version__.startswith("3.0."):  # later ones draw no bar, and warn
            steps["progress_bar"] = False
        found = segmentation.deblend_sources(smooth, found, detection.min_area, **steps)
    of = segmentation.SourceCatalog(light, found)
    columns = {"x": of.x_centroid, "y": of.y_centroid, "flux": of.segment_flux, "npix": of.segment_area.value}
    return columns, found.data, of


def _field_by_photutils(light: np.ndarray, detection: Detection, mesh: int) -> tuple[dict, np.ndarray]:
    """Return photutils' columns of the sources of a field, and their half-light radii (K,)."""
    estimate = _load("photutils.background").Background2D
    try:
        background = estimate(light, mesh)  # without the cells of which galaxies fill more than a tenth ...
    except ValueError:
        background = estimate(light, mesh, exclude_percentile=100)  # ... unless all of them do: a small field
    noise = max(_FIELD_NOISE, background.background_rms_median)
    found, _, catalogue = _by_photutils(light - background.background, noise, detection)
    return found, () if catalogue is None else np.nan_to_num(catalogue.flux_radius(0.5).value)


def _middle(image: np.ndarray) -> np.ndarray:
    return (np.array(image.shape[:-3:-1]) - 1) / 2  # x, y


def _array(images: torch.Tensor) -> np.ndarray:
    return images.detach().cpu().double().numpy()


_DETECTORS = {"SEP": _field_by_sep, "photutils": _field_by_photutils}
CLASSICAL = {
    "SEP segments": sep_segments,
    "photutils segments": photutils_segments,
    "symmetry templates": symmetry_templates,
}
