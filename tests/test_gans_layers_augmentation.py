"""Augmentation: hue against two outside references, places and squares by counting, gradients."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.color import hsv2rgb, rgb2hsv

from galnb.gans.layers import Augmentation, augment, rotate_hue

NONE = Augmentation(hue=0.0, translation=0.0, cutout=0.0)


def colours(count=6, side=9, *, generator):
    return torch.rand(count, 3, side, side, generator=generator)


@pytest.mark.parametrize("turn", [0.0, 0.1, 1 / 3, 0.5, 0.77, 1.0, -0.25])
def test_hue_is_that_of_scikit_image(turn, generator):
    images = colours(generator=generator)
    hsv = rgb2hsv(images.double().numpy(), channel_axis=1)
    hsv[:, 0] = (hsv[:, 0] + turn) % 1
    wanted = hsv2rgb(hsv, channel_axis=1)
    found = rotate_hue(images, torch.full((6,), turn))
    assert np.abs(found.numpy() - wanted).max() < 2e-6  # float32


def test_hue_is_that_of_the_standard_library(generator):
    images = colours(1, 3, generator=generator)
    found = rotate_hue(images, torch.tensor([0.2]))
    for pixel, turned in zip(images[0].flatten(1).T.tolist(), found[0].flatten(1).T.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        assert turned == pytest.approx(colorsys.hsv_to_rgb((h + 0.2) % 1, s, v), abs=2e-6)


def test_hue_moves_colours_only(generator):
    images, turns = colours(generator=generator), torch.rand(6, generator=generator)
    found = rotate_hue(images, turns)
    assert torch.allclose(found.amax(1), images.amax(1), atol=1e-6)
    assert torch.allclose(found.amin(1), images.amin(1), atol=1e-6)
    assert torch.allclose(rotate_hue(found, -turns), images, atol=5e-6)
    grey = torch.rand(2, 1, 4, 4, generator=generator).expand(-1, 3, -1, -1)
    assert torch.allclose(rotate_hue(grey, turns[:2]), grey)
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    assert rotate_hue(red, torch.tensor([1 / 3])).flatten().tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    # in [-1, 1] and beyond the same angle turns the same colours
    assert torch.allclose(rotate_hue(3 * images - 1, turns), 3 * found - 1, atol=1e-5)


def test_hue_has_the_gradient_of_finite_differences(generator):
    images = colours(2, 2, generator=generator).double().requires_grad_()
    turns = torch.tensor([0.13, 0.6], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: rotate_hue(x, turns), images, eps=1e-7, atol=1e-5)
    grey = torch.full((1, 3, 1, 1), 0.5, requires_grad=True)
    rotate_hue(grey, torch.tensor([0.3])).sum().backward()
    assert grey.grad.isfinite().all()


@pytest.mark.parametrize(
    ("images", "turns"),
    [(torch.zeros(2, 1, 4, 4), torch.zeros(2)), (torch.zeros(2, 3, 4, 4), torch.zeros(3))],
)
def test_hue_refuses_what_has_no_hue(images, turns):
    with pytest.raises(ValueError, match="only RGB has a hue"):
        rotate_hue(images, turns)


def test_one_image_in_four_changes_its_hue(generator):
    images = colours(1, 4, generator=generator).expand(2000, -1, -1, -1) * 2 - 1
    changed = (augment(images, replace(NONE, hue=0.25), generator=generator) != images).flatten(1).any(1)
    assert abs(changed.float().mean() - 0.25) < 0.04  # four standard deviations
    assert torch.equal(augment(images, NONE, generator=generator), images)


def test_shifts_are_whole_pixels_of_every_length_and_leave_black(generator):
    images = torch.full((800, 1, 16, 16), -1.0)
    images[:, :, 7, 8] = 1.0
    moved = augment(images, replace(NONE, translation=0.125), generator=generator)
    row, column = (moved[:, 0] == 1).nonzero()[:, 1:].T
    assert len(row) == 800 and ((moved == 1) | (moved == -1)).all()
    for place, middle in ((row, 7), (column, 8)):
        counts = torch.bincount(place - middle + 2, minlength=5)
        assert len(counts) == 5 and counts.min() > 110 and counts.max() < 210  # 160 expected
    bright = augment(torch.ones(50, 1, 16, 16), replace(NONE, translation=0.125), generator=generator)
    assert bright.unique().tolist() == [-1.0, 1.0] and (bright == -1).flatten(1).any(1).float().mean() > 0.8


def test_cutout_blanks_a_square_of_half_the_side(generator):
    images = torch.ones(600, 3, 16, 16)
    cut = augment(images, replace(NONE, cutout=0.5), generator=generator) == -1
    assert abs(cut.flatten(1).any(1).float().mean() - 0.5) < 0.09
    assert torch.equal(cut[:, 0], cut[:, 2]) and cut.sum((2, 3)).max() == 81  # 9 x 9 where it fits


def test_gradients_pass_and_draws_follow_the_generator(generator):
    images = (colours(4, 16, generator=generator) * 2 - 1).requires_grad_()
    how = Augmentation(hue=1.0, cutout=1.0)
    one, two = (augment(images, how, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    one.sum().backward()
    assert (images.grad != 0).any() and images.grad.isfinite().all()


@pytest.mark.parametrize("field", ["hue", "translation", "cutout"])
def test_shares_outside_zero_and_one_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} is 25"):
        Augmentation(**{field: 25})


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 32, 16), torch.zeros(3, 16, 16), torch.zeros(2, 3, 16, 16).byte()]
)
def test_images_that_are_not_square_floats_are_refused(images, generator):
    with pytest.raises(
        ValueError, match=r"expected squares \(B, C, S, S\)|uint8, expected a tensor of floats"
    ):
        augment(images, NONE, generator=generator)


def test_bytes_have_no_hue_and_chance_needs_a_generator():
    with pytest.raises(ValueError, match=r"uint8, expected a tensor of floats; .* / 255"):
        rotate_hue(torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2))
    with pytest.raises(ValueError, match="generator is None; expected"):
        augment(torch.zeros(2, 3, 16, 16), Augmentation(), generator=None)
