"""Turn known galaxy sets, folders and FITS files into ``[0, 1]`` tensors with a record of their origin."""

import csv
import importlib.util
import io
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from galnb.fits import STRETCHES, read_fits
from galnb.hubble import find_sources, sky_level, why_dropped

SUFFIXES = (".jpg", ".jpeg", ".png")
RADIO_CLASSES = ("FRI", "FRII", "Compact", "Bent")
GALAXY_ZOO_TEST = 300  # the last 300 names, so that every chapter holds out the same galaxies


@dataclass(frozen=True)
class ImageSet:
    """Hold images of one origin.

    Parameters
    ----------
    pixels : torch.Tensor
        Shape (B, C, H, W), float32 in [0, 1].
    names : tuple of str
        One name per image, unique within the source.
    source : str
        Where the images come from, in words a caption can use.
    labels : tuple of str or None
        One class per image where the source has classes.
    record : dict
        Provenance, JSON-safe: counts, what was dropped and why, sky level, limits, WCS.

    Raises
    ------
    ValueError
        If pixels break the image convention, or names or labels do not match them one to one.

    Chapter: Galaxies as pixels
    """

    pixels: torch.Tensor
    names: tuple[str, ...]
    source: str
    labels: tuple[str, ...] | None = None
    record: dict = field(default_factory=dict)

    def __post_init__(self):
        check_images(self.pixels, name="pixels")
        for what, values in (("names", self.names), ("labels", self.labels)):
            if values is not None and len(values) != len(self.pixels):
                raise ValueError(
                    f"got {len(values)} {what} for {len(self.pixels)} images; give one per image"
                )

    def __len__(self) -> int:
        return len(self.pixels)


def check_images(images: torch.Tensor, *, name: str = "images") -> None:
    """Refuse anything that is not a batch of floating-point images in [0, 1].

    Parameters
    ----------
    images : torch.Tensor
        Expected shape (B, C, H, W) with every axis at least 1, floating dtype, finite, in [0, 1].
    name : str
        Name of the argument in the caller, for the message.

    Raises
    ------
    ValueError
        With what was given, what is expected and how to get there. A rounding error of 1e-5 is let pass.

    Chapter: Galaxies as pixels
    """
    if not isinstance(images, torch.Tensor):
        raise ValueError(
            f"{name}: got {type(images).__name__}, expected a torch.Tensor; use torch.from_numpy(...)"
        )
    if not images.is_floating_point():
        raise ValueError(
            f"{name}: got dtype {images.dtype}, expected floats in [0, 1]; from 8 bit use x.float() / 255"
        )
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"{name}: got shape {tuple(images.shape)}, expected (batch, channel, height, width), none 0; "
            "add a missing axis with x[None] or join images with torch.stack"
        )
    low, high = (float(value) for value in torch.aminmax(images.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name}: got NaN or infinite pixels, expected finite values; see torch.nan_to_num")
    if low < -1e-5 or high > 1 + 1e-5:
        raise ValueError(
            f"{name}: got values from {low:.4g} to {high:.4g}, expected [0, 1]; "
            "from [-1, 1] use (x + 1) / 2, from 0..255 divide by 255"
        )


def hubble_deep_field(
    *, size: int = 80, crop: int = 40, isolated: bool = True, limit: int | None = None
) -> ImageSet:
    """Cut stamps centred on galaxies out of the Hubble eXtreme Deep Field that comes with scikit-image.

    Parameters
    ----------
    size : int
        Side of a returned stamp, pixels.
    crop : int
        Side of the square cut from the 872 x 1000 field, pixels. The default doubles the scale (bicubic), as
        typical half-light radii are 3 to 6 px; ``crop=size`` keeps the field's own pixels.
    isolated : bool
        Drop stamps in which other sources hold more than a quarter of the light of the central one.
    limit : int or None
        Keep only the brightest so many.

    Returns
    -------
    ImageSet
        Brightest first; names ``hdf_<x>_<y>`` are field positions. ``record`` says how many sources were
        found, how many were dropped and for what, and how many remain, and holds sky level and noise.

    Notes
    -----
    Stars are told by their diffraction cross. A bright quasar-like point with faint arms stays in.
    Chapter: Galaxies as pixels
    """
    _check_sizes(size=size, crop=crop, limit=limit)
    from skimage import data

    field_rgb = data.hubble_deep_field().astype(np.float32) / 255
    luminance = field_rgb.mean(axis=2)
    level, noise = sky_level(luminance)
    segments, sources = find_sources(luminance - level, noise)
    dropped, kept = Counter(), []
    for source in sources:
        reason = why_dropped(source, field_rgb, luminance - level, segments, crop=crop, isolated=isolated)
        if reason is None:
            kept.append(source)
        else:
            dropped[reason] += 1
    remain = len(kept)
    if remain == 0:
        raise ValueError(f"crop={crop}: no stamp of the 872 x 1000 field fits; use a smaller crop")
    kept = sorted(kept, key=lambda source: -source.intensity_mean * source.area)[:limit]
    corners = [[round(centre) - crop // 2 for centre in source.centroid_weighted] for source in kept]
    stamps = np.stack([field_rgb[y : y + crop, x : x + crop].transpose(2, 0, 1) for y, x in corners])
    record = {
        "found": len(sources), "dropped": dict(dropped), "remain": remain, "returned": len(kept),
        "sky_level": level, "sky_noise": noise, "crop": crop, "size": size,
    }  # fmt: skip
    names = tuple(f"hdf_{x + crop // 2}_{y + crop // 2}" for y, x in corners)
    return ImageSet(
        _rescale(torch.from_numpy(stamps), size),
        names,
        "Hubble eXtreme Deep Field (scikit-image)",
        record=record,
    )


def _rescale(images: torch.Tensor, size: int) -> torch.Tensor:
    if size <= images.shape[-1]:
        return _area_average(images, size)
    return F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)


def galaxy_zoo(
    root: str | Path, *, size: int = 80, crop: int = 240, limit: int | None = None, split: str | None = None
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
    _check_sizes(size=size, crop=crop, limit=limit)
    if size > crop:
        raise ValueError(f"size={size} is larger than crop={crop}; averaging only shrinks: use size <= crop")
    if split not in (None, "train", "test"):
        raise ValueError(f"split={split!r}: expected None, 'train' or 'test'")
    files = _list_images(Path(root))
    names = sorted(files)
    if split is not None:
        if len(names) <= GALAXY_ZOO_TEST:
            raise ValueError(
                f"{root}: got {len(names)} images, expected more than {GALAXY_ZOO_TEST} to split"
            )
        names = names[-GALAXY_ZOO_TEST:] if split == "test" else names[:-GALAXY_ZOO_TEST]
    found, names = len(names), names[:limit]
    converted, pixels = Counter(), []
    for start in range(0, len(names), 64):  # one product per 64 images: many threads cost more than they give
        decoded = [_decode(files[name](), name, crop=crop) for name in names[start : start + 64]]
        converted.update(mode for _, mode in decoded if mode != "RGB")
        pixels.append(_area_average(torch.stack([image for image, _ in decoded]), size))
    stems = tuple(Path(name).stem for name in names)
    record = {
        "found": found, "returned": len(names), "crop": crop, "size": size, "split": split,
        "converted": dict(converted),
    }  # fmt: skip
    return ImageSet(torch.cat(pixels), stems, "Galaxy Zoo (SDSS)", _groups(Path(root), stems), record)


def _list_images(root: Path) -> dict[str, Callable[[], bytes]]:
    """Map each image's name inside a folder or zip to a function that reads its bytes."""
    if root.is_dir():
        files = {path.relative_to(root).as_posix(): path.read_bytes for path in root.rglob("*")}
    elif root.is_file():
        try:
            archive = zipfile.ZipFile(root)
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"{root}: got a file that is not a zip archive, expected a folder or a .zip"
            ) from error
        files = {name: partial(archive.read, name) for name in archive.namelist()}
    else:
        raise FileNotFoundError(
            f"{root}: no such folder or zip; give the place of the Galaxy Zoo JPEG images"
        )
    hidden = ("._", "__MACOSX")  # companions that macOS writes beside each file
    images = {
        name: read
        for name, read in files.items()
        if name.lower().endswith(SUFFIXES) and not any(part.startswith(hidden) for part in name.split("/"))
    }
    if not images:
        raise FileNotFoundError(
            f"{root}: holds none of {', '.join(SUFFIXES)}; give the folder with the images"
        )
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
    FileNotFoundError
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
    _check_sizes(size=size, limit=limit)
    if split not in ("train", "valid", "test", "all"):
        raise ValueError(f"split={split!r}: expected 'train', 'valid', 'test' or 'all'")
    found = importlib.util.find_spec("firstgalaxydata")
    place = Path(found.submodule_search_locations[0]) / "galaxy_data.zip" if found else None
    if place is None or not place.is_file():
        raise FileNotFoundError(
            'first_radio needs the package firstgalaxydata; install it with: pip install "galnb[radio]"'
        )
    files = {name: read for name, read in _list_images(place).items() if name.split("/")[1] == split}
    paths = sorted(files, key=lambda name: name.split("/")[-1])[:limit]
    images = [_decode(files[path](), path, crop=size, mode="L")[0] for path in paths]
    labels = tuple(path.split("/")[2] for path in paths)
    pixels = torch.stack(images)
    record = {
        "found": len(files), "returned": len(paths), "split": split, "size": size, "pixel_arcsec": 1.8,
        "classes": {label: labels.count(label) for label in RADIO_CLASSES},
        "empty": int((pixels.amax(dim=(1, 2, 3)) == 0).sum()),
    }  # fmt: skip
    names = tuple(Path(path).name.removesuffix(".png") for path in paths)
    return ImageSet(pixels, names, "VLA FIRST, 1.4 GHz (Radio Galaxy Dataset)", labels, record)


def galaxy10(path: str | Path, *, size: int = 64, limit: int | None = None) -> ImageSet:
    """Read a Galaxy10 file (SDSS, 69 x 69, or DECaLS, 256 x 256), fetched by ``galnb.fetch``.

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
    _check_sizes(size=size, limit=limit)
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Galaxy10 files need h5py; install it with: pip install "galnb[radio]"'
        ) from error
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path}: no such file; get it with fetch.fetch("galaxy10_sdss")')
    try:
        with h5py.File(path) as file:
            found, pixels, answers = len(file["images"]), file["images"][:limit], file["ans"][:limit]
    except (OSError, KeyError) as error:
        raise ValueError(
            f"{path}: not a Galaxy10 file ({error}), expected HDF5 with images and ans"
        ) from error
    if size > pixels.shape[1]:
        raise ValueError(
            f"size={size}: the images of {path} have {pixels.shape[1]} pixels; averaging only shrinks"
        )
    parts = torch.from_numpy(pixels).split(256)  # floats of the whole set would not fit a small machine
    images = torch.cat([_area_average(part.permute(0, 3, 1, 2).float() / 255, size) for part in parts])
    names = tuple(f"galaxy10_{number:05d}" for number in range(len(images)))
    record = {"found": found, "returned": len(images), "size": size}
    return ImageSet(
        images, names, "Galaxy10 (Galaxy Zoo labels)", tuple(str(answer) for answer in answers), record
    )


def fits_cutouts(
    paths: str | Path | Sequence[str | Path],
    *,
    size: int,
    hdu: int | str = 0,
    stretch: str = "asinh",
    limits: tuple[float, float] | None = None,
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
        ``t = (x - low) / (high - low)`` clipped to [0, 1], then as is, or ``asinh(10 t) / asinh(10)``.
    limits : (float, float) or None
        ``low, high`` in the unit of the file, for every file. None: for each file from one sigma below its
        sky to its 99.9th percentile.

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

    Notes
    -----
    Softening 10 is that of ``astropy.visualization.AsinhStretch(a=0.1)``. Chapter: Galaxies as pixels

    References
    ----------
    Lupton et al. 2004, PASP 116, 133 (asinh stretch).
    """
    _check_sizes(size=size)
    if stretch not in STRETCHES:
        raise ValueError(f"stretch={stretch!r}: expected one of {sorted(STRETCHES)}")
    paths = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not paths:
        raise ValueError("paths: got none, expected at least one FITS file")
    if limits is not None and not limits[0] < limits[1]:
        raise ValueError(f"limits={limits}: expected (low, high) with low < high, in the unit of the file")
    images, records = [], []
    for path in paths:
        values, record = read_fits(path, size=size, hdu=hdu)
        low, high = limits or record.pop("limits")
        filled = np.where(np.isfinite(values), values, low)
        images.append(torch.from_numpy(STRETCHES[stretch]((filled - low) / (high - low))).float())
        records.append({"file": path.name, **record, "limits": [float(low), float(high)]})
    channels = {len(image) for image in images}
    if len(channels) > 1:
        raise ValueError(
            f"got files of {sorted(channels)} channels, expected the same in all; read them apart"
        )
    record = {"returned": len(images), "size": size, "hdu": hdu, "stretch": stretch, "files": records}
    return ImageSet(torch.stack(images), tuple(path.name for path in paths), "FITS files", record=record)


def _check_sizes(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")


def _decode(data: bytes, name: str, *, crop: int, mode: str = "RGB") -> tuple[torch.Tensor, str]:
    """Decode the central square to (C, crop, crop) floats in [0, 1], and tell the mode that the file had."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels, original = np.asarray(image.convert(mode)), image.mode
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises each of these for some damage
        raise ValueError(f"{name}: not a readable image ({error}); remove or replace the file") from error
    height, width = pixels.shape[:2]
    if min(height, width) < crop:
        raise ValueError(f"{name}: got {width} x {height} pixels, expected at least {crop} x {crop}")
    top, left = (height - crop) // 2, (width - crop) // 2
    square = pixels[top : top + crop, left : left + crop].reshape(crop, crop, -1).transpose(2, 0, 1)
    return torch.from_numpy(square.astype(np.float32) / 255), original


def _area_average(images: torch.Tensor, size: int) -> torch.Tensor:
    """Shrink square images exactly: target pixel i is the mean over [i r, (i + 1) r], r = side / size."""
    side = images.shape[-1]
    if size == side:
        return images
    edges = torch.arange(size + 1, dtype=torch.float64) * side / size
    pixel = torch.arange(side, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    weights = (overlap.clamp(min=0) * size / side).to(images)
    return (weights @ images @ weights.T).clamp(0, 1)


SOURCES = {
    "hubble_deep_field": hubble_deep_field,
    "galaxy_zoo": galaxy_zoo,
    "first_radio": first_radio,
    "galaxy10": galaxy10,
    "fits_cutouts": fits_cutouts,
}
