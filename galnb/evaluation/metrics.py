"""Measure how close one image is to another: pixels, structure, and what an astronomer would measure.

Chapter 05, Evaluation. Images are floats (..., C, H, W) of any precision, at least one batch axis in front;
every function returns one float32 per image, (...), so that `Blends.galaxies` (B, N, C, H, W) give (B, N).
What is narrower than float32 is computed in float32; float64 stays. A `ValueError` names shapes that differ
and values that are not finite or spread wider than `data_range` (largest minus smallest possible value, 1 for
[0, 1]).
"""

import math
from numbers import Real

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

PERCENTILES = (5, 25, 50, 75, 95)
DETECTION_KERNEL = ((1, 2, 1), (2, 4, 2), (1, 2, 1))  # SourceExtractor's default filter
RING = 5  # px along the border that count as sky
LEAST_NOISE = 0.003  # of the sum of the channels: less is the grain of 8 bits


def psnr(a: torch.Tensor, b: torch.Tensor, *, data_range: float) -> torch.Tensor:
    """Compute the peak signal-to-noise ratio of each pair: 10 log10(data_range² / mean squared error), in dB.

    Infinite where both images are equal, by definition.
    """
    a, b = _pair(a, b, data_range)
    error = (a - b).square().mean((-3, -2, -1), dtype=torch.float64)
    return (10 * torch.log10(data_range**2 / error)).float()


def ssim(a: torch.Tensor, b: torch.Tensor, *, data_range: float, window: int = 7) -> torch.Tensor:
    """Compute the mean structural similarity of each pair: at most 1, exactly that for equal images.

    data_range: too wide a one makes every pair look alike.
    window: odd side of the square window, px.
    Equation 13 of Wang, Bovik, Sheikh & Simoncelli (2004), IEEE Trans. Image Processing 13, 600, with uniform
    weights, sample covariances, K1 = 0.01, K2 = 0.03, averaged over channels and over the windows inside the
    image: the defaults of skimage.metrics.structural_similarity. Unclean skies count: an image with the right
    noise beats a cleaner one, so read PSNR beside it.
    """
    a, b = _pair(a, b, data_range)
    if window % 2 == 0 or not 3 <= window <= min(a.shape[-2:]):
        raise ValueError(f"window is {window}; expected an odd number from 3 to {min(a.shape[-2:])}")
    lead, a, b = a.shape[:-3], a.flatten(0, -4), b.flatten(0, -4)
    pairs = zip(a.split(16), b.split(16), strict=True)  # 16 fit into the cache
    found = torch.cat([_ssim(x, y, data_range, window) for x, y in pairs])
    close = found > 1 - 1e-4  # of equal images, too, which rounding leaves beside 1
    found[close] = found[close].masked_fill((a[close] == b[close]).flatten(1).all(1), 1)
    return found.reshape(lead).float()


def _ssim(x: torch.Tensor, y: torch.Tensor, data_range: float, window: int) -> torch.Tensor:
    rows, columns = (  # (positions, pixels): the mean over a window as two products of matrices
        torch.eye(size, dtype=x.dtype, device=x.device).unfold(0, window, 1).sum(-1) / window
        for size in x.shape[-2:]
    )

    def mean(values: torch.Tensor) -> torch.Tensor:
        return rows @ values @ columns.T

    # without the common level, because differences of large squares lose digits
    level = (x + y).mean((-3, -2, -1), keepdim=True) / 2
    x, y = x - level, y - level
    mean_x, mean_y = mean(x), mean(y)
    unbiased = window**2 / (window**2 - 1)
    covariance = unbiased * (mean(x * y) - mean_x * mean_y)
    variances = unbiased * (mean(x.square() + y.square()) - mean_x.square() - mean_y.square())
    mean_x, mean_y = mean_x + level, mean_y + level
    product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
    return similarity.mean((-3, -2, -1))


def cosine_similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute the cosine of the angle between two images as vectors of pixels; 0 where one is black.

    Blind to brightness: an image and half of it have similarity 1.
    """
    a, b = _pair(a, b)
    return functional.cosine_similarity(a.flatten(-3).double(), b.flatten(-3).double(), dim=-1).float()


def apertures(
    truth: torch.Tensor, *, offsets: torch.Tensor | None = None, threshold: float = 1.5
) -> torch.Tensor:
    """Find the pixels of each true galaxy: the connected region above the noise at its centre.

    truth: (..., C, H, W), one galaxy per image.
    offsets: (..., 2), its centre, (x, y) from the middle in px, as `Blends.offsets`; by default the middle.
    threshold: in standard deviations of the sky noise.
    Returns bool (..., 1, H, W), empty where nothing rises above the noise within 2 px of the centre. As
    SourceExtractor without deblending: channels added, sky and noise from the outermost 5 px (3-sigma
    clipped; noise at least 0.003), 3x3 filter, 8-connected.
    """
    _check(truth)
    lead, (h, w) = truth.shape[:-3], truth.shape[-2:]
    offsets = torch.zeros(*lead, 2) if offsets is None else offsets
    if not isinstance(offsets, torch.Tensor) or offsets.shape != (*lead, 2) or not offsets.isfinite().all():
        given = f"{type(offsets).__name__} of shape {tuple(getattr(offsets, 'shape', ()))}"
        raise ValueError(f"offsets: got {given}; expected a finite tensor {(*lead, 2)}, (x, y) per image")
    light = truth.flatten(0, -4).double().sum(1, keepdim=True)
    sky, noise = _sky(light)
    kernel = torch.tensor(DETECTION_KERNEL, dtype=light.dtype, device=light.device)
    filtered = functional.conv2d(light - sky, kernel[None, None], padding=1) / kernel.sum()
    bright = filtered > threshold * noise
    y, x = _grid(h, w, light)
    shift = offsets.reshape(-1, 2).to(light)[..., None, None, None]
    near = ((x - shift[:, 0]).square() + (y - shift[:, 1]).square() <= 4).expand_as(bright)
    regions = [_touching(*pair) for pair in zip(bright[:, 0], near[:, 0], strict=True)]
    return torch.stack(regions).reshape(*lead, 1, h, w)


def flux_error(estimate: torch.Tensor, truth: torch.Tensor, *, aperture: torch.Tensor) -> torch.Tensor:
    """Compute (estimated - true) / true flux inside the aperture of the truth, each above its own sky.

    aperture: bool (..., 1, H, W), from `apertures(truth)`.
    Positive: too bright. NaN where the aperture is empty. Of images with a stretch, such as JPEGs, it
    compares summed brightness, not flux.
    """
    flux, wanted = (light.sum((-2, -1)) for light in _lights(estimate, truth, aperture))
    return ((flux - wanted) / wanted).float()


def centroid_error(estimate: torch.Tensor, truth: torch.Tensor, *, aperture: torch.Tensor) -> torch.Tensor:
    """Compute how far, in px, the barycentre of each image lies from that of the truth.

    Both weigh the light above the sky inside the aperture of the truth, so that neighbours do not count; NaN
    where there is none.
    """
    place, wanted = (_moments(light)[0] for light in _lights(estimate, truth, aperture))
    return (place - wanted).norm(dim=-1).float()


def ellipticity_error(estimate: torch.Tensor, truth: torch.Tensor, *, aperture: torch.Tensor) -> torch.Tensor:
    """Compute the length of the difference of the ellipticities (e1, e2) of each image and the truth.

    With second moments Q inside the aperture, e1 = (Qxx - Qyy) / (Qxx + Qyy), e2 = 2 Qxy / (Qxx + Qyy): 0 for
    a round galaxy, length 1 for a line; NaN where there is no light.
    """
    shape, wanted = (_moments(light)[1] for light in _lights(estimate, truth, aperture))
    return (shape - wanted).norm(dim=-1).float()


def summary(values: torch.Tensor) -> dict[str, float]:
    """Summarise scores: count, mean, standard deviation, percentiles 5, 25, 50, 75, 95; NaN is left out."""
    values = torch.as_tensor(values).detach().double().flatten()
    values = values[~values.isnan()]
    if not len(values):
        raise ValueError("values hold no number; expected at least one that is not NaN")
    levels = torch.tensor(PERCENTILES, dtype=values.dtype, device=values.device) / 100
    percentiles = dict(zip((f"p{p}" for p in PERCENTILES), values.quantile(levels).tolist(), strict=True))
    spread = float(values.std(correction=0))
    return {"count": len(values), "mean": float(values.mean()), "std": spread, **percentiles}


def _check(images: torch.Tensor) -> tuple[float, float]:
    """Return the smallest and largest value of images that are what they should be."""
    if not isinstance(images, torch.Tensor):
        given = type(images).__name__
        raise ValueError(f"got {given}; expected a tensor (..., C, H, W), of an ImageSet its .pixels")
    if images.ndim >= 4 and images.is_floating_point() and images.numel():
        low, high = (float(value) for value in images.aminmax())
        if math.isfinite(low) and math.isfinite(high):
            return low, high
    wanted = "finite floats (..., C, H, W) with at least one batch axis; from 8 bit take pixels.float() / 255"
    raise ValueError(f"got {images.dtype} of shape {tuple(images.shape)}; expected {wanted}")


def _pair(a: torch.Tensor, b: torch.Tensor, data_range: float = math.inf) -> list[torch.Tensor]:
    """Return two images that compare, at least in float32: 16 bits lose what their squares and sums need."""
    lows, highs = zip(_check(a), _check(b), strict=True)
    if a.shape != b.shape:
        raise ValueError(f"got shapes {tuple(a.shape)} and {tuple(b.shape)}; expected the same")
    if not isinstance(data_range, Real) or not data_range > 0:
        raise ValueError(f"data_range is {data_range}; expected a number > 0, 1 for images in [0, 1]")
    low, high = min(lows), max(highs)
    slack = max(1e-4, *(torch.finfo(part.dtype).eps for part in (a, b)))  # bfloat16 rounds 3000 to 3008
    if high - low > data_range * (1 + slack):
        raise ValueError(f"values run from {low:g} to {high:g}, wider than data_range={data_range:g}")
    kind = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return [a.to(kind), b.to(kind)]


def _sky(light: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sky level and noise (B, 1, 1, 1) of the outermost pixels of (B, 1, H, W), clipped at 3 sigma."""
    inside = torch.zeros(light.shape[-2:], dtype=torch.bool, device=light.device)
    inside[RING:-RING, RING:-RING] = True
    values = light[:, 0, ~inside]
    for _ in range(5):
        middle = values.nanmedian(1, keepdim=True).values
        spread = (values - values.nanmean(1, keepdim=True)).square().nanmean(1, keepdim=True).sqrt()
        values = values.where((values - middle).abs() <= 3 * spread, torch.nan)
    middle = values.nanmedian(1).values
    noise = (values - values.nanmean(1, keepdim=True)).square().nanmean(1).sqrt().clamp(min=LEAST_NOISE)
    return middle[:, None, None, None], noise[:, None, None, None]


def _touching(bright: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """Return the 8-connected regions of (H, W) `bright` that reach into `near`."""
    regions, _ = ndimage.label(bright.cpu().numpy(), np.ones((3, 3)))
    chosen = np.unique(regions[(near & bright).cpu().numpy()])
    return torch.from_numpy(np.isin(regions, chosen)).to(bright.device)


def _lights(estimate: torch.Tensor, truth: torch.Tensor, aperture: torch.Tensor) -> list[torch.Tensor]:
    """Return the summed channels above the sky of both, (..., H, W), zero outside the aperture."""
    expected, found = (*truth.shape[:-3], 1, *truth.shape[-2:]), []
    for images in _pair(estimate, truth):
        kind, shape = getattr(aperture, "dtype", type(aperture)), tuple(getattr(aperture, "shape", ()))
        if shape != expected or kind != torch.bool:
            raise ValueError(f"aperture is {kind} {shape}; expected bool {expected}")
        light = images.flatten(0, -4).double().sum(1, keepdim=True)
        found.append(((light - _sky(light)[0]).reshape(expected) * aperture)[..., 0, :, :])
    return found


def _moments(light: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return barycentre (x, y) and ellipticity (e1, e2), each (..., 2); negative light counts as none."""
    weight = light.clamp(min=0)
    weight = weight / weight.sum((-2, -1), keepdim=True)
    y, x = _grid(*light.shape[-2:], light)
    centre = torch.stack([(weight * axis).sum((-2, -1)) for axis in (x, y)], -1)
    x, y = x - centre[..., 0, None, None], y - centre[..., 1, None, None]
    xx, yy, xy = ((weight * product).sum((-2, -1)) for product in (x * x, y * y, x * y))
    return centre, torch.stack([xx - yy, 2 * xy], -1) / (xx + yy)[..., None]


def _grid(height: int, width: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y (H, 1) and x (1, W) in pixels from the middle of the image."""
    y, x = (torch.arange(n, dtype=like.dtype, device=like.device) - (n - 1) / 2 for n in (height, width))
    return y[:, None], x[None]
