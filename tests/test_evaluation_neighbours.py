"""Nearest images: scikit-image's SSIM for every pair. Memorisation: counting, simulation, planted copies."""

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import structural_similarity

from galnb.evaluation import metrics, nearest, neighbours
from galnb.evaluation.neighbours import memorisation
from galnb.images import ImageSet, turned
from tests.tiny_runs import one_thread  # noqa: F401


def table(images, bank):
    """SSIM of every pair by scikit-image, (B, N)."""
    pairs = [
        structural_similarity(a, b, data_range=1.0, channel_axis=0)
        for a in images.double().numpy()
        for b in bank.double().numpy()
    ]
    return np.array(pairs).reshape(len(images), len(bank))


def pieces_of(picture, count, size, generator):
    """Random cutouts of a scikit-image sample, (count, 3, *size) in [0, 1]."""
    whole = torch.from_numpy(getattr(data, picture)().copy()).permute(2, 0, 1).float() / 255
    tops, lefts = (
        torch.randint(whole.shape[axis] - size[axis - 1], (count,), generator=generator).tolist()
        for axis in (1, 2)
    )
    return torch.stack(
        [whole[:, t : t + size[0], left : left + size[1]] for t, left in zip(tops, lefts, strict=True)]
    )


@pytest.fixture(scope="module")
def sky():
    generator = torch.Generator().manual_seed(5)
    return pieces_of("hubble_deep_field", 46, (48, 40), generator)


@pytest.mark.parametrize("picture", ["hubble_deep_field", "astronaut"], ids=["dark", "bright"])
@pytest.mark.parametrize("count", [1, 3])
def test_scores_are_scikit_images(picture, count, generator):
    images, bank = (pieces_of(picture, n, (48, 40), generator) for n in (3, 30))
    bank[7] = (images[1] + 0.02 * torch.rand(3, 48, 40, generator=generator)).clamp(0, 1)
    found, wanted = nearest(images, bank, count=count), table(images, bank)
    order = np.argsort(-wanted, axis=1)[:, :count]
    assert np.array_equal(found.indices, order) and found.indices[1, 0] == 7
    # single precision against double
    assert np.allclose(found.scores, np.take_along_axis(wanted, order, 1), atol=1e-5)
    assert not found.turns.any()


def test_flat_bright_images_keep_their_digits(generator):
    """Variances of 1e-5 on a level of 0.9, where differences of squares would lose them."""
    images, bank = (0.9 + 0.003 * torch.randn(n, 1, 16, 16, generator=generator) for n in (2, 20))
    wanted = table(images, bank)
    assert np.allclose(nearest(images, bank).scores[:, 0], wanted.max(1), atol=1e-5)


def test_grey_images_of_another_shape(generator):
    images, bank = (torch.rand(n, 1, 9, 7, generator=generator) for n in (2, 12))
    assert np.allclose(nearest(images, bank).scores[:, 0], table(images, bank).max(1), atol=1e-5)


def test_the_bank_may_come_in_any_form(sky, tmp_path, monkeypatch):
    sky = sky[..., 12:28, 12:28]
    images, bank = sky[:4], (sky[4:16] * 255).round().to(torch.uint8)
    wanted = nearest(images, bank.float() / 255, count=2)
    stored = np.memmap(tmp_path / "bank", np.uint8, "w+", shape=tuple(bank.shape))
    stored[:] = bank.numpy()
    forms = (
        bank,
        stored,
        iter(bank.split(5)),
        [bank[:1].numpy(), bank[1:].float() / 255],
        (stored[i : i + 9] for i in range(0, 12, 9)),
    )
    for form, memory in zip(forms, (1, 10**7, 1, 10**7, 1), strict=True):  # image by image, or more at once
        monkeypatch.setattr(neighbours, "_MEMORY", memory)
        found = nearest(images, form, count=2)
        assert torch.equal(found.indices, wanted.indices)
        assert torch.allclose(found.scores, wanted.scores, atol=1e-6)


def test_of_equal_images_the_first_wins_across_pieces(sky, monkeypatch):
    images, bank = sky[:2], torch.cat([sky[5:10], sky[:2], sky[:2]])
    for memory in (2**29, 1):
        monkeypatch.setattr(neighbours, "_MEMORY", memory)
        found = nearest(images, bank, count=2)
        assert found.indices.tolist() == [[5, 7], [6, 8]]
        assert torch.allclose(found.scores, torch.ones(2, 2), atol=1e-6)


@pytest.mark.parametrize("turn", range(8))
def test_turned_copies_are_found_with_symmetries(turn, generator):
    square = pieces_of("hubble_deep_field", 12, (24, 24), generator)
    images = turned(square[3:5], turn)
    found = nearest(images, square, symmetries=True)
    assert found.indices[:, 0].tolist() == [3, 4]
    assert torch.allclose(found.scores, torch.ones(2, 1), atol=1e-6)
    for index in range(2):
        again = turned(images[index : index + 1], int(found.turns[index, 0]))
        assert torch.equal(again[0], square[3 + index])


def test_symmetries_take_the_best_of_eight(generator):
    images, bank = (pieces_of("hubble_deep_field", n, (20, 20), generator) for n in (2, 10))
    wanted = np.stack([table(turned(images, turn), bank) for turn in range(8)])
    found = nearest(images, bank, symmetries=True, count=10)
    assert np.allclose(found.scores, -np.sort(-wanted.max(0), axis=1), atol=1e-5)
    rows = np.arange(2)[:, None]
    assert np.allclose(wanted[found.turns, rows, found.indices], found.scores, atol=1e-5)


def test_it_agrees_with_the_metric(sky):
    found = nearest(sky[:3], sky)
    assert found.indices[:, 0].tolist() == [0, 1, 2]
    assert torch.allclose(metrics.ssim(sky[:3], sky[:3], data_range=1), found.scores[:, 0])


def test_bad_banks_are_refused(sky):
    images = sky[:2]
    for bank in (sky[..., :30], sky[:, :1], iter([sky, sky[..., :30]])):
        with pytest.raises(ValueError, match=r"images \(3, 48, 40\) and a bank of \(\d, 48, \d+\); .*same"):
            nearest(images, bank)
    for bank in (sky[:3], [sky[:2], sky[:1]]):
        with pytest.raises(ValueError, match="count is 4, but the bank has only 3 images"):
            nearest(images, bank, count=4)
    with pytest.raises(ValueError, match="bank has only 0"):
        nearest(images, [])
    with pytest.raises(ValueError, match=r"bank: got shape \(3, 48, 40\)"):
        nearest(images, iter(sky))
    with pytest.raises(ValueError, match=r"bank: got values from 0 to 255, expected \[0, 1\]"):
        nearest(images, torch.tensor([0.0, 255.0]).repeat(960).reshape(1, 3, 16, 40).repeat(1, 1, 3, 1))
    with pytest.raises(ValueError, match=r"bank: got .*nan"):
        nearest(images, sky * torch.nan)


def test_bad_images_are_refused(sky):
    for images in (sky[0], (sky * 255).byte(), sky[:0], sky.numpy(), ImageSet(sky, ("",) * len(sky), "")):
        with pytest.raises(ValueError, match="images: got"):
            nearest(images, sky)
    with pytest.raises(ValueError, match=r"from -1 to 1, expected \[0, 1\]"):
        nearest(torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8), torch.rand(3, 3, 8, 8))
    with pytest.raises(ValueError, match="48 x 6 px; expected 7 or more"):
        nearest(sky[..., :6], sky)
    with pytest.raises(ValueError, match=r"48 x 40 px; expected .* symmetries: squares"):
        nearest(sky[:1], sky, symmetries=True)
    with pytest.raises(ValueError, match="count=0"):
        nearest(sky[:1], sky, count=0)


@pytest.mark.parametrize("count", [7, 33, 100, 513])
def test_of_copies_the_first_wins_wherever_a_piece_ends(sky, count):
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(count)).sigmoid()
    bank = sky[:1, :, :16, :16].expand(count, -1, -1, -1)
    assert nearest(images, bank, count=3).indices.tolist() == [[0, 1, 2]]


def test_banks_of_other_numbers(sky):
    swapped = sky.numpy().astype(">f4")  # as FITS files have them
    assert torch.equal(nearest(sky[:2], swapped).indices, nearest(sky[:2], sky).indices)
    for wrong in (sky.to(torch.complex64), sky.bool(), (255 * sky).long()):
        with pytest.raises(ValueError, match="bank: got dtype"):
            nearest(sky[:2], wrong)
    with pytest.raises(ValueError, match="bank: got NoneType, expected Iterable; give a tensor or array"):
        nearest(sky[:2], None)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_another_precision(sky, kind):
    exact = sky.to(torch.float32 if kind == torch.float64 else kind).float()
    wanted, found = nearest(exact[:2], exact, count=3), nearest(exact[:2].to(kind), exact.to(kind), count=3)
    assert torch.equal(wanted.indices, found.indices) and torch.allclose(wanted.scores, found.scores)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_constant_images_are_copies_of_one_another(level):
    found = nearest(torch.full((1, 3, 7, 7), level), torch.full((3, 3, 7, 7), level), count=3)
    assert found.indices.tolist() == [[0, 1, 2]] and torch.allclose(found.scores, torch.ones(1, 3), atol=1e-6)


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
    assert isinstance(found, neighbours.Memorisation)
    assert found.suspects[0] == 13 and scores.indices[13] == 66
    clean = memorisation(scores.scores[torch.arange(20) != 13], control.scores)
    assert clean.chances[0.95] > 0.01 and found.fractions[0.95][0] > clean.fractions[0.95][0]


def test_images_above_a_quantile_are_counted():
    found = memorisation(torch.tensor([0.0, 0.5, 2.0, 9.0]), torch.arange(10.0), levels=(0.9, 0.5))
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
    assert one.fractions == other.fractions and one.chances == other.chances


def test_bad_scores_and_levels_are_refused():
    some = torch.rand(20)
    for bad in (some[:0], some[0], some.view(20, 1)[:, :0], some.view(20, 1, 1), some.numpy(), some.tolist()):
        with pytest.raises(
            ValueError, match=r"generated.*expected a tensor (of floats|\(B,\) or \(B, count\))"
        ):
            memorisation(bad, some, levels=(0.9,))
        with pytest.raises(ValueError, match=r"held_out.*expected a tensor"):
            memorisation(some, bad, levels=(0.9,))
    with pytest.raises(ValueError, match="held_out: got NaN or infinite values"):
        memorisation(some, some * torch.nan, levels=(0.9,))
    with pytest.raises(
        ValueError, match=r"level 0\.99 of 20 held-out images; expected .*an image or more above"
    ):
        memorisation(some, some, levels=(0.99,))
    with pytest.raises(ValueError, match="level 95"):
        memorisation(some, some, levels=(95,))
