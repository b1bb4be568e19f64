"""The image convention of the package: a set of float images in [0, 1], and the check at every door."""

import math
from dataclasses import dataclass, field
from numbers import Integral

import torch


@dataclass(frozen=True)
class ImageSet:
    """Hold images of one origin.

    Parameters
    ----------
    pixels : torch.Tensor
        Shape (B, C, H, W), float32 in [0, 1]; or uint8 in 0..255, to keep thousands of large frames.
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
        as_bytes = isinstance(self.pixels, torch.Tensor) and self.pixels.dtype == torch.uint8
        check_images(self.pixels[:1].float() / 255 if as_bytes else self.pixels, name="pixels")
        for what, values in (("names", self.names), ("labels", self.labels)):
            if values is not None and len(values) != len(self.pixels):
                raise ValueError(f"got {len(values)} {what} for {len(self.pixels)} images; expected one each")

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


def check_sizes(**values: int | None) -> None:
    """Refuse any named value that is neither None nor a whole number of at least 1.

    Chapter: Galaxies as pixels
    """
    for name, value in values.items():
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")


def check_generator(generator: torch.Generator) -> None:
    """Refuse anything but a random generator: None would draw from the state that all of PyTorch shares.

    Chapter: Galaxies as pixels
    """
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator is {generator!r}; expected a torch.Generator such as torch.Generator().manual_seed(0)"
        )


def area_average(images: torch.Tensor, size: int) -> torch.Tensor:
    """Shrink square images (..., S, S): target pixel i is the mean over [i r, (i + 1) r], r = S / size.

    Chapter: Galaxies as pixels
    """
    side = images.shape[-1]
    if size == side:
        return images
    edges = torch.arange(size + 1, dtype=torch.float64) * side / size
    pixel = torch.arange(side, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    weights = (overlap.clamp(min=0) * size / side).to(images)
    return (weights @ images @ weights.T).clamp(0, 1)
