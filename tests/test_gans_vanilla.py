"""The first GAN against the equations of its game, published sizes, and toys whose answer is known."""

import math

import pytest
import torch
from torch import nn

from book import first_gan_study as study
from galnb.gans.losses import discriminator_bce
from galnb.gans.vanilla import VanillaConfig, complete, generate, vanilla
from galnb.training import TrainingConfig, train
from galnb.training.checkpoints import load_checkpoint, save_checkpoint
from tests.tiny_runs import WRONG_SIZES, one_thread  # noqa: F401

TINY = VanillaConfig(size=16, width=4, latent=6)
PAIRS = VanillaConfig(size=16, width=4, condition=True, pixel_weight=10.0)
QUICK = {"schedule": "constant", "device": "cpu", "betas": (0.5, 0.999)}


def weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_generator_has_the_size_of_the_published_one():
    """3,576,704 weights: PyTorch's DCGAN example, nz = 100, ngf = 64; ours adds a bias per colour."""
    assert weights(vanilla(VanillaConfig(size=64, width=64)).generator) == 3_576_704 + 3


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("latent", [6, 0])
def test_shapes_and_range(size, latent, generator):
    gan = vanilla(VanillaConfig(size=size, width=4, latent=latent, channels=1))
    drawn = generate(gan, 5, generator=generator, batch=2)
    assert drawn.shape == (5, 1, size, size) and drawn.min() >= 0 and drawn.max() <= 1
    assert gan.discriminator(gan.prepare(drawn)).shape == (5, 1)


def test_same_seeds_same_drawings():
    drawn = [
        generate(vanilla(VanillaConfig(16, 4, 6, seed=s)), 3, generator=torch.Generator().manual_seed(n))
        for s, n in ((0, 1), (0, 1), (1, 1), (0, 2))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[3])


def test_drawing_leaves_the_mode_and_the_statistics_alone(generator):
    gan = vanilla(TINY)
    gan.generator.train()
    statistics = gan.generator[2].running_mean.clone()
    generate(gan, 4, generator=generator)
    assert gan.generator.training and torch.equal(gan.generator[2].running_mean, statistics)


@pytest.mark.parametrize("name", ["non_saturating", "minimax"])
def test_losses_are_those_of_the_game(name, generator):
    """By hand, from probabilities in float64: Goodfellow et al. 2014, Eq. 1 and the remark below it."""
    gan = vanilla(VanillaConfig(size=16, width=4, latent=6, generator_loss=name))
    batch = {"images": torch.rand(8, 3, 16, 16, generator=generator)}
    noise = torch.randn(8, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        real = gan.discriminator(gan.prepare(batch["images"])).double().sigmoid()
        fake = gan.discriminator(gan.generator(noise)).double().sigmoid()
    judge = gan.discriminator_loss(gan, batch, torch.Generator().manual_seed(3))["total"]
    assert judge.item() == pytest.approx((-real.log() - (1 - fake).log()).mean().item(), rel=1e-5)
    own = gan.generator_loss(gan, batch, torch.Generator().manual_seed(3))["total"]
    by_hand = {"non_saturating": -fake.log().mean(), "minimax": (1 - fake).log().mean()}[name]
    assert own.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_best_discriminator_is_p_over_p_plus_q(generator):
    """For two distributions over six values, the minimum of the loss is at ln p/q, worth 2 ln 2 - 2 JS."""
    p, q = torch.rand(2, 6, generator=generator, dtype=torch.float64).softmax(1)
    logits = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=60, tolerance_grad=1e-12)

    def loss():
        optimiser.zero_grad()
        value = sum(
            p[k] * discriminator_bce(logits[k : k + 1], torch.full((1,), -60.0, dtype=torch.float64))
            + q[k] * discriminator_bce(torch.full((1,), 60.0, dtype=torch.float64), logits[k : k + 1])
            for k in range(6)
        )
        value.backward()
        return value

    optimiser.step(loss)
    lowest = loss().item()
    assert torch.allclose(logits.detach().sigmoid(), p / (p + q), atol=1e-6)
    middle = (p + q) / 2
    divergence = 0.5 * (p * (p / middle).log()).sum() + 0.5 * (q * (q / middle).log()).sum()
    assert lowest == pytest.approx(2 * math.log(2) - 2 * divergence.item(), abs=1e-9)


def test_learns_a_brightness(generator):
    """Grey images of one brightness: a generator that wins draws it, and the judge ends near 1/2."""
    bright = torch.full((64, 3, 16, 16), 0.75) + 0.03 * torch.randn(64, 1, 1, 1, generator=generator)
    gan = vanilla(TINY)
    before = generate(gan, 32, generator=generator).mean().item()
    config = TrainingConfig(steps=150, learning_rate=2e-3, discriminator_learning_rate=2e-3, **QUICK)
    history = train(gan, lambda index: {"images": bright[index % 4 * 16 :][:16]}, config)
    after = generate(gan, 32, generator=generator).mean().item()
    # an adversarial game of 150 steps swings around its goal; it began 0.25 away
    assert abs(before - 0.75) > 0.2 and abs(after - 0.75) < 0.1
    assert set(history.losses) == {
        "discriminator/total", "discriminator/real", "discriminator/fake", "generator/total",
    }  # fmt: skip


def test_condition_is_used_by_both_networks(generator):
    """The truth is the given image upside down: after training, far nearer to it than to the given one."""
    ramp = torch.rand(64, 3, 1, 1, generator=generator) * torch.linspace(0, 1, 16)[None, None, :, None]
    ramp = ramp.expand(-1, -1, -1, 16).contiguous()
    gan = vanilla(PAIRS)
    given, wanted = gan.prepare(ramp[:4]), gan.prepare(ramp[:4].flip(2))
    assert gan.discriminator(torch.cat([wanted, given], 1)).shape == (4, 1)
    config = TrainingConfig(steps=150, learning_rate=5e-3, discriminator_learning_rate=1e-3, **QUICK)

    def feed(index):
        given = ramp[index % 4 * 16 :][:16]
        return {"images": given.flip(2), "condition": given}

    losses = train(gan, feed, config).losses
    made = complete(gan, ramp, batch=24)
    assert (made - ramp.flip(2)).abs().mean() < 0.3 * (ramp - ramp.flip(2)).abs().mean()
    assert losses["generator/total"][-1] == pytest.approx(
        losses["generator/fooling"][-1] + 10 * losses["generator/error"][-1], rel=1e-5
    )
    with torch.no_grad():
        right, wrong = (
            gan.discriminator(torch.cat([wanted, beside], 1)) for beside in (given, given.flip(0))
        )
    assert not torch.allclose(right, wrong)


@pytest.mark.parametrize("config", [TINY, PAIRS, VanillaConfig(16, 4, 0)], ids=["vector", "pairs", "noise"])
def test_file_alone_rebuilds_it(config, tmp_path, generator):
    gan = vanilla(config)
    save_checkpoint(tmp_path / "first.safetensors", gan, experiment={"data": "none"}, step=0)
    again = load_checkpoint(tmp_path / "first.safetensors").gan
    assert again.config == config and again.name == "vanilla"
    given = torch.rand(2, 3, 16, 16, generator=generator)
    if config.condition:
        assert torch.equal(complete(again, given), complete(gan, given))
    else:
        drawn = [generate(g, 2, generator=torch.Generator().manual_seed(1)) for g in (gan, again)]
        assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 48}, "size is 48; expected 16, 32, 64"),
        ({"size": 16.0}, "size=16.0: expected a whole number"),
        ({"latent": 2.5}, "latent=2.5: expected a whole number"),
        ({"width": 0}, "width=0: expected a whole number of at least 1"),
        ({"generator_loss": "hinge"}, "'hinge' is unknown; known are .*minimax.*non_saturating"),
        ({"pixel_weight": 1.0}, "no truth to be measured against"),
        (
            {"pixel_weight": -1.0, "condition": True},
            "pixel_weight=-1.0: expected a finite number of at least 0",
        ),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VanillaConfig(**changes)


def test_calls_that_do_not_fit_are_refused(generator):
    from_noise, from_image = vanilla(TINY), vanilla(PAIRS)
    with pytest.raises(ValueError, match="'vanilla' GAN has a condition; it draws by complete"):
        generate(from_image, 3, generator=generator)
    with pytest.raises(ValueError, match="generator is 0; expected a torch"):
        generate(from_noise, 3, generator=0)
    for call in (
        lambda gan: generate(gan, 3, generator=generator),
        lambda gan: complete(gan, torch.rand(2, 3, 16, 16)),
    ):
        with pytest.raises(ValueError, match="got a Module, expected a 'vanilla' GAN"):
            call(nn.Module())
    for sizes in WRONG_SIZES:
        with pytest.raises(ValueError, match=f"{next(iter(sizes))}.*expected a whole number of at least 1"):
            generate(from_noise, **{"count": 2, **sizes}, generator=generator)
    with pytest.raises(ValueError, match="batch=0: expected a whole number"):
        complete(from_image, torch.rand(2, 3, 16, 16), batch=0)
    with pytest.raises(ValueError, match="does not start from an image"):
        complete(from_noise, torch.rand(2, 3, 16, 16))
    with pytest.raises(ValueError, match=r"\(2, 1, 16, 16\)}; expected .*\(2, 3, 16, 16\)"):
        complete(from_image, torch.rand(2, 1, 16, 16))
    with pytest.raises(ValueError, match=r"\(2, 3, 32, 32\)}; expected .*\(2, 3, 16, 16\)"):
        complete(from_image, torch.rand(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"images': \(2, 1, 16, 16\)}; expected .*\(2, 3, 16, 16\)"):
        from_noise.generator_loss(from_noise, {"images": torch.rand(2, 1, 16, 16)}, generator)
    with pytest.raises(ValueError, match=r"images': \(0, 3, 16, 16\)}; expected .* at least one"):
        from_noise.discriminator_loss(from_noise, {"images": torch.rand(0, 3, 16, 16)}, generator)
    with pytest.raises(ValueError, match="'condition': None}; expected"):
        from_image.generator_loss(from_image, {"images": torch.rand(2, 3, 16, 16)}, generator)
    uneven = {"images": torch.rand(3, 3, 16, 16), "condition": torch.rand(1, 3, 16, 16)}
    with pytest.raises(
        ValueError, match=r"'condition': \(1, 3, 16, 16\)}; expected .*'condition': \(3, 3, 16, 16\)"
    ):
        from_image.generator_loss(from_image, uneven, generator)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_any_length_are_completed(kind):
    gan, given = vanilla(PAIRS), torch.linspace(0, 1, 2 * 3 * 256).reshape(2, 3, 16, 16).to(kind)
    assert torch.equal(complete(gan, given), complete(gan, given.float()))
    noise = torch.Generator().manual_seed(0)
    for loss in (gan.generator_loss, gan.discriminator_loss):  # and learned from
        assert loss(gan, {"images": given, "condition": given}, noise)["total"].isfinite()


def test_energy_distance_of_the_study_is_that_of_its_definition(generator):
    a, b = torch.rand(30, 1, 4, 4, generator=generator), 0.5 * torch.rand(40, 1, 4, 4, generator=generator)

    def mean(x, y, same):
        found = [
            (one - other).square().mean().sqrt().item()
            for i, one in enumerate(x)
            for k, other in enumerate(y)
            if not (same and i == k)
        ]
        return sum(found) / len(found)

    distance, within = study.energy_distance(a, b)
    assert within == pytest.approx(mean(a, a, True), rel=1e-5)
    assert distance == pytest.approx(2 * mean(a, b, False) - within - mean(b, b, True), abs=1e-5)
    assert abs(study.energy_distance(a[:15], a[15:])[0]) < distance / 4


def test_scores_of_the_study_tell_own_from_other(generator):
    segments, truth, gone = study.pairs(torch.rand(8, 3, 32, 32, generator=generator), generator)
    assert segments.shape == truth.shape == (16, 3, 32, 32) and gone.shape == (16, 1, 32, 32)
    assert not gone[1::2, ..., : study.SHIFT].any(), "the empty strip is no loss"
    kept = ~gone & (truth.sum(1, keepdim=True) > 0)
    assert (segments >= truth - 1e-6)[kept.expand_as(truth)].all(), "a kept pixel is that of the blend"
    found = study.score(truth, segments, truth, gone)
    assert found["own"] == 1 and found["removed"] == 60 and found["psnr"] == 60 > found["other"]
    with pytest.raises(ValueError, match="expected at least 2"):
        study.pairs(truth[:1], generator)
