"""The deblender GAN: one blend in, each of its galaxies out.

Three generators share a discriminator design. ``"branched"`` is the network of Reiman & Göhre 2019.
``"gated"`` is a U-Net whose output is a share of the blend, for under a maximum blend no galaxy is brighter
than it; ``"unet"`` is the same U-Net without that knowledge, to see what it is worth.
"""

from dataclasses import dataclass

import torch
from torch import nn

from galnb.blending.batches import turned
from galnb.gans import Batch, Gan, Losses, to_signed, to_unit
from galnb.gans.layers import ACTIVATIONS, NORMS, Add, Gate, ResidualBlock, evaluating
from galnb.gans.losses import RECONSTRUCTIONS, discriminator_bce, feature_loss, generator_bce, match_galaxies
from galnb.gans.unet import Brush, UNetGenerator
from galnb.images import check_images


@dataclass(frozen=True)
class DeblenderConfig:
    """Say everything that is needed to build a deblender GAN.

    Parameters
    ----------
    generator : str
        Key of `GENERATORS`.
    size, channels : int
        Side and number of channels of the images; size must be a multiple of 16.
    count : int
        Galaxies per blend.
    width : int
        Channels of the branched generator (paper: 64).
    root_blocks, branch_blocks : int
        Residual blocks before the branches and in each (paper: 10 and 6).
    widths, blocks : tuple of int
        Channels and residual blocks of the U-Nets at each of their resolutions.
    headroom : float
        How far above the blend the gated output may reach; 0 for maximum blends, where it never has to.
    discriminator_width, dense : int
        Channels of the discriminator's first convolution and units of its dense layer (paper: 64 and 1024).
    reconstruction : str
        Key of `galnb.gans.losses.RECONSTRUCTIONS`.
    adversarial_weight : float
        Weight of the adversarial part of the generator's loss (paper: 1e-3).
    seed : int
        Seed of the first weights.

    Notes
    -----
    Chapter: The deblender GAN
    """

    generator: str = "branched"
    size: int = 80
    channels: int = 3
    count: int = 2
    width: int = 64
    root_blocks: int = 10
    branch_blocks: int = 6
    widths: tuple[int, ...] = (48, 96, 144, 192)
    blocks: tuple[int, ...] = (2, 2, 1, 1)
    headroom: float = 0.0
    discriminator_width: int = 64
    dense: int = 1024
    reconstruction: str = "mse"
    adversarial_weight: float = 1e-3
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))  # a list when read back from JSON
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if self.generator not in GENERATORS:
            raise ValueError(f"generator {self.generator!r} is unknown; known are {sorted(GENERATORS)}")
        if self.reconstruction not in RECONSTRUCTIONS:
            known = sorted(RECONSTRUCTIONS)
            raise ValueError(f"reconstruction {self.reconstruction!r} is unknown; known are {known}")
        if self.size < 16 or self.size % 16:
            raise ValueError(f"size is {self.size}; expected a multiple of 16, for example 80")
        if self.count < 2:
            raise ValueError(f"count is {self.count}; a blend has at least 2 galaxies")
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"widths {self.widths} and blocks {self.blocks}: expected one entry per resolution"
            )
        multiple = 2 ** len(self.widths)
        if self.generator in FOLDED and self.size % multiple:
            raise ValueError(f"size is {self.size}; {len(self.widths)} widths need a multiple of {multiple}")
        if self.headroom < 0:
            raise ValueError(f"headroom is {self.headroom}; expected 0 or more")
        for field in ("channels", "width", "root_blocks", "branch_blocks", "discriminator_width", "dense"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; expected at least 1")


class BranchedGenerator(nn.Module):
    """Draw each galaxy by a branch of its own behind a common root (Reiman & Göhre 2019).

    Takes (B, C, H, W) in [-1, 1] and returns (B, N, C, H, W) in [-1, 1]. Nothing is resized on the way, so
    any image size will do. With the paper's sizes it has 1,712,838 parameters; the paper's 1,715,718 hold
    2,880 biases more, which batch norm cancels.

    Chapter: The deblender GAN
    """

    def __init__(self, config: DeblenderConfig):
        super().__init__()
        width = config.width
        self.head = nn.Sequential(nn.Conv2d(config.channels, width, 9, padding=4), nn.PReLU(width))
        self.root = nn.Sequential(
            *(ResidualBlock(width) for _ in range(config.root_blocks)),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.long_skip = Add()
        self.branches = nn.ModuleList(
            nn.Sequential(
                *(ResidualBlock(width) for _ in range(config.branch_blocks)),
                nn.Conv2d(width, config.channels, 9, padding=4),
                nn.Tanh(),
            )
            for _ in range(config.count)
        )

    def forward(self, blended: torch.Tensor) -> torch.Tensor:
        head = self.head(blended)
        root = self.long_skip(head, self.root(head))
        return torch.stack([branch(root) for branch in self.branches], dim=1)


def _unet(config: DeblenderConfig) -> UNetGenerator:
    gate = Gate(config.headroom) if config.generator == "gated" else Brush()
    return UNetGenerator(config.widths, config.blocks, config.channels, config.count, gate)


GENERATORS = {"branched": BranchedGenerator, "gated": _unet, "unet": _unet}
FOLDED = ("gated", "unet")  # these halve the image several times


class Discriminator(nn.Sequential):
    """Score one galaxy image: the higher the logit, the more it looks real.

    Takes (B, C, H, W) in [-1, 1] and returns (B, 1). Convolution, batch norm, LeakyReLU in this order, so
    that the norm merges exactly into the convolution before it. With the paper's sizes it has 17,796,481
    parameters.

    Chapter: The deblender GAN
    """

    def __init__(self, config: DeblenderConfig):
        width = config.discriminator_width
        layers: list[nn.Module] = [
            nn.Conv2d(config.channels, width, 3, padding=1),
            ACTIVATIONS["leaky_relu"](width),
        ]
        before = width
        for factor, stride in ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2)):
            layers += [
                nn.Conv2d(before, factor * width, 3, stride=stride, padding=1, bias=False),
                NORMS["batch"](factor * width),
                ACTIVATIONS["leaky_relu"](factor * width),
            ]
            before = factor * width
        layers += [
            nn.Flatten(),
            nn.Linear(before * (config.size // 16) ** 2, config.dense),
            ACTIVATIONS["leaky_relu"](config.dense),
            nn.Linear(config.dense, 1),
        ]
        super().__init__(*layers)


def _discriminator_loss(gan: Gan, batch: Batch, generator: torch.Generator) -> Losses:
    """Compare real galaxies with generated ones, all branches alike (one D shared by the branches)."""
    real = gan.prepare(batch["galaxies"]).flatten(0, 1)
    with torch.no_grad():
        fake = gan.generator(gan.prepare(batch["blended"])).flatten(0, 1)
    real_logits, fake_logits = gan.discriminator(real), gan.discriminator(fake.to(real.dtype))
    return {
        "total": discriminator_bce(real_logits, fake_logits),
        "real_score": real_logits.detach().sigmoid().mean(),
        "fake_score": fake_logits.detach().sigmoid().mean(),
    }


def _generator_loss(gan: Gan, batch: Batch, generator: torch.Generator) -> Losses:
    """Average over branches of reconstruction + weight x BCE(D(G), 1) (the paper: MSE and 1e-3)."""
    drawn = gan.generator(gan.prepare(batch["blended"]))
    truth = match_galaxies(drawn, gan.prepare(batch["galaxies"]))
    reconstruction = RECONSTRUCTIONS[gan.config.reconstruction](drawn, truth)
    adversarial = generator_bce(gan.discriminator(drawn.flatten(0, 1)))
    total = reconstruction + gan.config.adversarial_weight * adversarial
    return {"total": total, "reconstruction": reconstruction.detach(), "adversarial": adversarial.detach()}


def deblender(config: DeblenderConfig, *, features: nn.Module | None = None) -> Gan:
    """Build a deblender GAN with fresh weights.

    Parameters
    ----------
    config : DeblenderConfig
        Sizes and loss weights; the seed in it fixes the first weights.
    features : torch.nn.Module, optional
        Fixed network for the burn-in loss, from `galnb.gans.features`. Without it burn-in uses the reconstruction
        loss.

    Returns
    -------
    Gan

    Notes
    -----
    L_D = mean over branches of BCE(D(x), 1) + BCE(D(G), 0); L_G = mean over branches of
    MSE + 1e-3 BCE(D(G), 1); burn-in: sum over branches of MSE(phi(x), phi(y)) (Reiman & Göhre 2019).
    Chapter: The deblender GAN
    """

    def burn_in_loss(gan: Gan, batch: Batch, generator: torch.Generator) -> Losses:
        drawn = gan.generator(gan.prepare(batch["blended"]))
        truth = match_galaxies(drawn, gan.prepare(batch["galaxies"]))
        if features is None:
            return {"total": RECONSTRUCTIONS[config.reconstruction](drawn, truth)}
        seen = features.to(drawn.device)
        return {"total": feature_loss((drawn.float() + 1) / 2, (truth + 1) / 2, seen)}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator, discriminator = GENERATORS[config.generator](config), Discriminator(config)
    networks, losses = (generator, discriminator), (_generator_loss, _discriminator_loss, burn_in_loss)
    return Gan("deblender", config, *networks, to_signed, *losses)


def deblend(
    gan: Gan, blended: torch.Tensor, *, count: int = 2, symmetries: int = 1, batch: int = 64
) -> torch.Tensor:
    """Take blends apart.

    Parameters
    ----------
    gan : Gan
        A trained deblender.
    blended : torch.Tensor, shape (B, C, H, W)
        Blends in [0, 1].
    count : int
        Galaxies per blend; must be what the GAN was built for.
    symmetries : int
        1, or 8 to average over the flips and quarter turns of the blend (8 times slower, a bit more exact).
    batch : int
        Blends per pass, for bounded memory.

    Returns
    -------
    torch.Tensor, shape (B, N, C, H, W)
        The galaxies in [0, 1], on the device of the generator.

    Raises
    ------
    ValueError
        If the images, the count, the batch or the symmetries do not fit.

    Notes
    -----
    Chapter: The deblender GAN
    """
    check_images(blended, name="blended")
    config, (channels, *sides) = gan.config, blended.shape[1:]
    if count != config.count:
        raise ValueError(
            f"count is {count}, but this deblender was built for {config.count} galaxies per blend"
        )
    if channels != config.channels:
        raise ValueError(f"blended has {channels} channels; this deblender takes {config.channels}")
    multiple = 2 ** len(config.widths) if config.generator in FOLDED else 1
    if any(side % multiple for side in sides):
        raise ValueError(
            f"blended is {sides[0]} x {sides[1]} px; this deblender takes multiples of {multiple} px"
        )
    if symmetries not in (1, 8):
        raise ValueError(f"symmetries is {symmetries}; expected 1 or 8")
    if batch < 1:
        raise ValueError(f"batch is {batch}; expected at least 1")
    device = next(gan.generator.parameters()).device
    with evaluating(gan.generator), torch.inference_mode():
        parts = [_deblend_once(gan, part.to(device), symmetries) for part in blended.split(batch)]
    return torch.cat(parts).clone()


def _deblend_once(gan: Gan, blended: torch.Tensor, symmetries: int) -> torch.Tensor:
    total = 0
    for index in range(symmetries):
        drawn = to_unit(gan.generator(gan.prepare(turned(blended, index))).float())
        total = total + turned(drawn, index if index >= 4 else -index % 4)  # a mirroring undoes itself
    return total / symmetries
