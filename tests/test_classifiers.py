"""Classifiers: published sizes, learning, scores against scikit-learn-like definitions by hand."""

import math
from dataclasses import replace

import pytest
import torch

from galnb import classifiers
from galnb.classifiers import ClassifierConfig


def stripes(count, *, size=32, seed=0):
    """Images whose class is written on them: a bright stripe at a place of its own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = torch.rand(count, 1, size, size, generator=generator) * 0.2
    for image, label in zip(images, labels, strict=True):  # rings keep their class when turned
        grid = torch.arange(size) - (size - 1) / 2
        radius = (grid[:, None] ** 2 + grid**2).sqrt()
        image[0][(radius - 3 * (label + 1)).abs() < 1.5] = 1.0
    return images, labels


@pytest.mark.parametrize(("name", "published"), [("FCN", 4.29e6), ("CNN", 107e3)])
def test_sizes_are_the_published_ones(name, published):
    """Rustige et al. 2023: 4.29 million and 107 thousand weights at 128 px."""
    weights = sum(weight.numel() for weight in classifiers.CLASSIFIERS[name](128).parameters())
    assert weights == pytest.approx(published, rel=2e-3)


@pytest.mark.parametrize(("name", "enough"), [("CNN", 0.9), ("FCN", 0.6)])
def test_it_learns_rings_and_repeats_itself(name, enough):
    images, labels = stripes(120)
    config = ClassifierConfig(network=name, steps=60, batch_size=24, learning_rate=3e-3, every=20)
    validation = stripes(40, seed=1)
    network, curve = classifiers.train_classifier(images, labels, validation, config, size=32)
    assert [entry["step"] for entry in curve] == [20, 40, 60]
    assert curve[-1]["accuracy"] > enough and not network.training
    again, _ = classifiers.train_classifier(images, labels, validation, replace(config, steps=2), size=32)
    other, _ = classifiers.train_classifier(images, labels, validation, replace(config, steps=2), size=32)
    for mine, theirs in zip(again.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_scores_by_hand():
    class Fixed(torch.nn.Module):
        def forward(self, images):
            chances = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25] * 4, [0.1, 0.1, 0.6, 0.2]])
            return chances.log()

    labels = torch.tensor([0, 1, 2])
    found = classifiers.scores(Fixed(), torch.zeros(3, 1, 8, 8), labels)
    assert found["accuracy"] == pytest.approx(2 / 3)  # equal chances count as the first class
    by_hand = (0.09 + 3 * 0.01 + 0.75 + 0.16 + 2 * 0.01 + 0.04) / 3
    assert found["brier"] == pytest.approx(by_hand, abs=1e-6)
    assert (found["recall FRI"], found["recall FRII"], found["recall Compact"]) == (1, 0, 1)
    assert math.isnan(found["recall Bent"])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="network 'ViT' is unknown; known are FCN, CNN"):
        ClassifierConfig(network="ViT")
    with pytest.raises(ValueError, match="steps=0: expected a whole number of at least 1"):
        ClassifierConfig(steps=0)
    with pytest.raises(ValueError, match="size is 20; expected a multiple of 16"):
        classifiers.CLASSIFIERS["CNN"](20)
    with pytest.raises(ValueError, match="expected one each"):
        classifiers.scores(classifiers.CLASSIFIERS["FCN"](32), torch.zeros(3, 1, 32, 32), torch.tensor([0]))


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_images_of_another_precision_are_learned_and_scored_alike(kind):
    images, labels = stripes(16)
    images = images.half().float()
    config = ClassifierConfig(steps=2, batch_size=8)
    found = [
        classifiers.train_classifier(x, labels, (x, labels), config, size=32)[1]
        for x in (images, images.to(kind))
    ]
    assert found[0] == found[1]
