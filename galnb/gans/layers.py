"""Blocks that two or more GANs use. Every sum is a module, so that relevance can be shared out at it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

ACTIVATIONS = {
    "prelu": lambda channels: nn.PReLU(channels),
    "leaky_relu": lambda channels: nn.LeakyReLU(0.2),
    "relu": lambda channels: nn.ReLU(),
    "silu": lambda channels: nn.SiLU(),
}


def _groups(channels: int) -> int:
    """Groups of about 16 channels: small enough to matter, large enough for a stable variance."""
    return max(count for count in range(1, max(1, channels // 16) + 1) if channels % count == 0)


NORMS = {
    "batch": lambda channels: nn.BatchNorm2d(channels),
    "group": lambda channels: nn.GroupNorm(_groups(channels), channels),
    "none": lambda channels: nn.Identity(),
}


class Add(nn.Module):
    """Sum tensors of one shape.

    A bare ``+`` would hand the full relevance to both summands; as a module it has a rule of its own.

    Chapter: Polarized LRP
    """

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return sum(tensors[1:], start=tensors[0])


class Concat(nn.Module):
    """Join tensors along the channel axis.

    Chapter: Polarized LRP
    """

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return torch.cat(tensors, dim=1)


class Multiply(nn.Module):
    """Scale a signal by a gate of the same or a smaller, broadcast shape.

    As a module it has a rule: relevance stays with the signal, the gate counts as a constant.

    Chapter: New galaxies
    """

    def forward(self, signal: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return signal * gate


class Gate(nn.Module):
    """Give each galaxy its share of the blend: (x + 1 + 2 headroom) * sigmoid(logits) - 1, x in [-1, 1].

    blended: (B, C, H, W); logits: (B, N C, H, W). Returns (B, N, C, H, W), from -1 to x + 2 headroom.
    """

    def __init__(self, headroom: float):
        super().__init__()
        self.headroom = headroom

    def forward(self, blended: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        light = blended[:, None] + (1 + 2 * self.headroom)
        return light * logits.unflatten(1, (-1, blended.shape[1])).sigmoid() - 1


def batch_dependent(network: nn.Module) -> list[str]:
    """Name the layers through which the images of a batch see each other in training: every batch norm.

    A judge with such a layer scores an image by the company it is in. Instance, group and layer norm look at
    one image at a time. Whether a layer lies on the way to the output is not asked.
    """
    return [
        name or type(layer).__name__
        for name, layer in network.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)  # its subclasses: 1d to 3d, lazy, synchronised
    ]


class ResidualBlock(nn.Module):
    """Add to the input two 3x3 convolutions of it: conv, norm, activation, conv, norm, then the sum.

    Parameters
    ----------
    channels : int
        Width of input and output.
    activation : str
        Key of `ACTIVATIONS`.
    norm : str
        Key of `NORMS`.

    Notes
    -----
    There is no activation after the sum (SRGAN's block, Ledig et al. 2017). Chapter: The deblender GAN
    """

    def __init__(self, channels: int, *, activation: str = "prelu", norm: str = "batch"):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none"),
            NORMS[norm](channels),
            ACTIVATIONS[activation](channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none"),
            NORMS[norm](channels),
        )
        self.add = Add()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.add(images, self.body(images))


def gaussian_kernel(sigma: float, size: int = 3) -> torch.Tensor:
    """Sample a Gaussian on a square grid of pixels and bring its sum to 1.

    Parameters
    ----------
    sigma : float
        Standard deviation, px; 0 gives the kernel that changes nothing.
    size : int
        Side, px; odd.

    Returns
    -------
    torch.Tensor, shape (size, size)

    Raises
    ------
    ValueError
        If sigma is negative or not finite, or the size is even or below 1.

    Notes
    -----
    k(x, y) is proportional to exp(-(x^2 + y^2) / (2 sigma^2)). Cut off at 3 px it becomes a box as sigma
    grows: its centre never falls below 1/9. Chapter: Smearing
    """
    if not (sigma >= 0 and sigma < float("inf")):
        raise ValueError(f"sigma is {sigma}; expected a finite number of pixels >= 0")
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size is {size}; a kernel needs a central pixel: give an odd size such as 3")
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    line = (offsets == 0).double() if sigma == 0 else torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = line[:, None] * line
    return (kernel / kernel.sum()).float()


class Smear(nn.Module):
    """Blur each channel with a fixed Gaussian.

    Parameters
    ----------
    sigma : float
        As for `gaussian_kernel`, px.
    size : int
        Side of the kernel, px; odd.
    background : float
        Value beyond the frame: 0 for images in [0, 1], -1 for a network that works in [-1, 1].

    Notes
    -----
    The kernel sums to 1, so total light stays as long as none of it leaves the frame. Chapter: Smearing
    """

    def __init__(self, sigma: float, size: int = 3, *, background: float = 0.0):
        super().__init__()
        self.sigma, self.size, self.background = sigma, size, background
        self.register_buffer("kernel", gaussian_kernel(sigma, size), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        channels = images.shape[1]
        weight = self.kernel.to(images.dtype).expand(channels, 1, -1, -1)
        above = images - self.background  # what the convolution pads with zeros is then background
        return functional.conv2d(above, weight, padding=self.size // 2, groups=channels) + self.background


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode for the length of a `with` block; each submodule gets its own mode back.

    Chapter: Polarized LRP
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
