"""Turn a file that somebody uploads into an image that the networks take, or say what is wrong with it."""

import io
import math
import tempfile
from pathlib import Path

import torch

from galnb.images import _decode, fits_cutouts
from galnb.images.imageset import area_average

LARGEST = 50e6  # bytes, and pixels
PICTURES, FITS = (".jpg", ".jpeg", ".png"), (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz")


def read_upload(name: str, content: bytes, *, size: int = 80) -> torch.Tensor:
    """Turn an uploaded file into an image that the networks take.

    Parameters
    ----------
    name : str
        File name; its ending says JPEG, PNG or FITS.
    content : bytes
        The file.
    size : int
        Side of the image, pixels.

    Returns
    -------
    torch.Tensor, shape (3, size, size)
        In [0, 1]. A picture is cut to its central square (of 424 px, a Galaxy Zoo frame, to 240) and shrunk
        by area; of a FITS image the central pixels are taken and stretched by asinh. Grey becomes colour.

    Raises
    ------
    ValueError
        If the file is no such image, damaged, too large or too small; the message says what to do.

    Notes
    -----
    Chapter: The explorer
    """
    if len(content) > LARGEST:
        raise ValueError(f"{name} has {len(content) / 1e6:.0f} MB; at most {LARGEST / 1e6:.0f} are read")
    if name.lower().endswith(PICTURES):
        side = _shorter_side(name, content)
        if side < size:
            raise ValueError(
                f"{name} is {side} px high or wide; give an image of at least {size} x {size} px"
            )
        square, _ = _decode(lambda: content, name, crop=240 if side == 424 else side)
        return area_average(square, size)
    if name.lower().endswith(FITS):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            path.write_bytes(content)
            try:
                pixels = fits_cutouts(path, size=size).pixels[0]
            except (ValueError, OSError) as error:
                raise ValueError(str(error).replace(f"{folder}/", "")) from error
        if len(pixels) not in (1, 3):
            raise ValueError(f"{name} has {len(pixels)} planes; expected 1 or 3")
        return pixels.expand(3, -1, -1).clone()
    raise ValueError(f"{name} is of an unknown kind; upload one of {', '.join(PICTURES + FITS[:3])}")


def _shorter_side(name: str, content: bytes) -> int:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        width = height = math.inf
    except (OSError, SyntaxError, ValueError) as error:  # UnidentifiedImageError is an OSError
        raise ValueError(f"{name} is damaged or no image, whatever its name says; choose another") from error
    if width * height > LARGEST:
        raise ValueError(f"{name} has too many pixels; shrink it below {LARGEST:.0f} first")
    return min(width, height)
