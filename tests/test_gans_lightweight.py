"""The Lightweight GAN against its paper's habits: excitation, two heads, redrawing, hinge, slope."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from galnb.blending.batches import image_batches
from galnb.gans.layers import Augmentation
from galnb.gans.lightweight import (
    LightweightConfig,
    LightweightDiscriminator,
    LightweightGenerator,
    SkipLayerExcitation,
    _redrawing_error,
    generate,
    lightweight,
)
from galnb.relevance import polarized_relevance, relevance
from galnb.training import TrainingConfig, train
from galnb.training.checkpoints import load_checkpoint, save_checkpoint
from tests.tiny_runs import WRONG_SIZES, one_thread  # noqa: F401

TINY = LightweightConfig(width=4, widest=16, latent=8)


def images(count, *, generator, size=64):
    return torch.rand(count, 3, size, size, generator=generator)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_shapes_widths_and_excitation_at_every_size(size, generator):
    config = replace(TINY, width=8, size=size)
    with torch.device("meta"):
        drawer, judge = LightweightGenerator(config), LightweightDiscriminator(config)
        drawn = drawer(torch.empty(2, 8), torch.empty(2, 1, size, size))
        assert drawn.shape == (2, 3, size, size) and judge(drawn).shape == (2, 1)
        main, shape, at_16, at_8 = judge(drawn, heads=True)
    assert main.shape == shape.shape == (2, 1, 5, 5)
    assert at_16.shape[-2:] == (16, 16) and at_8.shape[-2:] == (8, 8)
    assert sorted(drawer.excite, key=int) == [
        str(side) for side in (64, 128, 256) if side <= size
    ]  # 4 -> 64, ...


def test_published_widths():
    """min(2^(12 - n), 512) channels at side 2^n: the package lightweight-gan 1.2.1."""
    config = LightweightConfig(size=256)
    assert [config.channels_at(2**n) for n in range(2, 9)] == [512, 512, 256, 128, 64, 32, 16]


def test_excitation_scales_channels_by_a_share(generator):
    block = SkipLayerExcitation(6, 5)
    low, high = torch.rand(3, 6, 4, 4, generator=generator), torch.rand(3, 5, 20, 20, generator=generator) + 1
    share = block(low, high) / high
    assert (share > 0).all() and (share < 1).all()
    assert torch.allclose(share, share[:, :, :1, :1].expand_as(share), atol=1e-6), "one number per channel"
    shuffled = low.flatten(2).flip(-1).view_as(low)
    assert not torch.allclose(block(shuffled, high), block(low, high)), "the gate sees where the light is"


def test_each_image_is_judged_by_itself(generator):
    """No batch norm in the heads: neighbours in the batch change nothing."""
    judge = lightweight(TINY).discriminator.train()
    batch = images(4, generator=generator) * 2 - 1
    alone = torch.cat([judge(image[None]) for image in batch])
    assert torch.allclose(judge(batch), alone, atol=1e-5)
    main, *_ = judge(batch, heads=True)
    assert torch.allclose(judge(batch)[:, 0], main.mean((1, 2, 3)), atol=1e-6)


def test_losses_are_the_papers(generator):
    """Hinge of both heads with high for real, plus two redrawing errors, plus the slope, by hand."""
    gan = lightweight(replace(TINY, augmentation=Augmentation(0.0, 0.0, 0.0), penalty=2.0, penalty_every=1))
    batch = {"images": images(4, generator=generator)}
    found = gan.discriminator_loss(gan, batch, torch.Generator().manual_seed(3))
    noise = torch.Generator().manual_seed(3)
    latent, fine = torch.randn(4, 8, generator=noise), torch.randn(4, 1, 64, 64, generator=noise)
    real = gan.prepare(batch["images"]).requires_grad_()
    with torch.no_grad():
        fake = gan.generator(latent, fine)
    main, shape, *_ = gan.discriminator(real, heads=True)
    fake_main, fake_shape, *_ = gan.discriminator(fake, heads=True)
    hinge = sum(
        (1 - r).clamp(min=0).mean() + (1 + f).clamp(min=0).mean()
        for r, f in ((main, fake_main), (shape, fake_shape))
    )
    assert found["hinge"].item() == pytest.approx(hinge.item(), rel=1e-4)
    (slope,) = torch.autograd.grad((main.mean((1, 2, 3)) + shape.mean((1, 2, 3))).sum(), real)
    assert found["slope"].item() == pytest.approx(slope.square().sum((1, 2, 3)).mean().item(), rel=1e-4)
    rest = found["total"] - found["hinge"] - 2 * found["slope"]
    assert rest.item() == pytest.approx(found["redrawing"].item(), rel=1e-3) and rest > 0
    turn = gan.generator_loss(gan, batch, torch.Generator().manual_seed(3))["total"]
    gan.generator.train()
    turn.backward()
    assert gan.generator.last.weight.grad.abs().sum() > 0


def test_the_quarter_that_is_redrawn_is_the_quarter_of_its_maps(generator):
    """A decoder that copies maps of brightness: the error is zero only if place and map agree."""
    gan = lightweight(TINY)
    real = torch.zeros(2, 3, 64, 64)
    for down in (0, 1):
        for right in (0, 1):
            real[:, :, 32 * down : 32 * down + 32, 32 * right : 32 * right + 32] = 0.1 * (
                1 + 2 * down + right
            )
    mean = nn.functional.adaptive_avg_pool2d
    gan.discriminator.redraw_whole = gan.discriminator.redraw_part = nn.Upsample((32, 32))
    at_16, at_8 = mean(real, 16), mean(real, 8)
    for seed in range(6):
        noise = torch.Generator().manual_seed(seed)
        assert _redrawing_error(gan, real, at_16, at_8, noise).item() < 1e-12


def test_the_slope_is_measured_now_and_then_and_weighs_as_much_more(generator):
    gan = lightweight(replace(TINY, penalty_every=4))
    batch, noise = {"images": images(2, generator=generator)}, torch.Generator().manual_seed(0)
    slopes = [gan.discriminator_loss(gan, batch, noise)["slope"].item() for _ in range(40)]
    share = sum(slope > 0 for slope in slopes) / 40
    assert 0.05 < share < 0.45
    parts = next(
        found
        for found in (gan.discriminator_loss(gan, batch, noise) for _ in range(40))
        if found["slope"] > 0
    )
    rest = parts["total"] - parts["hinge"] - parts["redrawing"]
    weight = 4 * gan.config.penalty
    assert rest.item() == pytest.approx(weight * parts["slope"].item(), rel=1e-3)


def test_training_learns_a_colour_and_goes_through_files(tmp_path, generator):
    """Twelve identical reddish images: after some steps drawn ones have their mean colour."""
    colour = torch.tensor([0.6, 0.3, 0.1])
    bank = colour.view(1, 3, 1, 1).expand(12, -1, 64, 64) + 0.02 * torch.randn(
        12, 3, 64, 64, generator=generator
    )
    gan = lightweight(replace(TINY, augmentation=Augmentation(hue=0.0)))
    config = TrainingConfig(
        steps=60,
        learning_rate=4e-3,
        discriminator_learning_rate=2e-3,
        betas=(0.5, 0.9),
        schedule="constant",
        ema=0.8,
    )
    before = generate(gan, 4, generator=torch.Generator().manual_seed(1)).mean((0, 2, 3))
    history = train(gan, image_batches(bank.clamp(0, 1), batch_size=4, seed=0), config)
    after = generate(gan, 4, generator=torch.Generator().manual_seed(1))
    assert (after.mean((0, 2, 3)) - colour).abs().max() < 0.5 * (before - colour).abs().max()
    assert history.losses["discriminator/redrawing"][-1] < history.losses["discriminator/redrawing"][0]
    save_checkpoint(tmp_path / "a.safetensors", gan, experiment={}, step=60)
    kept = load_checkpoint(tmp_path / "a.safetensors").gan
    assert kept.config == gan.config and isinstance(kept.config.augmentation, Augmentation)
    assert torch.equal(generate(kept, 4, generator=torch.Generator().manual_seed(1)), after)


def test_generate_follows_its_generator_and_its_vectors(generator):
    gan = lightweight(TINY)
    one, same, other = (
        generate(gan, 3, generator=torch.Generator().manual_seed(s), batch=2) for s in (1, 1, 2)
    )
    assert one.shape == (3, 3, 64, 64) and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, same) and not torch.equal(one, other)
    with torch.no_grad():
        for enlarge in gan.generator.enlarge.values():
            enlarge.noise.weight.normal_(generator=generator)
    vectors = torch.randn(1, 8, generator=generator).expand(4, -1)
    walked = generate(gan, 4, generator=generator, latent=vectors)
    assert torch.allclose(walked, walked[:1].expand(4, -1, -1, -1), atol=1e-6), "one noise for the whole walk"
    gan.generator.train()
    generate(gan, 1, generator=generator)
    assert gan.generator.training


@pytest.mark.parametrize("reading", ["composite", "reference"])
def test_relevance_of_the_main_head_is_conserved(reading, generator):
    """Fresh networks have no biases yet, so a signed map adds up to the score."""
    gan = lightweight(TINY)
    seen = gan.prepare(images(3, generator=generator)).double()
    sky = torch.full((1, 3, 64, 64), -0.9).double() if reading == "reference" else None
    found = polarized_relevance(gan.discriminator.double(), seen, reading=reading, references=sky)
    signed = (found.positive - found.negative).sum((1, 2, 3))
    assert torch.allclose(signed, found.score - found.reference_score, rtol=1e-9, atol=1e-12)
    assert found.positive.any() and found.negative.any()


def test_a_generator_can_be_explained_too(generator):
    """Relevance of drawn light crosses gates and excitation and arrives at the vector, none lost."""
    gan = lightweight(TINY)
    drawer = gan.generator.double().eval()

    class Light(nn.Module):
        def __init__(self):
            super().__init__()
            self.drawer, self.sum = drawer, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, latent):
            return self.sum(self.drawer(latent))[:, :1]

    latent = torch.randn(2, 8, generator=generator).double()
    found = relevance(Light(), latent, rule="epsilon")
    assert found.map.shape == (2, 8) and found.map.abs().sum() > 0
    assert torch.allclose(found.map.sum(1) + found.leak, torch.ones(2).double(), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 48}, "size is 48; expected 64, 128"),
        ({"size": 32}, "size is 32"),
        ({"size": 64.0}, "size=64.0: expected a whole number"),
        ({"width": 1}, "width 1 leaves too few channels at 64 px; expected a width of 2"),
        ({"widest": 2}, "widest is 2; expected an even number of at least 4"),
        ({"widest": 7}, "widest is 7; expected an even"),
        ({"latent": 0}, "latent=0: expected a whole number of at least 1"),
        ({"penalty_every": 0}, "penalty_every=0"),
        ({"penalty": -1.0}, "penalty=-1.0: expected a finite number"),
        ({"augmentation": {"hue": 0.5}}, "augmentation: got dict, expected Augmentation"),
    ],
)
def test_sizes_that_make_no_network_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LightweightConfig(**options)


def test_generate_refuses_what_does_not_fit(generator):
    gan = lightweight(TINY)
    with pytest.raises(ValueError, match="got a 'radio' GAN, expected a 'lightweight' GAN"):
        generate(replace(gan, name="radio"), 1, generator=generator)
    for sizes in WRONG_SIZES:
        with pytest.raises(ValueError, match=f"{next(iter(sizes))}.*expected .*whole number"):
            generate(gan, **{"count": 2, **sizes}, generator=generator)
    for latent in (torch.zeros(2, 9), torch.full((2, 8), torch.nan)):
        with pytest.raises(ValueError, match=r"latent \(2, .\): expected \(2, 8\), finite floats"):
            generate(gan, 2, generator=generator, latent=latent)
    for latent in (np.zeros((2, 8)), torch.zeros(2, 8).long()):
        with pytest.raises(ValueError, match=r"latent: got .*, expected a tensor of floats"):
            generate(gan, 2, generator=generator, latent=latent)
    for wrong in (0, None):
        with pytest.raises(ValueError, match=f"generator is {wrong}; expected a torch.Generator"):
            generate(gan, 2, generator=wrong)
    vectors = torch.ones(2, 8)
    one, same = (
        generate(gan, 2, generator=torch.Generator().manual_seed(1), latent=v)
        for v in (vectors, vectors.double())
    )
    assert torch.equal(one, same)


@pytest.mark.parametrize(
    "shape", [(2, 1, 64, 64), (2, 3, 32, 32), (2, 3, 64, 32), (0, 3, 64, 64), (3,), None]
)
def test_losses_refuse_batches_that_do_not_fit(shape, generator):
    gan = lightweight(TINY)
    batch = {"galaxies": torch.zeros(2, 3, 64, 64)} if shape is None else {"images": torch.zeros(shape)}
    for loss in (gan.generator_loss, gan.discriminator_loss):
        with pytest.raises(ValueError, match=f"images': {re.escape(str(shape))}.; expected .*, 3, 64, 64."):
            loss(gan, batch, generator)
