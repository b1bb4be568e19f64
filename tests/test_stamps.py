"""Tests of cutting galaxies out of their stamps."""

import numpy as np
import pytest
import torch

from galnb import images, stamps


def gaussian(side=64, sigma=3.0, x=0.0, y=0.0, peak=0.5):
    """One Gaussian galaxy (3, side, side), offset from the middle by x, y."""
    place = torch.arange(side) - (side - 1) / 2
    square = (place - x) ** 2 + (place[:, None] - y) ** 2
    return (peak * torch.exp(-square / (2 * sigma**2))).expand(3, -1, -1)


def test_light_centre_and_radius_of_a_gaussian(generator):
    noise = 0.1 + 0.01 * torch.randn(1, 3, 64, 64, generator=generator)
    cut = stamps.cut_out((noise + gaussian(x=4.0, y=-2.5)).clamp(0, 1))
    assert torch.allclose(cut.centres[0], torch.tensor([4.0, -2.5]), atol=0.15)  # noise moves it a little
    assert cut.radii[0] == pytest.approx(3 * (2 * np.log(2)) ** 0.5, rel=0.06)  # analytic; whole pixels
    assert cut.light.mean(1).sum() == pytest.approx(0.5 * 2 * np.pi * 9, rel=0.03)


def test_sky_is_gone_and_the_frame_is_empty(generator):
    cut = stamps.cut_out(images.hubble_deep_field(size=64, limit=20).pixels)
    assert (cut.light[..., [0, -1], :] == 0).all() and (cut.light[..., [0, -1]] == 0).all()
    assert cut.footprints.amin() == 0 and cut.footprints.amax() == 1
    steps = max(cut.footprints.diff(dim=axis).abs().max() for axis in (2, 3))
    assert steps < 0.5, "the footprint ends at a line"
    assert (cut.radii > 2).all()


def test_a_neighbour_that_does_not_touch_is_left_out():
    near, far = gaussian(x=-1.0), gaussian(x=22.0, y=3.0, sigma=2.0)
    alone, both = (stamps.cut_out((image + 0.02)[None].clamp(0, 1)) for image in (near, near + far))
    assert torch.allclose(alone.light, both.light, atol=0.01)


def test_an_empty_stamp_has_no_light():
    cut = stamps.cut_out(torch.full((2, 3, 32, 32), 0.01))
    assert (cut.light == 0).all() and (cut.radii == 0).all()


def test_blank_stamps_are_the_blackest(generator):
    galaxies = torch.stack([gaussian(peak=float(peak)) for peak in torch.linspace(1, 0.01, 12)])
    order = torch.randperm(12, generator=generator)
    assert sorted(order[stamps.blank(galaxies[order], 3)].tolist()) == [9, 10, 11]


@pytest.mark.parametrize(
    ("images_given", "words"),
    [
        (torch.zeros(0, 3, 64, 64), "no galaxies"),
        (torch.zeros(2, 1, 64, 64), "3 channels"),
        (torch.zeros(2, 3, 64, 32), "square"),
        (torch.zeros(2, 3, 8, 8), "16 px"),
        (torch.full((2, 3, 64, 64), 7.0), r"\[0, 1\]"),
    ],
)
def test_bad_stamps(images_given, words):
    with pytest.raises(ValueError, match=words):
        stamps.cut_out(images_given)


@pytest.mark.parametrize("sigmas", [-1, torch.nan, torch.inf])
def test_bad_sigmas(sigmas):
    with pytest.raises(ValueError, match=r"sigmas is .*; expected a finite number"):
        stamps.cut_out(torch.zeros(2, 3, 64, 64), sigmas=sigmas)


def test_of_equal_regions_one_is_kept():
    above = np.zeros((3, 8, 8), bool)
    above[:2, 1, 1:3] = above[:2, 5, 4:6] = True  # alike in the first image, unlike in the second
    weights = np.ones(above.shape)
    weights[1, 5, 4] = 1.5
    kept = stamps._heaviest_region(above, weights)
    assert kept.sum((1, 2)).tolist() == [2, 2, 0] and not (kept & ~above).any()
    assert kept[0, 1, 1:3].all() and kept[1, 5, 4:6].all()
    assert (stamps._heaviest_region(above[:1] & kept[:1], np.zeros((1, 8, 8))) == kept[:1]).all()


def test_equally_black_stamps_keep_their_order():
    galaxies = torch.zeros(300, 3, 16, 16)
    galaxies[::2] = 0.5
    wanted = [*range(1, 300, 2), *range(0, 300, 2)]
    assert stamps.blank(galaxies, 300).tolist() == wanted


@pytest.mark.parametrize("count", [2.5, 0, True, None])
def test_a_count_of_blank_stamps_is_a_whole_number(count):
    with pytest.raises(ValueError, match=r"whole number of at least 1|to choose None"):
        stamps.blank(torch.zeros(2, 3, 64, 64), count)


def test_more_blank_stamps_than_there_are():
    with pytest.raises(ValueError, match="got 2 stamps to choose 3"):
        stamps.blank(torch.zeros(2, 3, 64, 64), 3)
