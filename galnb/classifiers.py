"""Two classifiers of radio galaxies (Rustige et al. 2023), and what generated images do for them.

Chapter 12, Systematics. Classes are positions in `galnb.images.RADIO_CLASSES`.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from galnb import checks
from galnb.blending.batches import labelled_batches
from galnb.images import RADIO_CLASSES, check_images


def _fully_connected(size: int = 64) -> nn.Sequential:
    """Four layers of 250, blind to which pixels are neighbours; at 128 px 4.29 million weights."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before in (size**2, 250, 250, 250):
        layers += [nn.Linear(before, 250), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(250, len(RADIO_CLASSES)))


def _convolutional(size: int = 64) -> nn.Sequential:
    """Five convolutions and two layers; at 128 px 107 thousand weights, as published."""
    if size < 32 or size % 16:
        raise ValueError(f"size is {size}; expected a multiple of 16 from 32 on")
    layers, before, side = [], 1, size
    for after in (8, 16, 32, 32):
        side //= 2
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.LayerNorm([side, side]), nn.LeakyReLU(0.2)]
        before = after
    layers += [nn.Conv2d(before, 16, 2), nn.LeakyReLU(0.2), nn.Flatten()]
    layers += [nn.Linear(16 * (side - 1) ** 2, 100), nn.LeakyReLU(0.2), nn.Linear(100, len(RADIO_CLASSES))]
    return nn.Sequential(*layers)


CLASSIFIERS = {"FCN": _fully_connected, "CNN": _convolutional}


@dataclass(frozen=True)
class ClassifierConfig:
    """Say how a classifier is trained.

    network: key of `CLASSIFIERS`.
    steps, batch_size: steps of Adam, images per step (published batch: 250).
    learning_rate: of Adam (published: 1e-4).
    balanced: weigh each class by the inverse of its frequency (published for real images alone).
    every: steps between two looks at the validation images.
    seed: first weights and batches.
    """

    network: str = "CNN"
    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 1e-3
    balanced: bool = True
    every: int = 20
    seed: int = 0

    def __post_init__(self):
        checks.one_of("network", self.network, CLASSIFIERS)
        checks.at_least(1, steps=self.steps, batch_size=self.batch_size, every=self.every)


def train_classifier(
    images: torch.Tensor,
    labels: torch.Tensor,
    validation: tuple[torch.Tensor, torch.Tensor],
    config: ClassifierConfig,
    *,
    size: int = 64,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train a classifier on images that are turned and mirrored at random.

    images, labels: (B, 1, H, W) in [0, 1], better larger than `size`, to turn without empty corners; (B,).
    validation: images (N, 1, size, size) and labels (N,); nothing is learned or chosen by them.
    size: side of what the network sees, px.
    Returns the network in eval mode, which takes images in [-1, 1], and a curve of ``step``, ``loss`` (of the
    batch), ``accuracy`` and ``brier`` (of the validation images).
    """
    images = check_images(images, channels=1)
    batches = labelled_batches(images, labels, batch_size=config.batch_size, seed=config.seed, size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = CLASSIFIERS[config.network](size)
    counts = torch.bincount(labels, minlength=len(RADIO_CLASSES)).clamp_min(1)
    weight = len(labels) / (len(counts) * counts) if config.balanced else None
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    curve = []
    for step in range(config.steps):
        batch = batches(step)
        loss = functional.cross_entropy(network(batch["images"] * 2 - 1), batch["labels"], weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % config.every == 0 or step + 1 == config.steps:
            found = scores(network, *validation)
            known = {name: found[name] for name in ("accuracy", "brier")}
            curve.append({"step": step + 1, "loss": loss.item()} | known)
    return network.eval(), curve


@torch.no_grad()
def scores(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Score a classifier on images (B, 1, H, W) in [0, 1] with their labels (B,).

    ``accuracy``; ``brier``, the mean over images of sum_c (p_c - y_c)^2, 0 at best, 0.75 for equal chances of
    four classes; ``recall FRI`` and so on, NaN for a class that is not there.
    """
    check_images(images, channels=1)
    if labels.shape != (len(images),):
        raise ValueError(f"got {len(images)} images and labels {tuple(labels.shape)}; expected one each")
    chances = torch.cat([network(part.float() * 2 - 1).softmax(1) for part in images.split(256)])
    right = chances.argmax(1) == labels
    brier = (chances - functional.one_hot(labels, chances.shape[1])).square().sum(1).mean().item()
    recall = {f"recall {c}": right[labels == i].float().mean().item() for i, c in enumerate(RADIO_CLASSES)}
    return {"accuracy": right.float().mean().item(), "brier": brier, **recall}
