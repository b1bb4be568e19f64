"""The deblender GAN (chapter 04): one blend in, each of its galaxies out.

Three generators share a discriminator design. "branched" is the network of Reiman & Göhre 2019. "gated" is a
U-Net whose output is a share of the blend, for under a maximum blend no galaxy is brighter than it; "unet" is
the same U-Net without that knowledge, to see what it is worth.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from galnb.checks import at_least, one_of
from galnb.gans import Batch, Gan, Losses, build_gan, check_gan, in_batches, tensors_of, to_signed, to_unit
from galnb.gans.layers import NORMS, Add, Gate, ResidualBlock
from galnb.gans.losses import RECONSTRUCTIONS, discriminator_bce, feature_loss, generator_bce, match_galaxies
from galnb.images import check_images, turned


@dataclass(frozen=True)
class DeblenderConfig:
    """Say everything that is needed to build a deblender GAN.

    generator: "branched", "gated" or "unet".
    size, channels: side and number of channels of the images; size must be a multiple of 16.
    count: galaxies per blend.
    width: channels of the branched generator (paper: 64).
    root_blocks, branch_blocks: residual blocks before the branches and in each (paper: 10 and 6).
    widths, blocks: channels and residual blocks of the U-Nets at each of their resolutions.
    headroom: how far above the blend the gated output may reach; 0 for maximum blends, where it never has to.
    discriminator_width, dense: channels of the judge's first convolution, units of its dense layer.
    discriminator_norm: key of `galnb.gans.layers.NORMS`. A judge with "batch" (paper) sees in training which
    batch an image is in; with "group" an image has the same logit alone and in any batch.
    discriminator_kernel: side of the judge's strided kernels, px. 3 (paper) meets the padding at the left and
    the top alone, where a side is even; 4 meets it at all sides alike.
    reconstruction: key of `galnb.gans.losses.RECONSTRUCTIONS`.
    adversarial_weight: weight of the adversarial part of the generator's loss (paper: 1e-3).
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
    discriminator_norm: str = "batch"
    discriminator_kernel: int = 3
    reconstruction: str = "mse"
    adversarial_weight: float = 1e-3
    seed: int = 0

    def __post_init__(self):
        one_of("generator", self.generator, sorted(_GENERATORS))
        one_of("reconstruction", self.reconstruction, sorted(RECONSTRUCTIONS))
        one_of("discriminator_norm", self.discriminator_norm, sorted(NORMS))
        one_of("discriminator_kernel", self.discriminator_kernel, (3, 4))
        names = "size", "channels", "width", "root_blocks", "branch_blocks", "discriminator_width", "dense"
        at_least(1, **{name: getattr(self, name) for name in names})
        at_least(2, count=self.count)
        at_least(0, seed=self.seed)
        at_least(0.0, headroom=self.headroom, adversarial_weight=self.adversarial_weight)
        for width, blocks in zip(self.widths, self.blocks, strict=False):
            at_least(1, widths=width), at_least(0, blocks=blocks)
        if not self.widths or len(self.widths) != len(self.blocks):
            given = f"widths {self.widths} and blocks {self.blocks}"
            raise ValueError(f"{given}: expected one entry per resolution")
        if self.size % 16 or self.size % self.multiple:
            raise ValueError(f"size is {self.size}; expected a multiple of {max(16, self.multiple)}")

    @property
    def multiple(self) -> int:
        """What the sides of a blend must be a multiple of, px: a U-Net halves it several times."""
        return 1 if self.generator == "branched" else 2 ** len(self.widths)


def _blocks(count: int, width: int, *, modern: bool = False) -> list[nn.Module]:
    return [ResidualBlock(width, modern=modern) for _ in range(count)]


class _BranchedGenerator(nn.Module):
    """Draw each galaxy by a branch of its own behind a common root (Reiman & Göhre 2019).

    (B, C, H, W) -> (B, N, C, H, W), both in [-1, 1], of any size. With the paper's sizes it has 1,712,838
    parameters; the paper's 1,715,718 hold 2,880 biases more, which batch norm cancels.
    """

    def __init__(self, config: DeblenderConfig):
        super().__init__()
        width, colours = config.width, config.channels
        self.head = nn.Sequential(nn.Conv2d(colours, width, 9, padding=4), nn.PReLU(width))
        blocks, last = _blocks(config.root_blocks, width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.root = nn.Sequential(*blocks, last, nn.BatchNorm2d(width))
        self.long_skip = Add()

        def branch() -> nn.Sequential:
            blocks = _blocks(config.branch_blocks, width)
            return nn.Sequential(*blocks, nn.Conv2d(width, colours, 9, padding=4), nn.Tanh())

        self.branches = nn.ModuleList(branch() for _ in range(config.count))

    def forward(self, blended: Tensor) -> Tensor:
        head = self.head(blended)
        root = self.long_skip(head, self.root(head))
        return torch.stack([branch(root) for branch in self.branches], dim=1)


class _Brush(nn.Module):
    """Paint each galaxy in [-1, 1] whatever the blend shows: tanh(logits), in the place of a `Gate`."""

    def forward(self, blended: Tensor, logits: Tensor) -> Tensor:
        return logits.unflatten(1, (-1, blended.shape[1])).tanh()


class _UNetGenerator(nn.Module):
    """Tell per pixel and colour which share of the blend is each galaxy's, by a U-Net at half resolution.

    (B, C, H, W) in [-1, 1] -> (B, N, C, H, W): with a `Gate` from -1 to the blend + 2 headroom, with a brush
    in [-1, 1]. The image is folded once (2x2 pixels become channels), then halved between resolutions.
    """

    def __init__(self, config: DeblenderConfig):
        super().__init__()
        widths = config.widths

        def stage(level: int) -> nn.Sequential:
            return nn.Sequential(*_blocks(config.blocks[level], widths[level], modern=True))

        levels, folded = range(len(widths) - 1), 4 * config.channels
        self.fold = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(folded, widths[0], 3, padding=1))
        self.down = nn.ModuleList(stage(level) for level in levels)
        self.shrink = nn.ModuleList(nn.Conv2d(widths[i], widths[i + 1], 2, stride=2) for i in levels)
        self.bottom = stage(len(widths) - 1)
        self.enlarge = nn.ModuleList(
            nn.Sequential(nn.Conv2d(widths[i + 1], 4 * widths[i], 1), nn.PixelShuffle(2)) for i in levels
        )
        self.skips = nn.ModuleList(Add() for _ in levels)
        self.up = nn.ModuleList(stage(level) for level in levels)
        last = nn.Conv2d(widths[0], folded * config.count, 3, padding=1)
        self.unfold = nn.Sequential(nn.SiLU(), last, nn.PixelShuffle(2))
        self.gate = Gate(config.headroom) if config.generator == "gated" else _Brush()

    def forward(self, blended: Tensor) -> Tensor:
        features, kept = self.fold(blended), []
        for stage, shrink in zip(self.down, self.shrink, strict=True):
            kept.append(stage(features))
            features = shrink(kept[-1])
        features = self.bottom(features)
        for level in reversed(range(len(kept))):
            features = self.up[level](self.skips[level](kept[level], self.enlarge[level](features)))
        return self.gate(blended, self.unfold(features))


_GENERATORS = {"branched": _BranchedGenerator, "gated": _UNetGenerator, "unet": _UNetGenerator}


class Discriminator(nn.Sequential):
    """Score one galaxy image, (B, C, H, W) in [-1, 1] -> (B, 1): the higher the logit, the more real.

    Convolution, norm, LeakyReLU in this order, so that batch norm merges exactly into the convolution before
    it. With the paper's sizes it has 17,796,481 parameters.
    """

    def __init__(self, config: DeblenderConfig):
        width, norm = config.discriminator_width, config.discriminator_norm
        layers = [nn.Conv2d(config.channels, width, 3, padding=1), nn.LeakyReLU(0.2)]
        widths = [width * factor for factor in (1, 1, 2, 2, 4, 4, 8, 8)]
        for level, (before, after) in enumerate(pairwise(widths)):
            kernel, stride = (3, 1) if level % 2 else (config.discriminator_kernel, 2)
            convolution = nn.Conv2d(before, after, kernel, stride, 1, bias=norm == "none")
            layers += [convolution, NORMS[norm](after), nn.LeakyReLU(0.2)]
        dense = nn.Linear(after * (config.size // 16) ** 2, config.dense)
        super().__init__(*layers, nn.Flatten(), dense, nn.LeakyReLU(0.2), nn.Linear(config.dense, 1))


def _given(gan: Gan, batch: Batch) -> tuple[Tensor, Tensor]:
    """Blends and their galaxies as the networks take them; ValueError where a batch holds others."""
    one = gan.config.channels, gan.config.size, gan.config.size
    blended, galaxies = tensors_of(batch, blended=one, galaxies=(gan.config.count, *one))
    return gan.prepare(blended), gan.prepare(galaxies)


def _discriminator_loss(gan: Gan, batch: Batch, generator: torch.Generator) -> Losses:
    """Compare real galaxies with generated ones, all branches alike (one D shared by the branches)."""
    blended, galaxies = _given(gan, batch)
    real = galaxies.flatten(0, 1)
    with torch.no_grad():
        fake = gan.generator(blended).flatten(0, 1)
    on_real, on_fake = gan.discriminator(real), gan.discriminator(fake.to(real.dtype))
    parts = {"real_score": on_real.detach().sigmoid().mean(), "fake_score": on_fake.detach().sigmoid().mean()}
    return {"total": discriminator_bce(on_real, on_fake), **parts}


def _drawn_and_truth(gan: Gan, batch: Batch) -> tuple[Tensor, Tensor]:
    blended, galaxies = _given(gan, batch)
    drawn = gan.generator(blended)
    return drawn, match_galaxies(drawn, galaxies)


def _generator_loss(gan: Gan, batch: Batch, generator: torch.Generator) -> Losses:
    """Average over branches of reconstruction + weight x BCE(D(G), 1) (the paper: MSE and 1e-3)."""
    drawn, truth = _drawn_and_truth(gan, batch)
    reconstruction = RECONSTRUCTIONS[gan.config.reconstruction](drawn, truth)
    adversarial = generator_bce(gan.discriminator(drawn.flatten(0, 1)))
    total = reconstruction + gan.config.adversarial_weight * adversarial
    return {"total": total, "reconstruction": reconstruction.detach(), "adversarial": adversarial.detach()}


def deblender(config: DeblenderConfig, *, features: nn.Module | None = None) -> Gan:
    """Build a deblender GAN with fresh weights; its batches hold "blended" and "galaxies", in [0, 1].

    features: fixed network for the burn-in, from `galnb.gans.features`; without it the reconstruction loss.

    L_D = mean over branches of BCE(D(x), 1) + BCE(D(G), 0); L_G = mean over branches of
    MSE + 1e-3 BCE(D(G), 1); burn-in: sum over branches of MSE(phi(x), phi(y)) (Reiman & Göhre 2019).
    """

    def burn_in_loss(gan: Gan, batch: Batch, generator: torch.Generator) -> Losses:
        drawn, truth = _drawn_and_truth(gan, batch)
        if features is None:
            return {"total": RECONSTRUCTIONS[config.reconstruction](drawn, truth)}
        seen = features.to(drawn.device)
        return {"total": feature_loss((drawn.float() + 1) / 2, (truth + 1) / 2, seen)}

    networks = _GENERATORS[config.generator], Discriminator
    losses = _generator_loss, _discriminator_loss, burn_in_loss
    return build_gan("deblender", config, networks, losses)


def deblend(gan: Gan, blended: Tensor, *, count: int = 2, symmetries: int = 1, batch: int = 64) -> Tensor:
    """Take blends apart: (B, C, H, W) in [0, 1] -> the galaxies (B, N, C, H, W) in [0, 1], on the CPU.

    gan: a trained deblender; count: galaxies per blend, must be what it was built for.
    symmetries: 1, or 8 to average over the flips and quarter turns of the blend, a bit more exact.
    batch: blends per pass, for bounded memory. ValueError if something does not fit.
    """
    check_gan(gan, "deblender")
    check_images(blended, name="blended")
    config, (channels, *sides) = gan.config, blended.shape[1:]
    one_of("symmetries", symmetries, (1, 8))
    if count != config.count:
        raise ValueError(f"count is {count}, but this deblender was built for {config.count} galaxies")
    if channels != config.channels or any(side % config.multiple for side in sides):
        wanted = f"{config.channels} channels, sides in multiples of {config.multiple} px"
        raise ValueError(f"blended is {tuple(blended.shape)}; this deblender takes {wanted}")

    def draw(part: Tensor) -> Tensor:
        total = 0
        for index in range(symmetries):
            drawn = to_unit(gan.generator(to_signed(turned(part, index))).float())
            total = total + turned(drawn, index if index >= 4 else -index % 4)  # a mirroring undoes itself
        return total / symmetries

    return in_batches(gan.generator, blended, batch=batch, draw=draw)
