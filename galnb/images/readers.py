"""Open image files, the only place that does: pictures, folders, zip archives, FITS, HDF5 and uploads.

Chapters 01, 08 and 09. A file is opened, read and closed: systems allow some hundred open ones.
"""

import io
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def used_as(kind: str, name: str | Path) -> Iterator[None]:
    """Name the file in whatever error its damage sets off, any of a dozen kinds: a ValueError."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: no such {kind}; check the path") from error
    except Exception as error:
        why = f"cannot be used as {kind} ({_first_words(error)})"
        raise ValueError(f"{name}: {why}; correct, replace or remove it") from error


def _first_words(error: Exception) -> str:
    """Return what an error says in its first line, without the address of an object."""
    return re.split(r"\n| <", str(error).strip() or repr(error))[0]


def listing(root: str | Path, endings: tuple[str, ...]) -> dict[str, Callable[[], bytes]]:
    """Map the path of each file in a folder or zip, hidden ones aside, to a function that reads its bytes.

    endings: of the names, in lower case; a FileNotFoundError if there is none such.
    """
    root = Path(root)
    if root.is_dir():
        paths = [path for path in root.rglob("*") if path.is_file()]
        files = {path.relative_to(root).as_posix(): path.read_bytes for path in paths}
    else:
        with used_as("folder or zip of images", root):
            archive = zipfile.ZipFile(root)
        files = {name: partial(archive.read, name) for name in archive.namelist()}
    chosen = {n: read for n, read in files.items() if n.lower().endswith(endings) and not _HIDDEN.search(n)}
    if not chosen:
        raise FileNotFoundError(f"{root}: holds no {', '.join(endings)}; give the folder with the images")
    return chosen


def decode(read: Callable[[], bytes], name: str, *, crop: int = 0) -> torch.Tensor:
    """Decode a picture to (1 or 3, H, W) floats in [0, 1], as every viewer shows it, on black.

    crop: side of the central square that is kept; 0 keeps everything. A ValueError names the file.
    """
    from PIL import Image, ImageOps

    with used_as("picture", name), Image.open(io.BytesIO(read())) as image:
        if min(image.size) < crop:
            raise ValueError(f"got {image.width} x {image.height} pixels, expected at least {crop} x {crop}")
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode[0] in "IF":  # 16 bits are held in one of these; `convert` would cut them off at 255
            values, largest = np.asarray(image), 65535
            if image.mode == "F" or values.min() < 0 or values.max() > largest:
                raise ValueError(f"pixels of mode {image.mode} have no known range, save 8 or 16 bits")
        else:
            if image.has_transparency_data:  # colours where nothing is to be seen are arbitrary
                black = Image.new("RGBA", image.size, "black")
                image = Image.alpha_composite(black, image.convert("RGBA"))
            values, largest = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")), 255
    planes = np.atleast_3d(values).transpose(2, 0, 1)
    planes = central(planes, crop) if crop else planes
    return torch.from_numpy(planes.astype(np.float32) / largest)


def central(values, size: int):
    """Cut the central square out of an array or tensor (..., H, W)."""
    top, left = ((side - size) // 2 for side in values.shape[-2:])
    return values[..., top : top + size, left : left + size]


@contextmanager
def fits_file(source: Path | io.BytesIO, name: str | Path) -> Iterator:
    """Open a FITS file, packed or not: the list of its units; a ValueError names the file."""
    fits = optional("astropy.io.fits", extra="sky", purpose="FITS")
    with used_as("FITS image", name), warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?s).*(truncated|corrupted)")  # else astropy goes on
        with fits.open(source, memmap=False) as units:  # scaled integers cannot be mapped
            yield units


@contextmanager
def hdf5_file(path: str | Path) -> Iterator:
    """Open an HDF5 file; a ValueError names it if it is damaged, or lacks what is taken out of it."""
    h5py = optional("h5py", extra="radio", purpose="HDF5")
    with used_as("HDF5 file", path), h5py.File(path) as file:
        yield file


def cutout_wcs(name: str, header, left: int, top: int) -> dict | None:
    """Celestial cards moved by (left, top), None without any, or with a warning if they cannot be used."""
    from astropy.wcs import WCS

    try:
        with warnings.catch_warnings(action="ignore"):  # repairs of old headers
            wcs = WCS(header)
            cards = wcs.celestial[top:, left:].to_header(relax=True) if wcs.has_celestial else None
            return cards and dict(cards)  # with the distortion polynomials (SIP)
    except Exception as error:  # of wcslib or astropy; tables of distortion cannot become cards either
        why = _first_words(error)
        warnings.warn(f"{name}: its world coordinates cannot be used ({why}); wcs is None", stacklevel=4)
        return None


def open_stack(source) -> tuple[dict[str, Callable[[], np.ndarray]], dict[str, str]]:
    """Find all images of a source, to read them one by one.

    source: folder of JPEG, PNG or FITS files (subfolders too, hidden ones aside), one such file or an HDF5
        file, or values (B, C, H, W). Pictures are divided by 255 or 65535; all other numbers stay.
    Returns name -> function that reads the image, (C, H, W) float32, a ValueError if it cannot be read; and
    name -> why, of files that cannot be opened or hold no image. FileNotFoundError if there is no file.
    """
    if not isinstance(source, (str, Path)):
        shape = tuple(getattr(source, "shape", ()))
        if len(shape) != 4 or 0 in shape:
            given = f"{type(source).__name__} of shape {shape}"
            way = "of an ImageSet give its .pixels, join single images with torch.stack"
            raise ValueError(f"images: got {given}, expected (batch, channel, height, width), none 0; {way}")
        return {f"image {i}": partial(_plane, image) for i, image in enumerate(source)}, {}
    path, readers, unreadable = Path(source), {}, {}
    single = path.is_file()
    for name in [path.name] if single else sorted(listing(path, PICTURES + FITS), key=Path):
        try:
            planes = _planes(path if single else path / name)
            readers |= {name + (part if len(planes) > 1 else ""): read for part, read in planes.items()}
        except ValueError as error:
            unreadable[name] = str(error)
    return readers, unreadable


def _planes(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Map each plane of a file to its reader: a picture, FITS units of 2 to 4 axes, the largest HDF5 set."""
    ending = path.name.lower()
    if ending.endswith(PICTURES):
        return {"": lambda: decode(path.read_bytes, path.name).numpy()}
    if ending.endswith(FITS):
        opened, shapes_in = partial(fits_file, path, path), _fits_shapes
    elif ending.endswith(_HDF5):
        opened, shapes_in = partial(hdf5_file, path), _largest_set
    else:
        raise ValueError(f"expected a folder, or a file that ends in {', '.join(PICTURES + FITS + _HDF5)}")
    with opened() as file:
        shapes = shapes_in(file)
    if not shapes:
        raise ValueError(f"{path}: holds no image of 2, 3 or 4 axes; give a file that does")

    def read(key, i: int) -> np.ndarray:
        with opened() as file:
            stored = getattr(file[key], "section", file[key])  # reads no more than one plane
            return _plane(stored[i] if len(shapes[key]) > 2 else stored[:])

    counts = {key: shape[0] if len(shape) > 2 else 1 for key, shape in shapes.items()}
    return {f"[{key},{i}]": partial(read, key, i) for key in shapes for i in range(counts[key])}


def _fits_shapes(units) -> dict[int, tuple[int, ...]]:
    """Shapes of (H, W), (N, H, W), grey, and (N, C, H, W)."""
    shapes = {number: unit.shape for number, unit in enumerate(units) if unit.is_image}
    return {number: shape for number, shape in shapes.items() if len(shape) in (2, 3, 4) and 0 not in shape}


def _largest_set(file) -> dict[str, tuple[int, ...]]:
    """Shape of the largest data set of 3 (N, H, W) or 4 axes, channels second or last."""
    sets = []
    file.visititems(lambda _, item: sets.append(item) if getattr(item, "ndim", 0) in (3, 4) else None)
    sets = [item for item in sets if item.dtype.kind in "fiu" and item.size]
    return {item.name.strip("/"): item.shape for item in sorted(sets, key=lambda item: -item.size)[:1]}


def _plane(values) -> np.ndarray:
    """(C, H, W) of one image, channels first or last, or none."""
    if isinstance(values, torch.Tensor):
        values = values.detach().float().cpu()
    image = np.asarray(values, np.float32)
    if image.ndim == 3 and image.shape[-1] in COLOURS and image.shape[0] not in COLOURS:
        image = np.moveaxis(image, -1, 0)
    return image[None] if image.ndim == 2 else image
