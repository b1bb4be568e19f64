"""Ranges: what users give lies in [0, 1], what networks take in [-1, 1]."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from galnb.gans import images_of, to_signed, to_unit
from tests.tiny_runs import plain_gan


def test_ranges_map_into_each_other(random_images):
    assert to_signed(torch.tensor([0.0, 0.25, 1.0])).tolist() == [-1.0, -0.5, 1.0]
    # 2 x - 1 rounds once in float32, below 1e-7 for values up to 1
    assert torch.allclose(to_unit(to_signed(random_images)), random_images, atol=1e-7)


def test_to_unit_clips_what_lies_outside():
    assert to_unit(torch.tensor([-1.5, -1.0, 0.0, 1.0, 3.0])).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_a_gan_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        plain_gan().name = "other"


@pytest.mark.parametrize(
    ("batch", "given"),
    [
        ({}, "None"),
        ({"images": torch.zeros(0, 3, 8, 8)}, "0, 3"),
        ({"images": torch.zeros(2, 3, 8, 9)}, "8, 9"),
    ],
)
def test_images_of_a_batch_have_the_shape_asked_for(batch, given):
    fits = torch.zeros(2, 3, 8, 8)
    assert images_of({"images": fits}, "images", (3, 8, 8)) is fits
    with pytest.raises(ValueError, match=rf"images .*{given}.*expected \(B, 3, 8, 8\), at least one"):
        images_of(batch, "images", (3, 8, 8))
