"""Read one image plane out of a FITS file, with its world coordinates, and stretch it for display."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from galnb.images.hubble import sky_level
from galnb.images.imageset import ImageSet, check_sizes


def fits_cutouts(
    paths: str | Path | Sequence[str | Path],
    *,
    size: int,
    hdu: int | str = 0,
    stretch: str = "asinh",
    limits: tuple[float, float] | None = None,
    softening: float = 10.0,
) -> ImageSet:
    """Read the central square of FITS images and stretch it to [0, 1].

    Parameters
    ----------
    paths : path or sequence of paths
        FITS files, compressed or not, with (H, W) or (C, H, W) in the chosen HDU.
    size : int
        Side of the square, pixels. Nothing is resampled.
    hdu : int or str
        Number or name of the header-data unit.
    stretch : {"asinh", "linear"}
        ``t = (x - low) / (high - low)`` clipped to [0, 1], then as is, or ``asinh(s t) / asinh(s)``.
    limits : (float, float) or None
        ``low, high`` in the unit of the file, for every file. None: for each file from one sigma below its
        sky to its 99.9th percentile.
    softening : float
        The s of asinh, positive: from linear to logarithmic at 1/s of the range.

    Returns
    -------
    ImageSet
        ``record["files"]`` has, per file: limits, number of NaN pixels (shown at ``low``), sky level and
        noise, unit, and the celestial WCS cards moved to the cutout (or None).

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    ValueError
        If a file is truncated, without an image in that HDU, only NaN or too small, or a value is invalid.

    References
    ----------
    Lupton et al. 2004, PASP 116, 133 (asinh stretch).

    Chapter: Galaxies as pixels
    """
    check_sizes(size=size)
    if not softening > 0:
        raise ValueError(f"softening={softening}: expected a number above 0")
    if stretch not in STRETCHES:
        raise ValueError(f"stretch={stretch!r}: expected one of {sorted(STRETCHES)}")
    paths = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not paths:
        raise ValueError("paths: got none, expected at least one FITS file")
    if limits is not None and not limits[0] < limits[1]:
        raise ValueError(f"limits={limits}: expected (low, high) with low < high, in the unit of the file")
    images, records = [], []
    for path in paths:
        values, record = _read_cutout(path, size=size, hdu=hdu)
        low, high = limits or record.pop("limits")
        filled = np.where(np.isfinite(values), values, low)
        fraction = ((filled - low) / (high - low)).clip(0, 1)
        images.append(torch.from_numpy(STRETCHES[stretch](fraction, softening)).float())
        records.append({"file": path.name, **record, "limits": [float(low), float(high)]})
    channels = {len(image) for image in images}
    if len(channels) > 1:
        raise ValueError(f"got files of {sorted(channels)} channels, expected the same in all")
    how = {"hdu": hdu, "stretch": stretch, "softening": softening if stretch == "asinh" else None}
    record = {"returned": len(images), "size": size, **how, "files": records}
    return ImageSet(torch.stack(images), tuple(path.name for path in paths), "FITS files", record=record)


def _read_cutout(path: Path, *, size: int, hdu: int | str) -> tuple[np.ndarray, dict]:
    """Return the central square as (C, size, size) in the file's unit, NaN kept, and its record."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path to the FITS image")
    values, header = _read_hdu(path, hdu)
    if values.ndim == 2:
        values = values[None]
    height, width = values.shape[-2:]
    if min(height, width) < size:
        raise ValueError(f"{path}: got {width} x {height} pixels, expected at least {size} x {size}")
    top, left = (height - size) // 2, (width - size) // 2
    values = values[:, top : top + size, left : left + size].astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError(f"{path}: HDU {hdu!r} holds only NaN in its central {size} x {size} pixels")
    level, noise = sky_level(values)
    low, high = level - noise, float(np.percentile(values[finite], 99.9))
    record = {
        "nan_pixels": int((~finite).sum()), "sky_level": level, "sky_noise": noise,
        "limits": (low, high if high > low else low + 1.0),  # a constant image shows as black
        "unit": header.get("BUNIT"), "wcs": _cutout_wcs(header, left, top),
    }  # fmt: skip
    return values, record


def _read_hdu(path: Path, hdu: int | str):
    try:
        from astropy.io import fits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('FITS needs astropy; install it with: pip install "galnb[sky]"') from error

    wanted, data, header = hdu.upper() if isinstance(hdu, str) else hdu, None, None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="(?s).*(truncated|corrupted)")  # else astropy goes on
            with fits.open(path, memmap=False) as units:
                places = {i: u.name for i, u in enumerate(units) if u.is_image and len(u.shape) in (2, 3)}
                if any(wanted in place for place in places.items()):
                    data, header = units[hdu].data, units[hdu].header
    except (OSError, TypeError, ValueError, IndexError, KeyError, UserWarning) as error:  # any, by damage
        raise ValueError(f"{path}: truncated or not a FITS file ({error}); fetch it again") from error
    if data is None:
        known = ", ".join(f"{number} ({name})" for number, name in places.items()) or "none"
        raise ValueError(f"{path}: HDU {hdu!r} holds no 2-D or 3-D image; HDUs that do: {known}")
    return data, header


def _cutout_wcs(header, left: int, top: int) -> dict | None:
    from astropy.wcs import WCS, FITSFixedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        wcs = WCS(header)
    if not wcs.has_celestial:
        return None
    wcs = wcs.celestial
    wcs.wcs.crpix -= left, top
    return dict(wcs.to_header())


def _linear(fraction: np.ndarray, softening: float) -> np.ndarray:
    return fraction


def _asinh(fraction: np.ndarray, softening: float) -> np.ndarray:
    return np.arcsinh(softening * fraction) / np.arcsinh(softening)


STRETCHES = {"asinh": _asinh, "linear": _linear}
