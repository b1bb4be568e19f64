"""The U-Net: a share of the blend, or a free hand."""

from dataclasses import replace

import torch

from galnb.gans import to_signed
from galnb.gans.deblender import deblend, deblender
from galnb.gans.layers import Gate
from galnb.gans.unet import Brush
from tests.tiny_runs import TINY

GATED = replace(TINY, generator="gated", reconstruction="log_mse")


def test_gated_output_is_never_brighter_than_the_blend(generator):
    gan = deblender(GATED)
    with torch.no_grad():
        for weight in gan.generator.parameters():
            weight.normal_(0, 3, generator=generator)  # whatever it learns
    blended = torch.rand(4, 3, 16, 16, generator=generator)
    drawn = deblend(gan, blended)
    assert (drawn <= blended[:, None] + 1e-6).all() and drawn.min() >= 0  # (x + 1) - 1 rounds in float32
    assert (drawn > 0.5 * blended[:, None]).any()


def test_headroom_allows_exactly_so_much_more():
    blended, open_gate = (
        to_signed(torch.tensor([0.0, 0.3, 1.0]).view(3, 1, 1, 1)),
        torch.full((3, 2, 1, 1), 40.0),
    )
    for headroom in (0.0, 0.25):
        light = (Gate(headroom)(blended, open_gate) + 1) / 2
        assert torch.allclose(light, (blended[:, None] + 1) / 2 + headroom, atol=1e-6)
    assert Gate(0.25)(blended, -open_gate).max() == -1


def test_gate_keeps_galaxies_and_colours_apart():
    """Of N x C logits per pixel, the first C are galaxy 0's."""
    logits = torch.full((1, 6, 1, 1), -40.0)
    logits[0, 4] = 40.0  # galaxy 1, green
    light = Gate(0.0)(torch.ones(1, 3, 1, 1), logits)
    assert ((light[0, :, :, 0, 0] + 1) / 2).tolist() == [[0, 0, 0], [0, 1, 0]]


def test_brush_and_gate_differ_in_what_they_may_draw():
    blended, logits = torch.full((1, 3, 4, 4), -0.8), torch.full((1, 6, 4, 4), 9.0)
    assert torch.allclose(Gate(0.0)(blended, logits), blended[:, None].expand(1, 2, 3, 4, 4), atol=1e-3)
    assert torch.allclose(Brush()(blended, logits), torch.ones(1, 2, 3, 4, 4), atol=1e-3)
    gated, free = (deblender(replace(GATED, generator=name)).generator for name in ("gated", "unet"))
    assert all(
        torch.equal(mine, other) for mine, other in zip(gated.parameters(), free.parameters(), strict=True)
    )
