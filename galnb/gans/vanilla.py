"""The first GAN: binary cross-entropy and networks of DCGAN make, from noise or from a given image."""

from dataclasses import dataclass

import torch
from torch import nn

from galnb.gans import Batch, Gan, Losses, images_of, to_signed, to_unit
from galnb.gans.layers import Concat, evaluating
from galnb.gans.losses import GENERATOR_LOSSES, discriminator_bce
from galnb.images.imageset import check_images, check_sizes


@dataclass(frozen=True)
class VanillaConfig:
    """Say how large the two networks are, what the generator starts from and what it is asked for.

    Parameters
    ----------
    size : int
        Side of an image, px: 16, 32, 64, ...
    width : int
        Channels at half the side, doubled whenever the side is halved; published 128 (64 px).
    latent : int
        Length of the random vector that an image is drawn from; 0 for noise in the shape of an image.
    channels : int
        Colours of an image.
    condition : bool
        Start from a given image, ``"condition"`` in the batch; the discriminator sees it too.
    generator_loss : str
        Key of `galnb.gans.losses.GENERATOR_LOSSES`.
    pixel_weight : float
        Weight of the mean absolute error against ``"images"``, with a condition only.
    seed : int
        Seed of the first weights.

    Notes
    -----
    Chapter: A first GAN
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
        if min(self.width, self.channels) < 1 or self.latent < 0:
            given = f"width {self.width}, channels {self.channels}, latent {self.latent}"
            raise ValueError(f"{given}; expected at least 1, 1 and 0")
        check_sizes(size=self.size, width=self.width, channels=self.channels, latent=self.latent or None)
        if self.size < 16 or self.size & (self.size - 1):
            raise ValueError(f"size is {self.size}; expected 16, 32, 64, ...")
        if self.generator_loss not in GENERATOR_LOSSES:
            known = sorted(GENERATOR_LOSSES)
            raise ValueError(f"generator_loss {self.generator_loss!r} is unknown; known are {known}")
        if not self.pixel_weight >= 0 or (self.pixel_weight and not self.condition):
            raise ValueError(
                f"pixel_weight is {self.pixel_weight}; expected 0, or more with condition=True: what is "
                "drawn from noise has no truth to be measured against"
            )

    @property
    def widths(self) -> list[int]:
        """Channels at size/2, size/4, ..., 4 px."""
        return [self.width << level for level in range((self.size // 4).bit_length() - 1)]


class ImageGenerator(nn.Module):
    """Turn an image, or noise of its shape, into an image: (B, C, size, size) -> the same in [-1, 1].

    Down to 4 x 4 px and up again. At every side the maps of the way down are laid beside those of the way up,
    so that places are not forgotten (Isola et al. 2017). Chapter: A first GAN
    """

    def __init__(self, config: VanillaConfig):
        super().__init__()
        widths, colours = config.widths, config.channels
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)
            )
            for before, after in zip([colours, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList()
        before = widths[-1]
        for after in [*widths[-2::-1], widths[0]]:
            self.up.append(nn.Sequential(*_up(before, after)))
            before = 2 * after
        self.join = Concat()
        self.paint = nn.Sequential(nn.Conv2d(widths[0] + colours, colours, 3, 1, 1), nn.Tanh())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        kept = [images]
        for down in self.down:
            kept.append(down(kept[-1]))
        maps = kept.pop()
        for up in self.up:
            maps = self.join(up(maps), kept.pop())
        return self.paint(maps)


def _vector_generator(config: VanillaConfig) -> nn.Sequential:
    """(B, latent) -> (B, C, size, size) in [-1, 1]: transposed convolutions, batch norm, ReLU; then tanh."""
    layers = [nn.Unflatten(1, (config.latent, 1, 1)), *_up(config.latent, config.widths[-1], stride=1)]
    for after in config.widths[-2::-1]:
        layers += _up(2 * after, after)
    last = nn.ConvTranspose2d(config.width, config.channels, 4, 2, 1)
    return nn.Sequential(*layers, last, nn.Tanh())


def _discriminator(config: VanillaConfig) -> nn.Sequential:
    """(B, C, size, size) -> (B, 1), one logit, high for real; with a condition (B, 2 C, size, size).

    No batch norm, unlike the published one: true and drawn images come in batches of their own, whose
    statistics alone would tell which is which.
    """
    widths, layers = config.widths, []
    for before, after in zip([(1 + config.condition) * config.channels, *widths], widths, strict=False):
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4), nn.Flatten())


def _up(before: int, after: int, *, stride: int = 2) -> list[nn.Module]:
    """Enlarge: from 1 to 4 px with stride 1, twofold with stride 2."""
    convolution = nn.ConvTranspose2d(before, after, 4, stride, stride - 1, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU()]


def _noise(config: VanillaConfig, count: int, generator: torch.Generator) -> torch.Tensor:
    shape = (config.latent,) if config.latent else (config.channels, config.size, config.size)
    return torch.randn(count, *shape, generator=generator)


def _play(gan: Gan, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Return true images, drawn ones, and both as the discriminator gets them: with the condition beside."""
    wanted = (gan.config.channels, gan.config.size, gan.config.size)
    real = gan.prepare(images_of(batch, "images", wanted))
    if not gan.config.condition:
        fake = gan.generator(_noise(gan.config, len(real), generator).to(real.device))
        return real, fake, real, fake
    given = gan.prepare(images_of(batch, "condition", wanted))
    if len(given) != len(real):
        raise ValueError(
            f"batch holds {len(real)} images and {len(given)} of condition; expected one for each"
        )
    fake = gan.generator(given)
    return real, fake, torch.cat([real, given], 1), torch.cat([fake, given], 1)


def _discriminator_loss(gan: Gan, batch: Batch, generator: torch.Generator) -> Losses:
    with torch.no_grad():
        *_, real, fake = _play(gan, batch, generator)
    real_logits, fake_logits = gan.discriminator(real), gan.discriminator(fake)
    return {
        "total": discriminator_bce(real_logits, fake_logits),
        "real": real_logits.detach().sigmoid().mean(),
        "fake": fake_logits.detach().sigmoid().mean(),
    }


def _generator_loss(gan: Gan, batch: Batch, generator: torch.Generator) -> Losses:
    real, fake, _, shown = _play(gan, batch, generator)
    fooling = GENERATOR_LOSSES[gan.config.generator_loss](gan.discriminator(shown))
    if not gan.config.pixel_weight:
        return {"total": fooling}
    error = (fake - real).abs().mean()
    return {"total": fooling + gan.config.pixel_weight * error, "fooling": fooling, "error": error}


def vanilla(config: VanillaConfig) -> Gan:
    """Build a first GAN with fresh weights.

    Parameters
    ----------
    config : VanillaConfig
        Sizes and losses; the seed in it fixes the first weights.

    Returns
    -------
    Gan
        Batches hold ``"images"`` (B, C, size, size) in [0, 1], with a condition also ``"condition"``.

    Notes
    -----
    L_D = BCE(D(x), 1) + BCE(D(G), 0); L_G = BCE(D(G), 1), or E ln(1 - D(G)) for ``"minimax"`` (Goodfellow et
    al. 2014, Eq. 1). Layers and first weights after Radford et al. 2016. Chapter: A first GAN
    """
    from_image = config.condition or not config.latent
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator = ImageGenerator(config) if from_image else _vector_generator(config)
        discriminator = _discriminator(config)
        for module in [*generator.modules(), *discriminator.modules()]:
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, 0.0, 0.02)
    return Gan("vanilla", config, generator, discriminator, to_signed, _generator_loss, _discriminator_loss)


def generate(gan: Gan, count: int, *, generator: torch.Generator, batch: int = 256) -> torch.Tensor:
    """Draw new images from noise.

    Parameters
    ----------
    gan : Gan
        A first GAN without a condition.
    count : int
        How many.
    generator : torch.Generator
        CPU generator of the noise.
    batch : int
        Images per pass, for bounded memory.

    Returns
    -------
    torch.Tensor, shape (count, C, size, size)
        In [0, 1], on the CPU.

    Raises
    ------
    ValueError
        If the GAN is another one or needs a condition, or the count or the batch is no whole number
        of at least 1.

    Notes
    -----
    Chapter: A first GAN
    """
    if gan.name != "vanilla" or gan.config.condition:
        raise ValueError(
            f"this is a {gan.name!r} GAN{' with a condition' * (gan.name == 'vanilla')}; generate needs a "
            "vanilla one that starts from noise. With a condition: complete(gan, images)"
        )
    if count is None:
        raise ValueError("count is None; expected a whole number of at least 1")
    check_sizes(count=count)
    return _run(gan, _noise(gan.config, count, generator), batch)


def complete(gan: Gan, images: torch.Tensor, *, batch: int = 256) -> torch.Tensor:
    """Draw what belongs to given images, such as whole galaxies to segmented ones.

    Parameters
    ----------
    gan : Gan
        A first GAN with a condition.
    images : torch.Tensor, shape (B, C, size, size)
        In [0, 1].
    batch : int
        Images per pass, for bounded memory.

    Returns
    -------
    torch.Tensor, shape (B, C, size, size)
        In [0, 1], on the CPU.

    Raises
    ------
    ValueError
        If the GAN is another one or starts from noise, or the images or the batch do not fit.

    Notes
    -----
    Chapter: A first GAN
    """
    if gan.name != "vanilla" or not gan.config.condition:
        raise ValueError(
            f"this {gan.name!r} GAN does not start from an image; complete needs a vanilla one trained with "
            "condition=True"
        )
    check_images(images)
    wanted = (gan.config.channels, gan.config.size, gan.config.size)
    if tuple(images.shape[1:]) != wanted:
        raise ValueError(f"images are {tuple(images.shape)}; expected (B, {', '.join(map(str, wanted))})")
    return _run(gan, gan.prepare(images.to(next(gan.generator.parameters()).dtype)), batch)


def _run(gan: Gan, inputs: torch.Tensor, batch: int) -> torch.Tensor:
    check_sizes(batch=batch)
    device = next(gan.generator.parameters()).device
    with evaluating(gan.generator), torch.no_grad():
        return torch.cat([to_unit(gan.generator(part.to(device))).cpu() for part in inputs.split(batch)])
