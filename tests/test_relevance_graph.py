"""The walk through a model: what it leaves behind, what it refuses, and calls of every kind."""

import copy

import pytest
import torch
from torch import nn

from galnb.relevance import polarized_relevance, relevance
from galnb.relevance.graph import record, recording
from galnb.relevance.operators import LAYERS
from tests.golden_networks import draw, randomise
from tests.relevance_oracle import Residual, generator, one_thread, share  # noqa: F401


@pytest.fixture(scope="module")
def net():
    return randomise(Residual(), seed=3)


def state(model):
    return [
        ("forward" in module.__dict__, module.training, len(module._forward_hooks))
        for module in model.modules()
    ]


def test_model_is_left_as_it_was():
    model = Residual().train()
    model.norm.eval()
    before, statistics = state(model), model.norm.running_mean.clone()
    images = draw(2, 3, 8, 8).float()
    in_training = polarized_relevance(model, images)
    assert state(model) == before and torch.equal(model.norm.running_mean, statistics)
    torch.testing.assert_close(polarized_relevance(model.eval(), images).positive, in_training.positive)
    model.train()
    model.norm.eval()
    with pytest.raises(RuntimeError, match="stop"), recording(model) as tape:
        record(tape, model, images)
        raise RuntimeError("stop")
    with pytest.raises(ValueError, match="does not take images"):
        polarized_relevance(model, draw(2, 5, 8, 8).float())
    assert state(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_works_without_gradients_switched_on(net):
    images = draw(1, 3, 8, 8)
    expected = polarized_relevance(net, images).negative
    with torch.inference_mode():
        torch.testing.assert_close(polarized_relevance(net, images).negative, expected)


@pytest.mark.parametrize("change", ["in place", "data", "one of many", "replaced", "statistics", "flipped"])
def test_prepared_weights_never_go_stale(change):
    model = randomise(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 1)))
    images = draw(1, 2, 5, 5)
    before = polarized_relevance(model, images).positive
    with torch.no_grad():
        if change == "in place":
            model[0].weight.mul_(torch.tensor([1.0, -2.0, 3.0]).view(-1, 1, 1, 1))
        elif change == "data":
            model[0].weight.data.mul_(torch.tensor([1.0, -2.0, 3.0]).view(-1, 1, 1, 1))
        elif change == "one of many":
            model[0].weight.data[0, 0, 0, 0] += 0.5
        elif change == "flipped":
            model[0].weight.data.copy_(model[0].weight.data.flip(-1))
        elif change == "replaced":
            model[3].weight = nn.Parameter(-model[3].weight.detach() + 0.1)
        else:
            model[1].running_var.mul_(torch.tensor([1.0, 4.0, 9.0]))
    after = polarized_relevance(model, images).positive
    fresh = polarized_relevance(copy.deepcopy(model), images).positive
    assert torch.equal(after, fresh) and not torch.allclose(after, before)


def test_unknown_layers_are_named_with_a_way_out(net):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return x * self.factor

    class OwnConv(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.Sequential(nn.Flatten(), nn.Sequential(Scale()), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"'1\.0' is a Scale.*LAYERS\[Scale\]"):
        relevance(model, torch.rand(1, 1, 2, 2), rule="zplus")
    with pytest.raises(ValueError, match="OwnConv"):
        relevance(OwnConv(1, 1, 1), torch.rand(1, 1, 2, 2), rule="zplus")
    LAYERS[Scale] = "pass"
    try:
        assert relevance(model, torch.rand(1, 1, 2, 2), rule="zplus").map.isfinite().all()
    finally:
        del LAYERS[Scale]
