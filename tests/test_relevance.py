"""Relevance against its definition written out with dense matrices, against zennit, and on bad input."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from galnb.gans.deblender import DeblenderConfig, Discriminator, deblender
from galnb.gans.layers import Add, Concat, Gate, evaluating
from galnb.relevance import (
    READINGS,
    RULES,
    Polarized,
    Relevance,
    deletion_gate,
    polarized_relevance,
    relevance,
)
from galnb.relevance.propagation import LAYERS, record, recording
from galnb.training.checkpoints import WEIGHTS, load_checkpoint

# All oracles run in float64; what differs then is rounding, and cancellation in sums of some hundred terms.
TOLERANCE = 1e-10
LOW, HIGH = -1.0, 1.0


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small tensors gain nothing from threads and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed), dtype=torch.float64) * 2 - 1


def randomise(model, seed=0):
    """Give every parameter and statistic a value, biases included."""
    source = generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) / parameter[0].numel() ** 0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3, generator=source)
                module.running_var.uniform_(0.5, 2, generator=source)
                module.weight.uniform_(-1.5, 1.5, generator=source)
    return model.double().eval()


# --- the definition, dense ----------------------------------------------------------------------------------


def matrix(function, x):
    """Return the weights (outputs, inputs) and the bias of an affine function of one image."""
    zero = torch.zeros_like(x)
    weights = torch.autograd.functional.jacobian(function, zero)
    return weights.reshape(-1, x.numel()), function(zero).flatten()


def share(function, x, arriving, rule, *, bias=False, weight_free=False, differences=False):
    """Share relevance (outputs) among the inputs of an affine function, by the printed formula of a rule."""
    weights, shift = matrix(function, x)
    z = weights * x.flatten()
    shift = torch.zeros_like(shift) if differences else shift
    total = z.sum(1) + shift
    up, down = z.clamp(min=0), z.clamp(max=0)
    own = torch.where(total[:, None] >= 0, up, down)
    if rule in ("zplus", "zminus") and weight_free:
        terms, whole = z.abs(), z.abs().sum(1)
    elif rule in ("zplus", "zminus"):
        terms, side = (up, shift.clamp(min=0)) if rule == "zplus" else (down, shift.clamp(max=0))
        whole = terms.sum(1) + (side if bias else 0)
    elif rule == "epsilon":
        terms, whole = z, total
    elif rule == "same_sign":
        terms, whole = own, own.sum(1)
    elif rule == "gamma":
        terms, whole = z + 0.25 * own, total + 0.25 * own.sum(1)
    elif rule == "zbox":
        terms = z - LOW * weights.clamp(min=0) - HIGH * weights.clamp(max=0)
        whole = terms.sum(1)
    elif rule == "flat":
        terms = (weights != 0).double()
        whole = terms.sum(1)
    shares = torch.where(whole[:, None] != 0, terms / whole[:, None] * arriving.flatten()[:, None], 0)
    return shares.sum(0).view_as(x)


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
    if weight_free and rule in ("zbox", "flat"):
        pytest.skip("first-layer rules are for layers with weights")
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


@pytest.mark.parametrize("rule", ["epsilon", "zplus", "zminus", "same_sign", "gamma"])
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


# --- readings -----------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A discriminator with many traps: batch norm, skip, concatenation, pooling, slices, reuse."""

    def __init__(self):
        super().__init__()
        self.act = nn.LeakyReLU(0.2)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.add, self.concat = Add(), Concat()
        self.third = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.dense, self.last = nn.Linear(24, 5), nn.Linear(5, 1)

    def forward(self, x):
        x = self.act(self.first(x))
        y = self.add(x, self.act(self.norm(self.second(x))))
        y = self.concat(y[:, 2:], x, y[:, :2])
        y = self.pool(self.act(self.third(y)))
        return self.last(self.act(self.dense(y.flatten(1))))

    def dense_relevance(self, x, x0, seed, rules, *, bias=False):
        """Propagate by hand, on differences to x0 if one is given. `rules`: one per layer with weights."""
        act, differences = partial(F.leaky_relu, negative_slope=0.2), x0 is not None

        def merged(a):
            return self.norm(self.second(a[None]))[0]

        def run(image):
            a = act(self.first(image[None]))[0]
            b = act(merged(a))
            y = a + b
            c = torch.cat([y[2:], a, y[:2]])
            d = act(self.third(c[None]))[0]
            e = self.pool(d[None])[0]
            return [image, a, b, c, d, e, act(self.dense(e.flatten()))]

        states = run(x)
        if differences:
            states = [state - other for state, other in zip(states, run(x0), strict=True)]
        x, a, b, c, d, e, f = states
        args = {"bias": bias, "differences": differences}

        def one(layer):
            return lambda v: layer(v[None])[0]

        r = share(self.last, f, seed, rules[4], **args)
        r = share(lambda v: self.dense(v.flatten()), e, r, rules[3], **args)
        r = share(one(self.pool), d, r, rules[2], weight_free=True, **args)
        r = share(one(self.third), c, r, rules[2], **args)
        through = torch.cat([r[6:], r[:2]])
        pair = share(lambda v: v[0] + v[1], torch.stack([a, b]), through, rules[1], weight_free=True, **args)
        r = r[2:6] + pair[0] + share(merged, a, pair[1], rules[1], **args)
        return share(one(self.first), x, r, rules[0], **args)


@pytest.fixture(scope="module")
def net():
    return randomise(Residual(), seed=3)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reading", ["paper", "output"])
def test_polarized_readings_equal_dense_definition(net, reading, bias):
    images = draw(2, 3, 8, 8)
    found = polarized_relevance(net, images, reading=reading, bias=bias)
    below = "zminus" if reading == "paper" else "zplus"
    rules = {"positive": ["zplus"] * 5, "negative": [below] * 4 + ["zminus"]}
    for name, chosen in rules.items():
        for image, answer in zip(images, getattr(found, name), strict=True):
            expected = net.dense_relevance(image, None, torch.ones(1).double(), chosen, bias=bias)
            torch.testing.assert_close(answer, expected, rtol=0, atol=TOLERANCE)
    arrived = torch.stack([found.positive.sum((1, 2, 3)), found.negative.sum((1, 2, 3))], 1)
    torch.testing.assert_close(arrived, 1 - found.leak)
    torch.testing.assert_close(sum(found.lost.values()), found.leak)


def test_composite_equals_dense_definition(net):
    images = draw(2, 3, 8, 8)
    found = polarized_relevance(net, images, reading="composite")
    for image, score, positive, negative in zip(
        images, found.score, found.positive, found.negative, strict=True
    ):
        expected = net.dense_relevance(image, None, score[None], ["same_sign"] * 3 + ["epsilon"] * 2)
        torch.testing.assert_close(positive - negative, expected, rtol=0, atol=TOLERANCE)
    assert found.positive.min() >= 0 and found.negative.min() >= 0


@pytest.mark.parametrize("count", [1, 3])
def test_reference_equals_dense_definition_and_sums_exactly(net, count):
    images, references = draw(2, 3, 8, 8), draw(count, 3, 8, 8, seed=9)
    found = polarized_relevance(net, images, reading="reference", references=references)
    with torch.no_grad():
        target = net(images).flatten() - net(references).mean()
    signed = found.positive - found.negative
    torch.testing.assert_close(signed.sum((1, 2, 3)), target, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(found.score - found.reference_score, target, rtol=0, atol=1e-12)
    for image, answer in zip(images, signed, strict=True):
        expected = torch.zeros_like(image)
        for reference in references:
            with torch.no_grad():
                seed = (net(image[None]) - net(reference[None])).flatten()
            rules = ["same_sign"] * 2 + ["epsilon"] * 3
            expected += net.dense_relevance(image, reference, seed, rules) / count
        torch.testing.assert_close(answer, expected, rtol=0, atol=TOLERANCE)


def test_scores_without_an_axis_of_their_own(net):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x).squeeze(1)

    images, references = draw(2, 3, 8, 8), draw(2, 3, 8, 8, seed=9)
    for options in ({}, {"reading": "composite"}, {"reading": "reference", "references": references}):
        found, expected = (polarized_relevance(model, images, **options) for model in (Flat(), net))
        for name in ("positive", "negative", "score", "leak", "reference_score"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert relevance(Flat(), images, rule="gamma").leak.shape == (2,)


def test_first_layer_rule(net):
    images = draw(1, 3, 8, 8)
    found = polarized_relevance(net, images, first_layer="zbox")
    expected = net.dense_relevance(images[0], None, torch.ones(1).double(), ["zbox"] + ["zminus"] * 4)
    torch.testing.assert_close(found.negative[0], expected, rtol=0, atol=TOLERANCE)


def test_unmerged_norm_takes_its_share_only_with_bias():
    norm = randomise(nn.Sequential(nn.Identity(), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 1)), seed=2)
    images = draw(1, 2, 2, 2)
    with torch.no_grad():
        scaled = images * (norm[1].weight / (norm[1].running_var + norm[1].eps).sqrt()).view(1, -1, 1, 1)
        shift = norm[1](images) - scaled
        after = share(norm[3], norm[1](images).flatten(), torch.ones(1).double(), "zplus", bias=True)
    expected = after.view_as(images) * scaled.abs() / (scaled.abs() + shift.abs())
    torch.testing.assert_close(polarized_relevance(norm, images, bias=True).positive, expected)


@pytest.mark.parametrize("reading", READINGS)
def test_batch_equals_images_one_by_one(reading, monkeypatch):
    monkeypatch.setattr("galnb.relevance.CHUNK", 3)
    model = randomise(Discriminator(DeblenderConfig(size=16, discriminator_width=4, dense=8))).float()
    images = draw(5, 3, 16, 16).float()  # more than one chunk
    references = draw(2, 3, 16, 16, seed=5).float() if reading == "reference" else None
    together = polarized_relevance(model, images, reading=reading, references=references)
    for index, image in enumerate(images):
        alone = polarized_relevance(model, image[None], reading=reading, references=references)
        scale = float(alone.positive.max() + alone.negative.max())
        # float32, other summation order
        torch.testing.assert_close(together.positive[index], alone.positive[0], rtol=0, atol=1e-5 * scale)
        torch.testing.assert_close(together.negative[index], alone.negative[0], rtol=0, atol=1e-5 * scale)


def test_conservation_in_float32():
    """Eq. 1 without biases, in the discriminator with the paper's layers and in a residual one."""
    for model in (Discriminator(DeblenderConfig(size=32, discriminator_width=8, dense=32)), Residual()):
        model = randomise(model).float()
        side = 32 if isinstance(model, Discriminator) else 8
        found = polarized_relevance(model, draw(4, 3, side, side).float())
        assert found.leak.abs().max() <= 1e-5
        assert found.positive.min() >= 0 and found.negative.min() >= 0


@pytest.mark.parametrize("name", sorted(path.stem for path in WEIGHTS.glob("*.safetensors")))
def test_conservation_in_shipped_discriminators(name):
    gan = load_checkpoint(name).gan
    side, channels = getattr(gan.config, "size", 64), getattr(gan.config, "channels", 3)
    try:
        with evaluating(gan.discriminator), torch.no_grad():
            gan.discriminator(torch.zeros(1, channels, side, side))
    except TypeError:
        pytest.skip(f"the discriminator of {name} takes more than images")
    # float64: rounding must not hide a leak, nor pass for one
    found = polarized_relevance(gan.discriminator.double(), draw(2, channels, side, side))
    # A map is empty when the last layer has no contribution of its sign; what enters it is lost, and named.
    arrived = torch.stack([found.positive.sum((1, 2, 3)), found.negative.sum((1, 2, 3))], 1)
    whole = ((found.leak.abs() <= 1e-9) | (arrived == 0)).all()
    # A unit of a 1 x 1 convolution sees few numbers: where none has the asked sign its relevance has no way.
    losing = {layer for layer, lost in found.lost.items() if lost.abs().max() > 1e-9}
    narrow = {
        layer
        for layer, module in gan.discriminator.named_modules()
        if getattr(module, "kernel_size", None) == (1, 1)
    }
    assert whole or (losing <= narrow and found.leak.abs().max() < 0.01), (found.leak, losing)
    assert torch.allclose(sum(found.lost.values()), found.leak, atol=1e-9), "all that is missing is named"


def test_residual_sum_does_not_double():
    class Skip(nn.Module):
        def __init__(self, add):
            super().__init__()
            self.conv, self.flat, self.last, self.add = nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(8, 1), add

        def forward(self, x):
            return self.last(self.flat(self.add(x, self.conv(x)) if self.add else x + self.conv(x)))

    images = draw(1, 2, 2, 2)
    assert relevance(randomise(Skip(Add())), images, rule="zplus").map.sum() == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match=r"AddBackward0.*galnb.gans.layers.Add"):
        relevance(randomise(Skip(None)), images, rule="zplus")


# --- witnesses ----------------------------------------------------------------------------------------------


def zennit_zplus(model, images, **options):
    attribution = pytest.importorskip("zennit.attribution", reason="zennit is not installed (extra: bench)")
    from zennit.composites import LayerMapComposite
    from zennit.rules import Pass, ZPlus
    from zennit.types import Activation, Convolution, Linear

    rule = ZPlus(stabilizer=1e-12, **options)
    layers = [(Activation, Pass()), (Convolution, rule), (Linear, rule)]
    with attribution.Gradient(model=model, composite=LayerMapComposite(layers)) as attributor:
        return attributor(images, torch.ones(len(images), 1, dtype=images.dtype))[1]


@pytest.mark.parametrize("bias", [False, True])
def test_positive_map_agrees_with_zennit(bias):
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(6, 8, 3, stride=2, padding=1)),
        *(nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8 * 25, 10), nn.LeakyReLU(0.2), nn.Linear(10, 1)),
    )
    model, images = randomise(model, seed=4), draw(3, 3, 10, 10)
    witness = zennit_zplus(model, images, **({} if bias else {"zero_params": "bias"}))
    found = polarized_relevance(model, images, bias=bias).positive
    torch.testing.assert_close(found, witness, rtol=0, atol=1e-6 * float(witness.max()))


def test_spectral_norm_is_where_zennit_goes_silently_wrong():
    """Its rule clamps the raw parameter, which no longer is the weight; the sum is right, the map is not."""
    model = nn.Sequential(
        spectral_norm(nn.Conv2d(3, 6, 3)), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(96, 1)
    )
    model, images = randomise(model, seed=4), draw(1, 3, 6, 6)
    with torch.no_grad():
        hidden = model[2](model[1](model[0](images)))
    arriving = share(model[3], hidden[0], torch.ones(1).double(), "zplus")
    expected = share(lambda x: model[0](x[None])[0], images[0], arriving, "zplus")
    found = polarized_relevance(model, images).positive[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    witness = zennit_zplus(model, images, zero_params="bias")[0]
    assert (witness - expected).abs().max() > 0.5 * expected.max()


def test_epsilon_of_a_piecewise_linear_net_is_gradient_times_input():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 9, bias=False), nn.ReLU(), nn.Linear(9, 1, bias=False))
    model, images = randomise(model), draw(2, 3, 2, 2).requires_grad_()
    score = model(images)
    (gradient,) = torch.autograd.grad(score.sum(), images)
    found = relevance(model, images, rule="epsilon")
    torch.testing.assert_close(found.map * found.score.view(-1, 1, 1, 1), (gradient * images).detach())


def test_generator_explained_from_a_part_of_its_output():
    """A galaxy drawn in one corner comes from pixels within the reach of the filters around that corner."""
    gan = deblender(DeblenderConfig(size=32, width=4, root_blocks=1, branch_blocks=1, seed=1))
    blends = draw(1, 3, 32, 32).float()
    seed = torch.zeros(1, 2, 3, 32, 32)
    seed[:, 0, :, :4, :4] = 1 / 48
    found = relevance(gan.generator, blends, rule="same_sign", seed=seed)
    reach = 3 + 4 + 1 + 4 + 4 + 1  # corner, and half widths of the 9x9 and 3x3 filters on the way
    assert found.map[..., reach + 1 :, :].abs().max() == 0 and found.map[..., : reach + 1, :].abs().sum() > 0
    assert abs(found.map.sum() + found.leak - 1) < 1e-5
    gated = deblender(DeblenderConfig(generator="gated", size=32, widths=(16, 16), blocks=(1, 1)))
    assert relevance(gated.generator, blends, rule="same_sign", seed=seed).map.isfinite().all()


# --- gate ---------------------------------------------------------------------------------------------------


def test_deletion_gate_on_a_net_whose_evidence_is_known():
    """The score adds up the left pixels and subtracts the right ones, so filling must lower and raise it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 64, 1, bias=False))
    side = torch.ones(2, 8, 8)
    side[..., 4:] = -1
    with torch.no_grad():
        model[1].weight.copy_(side.view(1, -1))
    images = torch.full((3, 2, 8, 8), -0.9)
    images[:, :, 2:4, 1:7] = 0.5
    found = polarized_relevance(model, images, reading="reference", references=torch.full((1, 2, 8, 8), -0.9))
    change = deletion_gate(model, images, found, share=0.06, generator=generator())
    count = round(0.06 * 64)
    # constant sky: the fill is -0.9 exactly; 6 equal pixels tie on each side
    torch.testing.assert_close(change, torch.tensor([[-1.0, 1.0]]).expand(3, 2) * 6 * 2 * 1.4)
    assert count == 4
    black = deletion_gate(model, images, found, generator=generator(), fill=torch.tensor(-1.0))
    assert (black[:, 0] < change[:, 0]).all() and (black[:, 1] > change[:, 1]).all()
    swapped = Polarized(
        found.negative,
        found.positive,
        *(getattr(found, f) for f in ("score", "leak", "reading", "reference_score", "lost")),
    )
    failed = deletion_gate(model, images, swapped, generator=generator())
    assert (failed[:, 0] > 0).all() and (failed[:, 1] < 0).all()


# --- surgery, cache, errors ---------------------------------------------------------------------------------


def state(model):
    return [
        ("forward" in module.__dict__, module.training, len(module._forward_hooks))
        for module in model.modules()
    ]


def test_model_is_left_as_it_was():
    model = Residual().train()
    model.norm.eval()
    before, statistics = state(model), model.norm.running_mean.clone()
    images = draw(2, 3, 8, 8).float()
    in_training = polarized_relevance(model, images)
    assert state(model) == before and torch.equal(model.norm.running_mean, statistics)
    torch.testing.assert_close(polarized_relevance(model.eval(), images).positive, in_training.positive)
    model.train()
    model.norm.eval()
    with pytest.raises(RuntimeError, match="stop"), recording(model) as tape:
        record(tape, model, images)
        raise RuntimeError("stop")
    with pytest.raises(ValueError, match="does not take images"):
        polarized_relevance(model, draw(2, 5, 8, 8).float())
    assert state(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_works_without_gradients_switched_on(net):
    images = draw(1, 3, 8, 8)
    expected = polarized_relevance(net, images).negative
    with torch.inference_mode():
        torch.testing.assert_close(polarized_relevance(net, images).negative, expected)


@pytest.mark.parametrize("change", ["in place", "data", "one of many", "replaced", "statistics", "flipped"])
def test_prepared_weights_never_go_stale(change):
    model = randomise(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 1)))
    images = draw(1, 2, 5, 5)
    before = polarized_relevance(model, images).positive
    with torch.no_grad():
        if change == "in place":
            model[0].weight.mul_(torch.tensor([1.0, -2.0, 3.0]).view(-1, 1, 1, 1))
        elif change == "data":
            model[0].weight.data.mul_(torch.tensor([1.0, -2.0, 3.0]).view(-1, 1, 1, 1))
        elif change == "one of many":
            model[0].weight.data[0, 0, 0, 0] += 0.5
        elif change == "flipped":
            model[0].weight.data.copy_(model[0].weight.data.flip(-1))
        elif change == "replaced":
            model[3].weight = nn.Parameter(-model[3].weight.detach() + 0.1)
        else:
            model[1].running_var.mul_(torch.tensor([1.0, 4.0, 9.0]))
    after = polarized_relevance(model, images).positive
    fresh = polarized_relevance(copy.deepcopy(model), images).positive
    assert torch.equal(after, fresh) and not torch.allclose(after, before)


def test_unknown_layers_are_named_with_a_way_out(net):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return x * self.factor

    class OwnConv(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.Sequential(nn.Flatten(), nn.Sequential(Scale()), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"'1\.0' is a Scale.*LAYERS\[Scale\]"):
        relevance(model, torch.rand(1, 1, 2, 2), rule="zplus")
    with pytest.raises(ValueError, match="OwnConv"):
        relevance(OwnConv(1, 1, 1), torch.rand(1, 1, 2, 2), rule="zplus")
    LAYERS[Scale] = "pass"
    try:
        assert relevance(model, torch.rand(1, 1, 2, 2), rule="zplus").map.isfinite().all()
    finally:
        del LAYERS[Scale]


def test_rule_of_your_own():
    def half(layer, arriving):
        return RULES["epsilon"](layer, arriving) / 2

    model = randomise(nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.Linear(3, 1, bias=False)))
    found = relevance(model, draw(1, 1, 2, 2), rule=half)
    assert isinstance(found, Relevance)
    assert found.map.sum() == pytest.approx(0.25) and found.leak.item() == pytest.approx(0.75)
    assert [values.item() for values in found.lost.values()] == pytest.approx([0.5, 0.25])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": torch.full((1, 3, 8, 8), torch.nan)}, "NaN"),
        ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, "float tensor"),
        ({"images": torch.zeros(0, 3, 8, 8)}, "float tensor"),
        ({"images": torch.zeros(1, 3, 20, 20).double()}, "does not take images of shape"),
        ({"reading": "best"}, "known are.*composite.*paper"),
        ({"first_layer": "box"}, "known are.*zbox"),
        ({"reading": "reference"}, "references are needed"),
        ({"references": torch.zeros(1, 3, 8, 8).double()}, "references are needed"),
        ({"reading": "reference", "references": torch.zeros(1, 3, 9, 8).double()}, "do not fit"),
        (
            {"reading": "reference", "references": torch.full((1, 3, 8, 8), torch.inf).double()},
            "references: got NaN",
        ),
    ],
)
def test_bad_input_to_polarized_relevance(net, options, message):
    with pytest.raises(ValueError, match=message):
        polarized_relevance(net, **{"images": draw(1, 3, 8, 8), **options})


def test_bad_input_to_relevance(net):
    images, several = draw(1, 3, 8, 8), randomise(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))
    with pytest.raises(ValueError, match=r"known are.*epsilon"):
        relevance(net, images, rule="zz")
    with pytest.raises(ValueError, match=r"4 outputs per image.*seed"):
        relevance(several, images, rule="zplus")
    with pytest.raises(ValueError, match=r"4 outputs per image"):
        polarized_relevance(several, images)
    with pytest.raises(ValueError, match=r"seed has shape \(1, 3\), expected.*\(1, 4\)"):
        relevance(several, images, rule="zplus", seed=torch.ones(1, 3))
    with pytest.raises(ValueError, match="returns a tuple"):
        relevance(nn.MaxPool2d(2, return_indices=True), images, rule="zplus")
    mixing = nn.Sequential(nn.Flatten(0), nn.Linear(192, 1)).double()
    with pytest.raises(ValueError, match=r"shape \(1,\) for 2 images"):
        relevance(nn.Sequential(nn.Flatten(0), nn.Linear(384, 1)).double(), draw(2, 3, 8, 8), rule="zplus")
    assert relevance(mixing, images, rule="zplus").map.shape == images.shape
    norm = nn.Sequential(nn.Conv2d(3, 1, 8), nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten())
    with pytest.raises(ValueError, match="running statistics"):
        relevance(norm.double(), draw(2, 3, 8, 8), rule="zplus")
    bicubic = nn.Sequential(nn.Upsample(scale_factor=2, mode="bicubic"), nn.AvgPool2d(16))
    with pytest.raises(ValueError, match="bicubic"):
        relevance(bicubic, images[:, :1], rule="zplus")


def test_bad_input_to_deletion_gate(net):
    images = draw(2, 3, 8, 8)
    found = polarized_relevance(net, images)
    with pytest.raises(ValueError, match=r"maps \(2, 3, 8, 8\) for images \(1, 3, 8, 8\)"):
        deletion_gate(net, images[:1], found, generator=generator())
    with pytest.raises(ValueError, match=r"share 1\.5"):
        deletion_gate(net, images, found, share=1.5, generator=generator())
