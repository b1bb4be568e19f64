"""The study of fills: equal geometry, measurements with known answers, records that add up."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from book import phantom_data, phantom_measure, phantom_study, phantom_training
from galnb import training
from galnb.gans import deblender
from galnb.training import experiments
from tests.tiny_runs import one_thread  # noqa: F401

TINY = {"size": 48, "widths": (8, 8), "blocks": (1, 1), "discriminator_width": 4, "dense": 4}


@pytest.fixture(scope="module")
def exam():
    generator = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(torch.arange(48) - 23.5, torch.arange(48) - 23.5, indexing="ij")
    galaxies = 0.6 * torch.exp(-(x**2 + y**2) / torch.linspace(8, 60, 40)[:, None, None, None])
    images = (galaxies + 0.1 + 0.02 * torch.randn(40, 3, 48, 48, generator=generator)).clamp(0, 1)
    sky = phantom_measure.sky_reference(images[:2], seed=0, size=48)
    references = {"sky": sky, "black": torch.zeros(1, 3, 48, 48)}
    return phantom_measure.Exam(phantom_measure.same_blends(images, seed=0), references)


@pytest.fixture(scope="module")
def gan():
    return deblender.deblender(deblender.DeblenderConfig(generator="unet", **TINY))


def test_only_the_fill_differs(exam):
    zeros, noise = exam.blends["zeros"], exam.blends["noise"]
    assert set(exam.blends) == {"zeros", "reflect", "noise"} and len(zeros) == 40
    assert torch.equal(zeros.footprints, noise.footprints) and torch.equal(zeros.offsets, noise.offsets)
    inside = zeros.footprints[:, 1].expand(-1, 3, -1, -1)
    apart = (zeros.galaxies[:, 1][inside] - noise.galaxies[:, 1][inside]).abs().max()
    assert apart < 1e-3  # the rim of a footprint has a thousandth of a pixel of slack
    outside = exam.padding > 0.1
    assert (zeros.galaxies[outside, 1] - noise.galaxies[outside, 1]).abs().amax((1, 2, 3)).min() > 0.05


def test_the_sky_reference_is_the_sky(exam):
    sky = exam.references["sky"]
    assert sky.shape == (2, 3, 48, 48)
    assert float(sky.mean()) == pytest.approx(0.1, abs=0.01) and float(sky.std()) == pytest.approx(
        0.02, abs=0.005
    )


def test_auc_counts_pairs():
    high, low = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0])
    assert phantom_measure.auc(high, low) == pytest.approx(4.5 / 6)  # 4 of 6 pairs, and one tie
    assert phantom_measure.auc(low, low) == 0.5


def test_psnr_inside_agrees_with_scikit_image_and_ignores_the_fill(generator):
    truth, drawn = torch.rand(2, 2, 3, 16, 16, generator=generator)
    footprint = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    whole = phantom_measure.psnr_inside(drawn, truth, footprint)
    expected = [
        peak_signal_noise_ratio(t.numpy(), d.numpy(), data_range=1) for t, d in zip(truth, drawn, strict=True)
    ]
    torch.testing.assert_close(whole, torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=0)
    footprint[..., :5] = False
    part = phantom_measure.psnr_inside(drawn, truth, footprint)
    drawn[..., :5] = 0
    torch.testing.assert_close(part, phantom_measure.psnr_inside(drawn, truth, footprint))


class Darkness(nn.Module):
    """Score by the share of exact black: a discriminator that knows the frame and nothing else."""

    def forward(self, images):
        return 9 * (images == -1).float().mean((1, 2, 3))[:, None] - 0.01


def test_the_probe_catches_a_network_that_looks_at_the_frame(exam, gan):
    found = phantom_measure.probe(replace(gan, discriminator=Darkness()), exam)
    assert min(found[part]["zeros over noise"] for part in ("auc", "paired")) > 0.95
    assert found["auc"]["reflect over noise"] == pytest.approx(0.5, abs=0.05)
    drawn = exam.blends["noise"].galaxies
    judged = phantom_measure.judgement(replace(gan, discriminator=Darkness()), drawn, exam, "zeros")
    assert judged["padded"]["auc"] > 0.95 and judged["first"]["auc"] == pytest.approx(0.5, abs=0.05)
    assert judged["padded"]["images"] + judged["unpadded"]["images"] <= 40


def test_detection_has_the_false_alarms_it_promises(generator):
    clean, padding = torch.randn(1000, generator=generator), torch.full((500,), 0.03)
    same = phantom_measure.detection(torch.randn(500, generator=generator), padding, clean)
    assert same["found"][0][1] == 500 and same["found"][0][0] <= 15  # 1 % of 500, and chance
    strong = phantom_measure.detection(torch.full((500,), 9.0), padding, clean)
    assert strong["found"][0] == [500, 500] and sum(n for _, n in strong["found"][1:]) == 0


@pytest.mark.parametrize("angle", [0, 30])
def test_straight_edges_are_found_and_curved_ones_are_not(generator, angle):
    maps = torch.rand(3, 1, 80, 80, generator=generator) + 0.5
    line = np.zeros((160, 160), np.float32)
    line[:, 80 + 28] = 1  # 28 px from the centre
    turned = torch.from_numpy(ndimage.rotate(line, angle, reshape=False, order=1)[40:120, 40:120])
    y, x = np.mgrid[:80, :80] - 39.5
    ring = torch.from_numpy((np.abs(np.hypot(y, x) - 33) < 1).astype(np.float32))
    plain, straight, curved = map(
        phantom_measure.straight_edges, (maps, maps * (1 + 2 * turned), maps * (1 + 0.5 * ring))
    )
    assert (straight > plain).all() and (straight > 8).all() and curved.median() < straight.median()


def test_a_run_is_measured_whole_and_fits_json(exam, gan):
    found = phantom_measure.measure(gan, exam, "zeros")
    json.dumps(phantom_study.rounded(found), allow_nan=False)
    assert set(found["relevance"]) == {"paper", "composite", "sky", "black"}
    contrast = found["relevance"]["paper"]["positive"]["contrast"]
    assert contrast[1] <= contrast[0] <= contrast[2]
    again = phantom_measure.on_zeros(gan, exam)  # what was measured on zeros is found again
    assert again["sky"]["positive"]["share_in_fill"] == found["relevance"]["sky"]["positive"]["share_in_fill"]
    pooled = phantom_study.pool([found, found])
    assert pooled["relevance"]["paper"]["positive"]["contrast"][0] == pytest.approx([contrast[0]] * 3)


def test_across_is_students_interval():
    """The witness is the table of t: 2.776 at four degrees of freedom."""
    mean, low, high = phantom_study.across([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (
        mean == 3
        and high - mean == pytest.approx(2.776 * 2.5**0.5 / 5**0.5, rel=1e-3)
        and low == pytest.approx(6 - high)
    )
    for values in ([1.0, 1.0, 0.9], [0.0, 0.4, 0.1], [0.02, 0.03, 0.01]):  # shares stay shares
        mean, low, high = phantom_study.across(values, bounded=True)
        assert 0 <= low < mean < high <= 1 and mean == pytest.approx(sum(values) / 3)
    narrow = phantom_study.across([0.49, 0.5, 0.51], bounded=True)  # far from the ends both agree
    assert narrow == pytest.approx(phantom_study.across([0.49, 0.5, 0.51]), abs=1e-4)
    assert phantom_study.pool([{"auc": {"a": 1.0}}, {"auc": {"a": 0.5}}])["auc"]["a"][2] == 1
    assert phantom_study.pool([{"a": None}, {"a": 1.0}]) == {"a": None}
    assert phantom_study.pool([{"a": 2}, {"a": None}, {"a": 2.0}]) == {"a": [2, 2, 2]}


def test_a_judge_learns_the_frame(exam, gan, monkeypatch):
    """All that its real and drawn galaxies differ in is the fill."""
    monkeypatch.setattr(phantom_study, "JUDGE_STEPS", 60)
    real, clean = (exam.blends[fill].galaxies[:, 1] for fill in ("zeros", "noise"))
    judge = phantom_study.train_judge(gan, (real, clean, torch.ones_like(real)), 0.0, 0)
    assert judge.generator is gan.generator and not judge.discriminator.training
    assert phantom_measure.probe(judge, exam)["paired"]["zeros over noise"] > 0.8


def test_a_bank_holds_the_error_of_the_drawing(generator, monkeypatch):
    monkeypatch.setattr(phantom_study, "JUDGE_IMAGES", 3)
    small = deblender.deblender(deblender.DeblenderConfig(generator="unet", **TINY | {"size": 80}))
    frames = torch.randint(20, 40, (5, 3, 424, 424), dtype=torch.uint8, generator=generator)
    real, clean, error = phantom_study.judge_bank(small, frames, 0)
    assert real.shape == clean.shape == error.shape == (3, 3, 80, 80)
    drawn = clean + error
    assert drawn.min() > -1e-6 and drawn.max() < 1 + 1e-6 and error.abs().max() > 0


def test_the_frame_share_is_a_part_of_the_distance():
    found = {
        "probe": {"logit": {"zeros": 3.0, "noise": 1.0}},
        "judgement": {"padded": {"logit_real": 4.0, "logit_drawn": -4.0}},
    }
    assert phantom_study.with_frame_share(found)["frame_share"] == 0.25


def test_trainings_start_alike_and_are_not_repeated(tmp_path, generator, monkeypatch):
    chosen = experiments.experiment("phantom", "quick")
    tiny = replace(chosen, model=replace(chosen.model, **TINY | {"size": 80}), batch_size=2,
                   training=replace(chosen.training, steps=1, burn_in=0, warmup=0, save_every=1))  # fmt: skip
    monkeypatch.setattr(experiments, "experiment", lambda name, preset: tiny)
    for name, number in (("START_BLENDS", 8), ("START_STEPS", 2), ("SETTLE_STEPS", 1)):
        monkeypatch.setattr(phantom_training, name, number)
    frames = torch.randint(256, (4, 3, 424, 424), dtype=torch.uint8, generator=generator)
    common = phantom_training.train_common(frames, tmp_path, "quick")
    files = [
        phantom_training.train_one(run, frames, common, tmp_path, "quick")
        for run in ("noise_0", "noise_0_alone")
    ]
    before = files[0].stat().st_mtime_ns
    again = phantom_training.train_one("noise_0", frames, common, tmp_path, "quick")
    assert again.stat().st_mtime_ns == before
    game, heard, alone = (
        training.load_checkpoint(file) for file in (files[0].with_name("game.safetensors"), *files)
    )
    assert game.experiment == heard.experiment and heard.experiment["training"]["steps"] == 1
    game, heard, alone = game.gan, heard.gan, alone.gan
    generators = [list(one.generator.parameters()) for one in (game, heard, alone)]
    for first, second in zip(*generators[:2], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)  # only the judge went on
    assert any(not torch.equal(a, b) for a, b in zip(generators[0], generators[2], strict=True))
    judges = [list(one.discriminator.parameters()) for one in (game, heard)]
    assert any(not torch.equal(a, b) for a, b in zip(*judges, strict=True))
    made = []
    for _ in range(2):
        assert phantom_study.stored(tmp_path / "a.json", lambda: made.append(1) or {"b": 2}) == {"b": 2}
    assert made == [1]


def test_errors_are_enlarged_at_first(generator, monkeypatch):
    """Drawings miss a faint texture; the errors are enlarged at first and are their own size at the end."""
    gan = deblender.deblender(deblender.DeblenderConfig(generator="unet", **TINY))
    clean = torch.rand(16, 3, 48, 48, generator=generator) * 0.5 + 0.2
    seen = []
    kept, phantom_training.learn = phantom_training.learn, lambda g, o, real, drawn: seen.append(drawn - real)
    try:
        phantom_training.learn_alone(gan, (clean, clean, torch.full_like(clean, 0.01)), 300, seed=0)
    finally:
        phantom_training.learn = kept
    assert seen[0].mean() == pytest.approx(0.08, abs=1e-3) and seen[-1].mean() == pytest.approx(
        0.01, abs=1e-4
    )


def test_planted_frames_are_told_from_stamps(exam):
    found = phantom_data.planted(exam.blends["zeros"].galaxies[:, 0])
    assert found["auc"] > 0.95 and found["false_alarms"] == 0 and 0 < found["planted"] < 40


def test_noise_of_a_known_sky_passes_and_is_restored(generator):
    frames = (30 + 8 * torch.randn(4, 3, 424, 424, generator=generator)).clamp(0, 255).byte()
    found = phantom_data.measure_fills(frames)
    assert found["noise"]["left"][1] < 0.97 and found["noise"]["restored"][1] == pytest.approx(1, abs=0.1)
    assert set(found["pass"]) == {"0.4", "0.5", "0.65"}
    assert found["pass"]["0.5"]["fill"] >= 0.5  # four images: one may fail by chance
