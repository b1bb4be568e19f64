"""Find sources in a wide field and hold them against the truth: who was found, and what is real."""

import importlib
import warnings
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from galnb.evaluation.classical import Detection
from galnb.evaluation.metrics import DETECTION_KERNEL
from galnb.images import check_images

SOURCES = np.dtype([("x", "f8"), ("y", "f8"), ("radius", "f8"), ("flux", "f8"), ("area", "i4")])
USUAL = Detection()
LEAST_NOISE = 0.001  # for a sky without any, such as FIRST's: a quarter of a level of 8 bits


def detect(
    image: torch.Tensor, *, method: str = "SEP", detection: Detection = USUAL, mesh: int = 64
) -> np.ndarray:
    """Find sources in an image.

    Parameters
    ----------
    image : torch.Tensor, shape (C, H, W)
        Field in [0, 1]; the mean of the channels is searched.
    method : str
        One of `DETECTORS`: "SEP" (SourceExtractor's core) or "photutils" (slower, for small fields).
    detection : galnb.evaluation.classical.Detection
        What counts as a source, with thresholds in deviations of the sky noise.
    mesh : int
        Side of the cells in which the background is estimated, px.

    Returns
    -------
    numpy.ndarray, structured, one row per source
        ``x``, ``y`` px, (0, 0) = middle of the first pixel; ``radius``: half-light radius, px; ``flux``:
        light above the background in the pixels of the source, as in `Mosaic.catalogue`; ``area``: pixels.

    Raises
    ------
    ValueError, ModuleNotFoundError
        If the image does not fit or a name is unknown; if SEP or photutils is missing.

    Notes
    -----
    The light below the threshold, the wings, is in no pixel of a source: fluxes are somewhat low.

    References
    ----------
    Bertin & Arnouts 1996, A&AS 117, 393; Barbary 2016, JOSS 1, 58.

    Chapter: A sky of new galaxies
    """
    if not isinstance(image, torch.Tensor) or image.ndim != 3:
        raise ValueError(f"got {getattr(image, 'shape', type(image))}, expected one image (C, H, W)")
    check_images(image[None], name="image")
    if method not in DETECTORS:
        raise ValueError(f"method is {method!r}; expected one of {sorted(DETECTORS)}")
    if mesh < 8 or min(image.shape[-2:]) < 8:
        raise ValueError(f"got mesh {mesh} and an image of {tuple(image.shape[-2:])} px; expected 8 or more")
    light = image.detach().mean(0).cpu().float().contiguous().numpy()
    return DETECTORS[method](light, detection, min(mesh, *light.shape))


def _detect_by_sep(light: np.ndarray, detection: Detection, mesh: int) -> np.ndarray:
    sep = _load("sep")
    background = sep.Background(light, bw=mesh, bh=mesh)
    background.subfrom(light)
    steps = {"deblend_nthresh": detection.levels, "deblend_cont": detection.contrast}
    limits = sep.get_extract_pixstack(), sep.get_sub_object_limit()
    sep.set_extract_pixstack(max(limits[0], light.size // 16))  # SEP's own is for a small, empty field
    sep.set_sub_object_limit(max(limits[1], 8192))
    try:
        # of a sky that is exactly empty SEP says that its noise is 1
        noise = max(LEAST_NOISE, background.globalrms if background.rms().any() else 0)
        found = sep.extract(light, detection.threshold, noise, minarea=detection.min_area, **steps)
    finally:
        sep.set_extract_pixstack(limits[0])
        sep.set_sub_object_limit(limits[1])
    sources = np.zeros(len(found), SOURCES)
    for name, column in (("x", "x"), ("y", "y"), ("flux", "flux"), ("area", "npix")):
        sources[name] = found[column]
    reach = 6 * found["a"].clip(0.5)
    sources["radius"], _ = sep.flux_radius(
        light, found["x"], found["y"], reach, 0.5, normflux=found["flux"], subpix=5
    )
    return sources


def _detect_by_photutils(light: np.ndarray, detection: Detection, mesh: int) -> np.ndarray:
    segmentation = _load("photutils.segmentation")
    background = _load("photutils.background").Background2D(light, mesh)
    light = light - background.background
    kernel = DETECTION_KERNEL / np.sum(DETECTION_KERNEL)
    smooth = ndimage.convolve(light, kernel, mode="constant")  # as SEP does by itself
    threshold = detection.threshold * max(LEAST_NOISE, background.background_rms_median)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No sources were found")  # an empty table says so too
        found = segmentation.detect_sources(smooth, threshold, detection.min_area)
    if found is None:
        return np.zeros(0, SOURCES)
    steps = {"n_levels": detection.levels, "contrast": detection.contrast, "progress_bar": False}
    found = segmentation.deblend_sources(smooth, found, detection.min_area, **steps)
    measured = segmentation.SourceCatalog(light, found)
    sources = np.zeros(len(measured.labels), SOURCES)
    sources["x"], sources["y"] = measured.x_centroid, measured.y_centroid
    sources["flux"], sources["area"] = measured.segment_flux, measured.segment_area.value
    sources["radius"] = np.nan_to_num(measured.flux_radius(0.5).value)
    return sources


@dataclass(frozen=True)
class Match:
    """Say which true galaxy is which detection.

    Parameters
    ----------
    pairs : numpy.ndarray, shape (K, 2)
        Rows in the catalogue and among the detections, nearest pairs first.
    distances : numpy.ndarray, shape (K,)
        How far apart they are, px.
    found, real : numpy.ndarray of bool
        Of each row of the catalogue, whether it was found; of each detection, whether it is a true galaxy.

    Notes
    -----
    Chapter: A sky of new galaxies
    """

    pairs: np.ndarray
    distances: np.ndarray
    found: np.ndarray
    real: np.ndarray


def match(catalogue: np.ndarray, detections: np.ndarray, *, radius: float | np.ndarray) -> Match:
    """Match true galaxies and detections one to one, nearest pairs first.

    Parameters
    ----------
    catalogue, detections : numpy.ndarray, structured
        With columns ``x`` and ``y``; rows of the catalogue whose ``blank`` is True match nothing.
    radius : float or numpy.ndarray, shape (N,)
        Largest distance, px; one for all, or one for each row of the catalogue.

    Returns
    -------
    Match

    Raises
    ------
    ValueError
        If a radius is not positive or a column is missing.

    Notes
    -----
    Chapter: A sky of new galaxies
    """
    here, there = places(catalogue), places(detections)
    if np.ndim(radius) > 1 or np.size(radius) not in (1, len(here)) or not np.all(np.asarray(radius) > 0):
        raise ValueError(f"radius is {radius}; expected a positive number of pixels, or one for each row")
    radius, candidates = np.broadcast_to(radius, len(here)), np.where(~blank_rows(catalogue))[0]
    near = cKDTree(here[candidates]).sparse_distance_matrix(
        cKDTree(there), radius.max(initial=1), output_type="ndarray"
    )
    near = near[near["v"] <= radius[candidates[near["i"]]]]
    near = near[np.argsort(near["v"], kind="stable")]
    found, real, rows = np.zeros(len(catalogue), bool), np.zeros(len(there), bool), []
    for row, (true, seen) in enumerate(zip(candidates[near["i"]].tolist(), near["j"].tolist(), strict=True)):
        if not found[true] and not real[seen]:
            found[true] = real[seen] = True
            rows.append(row)
    pairs = np.stack([candidates[near["i"][rows]], near["j"][rows]], 1)
    return Match(pairs, near["v"][rows], found, real)


def places(table: np.ndarray) -> np.ndarray:
    """Return the columns x and y of a structured array as (N, 2); a `ValueError` says which is missing.

    Chapter: A sky of new galaxies
    """
    missing = {"x", "y"} - set(getattr(table, "dtype", np.dtype("f8")).names or ())
    if missing:
        raise ValueError(f"expected a structured array with columns x and y; missing {sorted(missing)}")
    return np.stack([table["x"], table["y"]], 1).astype(float)


def blank_rows(catalogue: np.ndarray) -> np.ndarray:
    """Return which rows are blank space: none where the catalogue does not say.

    Chapter: A sky of new galaxies
    """
    named = catalogue.dtype.names or ()
    return catalogue["blank"].astype(bool) if "blank" in named else np.zeros(len(catalogue), bool)


def _load(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise ModuleNotFoundError(
            f'detection needs {package}; install it with: pip install "galnb[sky]"'
        ) from error


DETECTORS = {"SEP": _detect_by_sep, "photutils": _detect_by_photutils}
