"""Losses against their equations."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from galnb.gans import losses, to_signed


@pytest.fixture
def pair(generator):
    """Two sets of five blends of two galaxies, in [0, 1], from close to far apart."""
    truth = torch.rand(5, 2, 3, 16, 16, generator=generator)
    noise = torch.randn(truth.shape, generator=generator) * torch.logspace(-3, -0.5, 10).view(5, 2, 1, 1, 1)
    return (truth + noise).clamp(0, 1), truth


def test_bce_equals_its_definition(generator):
    real, fake = 3 * torch.randn(2, 7, 1, generator=generator)
    p, q = (1 / (1 + np.exp(-logits.double().numpy())) for logits in (real, fake))
    # float32 sums of seven terms
    assert losses.discriminator_bce(real, fake).item() == pytest.approx(
        -np.log(p).mean() - np.log(1 - q).mean(), rel=1e-6
    )
    assert losses.generator_bce(fake).item() == pytest.approx(-np.log(q).mean(), rel=1e-6)


def test_a_discriminator_at_a_loss_costs_two_bits():
    zero = torch.zeros(3, 1)
    assert losses.discriminator_bce(zero, zero).item() == pytest.approx(2 * math.log(2))


def test_generator_loss_does_not_saturate():
    logit = torch.tensor([[-40.0]], requires_grad=True)
    losses.generator_bce(logit).backward()
    assert logit.grad.item() == pytest.approx(-1)  # where log(1 - D) would give a gradient of 0


def test_mse_averages_each_image_and_then_all(pair):
    a, b = pair
    wanted = ((a.double() - b.double()).numpy() ** 2).mean((2, 3, 4))
    assert losses._per_image_mse(a, b).numpy() == pytest.approx(wanted, rel=1e-5)
    assert losses.mse(a, b).item() == pytest.approx(wanted.mean(), rel=1e-5)
    assert losses._per_image_mse(a.bfloat16(), b).dtype == torch.float32


def test_log_mse_is_minus_a_tenth_of_the_psnr(pair):
    a, b = pair
    decibels = [
        peak_signal_noise_ratio(y.double().numpy(), x.double().numpy(), data_range=1)
        for x, y in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True)
    ]
    found = losses.log_mse(to_signed(a), to_signed(b)).item()
    # the 1e-7 inside is 3 % of the smallest squared error here (4e-6), so less than 0.02 in one of ten logs
    assert found == pytest.approx(math.log10(4) - np.mean(decibels) / 10, abs=2e-3)
    assert losses.log_mse(a, a).item() == pytest.approx(-7)


@pytest.mark.parametrize("count", [3, 4])
def test_match_galaxies_equals_trying_every_order(count, generator):
    truth = torch.rand(6, count, 1, 4, 4, generator=generator)
    drawn = torch.rand(6, count, 1, 4, 4, generator=generator)
    found = losses.match_galaxies(drawn, truth)
    for index in range(6):
        orders = [(0, *order) for order in permutations(range(1, count))]
        errors = [
            sum(float(((drawn[index, i] - truth[index, k]) ** 2).sum()) for i, k in enumerate(o))
            for o in orders
        ]
        assert torch.equal(found[index], truth[index, list(orders[int(np.argmin(errors))])])


def test_match_galaxies_undoes_a_shuffle_and_leaves_the_central_one(generator):
    truth = torch.rand(3, 4, 1, 4, 4, generator=generator)
    assert torch.equal(losses.match_galaxies(truth[:, [0, 3, 1, 2]], truth), truth[:, [0, 3, 1, 2]])
    swapped = truth[:, [1, 0, 2, 3]]  # the central one is never exchanged
    assert torch.equal(losses.match_galaxies(swapped, truth)[:, 0], truth[:, 0])
    assert losses.match_galaxies(swapped[:, :2], truth[:, :2]) is not None
    assert torch.equal(losses.match_galaxies(swapped[:, :2], truth[:, :2]), truth[:, :2])


def test_feature_loss_sums_over_the_branches(pair):
    a, b = pair
    features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU()).requires_grad_(False)
    by_branch = sum(nn.functional.mse_loss(features(a[:, k]), features(b[:, k])) for k in range(2))
    assert losses.feature_loss(a, b, features).item() == pytest.approx(by_branch.item(), rel=1e-5)
    assert losses.feature_loss(a, b, nn.Identity()).item() == pytest.approx(
        2 * losses.mse(a, b).item(), rel=1e-5
    )


def test_shapes_that_differ_are_refused_where_torch_would_broadcast(pair):
    with pytest.raises(ValueError, match=r"\(5, 2, 3, 16, 16\).*\(5, 1, 3, 16, 16\)"):
        losses.mse(pair[0], pair[1][:, :1])


def test_gradient_penalty_of_a_linear_critic_is_known(generator):
    """D = a x has the slope a everywhere: the penalty is (|a| - 1)^2, its gradient 2 (|a| - 1) a / |a|."""
    real, fake = torch.rand(2, 6, 1, 4, 4, generator=generator)
    slope = torch.randn(16, generator=generator, requires_grad=True)
    found = losses.gradient_penalty(lambda x: x.flatten(1) @ slope[:, None], real, fake, generator=generator)
    length = slope.detach().norm()
    assert found.item() == pytest.approx((length - 1).square().item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(found, slope)
    assert torch.allclose(gradient, 2 * (length - 1) * slope.detach() / length, rtol=1e-4)


def test_gradient_penalty_looks_between_the_pairs():
    """D = |x|^2 / 2 has the slope |x|; with x drawn between 0 and a point 3 away, E (3 t - 1)^2 = 1."""
    far = torch.zeros(200_000, 1, 1, 4)
    far[..., 1] = 3.0
    found = losses.gradient_penalty(
        lambda x: x.flatten(1).square().sum(1, keepdim=True) / 2,
        far,
        torch.zeros_like(far),
        generator=torch.Generator().manual_seed(0),
    )
    assert found.item() == pytest.approx(1.0, abs=0.012)  # 5 standard errors: sd of (3t - 1)^2 is 1.1


def test_gradient_penalty_refuses_sets_of_different_size(generator):
    with pytest.raises(ValueError, match="must have one shape"):
        losses.gradient_penalty(nn.Flatten(), torch.rand(2, 3), torch.rand(1, 3), generator=generator)


def test_the_two_generator_losses_share_a_goal_and_not_a_slope():
    """Slopes in the logit s by hand: -sigmoid(s) for minimax, -(1 - sigmoid(s)) for the other."""
    for logit, minimax, other in ((-28.872, -2.891e-13, -1.0), (0.0, -0.5, -0.5), (4.0, -0.98201, -0.01799)):
        for loss, slope in ((losses._generator_minimax, minimax), (losses.generator_bce, other)):
            s = torch.tensor([[logit]], dtype=torch.float64, requires_grad=True)
            loss(s).backward()
            assert s.grad.item() == pytest.approx(slope, rel=1e-3)
    zero = torch.zeros(3, 1)
    assert losses.generator_bce(zero).item() == pytest.approx(math.log(2))
    assert losses._generator_minimax(zero).item() == pytest.approx(-math.log(2))


def test_minimax_is_what_the_discriminator_pays_with_the_other_sign(generator):
    real, fake = 3 * torch.randn(2, 7, 1, generator=generator)
    paid = losses.discriminator_bce(real, fake) - losses.generator_bce(real)
    assert losses._generator_minimax(fake).item() == pytest.approx(-paid.item(), rel=1e-5)
    assert losses._generator_minimax(torch.tensor([[500.0]])).item() == -500  # no overflow
    assert set(losses.GENERATOR_LOSSES) == {"minimax", "non_saturating"}


def test_hinge_is_that_of_torch_with_high_for_real(generator):
    real, fake = 2 * torch.randn(2, 5, 1, 5, 5, generator=generator)
    margin = nn.HingeEmbeddingLoss(margin=1.0)  # target -1: max(0, 1 - x)
    wanted = margin(real, -torch.ones_like(real)) + margin(-fake, -torch.ones_like(fake))
    assert losses.discriminator_hinge(real, fake).item() == pytest.approx(wanted.item(), rel=1e-6)
    zero = torch.zeros(3)
    assert losses.discriminator_hinge(zero, zero).item() == 2
    assert losses.discriminator_hinge(zero + 1, zero - 1).item() == 0
    assert losses.discriminator_hinge(zero - 1, zero + 1).item() == 4  # real and generated confused
    assert losses.generator_hinge(fake).item() == pytest.approx(-fake.mean().item())
    real.requires_grad_()
    losses.discriminator_hinge(real, fake).backward()
    assert torch.equal(real.grad != 0, real.detach() < 1), "what is beyond the margin counts no more"
