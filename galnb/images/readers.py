"""Open image files, the only place that does: pictures, folders, zip archives, FITS, HDF5 and uploads.

Chapters 01 (Galaxies as pixels), 08 (The explorer) and 09 (The phantom boundary). A file is opened, read and
closed: systems allow some hundred open ones.
"""

import io
import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from galnb.checks import optional
from galnb.images.pixels import COLOURS

PICTURES = (".jpg", ".jpeg", ".png")
FITS = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.fz")
_HDF5 = (".h5", ".hdf5", ".hdf")
_HIDDEN = re.compile(r"(^|/)(\.|__MACOSX)")  # folders of copies, and the companions that macOS writes


def listing(
    root: str | Path, endings: tuple[str, ...], *, needed: bool = True
) -> dict[str, Callable[[], bytes]]:
    """Map the path of each file in a folder or zip, hidden ones aside, to a function that reads its bytes.

    endings: of the names, in lower case. needed: whether it is a FileNotFoundError that there is none.
    """
    root = Path(root)
    if root.is_dir():
        paths = (Path(place) / name for place, _, names in os.walk(root) for name in names)
        files = {path.relative_to(root).as_posix(): path.read_bytes for path in paths}
    elif root.is_file():
        try:
            archive = zipfile.ZipFile(root)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{root}: not a zip archive; expected a folder or a .zip of images") from error
        files = {name: partial(archive.read, name) for name in archive.namelist()}
    else:
        raise FileNotFoundError(f"{root}: no such folder or zip; give the place of the images")
    chosen = {n: read for n, read in files.items() if n.lower().endswith(endings) and not _HIDDEN.search(n)}
    if needed and not chosen:
        raise FileNotFoundError(f"{root}: holds no {', '.join(endings)}; give the folder with the images")
    return chosen


def decode(
    read: Callable[[], bytes], name: str, *, crop: int | None = None, most: float = math.inf
) -> tuple[torch.Tensor, str]:
    """Decode a picture to (1 or 3, H, W) floats in [0, 1], and tell the mode that the file had.

    crop: side of the central square that is kept; None keeps everything. most: number of pixels that is read.
    The ValueError names the file and says whether it is no image, damaged, too large or too small.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(read())) as image:
            mode, (width, height) = image.mode, image.size
            if width * height > most:
                raise ValueError(f"too many pixels, shrink it below {most:.0f}")
            if min(width, height) < (crop or 1):
                raise ValueError(f"got {width} x {height} pixels, expected at least {crop} x {crop}")
            ImageOps.exif_transpose(image, in_place=True)  # as every viewer shows it
            values = _picture_values(image)
    except Exception as error:  # by damage, any of a dozen kinds
        said = "not an image, whatever its name says" if type(error) is UnidentifiedImageError else error
        raise ValueError(f"{name}: cannot be used ({said}); remove or replace it") from error
    planes = values.reshape(*values.shape[:2], -1).transpose(2, 0, 1)
    planes = central(planes, crop) if crop else planes
    return torch.from_numpy(planes.astype(np.float32) / (255 if values.dtype == np.uint8 else 65535)), mode


def _picture_values(image) -> np.ndarray:
    """(H, W) or (H, W, 3) of uint8, or (H, W) of wider integers in 0..65535."""
    from PIL import Image

    if image.mode[0] in "IF":  # 16 bits are held in one of these; `convert` would cut them off at 255
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels of mode {image.mode} have no known range, save 8 or 16 bits")
        return values
    if image.has_transparency_data:  # colours where nothing is to be seen are arbitrary, and the sky is black
        black = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(black, image.convert("RGBA"))
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def central(values, size: int):
    """Cut the central square out of an array or tensor (..., H, W)."""
    top, left = ((side - size) // 2 for side in values.shape[-2:])
    return values[..., top : top + size, left : left + size]


def _read_fits(source: Path | io.BytesIO, name: str, take: Callable):
    """Return `take(units)` of a FITS file; a ValueError names the file that is damaged."""
    fits = optional("astropy.io.fits", extra="sky", purpose="FITS")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="(?s).*(truncated|corrupted)")  # else astropy goes on
            with fits.open(source, memmap=False) as units:  # scaled integers cannot be mapped
                return take(units)
    except Exception as error:  # by damage, any of a dozen kinds
        raise ValueError(f"{name}: truncated or not a FITS file ({error}); fetch it again") from error


def fits_image(source, name: str, hdu: int | str | None):
    """Values and header of one unit, of the first that holds an image where `hdu` is None."""
    wanted = hdu.upper() if isinstance(hdu, str) else hdu

    def take(units):
        places = {i: unit.name for i, unit in enumerate(units) if unit.is_image and len(unit.shape) in (2, 3)}
        chosen = [i for i, title in places.items() if wanted in (None, i, title)]
        return places, [(units[i].data, units[i].header) for i in chosen[:1]]

    places, image = _read_fits(source, name, take)
    if not image:
        known = ", ".join(f"{number} ({title})" for number, title in places.items()) or "none"
        raise ValueError(f"{name}: HDU {hdu!r} holds no 2-D or 3-D image; HDUs that do: {known}")
    return image[0]


def cutout_wcs(name: str, header, left: int, top: int) -> dict | None:
    """Celestial cards moved by (left, top), None without any, or with a warning if they cannot be used."""
    from astropy.wcs import WCS

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repairs of old headers
            if not (wcs := WCS(header)).has_celestial:
                return None
            wcs = wcs.celestial
            wcs.wcs.crpix -= left, top
            return dict(wcs.to_header(relax=True))  # with the distortion polynomials (SIP)
    except Exception as error:  # of wcslib or astropy; tables of distortion cannot become cards either
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"{name}: its world coordinates cannot be used ({reason}); wcs is None", stacklevel=5)
        return None


def read_hdf5(path: str | Path, take: Callable):
    """Return `take(file)` of an HDF5 file; a ValueError names the file that is damaged or lacks it."""
    h5py = optional("h5py", extra="radio", purpose="HDF5")
    try:
        with h5py.File(path) as file:
            return take(file)
    except Exception as error:  # by damage, any of a dozen kinds
        raise ValueError(f"{path}: damaged or not the HDF5 file wanted ({error}); get it again") from error


@dataclass(frozen=True)
class Stack:
    """Hold the names of images and the way to read each.

    read: number of an image -> (C, H, W) float32; a ValueError or OSError if it cannot be read.
    unreadable: files that could not even be opened, and why.
    """

    names: list[str]
    read: Callable[[int], np.ndarray]
    unreadable: dict[str, str] = field(default_factory=dict)


def open_stack(source) -> Stack:
    """Open whatever holds images, to read them one by one.

    source: folder of JPEG, PNG or FITS files (subfolders too, hidden ones aside), a FITS or HDF5 file, or
    values (B, C, H, W). 8- and 16-bit pictures are divided by their largest possible value; all other
    numbers stay as they are. FileNotFoundError if there is no image, ValueError if the file is damaged or
    holds none.
    """
    if not isinstance(source, (str, Path)):
        shape = tuple(getattr(source, "shape", ()))
        if len(shape) != 4 or 0 in shape:
            hint = "give its .pixels" if hasattr(source, "pixels") else "join single images with torch.stack"
            raise ValueError(
                f"images: got {type(source).__name__} of shape {shape}, expected (batch, channel, height, "
                f"width), none 0; {hint}"
            )
        return Stack([f"image {i}" for i in range(shape[0])], lambda i: _plane(source[i]))
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such folder or file; give a folder of images, FITS or HDF5")
    for endings, planes in ((_HDF5, _hdf5_planes), (FITS, _fits_planes)):
        if path.name.lower().endswith(endings):
            return _stack(planes(path))
    raise ValueError(f"{path}: expected a folder, or a file that ends in {', '.join(FITS + _HDF5)}")


def _stack(pieces: dict[str, Callable[[], np.ndarray]], unreadable: dict[str, str] | None = None) -> Stack:
    readers = list(pieces.values())
    return Stack(list(pieces), lambda i: readers[i](), unreadable or {})


def _folder(path: Path) -> Stack:
    files = listing(path, PICTURES + FITS)
    pieces, unreadable = {}, {}
    for name in sorted(files, key=Path):
        if not name.lower().endswith(FITS):
            pieces[name] = lambda read=files[name], name=name: decode(read, name)[0].numpy()
            continue
        try:
            planes = _fits_planes(path / name)
            pieces |= {name + (part if len(planes) > 1 else ""): read for part, read in planes.items()}
        except ValueError as error:
            unreadable[name] = str(error)
    return _stack(pieces, unreadable)


def _fits_planes(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Planes of every 2-D (one image), 3-D (a stack of grey images) and 4-D (N, C, H, W) unit."""
    shapes = _read_fits(path, path, lambda units: [unit.shape if unit.is_image else () for unit in units])
    planes = {}
    for unit, shape in enumerate(shapes):
        if len(shape) in (2, 3, 4) and 0 not in shape:
            for i in range(1 if len(shape) == 2 else shape[0]):
                part = slice(None) if len(shape) == 2 else i
                take = lambda units, unit=unit, part=part: _plane(units[unit].section[part])  # noqa: E731
                planes[f"[{unit},{i}]"] = partial(_read_fits, path, path, take)
    if not planes:
        raise ValueError(f"{path}: holds no image of 2, 3 or 4 axes")
    return planes


def _hdf5_planes(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Images of the largest data set of 3 (N, H, W) or 4 axes, channels second or last."""

    def largest(file):
        found = []
        file.visititems(lambda _, item: found.append(item) if getattr(item, "ndim", 0) in (3, 4) else None)
        found = [item for item in found if item.dtype.kind in "fiu" and 0 not in item.shape]
        found = [(item.size, item.name, len(item)) for item in found]
        return max(found, key=lambda item: item[0], default=None)

    if (chosen := read_hdf5(path, largest)) is None:
        raise ValueError(f"{path}: holds no numbers of shape (N, H, W), (N, C, H, W) or (N, H, W, C)")
    _, name, count = chosen
    take = lambda i: lambda file: _plane(file[name][i])  # noqa: E731
    return {f"{name.strip('/')}[{i}]": partial(read_hdf5, path, take(i)) for i in range(count)}


def _plane(values) -> np.ndarray:
    """(C, H, W) of one image, channels first or last, or none."""
    if isinstance(values, torch.Tensor):
        values = values.detach().float().cpu()
    image = np.asarray(values, np.float32)
    if image.ndim == 3 and image.shape[-1] in COLOURS and image.shape[0] not in COLOURS:
        image = np.moveaxis(image, -1, 0)
    return image[None] if image.ndim == 2 else image
