"""Two classifiers of radio galaxies (Rustige et al. 2023), and what generated images do for them."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from galnb.blending.batches import labelled_batches
from galnb.images import RADIO_CLASSES, check_images


def fully_connected(size: int = 64, *, classes: int = 4, relu_on_logits: bool = False) -> nn.Sequential:
    """Build the fully connected network: four layers of 250, blind to which pixels are neighbours.

    Parameters
    ----------
    size : int
        Side of an image, px. At 128 px it has 4.29 million weights, as published.
    classes : int
        Number of classes.
    relu_on_logits : bool
        As published: a ReLU after the last layer. A class whose logit falls below 0 then stops learning.

    Chapter: Systematics
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before in (size**2, 250, 250, 250):
        layers += [nn.Linear(before, 250), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(250, classes), *[nn.ReLU()] * relu_on_logits)


def convolutional(size: int = 64, *, classes: int = 4, relu_on_logits: bool = False) -> nn.Sequential:
    """Build the convolutional network; parameters as for `fully_connected`. At 128 px: 107 thousand weights.

    Chapter: Systematics
    """
    if size < 32 or size % 16:
        raise ValueError(f"size is {size}; expected a multiple of 16 from 32 on")
    layers: list[nn.Module] = []
    before, side = 1, size
    for after in (8, 16, 32, 32):
        side //= 2
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.LayerNorm([side, side]), nn.LeakyReLU(0.2)]
        before = after
    layers += [nn.Conv2d(before, 16, 2), nn.LeakyReLU(0.2), nn.Flatten()]
    layers += [nn.Linear(16 * (side - 1) ** 2, 100), nn.LeakyReLU(0.2), nn.Linear(100, classes)]
    return nn.Sequential(*layers, *[nn.ReLU()] * relu_on_logits)


CLASSIFIERS = {"FCN": fully_connected, "CNN": convolutional}


@dataclass(frozen=True)
class ClassifierConfig:
    """Say how a classifier is trained.

    Parameters
    ----------
    network : str
        Key of `CLASSIFIERS`.
    steps, batch_size : int
        Steps of Adam, images per step (published batch: 250).
    learning_rate : float
        Its step size (published: 1e-4).
    balanced : bool
        Weigh each class by the inverse of its frequency (published for real images alone).
    relu_on_logits : bool
        See `fully_connected`.
    every : int
        Steps between two looks at the validation images.
    seed : int
        First weights and batches.

    Chapter: Systematics
    """

    network: str = "CNN"
    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 1e-3
    balanced: bool = True
    relu_on_logits: bool = False
    every: int = 20
    seed: int = 0

    def __post_init__(self):
        if self.network not in CLASSIFIERS:
            raise ValueError(f"network {self.network!r} is unknown; known are {sorted(CLASSIFIERS)}")
        if min(self.steps, self.batch_size, self.every) < 1 or not self.learning_rate > 0:
            raise ValueError(
                f"steps {self.steps}, batch_size {self.batch_size}, every {self.every}, learning_rate "
                f"{self.learning_rate}: expected at least 1, 1, 1 and more than 0"
            )


def train_classifier(
    images: torch.Tensor,
    labels: torch.Tensor,
    validation: tuple[torch.Tensor, torch.Tensor],
    config: ClassifierConfig,
    *,
    size: int = 64,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train a classifier on images that are turned and mirrored at random.

    Parameters
    ----------
    images : torch.Tensor, shape (B, 1, H, W)
        In [0, 1]; larger than `size` where no corner shall be empty after turning.
    labels : torch.Tensor, shape (B,)
        Positions in `galnb.images.RADIO_CLASSES`.
    validation : tuple of images (N, 1, size, size) and labels (N,)
        Looked at every so many steps; nothing is learned or chosen by them.
    config : ClassifierConfig
    size : int
        Side of what the network sees, px.

    Returns
    -------
    network : torch.nn.Module
        In eval mode; takes images in [-1, 1].
    curve : list of dict
        ``step``, ``loss`` (of the batch), ``accuracy``, ``brier`` (of the validation images).

    Raises
    ------
    ValueError
        If images and labels do not fit.

    Chapter: Systematics
    """
    batches = labelled_batches(images, labels, batch_size=config.batch_size, seed=config.seed, size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = CLASSIFIERS[config.network](size, relu_on_logits=config.relu_on_logits)
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
            curve.append(
                {"step": step + 1, "loss": loss.item(), **{k: found[k] for k in ("accuracy", "brier")}}
            )
    return network.eval(), curve


@torch.no_grad()
def scores(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Score a classifier: accuracy, Brier score, and the recall of each class.

    Parameters
    ----------
    network : torch.nn.Module
        From `train_classifier`.
    images : torch.Tensor, shape (B, 1, H, W)
        In [0, 1].
    labels : torch.Tensor, shape (B,)
        The truth.

    Returns
    -------
    dict of str to float
        ``accuracy``; ``brier``; ``recall FRI`` and so on, NaN for a class that is not there.

    Notes
    -----
    Brier score: mean over images of sum_c (p_c - y_c)^2, 0 at best, 0.75 for equal chances of four classes.
    Chapter: Systematics
    """
    check_images(images)
    if labels.shape != (len(images),) or not len(images):
        raise ValueError(
            f"got {len(images)} images and labels {tuple(labels.shape)}; expected one each, not 0"
        )
    chances = torch.cat([network(part * 2 - 1).softmax(1) for part in images.split(256)])
    right = chances.argmax(1) == labels
    truth = functional.one_hot(labels, chances.shape[1])
    recall = {
        f"recall {name}": right[labels == index].float().mean().item()
        for index, name in enumerate(RADIO_CLASSES)
    }
    brier = (chances - truth).square().sum(1).mean().item()
    return {"accuracy": right.float().mean().item(), "brier": brier, **recall}


def balanced_counts(labels: torch.Tensor, ratio: float) -> torch.Tensor:
    """Say how many images of each class to generate so that all classes become equally frequent.

    Parameters
    ----------
    labels : torch.Tensor, shape (B,)
        Classes of the real images.
    ratio : float
        Generated images per real one, 0 or more.

    Returns
    -------
    torch.Tensor, shape (4,)
        Whole numbers whose sum is round(ratio B). A class that has more than its share already gets none.

    Notes
    -----
    Class total z = (ratio + 1) B / 4, share of class c: (z - n_c) / (ratio B) (Rustige et al. 2023).
    Chapter: Systematics
    """
    if not ratio >= 0:
        raise ValueError(f"ratio is {ratio}; expected 0 or more generated images per real one")
    counts = torch.bincount(labels, minlength=len(RADIO_CLASSES)).double()
    wanted, short = (
        round(ratio * len(labels)),
        ((ratio + 1) * len(labels) / len(counts) - counts).clamp_min(0),
    )
    exact = short / short.sum().clamp_min(1e-9) * wanted
    whole = exact.floor()
    for index in (exact - whole).argsort(descending=True)[: int(wanted - whole.sum())]:
        whole[index] += 1
    return whole.long()


def roughness(curve: list[float]) -> float:
    """Measure how much a learning curve jumps: root mean square of its second differences / sqrt(6).

    A straight climb has none; independent noise of standard deviation s around it has s.

    Chapter: Systematics
    """
    if len(curve) < 3:
        raise ValueError(f"got {len(curve)} points, expected at least 3")
    second = torch.tensor(curve, dtype=torch.float64).diff(n=2)
    return (second.square().mean() / 6).sqrt().item()
