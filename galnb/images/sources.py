"""Read the known sets (Galaxy Zoo, FIRST, Galaxy10), FITS images and what somebody uploads.

Chapters 01 (Galaxies as pixels) and 08 (The explorer).
"""

import csv
import gzip
import importlib.util
import io
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from galnb.checks import at_least, one_of
from galnb.images.pixels import ImageSet, area_average, sky_level
from galnb.images.readers import FITS, PICTURES, central, cutout_wcs, decode, fits_image, listing, read_hdf5

LARGEST = 50_000_000  # bytes of an upload, and pixels of a picture in it
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

    Returns RGB sorted by path; the name is the file's, without ending, or the path where two files would
    have the same. Labels come from a `labels.csv` (columns galaxy_id, group) beside the images, if there is
    one; a label that is missing is a ValueError. `record["converted"]` counts by mode what was not RGB: grey,
    alpha (laid on black), CMYK, 16 bits. FileNotFoundError if there is no image; a ValueError names the file
    that is damaged, no image or smaller than the crop.

    Lintott et al. 2008, MNRAS 389, 1179; crop and scale of Reiman & Goehre 2019, MNRAS 485, 2617.
    """
    at_least(1, size=size, crop=crop, limit=1 if limit is None else limit)
    if size > crop:
        raise ValueError(f"size={size} is larger than crop={crop}; averaging only shrinks: use size <= crop")
    one_of("split", split, (None, "train", "test"))
    one_of("dtype", dtype, (torch.float32, torch.uint8))
    files = listing(root, PICTURES)
    paths = sorted(files)
    titles = _titles(paths)
    if split is not None:
        if len(paths) <= GALAXY_ZOO_TEST:
            raise ValueError(f"{root}: got {len(paths)} images, expected over {GALAXY_ZOO_TEST} to split")
        paths = paths[-GALAXY_ZOO_TEST:] if split == "test" else paths[:-GALAXY_ZOO_TEST]
    found, paths = len(paths), paths[:limit]
    names = tuple(titles[path] for path in paths)
    labels = _labels(Path(root), names)
    converted, pixels = Counter(), torch.empty(len(paths), 3, size, size, dtype=dtype)
    for start in range(0, len(paths), 64):  # one product per 64 images: many threads cost more than they give
        decoded = [decode(files[path], path, crop=crop) for path in paths[start : start + 64]]
        converted.update(mode for _, mode in decoded if mode != "RGB")
        piece = area_average(torch.stack([image.expand(3, -1, -1) for image, _ in decoded]), size)
        pixels[start : start + 64] = piece.mul_(255).round_() if dtype == torch.uint8 else piece
    record = {
        "found": found, "returned": len(names), "crop": crop, "size": size, "split": split,
        "converted": dict(converted),
    }  # fmt: skip
    return ImageSet(pixels, names, "Galaxy Zoo (SDSS)", labels, record)


def _titles(paths: Sequence[str]) -> dict[str, str]:
    """Name each path as shortly as keeps all names apart: by stem, by path, or by path with its ending."""
    for name in (lambda path: path.stem, lambda path: str(path.with_suffix("")), str):
        titles = {path: name(PurePosixPath(path)) for path in paths}
        if len(set(titles.values())) == len(titles):
            break
    return titles


def _labels(root: Path, names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the group of each image from the labels.csv that lies highest, None without any."""
    tables = listing(root, ("labels.csv",), needed=False)
    paths = [path for path in tables if path.lower().rpartition("/")[2] == "labels.csv"]
    if not paths:
        return None
    path = min(paths, key=lambda path: (path.count("/"), path))
    wanted = "expected UTF-8 text with columns galaxy_id and group; correct it, or move it away"
    try:
        head, *lines = tables[path]().decode("utf-8-sig").splitlines()
        mark = max(",;\t", key=head.count)
        columns = [column.strip(' "').lower() for column in head.split(mark)]
        rows = list(csv.DictReader(lines, columns, delimiter=mark, skipinitialspace=True))
        pairs = {(row["galaxy_id"].strip(), row["group"].strip()) for row in rows}
    except (
        ValueError,
        KeyError,
        AttributeError,
        csv.Error,
    ) as error:  # no text, no such column, a row cut short
        raise ValueError(f"{path}: cannot be used ({error!r}); {wanted}") from error
    groups, known = defaultdict(set), set(names)
    for name, group in pairs:
        is_file = name not in known and name.lower().endswith(PICTURES)
        groups[name.rpartition(".")[0] if is_file else name] |= {group} - {""}
    if wrong := [name for name in names if len(groups[name]) != 1]:
        said = f"{len(wrong)} of {len(names)} images, such as {wrong[0]}, have no group or more than one"
        raise ValueError(f"{path}: {said}; {wanted}")
    return tuple(groups[name].pop() for name in names)


def first_radio(*, split: str = "train", size: int = 128, limit: int | None = None) -> ImageSet:
    """Read FIRST radio galaxies from the archive inside the installed `firstgalaxydata` package.

    The package is located, not imported: importing it would pull in torchvision and h5py. Its images
    are published with the noise clipped: their sky is exactly 0.

    split: "train", "valid", "test" or "all", the set's own: 1758, 200, 200 or 2158 images.
    size: side of the central square, pixels of 1.8 arcsec, at most 300; nothing is resampled.
    limit: keep only the first so many by right ascension as text, which mixes the classes.

    Returns one channel; labels are `RADIO_CLASSES`; names `RA_DEC_label_catalogue` in degrees. `record`
    counts the classes and the images without a single lit pixel. ModuleNotFoundError holds the install line.

    Becker, White & Helfand 1995, ApJ 450, 559; Griese et al. 2023, Data in Brief 47, 108974.
    """
    at_least(1, size=size, limit=1 if limit is None else limit)
    one_of("split", split, ("train", "valid", "test", "all"))
    found = importlib.util.find_spec("firstgalaxydata")
    place = Path(found.submodule_search_locations[0]) / "galaxy_data.zip" if found else None
    if place is None or not place.is_file():
        raise ModuleNotFoundError('FIRST needs firstgalaxydata; install it with: pip install "galnb[radio]"')
    files = {name: read for name, read in listing(place, PICTURES).items() if name.split("/")[1] == split}
    paths = sorted(files, key=lambda name: name.split("/")[-1])[:limit]
    pixels = torch.empty(len(paths), 1, size, size)  # a list to stack would need the memory twice
    for index, path in enumerate(paths):
        pixels[index] = decode(files[path], path, crop=size)[0]
    labels = tuple(path.split("/")[2] for path in paths)
    record = {
        "found": len(files), "returned": len(paths), "split": split, "size": size, "pixel_arcsec": 1.8,
        "classes": {label: labels.count(label) for label in RADIO_CLASSES},
        "empty": int((pixels.amax(dim=(1, 2, 3)) == 0).sum()),
    }  # fmt: skip
    names = tuple(Path(path).name.removesuffix(".png") for path in paths)
    return ImageSet(pixels, names, "VLA FIRST, 1.4 GHz (Radio Galaxy Dataset)", labels, record)


def galaxy10(path: str | Path, *, size: int = 64, limit: int | None = None) -> ImageSet:
    """Read a Galaxy10 file (SDSS, 69 x 69, or DECaLS, 256 x 256); "How to run" says where to get it.

    path: HDF5 with `images` (N, S, S, 3), bytes or floats in [0, 1], and `ans` (N,).
    size: side of a returned image, pixels, at most S: area average of the whole frame.
    limit: keep only the first so many.

    Returns RGB; labels are the classes of the file, "0" to "9". FileNotFoundError if there is no file,
    ValueError if it is no such file or holds another range, type or shape.
    """
    at_least(1, size=size, limit=1 if limit is None else limit)
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path}: no such file; "How to run" says where to get it')
    found, values, answers = read_hdf5(
        path, lambda file: (len(file["images"]), file["images"][:limit], file["ans"][:limit])
    )
    squares = values.ndim == 4 and values.shape[1:3] == (values.shape[2],) * 2 and values.shape[3] == 3
    low, high = values.min(), values.max()
    in_range = values.dtype == np.uint8 or (values.dtype.kind == "f" and 0 <= low <= high <= 1)
    if not (squares and in_range and answers.shape == values.shape[:1]):
        raise ValueError(
            f"{path}: got {values.dtype} {values.shape} from {low:g} to {high:g}, ans {answers.shape}; "
            "expected (N, S, S, 3), bytes or floats in [0, 1], and (N,); convert and save them anew"
        )
    if size > values.shape[1]:
        raise ValueError(f"size={size}: the images of {path} have only {values.shape[1]} pixels a side")
    pixels, largest = torch.empty(len(values), 3, size, size), 255 if values.dtype == np.uint8 else 1
    for start in range(0, len(values), 256):  # floats of the whole set would not fit a small machine
        part = torch.from_numpy(values[start : start + 256].astype(np.float32)).permute(0, 3, 1, 2) / largest
        pixels[start : start + 256] = area_average(part, size)
    names = tuple(f"galaxy10_{number:05d}" for number in range(len(pixels)))
    labels = tuple(str(answer.item()) for answer in answers)
    record = {"found": found, "returned": len(pixels), "size": size}
    return ImageSet(pixels, names, "Galaxy10 (Galaxy Zoo labels)", labels, record)


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

    paths: one or more FITS files, compressed or not, with (H, W) or (C, H, W) in the chosen HDU.
    size: side of the square, pixels; nothing is resampled.
    hdu: number or name of the header-data unit.
    stretch: "linear", t = (x - low) / (high - low) clipped to [0, 1], or "asinh", asinh(s t) / asinh(s)
        (Lupton et al. 2004, PASP 116, 133).
    limits: (low, high) in the unit of the file, for every file. None: for each file from one sigma below its
        sky to its 99.9th percentile.
    softening: the s of asinh, positive: from linear to logarithmic at 1/s of the range.

    `record["files"]` has, per file: limits, number of NaN pixels (shown at `low`, with a warning), sky level
    and noise, unit, and the celestial WCS cards moved to the cutout (None without, or if they cannot be
    used, with a warning). FileNotFoundError if there is no such file; ValueError if it is damaged, has no
    image in that HDU, only NaN or is too small.
    """
    at_least(1, size=size)
    if not 0 < softening < math.inf:
        raise ValueError(f"softening={softening}: expected a number above 0")
    one_of("stretch", stretch, _STRETCHES)
    paths = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not paths:
        raise ValueError("paths: got none, expected at least one FITS file")
    if limits is not None and not -math.inf < limits[0] < limits[1] < math.inf:
        raise ValueError(f"limits={limits}: expected (low, high) with low < high, in the unit of the file")
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{missing[0]}: no such file; check the path to the FITS image")
    how = {"size": size, "hdu": hdu, "stretch": stretch, "softening": softening}
    images, records = zip(*(_cutout(path, str(path), limits=limits, **how) for path in paths), strict=True)
    channels = {len(image) for image in images}
    if len(channels) > 1:
        raise ValueError(f"got files of {sorted(channels)} channels, expected the same in all")
    files = [{"file": path.name, **record} for path, record in zip(paths, records, strict=True)]
    how["softening"] = softening if stretch == "asinh" else None
    short = len({path.name for path in paths}) == len(paths)  # else two names would be equal
    names = tuple(path.name if short else path.as_posix() for path in paths)
    record = {"returned": len(images), **how, "files": files}
    return ImageSet(torch.stack(images), names, "FITS files", record=record)


_STRETCHES = {
    "asinh": lambda fraction, softening: np.arcsinh(softening * fraction) / np.arcsinh(softening),
    "linear": lambda fraction, softening: fraction,
}


def _cutout(
    source, name: str, *, size: int, hdu: int | str | None, stretch="asinh", softening=10.0, limits=None
) -> tuple[torch.Tensor, dict]:
    """Return the stretched central square (C, size, size) of one file and its record."""
    values, header = fits_image(source, name, hdu)
    height, width = values.shape[-2:]
    if min(height, width) < size:
        raise ValueError(f"{name}: got {width} x {height} pixels, expected at least {size} x {size}")
    values = central(values.reshape(-1, height, width), size).astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError(f"{name}: HDU {hdu!r} holds only NaN in its central {size} x {size} pixels")
    level, noise = sky_level(values)
    if limits is None:
        limits = level - noise, float(np.percentile(values[finite], 99.9))
    low, high = map(float, limits)
    high = high if high > low else low + 1.0  # a constant image shows as black
    if nan_pixels := int((~finite).sum()):
        said = f"{nan_pixels} of {finite.size} values are no finite numbers; they are shown as {low:.4g}"
        warnings.warn(f"{Path(name).name}: {said}", stacklevel=4)
    fraction = ((np.where(finite, values, low) - low) / (high - low)).clip(0, 1)
    record = {
        "nan_pixels": nan_pixels, "sky_level": level, "sky_noise": noise, "unit": header.get("BUNIT"),
        "wcs": cutout_wcs(name, header, (width - size) // 2, (height - size) // 2), "limits": [low, high],
    }  # fmt: skip
    return torch.from_numpy(_STRETCHES[stretch](fraction, softening)).float(), record


def read_upload(name: str, content: bytes, *, size: int = 80) -> torch.Tensor:
    """Turn an uploaded JPEG, PNG or FITS file into an image (3, size, size) in [0, 1] that the networks take.

    A picture is cut to its central square (of 424 px, a Galaxy Zoo frame, to 240) and shrunk by area; of the
    first FITS image the central pixels are taken and stretched by asinh. Grey becomes colour. The ValueError
    for a file that is no image, damaged, too large or too small says what to do.
    """
    if len(content) > LARGEST:
        raise ValueError(f"{name} has {len(content) / 1e6:.0f} MB; at most {LARGEST / 1e6:.0f} are read")
    if name.lower().endswith(PICTURES):
        whole, _ = decode(lambda: content, name, most=LARGEST)
        side = min(whole.shape[-2:])
        if side < size:
            raise ValueError(f"{name} is {side} px high or wide; give one of at least {size} x {size} px")
        pixels = area_average(central(whole, 240 if side == 424 else side), size)
    elif name.lower().endswith(FITS):
        file = io.BytesIO(content)
        file = gzip.GzipFile(fileobj=file) if content[:2] == b"\x1f\x8b" else file
        pixels, _ = _cutout(file, name, size=size, hdu=None)
    else:
        raise ValueError(f"{name} is of an unknown kind; upload one of {', '.join(PICTURES + FITS[:3])}")
    if len(pixels) not in (1, 3):
        raise ValueError(f"{name} has {len(pixels)} planes; expected 1 or 3")
    return pixels.expand(3, -1, -1).clone()
