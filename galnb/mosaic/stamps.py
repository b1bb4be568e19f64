"""Cut galaxies out of their stamps, without sky and without a frame."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from galnb.images import check_images


@dataclass(frozen=True)
class CutOut:
    """Hold galaxies without their sky.

    light: (B, 3, S, S), above the sky, within the footprint.
    footprints: (B, 1, S, S), weights in [0, 1], 0 at the frame.
    centres: (B, 2), centre of the light, x and y from the middle of the stamp, px.
    radii: (B,), half-light radius, px; 0 where nothing stands out.
    """

    light: torch.Tensor
    footprints: torch.Tensor
    centres: torch.Tensor
    radii: torch.Tensor


def cut_out(galaxies: torch.Tensor) -> CutOut:
    """Cut the central galaxy out of each stamp: subtract its sky, keep the light in a soft footprint.

    galaxies: (B, 3, S, S) in [0, 1], at least 16 px.

    The footprint is the connected region, of those above 3 deviations of the smoothed sky, that holds most
    light near the middle. Sky and deviation are median and 1.4826 MAD of the outermost S/16 px, smoothed by
    1.5 px for the latter. The footprint is blurred and falls to 0 within the circle that the frame encloses,
    so that neither the stamp's sky nor its noise ends at a line.
    """
    check_stamps(galaxies)
    parts = [_cut(part.float().cpu()) for part in galaxies.detach().split(256)]  # bounds the memory
    return CutOut(*map(torch.cat, zip(*parts, strict=True)))


def check_stamps(galaxies: torch.Tensor) -> None:
    """Refuse what is not a batch of square colour images (B, 3, S, S) of 16 px or more."""
    check_images(galaxies, name="galaxies", channels=3)
    height, width = galaxies.shape[2:]
    if height != width or width < 16:
        raise ValueError(f"got stamps of {height} x {width} px, expected squares of 16 px or more")


def _cut(galaxies: torch.Tensor) -> tuple[torch.Tensor, ...]:
    side = galaxies.shape[-1]
    place = torch.arange(side) - (side - 1) / 2
    far = place.abs() > side / 2 - side // 16
    edge = far | far[:, None]
    light = galaxies - galaxies[..., edge].median(-1).values[..., None, None]
    smooth = torch.from_numpy(ndimage.gaussian_filter(light.mean(1).numpy(), (0, 1.5, 1.5)))
    sky = smooth[:, edge]
    level = sky.median(1).values[:, None]
    spread = (1.4826 * (sky - level).abs().median(1).values[:, None]).clamp_min(1 / 255)
    above = smooth - level[..., None] > 3 * spread[..., None]
    distance = torch.hypot(place[:, None], place)
    nearby = smooth.clamp_min(0) * torch.exp(-0.5 * (distance / (side / 8)) ** 2)
    core = _heaviest_region(above.numpy(), nearby.numpy())
    wide = ndimage.gaussian_filter(core.astype(np.float32), (0, 3, 3))
    # 4 w: full weight in the region and 2 px beyond it, fading over the next 5 px
    circle = ((side / 2 - 0.5 - distance) / (side / 8)).clamp(0, 1)
    footprints = (torch.from_numpy(4 * wide).clamp(0, 1) * circle.square() * (3 - 2 * circle))[:, None]
    light = light * footprints
    return light, footprints, *_centre_and_radius(light.mean(1).clamp_min(0), place)


def _heaviest_region(above: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the connected region of each mask (B, S, S) with the largest sum of weights, one of equals."""
    within = np.zeros((3, 3, 3), bool)
    within[1] = True  # neighbours in the same image only
    regions, count = ndimage.label(above, within)
    sums = np.bincount(regions.ravel(), weights.ravel(), count + 1)
    sums[0] = -1  # what is not above the sky is no region
    flat = regions.reshape(len(regions), -1)
    best = np.take_along_axis(flat, sums[flat].argmax(1)[:, None], 1)
    return (regions > 0) & (regions == best[..., None])


def _centre_and_radius(light: torch.Tensor, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    total = light.sum((1, 2)).clamp_min(1e-12)
    x, y = (light.sum(axis) @ place / total for axis in (1, 2))
    distance = torch.hypot(place[:, None] - y[:, None, None], place - x[:, None, None]).flatten(1)
    ordered, order = distance.sort(1)
    grown = light.flatten(1).gather(1, order).cumsum(1)
    half = (grown < total[:, None] / 2).sum(1, keepdim=True).clamp(max=grown.shape[1] - 1)
    radii = ordered.gather(1, half)[:, 0] * (light.amax((1, 2)) > 0)
    return torch.stack([x, y], 1), radii
