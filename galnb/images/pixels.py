"""What an image of the book is: floats in `[0, 1]`, with a check at every door, and where its sky lies.

Chapter 01, Galaxies as pixels. Each estimator of the sky has its use: clipping needs a field of mostly sky,
the ring a stamp whose galaxy ends before its edge; patches leave out a neighbour at the border.
"""

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


def check_images(
    images: torch.Tensor, *, name: str = "images", frames: bool = False, channels: int | None = None
) -> torch.Tensor:
    """Return a batch of images as float32; refuse what is none, and say how to get there.

    images: (B, C, H, W), no axis empty, any floating dtype, finite, in [0, 1] up to a rounding error of 1e-5.
    name: of the argument in the caller, for the message of the ValueError.
    frames: let bytes in 0..255 pass as they are; as floats, thousands of large frames would fill the memory.
    channels: how many there must be, 1 (grey) or 3 (colour); any number without it.
    """
    shape, kind = tuple(getattr(images, "shape", ())), type(images).__name__
    last = len(shape) == 4 and shape[3] in COLOURS and min(shape[1:3]) > max(COLOURS)
    turn = "channels seem to stand last: use x.permute(0, 3, 1, 2)"
    if not isinstance(images, torch.Tensor):
        way = "give its .pixels" if hasattr(images, "pixels") else "use torch.from_numpy or torch.stack"
        hint = f"{kind}, expected a torch.Tensor; {way}{'; ' + turn if last else ''}"
    elif not (images.is_floating_point() or (frames and images.dtype == torch.uint8)):
        hint = f"dtype {images.dtype}, expected floats in [0, 1]; from 8 bit use x.float() / 255"
    elif len(shape) != 4 or 0 in shape or last:
        way = turn if last else "add a missing axis with x[None] or join images with torch.stack"
        hint = f"shape {shape}, expected (batch, channel, height, width), none 0; {way}"
    elif channels not in (None, shape[1]):
        way = "x.mean(1, keepdim=True)" if channels == 1 else "x.expand(-1, 3, -1, -1), if it is grey"
        hint = f"shape {shape}, expected {channels} channel{'s' * (channels > 1)}; use {way}"
    elif images.dtype == torch.uint8:
        return images
    else:
        images = images.float()
        low, high = (float(value) for value in torch.aminmax(images.detach()))
        if low >= -1e-5 and high <= 1 + 1e-5:
            return images
        way = "from [-1, 1] use (x + 1) / 2, from 0..255 divide by 255, for NaN see torch.nan_to_num"
        hint = f"values from {low:.4g} to {high:.4g}, expected [0, 1]; {way}"
    raise ValueError(f"{name}: got {hint}")


def area_average(images: torch.Tensor, size: int) -> torch.Tensor:
    """Shrink squares (..., S, S): target pixel i is the mean over [i r, (i + 1) r], r = S / size >= 1."""
    side = images.shape[-1]
    if size == side:
        return images
    if images.shape[-2] != side or not 1 <= size <= side or not images.is_floating_point():
        given = f"size={size} for images of {images.dtype} and shape {tuple(images.shape)}"
        raise ValueError(f"{given}: expected floats, squares and at most their side; averaging only shrinks")
    edges = torch.arange(size + 1, dtype=torch.float64) * side / size
    pixel = torch.arange(side, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    weights = (overlap.clamp(min=0) * size / side).to(images)
    return (weights @ images @ weights.T).clamp(0, 1)


PATCHES = 16  # so many of the 28 patches along the border, the darkest, are taken for sky


def sky_level(image: np.ndarray | torch.Tensor) -> tuple[float, float]:
    """Measure level and noise of the sky (median, standard deviation) by sigma clipping.

    image: any shape and unit; NaN pixels are left out, only NaN is a ValueError. Pixels further than three
    standard deviations from the median are dropped, until none are.
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().double()  # NumPy has no bfloat16
    values = np.asarray(image, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    if values.size == 0:
        raise ValueError("image: got no finite pixel, expected at least one; check the mask or the file")
    for _ in range(20):
        distance = np.abs(values - np.median(values))
        kept = values[distance <= 3 * 1.4826 * np.median(distance)]  # 1.4826: from MAD to Gaussian sigma
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
    """Cut the darkest patches, side p = 1/8, out of the border of (K, C, H, W): (K, C, PATCHES, p, p)."""
    p = min(images.shape[-2:]) // 8
    if p < 4:
        raise ValueError(f"got images of {tuple(images.shape[-2:])} px, the sky needs at least 32 x 32")
    blocks = images.float().unfold(2, p, p).unfold(3, p, p)  # (K, C, rows, columns, p, p)
    edge = torch.ones(blocks.shape[2:4], dtype=torch.bool, device=images.device)
    edge[1:-1, 1:-1] = False
    border = blocks[:, :, edge]  # (K, C, patches along the border, p, p)
    darkest = border.mean((1, 3, 4)).argsort(1)[:, None, :PATCHES, None, None]
    return border.gather(2, darkest.expand(-1, border.shape[1], -1, p, p))


def border_noise(images: torch.Tensor) -> torch.Tensor:
    """Measure the noise of the sky of (K, C, H, W), at least 32 px: standard deviation (K, C).

    1.4826 times the median absolute deviation from the median of each of the `border_patches`.
    """
    patches = border_patches(images).flatten(3)
    return 1.4826 * (patches - patches.median(3, keepdim=True).values).abs().flatten(2).median(2).values
