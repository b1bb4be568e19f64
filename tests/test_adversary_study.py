"""With and without an adversary: fine structure with known answers, pairs, a record."""

import json
import math
from dataclasses import replace

import pytest
import torch

from book import adversary_study
from galnb import blending
from galnb.gans import deblender
from galnb.gans.features import feature_network
from galnb.training import save_checkpoint
from tests.tiny_runs import TINY, images, one_thread  # noqa: F401


def wave(length: float, *, phase: float = 0.0, height: float = 0.2, side: int = 40) -> torch.Tensor:
    """Stripes of one length in pixels, (1, 3, side, side)."""
    along = torch.arange(side) * 2 * math.pi / length + phase
    return (0.5 + height * torch.sin(along)).expand(1, 3, side, side)


def test_half_the_height_is_a_quarter_of_the_power():
    found = adversary_study.fine_structure(wave(5, height=0.1), wave(5))
    assert found == pytest.approx({"detail": 0.25, "detail_agrees": 1.0}, abs=1e-4)


def test_the_same_structure_elsewhere_does_not_agree():
    found = adversary_study.fine_structure(wave(5, phase=math.pi / 2), wave(5))
    assert found["detail"] == pytest.approx(1, abs=0.02)
    assert found["detail_agrees"] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(("length", "seen"), [(2.2, False), (5, True), (20, False)])
def test_only_fine_structure_counts(length, seen):
    power = adversary_study.spectrum(wave(length)).abs().square().sum()
    whole = adversary_study.spectrum(wave(5)).abs().square().sum()
    assert (power > 0.5 * whole) == seen and (power < 0.05 * whole) != seen


def test_smoothing_takes_detail(generator):
    truth = torch.rand(8, 3, 40, 40, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
    found = adversary_study.fine_structure(smooth, truth)
    assert found["detail"] < 0.6 and found["detail_agrees"] > 0.6


def test_pairs_are_compared_by_seed():
    runs = {
        str(seed): {"with": {"psnr": height + gain}, "without": {"psnr": height}}
        for seed, height, gain in ((0, 20.0, 1.0), (1, 30.0, 2.0), (2, 25.0, 3.0))
    }
    mean, low, high = adversary_study.paired(runs)["psnr"]
    assert mean == pytest.approx(2)
    assert high - mean == pytest.approx(4.303 / 3**0.5, abs=1e-3)  # t of two degrees of freedom, spread 1
    assert low == pytest.approx(2 * mean - high)


@pytest.fixture
def runs(tmp_path):
    """Folder of two tiny pairs and half of a third, and their common start."""
    ends = ("common", "zeros_0", "zeros_0_alone", "zeros_1", "zeros_1_alone", "zeros_2")
    for number, name in enumerate(ends):
        gan = deblender.deblender(replace(TINY, seed=number))
        (tmp_path / name).mkdir()
        file = tmp_path / name / "final.safetensors"
        save_checkpoint(file, gan, experiment={"batch_size": 8}, step=3)
    return tmp_path


def test_the_program_writes_a_record_and_measures_once(runs, monkeypatch, generator):
    blends = blending.make_blends(images(8), generator=generator)
    monkeypatch.setattr(adversary_study, "RECORD", runs / "record.json")
    monkeypatch.setattr(
        adversary_study, "feature_network", lambda *a, **b: feature_network("random", pooled=True)
    )
    monkeypatch.setattr(adversary_study.evaluation, "held_out_blends", lambda folder, count: blends)
    adversary_study.main([str(runs), str(runs)])
    record = json.loads((runs / "record.json").read_text())
    assert (
        [len(run) for run in record["runs"].values()] == [2, 2, 1]
        and record["features"] == "random"
        and record["steps"] == 3
    )
    keys = {"psnr", "ssim", "frechet", "detail", "detail_agrees"}
    assert set(record["difference"]) == set(record["start"]) == keys
    assert str(runs) not in json.dumps(record)
    monkeypatch.setattr(adversary_study, "measure", None)
    adversary_study.main([str(runs), str(runs)])


def test_one_pair_has_no_interval():
    scores = {"psnr": 20.0}
    assert adversary_study.paired({"0": {"with": scores, "without": scores}, "1": {"with": scores}}) == {}


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no finished run; expected at least zeros_SEED"):
        adversary_study.main([str(tmp_path), str(tmp_path)])
