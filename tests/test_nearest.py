"""Nearest images: scikit-image's SSIM for every pair, whatever form and size the bank has."""

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import structural_similarity

from galnb.blending.batches import turned
from galnb.evaluation import metrics
from galnb.evaluation.neighbours import nearest
from tests.tiny_runs import one_thread  # noqa: F401


def table(images, bank, data_range=1.0):
    """SSIM of every pair by scikit-image, (B, N)."""
    pairs = [
        structural_similarity(a, b, data_range=data_range, channel_axis=0)
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


def test_grey_images_and_other_ranges(generator):
    images, bank = (4 * torch.rand(n, 1, 9, 7, generator=generator) - 1 for n in (2, 12))
    found, wanted = nearest(images, bank, data_range=4), table(images, bank, 4.0)
    assert np.allclose(found.scores[:, 0], wanted.max(1), atol=1e-5)


def test_the_bank_may_come_in_any_form(sky, tmp_path):
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
        found = nearest(images, form, count=2, memory=memory)
        assert torch.equal(found.indices, wanted.indices)
        assert torch.allclose(found.scores, wanted.scores, atol=1e-6)


def test_of_equal_images_the_first_wins_across_pieces(sky):
    images, bank = sky[:2], torch.cat([sky[5:10], sky[:2], sky[:2]])
    for memory in (2**29, 1):
        found = nearest(images, bank, count=2, memory=memory)
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


def test_metrics_know_it_too(sky):
    found = metrics.nearest(sky[:3], sky)
    assert found.indices[:, 0].tolist() == [0, 1, 2]
    assert torch.allclose(metrics.ssim(sky[:3], sky[:3], data_range=1), found.scores[:, 0])


def test_bad_banks_are_refused(sky):
    images = sky[:2]
    for bank in (sky[..., :30], sky[:, :1], iter([sky, sky[..., :30]])):
        with pytest.raises(ValueError, match=r"bank holds images \(\d, 48, \d+\), expected \(3, 48, 40\)"):
            nearest(images, bank)
    for bank in (sky[:3], [sky[:2], sky[:1]]):
        with pytest.raises(ValueError, match="count is 4, but the bank has only 3 images"):
            nearest(images, bank, count=4)
    with pytest.raises(ValueError, match="bank has only 0"):
        nearest(images, [])
    with pytest.raises(ValueError, match=r"bank: got Tensor of shape \(3, 48, 40\)"):
        nearest(images, iter(sky))
    with pytest.raises(ValueError, match=r"from 0 to 255, wider than data_range=1"):
        nearest(images, torch.tensor([0.0, 255.0]).repeat(960).reshape(1, 3, 16, 40).repeat(1, 1, 3, 1))
    with pytest.raises(ValueError, match="not finite"):
        nearest(images, sky * torch.nan)


def test_bad_images_are_refused(sky):
    for images in (sky[0], (sky * 255).byte(), sky[:0], sky.numpy()):
        with pytest.raises(ValueError, match="expected a tensor of floats"):
            nearest(images, sky)
    with pytest.raises(ValueError, match=r"from -1 to 1, wider than data_range=1"):
        nearest(torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8), torch.rand(3, 3, 8, 8))
    with pytest.raises(ValueError, match="needs 7 x 7"):
        nearest(sky[..., :6], sky)
    with pytest.raises(ValueError, match=r"48 x 40 px; symmetries need squares"):
        nearest(sky[:1], sky, symmetries=True)
    with pytest.raises(ValueError, match="count=0"):
        nearest(sky[:1], sky, count=0)
    with pytest.raises(ValueError, match="data_range is 0"):
        nearest(sky[:1], sky, data_range=0)


@pytest.mark.parametrize(("level", "data_range"), [(10.0, 1.0), (1000.0, 1.0), (0.9, 0.001)])
def test_a_level_far_above_the_range(sky, level, data_range):
    images, bank = (data_range * part + level for part in (sky[:3], sky[3:9]))
    found = nearest(images, bank, count=6, data_range=data_range)
    wanted = np.take_along_axis(table(images, bank, data_range), found.indices.numpy(), 1)
    assert np.abs(found.scores.numpy() - wanted).max() < 1e-5 * level + 1e-6


@pytest.mark.parametrize("count", [7, 33, 100, 513])
def test_of_copies_the_first_wins_wherever_a_piece_ends(sky, count):
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(count)).sigmoid()
    bank = sky[:1, :, :16, :16].expand(count, -1, -1, -1)
    assert nearest(images, bank, count=3).indices.tolist() == [[0, 1, 2]]


def test_banks_of_other_numbers(sky):
    swapped = sky.numpy().astype(">f4")  # as FITS files have them
    assert torch.equal(nearest(sky[:2], swapped).indices, nearest(sky[:2], sky).indices)
    for wrong in (sky.to(torch.complex64), sky.bool(), (255 * sky).long()):
        with pytest.raises(ValueError, match="8-bit"):
            nearest(sky[:2], wrong)
    with pytest.raises(ValueError, match="bank is None"):
        nearest(sky[:2], None)
