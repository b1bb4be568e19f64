"""Tests of galnb/evaluation/__init__.py: fixed blends, scores per galaxy, what a judge is worth."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from galnb import evaluation, images
from galnb.blending import BLEND_RULES, Blends
from galnb.evaluation import metrics
from galnb.gans import Gan, to_signed
from galnb.gans.layers import evaluating
from galnb.images import sources
from galnb.training import load_checkpoint
from galnb.training.checkpoints import shipped_names
from tests.cells import namespace

CHAPTER = namespace("05_evaluation", "scores-of-galaxies", "summaries", torch=torch, metrics=metrics)


def galaxy(x, y, *, flux=0.5, size=64):
    """Return a galaxy (3, size, size) at (x, y) from the middle, on a sky of 0.1."""
    place = torch.arange(size) - (size - 1) / 2
    profile = torch.exp(-(((place[:, None] - y) / 4) ** 2) / 2 - ((place - x) / 6) ** 2 / 2)
    return (0.1 + flux * profile).expand(3, size, size)


@pytest.fixture
def blends():
    """Two blends of Gaussians at known places."""
    places = torch.tensor([[[0.0, 0.0], [8.0, 5.0]], [[0.0, 0.0], [-7.0, 9.0]]])
    galaxies = torch.stack([torch.stack([galaxy(*place.tolist()) for place in row]) for row in places])
    footprints = torch.ones(2, 2, 1, 64, 64, dtype=torch.bool)
    return Blends(galaxies.amax(1), galaxies, footprints, places, torch.ones(2, 2))


def evaluate(parts, blends):
    """Score as chapter 05 does."""
    apertures = metrics.apertures(blends.galaxies, offsets=blends.offsets)
    return CHAPTER["evaluate"](parts, blends.galaxies, apertures)


@pytest.fixture(scope="module")
def stamps():
    return images.hubble_deep_field(size=80, limit=60)


@pytest.fixture
def few_stamps(monkeypatch, stamps):
    """The 60 brightest stamps, read once."""
    monkeypatch.setattr(images, "hubble_deep_field", lambda *, size: stamps)


def test_truth_is_perfect(blends):
    scores = evaluate(blends.galaxies, blends)
    assert all(values.shape == (2, 2) for values in scores.values())
    assert (scores["psnr"] == CHAPTER["MOST_PSNR"]).all()  # infinite, cut so that a mean exists
    for name in ("ssim", "ssim_range_2", "cosine"):
        assert torch.allclose(scores[name], torch.ones(2, 2), atol=1e-5)  # 32-bit rounding
    for name in ("flux", "centroid", "ellipticity"):
        assert scores[name].abs().max() < 1e-5


def test_pixel_scores_equal_scikit_image(blends, generator):
    estimate = (blends.galaxies + 0.1 * torch.randn(blends.galaxies.shape, generator=generator)).clamp(0, 1)
    scores = evaluate(estimate, blends)
    for index in np.ndindex(2, 2):
        pair = [part[index].double().numpy() for part in (blends.galaxies, estimate)]
        assert scores["psnr"][index].item() == pytest.approx(
            peak_signal_noise_ratio(*pair, data_range=1), abs=1e-4
        )
        for name, data_range in (("ssim", 1), ("ssim_range_2", 2)):
            wanted = structural_similarity(*pair, data_range=data_range, channel_axis=0)
            assert scores[name][index].item() == pytest.approx(wanted, abs=1e-5)


def test_known_flux_and_place_come_back(blends):
    faint = 0.1 + 0.75 * (blends.galaxies - 0.1)
    scores = evaluate(faint, blends)
    # the sky is measured 20 px from the middle, where the wings of these galaxies are not yet quite 0
    assert scores["flux"].flatten().tolist() == pytest.approx([-0.25] * 4, abs=0.01)
    assert scores["centroid"].max() < 0.01
    moved = evaluate(blends.galaxies.roll(1, -1), blends)
    # the truth's aperture cuts a little of the wing of what has moved
    assert moved["centroid"].flatten().tolist() == pytest.approx([1] * 4, abs=0.1)


def test_summary_per_branch():
    scores = {
        "psnr": torch.tensor([[30.0, 20.0], [32.0, 26.0]]),
        "flux": torch.tensor([[0.1, -0.3], [0.1, -0.1]]),
    }
    table = CHAPTER["summarise"](scores)
    assert table["psnr"]["first"]["mean"] == 31 and table["psnr"]["second"]["mean"] == 23
    assert table["psnr"]["both"]["mean"] == 27 and table["psnr"]["both"]["count"] == 4
    assert table["psnr"]["both"]["p50"] == pytest.approx(np.percentile([30, 20, 32, 26], 50))
    assert table["flux"]["both"]["mean"] == pytest.approx(-0.05)
    assert table["flux_size"]["both"]["mean"] == pytest.approx(0.15)
    empty = CHAPTER["summarise"]({"flux": torch.full((3, 2), torch.nan)})
    assert empty["flux"] == {"both": None, "first": None, "second": None}


def test_summary_equals_numpy_and_leaves_out_nan():
    values = torch.randn(101, generator=torch.Generator().manual_seed(0))
    found = CHAPTER["summary"](torch.cat([values, torch.tensor([math.nan])]))
    array = values.double().numpy()
    assert found["count"] == 101
    assert (found["mean"], found["std"]) == (pytest.approx(array.mean()), pytest.approx(array.std()))
    for percentile in CHAPTER["PERCENTILES"]:
        assert found[f"p{percentile}"] == pytest.approx(np.percentile(array, percentile))


@pytest.mark.usefixtures("few_stamps")
def test_blends_are_fixed():
    many = evaluation.held_out_blends(None, count=35)
    again = evaluation.held_out_blends(None, count=10, rule="sum")
    assert torch.equal(again.galaxies, many.galaxies[:10]) and torch.equal(again.offsets, many.offsets[:10])
    assert torch.equal(again.blended, BLEND_RULES["sum"](again.galaxies))
    assert torch.equal(many.blended, many.galaxies.amax(1))


@pytest.mark.usefixtures("few_stamps")
def test_every_galaxy_comes_first_once(stamps):
    firsts = evaluation.held_out_blends(None, count=60).galaxies[:, 0]
    difference = torch.stack([(first - stamps.pixels).abs().amax((1, 2, 3)) for first in firsts])
    assert difference.min(1).values.max() < 0.51 / 255  # 8 bit rounding
    assert sorted(difference.argmin(1).tolist()) == list(range(60))


def test_last_names_only(tmp_path, monkeypatch):
    """Flat images, the first of them by name white: it must not come up."""
    monkeypatch.setattr(sources, "GALAXY_ZOO_TEST", 20)
    for index in range(21):
        grey = 255 if index == 0 else 100 + index
        Image.new("RGB", (424, 424), (grey,) * 3).save(tmp_path / f"{index:04d}.png", compress_level=1)
    blends = evaluation.held_out_blends(tmp_path, count=20)
    assert blends.galaxies.shape == (20, 2, 3, 80, 80)
    firsts = (blends.galaxies[:, 0, 0, 40, 40] * 255).round().int()
    assert sorted(firsts.tolist()) == list(range(101, 121)) and blends.galaxies.max() * 255 < 120.5
    # 10 to 49 px of the 240 px crop, at a third of the scale; what is not covered by the frame is black
    shift = blends.offsets[:, 1].abs()
    assert shift.min() >= 10 / 3 and shift.max() <= 49 / 3
    assert not blends.footprints[:, 1].all() and blends.galaxies[:, 1].min() == 0


def test_bad_count_and_folder(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        evaluation.held_out_blends(None, count=0)
    with pytest.raises(FileNotFoundError):
        evaluation.held_out_blends(tmp_path / "nowhere")


# ---- the judge


class Planted(nn.Module):
    """A judge whose logit is the mean of the image, seen through a batch norm as a shipped judge's is."""

    def __init__(self, *, scale=20.0, norm=True):
        super().__init__()
        self.norm = nn.BatchNorm2d(1) if norm else nn.Identity()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images):
        return (self.norm(images).mean((1, 2, 3)) * self.scale)[:, None]


def judged(network):
    return Gan("planted", None, nn.Identity(), network, to_signed, None, None)


def flat(levels):
    """Images (B, N, 1, 8, 8) of these levels (B, N)."""
    return torch.as_tensor(levels, dtype=torch.float32)[..., None, None, None].expand(-1, -1, 1, 8, 8)


def by_hand(real, fake):
    """AUC over all pairs, shares, and cross-entropy in double loops."""
    pairs = [(a > b) + (a == b) / 2 for a in real for b in fake]
    surprise = [math.log1p(math.exp(-a)) for a in real], [math.log1p(math.exp(b)) for b in fake]
    return (
        sum(pairs) / len(pairs),
        sum(a < 0 for a in real) / len(real),
        sum(b >= 0 for b in fake) / len(fake),
        sum(sum(part) / len(part) for part in surprise) / 2,
    )


KEYS = ("auc", "true_called_fake", "drawn_called_real", "cross_entropy")


def test_judge_figures_are_those_of_double_loops(generator):
    true, drawn = ((torch.rand(17, 3, generator=generator) * 8).round() / 8 for _ in range(2))  # many ties
    network = Planted(norm=False, scale=3.0)
    figures = evaluation.judge_figures(judged(network), flat(true), flat(drawn))
    assert figures["images"] == 17 and figures["batch_dependent"] is False
    for position in range(3):
        logits = [(6 * part[:, position] - 3).tolist() for part in (true, drawn)]
        found = [figures[key][position] for key in KEYS]
        assert found == pytest.approx(by_hand(*logits), abs=1e-6)
    assert json.loads(json.dumps(figures)) == figures


def test_a_perfect_a_blind_and_a_reversed_judge():
    bright, dark = flat([[0.9, 0.9]] * 5), flat([[0.1, 0.1]] * 5)
    for true, drawn, wanted in (
        (bright, dark, (1, 0, 0)),
        (dark, bright, (0, 1, 1)),
        (dark, dark, (0.5, 1, 0)),
    ):
        figures = evaluation.judge_figures(judged(Planted()), true, drawn)
        assert [figures[key] for key in KEYS[:3]] == [[value] * 2 for value in wanted]
    blind = evaluation.judge_figures(judged(Planted(scale=0.0)), bright, dark)
    assert blind["auc"] == [0.5, 0.5] and blind["cross_entropy"] == pytest.approx([math.log(2)] * 2)
    assert (blind["true_called_fake"], blind["drawn_called_real"]) == ([0, 0], [1, 1]), "0 is not below 0"


def test_a_judge_sees_images_alone_in_eval_mode_and_keeps_its_modes(generator):
    """Its batch norm would tell a batch of true images from one of drawn ones: single images tell nothing."""
    network = Planted().train()
    network.norm.running_mean.fill_(-0.2)
    network.norm.eval()  # a frozen norm within a network in training
    true, drawn = (torch.rand(6, 2, 1, 8, 8, generator=generator) for _ in range(2))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    figures = evaluation.judge_figures(judged(network), true, drawn)
    assert figures["batch_dependent"] is True
    assert network.training and not network.norm.training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    order = torch.randperm(6, generator=generator)
    again = evaluation.judge_figures(judged(network), true[order], drawn)
    assert all(again[key] == pytest.approx(figures[key]) for key in KEYS)
    alone = [evaluation.judge_figures(judged(network), true[i : i + 1], drawn[i : i + 1]) for i in range(6)]
    for key in KEYS[1:]:
        assert torch.tensor([one[key] for one in alone]).mean(0).tolist() == pytest.approx(figures[key])


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_a_judge_takes_images_of_any_precision(kind, generator):
    true, drawn = ((torch.rand(4, 2, 1, 8, 8, generator=generator)).half().float() for _ in range(2))
    wanted = evaluation.judge_figures(judged(Planted()), true, drawn)
    assert evaluation.judge_figures(judged(Planted()), true.to(kind), drawn.to(kind)) == wanted


@pytest.mark.parametrize("name", [*shipped_names("deblender"), *shipped_names("phantom")])
def test_every_shipped_judge_says_the_same_alone_and_in_any_batch(name, generator):
    gan = load_checkpoint(name).gan
    galaxies = gan.prepare(torch.rand(5, 3, 80, 80, generator=generator) ** 4)
    with evaluating(gan.discriminator), torch.no_grad():
        alone = torch.cat([gan.discriminator(image) for image in galaxies.split(1)])
        for size in (2, 5):
            batch = torch.cat([gan.discriminator(part) for part in galaxies.split(size)])
            assert torch.allclose(batch, alone, rtol=1e-5, atol=1e-5)


def test_a_shipped_judge_has_figures(blends):
    gan = load_checkpoint("phantom-zeros").gan
    true = torch.nn.functional.interpolate(blends.galaxies.flatten(0, 1), (80, 80)).unflatten(0, (2, 2))
    figures = evaluation.judge_figures(gan, true, true)
    assert figures["auc"] == [0.5, 0.5] and figures["batch_dependent"] is False and figures["images"] == 2


def test_bad_judges_and_galaxies_are_refused():
    good = flat([[0.9, 0.1]] * 3)
    with pytest.raises(ValueError, match=r"true: got ImageSet; expected two tensors \(blends, galaxies"):
        found = images.ImageSet(good[:, 0], ("a", "b", "c"), "nowhere")
        evaluation.judge_figures(judged(Planted()), found, good)
    with pytest.raises(ValueError, match=r"drawn: got \(3, 1, 8, 8\)"):
        evaluation.judge_figures(judged(Planted()), good, good[:, 0])
    with pytest.raises(ValueError, match=r"true .*expected \[0, 1\]|true: .*expected \[0, 1\]"):
        evaluation.judge_figures(judged(Planted()), good * 2 - 1, good)
    with pytest.raises(ValueError, match=r"drawn: got \(2, 2, 1, 8, 8\); .* of one shape"):
        evaluation.judge_figures(judged(Planted()), good, good[:2])
    with pytest.raises(ValueError, match="gan: got Planted, expected Gan; such as load_checkpoint"):
        evaluation.judge_figures(Planted(), good, good)
    with pytest.raises(ValueError, match=r"answers one image with \(1, 64\).*expected one finite logit"):
        evaluation.judge_figures(judged(nn.Flatten()), good, good)
    with pytest.raises(ValueError, match=r"nan.*expected one finite logit"):
        evaluation.judge_figures(judged(Planted(scale=float("nan"))), good, good)


def test_a_sentence_for_a_caption():
    guess = {"auc": [0.506, 0.522], "true_called_fake": [0.987, 0.99]}
    wanted = (
        "This judge tells true from drawn galaxies with an AUC of .51 / .52 and calls 99 % of the true "
        "ones fake"
    )
    assert evaluation.judge_sentence(guess) == f"{wanted}: too little to read much into its map."
    one = evaluation.judge_sentence({"auc": [1.0], "true_called_fake": [0.0]})
    assert one.endswith("AUC of 1.00 and calls 0 % of the true ones fake.")
    low = evaluation.judge_sentence({"auc": [0.98, 0.8999], "true_called_fake": [0.1, 0.2]})
    assert "AUC of .98 / .89 and calls 10 % / 20 %" in low and low.endswith(
        ": too little to read much into its map."
    )
    for figures in (None, {}, {"auc": [1]}, [0.5]):
        with pytest.raises(ValueError, match="expected what judge_figures returns"):
            evaluation.judge_sentence(figures)
