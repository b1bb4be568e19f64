"""Lightweight GAN (chapter 13; Liu et al. 2021): skip-layer excitation, and a judge that must also redraw."""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from galnb.checks import at_least, check_floats, check_generator, check_kind
from galnb.gans import Batch, Gan, Losses, build_gan, check_gan, in_batches, tensors_of
from galnb.gans.layers import Add, Augmentation, Multiply, augment
from galnb.gans.losses import discriminator_hinge, generator_hinge

_EXCITED = 16  # maps of side s are scaled by those of side s / 16
_small = partial(functional.interpolate, size=(32, 32), mode="area")


@dataclass(frozen=True)
class LightweightConfig:
    """Say how large the two networks are and how the discriminator is kept from learning by heart.

    size: side of an image, px: 64, 128, 256, 512.
    width: channels at 64 px; half as many at twice the side. Published 64.
    widest: most channels at any side, even and at least 4; published 512.
    latent: length of the random vector of a galaxy; published 256. seed: of the first weights.
    augmentation: what happens to true and drawn images alike before the discriminator sees them.
    penalty: weight of the squared slope of the discriminator at true images.
    penalty_every: the slope is measured once in so many steps on average, and weighs as much more.
    """

    size: int = 64
    width: int = 64
    widest: int = 512
    latent: int = 256
    augmentation: Augmentation = field(default_factory=Augmentation)
    penalty: float = 0.05
    penalty_every: int = 4
    seed: int = 0

    def __post_init__(self):
        check_kind(Augmentation, "such as Augmentation(hue=0.25)", augmentation=self.augmentation)
        names = "size", "width", "widest", "latent", "penalty_every"
        at_least(1, **{name: getattr(self, name) for name in names})
        at_least(0, seed=self.seed)
        at_least(0.0, penalty=self.penalty)
        if self.size < 64 or self.size & (self.size - 1):
            raise ValueError(f"size is {self.size}; expected 64, 128, 256, ...")
        if self.widest < 4 or self.widest % 2:
            raise ValueError(f"widest is {self.widest}; expected an even number of at least 4")
        if self.channels_at(self.size) < 2:
            given, least = f"width {self.width} leaves too few channels at {self.size} px", self.size // 32
            raise ValueError(f"{given}; expected a width of {least} or more")

    def channels_at(self, side: int) -> int:
        """Return the number of channels at a side, px."""
        return min(self.widest, 64 * self.width // side)


class _Enlarge(nn.Module):
    """Double the side: bilinear, 3x3 convolution, a little noise of learned strength, batch norm, GLU.

    Bilinear: transposed convolutions can leave a chequerboard, copied pixels leave blocks.
    """

    def __init__(self, before: int, after: int):
        super().__init__()
        convolution = nn.Conv2d(before, 2 * after, 3, 1, 1, bias=False)
        self.convolution = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), convolution)
        self.noise = nn.Conv2d(1, 2 * after, 1, bias=False)
        self.add = Add()
        self.gate = nn.Sequential(nn.BatchNorm2d(2 * after), nn.GLU(1))

    def forward(self, maps: Tensor, noise: Tensor | None) -> Tensor:
        larger = self.convolution(maps)
        if noise is not None:
            step = noise.shape[-1] // larger.shape[-1]
            larger = self.add(larger, self.noise(noise[..., ::step, ::step]))
        return self.gate(larger)


class SkipLayerExcitation(nn.Module):
    """Scale the channels of large maps by what small maps of the same image show.

    y = x_high * F(x_low), F = pool to 4x4, convolve to 1x1, SiLU, 1x1, sigmoid (Liu et al. 2021, Eq. 1).
    """

    def __init__(self, low: int, high: int):
        super().__init__()
        seen = nn.AdaptiveAvgPool2d(4), nn.Conv2d(low, high, 4), nn.SiLU()
        self.gate = nn.Sequential(*seen, nn.Conv2d(high, high, 1), nn.Sigmoid())
        self.multiply = Multiply()

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return self.multiply(high, self.gate(low))


class LightweightGenerator(nn.Module):
    """Draw an image from a random vector: (B, latent), noise (B, 1, size, size) -> (B, 3, size, size).

    The last layer is linear: values beyond [-1, 1] are clipped when shown. `noise` may be left out.
    """

    def __init__(self, config: LightweightConfig):
        super().__init__()
        at = config.channels_at
        sides = [2**level for level in range(3, config.size.bit_length())]
        large = [side for side in sides if side >= 4 * _EXCITED]
        wide = 2 * at(4)
        grown = nn.ConvTranspose2d(config.latent, wide, 4, bias=False), nn.BatchNorm2d(wide), nn.GLU(1)
        self.start = nn.Sequential(nn.Unflatten(1, (config.latent, 1, 1)), *grown)
        self.enlarge = nn.ModuleDict({str(side): _Enlarge(at(side // 2), at(side)) for side in sides})
        excite = {str(side): SkipLayerExcitation(at(side // _EXCITED), at(side)) for side in large}
        self.excite = nn.ModuleDict(excite)
        self.last = nn.Conv2d(at(config.size), 3, 3, 1, 1)

    def forward(self, latent: Tensor, noise: Tensor | None = None) -> Tensor:
        maps = {4: self.start(latent)}
        for name, enlarge in self.enlarge.items():
            side = int(name)
            maps[side] = enlarge(maps[side // 2], noise)
            if name in self.excite:
                maps[side] = self.excite[name](maps[side // _EXCITED], maps[side])
        return self.last(maps[side])


def _leaky(*sizes: int) -> tuple[nn.Conv2d, nn.LeakyReLU]:
    """Convolution of these channels, kernel, stride, padding; LeakyReLU."""
    return nn.Conv2d(*sizes), nn.LeakyReLU(0.1)


class _Shrink(nn.Module):
    """Halve the side along two ways, strided convolutions and a pooled 1x1 one, and add them."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.main = nn.Sequential(*_leaky(before, after, 4, 2, 1), *_leaky(after, after, 3, 1, 1))
        self.aside = nn.Sequential(nn.AvgPool2d(2), *_leaky(before, after, 1))
        self.add = Add()

    def forward(self, maps: Tensor) -> Tensor:
        return self.add(self.main(maps), self.aside(maps))


def _doubled(before: int, after: int) -> list[nn.Module]:
    """Double the side, the plain way: copied pixels, 3x3 convolution, batch norm, GLU."""
    wide = 2 * after
    convolution = nn.Conv2d(before, wide, 3, 1, 1, bias=False)
    return [nn.Upsample(scale_factor=2), convolution, nn.BatchNorm2d(wide), nn.GLU(1)]


def _decoder(channels: int) -> nn.Sequential:
    """Redraw 32 x 32 px in colour from maps of side 8."""
    half, quarter = channels // 2, channels // 4
    doubled = *_doubled(channels, half), *_doubled(half, quarter)
    return nn.Sequential(*doubled, nn.Conv2d(quarter, 3, 3, 1, 1), nn.Tanh())


class LightweightDiscriminator(nn.Module):
    """Score images, high for real: (B, 3, size, size) in [-1, 1] -> (B, 1), the main head.

    A second head judges the shape of the image at 32 px. Two decoders redraw what the maps of the main head
    hold, so that these must describe the image. No batch norm in the heads: each image is judged by itself.
    """

    def __init__(self, config: LightweightConfig):
        super().__init__()
        at = config.channels_at
        sides = [config.size >> level for level in range(config.size.bit_length() - 4)]
        self.stem = nn.Sequential(*_leaky(3, at(config.size), 3, 1, 1))
        blocks = [_Shrink(at(side), at(side // 2)) for side in sides]
        self.to_16, self.to_8 = nn.Sequential(*blocks[:-1]), blocks[-1]
        deep, middle, half = at(8), at(16), at(32)
        self.head = nn.Sequential(*_leaky(deep, deep, 1), nn.Conv2d(deep, 1, 4))
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        shape = *_leaky(3, half, 4, 2, 1), _Shrink(half, middle)
        self.shape_head = nn.Sequential(*shape, nn.Conv2d(middle, 1, 4))
        self.redraw_whole, self.redraw_part = _decoder(deep), _decoder(middle)

    def forward(self, images: Tensor, *, heads: bool = False) -> Tensor | tuple[Tensor, ...]:
        """Return the score (B, 1); with `heads` both heads' 5 x 5 scores and the maps at 16 and 8 px."""
        at_16 = self.to_16(self.stem(images))
        at_8 = self.to_8(at_16)
        scores = self.head(at_8)
        if not heads:
            return self.mean(scores)
        return scores, self.shape_head(_small(images)), at_16, at_8


def _images(gan: Gan, batch: Batch) -> Tensor:
    return tensors_of(batch, images=(3, gan.config.size, gan.config.size))[0]


def _draw(gan: Gan, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    latent = torch.randn(count, gan.config.latent, generator=generator).to(device)
    noise = torch.randn(count, 1, gan.config.size, gan.config.size, generator=generator).to(device)
    return gan.generator(latent, noise)


def _redrawing_error(
    gan: Gan, images: Tensor, at_16: Tensor, at_8: Tensor, generator: torch.Generator
) -> Tensor:
    """MSE of the whole image at 32 px and of one quarter of it, redrawn from the maps."""
    down, right = torch.randint(2, (2,), generator=generator).tolist()
    half = images.shape[-1] // 2
    quarter = images[..., down * half :, right * half :][..., :half, :half]
    part = at_16[..., 8 * down :, 8 * right :][..., :8, :8]
    error = functional.mse_loss(gan.discriminator.redraw_whole(at_8), _small(images))
    return error + functional.mse_loss(gan.discriminator.redraw_part(part), _small(quarter))


def _discriminator_loss(gan: Gan, batch: Batch, generator: torch.Generator) -> Losses:
    """Hinge of both heads, redrawing of true images, and now and then the slope at them."""
    how = gan.config.augmentation
    real = augment(gan.prepare(_images(gan, batch)), how, generator=generator)
    with torch.no_grad():
        fake = augment(_draw(gan, len(real), generator, real.device), how, generator=generator)
    penalty, every = gan.config.penalty, gan.config.penalty_every
    steep = penalty > 0 and float(torch.rand((), generator=generator)) * every < 1
    real.requires_grad_(steep)
    main, shape, at_16, at_8 = gan.discriminator(real, heads=True)
    fake_main, fake_shape, *_ = gan.discriminator(fake, heads=True)
    hinge = discriminator_hinge(main, fake_main) + discriminator_hinge(shape, fake_shape)
    redrawing = _redrawing_error(gan, real.detach(), at_16, at_8, generator)
    slope = hinge.new_zeros(())
    if steep:
        total = main.mean((1, 2, 3)).sum() + shape.mean((1, 2, 3)).sum()
        (gradient,) = torch.autograd.grad(total, real, create_graph=True)
        slope = gradient.square().sum((1, 2, 3)).mean()
    parts = {"hinge": hinge.detach(), "redrawing": redrawing.detach(), "slope": slope.detach()}
    return {"total": hinge + redrawing + penalty * every * slope, **parts}


def _generator_loss(gan: Gan, batch: Batch, generator: torch.Generator) -> Losses:
    images = _images(gan, batch)
    fake = _draw(gan, len(images), generator, images.device)
    shown = augment(fake, gan.config.augmentation, generator=generator)
    main, shape, *_ = gan.discriminator(shown, heads=True)
    return {"total": generator_hinge(main) + generator_hinge(shape)}


def _first_weights(generator: nn.Module, discriminator: nn.Module) -> None:
    for module in [*generator.modules(), *discriminator.modules()]:
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight, a=0.1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for enlarge in generator.enlarge.values():
        nn.init.zeros_(enlarge.noise.weight)


def lightweight(config: LightweightConfig) -> Gan:
    """Build a Lightweight GAN with fresh weights; its batches hold "images" (B, 3, size, size) in [0, 1].

    L_D = hinge of two heads + MSE of two redrawn images + penalty E |grad D(x)|^2, L_G = - E D(G) of two
    heads (Liu et al. 2021, ICLR; slope at true images after Mescheder et al. 2018, ICML 80, 3481).
    """
    networks = LightweightGenerator, LightweightDiscriminator
    return build_gan("lightweight", config, networks, (_generator_loss, _discriminator_loss), _first_weights)


def generate(
    gan: Gan, count: int, *, generator: torch.Generator, latent: Tensor | None = None, batch: int = 64
) -> Tensor:
    """Draw `count` new galaxies: (count, 3, size, size) in [0, 1], on the CPU.

    latent: (count, latent), vectors to draw from in place of random ones; the fine noise then is one pattern
    for all, so that a walk from vector to vector changes the galaxy and nothing else.
    batch: galaxies per pass. ValueError if something does not fit.
    """
    check_gan(gan, "lightweight")
    at_least(1, count=count)
    check_generator(generator)
    config, given = gan.config, latent is not None
    latent = latent if given else torch.randn(count, config.latent, generator=generator)
    check_floats(latent, name="latent")
    if latent.shape != (count, config.latent) or not latent.isfinite().all():
        raise ValueError(f"latent {tuple(latent.shape)}: expected ({count}, {config.latent}), finite floats")
    noise = torch.randn(1 if given else count, 1, config.size, config.size, generator=generator)
    return in_batches(gan.generator, latent, noise.expand(count, -1, -1, -1), batch=batch)
