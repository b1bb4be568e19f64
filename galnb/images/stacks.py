"""Name and read one by one the images of a folder, a FITS file, an HDF5 file or a tensor."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

PICTURES, FITS, HDF5 = (".jpg", ".jpeg", ".png"), (".fits", ".fit", ".fits.gz"), (".h5", ".hdf5", ".hdf")


@dataclass(frozen=True)
class Stack:
    """Hold the names of images and the way to read each.

    Parameters
    ----------
    names : list of str
        One per image.
    read : callable
        Number of an image -> (C, H, W) float32; an image that cannot be read raises a ValueError or OSError.
    unreadable : dict of str to str
        Files that could not even be opened, and why.

    Notes
    -----
    Chapter: The phantom boundary
    """

    names: list[str]
    read: Callable[[int], np.ndarray]
    unreadable: dict[str, str] = field(default_factory=dict)


def open_stack(source) -> Stack:
    """Open whatever holds images.

    Parameters
    ----------
    source : str, Path, array or tensor
        Folder of JPEG, PNG or FITS files (subfolders too), a FITS or HDF5 file, or (B, C, H, W) values.

    Raises
    ------
    FileNotFoundError
        If there is nothing, or no image in it.
    ValueError
        If the file is damaged or holds no images.

    Notes
    -----
    8- and 16-bit pictures are divided by their largest possible value; all other numbers stay as they are.
    Chapter: The phantom boundary
    """
    if not isinstance(source, (str, Path)):
        shape = tuple(getattr(source, "shape", ()))
        if len(shape) != 4 or 0 in shape:
            raise ValueError(f"images: got shape {shape}, expected (batch, channel, height, width), none 0")
        return Stack([f"image {i}" for i in range(shape[0])], lambda i: np.asarray(source[i], np.float32))
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such folder or file; give a folder of images, FITS or HDF5")
    if path.name.lower().endswith(HDF5):
        return _hdf5(path)
    if path.name.lower().endswith(FITS):
        pieces = _fits(path)
        return Stack([name for name, _ in pieces], lambda i: pieces[i][1]())
    raise ValueError(f"{path}: expected a folder, or a file that ends in {', '.join(FITS + HDF5)}")


def _folder(path: Path) -> Stack:
    files = sorted(
        p for p in path.rglob("*") if p.name.lower().endswith(PICTURES + FITS) and p.name[:2] != "._"
    )
    if not files:
        raise FileNotFoundError(
            f"{path}: holds no {', '.join(PICTURES + FITS)}; give the folder with the images"
        )
    names, readers, unreadable = [], [], {}
    for file in files:
        name, pieces = file.relative_to(path).as_posix(), [("", partial(_picture, file))]
        if name.lower().endswith(FITS):
            try:
                pieces = _fits(file)
            except ValueError as error:
                unreadable[name], pieces = str(error), []
        names += [name + (part if len(pieces) > 1 else "") for part, _ in pieces]
        readers += [reader for _, reader in pieces]
    return Stack(names, lambda i: readers[i](), unreadable)


def _picture(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        sixteen = image.mode.startswith("I")
        wanted = image.mode if image.mode == "L" or sixteen else "RGB"
        pixels = np.asarray(image if image.mode == wanted else image.convert(wanted), np.float32)
    pixels /= 65535 if sixteen else 255
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def _fits(path: Path) -> list[tuple[str, Callable[[], np.ndarray]]]:
    """Planes of every 2-D (one image), 3-D (a stack of grey images) and 4-D (N, C, H, W) unit."""
    try:
        from astropy.io import fits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('FITS needs astropy; install it with: pip install "galnb[sky]"') from error
    pieces = []
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="(?s).*(truncated|corrupted)")  # else astropy goes on
            with fits.open(path, memmap=True) as units:
                data = [
                    (i, unit.data) for i, unit in enumerate(units) if unit.is_image and unit.data is not None
                ]
        for number, values in data:
            planes = values[None] if values.ndim == 2 else values
            if planes.ndim in (3, 4):
                pieces += [(f"[{number},{i}]", partial(_plane, planes, i)) for i in range(len(planes))]
    except (OSError, TypeError, ValueError, IndexError, KeyError, UserWarning) as error:  # any, by damage
        raise ValueError(f"{path}: truncated or not a FITS file ({error}); fetch it again") from error
    if not pieces:
        raise ValueError(f"{path}: holds no image of 2, 3 or 4 axes")
    return pieces


def _hdf5(path: Path) -> Stack:
    """Images of the largest data set of 3 (N, H, W) or 4 axes, channels second or last."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('HDF5 needs h5py; install it with: pip install "galnb[radio]"') from error
    found = []
    try:
        file = h5py.File(path)
        file.visititems(lambda _, item: found.append(item) if getattr(item, "ndim", 0) in (3, 4) else None)
    except (OSError, KeyError) as error:
        raise ValueError(f"{path}: damaged or not an HDF5 file ({error}); get it again") from error
    found = [item for item in found if item.dtype.kind in "fiu" and 0 not in item.shape]
    if not found:
        raise ValueError(f"{path}: holds no numbers of shape (N, H, W), (N, C, H, W) or (N, H, W, C)")
    values = max(found, key=lambda item: item.size)
    return Stack([f"{values.name.strip('/')}[{i}]" for i in range(len(values))], partial(_plane, values))


def _plane(values, index: int) -> np.ndarray:
    image = np.asarray(values[index], np.float32)
    if image.ndim == 3 and image.shape[-1] in (1, 3, 4) and image.shape[0] not in (1, 3, 4):
        image = np.moveaxis(image, -1, 0)
    return image[None] if image.ndim == 2 else image
