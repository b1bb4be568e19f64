"""Measure how close one image is to another: pixels, structure, and what an astronomer would measure.

Chapters 03 to 07. Images are floats (..., C, H, W) of any precision, at least one batch axis in front; every
figure is one float32 per image, (...), so that `Blends.galaxies` (B, N, C, H, W) give (B, N). Half precision
is computed in float32; float64 stays. A `ValueError` names shapes that differ, values that are not finite and
those that spread wider than `data_range` (largest minus smallest possible value, 1 for [0, 1]).
"""

import math
from numbers import Real

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from galnb import checks

DETECTION_KERNEL = ((1, 2, 1), (2, 4, 2), (1, 2, 1))  # SourceExtractor's default filter
RING = 5  # px along the border that count as sky
LEAST_NOISE = 0.003  # of the sum of the channels: less is the grain of 8 bits
WINDOW = 7  # px, side of the windows of SSIM


def psnr(a: torch.Tensor, b: torch.Tensor, *, data_range: float) -> torch.Tensor:
    """Compute the peak signal-to-noise ratio of each pair: 10 log10(data_range² / mean squared error), in dB.

    Infinite where both images are equal, by definition.
    """
    a, b = _comparable(a, b, data_range=data_range)
    error = (a - b).square().mean((-3, -2, -1), dtype=torch.float64)
    return (10 * torch.log10(data_range**2 / error)).float()


def ssim(a: torch.Tensor, b: torch.Tensor, *, data_range: float) -> torch.Tensor:
    """Compute the mean structural similarity of each pair: at most 1, exactly that for equal images.

    data_range: too wide a one makes every pair look alike.
    Equation 13 of Wang, Bovik, Sheikh & Simoncelli (2004), IEEE Trans. Image Processing 13, 600, with uniform
    7 x 7 windows, sample covariances, K1 = 0.01, K2 = 0.03, averaged over channels and over the windows
    inside the image: the defaults of skimage.metrics.structural_similarity. Noise counts as structure, so
    read PSNR beside it.
    """
    a, b = _comparable(a, b, data_range=data_range)
    if min(a.shape[-2:]) < WINDOW:
        raise ValueError(f"got images of {tuple(a.shape[-2:])} px; expected {WINDOW} or more a side")
    lead, a, b = a.shape[:-3], a.flatten(0, -4), b.flatten(0, -4)
    pairs = zip(a.split(16), b.split(16), strict=True)  # 16 fit into the cache
    found = torch.cat([_ssim(x, y, data_range) for x, y in pairs])
    close = found > 1 - 1e-4  # of equal images, too, which rounding leaves beside 1
    found[close] = found[close].masked_fill((a[close] == b[close]).flatten(1).all(1), 1)
    return found.reshape(lead).float()


def _ssim(x: torch.Tensor, y: torch.Tensor, data_range: float) -> torch.Tensor:
    rows, columns = (  # (positions, pixels): the mean over a window as two products of matrices
        torch.eye(size, dtype=x.dtype, device=x.device).unfold(0, WINDOW, 1).sum(-1) / WINDOW
        for size in x.shape[-2:]
    )

    def mean(values: torch.Tensor) -> torch.Tensor:
        return rows @ values @ columns.T

    # without the common level, because differences of large squares lose digits
    level = (x + y).mean((-3, -2, -1), keepdim=True) / 2
    x, y = x - level, y - level
    mean_x, mean_y = mean(x), mean(y)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    covariance = unbiased * (mean(x * y) - mean_x * mean_y)
    variances = unbiased * (mean(x.square() + y.square()) - mean_x.square() - mean_y.square())
    mean_x, mean_y = mean_x + level, mean_y + level
    product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
    return similarity.mean((-3, -2, -1))


def apertures(truth: torch.Tensor, *, offsets: torch.Tensor | None = None) -> torch.Tensor:
    """Find the pixels of each true galaxy: the connected region above the noise at its centre.

    truth: (..., C, H, W), one galaxy per image.
    offsets: (..., 2), its centre, (x, y) from the middle in px, as `Blends.offsets`; by default the middle.
    Returns bool (..., 1, H, W), empty where nothing rises above 1.5 times the noise within 2 px of the
    centre. As SourceExtractor without deblending: channels added, sky and noise from the outermost 5 px
    (3-sigma clipped; noise at least 0.003), 3x3 filter, 8-connected.
    """
    (truth,) = _comparable(truth)
    lead, (h, w) = truth.shape[:-3], truth.shape[-2:]
    offsets = torch.zeros(*lead, 2) if offsets is None else offsets
    check_places("offsets", offsets, (*lead, 2))
    light = truth.flatten(0, -4).double().sum(1, keepdim=True)
    sky, noise = _sky(light)
    kernel = torch.tensor(DETECTION_KERNEL, dtype=light.dtype, device=light.device)
    filtered = functional.conv2d(light - sky, kernel[None, None], padding=1) / kernel.sum()
    bright = (filtered > 1.5 * noise)[:, 0]
    y, x = _grid(h, w, light)
    shift = offsets.reshape(-1, 2).to(light)[..., None, None]
    near = (x - shift[:, 0]).square() + (y - shift[:, 1]).square() <= 4
    beside = np.zeros((3, 3, 3))
    beside[1] = 1  # neighbours in the same image only
    regions, _ = ndimage.label(bright.cpu().numpy(), beside)
    chosen = np.unique(regions[(near & bright).cpu().numpy()])
    return torch.from_numpy(np.isin(regions, chosen)).to(bright.device).reshape(*lead, 1, h, w)


def aperture_errors(
    estimate: torch.Tensor, truth: torch.Tensor, *, aperture: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Compare what an astronomer measures inside the aperture of the truth, each image above its own sky.

    aperture: bool (..., 1, H, W), from `apertures(truth)`; neighbours outside it do not count.
    ``flux``: (estimated - true) / true flux, positive if too bright; of images with a stretch, such as JPEGs,
    it compares summed brightness. ``centroid``: px between the barycentres. ``ellipticity``: length of the
    difference of (e1, e2); with second moments Q, e1 = (Qxx - Qyy) / (Qxx + Qyy), e2 = 2 Qxy / (Qxx + Qyy): 0
    for a round galaxy, length 1 for a line. NaN where there is no light.
    """
    estimate, truth = _comparable(estimate, truth)
    expected = (*truth.shape[:-3], 1, *truth.shape[-2:])
    kind, shape = getattr(aperture, "dtype", type(aperture)), tuple(getattr(aperture, "shape", ()))
    if shape != expected or kind != torch.bool:
        raise ValueError(f"aperture is {kind} {shape}; expected bool {expected}")
    (flux, place, form), wanted = (_moments(images, aperture) for images in (estimate, truth))
    return {
        "flux": ((flux - wanted[0]) / wanted[0]).float(),
        "centroid": (place - wanted[1]).norm(dim=-1).float(),
        "ellipticity": (form - wanted[2]).norm(dim=-1).float(),
    }


def check_places(name: str, places: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Refuse anything but a finite tensor of this shape, (x, y) in its last axis."""
    if not isinstance(places, torch.Tensor) or places.shape != shape or not places.isfinite().all():
        given = f"{type(places).__name__} of shape {tuple(getattr(places, 'shape', ()))}"
        raise ValueError(f"{name}: got {given}; expected a finite tensor {shape} of (x, y)")


def _comparable(*images: torch.Tensor, data_range: float = math.inf) -> list[torch.Tensor]:
    """Return finite images of one shape, at least in float32: 16 bits lose what squares and sums need."""
    for part in images:
        checks.check_floats(part)
    shapes = [tuple(part.shape) for part in images]
    if len({*shapes}) > 1 or len(shapes[0]) < 4 or 0 in shapes[0]:
        raise ValueError(f"got shapes {shapes}; expected the same (..., C, H, W) with a batch axis in front")
    if not isinstance(data_range, Real) or not data_range > 0:
        raise ValueError(f"data_range is {data_range}; expected a number > 0, 1 for images in [0, 1]")
    ends = torch.stack([end.double() for part in images for end in part.aminmax()])
    low, high = (end.item() for end in ends.aminmax())
    slack = max(1e-4, *(torch.finfo(part.dtype).eps for part in images))  # bfloat16 rounds 3000 to 3008
    if not math.isfinite(high - low) or high - low > data_range * (1 + slack):
        raise ValueError(f"values from {low:g} to {high:g}: not finite, or wider than {data_range=:g}")
    double = any(part.dtype == torch.float64 for part in images)
    return [part.double() if double else part.float() for part in images]


def _sky(light: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sky level and noise (B, 1, 1, 1) of the outermost pixels of (B, 1, H, W), clipped at 3 sigma."""
    inside = torch.zeros(light.shape[-2:], dtype=torch.bool, device=light.device)
    inside[RING:-RING, RING:-RING] = True
    values = light[:, 0, ~inside]
    for _ in range(6):  # of values that were clipped up to five times
        level = values.nanmedian(1, keepdim=True).values
        noise = (values - values.nanmean(1, keepdim=True)).square().nanmean(1, keepdim=True).sqrt()
        values = values.where((values - level).abs() <= 3 * noise, torch.nan)
    return level[..., None, None], noise.clamp(min=LEAST_NOISE)[..., None, None]


def _moments(images: torch.Tensor, aperture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return flux (...), barycentre (x, y) and ellipticity (e1, e2), both (..., 2), inside the aperture.

    For place and form negative light counts as none.
    """
    light = images.flatten(0, -4).double().sum(1, keepdim=True)
    light = ((light - _sky(light)[0]).reshape(aperture.shape) * aperture)[..., 0, :, :]
    weight = light.clamp(min=0)
    weight = weight / weight.sum((-2, -1), keepdim=True)
    y, x = _grid(*light.shape[-2:], light)
    centre = torch.stack([(weight * axis).sum((-2, -1)) for axis in (x, y)], -1)
    x, y = x - centre[..., 0, None, None], y - centre[..., 1, None, None]
    xx, yy, xy = ((weight * product).sum((-2, -1)) for product in (x * x, y * y, x * y))
    return light.sum((-2, -1)), centre, torch.stack([xx - yy, 2 * xy], -1) / (xx + yy)[..., None]


def _grid(height: int, width: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y (H, 1) and x (1, W) in pixels from the middle of the image."""
    y, x = (torch.arange(n, dtype=like.dtype, device=like.device) - (n - 1) / 2 for n in (height, width))
    return y[:, None], x[None]
