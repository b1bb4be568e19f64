"""Blocks that two or more GANs use. Every sum is a module, so that relevance can be shared out at it."""

import torch
from torch import nn

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
