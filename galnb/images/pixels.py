"""What an image of the book is: floats in `[0, 1]`, with a check at every door, and where its sky lies.

Chapter 01, Galaxies as pixels. Each estimator of the sky has its use: clipping needs a field of mostly sky,
the ring a stamp whose galaxy ends before its edge; patches tell noise from a neighbour at the border.
"""

import math
from dataclasses import dataclass, field

import numpy as np
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


_PARTS = 8  # a patch measures 1/8 of the shorter side ...
PATCHES = 16  # ... and the darkest 16 of the 28 patches along the border are taken for sky


def sky_level(image: np.ndarray | torch.Tensor, *, clip: float = 3.0) -> tuple[float, float]:
    """Measure level and noise of the sky (median, standard deviation) by sigma clipping.

    image: any shape and unit; NaN pixels are left out, only NaN is a ValueError.
    clip: pixels further than this many standard deviations from the median are dropped, until none are.
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().double()  # NumPy has no bfloat16
    values = np.asarray(image, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    if values.size == 0:
        raise ValueError("image: got no finite pixel, expected at least one; check the mask or the file")
    for _ in range(20):
        distance = np.abs(values - np.median(values))
        kept = values[distance <= clip * 1.4826 * np.median(distance)]  # 1.4826: from MAD to Gaussian sigma
        if kept.size == values.size:
            break
        values = kept
    return float(np.median(values)), float(values.std())


def ring_level(images: torch.Tensor) -> torch.Tensor:
    """Measure the median of the outermost ring of pixels of (B, C, H, W): (B, C, 1, 1)."""
    sides = [images[..., 0, :], images[..., -1, :], images[..., 1:-1, 0], images[..., 1:-1, -1]]
    ring = torch.cat(sides, -1).float()
    pieces = ring.split(max(1, 2**24 // ring[:1].numel()))  # quantile takes no more values at a time
    return torch.cat([piece.quantile(0.5, -1) for piece in pieces])[..., None, None]


def border_patches(images: torch.Tensor) -> torch.Tensor:
    """Cut out the darkest patches along the border of (K, C, H, W): (K, C, PATCHES, p, p), p = side / _PARTS.

    Images below 32 px are a ValueError.
    """
    if min(images.shape[-2:]) < 32:
        raise ValueError(f"got images of {tuple(images.shape[-2:])} px, the sky needs at least 32 x 32")
    images = images.float()
    p = min(images.shape[-2:]) // _PARTS
    rows, columns = images.shape[-2] // p, images.shape[-1] // p
    blocks = images[..., : rows * p, : columns * p].unflatten(-1, (columns, p)).unflatten(-3, (rows, p))
    edge = torch.ones(rows, columns, dtype=torch.bool, device=images.device)
    edge[1:-1, 1:-1] = False
    border = blocks.transpose(-3, -2)[:, :, edge]  # (K, C, patches along the border, p, p)
    darkest = border.mean((1, 3, 4)).argsort(1)[:, None, :PATCHES, None, None]
    return border.gather(2, darkest.expand(-1, border.shape[1], -1, p, p))


def border_noise(images: torch.Tensor) -> torch.Tensor:
    """Measure the noise of the sky of (K, C, H, W), at least 32 px: standard deviation (K, C).

    1.4826 times the median absolute deviation from the median of each of the `border_patches`.
    """
    patches = border_patches(images).flatten(3)
    return 1.4826 * (patches - patches.median(3, keepdim=True).values).abs().flatten(2).median(2).values
