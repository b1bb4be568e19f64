"""Turn known galaxy sets, folders and FITS files into ``[0, 1]`` tensors with a record of their origin."""

import csv
import importlib.util
import io
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from galnb.images.fits import fits_cutouts
from galnb.images.hubble import hubble_deep_field, sky_level
from galnb.images.imageset import ImageSet, area_average, check_images, check_sizes

__all__ = [
    "SOURCES",
    "ImageSet",
    "check_images",
    "first_radio",
    "fits_cutouts",
    "galaxy10",
    "galaxy_zoo",
    "hubble_deep_field",
    "sky_level",
]

SUFFIXES = (".jpg", ".jpeg", ".png")
RADIO_CLASSES = ("FRI", "FRII", "Compact", "Bent")
GALAXY_ZOO_TEST = 300  # the last 300 names, so that every chapter holds out the same galaxies


def galaxy_zoo(
    root: str | Path,
    *,
    size: int = 80,
    crop: int = 240,
    limit: int | None = None,
    split: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> ImageSet:
    """Read Galaxy Zoo images (424 x 424 JPEG) from a folder or a zip: centre crop, then area average.

    Parameters
    ----------
    root : str or pathlib.Path
        Folder (searched with its subfolders) or zip archive of .jpg, .jpeg or .png files.
    size : int
        Side of a returned image, pixels; at most ``crop``. It need not divide ``crop``: a source pixel that
        straddles two target pixels is shared in proportion to its area. 240 to 80 is the plain 3 x 3 mean.
    crop : int
        Side of the central square that is kept, source pixels. ``size=424, crop=424`` gives full frames.
    limit : int or None
        Keep only the first so many, after the split.
    split : {None, "train", "test"}
        Everything, or "test" = the last 300 by sorted name and "train" = the others.
    dtype : torch.dtype
        float32 in [0, 1], or torch.uint8 in 0..255, a quarter of the memory: 1,400 whole frames take 0.8 GB.

    Returns
    -------
    ImageSet
        RGB, sorted by name. Labels come from a ``labels.csv`` (columns ``galaxy_id, group``) in the folder if
        present. ``record["converted"]`` counts images that were not RGB (grey, palette, alpha) by mode.

    Raises
    ------
    FileNotFoundError
        If ``root`` is missing or holds no image.
    ValueError
        If a file (it is named) is damaged, not an image or smaller than the crop, or a value is invalid.

    References
    ----------
    Lintott et al. 2008, MNRAS 389, 1179; crop and scale of Reiman & Goehre 2019, MNRAS 485, 2617.

    Chapter: Galaxies as pixels
    """
    check_sizes(size=size, crop=crop, limit=limit)
    if size > crop:
        raise ValueError(f"size={size} is larger than crop={crop}; averaging only shrinks: use size <= crop")
    if split not in (None, "train", "test"):
        raise ValueError(f"split={split!r}: expected None, 'train' or 'test'")
    if dtype not in (torch.float32, torch.uint8):
        raise ValueError(f"dtype={dtype}: expected torch.float32 or torch.uint8")
    files = _list_images(Path(root))
    names = sorted(files)
    if split is not None:
        if len(names) <= GALAXY_ZOO_TEST:
            raise ValueError(f"{root}: got {len(names)} images, expected over {GALAXY_ZOO_TEST} to split")
        names = names[-GALAXY_ZOO_TEST:] if split == "test" else names[:-GALAXY_ZOO_TEST]
    found, names = len(names), names[:limit]
    converted, pixels = Counter(), torch.empty(len(names), 3, size, size, dtype=dtype)
    for start in range(0, len(names), 64):  # one product per 64 images: many threads cost more than they give
        decoded = [_decode(files[name], name, crop=crop) for name in names[start : start + 64]]
        converted.update(mode for _, mode in decoded if mode != "RGB")
        piece = area_average(torch.stack([image for image, _ in decoded]), size)
        pixels[start : start + 64] = piece.mul_(255).round_() if dtype == torch.uint8 else piece
    stems = tuple(Path(name).stem for name in names)
    record = {
        "found": found, "returned": len(names), "crop": crop, "size": size, "split": split,
        "converted": dict(converted),
    }  # fmt: skip
    return ImageSet(pixels, stems, "Galaxy Zoo (SDSS)", _groups(Path(root), stems), record)


def _list_images(root: Path) -> dict[str, Callable[[], bytes]]:
    """Map each image's name inside a folder or zip to a function that reads its bytes."""
    if root.is_dir():
        files = {path.relative_to(root).as_posix(): path.read_bytes for path in root.rglob("*")}
    elif root.is_file():
        try:
            archive = zipfile.ZipFile(root)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{root}: not a zip archive; expected a folder or a .zip of images") from error
        files = {name: partial(archive.read, name) for name in archive.namelist()}
    else:
        raise FileNotFoundError(f"{root}: no such folder or zip; give the place of the JPEG images")
    hidden = ("._", "__MACOSX")  # companions that macOS writes beside each file
    images = {
        name: read
        for name, read in files.items()
        if name.lower().endswith(SUFFIXES) and not any(part.startswith(hidden) for part in name.split("/"))
    }
    if not images:
        raise FileNotFoundError(f"{root}: holds no {', '.join(SUFFIXES)}; give the folder with the images")
    return images


def _groups(root: Path, stems: Sequence[str]) -> tuple[str, ...] | None:
    if not (root / "labels.csv").is_file():
        return None
    with open(root / "labels.csv", newline="") as table:
        groups = {row.get("galaxy_id"): row.get("group") for row in csv.DictReader(table)}
    return tuple(groups[stem] for stem in stems) if all(groups.get(stem) for stem in stems) else None


def first_radio(*, split: str = "train", size: int = 128, limit: int | None = None) -> ImageSet:
    """Read FIRST radio galaxies from the archive inside the installed ``firstgalaxydata`` package.

    The package is located, not imported: importing it would pull in torchvision and h5py.

    Parameters
    ----------
    split : {"train", "valid", "test", "all"}
        The data set's own split: 1758, 200, 200 or 2158 images.
    size : int
        Side of the central square, pixels of 1.8 arcsec; at most 300. Nothing is resampled.
    limit : int or None
        Keep only the first so many by right ascension as text, which mixes the classes.

    Returns
    -------
    ImageSet
        One channel; labels "FRI", "FRII", "Compact", "Bent"; names ``RA_DEC_label_catalogue`` in degrees.
        ``record`` counts the classes and the images without a single lit pixel.

    Raises
    ------
    ModuleNotFoundError
        If ``firstgalaxydata`` is not installed; the message holds the install line.
    ValueError
        If the split is unknown, the size impossible or an image damaged.

    Notes
    -----
    The images are published with the noise clipped: their sky is exactly 0.

    References
    ----------
    Becker, White & Helfand 1995, ApJ 450, 559; Griese et al. 2023, Data in Brief 47, 108974.

    Chapter: Galaxies as pixels
    """
    check_sizes(size=size, limit=limit)
    if split not in ("train", "valid", "test", "all"):
        raise ValueError(f"split={split!r}: expected 'train', 'valid', 'test' or 'all'")
    found = importlib.util.find_spec("firstgalaxydata")
    place = Path(found.submodule_search_locations[0]) / "galaxy_data.zip" if found else None
    if place is None or not place.is_file():
        raise ModuleNotFoundError('FIRST needs firstgalaxydata; install it with: pip install "galnb[radio]"')
    files = {name: read for name, read in _list_images(place).items() if name.split("/")[1] == split}
    paths = sorted(files, key=lambda name: name.split("/")[-1])[:limit]
    pixels = torch.empty(len(paths), 1, size, size)  # a list to stack would need the memory twice
    for index, path in enumerate(paths):
        pixels[index] = _decode(files[path], path, crop=size, mode="L")[0]
    labels = tuple(path.split("/")[2] for path in paths)
    record = {
        "found": len(files), "returned": len(paths), "split": split, "size": size, "pixel_arcsec": 1.8,
        "classes": {label: labels.count(label) for label in RADIO_CLASSES},
        "empty": int((pixels.amax(dim=(1, 2, 3)) == 0).sum()),
    }  # fmt: skip
    names = tuple(Path(path).name.removesuffix(".png") for path in paths)
    return ImageSet(pixels, names, "VLA FIRST, 1.4 GHz (Radio Galaxy Dataset)", labels, record)


def galaxy10(path: str | Path, *, size: int = 64, limit: int | None = None) -> ImageSet:
    """Read a Galaxy10 file (SDSS, 69 x 69, or DECaLS, 256 x 256), fetched by ``galnb.images.fetch``.

    Parameters
    ----------
    path : str or pathlib.Path
        HDF5 file with ``images`` (N, S, S, 3) uint8 and ``ans`` (N,).
    size : int
        Side of a returned image, pixels: area average of the full frame, at most S.
    limit : int or None
        Keep only the first so many.

    Returns
    -------
    ImageSet
        RGB; labels are the class numbers "0" to "9" of the file.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file is missing, is no such HDF5 file, or holds smaller images.

    Chapter: Galaxies as pixels
    """
    check_sizes(size=size, limit=limit)
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Galaxy10 needs h5py; install it with: pip install "galnb[radio]"'
        ) from error
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path}: no such file; get it with fetch.fetch("galaxy10_sdss")')
    try:
        with h5py.File(path) as file:
            found, pixels, answers = len(file["images"]), file["images"][:limit], file["ans"][:limit]
    except (OSError, KeyError) as error:
        raise ValueError(f"{path}: not a Galaxy10 file ({error}): needs HDF5 images and ans") from error
    if size > pixels.shape[1]:
        raise ValueError(f"size={size}: the images of {path} have only {pixels.shape[1]} pixels a side")
    parts = torch.from_numpy(pixels).split(256)  # floats of the whole set would not fit a small machine
    images = torch.cat([area_average(part.permute(0, 3, 1, 2).float() / 255, size) for part in parts])
    names = tuple(f"galaxy10_{number:05d}" for number in range(len(images)))
    labels = tuple(str(answer) for answer in answers)
    record = {"found": found, "returned": len(images), "size": size}
    return ImageSet(images, names, "Galaxy10 (Galaxy Zoo labels)", labels, record)


def _decode(
    read: Callable[[], bytes], name: str, *, crop: int, mode: str = "RGB"
) -> tuple[torch.Tensor, str]:
    """Decode the central square to (C, crop, crop) floats in [0, 1], and tell the mode that the file had."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(read())) as image:
            pixels, original = np.asarray(image.convert(mode)), image.mode
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{name}: not an image, whatever its name says; remove or replace the file"
        ) from error
    except (OSError, SyntaxError, ValueError, zipfile.BadZipFile) as error:  # one or the other, by damage
        raise ValueError(f"{name}: damaged image ({error}); remove or replace the file") from error
    height, width = pixels.shape[:2]
    if min(height, width) < crop:
        raise ValueError(f"{name}: got {width} x {height} pixels, expected at least {crop} x {crop}")
    top, left = (height - crop) // 2, (width - crop) // 2
    square = pixels[top : top + crop, left : left + crop].reshape(crop, crop, -1).transpose(2, 0, 1)
    return torch.from_numpy(square.astype(np.float32) / 255), original


SOURCES = {
    "hubble_deep_field": hubble_deep_field,
    "galaxy_zoo": galaxy_zoo,
    "first_radio": first_radio,
    "galaxy10": galaxy10,
    "fits_cutouts": fits_cutouts,
}
