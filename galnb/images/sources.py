"""Read the known sets (Galaxy Zoo, FIRST, Galaxy10), FITS images and what somebody uploads.

Chapters 01 (Galaxies as pixels) and 08 (The explorer).
"""

import csv
import gzip
import importlib.util
import io
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from galnb.checks import at_least, one_of
from galnb.images import readers
from galnb.images.pixels import ImageSet, area_average, sky_level

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

    root: folder (with its subfolders, hidden ones aside) or zip of .jpg, .jpeg or .png files.
    size: side of a returned image, pixels, at most `crop`; it need not divide it (see `area_average`).
    crop: side of the central square that is kept, source pixels. `size=424, crop=424` gives whole frames.
    split, limit: "test" = the last 300 by sorted name, "train" = the others; of these only the first so many.
    dtype: float32 in [0, 1], or torch.uint8 in 0..255, a quarter of the memory: 1,400 frames take 0.8 GB.

    Returns RGB sorted by path; names are those of the files, without ending, or their paths where two would
    be equal; labels come from a `labels.csv` (columns galaxy_id, group) beside the images, if there is one.
    FileNotFoundError without images; a ValueError names the file that is damaged, too small, or has no label.
    Lintott et al. 2008, MNRAS 389, 1179; crop and scale of Reiman & Goehre 2019, MNRAS 485, 2617.
    """
    at_least(1, size=size, crop=crop, limit=1 if limit is None else limit)
    one_of("split", split, (None, "train", "test"))
    files = readers.listing(root, (*readers.PICTURES, "labels.csv"))
    paths = sorted(path for path in files if path.lower().endswith(readers.PICTURES))
    stems = [PurePosixPath(path).stem for path in paths]
    pairs = list(zip(paths, stems if len(set(stems)) == len(stems) else paths, strict=True))
    held_out = GALAXY_ZOO_TEST if split else 0
    if len(pairs) <= held_out:
        why = f"over {held_out}, as the last {held_out} by name are the test set; give more, or no split"
        raise ValueError(f"{root}: got {len(pairs)} images, expected {why}")
    pairs = pairs[-held_out:] if split == "test" else pairs[: len(pairs) - held_out]
    paths, names = zip(*pairs[:limit], strict=True)
    labels, pixels = _labels(files, names), torch.empty(len(paths), 3, size, size, dtype=dtype)
    for start in range(0, len(paths), 64):  # one product per 64 images: many threads cost more than they give
        part = [readers.decode(files[path], path, crop=crop) for path in paths[start : start + 64]]
        piece = area_average(torch.stack([image.expand(3, -1, -1) for image in part]), size)
        pixels[start : start + 64] = piece.mul_(255).round_() if dtype == torch.uint8 else piece
    record = {"found": len(pairs), "returned": len(paths), "crop": crop, "size": size, "split": split}
    return ImageSet(pixels, names, "Galaxy Zoo (SDSS)", labels, record)


def _labels(files: dict[str, Callable[[], bytes]], names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the group of each image from the labels.csv that lies highest, None without any."""
    tables = [path for path in files if PurePosixPath(path).name.lower() == "labels.csv"]
    if not tables:
        return None
    path, known, groups = min(tables, key=lambda path: (path.count("/"), path)), set(names), defaultdict(set)
    with readers.used_as("table in UTF-8 with columns galaxy_id and group", path):
        head, *lines = files[path]().decode("utf-8-sig").splitlines()
        mark = max(",;\t", key=head.count)
        columns = [column.strip(' "').lower() for column in head.split(mark)]
        for row in csv.DictReader(lines, columns, delimiter=mark, skipinitialspace=True):
            name, group = row["galaxy_id"].strip(), row["group"].strip()
            is_file = name not in known and name.lower().endswith(readers.PICTURES)
            groups[name.rpartition(".")[0] if is_file else name] |= {group} - {""}
        if wrong := [name for name in names if len(groups[name]) != 1]:
            raise ValueError(f"no group or more than one for {', '.join(wrong[:3])}; {len(wrong)} in all")
    return tuple(groups[name].pop() for name in names)


def first_radio(*, split: str = "train", size: int = 128, limit: int | None = None) -> ImageSet:
    """Read FIRST radio galaxies from the archive in the installed package `firstgalaxydata`, not imported.

    split: "train", "valid", "test" or "all", the set's own: 1758, 200, 200 or 2158 images.
    size: side of the central square, pixels of 1.8 arcsec, at most 300; nothing is resampled.
    limit: keep only the first so many by right ascension as text, which mixes the classes.

    Returns one channel, published with the noise clipped: the sky is exactly 0. Labels are `RADIO_CLASSES`,
    counted in `record["classes"]`; names `RA_DEC_label_catalogue` in degrees.
    Becker, White & Helfand 1995, ApJ 450, 559; Griese et al. 2023, Data in Brief 47, 108974.
    """
    at_least(1, size=size, limit=1 if limit is None else limit)
    one_of("split", split, ("train", "valid", "test", "all"))
    package = importlib.util.find_spec("firstgalaxydata")
    if package is None:
        raise ModuleNotFoundError('FIRST needs firstgalaxydata; install it with: pip install "galnb[radio]"')
    files = readers.listing(Path(package.origin).with_name("galaxy_data.zip"), readers.PICTURES)
    files = {PurePosixPath(path): read for path, read in files.items() if path.split("/")[1] == split}
    paths = sorted(files, key=lambda path: path.name)[:limit]
    pixels = torch.empty(len(paths), 1, size, size)  # a list to stack would need the memory twice
    for index, path in enumerate(paths):
        pixels[index] = readers.decode(files[path], path.name, crop=size)
    labels = tuple(path.parts[2] for path in paths)
    classes = {label: labels.count(label) for label in RADIO_CLASSES}
    record = {"found": len(files), "split": split, "size": size, "classes": classes}
    names = tuple(path.stem for path in paths)
    return ImageSet(pixels, names, "VLA FIRST, 1.4 GHz (Radio Galaxy Dataset)", labels, record)


def galaxy10(path: str | Path, *, size: int = 64, limit: int | None = None) -> ImageSet:
    """Read the RGB images of a Galaxy10 file (SDSS, 69 px, or DECaLS, 256 px), see "How to run".

    path: HDF5 with `images` (N, S, S, 3), bytes, and `ans` (N,); a ValueError if it holds anything else.
    size: side of a returned image, pixels, at most S: area average of the whole frame.
    limit: keep only the first so many. Labels are the classes of the file, "0" to "9".
    """
    at_least(1, size=size, limit=1 if limit is None else limit)
    with readers.hdf5_file(path) as file:
        found, values, answers = len(file["images"]), file["images"][:limit], file["ans"][:limit]
        squares = values.shape[1:] == (values.shape[1], values.shape[1], 3)
        if values.dtype != np.uint8 or not squares or answers.shape != values.shape[:1]:
            given = f"{values.dtype} {values.shape}, ans {answers.shape}"
            raise ValueError(f"got {given}; expected bytes (N, S, S, 3), and (N,)")
    pixels = torch.empty(len(values), 3, size, size)
    for start in range(0, len(values), 256):  # floats of the whole set would not fit a small machine
        part = torch.from_numpy(values[start : start + 256]).permute(0, 3, 1, 2) / 255
        pixels[start : start + 256] = area_average(part, size)
    names = tuple(f"galaxy10_{number:05d}" for number in range(len(pixels)))
    labels = tuple(str(answer) for answer in answers)
    return ImageSet(pixels, names, "Galaxy10 (Galaxy Zoo labels)", labels, {"found": found, "size": size})


def fits_cutouts(
    paths, *, size: int, hdu: int | str = 0, stretch: str = "asinh", limits=None, softening: float = 10.0
) -> ImageSet:
    """Read the central square of FITS images and stretch it to [0, 1]: t = (x - low) / (high - low), clipped.

    paths: FITS file or a sequence of them, compressed or not, with (H, W) or (C, H, W) in the chosen HDU.
    size: side of the square, pixels; nothing is resampled.
    hdu: number or name of the header-data unit.
    stretch: "linear", t, or "asinh", asinh(s t) / asinh(s) (Lupton et al. 2004, PASP 116, 133).
    limits: (low, high) in the unit of the files. None: of each, sky minus one sigma and 99.9th percentile.
    softening: the s of asinh, positive: from linear to logarithmic at 1/s of the range.

    `record["files"]` has, per file: limits, number of NaN pixels (shown at `low`, with a warning), sky level
    and noise, unit, and the celestial WCS cards moved to the cutout (None without, or if they cannot be
    used, with a warning). A ValueError names the file that is damaged, too small, only NaN, or no image.
    """
    at_least(1, size=size)
    at_least(1e-3, softening=softening)
    one_of("stretch", stretch, ("asinh", "linear"))
    if limits is not None and not -math.inf < limits[0] < limits[1] < math.inf:
        raise ValueError(f"limits={limits}: expected (low, high) with low < high, in the unit of the file")
    paths = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    how = {"size": size, "hdu": hdu, "stretch": stretch, "softening": softening}
    cut = list(map(partial(_cutout, limits=limits, **how), paths, map(str, paths)))
    channels = sorted({len(image) for image, _ in cut})
    if len(channels) != 1:
        raise ValueError(f"paths: got {len(cut)} files of {channels} channels; expected one or more, alike")
    short = len({path.name for path in paths}) == len(paths)  # else two names would be equal
    names = tuple(path.name if short else path.as_posix() for path in paths)
    record = {**how, "files": [record for _, record in cut]}
    return ImageSet(torch.stack([image for image, _ in cut]), names, "FITS files", record=record)


def _cutout(
    source, name: str, *, size: int, hdu=None, stretch="asinh", softening=10.0, limits=None
) -> tuple[torch.Tensor, dict]:
    """Return the stretched central square (C, size, size) of one file, and its record."""
    with readers.fits_file(source, name) as units:
        places = {i: unit.name for i, unit in enumerate(units) if unit.is_image and len(unit.shape) in (2, 3)}
        chosen = [i for i, title in places.items() if hdu in (None, i) or title == str(hdu).upper()]
        if not chosen:
            known = ", ".join(f"{i} ({title})" for i, title in places.items()) or "none"
            raise ValueError(f"HDU {hdu!r} holds no 2-D or 3-D image; HDUs that do: {known}")
        values, header = units[chosen[0]].data, units[chosen[0]].header
        height, width = values.shape[-2:]
        if min(height, width) < size:
            raise ValueError(f"got {width} x {height} pixels, expected at least {size} x {size}")
        values = readers.central(values.reshape(-1, height, width), size).astype(np.float64)
        level, noise = sky_level(values)
    finite = np.isfinite(values)
    low, high = map(float, limits or (level - noise, np.percentile(values[finite], 99.9)))
    high = high if high > low else low + 1.0  # a constant image shows as black
    if nan_pixels := int((~finite).sum()):
        said = f"{nan_pixels} of {finite.size} values are no finite numbers; they are shown as {low:.4g}"
        warnings.warn(f"{Path(name).name}: {said}", stacklevel=3)
    fraction = ((np.where(finite, values, low) - low) / (high - low)).clip(0, 1)
    if stretch == "asinh":
        fraction = np.arcsinh(softening * fraction) / np.arcsinh(softening)
    wcs = readers.cutout_wcs(name, header, (width - size) // 2, (height - size) // 2)
    sky = {"limits": [low, high], "nan_pixels": nan_pixels, "sky_level": level, "sky_noise": noise}
    return torch.from_numpy(fraction).float(), {**sky, "unit": header.get("BUNIT"), "wcs": wcs}


def read_upload(name: str, content: bytes, *, size: int = 80) -> torch.Tensor:
    """Turn an uploaded JPEG, PNG or FITS file into an image (3, size, size) in [0, 1] that the networks take.

    A picture is cut to its central square (of 424 px, a Galaxy Zoo frame, to 240) and shrunk by area; of the
    first FITS image the central pixels are taken and stretched by asinh. Grey becomes colour.
    """
    if name.lower().endswith(readers.PICTURES):
        whole = readers.decode(lambda: content, name)
        side = min(whole.shape[-2:])
        if side < size:
            raise ValueError(f"{name} is {side} px high or wide; give one of at least {size} x {size} px")
        pixels = area_average(readers.central(whole, 240 if side == 424 else side), size)
    elif name.lower().endswith(readers.FITS):
        file = io.BytesIO(content)
        file = gzip.GzipFile(fileobj=file) if content[:2] == b"\x1f\x8b" else file
        pixels, _ = _cutout(file, name, size=size)
    else:
        raise ValueError(f"{name} is of an unknown kind; upload a .jpg, .png or .fits file")
    if len(pixels) not in (1, 3):
        raise ValueError(f"{name} has {len(pixels)} planes; expected 1 or 3")
    return pixels.expand(3, -1, -1).clone()
