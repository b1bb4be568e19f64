"""Blocks that several GANs use."""

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from galnb.gans.layers import (
    NORMS,
    Add,
    Concat,
    Multiply,
    ResidualBlock,
    Smear,
    batch_dependent,
    evaluating,
    gaussian_kernel,
)
from galnb.relevance import relevance


def test_sums_and_joins_are_modules(generator):
    a, b, c = torch.randn(3, 2, 4, 5, 5, generator=generator)
    assert torch.equal(Add()(a, b, c), a + b + c)
    assert torch.equal(Concat()(a, b), torch.cat([a, b], 1))
    assert a.equal(Add()(a))


def test_a_product_gives_its_relevance_to_the_signal(generator):
    """Light x gate: all relevance goes on to the light, as with the gate held constant."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.light, self.gate = nn.Conv2d(2, 3, 1, bias=False), nn.Conv2d(2, 3, 4, bias=False)
            self.multiply, self.sum = Multiply(), nn.Sequential(nn.Flatten(), nn.Linear(48, 1, bias=False))

        def forward(self, images):
            return self.sum(self.multiply(self.light(images), self.gate(images)))

    model = Gated().double()
    images = torch.randn(2, 2, 4, 4, generator=generator).double()
    signal, gate = model.light(images), model.gate(images)
    assert torch.equal(model.multiply(signal, gate), signal * gate)
    found = relevance(model, images, rule="epsilon")
    for index in range(2):  # with a constant gate the network is linear: epsilon is gradient times input
        x = images[index : index + 1].clone().requires_grad_()
        score = model.sum(model.light(x) * gate[index : index + 1].detach())
        (slope,) = torch.autograd.grad(score.sum(), x)
        wanted = x * slope / score
        assert torch.allclose(found.map[index : index + 1], wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("modern", [False, True])
def test_residual_block_adds_its_body_to_the_input(modern, generator):
    block = ResidualBlock(8, modern=modern)
    images = torch.randn(2, 8, 6, 6, generator=generator)
    assert torch.equal(block(images), images + block.body(images)) or not modern
    kinds = [nn.GroupNorm, nn.SiLU] if modern else [nn.BatchNorm2d, nn.PReLU]
    assert [type(layer) for layer in block.body] == [nn.Conv2d, *kinds, nn.Conv2d, kinds[0]]
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


@pytest.mark.parametrize(
    ("sigma", "centre"), [(0.0, 1.0), (0.1, 1.0), (0.5, 0.619), (1.0, 0.204), (1.5, 0.148), (2.0, 0.131)]
)
def test_gaussian_kernel_of_three_pixels(sigma, centre):
    """Weights at the centre: worked out by hand, 1 / (1 + 2 exp(-1 / (2 sigma^2)))^2."""
    kernel = gaussian_kernel(sigma)
    assert kernel.shape == (3, 3) and kernel[1, 1].item() == pytest.approx(centre, abs=5e-4)
    assert kernel.sum().item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(kernel, kernel.T) and torch.equal(kernel, kernel.flip(0))


@pytest.mark.parametrize(("sigma", "size"), [(0.5, 3), (1.0, 5), (1.5, 7)])
def test_smear_equals_scipy(sigma, size, generator):
    images = torch.rand(2, 3, 12, 10, generator=generator)
    options = {"sigma": (0, 0, sigma, sigma), "mode": "constant", "truncate": (size // 2) / sigma}
    wanted = gaussian_filter(images.double().numpy(), **options)
    assert torch.allclose(Smear(sigma, size)(images).double(), torch.from_numpy(wanted), atol=1e-6)


def test_smear_keeps_the_light_and_the_background(generator):
    images = torch.zeros(1, 1, 16, 16)
    images[..., 4:12, 4:12] = torch.rand(8, 8, generator=generator)
    smeared = Smear(1.5, 7)(images)
    assert smeared.sum().item() == pytest.approx(images.sum().item(), rel=1e-6)
    assert smeared.max() < images.max()
    signed = Smear(1.5, 7, background=-1.0)(images * 2 - 1)  # the same in the range of a network
    assert torch.allclose(signed, smeared * 2 - 1, atol=1e-6)
    assert torch.equal(Smear(0.0)(images), images)
    assert not list(Smear(1.0).state_dict())  # nothing to store: the config says all


@pytest.mark.parametrize(
    ("sigma", "size", "message"),
    [
        (-0.1, 3, "sigma=-0.1"),
        (float("nan"), 3, "sigma=nan"),
        (1.0, 4, "size=4"),
        (1.0, -1, "size=-1"),
    ],
)
def test_impossible_kernels_are_refused(sigma, size, message):
    for make in (gaussian_kernel, Smear):
        with pytest.raises(ValueError, match=message):
            make(sigma, size)


def test_smear_takes_floats_of_any_precision_and_nothing_else(generator):
    images = torch.rand(2, 3, 12, 10, generator=generator)
    for kind in (torch.float64, torch.float16, torch.bfloat16):
        found = Smear(1.0)(images.to(kind))
        assert found.dtype == kind and torch.allclose(found.float(), Smear(1.0)(images), atol=1e-2)
    for wrong, name in (((255 * images).byte(), "torch.uint8"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"images: got {name}, expected a tensor of floats"):
            Smear(1.0)(wrong)


def test_evaluating_gives_each_module_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(1).eval(), nn.Identity()))
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == before == [True, True, True, False, True]


def test_batch_dependent_names_every_batch_norm_and_no_other_norm():
    network = nn.ModuleDict({
        "one": nn.BatchNorm1d(2), "two": nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, affine=False)),
        "three": nn.BatchNorm3d(2), "lazy": nn.LazyBatchNorm2d(), "many": nn.SyncBatchNorm(2),
        "own": nn.BatchNorm2d(2, track_running_stats=False), "fixed": nn.BatchNorm2d(2).eval(),
        "instance": nn.InstanceNorm2d(2, track_running_stats=True), "group": nn.GroupNorm(1, 2),
        "layer": nn.LayerNorm(2), "dropout": nn.Dropout(),
    })  # fmt: skip
    assert batch_dependent(network) == ["one", "two.1", "three", "lazy", "many", "own", "fixed"]
    assert batch_dependent(network["one"]) == ["BatchNorm1d"]
    assert batch_dependent(ResidualBlock(4)) == ["body.1", "body.4"]
    assert batch_dependent(ResidualBlock(4, modern=True)) == []
