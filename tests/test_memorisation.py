"""Memorisation: quantiles by counting, chances by simulation, planted copies found."""

import numpy as np
import pytest
import torch

from galnb.evaluation.memorisation import memorisation
from galnb.evaluation.neighbours import nearest
from tests.tiny_runs import one_thread  # noqa: F401


def galaxies(count, generator, size=20):
    """Elliptical spots of random colour and shape over a noisy sky."""
    angle, ratio, width = (torch.rand(count, 1, 1, 1, generator=generator) for _ in range(3))
    grid = torch.linspace(-1, 1, size)
    x, y = grid[None, None, None], grid[None, None, :, None]
    u, v = x * (3 * angle).cos() + y * (3 * angle).sin(), y * (3 * angle).cos() - x * (3 * angle).sin()
    light = (-(u**2 + (v / (0.3 + 0.7 * ratio)) ** 2) / (0.05 + 0.2 * width)).exp()
    colour = 0.3 + 0.5 * torch.rand(count, 3, 1, 1, generator=generator)
    return (colour * light + 0.05 * torch.rand(count, 3, size, size, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("noise", [0.0, 0.01], ids=["exact", "with slight noise"])
@pytest.mark.parametrize("turn", [False, True])
def test_a_planted_copy_is_found(noise, turn, generator):
    bank, new, held_out = (galaxies(count, generator) for count in (80, 20, 100))
    copy = bank[66] + noise * torch.randn(3, 20, 20, generator=generator)
    new[13] = (torch.rot90(copy, 1, (1, 2)).flip(-1) if turn else copy).clamp(0, 1)
    scores, control = (nearest(images, bank, symmetries=turn) for images in (new, held_out))
    found = memorisation(scores.scores, control.scores)
    assert found.suspects[0] == 13 and found.quantiles[13] == 1 and scores.indices[13] == 66
    clean = memorisation(scores.scores[torch.arange(20) != 13], control.scores)
    assert clean.chances[0.95] > 0.01 and found.fractions[0.95][0] > clean.fractions[0.95][0]


def test_quantiles_are_counted():
    found = memorisation(torch.tensor([0.0, 0.5, 2.0, 9.0]), torch.arange(10.0), levels=(0.9, 0.5))
    assert found.quantiles.tolist() == pytest.approx([0.05, 0.1, 0.25, 0.95])  # equal scores count half
    assert found.fractions[0.9][0] == 0.25 and found.fractions[0.5][0] == 0.25
    assert len(found.suspects) == 0
    assert memorisation(torch.tensor([1.0, 9.5, 10.0]), torch.arange(10.0), levels=()).suspects.tolist() == [
        2,
        1,
    ]


def test_intervals_are_those_of_the_binomial():
    """Clopper and Pearson's table: 5 of 20 lies between 8.66 % and 49.10 %."""
    found = memorisation(torch.arange(20.0), torch.full((100,), 14.5), levels=(0.95,))
    assert found.fractions[0.95] == pytest.approx((0.25, 0.0866, 0.4910), abs=1e-4)


def test_chances_are_those_of_draws_from_one_sky():
    """Simulation: of 4,000 pairs of sets from one distribution, so many have at least that fraction above."""
    random = np.random.default_rng(0)
    ours, real = random.normal(size=(4000, 12)), random.normal(size=(4000, 40))
    above = (ours > np.sort(real)[:, [37]]).sum(1)  # the 38th of 40 is their 95 % quantile
    for wanted in (1, 2, 4):
        scores = torch.zeros(12)
        scores[:wanted] = 1.0
        held_out = torch.linspace(0.1, 0.9, 40)
        chance = memorisation(scores, held_out, levels=(0.95,)).chances[0.95]
        assert chance == pytest.approx((above >= wanted).mean(), abs=0.03)  # 4 standard errors


def test_of_several_neighbours_the_first_counts():
    ours, real = torch.tensor([[0.9, 0.1], [0.2, 0.1]]), torch.rand(50, 3).sort(descending=True).values
    one, other = memorisation(ours, real, levels=(0.9,)), memorisation(ours[:, 0], real[:, 0], levels=(0.9,))
    assert torch.equal(one.quantiles, other.quantiles) and one.chances == other.chances


def test_bad_scores_and_levels_are_refused():
    some = torch.rand(20)
    for bad in (some[:0], some[0], some.view(20, 1)[:, :0], some.view(20, 1, 1), some.numpy(), some.tolist()):
        with pytest.raises(ValueError, match=r"generated is .*; expected a tensor \(B,\) or \(B, count\)"):
            memorisation(bad, some, levels=(0.9,))
        with pytest.raises(ValueError, match=r"held_out is .*; expected a tensor"):
            memorisation(some, bad, levels=(0.9,))
    with pytest.raises(ValueError, match=r"levels is 0\.95; expected a tuple"):
        memorisation(some, some, levels=0.95)
    with pytest.raises(ValueError, match=r"held_out holds 20 scores; .*finite"):
        memorisation(some, some * torch.nan, levels=(0.9,))
    with pytest.raises(ValueError, match=r"level 0\.99 of 20 held-out images; .*at least 1 / \(1 - level\)"):
        memorisation(some, some, levels=(0.99,))
    with pytest.raises(ValueError, match="level 95"):
        memorisation(some, some, levels=(95,))
