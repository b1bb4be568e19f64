"""Compose a wide field from galaxy stamps and keep the truth: where each lies, how large and bright."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from numpy.lib import recfunctions
from torch.nn import functional as F

from galnb.evaluation.detection import detect, match
from galnb.files import replacing
from galnb.images.imageset import check_generator
from galnb.stamps import CutOut, blank, check_stamps, cut_out

__all__ = ["COMBINE", "Mosaic", "blank", "compose", "cut_out", "detect", "match", "write_fits"]

COLUMNS = np.dtype(
    [("x", "f8"), ("y", "f8"), ("radius", "f8"), ("flux", "f8"), ("source", "i4"), ("angle", "f8"),
     ("scale", "f8"), ("blank", "?")]
)  # fmt: skip
SDSS_PIXEL = 0.396  # arcsec; Galaxy Zoo's own cutouts have another scale for each galaxy


@dataclass(frozen=True)
class Mosaic:
    """Hold a field and the truth about it.

    Parameters
    ----------
    image : torch.Tensor, shape (3, H, W)
        Light and sky in [0, 1].
    catalogue : numpy.ndarray, structured, one row per placement
        ``x``, ``y``: centre of the light, px, (0, 0) = middle of the first pixel; ``radius``: half-light
        radius, px; ``flux``: light above the sky, mean of the channels summed over pixels, before clipping;
        ``source``: index of the stamp; ``angle``: turn from x to y, degrees; ``scale``: side in the field /
        side of the stamp; ``blank``: True for blank space, and for stamps in which nothing stands out.
    sky, noise : float
        Level and standard deviation of the sky in each channel.

    Notes
    -----
    Chapter: A sky of new galaxies
    """

    image: torch.Tensor
    catalogue: np.ndarray
    sky: float
    noise: float


def compose(
    galaxies: torch.Tensor,
    *,
    size: int | tuple[int, int],
    placements: int,
    generator: torch.Generator,
    blanks: Sequence[int] | torch.Tensor = (),
    blank_share: float | None = None,
    scales: tuple[float, float] = (0.25, 1.0),
    combine: str = "add",
    sky: float = 0.015,
    noise: float = 0.01,
) -> Mosaic:
    """Compose a wide field: galaxies at random places, turned at random, of random size, on one sky.

    Parameters
    ----------
    galaxies : torch.Tensor, shape (B, 3, S, S)
        Stamps in [0, 1].
    size : int or (int, int)
        Side, or height and width, of the field, px.
    placements : int
        How many times a stamp is placed.
    generator : torch.Generator
        CPU generator. Two fields of the same size, number of placements and seed have the same places,
        turns and sizes, whatever their galaxies.
    blanks : indices
        Stamps that serve as blank space, such as `blank` chooses.
    blank_share : float, optional
        Share of the placements that they get; by default their share of the stamps.
    scales : (float, float)
        Smallest and largest scale; its logarithm is uniform between them.
    combine : str
        How light meets light, of `COMBINE`: "add", as light does, or "maximum", as collages do.
    sky, noise : float
        Level and standard deviation of the sky; the defaults resemble Galaxy Zoo's at 64 px.

    Returns
    -------
    Mosaic

    Raises
    ------
    ValueError
        If the field is empty, a placement larger than the field, no galaxy left, or a value out of range.

    Notes
    -----
    Stamps bring no sky along (`cut_out`): sky and noise are drawn once for the whole field, after the light,
    so that neither jumps at a frame. A stamp is shrunk by whole halvings, then bilinearly by at most 2.
    The values are those of stretched JPEG images; their sum is a picture's, not a photometer's.

    Chapter: A sky of new galaxies
    """
    check_stamps(galaxies)
    check_generator(generator)
    size = _check_field(galaxies, size, placements, scales, combine, (sky, noise))
    galaxy = _galaxies_but(blanks, len(galaxies))
    if not galaxy.any() or not 0 <= (blank_share or 0) <= (0 if galaxy.all() else 1):
        raise ValueError(
            f"got {int(galaxy.sum())} galaxies, {int((~galaxy).sum())} blank stamps and blank_share "
            f"{blank_share}; expected a galaxy at least, a share in [0, 1], blank stamps if it is above 0"
        )
    share = 1 - float(galaxy.float().mean()) if blank_share is None else blank_share
    cut = cut_out(galaxies)
    catalogue = _place(cut, galaxy, share, size, placements, scales, generator)
    image = torch.zeros(3, *size)
    _add_light(image, cut.light, catalogue, COMBINE[combine])
    for band in image.split(256, dim=1):  # in place: a second field would cost as much as the first
        band.add_(torch.randn(band.shape, generator=generator), alpha=noise).add_(sky).clamp_(0, 1)
    middle, turn = np.stack([catalogue["x"], catalogue["y"]]), np.exp(1j * np.deg2rad(catalogue["angle"]))
    offset = cut.centres.double().numpy()[catalogue["source"]]
    shift = catalogue["scale"] * turn * (offset[:, 0] + 1j * offset[:, 1])
    catalogue["x"], catalogue["y"] = middle + np.stack([shift.real, shift.imag])
    return Mosaic(image, catalogue, sky, noise)


def _galaxies_but(blanks, count: int) -> torch.Tensor:
    rows = torch.as_tensor(blanks)
    whole = not (rows.dtype == torch.bool or rows.is_floating_point())
    if rows.numel() and not (whole and int(rows.min()) >= 0 and int(rows.max()) < count):
        raise ValueError(
            f"blanks is {blanks}; expected indices of stamps, 0 to {count - 1}; of a mask take "
            "mask.nonzero()[:, 0]"
        )
    galaxy = torch.ones(count, dtype=torch.bool)
    galaxy[rows.long()] = False
    return galaxy


def _check_field(galaxies, size, placements, scales, combine, sky_and_noise) -> tuple[int, int]:
    size = tuple(size) if np.ndim(size) else (size, size)
    whole = [isinstance(number, Integral) and number >= 1 for number in (*size, placements)]
    if len(size) != 2 or not all(whole):
        raise ValueError(f"got size {size} and {placements} placements; expected a field and at least one")
    if np.shape(scales) != (2,) or not 0 < scales[0] <= scales[1]:
        raise ValueError(f"got scales {scales}; expected two, 0 < smallest <= largest")
    largest = scales[1] * galaxies.shape[-1]
    if largest > min(size):
        raise ValueError(
            f"stamps of up to {largest:.0f} px do not fit a field of {size} px; take a larger field, smaller "
            "scales or smaller stamps"
        )
    if combine not in COMBINE:
        raise ValueError(f"combine is {combine!r}; expected one of {sorted(COMBINE)}")
    if not (0 <= sky_and_noise[0] <= 1 and 0 <= sky_and_noise[1] <= 1):
        raise ValueError(f"got sky and noise {sky_and_noise}; expected both in [0, 1]")
    return int(size[0]), int(size[1])


def _place(cut: CutOut, galaxy, share, size, placements, scales, generator) -> np.ndarray:
    """Draw the catalogue; x and y are those of the stamps' middles still, flux is empty."""
    kind, which, x, y, angle, scale = torch.rand(placements, 6, generator=generator, dtype=torch.float64).T
    groups = [torch.where(galaxy)[0], torch.where(~galaxy)[0]]
    picked = [group[(which * len(group)).long().clamp(max=len(group) - 1)] for group in groups if len(group)]
    source = torch.where(kind < share, picked[-1], picked[0])
    catalogue = np.zeros(placements, COLUMNS)
    catalogue["source"], catalogue["angle"] = source, 360 * angle
    catalogue["scale"] = scales[0] * (scales[1] / scales[0]) ** scale
    half = catalogue["scale"] * cut.light.shape[-1] / 2
    for name, drawn, length in (("y", y, size[0]), ("x", x, size[1])):
        catalogue[name] = half + drawn.numpy() * (length - 2 * half) - 0.5
    catalogue["radius"] = cut.radii[source].numpy() * catalogue["scale"]
    catalogue["blank"] = ~(galaxy & (cut.radii > 0))[source]
    return catalogue


def _add_light(image: torch.Tensor, light: torch.Tensor, catalogue: np.ndarray, combine) -> None:
    """Warp stamps to their places in batches of one box size, add them, and fill in the fluxes."""
    side, levels = light.shape[-1], [light]
    halvings = np.floor(-np.log2(catalogue["scale"]) + 1e-9).clip(0).astype(int)
    while len(levels) <= halvings.max() and levels[-1].shape[-1] >= 8:
        odd = levels[-1].shape[-1] % 2
        levels.append(F.avg_pool2d(F.pad(levels[-1], (0, odd, 0, odd)), 2))
    halvings = halvings.clip(max=len(levels) - 1)
    boxes = 8 * np.ceil((catalogue["scale"] * side + 2) / 8).astype(int)
    for box, level in np.unique(np.stack([boxes, halvings], 1), axis=0):
        rows = np.where((boxes == box) & (halvings == level))[0]
        for part in np.array_split(rows, -(-len(rows) // 256)):
            tiles, corners = _warp(levels[level], side, int(level), catalogue[part], box)
            catalogue["flux"][part] = tiles.mean(1).sum((1, 2)).numpy()
            for tile, (x, y) in zip(tiles, corners.tolist(), strict=True):
                left, top = max(-x, 0), max(-y, 0)  # the box, not the light, may leave the field
                patch = image[:, y + top : y + box, x + left : x + box]
                combine(patch, tile[:, top : top + patch.shape[1], left : left + patch.shape[2]], out=patch)


def _warp(
    stamps: torch.Tensor, side: int, level: int, rows: np.ndarray, box: int
) -> tuple[torch.Tensor, np.ndarray]:
    """Return the light (K, 3, box, box) and the field's pixel (x, y) that each box begins at.

    `stamps` have been halved `level` times; their side was `side`.
    """
    middle = np.stack([rows["x"], rows["y"]], 1)
    corners = np.rint(middle - (box - 1) / 2).astype(int)
    off = corners + (box - 1) / 2 - middle  # from the middle of the stamp to that of the box
    angle, step = np.deg2rad(rows["angle"]), 2 / (side * rows["scale"])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    back = np.moveaxis(step * turn, -1, 0)  # (K, 2, 2): field px to stamp coordinates in [-1, 1]
    theta = np.concatenate([back * box / 2, back @ off[..., None]], 2)
    share = side / (stamps.shape[-1] << level)  # below 1 where an odd side was padded before it was halved
    theta *= share
    theta[:, :, 2] += share - 1
    theta = torch.from_numpy(theta.astype(np.float32))
    grid = F.affine_grid(theta, (len(rows), 3, box, box), align_corners=False)
    chosen = stamps[torch.from_numpy(rows["source"].astype(np.int64))]
    return F.grid_sample(chosen, grid, align_corners=False), corners


def write_fits(
    path: str | Path,
    mosaic: Mosaic,
    *,
    centre: tuple[float, float] = (150.1, 2.2),
    pixel_scale: float = SDSS_PIXEL,
) -> Path:
    """Write a field and its catalogue as a FITS file with sky coordinates.

    Parameters
    ----------
    path : str or pathlib.Path
        The file to write, as a whole or not at all.
    mosaic : Mosaic
        What to write.
    centre : (float, float)
        Right ascension and declination of the middle of the field, degrees; the default is the COSMOS field.
    pixel_scale : float
        Arcsec per pixel; the default is that of the SDSS camera.

    Returns
    -------
    pathlib.Path
        The file: the image (3, H, W) in the first unit, the table CATALOGUE with the columns of the catalogue
        and ``ra``, ``dec`` in the second.

    Raises
    ------
    ValueError, ModuleNotFoundError
        If centre or scale are impossible; without astropy.

    Notes
    -----
    Tangent (gnomonic) projection; x grows to the west, y to the north. The sky is invented, its place too.

    Chapter: A sky of new galaxies
    """
    if not (0 <= centre[0] < 360 and -90 <= centre[1] <= 90 and 0 < pixel_scale < 60):
        raise ValueError(
            f"got centre {centre} and pixel_scale {pixel_scale}; expected degrees (RA in [0, 360), Dec in "
            "[-90, 90]) and arcsec between 0 and 60"
        )
    try:
        from astropy.io import fits
        from astropy.wcs import WCS
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('FITS needs astropy; install it with: pip install "galnb[sky]"') from error
    path, wcs = Path(path), WCS(naxis=2)
    height, width = mosaic.image.shape[-2:]
    wcs.wcs.ctype, wcs.wcs.cunit = ["RA---TAN", "DEC--TAN"], ["deg", "deg"]
    wcs.wcs.crval, wcs.wcs.crpix = centre, [(width + 1) / 2, (height + 1) / 2]  # FITS counts from 1
    wcs.wcs.cdelt = [-pixel_scale / 3600, pixel_scale / 3600]
    table = recfunctions.append_fields(
        mosaic.catalogue,
        ["ra", "dec"],
        wcs.wcs_pix2world(mosaic.catalogue["x"], mosaic.catalogue["y"], 0),
        usemask=False,
    )
    header = wcs.to_header()
    header["SKYLEVEL"], header["SKYNOISE"] = mosaic.sky, mosaic.noise
    units = fits.HDUList(
        [fits.PrimaryHDU(mosaic.image.numpy(), header), fits.BinTableHDU(table, name="CATALOGUE")]
    )
    with replacing(path) as file:
        units.writeto(file)
    return path


COMBINE = {"add": torch.add, "maximum": torch.maximum}
