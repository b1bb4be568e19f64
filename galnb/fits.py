"""Read one image plane out of a FITS file, with its world coordinates, and stretch it for display."""

import warnings
from pathlib import Path

import numpy as np

from galnb.hubble import sky_level

SOFTENING = 10.0  # asinh turns from linear to logarithmic at a tenth of the range


def read_fits(path: Path, *, size: int, hdu: int | str) -> tuple[np.ndarray, dict]:
    """Read the central square of one FITS image.

    Parameters
    ----------
    path : pathlib.Path
        FITS file, compressed or not.
    size : int
        Side of the square, pixels.
    hdu : int or str
        Number or name of the header-data unit.

    Returns
    -------
    values : numpy.ndarray
        Shape (C, size, size), float64, in the unit of the file; NaN pixels stay NaN.
    record : dict
        ``nan_pixels, sky_level, sky_noise, unit``, default ``limits``, ``wcs`` (header cards or None).

    Raises
    ------
    FileNotFoundError, ValueError
        As ``galnb.images.fits_cutouts``.

    Chapter: Galaxies as pixels
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path to the FITS image")
    values, header = _read_hdu(path, hdu)
    if values.ndim == 2:
        values = values[None]
    height, width = values.shape[-2:]
    if min(height, width) < size:
        raise ValueError(
            f"{path}: got {width} x {height} pixels, expected at least {size} x {size}; lower the size"
        )
    top, left = (height - size) // 2, (width - size) // 2
    values = values[:, top : top + size, left : left + size].astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError(
            f"{path}: HDU {hdu!r} holds only NaN in its central {size} x {size} pixels; nothing to show"
        )
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
        raise ModuleNotFoundError(
            'FITS files need astropy; install it with: pip install "galnb[sky]"'
        ) from error

    wanted, data, header = hdu.upper() if isinstance(hdu, str) else hdu, None, None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "error", message="(?s).*(truncated|corrupted)"
            )  # astropy would go on regardless
            with fits.open(path, memmap=False) as units:
                places = {i: u.name for i, u in enumerate(units) if u.is_image and len(u.shape) in (2, 3)}
                if any(wanted in place for place in places.items()):
                    data, header = units[hdu].data, units[hdu].header
    except (
        OSError,
        TypeError,
        ValueError,
        IndexError,
        KeyError,
        UserWarning,
    ) as error:  # astropy: any, by damage
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


def _linear(fraction: np.ndarray) -> np.ndarray:
    return fraction.clip(0, 1)


def _asinh(fraction: np.ndarray) -> np.ndarray:
    return np.arcsinh(SOFTENING * fraction.clip(0, 1)) / np.arcsinh(SOFTENING)


STRETCHES = {"asinh": _asinh, "linear": _linear}
