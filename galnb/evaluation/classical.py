"""Take blends apart by the means of surveys: detect sources, then give each its pixels or a share of them.

Nothing here learns. The first galaxy of the answer is the source nearest to the middle of the stamp, the
second the brightest of the others; where neither has light of its own it shows flat sky. SEP, photutils and
astropy come with the extra ``galnb[sky]``.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from galnb.evaluation.metrics import DETECTION_KERNEL
from galnb.images import check_images

RING = 5  # px along the border that count as sky


@dataclass(frozen=True)
class Detection:
    """Say what counts as a source; the defaults are SourceExtractor's.

    Parameters
    ----------
    threshold, min_area
        Of a pixel, in standard deviations of the sky noise; pixels that a source has at least.
    levels, contrast
        Thresholds at which a source may fall apart; share of the light that makes a part a source.

    Notes
    -----
    Chapter: Evaluation
    """

    threshold: float = 1.5
    min_area: int = 5
    levels: int = 32
    contrast: float = 0.005

    def __post_init__(self):
        if not (self.threshold > 0 and self.min_area >= 1 and self.levels >= 1 and 0 <= self.contrast <= 1):
            raise ValueError(f"got {self}; expected threshold > 0, area and levels >= 1, contrast in [0, 1]")


TUNED = Detection(levels=64, contrast=0.0003)  # for JPEG images, whose stretch flattens the peaks


# what a detection returns: places and peaks (K, 2), x and y in pixels; fluxes (K,); segments (H, W), 1..K
_Sources = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def sky_and_noise(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure the sky along the border of images (B, C, H, W).

    Returns
    -------
    channels : numpy.ndarray, shape (B, C)
        Level of each channel.
    level, noise : numpy.ndarray, shape (B,)
        Level and standard deviation (at least 0.003) of the luminance, the sum of the channels.

    Notes
    -----
    Medians of the outermost 5 px, clipped at 3 sigma in at most 5 rounds. Chapter: Evaluation
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
    return channels, level, np.maximum(noise, 0.003)


def sep_segments(blended: torch.Tensor, *, detection: Detection = Detection()) -> torch.Tensor:
    """Cut blends along the segments that SEP, the core of SourceExtractor, finds.

    Parameters
    ----------
    blended : torch.Tensor, shape (B, C, H, W)
        Blends in [0, 1].
    detection : Detection
        What counts as a source; `TUNED` finds both galaxies of a JPEG image more often.

    Returns
    -------
    torch.Tensor, shape (B, 2, C, H, W)
        Pixels of further sources belong to neither galaxy. Without a second source the second image is sky,
        without any the first image is the blend.

    Raises
    ------
    ValueError, ModuleNotFoundError
        If the images do not fit; if SEP or astropy is missing.

    References
    ----------
    Bertin & Arnouts 1996, A&AS 117, 393; Barbary 2016, JOSS 1, 58.

    Chapter: Evaluation
    """
    return _cut(blended, _find_by_sep, detection)


def photutils_segments(blended: torch.Tensor, *, detection: Detection = Detection()) -> torch.Tensor:
    """Cut blends along the segments that photutils finds: as `sep_segments`, with a watershed.

    Unlike SEP, photutils keeps what may be noise on the wings of a brighter source. Chapter: Evaluation
    """
    return _cut(blended, _find_by_photutils, detection)


def symmetry_templates(
    blended: torch.Tensor, *, detection: Detection = Detection(), centres: torch.Tensor | None = None
) -> torch.Tensor:
    """Share the light of blends among galaxies that are symmetric about their peaks.

    Parameters
    ----------
    blended, detection
        As in `sep_segments`; SEP finds the peaks.
    centres : torch.Tensor, shape (B, 2, 2), optional
        Tell where both galaxies lie instead: (x, y) from the middle in pixels, as `Blends.offsets`, used to
        the half pixel.

    Returns
    -------
    torch.Tensor, shape (B, 2, C, H, W)
        As from `sep_segments`, which raises the same.

    Notes
    -----
    f is the light above the sky where the luminance exceeds the threshold, f_k the same turned by 180 degrees
    about peak k (0 from outside). Templates T_k = min(f, f_k) share f as T_k / sum_j T_j in each channel, and
    1 / (1 + r_k²) does where all are 0. So do SDSS and LSST, with weights and monotony, which are left out.

    References
    ----------
    Stoughton et al. 2002, AJ 123, 485; Bosch et al. 2018, PASJ 70, S5.

    Chapter: Evaluation
    """
    channels, level, noise = sky_and_noise(blended)
    if centres is not None and centres.shape != (len(blended), 2, 2):
        raise ValueError(f"got centres of shape {tuple(centres.shape)}, expected {(len(blended), 2, 2)}")
    images = _array(blended)
    parts = np.repeat(np.broadcast_to(channels[..., None, None], images.shape)[:, None], 2, axis=1)
    for index, (image, part) in enumerate(zip(images, parts, strict=True)):
        light = image.sum(0) - level[index]
        if centres is None:
            _, peaks, fluxes, _ = _find_by_sep(light, noise[index], detection)
            chosen = _choose(peaks, fluxes, light)
        else:
            peaks, chosen = _array(centres[index]) + _middle(light), [0, 1]
        if not chosen:
            part[0] = image
            continue
        above = (image - channels[index, :, None, None]) * (light > detection.threshold * noise[index])
        part[: len(chosen)] += above * _shares(above.clip(0), peaks)[chosen]
    return torch.from_numpy(parts).to(blended).clamp(0, 1)


def _cut(blended: torch.Tensor, find: Callable, detection: Detection) -> torch.Tensor:
    channels, level, noise = sky_and_noise(blended)
    masks = np.zeros((len(blended), 2, 1, *blended.shape[-2:]), bool)
    for light, sigma, mask in zip(_array(blended).sum(1) - level[:, None, None], noise, masks, strict=True):
        places, _, fluxes, segments = find(light, sigma, detection)
        chosen = _choose(places, fluxes, light)
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


def _find_by_sep(light: np.ndarray, noise: float, detection: Detection) -> _Sources:
    steps = {"deblend_nthresh": detection.levels, "deblend_cont": detection.contrast}
    steps |= {"minarea": detection.min_area, "segmentation_map": True}
    found, segments = _load("sep").extract(np.ascontiguousarray(light), detection.threshold, noise, **steps)
    places, peaks = (np.stack([found["x" + which], found["y" + which]], 1) for which in ("", "peak"))
    return places, peaks, found["flux"], segments


def _find_by_photutils(light: np.ndarray, noise: float, detection: Detection) -> _Sources:
    from scipy import ndimage

    photutils = _load("photutils.segmentation")
    smooth = ndimage.convolve(light, DETECTION_KERNEL / np.sum(DETECTION_KERNEL), mode="constant")
    found = photutils.detect_sources(smooth, detection.threshold * noise, detection.min_area)
    if found is None:
        return np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), np.zeros(light.shape, int)
    steps = {"n_levels": detection.levels, "contrast": detection.contrast, "progress_bar": False}
    found = photutils.deblend_sources(smooth, found, detection.min_area, **steps)
    places = np.array(ndimage.center_of_mass(light.clip(0), found.data, found.labels))[:, ::-1]
    return places, places, ndimage.sum_labels(light, found.data, found.labels), found.data


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
    rows, columns = twice_y - np.arange(height), twice_x - np.arange(width)
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return light[:, rows.clip(0, height - 1)][:, :, columns.clip(0, width - 1)] * inside


def _middle(image: np.ndarray) -> np.ndarray:
    return (np.array(image.shape[:-3:-1]) - 1) / 2  # x, y


def _array(images: torch.Tensor) -> np.ndarray:
    return images.detach().cpu().double().numpy()


def _load(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'classical deblending needs {name.partition(".")[0]}; install it with: pip install "galnb[sky]"'
        ) from error


CLASSICAL = {
    "SEP segments": sep_segments,
    "photutils segments": photutils_segments,
    "symmetry templates": symmetry_templates,
}
