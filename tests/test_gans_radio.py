"""The radio-galaxy GAN against its published sizes and habits."""

import pytest
import torch
from torch import nn

from galnb.gans import to_unit
from galnb.gans.layers import Smear
from galnb.gans.radio import Critic, RadioConfig, RadioGenerator, generate, radio
from tests.tiny_runs import one_thread  # noqa: F401

TINY = RadioConfig(size=16, width=4, latent=6)


def weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_sizes():
    """12.00 and 11.16 million weights: Rustige et al. 2023, counted from their repository's layers."""
    with torch.device("meta"):
        generator, critic = RadioGenerator(RadioConfig(size=128)), Critic(RadioConfig(size=128))
    assert (weights(generator), weights(critic)) == (11_998_080, 11_162_784)
    assert round(weights(generator) / 1e6, 2) == 12.00 and round(weights(critic) / 1e6, 2) == 11.16
    assert not [name for name, _ in generator.named_parameters() if "bias" in name and ".1." not in name]


@pytest.mark.parametrize("size", [16, 32, 64])
def test_shapes_and_range(size, generator):
    gan = radio(RadioConfig(size=size, width=4))
    labels = torch.tensor([0, 1, 2, 3, 0])
    drawn = generate(gan, labels, generator=generator, batch=2)
    assert drawn.shape == (5, 1, size, size) and drawn.min() >= 0 and drawn.max() <= 1
    assert gan.discriminator(gan.prepare(drawn), labels).shape == (5, 1)


def test_clamp_gives_exact_black_and_no_gradient_there(generator):
    gan = radio(TINY)
    noise = torch.randn(4, 6, generator=generator)
    with torch.no_grad():
        gan.generator.body[-2].weight.mul_(500)  # far beyond the range, either way
    before = gan.generator.body[:-1](_joined(gan, noise))
    before.retain_grad()
    after = gan.generator.body[-1](before)
    assert torch.equal(after, before.clamp(-1, 1)) and (after == -1).any()
    after.sum().backward()
    assert torch.equal(before.grad == 0, (before <= -1) | (before >= 1))
    assert (to_unit(after.detach())[after == -1] == 0).all()


def _joined(gan, noise):
    network, labels = gan.generator, torch.arange(4)
    wanted = nn.functional.one_hot(labels, 4).float()[..., None, None]
    return network.join(network.noise_stem(noise[..., None, None]), network.label_stem(wanted))


def test_light_is_smeared_before_the_clamp(generator):
    plain, smeared = radio(TINY), radio(RadioConfig(size=16, width=4, latent=6, sigma=1.0))
    assert list(plain.generator.state_dict()) == list(smeared.generator.state_dict())  # no weights of its own
    smeared.generator.load_state_dict(plain.generator.state_dict())
    for gan in (plain, smeared):
        gan.generator.eval()
    noise, labels = torch.randn(4, 6, generator=generator), torch.arange(4)
    with torch.no_grad():
        raw = plain.generator.body[:-1](_joined(plain, noise)) * 300
        blur = Smear(1.0, 3, background=-1.0)
        layers = [type(layer).__name__ for layer in smeared.generator.body]
        assert layers[-2:] == ["Smear", "Hardtanh"]
        assert torch.allclose(smeared.generator.body[-2:](raw), blur(raw).clamp(-1, 1))
        assert not torch.allclose(blur(raw).clamp(-1, 1), blur(raw.clamp(-1, 1)), atol=0.01)
        assert smeared.generator(noise, labels).shape == (4, 1, 16, 16)


def test_class_and_noise_both_matter(generator):
    gan = radio(TINY)
    noise = torch.randn(1, 6, generator=generator).expand(4, -1)
    gan.generator.eval()
    drawn = gan.generator(noise, torch.arange(4))
    assert len({tuple(image.flatten().tolist()) for image in drawn}) == 4
    image = torch.rand(1, 1, 16, 16, generator=generator).expand(4, -1, -1, -1)
    assert len(set(gan.discriminator(image, torch.arange(4)).flatten().tolist())) == 4
    again = [generate(gan, torch.arange(4), generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])


def test_losses_are_the_published_ones(generator):
    """E D(G) - E D(x) + 10 E(|grad D| - 1)^2, by hand for a critic that is linear in the image."""
    gan = radio(TINY)
    slope = torch.randn(16 * 16, generator=generator)
    gan = type(gan)(**{**gan.__dict__, "discriminator": _Linear(slope)})
    batch = {"images": torch.rand(8, 1, 16, 16, generator=generator), "labels": torch.arange(8) % 4}
    found = gan.discriminator_loss(gan, batch, torch.Generator().manual_seed(3))
    gan.generator.eval()
    noise = torch.randn(8, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        fake = gan.generator(noise, batch["labels"])
        difference = ((fake - gan.prepare(batch["images"])).flatten(1) @ slope).mean()
    # float32, sums of 256 products
    assert found["wasserstein"].item() == pytest.approx(-difference.item(), abs=1e-4)
    penalty = 10 * (slope.norm() - 1) ** 2
    assert found["total"].item() == pytest.approx((difference + penalty).item(), rel=1e-5)
    gan.generator.train()
    turn = gan.generator_loss(gan, batch, torch.Generator().manual_seed(3))["total"]
    turn.backward()
    assert gan.generator.training and gan.generator.body[-2].weight.grad.abs().sum() > 0


class _Linear(nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.slope = nn.Parameter(slope)

    def forward(self, images, labels):
        return (images.flatten(1) @ self.slope)[:, None]


def test_generate_leaves_the_mode_alone(generator):
    gan = radio(TINY)
    gan.generator.train()
    statistics = gan.generator.noise_stem[1].running_mean.clone()
    generate(gan, torch.arange(4), generator=generator)
    assert gan.generator.training and torch.equal(gan.generator.noise_stem[1].running_mean, statistics)
    assert generate(gan, torch.arange(0), generator=generator).shape == (0, 1, 16, 16)


def test_the_size_of_a_pass_changes_no_galaxy():
    gan, labels = radio(TINY), torch.arange(300) % 4
    one, same = (generate(gan, labels, generator=torch.Generator().manual_seed(1), batch=b) for b in (256, 7))
    assert one.device.type == "cpu" and torch.allclose(one, same, atol=1e-6)


def test_whole_numbers_of_any_length_are_classes(generator):
    gan, labels = radio(TINY), torch.arange(4)
    wanted = generate(gan, labels, generator=torch.Generator().manual_seed(1))
    for kind in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(generate(gan, labels.to(kind), generator=torch.Generator().manual_seed(1)), wanted)
    for wrong, message in (([0, 1], r"labels \[0, 1\]: expected"), (labels == 0, "True")):
        with pytest.raises(ValueError, match=message):
            generate(gan, wrong, generator=generator)
    with pytest.raises(ValueError, match="generator is 0; expected a torch"):
        generate(gan, labels, generator=0)
    with pytest.raises(ValueError, match="batch=0: expected a whole number of at least 1"):
        generate(gan, labels, generator=generator, batch=0)
    with pytest.raises(ValueError, match="expected a 'radio' GAN"):
        generate(None, labels, generator=generator)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_floats_of_any_length_are_learned_from(kind, generator):
    gan = radio(TINY)
    batch = {"images": torch.rand(4, 1, 16, 16, generator=generator).to(kind), "labels": torch.arange(4)}
    for loss in (gan.generator_loss, gan.discriminator_loss):
        assert loss(gan, batch, generator)["total"].isfinite()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"labels": torch.arange(4)}, "'images': None, .*; expected"),
        (
            {"images": torch.rand(4, 3, 16, 16), "labels": torch.arange(4)},
            "'images': .4, 3, 16, 16., .*; expected",
        ),
        ({"images": torch.rand(4, 1, 16, 16)}, "'labels': None.; expected .*'labels': .4,."),
        (
            {"images": torch.rand(4, 1, 16, 16), "labels": torch.arange(3)},
            "'labels': .3,..; expected .*'labels': .4,.",
        ),
        (
            {"images": torch.rand(2, 1, 16, 16), "labels": torch.rand(2)},
            "labels of torch.float32; expected whole numbers",
        ),
    ],
)
def test_losses_refuse_batches_that_do_not_fit(batch, message, generator):
    gan = radio(TINY)
    for loss in (gan.generator_loss, gan.discriminator_loss):
        with pytest.raises(ValueError, match=message):
            loss(gan, batch, generator)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 48}, "size is 48; expected 16, 32, 64"),
        ({"width": 5}, "width is 5; expected an even number"),
        ({"classes": 0}, "classes=0: expected"),
        ({"sigma": -1.0}, "sigma=-1.0"),
        ({"kernel": 4}, "size=4: a kernel needs a central pixel"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RadioConfig(**changes)


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 4]), torch.tensor([-1]), torch.zeros(2), torch.zeros(2, 1).long()]
)
def test_unknown_classes_are_refused(labels, generator):
    with pytest.raises(ValueError, match=r"expected a tensor \(B,\) of whole numbers in range\(0, 4\)"):
        generate(radio(TINY), labels, generator=generator)
