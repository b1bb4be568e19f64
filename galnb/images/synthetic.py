"""Draw galaxies with a Sersic profile on a sky with correlated noise, so that the truth is known."""

import math

import torch

from galnb.images.imageset import ImageSet


def sersic(
    size: int,
    *,
    flux: float,
    half_light_radius: float,
    index: float = 1.0,
    axis_ratio: float = 1.0,
    angle: float = 0.0,
    centre: tuple[float, float] | None = None,
    oversample: int = 5,
) -> torch.Tensor:
    """Draw one elliptical Sersic galaxy.

    Parameters
    ----------
    size : int
        Side of the image, pixels.
    flux : float
        Total light of the untruncated profile, the unit of the image times pixel area.
    half_light_radius : float
        Semi-major axis of the ellipse that holds half of the flux, pixels.
    index : float
        Sersic index from 0.5 to 8: 0.5 Gaussian, 1 exponential disc, 4 de Vaucouleurs.
    axis_ratio : float
        Minor over major axis, in (0, 1].
    angle : float
        Of the major axis, radians from the x axis (columns) towards the y axis (rows).
    centre : (float, float) or None
        Row and column of the centre, pixels; None is the middle of the frame.
    oversample : int
        Points per pixel side at which the profile is sampled and averaged.

    Returns
    -------
    torch.Tensor
        Shape (size, size), float32. Its sum is the flux minus what falls outside the frame.

    Raises
    ------
    ValueError
        If a value lies outside its range.

    Notes
    -----
    ``I(r) = F b^(2n) / (2 pi n q Re^2 Gamma(2n)) exp(-b (r / Re)^(1/n))``, whose plane integral is F; b from
    the series of Ciotti & Bertin 1999 (A&A 352, 447).

    Chapter: Galaxies as pixels
    """
    if size < 1 or half_light_radius <= 0 or oversample < 1:
        raise ValueError(f"{size=}, {half_light_radius=}, {oversample=}: expected all positive")
    if not 0.5 <= index <= 8 or not 0 < axis_ratio <= 1:
        raise ValueError(
            f"index={index}, axis_ratio={axis_ratio}: expected index in 0.5..8, axis_ratio in (0, 1]"
        )
    row, column = centre or ((size - 1) / 2, (size - 1) / 2)
    points = (torch.arange(size * oversample, dtype=torch.float64) + 0.5) / oversample - 0.5
    y, x = points[:, None] - row, points[None, :] - column
    major = x * math.cos(angle) + y * math.sin(angle)
    minor = (y * math.cos(angle) - x * math.sin(angle)) / axis_ratio
    b = 2 * index - 1 / 3 + 4 / (405 * index) + 46 / (25515 * index**2)
    norm = b ** (2 * index) / (
        2 * math.pi * index * axis_ratio * half_light_radius**2 * math.gamma(2 * index)
    )
    profile = torch.exp(-b * (torch.hypot(major, minor) / half_light_radius) ** (1 / index))
    pixels = profile.reshape(size, oversample, size, oversample).mean(dim=(1, 3))
    return (flux * norm * pixels).float()


def correlated_noise(
    shape: tuple[int, ...], *, sigma: float, correlation: float, generator: torch.Generator
) -> torch.Tensor:
    """Draw Gaussian noise whose neighbours are alike, as resampled and compressed images have it.

    Parameters
    ----------
    shape : tuple of int
        (..., H, W).
    sigma : float
        Standard deviation of a pixel.
    correlation : float
        Standard deviation of the Gaussian that smooths white noise, pixels; 0 leaves it white. Two pixels at
        distance d then correlate as ``exp(-d^2 / (4 correlation^2))``.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    torch.Tensor
        Shape ``shape``, float32, mean 0.

    Chapter: Galaxies as pixels
    """
    if sigma < 0 or correlation < 0:
        raise ValueError(f"sigma={sigma}, correlation={correlation}: expected both at least 0")
    reach = math.ceil(4 * correlation)
    padded = (*shape[:-2], shape[-2] + 2 * reach, shape[-1] + 2 * reach)
    noise = torch.randn(padded, generator=generator)
    if reach:
        weights = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * correlation**2))
        weights = weights / weights.square().sum().sqrt()  # keeps the variance of each pixel at 1
        noise = noise.unfold(-1, 2 * reach + 1, 1) @ weights
        noise = noise.unfold(-2, 2 * reach + 1, 1) @ weights
    return sigma * noise


def synthetic_sky(
    count: int,
    *,
    size: int = 80,
    channels: int = 3,
    sky: float = 0.05,
    noise: float = 0.01,
    correlation: float = 1.0,
    generator: torch.Generator,
) -> ImageSet:
    """Draw images with one centred galaxy each, whose every number is known.

    Parameters
    ----------
    count, size, channels : int
        Number of images, side in pixels, colour channels.
    sky, noise : float
        Level and standard deviation of the sky, in the [0, 1] of the image.
    correlation : float
        Correlation length of the noise, pixels; see ``correlated_noise``.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    ImageSet
        ``record["truth"][i]`` holds the arguments with which ``sersic(size, **truth)`` draws galaxy i before
        ``record["colours"][i]`` (one factor per channel), sky and noise. Peaks stay below 0.95.

    Raises
    ------
    ValueError
        If a count is not positive or the sky leaves no room for a galaxy.

    Chapter: Galaxies as pixels
    """
    if min(count, size, channels) < 1:
        raise ValueError(f"count={count}, size={size}, channels={channels}: expected all at least 1")
    if not 0 <= sky < 0.5 or noise < 0:
        raise ValueError(f"sky={sky}, noise={noise}: expected sky in [0, 0.5) and noise at least 0")
    draws = torch.rand(count, 5, generator=generator).tolist()
    colours = 0.5 + 0.5 * torch.rand(count, channels, generator=generator)
    truth, galaxies = [], []
    for radius, index, ratio, angle, peak in draws:
        shape = {
            "half_light_radius": size * (0.04 + 0.08 * radius), "index": 0.5 + 2.5 * index,
            "axis_ratio": 0.3 + 0.7 * ratio, "angle": math.pi * angle,
        }  # fmt: skip
        image = sersic(size, flux=1.0, **shape)
        flux = (0.4 + 0.5 * peak) * (1 - sky) / float(image.max())
        truth.append({"flux": flux, **shape})
        galaxies.append(flux * image)
    clean = sky + colours[:, :, None, None] * torch.stack(galaxies)[:, None]
    pixels = clean + correlated_noise(clean.shape, sigma=noise, correlation=correlation, generator=generator)
    record = {
        "truth": truth,
        "colours": colours.tolist(),
        "sky": sky,
        "noise": noise,
        "correlation": correlation,
    }
    names = tuple(f"synthetic_{number:04d}" for number in range(count))
    return ImageSet(pixels.clamp(0, 1), names, "synthetic Sersic galaxies", record=record)
