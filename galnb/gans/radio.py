"""Class-conditional Wasserstein GAN for radio galaxies (chapter 10; Rustige et al. 2023)."""

from dataclasses import dataclass
from itertools import pairwise, starmap

import torch
from torch import Tensor, nn

from galnb.checks import at_least, check_generator
from galnb.gans import Batch, Gan, Losses, build_gan, check_gan, in_batches, tensors_of
from galnb.gans.layers import Concat, Smear, dcgan_weights, enlarge, evaluating, halve
from galnb.gans.losses import gradient_penalty
from galnb.images import RADIO_CLASSES

_WHOLE = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64


@dataclass(frozen=True)
class RadioConfig:
    """Say how large the two networks are and where the light is smeared.

    size: side of an image, px: 16 times a power of two; published 128, for laptops 64.
    width: channels of the layer before the last; published 64.
    latent: length of the random vector that a galaxy is drawn from; classes: how many there are.
    sigma: width of a Gaussian layer before the clamp, px; 0 for none. kernel: side of that Gaussian, px.
    penalty: weight of the gradient penalty.
    """

    size: int = 64
    width: int = 64
    latent: int = 100
    classes: int = len(RADIO_CLASSES)
    sigma: float = 0.0
    kernel: int = 3
    penalty: float = 10.0
    seed: int = 0

    def __post_init__(self):
        at_least(1, size=self.size, width=self.width, latent=self.latent, classes=self.classes)
        at_least(0, seed=self.seed)
        at_least(0.0, penalty=self.penalty)
        if self.size < 16 or self.size & (self.size - 1):
            raise ValueError(f"size is {self.size}; expected 16, 32, 64, 128, ...")
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width is {self.width}; expected an even number of at least 2")
        Smear(self.sigma, self.kernel)  # refuses what makes no kernel


class RadioGenerator(nn.Module):
    """Draw a galaxy of a class from a random vector: (B, latent), (B,) int64 -> (B, 1, size, size).

    The last step is a hard clamp to [-1, 1], no tanh: pixels pushed below black are black exactly, as in the
    noise-cut images of FIRST. A smearing layer stands before it, where light beyond white still exists. With
    the published sizes it has 12.0 million weights.
    """

    def __init__(self, config: RadioConfig):
        super().__init__()
        self.classes, widest = config.classes, 8 * config.width
        self.noise_stem = enlarge(config.latent, widest, stride=1)
        self.label_stem = enlarge(config.classes, widest, stride=1)
        self.join = Concat()
        doublings = (config.size // 4).bit_length() - 1
        widths = [2 * widest, *(widest >> level for level in range(doublings - 1))]
        layers = [*starmap(enlarge, pairwise(widths)), nn.ConvTranspose2d(widths[-1], 1, 4, 2, 1, bias=False)]
        if config.sigma:
            layers.append(Smear(config.sigma, config.kernel, background=-1.0))
        self.body = nn.Sequential(*layers, nn.Hardtanh(-1.0, 1.0))

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        wanted = nn.functional.one_hot(labels, self.classes).to(noise.dtype)
        joined = self.join(self.noise_stem(noise[..., None, None]), self.label_stem(wanted[..., None, None]))
        return self.body(joined)


class Critic(nn.Module):
    """Score an image of a class: (B, 1, size, size) in [-1, 1], (B,) int64 -> (B, 1); real scores higher.

    Layer norm over height and width in place of batch norm: the gradient penalty needs each image's own
    gradient. With the published sizes it has 11.2 million weights.
    """

    def __init__(self, config: RadioConfig):
        super().__init__()
        self.classes, half = config.classes, config.width // 2
        self.image_stem, self.label_stem = halve(1, half), halve(config.classes, half)
        self.join = Concat()
        layers, width, side = [], config.width, config.size // 2
        while side > 4:
            side //= 2
            layers += halve(width, 2 * width, nn.LayerNorm([side, side]))
            width *= 2
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, bias=False), nn.Flatten())

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        planes = nn.functional.one_hot(labels, self.classes).to(images.dtype)[..., None, None]
        planes = planes.expand(-1, -1, *images.shape[-2:])
        return self.body(self.join(self.image_stem(images), self.label_stem(planes)))


def _draw(gan: Gan, labels: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(len(labels), gan.config.latent, generator=generator)
    return gan.generator(noise.to(labels.device), labels)


def _given(gan: Gan, batch: Batch) -> tuple[Tensor, Tensor]:
    images, labels = tensors_of(batch, images=(1, gan.config.size, gan.config.size), labels=())
    if labels.dtype not in _WHOLE:
        raise ValueError(f"batch holds labels of {labels.dtype}; expected whole numbers")
    return images, labels.long()


def _critic_loss(gan: Gan, batch: Batch, generator: torch.Generator) -> Losses:
    """E D(G) - E D(x) + 10 E(|grad D| - 1)^2; as published, the generator draws here in eval mode."""
    images, labels = _given(gan, batch)
    real = gan.prepare(images)
    with evaluating(gan.generator), torch.no_grad():
        fake = _draw(gan, labels, generator).to(real.dtype)
    real_score, fake_score = gan.discriminator(real, labels).mean(), gan.discriminator(fake, labels).mean()
    slope = gradient_penalty(lambda mixed: gan.discriminator(mixed, labels), real, fake, generator=generator)
    parts = {"wasserstein": (real_score - fake_score).detach(), "penalty": slope.detach()}
    return {"total": fake_score - real_score + gan.config.penalty * slope, **parts}


def _generator_loss(gan: Gan, batch: Batch, generator: torch.Generator) -> Losses:
    _, labels = _given(gan, batch)
    return {"total": -gan.discriminator(_draw(gan, labels, generator), labels).mean()}


def radio(config: RadioConfig) -> Gan:
    """Build a radio GAN; batches hold "images" (B, 1, size, size) in [0, 1] and "labels" (B,) int64.

    L_D = E D(G) - E D(x) + 10 E(|grad D(mix)| - 1)^2, L_G = -E D(G) (Gulrajani et al. 2017; Rustige et al.
    2023, RASTI 2, 264).
    """
    networks, losses = (RadioGenerator, Critic), (_generator_loss, _critic_loss)
    return build_gan("radio", config, networks, losses, dcgan_weights)


def generate(gan: Gan, labels: Tensor, *, generator: torch.Generator, batch: int = 256) -> Tensor:
    """Draw one galaxy per label: (B, 1, size, size) in [0, 1], on the CPU.

    labels: (B,), whole numbers, positions in `galnb.images.RADIO_CLASSES`.
    batch: galaxies per pass, which changes no galaxy. ValueError if something does not fit.
    """
    check_gan(gan, "radio")
    check_generator(generator)
    known = range(gan.config.classes)
    whole = isinstance(labels, Tensor) and labels.ndim == 1 and labels.dtype in _WHOLE
    if not whole or not set(labels.tolist()) <= set(known):
        raise ValueError(f"labels {labels!r}: expected a tensor (B,) of whole numbers in {known}")
    noise = torch.randn(len(labels), gan.config.latent, generator=generator)
    return in_batches(gan.generator, noise, labels.long(), batch=batch)
