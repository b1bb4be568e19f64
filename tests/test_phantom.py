"""Measurements on relevance maps: each against maps whose answer is known by construction."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from galnb import phantom
from galnb.blending import Perturbation, make_blends
from galnb.phantom import _signed_distance


@pytest.fixture
def footprint():
    """Image data right of column 12 and, in the second image, everywhere."""
    footprint = torch.ones(2, 1, 40, 40, dtype=torch.bool)
    footprint[0, ..., :12] = False
    return footprint


def test_contrast_of_a_bright_edge_is_its_brightness(footprint):
    maps = torch.ones(2, 3, 40, 40)
    maps[..., 9:15] = 2.5  # 3 px on both sides of the edge
    contrast = phantom.boundary_contrast(maps, footprint, width=3)
    assert contrast[0] == pytest.approx(2.5) and contrast[1].isnan()  # no edge, no contrast


def test_contrast_ignores_a_steady_rise_and_the_scale(footprint):
    rise = torch.arange(40.0).expand(2, 1, 40, 40) + 5
    assert phantom.boundary_contrast(rise, footprint, width=3)[0] == pytest.approx(1, abs=1e-6)
    maps = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    one, other = (phantom.boundary_contrast(scale * maps, footprint)[0] for scale in (1, -30))
    assert one == pytest.approx(float(other), rel=1e-5)


def test_contrast_of_noise_is_one_within_its_interval(generator):
    images = torch.rand(64, 1, 48, 48, generator=generator)
    footprints = make_blends(images, generator=generator).footprints[:, 1]
    contrast = phantom.boundary_contrast(images, footprints, width=2)
    mean, low, high = phantom.interval(contrast, generator=generator)
    assert mean == pytest.approx(1, abs=2 * (high - low)) and high - low < 0.1


def test_profile_is_the_mean_at_each_distance(footprint):
    columns = torch.arange(40.0).expand(2, 1, 40, 40) + 1
    distance, profile = phantom.edge_profile(columns, footprint, reach=4)
    assert distance.tolist() == [-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5]
    torch.testing.assert_close(profile[0] * 20.5, torch.arange(9.0, 17.0))  # columns 8 to 15 hold 9 to 16
    assert profile[1].isnan().all()


def test_signed_distance_agrees_with_brute_force(generator):
    """The witness looks at every pair of pixels."""
    inside = torch.rand(1, 1, 9, 9, generator=generator) > 0.4
    y, x = np.mgrid[:9, :9].reshape(2, -1)
    apart = np.hypot(y[:, None] - y, x[:, None] - x)
    flags = inside.flatten().numpy()
    nearest = np.where(flags[:, None] != flags, apart, np.inf).min(1)
    expected = np.where(flags, nearest - 0.5, 0.5 - nearest).reshape(1, 9, 9)
    np.testing.assert_allclose(_signed_distance(inside).numpy(), expected, rtol=1e-6)


def test_interval_covers_the_mean_and_shrinks(generator):
    """The witness is the normal theory: +- 1.96 s / sqrt(n)."""
    values = torch.randn(400, generator=generator)
    mean, low, high = phantom.interval(torch.cat([values, torch.tensor([torch.nan])]), generator=generator)
    half = 1.96 * float(values.std()) / 20
    assert mean == pytest.approx(float(values.mean()))
    assert low == pytest.approx(mean - half, abs=0.02) and high == pytest.approx(mean + half, abs=0.02)


def test_histograms_of_sky_and_fill(generator):
    image = 0.2 + 0.02 * torch.randn(3, 64, 64, generator=generator)
    image[:, :24, :24] = 0
    boxes = ((2, 2, 20), (40, 40, 20))
    found = phantom.background_histograms(image, boxes, bins=16)
    assert found.counts.sum(1).tolist() == [400, 400] and len(found.edges) == 17
    assert found.statistic == 1 and found.p_value < 1e-100
    alike = phantom.background_histograms(image, ((30, 2, 20), (40, 40, 20)))
    first, second = (
        image.mean(0)[top : top + 20, left : left + 20].flatten() for top, left in ((30, 2), (40, 40))
    )
    assert alike.p_value == pytest.approx(stats.ks_2samp(first.numpy(), second.numpy()).pvalue)
    assert alike.p_value > 0.01


class Darkness(nn.Module):
    """Scores an image by its share of exactly black pixels: a discriminator that knows only the frame."""

    def forward(self, images):
        return (images == -1).float().mean((1, 2, 3))[:, None]


def test_probe_sees_that_only_the_fill_decides(generator):
    images = 0.2 + 0.6 * torch.rand(24, 1, 40, 40, generator=generator)
    filled = {}
    for fill in ("zeros", "reflect", "noise"):
        seed = torch.Generator().manual_seed(4)
        blends = make_blends(images, perturbation=Perturbation(fill=fill, scale=(0.5, 0.6)), generator=seed)
        filled[fill] = 2 * blends.galaxies[:, 1] - 1
    probe = phantom.probe_fill(Darkness(), filled)
    assert probe.auc["zeros", "noise"] == 1 and probe.auc["reflect", "noise"] == 0.5
    assert {fill: len(score) for fill, score in probe.scores.items()} == dict.fromkeys(filled, 24)


def judge():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 1)
    )
    for parameter in model.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("training", [True, False])
def test_probe_leaves_a_network_as_it_was(generator, training):
    model, images = (
        judge(),
        {fill: torch.rand(40, 1, 8, 8, generator=generator) for fill in ("zeros", "noise")},
    )
    wanted = model.eval()(images["zeros"]).detach()[:, 0]
    model.train(training)
    model[1].eval()  # frozen, as in fine-tuning
    modes, before = (
        [m.training for m in model.modules()],
        {k: v.clone() for k, v in model.state_dict().items()},
    )
    probe = phantom.probe_fill(model, images)
    torch.testing.assert_close(probe.scores["zeros"], wanted)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError):
        phantom.probe_fill(model, dict.fromkeys(("zeros", "noise"), torch.rand(2, 1, 9, 9)))
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_figures_of_other_precisions_are_those_of_the_same_numbers(generator, footprint, dtype):
    maps = (3000 * torch.rand(2, 3, 40, 40, generator=generator)).to(dtype)  # sums above what float16 holds
    full = maps.float()
    contrast = phantom.boundary_contrast(maps, footprint)
    torch.testing.assert_close(contrast, phantom.boundary_contrast(full, footprint), equal_nan=True)
    profiles = [phantom.edge_profile(given, footprint)[1] for given in (maps, full)]
    torch.testing.assert_close(*profiles, equal_nan=True)
    boxes = ((0, 0, 20), (20, 20, 20))
    found, wanted = (phantom.background_histograms(given, boxes) for given in (maps[0], full[0]))
    assert found.p_value == pytest.approx(wanted.p_value) and found.edges.isfinite().all()
    torch.testing.assert_close(found.counts, wanted.counts)
    same = phantom.background_histograms(maps[0], (boxes[0], boxes[0]))
    assert same.statistic == 0 and same.p_value == 1
    scores = phantom.probe_fill(Darkness().to(dtype), {"zeros": maps, "noise": maps}).auc
    assert scores["zeros", "noise"] == 0.5


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda m, f: phantom.boundary_contrast(m, f.float()), "torch.float32; expected .* bool"),
        (lambda m, f: phantom.boundary_contrast(m[:1], f), "expected"),
        (lambda m, f: phantom.boundary_contrast(m, f, width=0), "width=0"),
        (lambda m, f: phantom.edge_profile(m, f, reach=0), "reach=0"),
        (lambda m, f: phantom.interval(m[:1, 0, 0, 0], generator=torch.Generator()), "at least 2"),
        (lambda m, f: phantom.background_histograms(m[0], ((0, 0, 20), (30, 30, 20))), "does not lie in"),
        (lambda m, f: phantom.probe_fill(Darkness(), {"zeros": m}), "at least two fills"),
        (lambda m, f: phantom.probe_fill(Darkness(), {"zeros": m, "noise": m[:1]}), "at least two fills"),
        (lambda m, f: phantom.probe_fill(Darkness(), {"zeros": [m], "noise": [m]}), "at least two fills"),
        (lambda m, f: phantom.background_histograms(m[0], ((0, 0, 9), (9, 9, 9)), spacing=0), "spacing=0"),
        (lambda m, f: phantom.interval(m[:, 0, 0, 0], generator=None), "torch.Generator"),
    ],
)
def test_bad_input_is_refused(footprint, call, said):
    with pytest.raises(ValueError, match=said):
        call(torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(0)), footprint)
