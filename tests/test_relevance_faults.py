"""Faults that users of such tools report: each is right here, or refused by its name."""

import copy

import pytest
import torch
from torch import nn

from galnb.gans.layers import Add, Multiply
from galnb.relevance import RULES, deletion_gate, operators, polarized_relevance, relevance
from tests.golden_networks import draw, randomise
from tests.relevance_oracle import Residual, generator, one_thread, share  # noqa: F401


def slope_times_input(model, images):
    """LRP-0 of a network that is linear piece by piece and has its norms merged: gradient times input."""
    leaf = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(leaf).sum(), leaf)
    return (slope * images).detach()


def check_epsilon(model, images):
    found, expected = relevance(model, images, rule="epsilon"), slope_times_input(model, images)
    signed = found.map * found.score.view(-1, *(1,) * (images.ndim - 1))
    torch.testing.assert_close(signed, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    torch.testing.assert_close(sum(found.lost.values()), found.leak, rtol=0, atol=1e-9)


class Between(nn.Module):
    """Something that is no module between two layers."""

    def __init__(self, between, channels=4):
        super().__init__()
        self.conv, self.between = nn.Conv2d(2, 4, 3, padding=1, bias=False), between
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(channels * 36, 1, bias=False))

    def forward(self, x):
        return self.last(self.between(self.conv(x)))


def added(y):
    y[:, :2] += y[:, 2:].clone()
    return y


def doubled(y):
    y[...] *= 2
    return y


def put(y):
    y[:, :2].index_put_((torch.tensor([0, 0]),), y[:1, 2:].clone(), accumulate=True)
    return y


def quietly(y):
    with torch.no_grad():
        y[:, :2] *= 3
    return y


def behind(y):
    y.data[:, :2] *= 3
    return y


ARITHMETIC = {
    "add_": added,
    "mul_": doubled,
    "index_put_": put,
    "add_ alpha": lambda y: y[:, :2].add_(y[:, 2:].clone(), alpha=0.5) is None or y,
    "sub_": lambda y: y[:, :1].sub_(0.3) is None or y,
    "masked_fill_": lambda y: y[:, :1].masked_fill_(y[:, :1] > 0, 0.7) is None or y,
    "clamp_": lambda y: y[:, :2].clamp_(min=0) is None or y,
    "leaky_relu_": lambda y: nn.functional.leaky_relu(y[:, :2], 0.2, inplace=True) is None or y,
    "mul_ without gradient": quietly,
    "mul_ behind its back": behind,
    "mul_ of an alias": lambda y: y.detach()[:, :1].mul_(3) is None or y,
}


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("operation", ARITHMETIC)
def test_arithmetic_in_place_is_refused_by_its_name(operation, copied):
    """Autograd calls it CopySlices, as if numbers were only moved: maps once summed to 4.4 in place of 1."""
    change = ARITHMETIC[operation]
    model = randomise(Between((lambda y: change(y.clone())) if copied else change))
    with pytest.raises(ValueError, match=operation.split()[0] if copied else r"in.place"):
        relevance(model, draw(2, 2, 6, 6), rule="zplus")
    model.between = nn.Identity()  # nothing of it is left
    assert relevance(model, draw(2, 2, 6, 6), rule="zplus").map.sum((1, 2, 3)).tolist() == pytest.approx(
        [1, 1]
    )


def test_copies_in_place_are_copies():
    def moved(y):
        new = torch.zeros_like(y)
        new[:, :2] = y[:, 2:]
        new[:, 2:].copy_(y[:, :2])
        new[:, :, 0] = 0
        return new

    check_epsilon(randomise(Between(moved)), draw(2, 2, 6, 6))

    def ramp(y):
        line = torch.linspace(-1, 1, 6, dtype=y.dtype)
        line[1:] *= 2  # arithmetic on constants is nobody's relevance
        return torch.cat([y, line.expand(len(y), 1, 6, 6)], 1)

    model, images = randomise(Between(ramp, channels=5)), draw(2, 2, 6, 6)
    found = relevance(model, images, rule="zplus")
    torch.testing.assert_close(sum(found.lost.values()), found.leak)


def test_layer_in_place_whose_input_is_used_again_is_refused():
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, self.add = nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(inplace=True), Add()
            self.last = nn.Sequential(nn.Flatten(), nn.Linear(72, 1))

        def forward(self, x):
            y = self.conv(x)
            return self.last(self.add(self.act(y), y))  # y is what the activation left of it

    model, images = randomise(Reused()), draw(1, 2, 6, 6)
    with pytest.raises(ValueError, match=r"'act' overwrites.*inplace=False"):
        relevance(model, images, rule="zplus")
    model.act.inplace = False
    relevance(model, images, rule="zplus")


class Twice(nn.Module):
    """One module under two names, and called twice; a batch norm behind one of the calls only."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.LeakyReLU(0.2)
        self.norm, self.add = nn.BatchNorm2d(3), Add()
        self.block = nn.Sequential(self.conv, self.norm, self.act)
        self.body = nn.Sequential(self.block, nn.Flatten(), nn.Linear(108, 1))

    def forward(self, x):
        return self.body[1:](self.add(self.act(self.conv(self.block(x))), x))


def test_module_registered_twice_and_called_twice():
    model, images = randomise(Twice()), draw(2, 3, 6, 6)
    names = [name for name, _, _ in operators.known_layers(model, "", set())]
    assert len(names) == len(set(names)) == 5
    check_epsilon(model, images)
    act, conv, norm = torch.nn.functional.leaky_relu, model.conv, model.norm

    def below(v):
        return norm(conv(v[None]))[0]

    for image, answer in zip(images, relevance(model, images, rule="zplus").map, strict=True):
        a = act(below(image), 0.2).detach()
        b = act(conv(a[None])[0], 0.2).detach()
        pair = torch.stack([b, image])
        r = share(lambda v: model.body[2](v.flatten()), b + image, torch.ones(1).double(), "zplus")
        r = share(lambda v: v[0] + v[1], pair, r, "zplus", weight_free=True)
        expected = r[1] + share(below, image, share(lambda v: conv(v[None])[0], a, r[0], "zplus"), "zplus")
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-10)
    assert all("forward" not in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("features", [8, 6])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_of_rows_behind_a_linear_layer(features, affine):
    """Linear puts its features last, BatchNorm1d scales axis 1: 8 rows of 8 features were mixed up."""

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(5, features), nn.BatchNorm1d(8, affine=affine)
            self.last = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(8 * features, 1))

        def forward(self, x):
            return self.last(self.norm(self.linear(x)))

    torch.manual_seed(1)
    model = Rows().double().eval()
    model.norm.running_var.uniform_(0.3, 2)
    model.norm.running_mean.normal_()
    images = draw(2, 8, 5)
    check_epsilon(model, images)
    hidden = torch.relu(model.norm(model.linear(images))).detach()
    for image, state, answer in zip(images, hidden, relevance(model, images, rule="zplus").map, strict=True):
        r = share(lambda v: model.last[2](v.flatten()), state, torch.ones(1).double(), "zplus")
        expected = share(lambda v: model.norm(model.linear(v[None]))[0], image, r, "zplus")
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-10)


def test_norm_behind_a_grouped_transposed_convolution_is_merged():
    up = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, 2, groups=2), nn.BatchNorm2d(4), nn.ReLU())
    check_epsilon(randomise(nn.Sequential(up, nn.Flatten(), nn.Linear(144, 1))), draw(2, 4, 3, 3))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_colour_model_that_flattens_by_view(layout):
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(64, 1)

        def forward(self, x):
            return self.last(self.conv(x).view(len(x), -1))

    model, images = randomise(Viewing()), draw(2, 3, 6, 6)
    given = images.contiguous(memory_format=layout)
    same = nn.Sequential(model.conv, nn.Flatten(), model.last)
    for reading in ("paper", "composite"):
        found, expected = (polarized_relevance(one, given, reading=reading) for one in (model, same))
        torch.testing.assert_close(found.positive, expected.positive, rtol=0, atol=1e-12)
    if layout == torch.contiguous_format:  # else the model itself would not take them
        maps = polarized_relevance(model, given)
        assert deletion_gate(model, given, maps, generator=generator()).shape == (2, 2)


@pytest.mark.parametrize("how", ["output_size=", "output_size", "input=", "add", "gate"])
def test_layers_called_with_keywords(how):
    class Calling(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv2d(1, 4, 3, 2, 1), nn.ConvTranspose2d(4, 2, 3, 2, 1)
            self.last = nn.Sequential(nn.Flatten(), nn.Linear(128, 1))
            self.multiply, self.act = Multiply(), nn.ReLU()

        def forward(self, x):
            h = self.act(input=self.down(input=x))
            if how == "output_size=":
                h = self.up(h, output_size=x.shape[-2:])
            elif how == "output_size":
                h = self.up(h, x.shape[-2:])
            elif how == "gate":
                h = self.multiply(gate=torch.ones_like(h).mean((2, 3), keepdim=True), signal=h)
                h = h.repeat(1, 2, 2, 2)[:, :2]
            else:
                h = nn.functional.pad(self.up(input=h), (0, 1, 0, 1))
            return self.last(h)

    check_epsilon(randomise(Calling()), draw(2, 1, 8, 8))


def test_call_with_what_is_no_tensor_is_refused():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.add = Add()

        def forward(self, x):
            return self.add(x, 3.0)

    with pytest.raises(ValueError, match=r"'add' is called with.*expected tensors"):
        relevance(Sum(), draw(1, 1), rule="zplus")


def test_sum_of_shapes_that_broadcast():
    class Broad(nn.Module):
        def __init__(self):
            super().__init__()
            self.add, self.pool = Add(), nn.AdaptiveAvgPool2d(1)
            self.last = nn.Sequential(nn.Flatten(), nn.Linear(18, 1))

        def forward(self, x):
            return self.last(self.add(x, self.pool(x)))

    check_epsilon(randomise(Broad()), draw(2, 2, 3, 3))


@pytest.mark.parametrize("bias", [False, True])
def test_instance_norm_with_running_statistics_is_a_batch_norm(bias):
    maps = []
    for kind in (nn.BatchNorm2d, nn.InstanceNorm2d):
        norm = kind(4, affine=True, track_running_stats=True)
        model = randomise(nn.Sequential(nn.Identity(), norm, nn.Flatten(), nn.Linear(144, 1)), seed=1)
        norm.running_mean.copy_(torch.tensor([0.3, -0.2, 0.5, 0.1]))
        norm.running_var.copy_(torch.tensor([0.5, 1.5, 0.8, 2.0]))
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([1.5, -0.5, 1.0, 0.7]))
        maps.append(polarized_relevance(model, draw(2, 4, 6, 6) * 2 + 0.5, bias=bias).positive)
    torch.testing.assert_close(*maps, rtol=1e-9, atol=0)


def detached(y):
    return torch.cat([y[:, :2], y[:, 2:].detach() + 0.3], 1)


def stacked(y):
    return torch.stack([y, torch.full_like(y, 0.4)], 1).flatten(1, 2)[:, 2:6]


def overwritten(y):
    y = y.clone()
    y[:, :, 0] = 0.7
    return y


CONSTANTS = {
    "frame": lambda y: nn.functional.pad(y, (1, 1, 1, 1), value=0.7)[:, :, :6, :6],
    "detached": detached,
    "stacked": stacked,
    "overwritten": overwritten,
    "joined": lambda y: torch.cat([y[:, :3], torch.ones_like(y[:, :1])], 1),
}


@pytest.mark.parametrize("through", ["weights", "activation", "output"])
@pytest.mark.parametrize("constants", CONSTANTS)
def test_relevance_lost_to_constants_is_named_by_layer(constants, through):
    model = randomise(Between(CONSTANTS[constants]))
    images, seed = draw(2, 2, 6, 6), None
    if through == "activation":
        model.last.insert(0, nn.LeakyReLU(0.2))
    if through == "output":
        model.last = nn.Identity()
        seed = draw(2, 4, 6, 6, seed=1)
    for rule in RULES:
        found = relevance(model, images, rule=rule, seed=seed)
        assert found.leak.abs().min() > 1e-6
        torch.testing.assert_close(sum(found.lost.values()), found.leak, rtol=0, atol=1e-10)
    if seed is None:
        found = polarized_relevance(model, images, reading="reference", references=draw(2, 2, 6, 6, seed=3))
        torch.testing.assert_close(sum(found.lost.values()).mean(1), found.leak[:, 0], rtol=0, atol=1e-10)


def low_precision_model():
    body = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16)),
        *(nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(1024, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1)),
    )
    return randomise(body, seed=5).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coarse_networks_are_computed_in_float32_and_left_as_they_were(dtype):
    model = low_precision_model().to(dtype)
    images = draw(2, 3, 16, 16).to(dtype)
    exact = copy.deepcopy(model).float()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    found, expected = polarized_relevance(model, images), polarized_relevance(exact, images.float())
    assert found.positive.dtype == torch.float32 and torch.equal(found.positive, expected.positive)
    assert found.leak.abs().max() < 1e-4
    gates = [deletion_gate(one, images, found, generator=generator()) for one in (model, exact)]
    assert torch.equal(*gates) and gates[0].dtype == torch.float32
    after = model.state_dict().values()
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(after, before, strict=True))
    seed = torch.ones(2, 1, dtype=dtype)
    assert torch.equal(
        relevance(model, images, rule="zplus", seed=seed).map,
        relevance(exact, images.float(), rule="zplus").map,
    )


def test_autocast_is_left_outside():
    model, images = low_precision_model(), draw(2, 3, 16, 16).float()

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.model(x)

    expected = polarized_relevance(model, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(polarized_relevance(model, images).positive, expected.positive)
        gate = deletion_gate(model, images, expected, generator=generator())
    assert torch.equal(gate, deletion_gate(model, images, expected, generator=generator()))
    assert torch.equal(polarized_relevance(Own(), images).positive, expected.positive)


def test_casts_to_low_precision_inside_a_model_are_refused():
    class Casting(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.pool, self.flat, self.last = nn.AvgPool2d(2), nn.Flatten(), last

        def forward(self, x):
            return self.last(self.flat(self.pool(x.bfloat16() if self.last is not torch.bfloat16 else x)))

    with pytest.raises(ValueError, match=r"'pool' is given torch.bfloat16"):
        relevance(Casting(nn.Identity()), draw(1, 1, 2, 2).float(), rule="zplus")
    tail = Between(lambda y: y)
    tail.last.append(nn.Identity())
    tail.forward = lambda x: nn.Module.__call__(tail.conv, x).half()
    with pytest.raises(ValueError, match=r"returns torch.float16 of shape"):
        relevance(tail, draw(1, 2, 2, 2).float(), rule="zplus", seed=torch.ones(1, 4, 2, 2))


def test_images_of_another_precision_are_told_so():
    model = low_precision_model()
    with pytest.raises(ValueError, match=r"torch.float64 \(its weights are torch.float32\)"):
        polarized_relevance(model, draw(1, 3, 16, 16))
    half = polarized_relevance(model, draw(1, 3, 16, 16).half())  # in float32, as everything coarser
    assert half.positive.dtype == torch.float32


def test_what_is_private_to_torch_is_as_expected():
    x = torch.rand(2, 4, 3, 3, requires_grad=True)
    y = x.clone()
    y[:, :1] = 0
    assert y.grad_fn.name() == "torch::autograd::CopySlices"
    assert x.view_as(x).grad_fn.name() == "ViewBackward0"
    (before,) = [node for node, _ in x.view_as(x).grad_fn.next_functions]
    assert before.name() == "torch::autograd::AccumulateGrad" and before.variable is x
    joined = torch.cat([x, torch.ones(2, 1, 3, 3)], 1).grad_fn
    assert joined.name() == "CatBackward0" and [node for node, _ in joined.next_functions][1] is None
    assert x.view_as(x).data_ptr() == x.data_ptr()
    assert torch.ops.aten.add_.Tensor._schema.is_mutable and not torch.ops.aten.add.Tensor._schema.is_mutable
    conv = nn.Conv2d(1, 1, (3, 5), padding=(1, 2), padding_mode="reflect")
    assert operators.framed(conv, torch.zeros(1, 1, 4, 4)).shape == (1, 1, 6, 8)
    kept = nn.Linear(2, 1).bfloat16()
    data = kept.weight.data
    kept.weight.data = data.float()
    assert kept.weight.dtype == torch.float32
    kept.weight.data = data
    assert kept.weight.dtype == torch.bfloat16
