"""Blocks that several GANs use."""

import pytest
import torch
from torch import nn

from galnb.layers import ACTIVATIONS, NORMS, Add, Concat, ResidualBlock


def test_sums_and_joins_are_modules(generator):
    a, b, c = torch.randn(3, 2, 4, 5, 5, generator=generator)
    assert torch.equal(Add()(a, b, c), a + b + c)
    assert torch.equal(Concat()(a, b), torch.cat([a, b], 1))
    assert a.equal(Add()(a))


@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_residual_block_adds_its_body_to_the_input(norm, activation, generator):
    block = ResidualBlock(8, activation=activation, norm=norm)
    images = torch.randn(2, 8, 6, 6, generator=generator)
    assert torch.equal(block(images), images + block.body(images)) or norm == "batch"
    with torch.no_grad():
        for weight in block.body[3:].parameters():
            weight.zero_()
    assert torch.equal(block(images), images)  # no activation after the sum: negative values pass


def test_residual_block_by_hand(generator):
    """Conv, norm, PReLU, conv, norm and the sum, written with functions."""
    block = ResidualBlock(4).eval()
    images = torch.randn(2, 4, 6, 6, generator=generator)
    first, norm1, slope, second, norm2 = block.body
    seen = (
        nn.functional.conv2d(images, first.weight, padding=1) / (1 + 1e-5) ** 0.5
    )  # fresh norms only divide
    seen = torch.where(seen > 0, seen, 0.25 * seen)
    seen = nn.functional.conv2d(seen, second.weight, padding=1) / (1 + 1e-5) ** 0.5
    assert torch.allclose(block(images), images + seen, atol=1e-6)  # float32, sums of 36 products
    assert (first.bias, second.bias, slope.weight.numel()) == (None, None, 4)
    assert norm1.weight.numel() == norm2.weight.numel() == 4


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (16, 1), (48, 3), (50, 2), (53, 1), (144, 9)])
def test_group_norm_fits_any_width(channels, groups):
    assert NORMS["group"](channels).num_groups == groups


def test_unknown_names_are_refused():
    with pytest.raises(KeyError, match="gelu"):
        ResidualBlock(4, activation="gelu")
    with pytest.raises(KeyError, match="layer"):
        ResidualBlock(4, norm="layer")
