"""Losses: what the generator and the discriminator are asked to make small, each with its equation.

Logits and scores are (B, 1) outputs of the discriminator before a sigmoid, high for real; every loss is a
scalar. Chapters 03, 04, 10 and 13.
"""

from collections.abc import Callable
from itertools import permutations

import torch
from torch import Tensor, nn
from torch.nn import functional


def discriminator_bce(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Ask for 1 on real images and 0 on generated ones; 2 ln 2 = 1.386 where the discriminator is at a loss.

    BCE(D(x), 1) + BCE(D(G), 0), the minimax loss of Goodfellow et al. 2014.
    """
    false = functional.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    return generator_bce(real_logits) + false


def generator_bce(fake_logits: Tensor) -> Tensor:
    """Ask for 1 on generated images: the non-saturating generator loss BCE(D(G), 1)."""
    return functional.binary_cross_entropy_with_logits(fake_logits, torch.ones_like(fake_logits))


def _generator_minimax(fake_logits: Tensor) -> Tensor:
    """Ask that the discriminator be wrong about generated images: the generator's side of the minimax game.

    E ln(1 - D(G)) <= 0 (Goodfellow et al. 2014, Eq. 1). Its slope in the logit is -D(G): next to nothing
    while the generator loses.
    """
    return -functional.softplus(fake_logits).mean()


GENERATOR_LOSSES = {"non_saturating": generator_bce, "minimax": _generator_minimax}


def discriminator_hinge(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Ask for scores above 1 on real images and below -1 on generated ones; what is beyond counts no more.

    E max(0, 1 - D(x)) + E max(0, 1 + D(G)) >= 0, for scores of any shape; 2 when the discriminator answers 0
    to everything (Lim & Ye 2017). In the package ``lightweight-gan`` low means real: the opposite sign.
    """
    return functional.relu(1 - real_scores).mean() + functional.relu(1 + fake_scores).mean()


def generator_hinge(fake_scores: Tensor) -> Tensor:
    """Ask for high scores on generated images: - E D(G)."""
    return -fake_scores.mean()


def _per_image_mse(predicted: Tensor, truth: Tensor) -> Tensor:
    """Average squared differences over one image: twice (B, N, C, H, W) -> (B, N)."""
    if predicted.shape != truth.shape:
        raise ValueError(f"shapes {tuple(predicted.shape)} and {tuple(truth.shape)}; expected equal ones")
    return (predicted.float() - truth.float()).square().mean(dim=(-3, -2, -1))


def mse(predicted: Tensor, truth: Tensor) -> Tensor:
    """Average squared differences over everything, as in Reiman & Göhre 2019; ValueError if shapes differ."""
    return _per_image_mse(predicted, truth).mean()


def log_mse(predicted: Tensor, truth: Tensor) -> Tensor:
    """Average log10 of the per-image MSE: minus a tenth of the mean PSNR, up to a constant.

    `mse` is ruled by the few worst images; here every image counts alike, as it does in a mean of decibels.
    For images in [-1, 1], log_mse = log10(4) - PSNR / 10, with the PSNR of the same images in [0, 1]; the
    1e-7 inside keeps a perfect image finite. ValueError if shapes differ.
    """
    return (_per_image_mse(predicted, truth) + 1e-7).log10().mean()


RECONSTRUCTIONS = {"mse": mse, "log_mse": log_mse}


def match_galaxies(predicted: Tensor, truth: Tensor) -> Tensor:
    """Order the true galaxies (B, N, C, H, W) as the generator drew them.

    Galaxy 0, the central one, stays; of the others the order with the smallest squared error is taken.
    """
    count = truth.shape[1]
    if count < 3:
        return truth
    orders = torch.tensor([(0, *order) for order in permutations(range(1, count))], device=truth.device)
    with torch.no_grad():
        errors = torch.stack([_per_image_mse(predicted, truth[:, order]).sum(1) for order in orders])
    best = orders[errors.argmin(0)]  # (B, N)
    return truth[torch.arange(len(truth), device=truth.device)[:, None], best]


def feature_loss(predicted: Tensor, truth: Tensor, features: nn.Module) -> Tensor:
    """Compare images (B, N, C, H, W) in [0, 1] by what a fixed network phi sees in them.

    features: network from `galnb.gans.features`, (B, C, H, W) in [0, 1] -> any tensor.
    The burn-in loss, sum over branches of MSE(phi(x), phi(y)); Reiman & Göhre 2019 use VGG19, block5_conv4.
    """
    count = predicted.shape[1]
    return count * functional.mse_loss(features(predicted.flatten(0, 1)), features(truth.flatten(0, 1)))


def gradient_penalty(critic: Callable, real: Tensor, fake: Tensor, *, generator: torch.Generator) -> Tensor:
    """Measure how far the slope of the critic is from 1 between real and generated images.

    critic: images (B, C, H, W) -> scores (B, 1), differentiable in its weights too.
    real, fake: (B, C, H, W); a point is drawn on the line between each pair. ValueError if the shapes differ.

    E (|grad D(t x + (1 - t) G)|_2 - 1)^2 with t uniform in [0, 1] (Gulrajani et al. 2017, Eq. 3).
    """
    if real.shape != fake.shape:
        raise ValueError(f"real {tuple(real.shape)} and fake {tuple(fake.shape)} must have one shape")
    share = torch.rand(len(real), *[1] * (real.ndim - 1), generator=generator).to(real)
    mixed = torch.lerp(fake.detach(), real.detach(), share).requires_grad_()
    (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()
