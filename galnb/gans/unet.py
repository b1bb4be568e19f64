"""A U-Net that tells per pixel which share of a blend is each galaxy's, or paints the galaxies freely."""

import torch
from torch import nn

from galnb.gans.layers import Add, ResidualBlock


class Brush(nn.Module):
    """Paint each galaxy in [-1, 1] whatever the blend shows: tanh(logits), in the place of a `Gate`.

    Chapter: The deblender GAN
    """

    def forward(self, blended: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return logits.unflatten(1, (-1, blended.shape[1])).tanh()


class UNetGenerator(nn.Module):
    """Tell per pixel and colour which share of the blend is each galaxy's, by a U-Net at half resolution.

    Takes (B, C, H, W) in [-1, 1] and returns (B, N, C, H, W): with a `Gate` from -1 to the blend
    + 2 headroom, with a `Brush` in [-1, 1]. The image is folded once (2x2 pixels become channels), then
    halved between resolutions: its side must be a multiple of
    ``2 ** len(widths)``.

    Chapter: The deblender GAN
    """

    def __init__(
        self, widths: tuple[int, ...], blocks: tuple[int, ...], channels: int, count: int, gate: nn.Module
    ):
        super().__init__()

        def stage(level: int) -> nn.Sequential:
            return nn.Sequential(
                *(ResidualBlock(widths[level], activation="silu", norm="group") for _ in range(blocks[level]))
            )

        levels = range(len(widths) - 1)
        folded = 4 * channels
        self.fold = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(folded, widths[0], 3, padding=1))
        self.down = nn.ModuleList(stage(level) for level in levels)
        self.shrink = nn.ModuleList(
            nn.Conv2d(widths[level], widths[level + 1], 2, stride=2) for level in levels
        )
        self.bottom = stage(len(widths) - 1)
        self.enlarge = nn.ModuleList(
            nn.Sequential(nn.Conv2d(widths[level + 1], 4 * widths[level], 1), nn.PixelShuffle(2))
            for level in levels
        )
        self.skips = nn.ModuleList(Add() for _ in levels)
        self.up = nn.ModuleList(stage(level) for level in levels)
        self.unfold = nn.Sequential(
            nn.SiLU(), nn.Conv2d(widths[0], folded * count, 3, padding=1), nn.PixelShuffle(2)
        )
        self.gate = gate

    def forward(self, blended: torch.Tensor) -> torch.Tensor:
        features, kept = self.fold(blended), []
        for stage, shrink in zip(self.down, self.shrink, strict=True):
            features = stage(features)
            kept.append(features)
            features = shrink(features)
        features = self.bottom(features)
        for level in reversed(range(len(kept))):
            features = self.up[level](self.skips[level](kept[level], self.enlarge[level](features)))
        return self.gate(blended, self.unfold(features))
