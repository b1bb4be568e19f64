"""Rules on single layers against their definition written out with dense matrices."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from galnb.gans.layers import Add, Gate, evaluating
from galnb.relevance import RULES, relevance
from tests.golden_networks import draw, randomise
from tests.relevance_oracle import TOLERANCE, one_thread, share  # noqa: F401

LAYER_CASES = {
    "linear": (lambda: nn.Linear(12, 7), (12,)),
    "conv": (lambda: nn.Conv2d(3, 4, 3), (3, 6, 5)),
    "conv stride padding": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 6, 7)),
    "conv dilation": (lambda: nn.Conv2d(2, 4, 3, stride=(1, 2), padding=(2, 1), dilation=2), (2, 7, 6)),
    "conv groups no bias": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), (4, 5, 5)),
    "conv same": (lambda: nn.Conv2d(2, 3, (2, 4), padding="same"), (2, 5, 6)),
    "conv 1d": (lambda: nn.Conv1d(2, 3, 4, stride=3), (2, 12)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1), (4, 3, 4)),
    "transposed output padding": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=3, output_padding=(2, 1), groups=2),
        (4, 3, 2),
    ),
    "spectral norm": (lambda: spectral_norm(nn.Conv2d(3, 4, 3, padding=1)), (3, 5, 5)),
    "old spectral norm": (lambda: nn.utils.spectral_norm(nn.Linear(12, 7)), (12,)),
    "weight norm": (lambda: weight_norm(nn.Conv2d(3, 4, 3, padding=1)), (3, 5, 5)),
    "conv and batch norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)),
        (3, 5, 5),
    ),
    "transposed and batch norm": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.BatchNorm2d(4)),
        (3, 3, 3),
    ),
    "linear and batch norm": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, affine=False)),
        (5,),
    ),
    "average": (lambda: nn.AvgPool2d(3, stride=2, padding=1), (2, 6, 7)),
    "adaptive average": (lambda: nn.AdaptiveAvgPool2d((2, 3)), (2, 5, 7)),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 4)),
    "nearest": (lambda: nn.Upsample(scale_factor=2), (2, 3, 4)),
}
WEIGHT_FREE = ("average", "adaptive average", "bilinear", "nearest")


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", LAYER_CASES)
def test_rule_on_layer_equals_dense_definition(case, rule):
    build, shape = LAYER_CASES[case]
    weight_free = case in WEIGHT_FREE
    layer = randomise(build()) if not weight_free else build()
    images = draw(2, *shape)
    seed = draw(*layer(images).shape, seed=1)
    found = relevance(layer, images, rule=rule, seed=seed.detach())
    for image, arriving, answer in zip(images, seed, found.map, strict=True):
        with evaluating(layer):
            expected = share(lambda x: layer(x[None])[0], image, arriving, rule, weight_free=weight_free)
        scale = expected.abs().max()
        assert (answer - expected).abs().max() <= TOLERANCE * scale


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("rule", RULES)
def test_padding_copies_pixels_before_products_are_truncated(mode, rule):
    layer = randomise(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode))
    image = draw(2, 5, 4)
    arriving = draw(3, 5, 4, seed=1)
    inner = copy.deepcopy(layer)
    inner.padding, inner.padding_mode = (0, 0), "zeros"
    pixels = image.clone().requires_grad_()
    padded = F.pad(pixels[None], (1, 1, 1, 1), mode)
    copies = share(lambda x: inner(x[None])[0], padded[0].detach(), arriving, rule)
    (expected,) = torch.autograd.grad(padded, pixels, copies[None])
    found = relevance(layer, image[None], rule=rule, seed=arriving[None])
    torch.testing.assert_close(found.map[0], expected, rtol=0, atol=float(TOLERANCE * expected.abs().max()))


@pytest.mark.parametrize("rule", RULES)
def test_sum_of_three_shares_like_a_layer_of_ones(rule):
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.add = Add()

        def forward(self, x):
            return self.add(*x.chunk(3, 1))

    images, seed = draw(2, 6, 3, 3), draw(2, 2, 3, 3, seed=1)
    found = relevance(Three(), images, rule=rule, seed=seed)
    for image, arriving, answer in zip(images, seed, found.map, strict=True):
        expected = share(lambda x: sum(x.chunk(3)), image, arriving, rule, weight_free=True)
        torch.testing.assert_close(answer, expected, rtol=0, atol=float(TOLERANCE * expected.abs().max()))


@pytest.mark.parametrize(
    "layer",
    [
        *(
            nn.ReLU(),
            nn.LeakyReLU(0.2, inplace=True),
            nn.PReLU(),
            nn.SiLU(),
            nn.GELU(),
            nn.Sigmoid(),
            nn.Tanh(),
        ),
        *(nn.Flatten(), nn.Identity(), nn.Dropout(0.5), nn.PixelShuffle(2), nn.PixelUnshuffle(2)),
        *(nn.LayerNorm((4, 6, 6)), nn.GroupNorm(2, 4), nn.BatchNorm2d(4), nn.InstanceNorm2d(4)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_of_one_input_per_output_pass_relevance_on(layer):
    model = nn.Sequential(nn.Identity(), layer).double()
    images = draw(2, 4, 6, 6)
    seed = draw(*model.eval()(images.clone()).shape, seed=1)
    found = relevance(model, images, rule="zplus", seed=seed)
    unchanged = isinstance(layer, nn.PixelShuffle | nn.PixelUnshuffle)
    back = nn.PixelUnshuffle(2) if isinstance(layer, nn.PixelShuffle) else nn.PixelShuffle(2)
    expected = back(seed) if unchanged else seed.view_as(images)
    torch.testing.assert_close(found.map, expected, rtol=0, atol=1e-14)


def test_max_pooling_gives_all_to_the_winner():
    images = torch.tensor([[[[1.0, 2.0], [4.0, 3.0]]]])
    found = relevance(nn.MaxPool2d(2), images, rule="zplus", seed=torch.full((1, 1, 1, 1), 5.0))
    assert found.map.tolist() == [[[[0, 0], [5, 0]]]]


def test_gates():
    images, seed = draw(2, 4, 3, 3), draw(2, 2, 3, 3, seed=1)
    found = relevance(nn.GLU(dim=1), images, rule="epsilon", seed=seed)
    torch.testing.assert_close(found.map, torch.cat([seed, torch.zeros_like(seed)], 1))

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = Gate(0.0)

        def forward(self, x):
            return self.gate(x[:, :1], x[:, 1:])

    found = relevance(Gated(), draw(2, 3, 3, 3), rule="epsilon", seed=seed[:, :, None])
    torch.testing.assert_close(found.map, torch.cat([seed.sum(1, keepdim=True), seed], 1) / 2)
