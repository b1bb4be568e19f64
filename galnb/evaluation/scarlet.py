"""Take blends apart with scarlet2, which gives every source a spectrum and a free shape: an optional row."""

import importlib

import numpy as np
import torch

from galnb.evaluation.classical import sky_and_noise

PADDING = 40  # px of empty sky around the stamp, so that boxes at its border fit


def scarlet2_sources(
    blended: torch.Tensor, *, centres: torch.Tensor, steps: int = 100, box: int = 61
) -> torch.Tensor:
    """Fit both galaxies of each blend with scarlet2, told where they are.

    Parameters
    ----------
    blended : torch.Tensor, shape (B, C, H, W)
        Blends in [0, 1].
    centres : torch.Tensor, shape (B, 2, 2)
        (x, y) from the middle in pixels, as `Blends.offsets`.
    steps : int
        Optimiser steps per blend.
    box : int
        Side in px of the box in which a galaxy may have light.

    Returns
    -------
    torch.Tensor, shape (B, 2, C, H, W)
        Each model on flat sky. A blend takes about a second: scarlet2 compiles anew for each.

    Raises
    ------
    ValueError, ModuleNotFoundError
        If the shapes do not fit; if scarlet2 is missing.

    Notes
    -----
    No priors and no point-spread function, one component per galaxy: a lower bound of what scarlet2 can do on
    calibrated images. Chapter: Evaluation

    References
    ----------
    Melchior et al. 2018, Astronomy and Computing 24, 129.
    """
    if centres.shape != (len(blended), 2, 2):
        raise ValueError(f"centres have shape {tuple(centres.shape)}, expected {(len(blended), 2, 2)}")
    if steps < 1 or box < 3:
        raise ValueError(f"got steps {steps} and box {box}; expected at least 1 and 3")
    channels, _, noise = sky_and_noise(blended)
    try:
        scarlet2 = importlib.import_module("scarlet2")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("scarlet2 is not installed: pip install scarlet2 (brings JAX)") from error
    scarlet2.set_validation(False)  # its checks of every fit go to the log
    sky = torch.from_numpy(channels).float()[:, :, None, None]
    middle = (np.array(blended.shape[:-3:-1]) - 1) / 2 + PADDING  # (x, y)
    parts = []
    for light, sigma, places in zip((blended - sky).cpu().numpy(), noise, centres.cpu().numpy(), strict=True):
        weight = 1 / max(sigma / 3**0.5, 0.01) ** 2
        parts.append(_fit(scarlet2, light, weight, (places + middle)[:, ::-1], steps, box))
    return (torch.from_numpy(np.stack(parts)).float() + sky[:, None]).clamp(0, 1)


def _fit(scarlet2, light: np.ndarray, weight: float, places: np.ndarray, steps: int, box: int) -> np.ndarray:
    """Return the models (2, C, H, W) of two galaxies at `places` (y, x) of the padded image."""
    from jax import numpy as jnp
    from numpyro.distributions import constraints

    around = (PADDING, PADDING)
    padded = jnp.asarray(np.pad(light, ((0, 0), around, around)), jnp.float32)
    observation = scarlet2.Observation(padded, jnp.full_like(padded, weight))
    frame = scarlet2.Frame(scarlet2.Box(padded.shape))
    observation.match(frame)
    with scarlet2.Scene(frame) as scene:
        for place in jnp.asarray(places.copy(), jnp.float32):
            start = scarlet2.init.from_gaussian_moments(observation, place, min_corr=0.99, box_sizes=[box])
            scarlet2.Source(place, *start)
    with scarlet2.Parameters(scene):
        for index, source in enumerate(scene.sources):
            scarlet2.Parameter(
                source.spectrum,
                name=f"spectrum:{index}",
                constraint=constraints.positive,
                stepsize=lambda values: scarlet2.relative_step(values, factor=0.05),
            )
            scarlet2.Parameter(
                source.morphology,
                name=f"shape:{index}",
                constraint=constraints.unit_interval,
                stepsize=0.1,
            )
    fitted = scene.fit(observation, max_iter=steps, e_rel=1e-4, progress_bar=False)
    models = np.stack([np.asarray(fitted.evaluate_source(source)) for source in fitted.sources])
    return models[..., PADDING:-PADDING, PADDING:-PADDING]
