"""The first GAN (chapter 03): binary cross-entropy and networks of DCGAN, from noise or a given image."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from galnb.checks import at_least, check_generator, one_of
from galnb.gans import Batch, Gan, Losses, build_gan, check_gan, in_batches, tensors_of
from galnb.gans.layers import Concat, dcgan_weights, enlarge, halve
from galnb.gans.losses import GENERATOR_LOSSES, discriminator_bce
from galnb.images import check_images


@dataclass(frozen=True)
class VanillaConfig:
    """Say how large the two networks are, what the generator starts from and what it is asked for.

    size: side of an image, px: 16, 32, 64, ...
    width: channels at half the side, doubled whenever the side is halved; published 128 (64 px).
    latent: length of the random vector that an image is drawn from; 0 for noise in the shape of an image.
    condition: start from a given image, "condition" in the batch; the discriminator sees it too.
    generator_loss: key of `galnb.gans.losses.GENERATOR_LOSSES`.
    pixel_weight: weight of the mean absolute error against "images", with a condition only.
    """

    size: int = 32
    width: int = 32
    latent: int = 100
    channels: int = 3
    condition: bool = False
    generator_loss: str = "non_saturating"
    pixel_weight: float = 0.0
    seed: int = 0

    def __post_init__(self):
        at_least(1, size=self.size, width=self.width, channels=self.channels)
        at_least(0, latent=self.latent, seed=self.seed)
        at_least(0.0, pixel_weight=self.pixel_weight)
        one_of("generator_loss", self.generator_loss, sorted(GENERATOR_LOSSES))
        if self.size < 16 or self.size & (self.size - 1):
            raise ValueError(f"size is {self.size}; expected 16, 32, 64, ...")
        if self.pixel_weight and not self.condition:
            raise ValueError("pixel_weight needs condition=True: noise has no truth to be measured against")

    @property
    def widths(self) -> list[int]:
        """Channels at size/2, size/4, ..., 4 px."""
        return [self.width << level for level in range((self.size // 4).bit_length() - 1)]


class _ImageGenerator(nn.Module):
    """Turn an image, or noise of its shape, into an image: (B, C, size, size) -> the same in [-1, 1].

    Down to 4 x 4 px and up again, maps of the way down beside those of the way up (Isola et al. 2017).
    """

    def __init__(self, config: VanillaConfig):
        super().__init__()
        widths, colours = config.widths, config.channels
        self.down = nn.ModuleList(halve(a, b, nn.BatchNorm2d(b)) for a, b in pairwise([colours, *widths]))
        after = [*widths[-2::-1], widths[0]]
        before = [widths[-1], *(2 * width for width in after[:-1])]
        self.up = nn.ModuleList(map(enlarge, before, after))
        self.join = Concat()
        self.paint = nn.Sequential(nn.Conv2d(widths[0] + colours, colours, 3, 1, 1), nn.Tanh())

    def forward(self, images: Tensor) -> Tensor:
        kept = [images]
        for down in self.down:
            kept.append(down(kept[-1]))
        maps = kept.pop()
        for up in self.up:
            maps = self.join(up(maps), kept.pop())
        return self.paint(maps)


def _vector_generator(config: VanillaConfig) -> nn.Sequential:
    """(B, latent) -> (B, C, size, size) in [-1, 1]: transposed convolutions, batch norm, ReLU; then tanh."""
    layers = [nn.Unflatten(1, (config.latent, 1, 1)), *enlarge(config.latent, config.widths[-1], stride=1)]
    for after in config.widths[-2::-1]:
        layers += enlarge(2 * after, after)
    last = nn.ConvTranspose2d(config.width, config.channels, 4, 2, 1)
    return nn.Sequential(*layers, last, nn.Tanh())


def _discriminator(config: VanillaConfig) -> nn.Sequential:
    """(B, C, size, size) -> (B, 1), one logit, high for real; with a condition (B, 2 C, size, size).

    No batch norm, unlike the published one: true and drawn images come in batches of their own, whose
    statistics alone would tell which is which.
    """
    layers, given = [], (1 + config.condition) * config.channels
    for before, after in pairwise([given, *config.widths]):
        layers += halve(before, after, bias=True)
    return nn.Sequential(*layers, nn.Conv2d(after, 1, 4), nn.Flatten())


def _noise(config: VanillaConfig, count: int, generator: torch.Generator) -> Tensor:
    shape = (config.latent,) if config.latent else (config.channels, config.size, config.size)
    return torch.randn(count, *shape, generator=generator)


def _play(gan: Gan, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return true images, drawn ones, and both as the discriminator gets them: with the condition beside."""
    names = ("images", "condition") if gan.config.condition else ("images",)
    shape = gan.config.channels, gan.config.size, gan.config.size
    real, *given = map(gan.prepare, tensors_of(batch, **dict.fromkeys(names, shape)))
    start = given or [_noise(gan.config, len(real), generator).to(real.device)]
    fake = gan.generator(*start)
    return real, fake, torch.cat([real, *given], 1), torch.cat([fake, *given], 1)


def _discriminator_loss(gan: Gan, batch: Batch, generator: torch.Generator) -> Losses:
    with torch.no_grad():
        *_, real, fake = _play(gan, batch, generator)
    on_real, on_fake = gan.discriminator(real), gan.discriminator(fake)
    parts = {"real": on_real.detach().sigmoid().mean(), "fake": on_fake.detach().sigmoid().mean()}
    return {"total": discriminator_bce(on_real, on_fake), **parts}


def _generator_loss(gan: Gan, batch: Batch, generator: torch.Generator) -> Losses:
    real, fake, _, shown = _play(gan, batch, generator)
    fooling = GENERATOR_LOSSES[gan.config.generator_loss](gan.discriminator(shown))
    if not gan.config.pixel_weight:
        return {"total": fooling}
    error = (fake - real).abs().mean()
    return {"total": fooling + gan.config.pixel_weight * error, "fooling": fooling, "error": error}


def vanilla(config: VanillaConfig) -> Gan:
    """Build a first GAN; batches hold "images" (B, C, size, size) in [0, 1], perhaps also "condition".

    L_D = BCE(D(x), 1) + BCE(D(G), 0); L_G = BCE(D(G), 1), or E ln(1 - D(G)) for "minimax" (Goodfellow et al.
    2014, Eq. 1). Layers and first weights after Radford et al. 2016.
    """
    generator = _ImageGenerator if config.condition or not config.latent else _vector_generator
    networks, losses = (generator, _discriminator), (_generator_loss, _discriminator_loss)
    return build_gan("vanilla", config, networks, losses, dcgan_weights)


def generate(gan: Gan, count: int, *, generator: torch.Generator, batch: int = 256) -> Tensor:
    """Draw `count` new images from noise: (count, C, size, size) in [0, 1], on the CPU.

    gan: without a condition; batch: images per pass. ValueError if something does not fit.
    """
    check_gan(gan, "vanilla")
    if gan.config.condition:
        raise ValueError("this 'vanilla' GAN has a condition; it draws by complete(gan, images)")
    at_least(1, count=count)
    check_generator(generator)
    return in_batches(gan.generator, _noise(gan.config, count, generator), batch=batch)


def complete(gan: Gan, images: Tensor, *, batch: int = 256) -> Tensor:
    """Draw what belongs to given images, such as whole galaxies to segmented ones, on the CPU.

    gan: with a condition; images: (B, C, size, size) in [0, 1], as is the result; batch: images per pass.
    ValueError if one of them does not fit.
    """
    check_gan(gan, "vanilla")
    if not gan.config.condition:
        raise ValueError("this 'vanilla' GAN does not start from an image; complete needs condition=True")
    check_images(images)
    tensors_of({"images": images}, images=(gan.config.channels, gan.config.size, gan.config.size))
    return in_batches(gan.generator, gan.prepare(images), batch=batch)
