"""What every image of the book is: a set of floats in `[0, 1]`, and the check at every door.

Chapter 01, Galaxies as pixels.
"""

import math
from dataclasses import dataclass, field

import torch

COLOURS = (1, 3, 4)  # channels that a picture can have


@dataclass(frozen=True)
class ImageSet:
    """Hold images of one origin.

    pixels: (B, C, H, W), float32 in [0, 1] (floats are converted); or uint8 in 0..255, for large frames.
    names: one per image, unique within the source.
    source: where the images come from, in words a caption can use.
    labels: one class per image where the source has classes, else None.
    record: provenance, JSON-safe: counts, what was dropped and why, sky level, limits, WCS.
    """

    pixels: torch.Tensor
    names: tuple[str, ...]
    source: str
    labels: tuple[str, ...] | None = None
    record: dict = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "pixels", check_images(self.pixels, name="pixels", frames=True))
        for what, values in (("names", self.names), ("labels", self.labels)):
            if values is not None and len(values) != len(self.pixels):
                raise ValueError(f"got {len(values)} {what} for {len(self.pixels)} images; expected one each")

    def __len__(self) -> int:
        return len(self.pixels)


def check_images(images: torch.Tensor, *, name: str = "images", frames: bool = False) -> torch.Tensor:
    """Return a batch of images as float32; refuse what is none, and say how to get there.

    images: (B, C, H, W), no axis empty, any floating dtype, finite, in [0, 1] up to a rounding error of 1e-5.
    name: of the argument in the caller, for the message of the ValueError.
    frames: let bytes in 0..255 pass as they are; as floats, thousands of large frames would fill the memory.
    """
    if frames and getattr(images, "dtype", None) == torch.uint8:
        check_images((images[:1] if images.ndim == 4 else images) / 255, name=name)
        return images
    if not isinstance(images, torch.Tensor):
        hint = f"{type(images).__name__}, expected a torch.Tensor; " + _way_to_tensor(images)
    elif not images.is_floating_point():
        hint = f"dtype {images.dtype}, expected floats in [0, 1]; from 8 bit use x.float() / 255"
    elif images.ndim != 4 or 0 in images.shape:
        hint = (
            f"shape {tuple(images.shape)}, expected (batch, channel, height, width), none 0; "
            "add a missing axis with x[None] or join images with torch.stack"
        )
    elif min(images.shape[1:3]) > max(COLOURS) and images.shape[3] in COLOURS:
        hint = (
            f"shape {tuple(images.shape)}, expected (batch, channel, height, width); "
            "channels seem to stand last: use x.permute(0, 3, 1, 2)"
        )
    else:
        images = images.float()
        low, high = (float(value) for value in torch.aminmax(images.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            hint = "NaN or infinite pixels, expected finite values; see torch.nan_to_num"
        elif low < -1e-5 or high > 1 + 1e-5:
            hint = (
                f"values from {low:.4g} to {high:.4g}, expected [0, 1]; "
                "from [-1, 1] use (x + 1) / 2, from 0..255 divide by 255"
            )
        else:
            return images
    raise ValueError(f"{name}: got {hint}")


def _way_to_tensor(images) -> str:
    if isinstance(getattr(images, "pixels", None), torch.Tensor):
        return "give its .pixels"
    if isinstance(images, (list, tuple)):
        return "join the images with torch.stack(...)"
    if len(getattr(images, "shape", ())) == 4 and images.shape[-1] in COLOURS:
        return "channels seem to stand last: use torch.from_numpy(...).permute(0, 3, 1, 2)"
    return "use torch.from_numpy(...)"


def area_average(images: torch.Tensor, size: int) -> torch.Tensor:
    """Shrink squares (..., S, S): target pixel i is the mean over [i r, (i + 1) r], r = S / size >= 1."""
    side = images.shape[-1]
    if size == side:
        return images
    if images.shape[-2] != side or not 1 <= size <= side or not images.is_floating_point():
        raise ValueError(
            f"images: got {images.dtype} of {tuple(images.shape)} and size {size}, expected floats, squares "
            "and a size from 1 to their side; averaging only shrinks"
        )
    edges = torch.arange(size + 1, dtype=torch.float64) * side / size
    pixel = torch.arange(side, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    weights = (overlap.clamp(min=0) * size / side).to(images)
    return (weights @ images @ weights.T).clamp(0, 1)
