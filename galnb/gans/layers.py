"""Blocks of the GANs, and changes of images that gradients pass through: blur and augmentation.

Every sum is a module, so that relevance can be shared out at it (chapter 06).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn import functional

from galnb.checks import at_least, check_floats, check_generator, check_kind


def _group_norm(channels: int) -> nn.GroupNorm:
    """Groups of about 16 channels: small enough to matter, large enough for a stable variance."""
    fitting = (count for count in range(1, max(1, channels // 16) + 1) if channels % count == 0)
    return nn.GroupNorm(max(fitting), channels)


NORMS = {"batch": nn.BatchNorm2d, "group": _group_norm, "none": nn.Identity}


class Add(nn.Module):
    """Sum tensors of one shape; a bare ``+`` would hand the full relevance to both summands."""

    def forward(self, *tensors: Tensor) -> Tensor:
        return sum(tensors[1:], start=tensors[0])


class Concat(nn.Module):
    """Join tensors along the channel axis."""

    def forward(self, *tensors: Tensor) -> Tensor:
        return torch.cat(tensors, dim=1)


class Multiply(nn.Module):
    """Scale a signal by a gate that broadcasts to it; relevance takes the gate for a constant."""

    def forward(self, signal: Tensor, gate: Tensor) -> Tensor:
        return signal * gate


class Gate(nn.Module):
    """Give each galaxy its share of the blend: (x + 1 + 2 headroom) * sigmoid(logits) - 1, x in [-1, 1].

    blended: (B, C, H, W); logits: (B, N C, H, W). Returns (B, N, C, H, W), from -1 to x + 2 headroom.
    """

    def __init__(self, headroom: float):
        super().__init__()
        self.headroom = headroom

    def forward(self, blended: Tensor, logits: Tensor) -> Tensor:
        light = blended[:, None] + (1 + 2 * self.headroom)
        return light * logits.unflatten(1, (-1, blended.shape[1])).sigmoid() - 1


def batch_dependent(network: nn.Module) -> list[str]:
    """Name the layers through which the images of a batch see each other in training: every batch norm.

    A judge with such a layer scores an image by the company it is in; instance, group and layer norm do not.
    """
    check_network(network)
    norm = nn.modules.batchnorm._BatchNorm  # what 1d to 3d, lazy and synchronised ones are made from
    layers = network.named_modules()
    return [name or type(layer).__name__ for name, layer in layers if isinstance(layer, norm)]


class ResidualBlock(nn.Module):
    """Add to the input two 3x3 convolutions of it: conv, norm, activation, conv, norm, then the sum.

    No activation after the sum (SRGAN, Ledig et al. 2017). modern: group norm, SiLU for batch norm, PReLU.
    """

    def __init__(self, channels: int, *, modern: bool = False):
        super().__init__()

        def half() -> tuple[nn.Module, nn.Module]:
            norm = NORMS["group" if modern else "batch"](channels)
            return nn.Conv2d(channels, channels, 3, padding=1, bias=False), norm

        self.body = nn.Sequential(*half(), nn.SiLU() if modern else nn.PReLU(channels), *half())
        self.add = Add()

    def forward(self, images: Tensor) -> Tensor:
        return self.add(images, self.body(images))


def gaussian_kernel(sigma: float, size: int = 3) -> Tensor:
    """Sample a Gaussian on a grid of pixels, (size, size), and bring its sum to 1.

    sigma: standard deviation, px; 0 gives the kernel that changes nothing. size: side, px; odd.
    k(x, y) is proportional to exp(-(x^2 + y^2) / (2 sigma^2)). ValueError if there is no such kernel.
    """
    at_least(0.0, sigma=sigma)
    at_least(1, size=size)
    if size % 2 == 0:
        raise ValueError(f"size={size}: a kernel needs a central pixel; give an odd size such as 3")
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    line = (offsets == 0).double() if sigma == 0 else torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = line[:, None] * line
    return (kernel / kernel.sum()).float()


class Smear(nn.Module):
    """Blur each channel of (B, C, H, W) with a fixed Gaussian; light stays, unless it leaves the frame.

    sigma, size: as for `gaussian_kernel`. background: beyond the frame; -1 for images in [-1, 1].
    """

    def __init__(self, sigma: float, size: int = 3, *, background: float = 0.0):
        super().__init__()
        self.sigma, self.size, self.background = sigma, size, background
        self.register_buffer("kernel", gaussian_kernel(sigma, size), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        check_floats(images)
        channels = images.shape[1]
        above = images - self.background  # what the convolution pads with zeros is then background
        weight = self.kernel.to(images.dtype).expand(channels, 1, -1, -1)
        return functional.conv2d(above, weight, padding=self.size // 2, groups=channels) + self.background


def enlarge(before: int, after: int, *, stride: int = 2) -> nn.Sequential:
    """Transposed convolution, batch norm, ReLU: from 1 to 4 px with stride 1, twofold with stride 2."""
    convolution = nn.ConvTranspose2d(before, after, 4, stride, stride - 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def halve(before: int, after: int, *norm: nn.Module, bias: bool = False) -> nn.Sequential:
    """Convolution that halves the side, norm if one is given, LeakyReLU."""
    return nn.Sequential(nn.Conv2d(before, after, 4, 2, 1, bias=bias), *norm, nn.LeakyReLU(0.2))


def dcgan_weights(*networks: nn.Module) -> None:
    """Draw the weights of every convolution from N(0, 0.02), in place (Radford et al. 2016)."""
    for module in nn.ModuleList(networks).modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)


def check_network(model: nn.Module) -> None:
    """Refuse a whole GAN, a checkpoint and all else that is no network."""
    check_kind(nn.Module, "give one network, such as gan.discriminator", model=model)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode for the length of a `with` block; each submodule gets its own mode back."""
    check_network(model)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class Augmentation:
    """Say how true and drawn images alike are changed before the discriminator sees them.

    hue: probability that the hue of an image is rotated by a random angle.
    translation: largest shift, as a share of the side.
    cutout: probability that a square of 2 (side // 4) + 1 px, about half the side, is blanked.
    ValueError if one is outside [0, 1]. A change with a probability well below 1 does not leak into drawn
    images (Karras et al. 2020, NeurIPS 33, 12104).
    """

    hue: float = 0.25
    translation: float = 0.125
    cutout: float = 0.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise ValueError(f"{name} is {value!r}; expected a number from 0 to 1")


def rotate_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of each image and keep saturation and value; grey stays grey. Differentiable in images.

    images: (B, 3, H, W), RGB floats of any range: hue depends on differences of channels alone.
    turns: (B,), angle as a share of the full circle; 1/3 makes red green. ValueError if the shapes differ.

    With V = max, C = max - min and the hue h in sixths of the circle, channel n = 5, 3, 1 (red, green, blue)
    is V - C max(0, min(k, 4 - k, 1)) with k = (n + h) mod 6 (HSV; Smith 1978, SIGGRAPH 12, 12).
    """
    check_floats(images)
    if images.ndim != 4 or images.shape[1] != 3 or turns.shape != (len(images),):
        given = f"images {tuple(images.shape)} and turns {tuple(turns.shape)}"
        raise ValueError(f"{given}: expected (B, 3, H, W), since only RGB has a hue, and (B,)")
    red, green, blue = images.unbind(1)
    value, brightest = images.max(1)
    chroma = value - images.amin(1)
    safe = chroma.where(chroma > 0, torch.ones_like(chroma))
    around = torch.stack([(green - blue) / safe, (blue - red) / safe + 2, (red - green) / safe + 4], 1)
    hue = around.gather(1, brightest[:, None])[:, 0] + 6 * turns.to(images)[:, None, None]
    steps = [(start + hue) % 6 for start in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in steps], 1)


def augment(images: Tensor, how: Augmentation, *, generator: torch.Generator) -> Tensor:
    """Change each image at random: hue, place, and a blanked square (Zhao et al. 2020, NeurIPS 33, 7559).

    images: (B, C, S, S), floats in [-1, 1], where -1 is black, as is what moves in from outside the frame.
    Differentiable in images. ValueError if they are not square, no floats, or no RGB where hue is asked for.
    """
    check_floats(images)
    check_generator(generator)
    if images.ndim != 4 or images.shape[-2] != images.shape[-1]:
        raise ValueError(f"images are {tuple(images.shape)}; expected squares (B, C, S, S)")
    count, side = len(images), images.shape[-1]
    steps = torch.arange(side, device=images.device)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(images.device)

    if how.hue:
        chosen, angles = draw(count) < how.hue, draw(count)
        images = torch.where(chosen[:, None, None, None], rotate_hue(images, angles), images)
    if reach := round(how.translation * side):
        framed = functional.pad(images, [reach] * 4, value=-1.0)
        rows, columns = (draw(2, count) * (2 * reach + 1)).long()[..., None] + steps
        image = torch.arange(count, device=images.device)[:, None, None]
        images = framed.permute(0, 2, 3, 1)[image, rows[..., None], columns[:, None]].permute(0, 3, 1, 2)
    if how.cutout:
        chosen, corner = draw(count) < how.cutout, draw(2, count)
        rows, columns = ((corner * side).long()[..., None] - steps).abs() <= side // 4
        blank = chosen[:, None, None] & rows[..., None] & columns[:, None]
        images = torch.where(blank[:, None], -1.0, images)
    return images
