"""Learning curves: points that say what was measured, lines with known answers."""

import json
import math
from dataclasses import replace

import pytest
import torch

from book import learning_curves
from galnb import blending
from galnb.evaluation import metrics
from galnb.gans import deblender
from galnb.training import save_checkpoint
from tests.tiny_runs import TINY, images, one_thread  # noqa: F401


def points(*computes):
    return [{"operations": compute} for compute in computes]


@pytest.fixture
def blends(generator):
    return blending.make_blends(images(), generator=generator)


@pytest.fixture
def plan(tmp_path):
    """Three checkpoints of one tiny network, 1, 2 and 8 steps of 4 blends after 2 earlier ones."""
    listed = []
    for step, phase in ((1, "start"), (2, "settled"), (8, "settled")):
        gan = deblender.deblender(replace(TINY, seed=step))
        save_checkpoint(tmp_path / f"{step}.safetensors", gan, experiment={"batch_size": 4}, step=step)
        listed.append(
            {"file": f"{step}.safetensors", "network": "tiny", "before": 2, "seconds": 1.8, "phase": phase}
        )
    return listed


def test_operations_of_the_generator_grow_with_the_image():
    gan = deblender.deblender(TINY)
    one = learning_curves.operations(gan, torch.zeros(1, 3, 16, 16))
    first = (
        2 * 16 * 16 * 3 * TINY.width * 9
    )  # one 3 x 3 convolution: a product and a sum per weight and pixel
    assert one > first
    assert learning_curves.operations(gan, torch.zeros(2, 3, 16, 16)) == 2 * one


def test_a_line_through_points_on_a_line():
    means = torch.tensor([[20.0, 21.0, 22.0]]).expand(10, -1)
    found = learning_curves.extrapolate(points(4, 8, 16), means, 25.0)
    assert found["db_per_doubling"] == pytest.approx([1, 1, 1])
    assert found["operations"] == pytest.approx([128] * 3), "3 dB more, at 1 dB per doubling"
    assert found["height"] == pytest.approx(18) and found["points"] == 3


def test_a_flat_or_falling_line_never_arrives():
    means = torch.tensor([[20.0, 21.0], *[[20.0, 21.0]] * 90, *[[21.0, 20.0]] * 10])
    found = learning_curves.extrapolate(points(4, 8), means, 22.0)
    assert found["operations"][:2] == pytest.approx([16, 16]) and found["operations"][2] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("computes", [(), (4,), (4, 7.9)])
def test_points_too_near_to_one_another_give_no_line(computes):
    assert learning_curves.extrapolate(points(*computes), torch.zeros(3, len(computes))) is None


def test_blends_are_drawn_again_for_all_points_alike(generator):
    scores = torch.stack([torch.linspace(0, 1, 50), torch.linspace(0, 1, 50) + 3])
    means = learning_curves.resampled(scores, generator=generator)
    assert means.shape == (learning_curves.DRAWS, 2)
    assert torch.allclose(means[:, 1] - means[:, 0], torch.tensor(3.0), atol=1e-4)
    assert means[:, 0].std().item() == pytest.approx(scores[0].std().item() / math.sqrt(50), rel=0.1)


def test_a_curve_says_what_its_checkpoints_reached(plan, tmp_path, blends):
    found = learning_curves.curve(plan[::-1], tmp_path, blends)
    assert [point["steps"] for point in found["points"]] == [3, 4, 10]
    assert [point["blends"] for point in found["points"]] == [12, 16, 40]
    assert [point["hours"] for point in found["points"]] == pytest.approx([0.0015, 0.002, 0.005])
    first, _, last = found["points"]
    assert last["operations"] * 12 == first["operations"] * 40
    drawn = deblender.deblend(deblender.deblender(replace(TINY, seed=8)), blends.blended)
    expected = metrics.psnr(drawn, blends.galaxies, data_range=1).mean().item()
    assert last["psnr"][0] == pytest.approx(expected, abs=1e-3)
    assert last["psnr"][1] < last["psnr"][0] < last["psnr"][2]
    assert found["lines"]["settled"]["points"] == 2 and found["lines"]["full"] is None
    assert learning_curves.curve(plan, tmp_path, blends) == found, "the second time, from the files kept"


@pytest.mark.parametrize("wrong", [{"phase": "later"}, {"rate": 1}])
def test_a_wrong_plan_is_named(plan, tmp_path, blends, wrong):
    with pytest.raises(ValueError, match="expected file, network, before, seconds, and phase"):
        learning_curves.measure(plan[0] | wrong, tmp_path, blends)


def test_the_program_writes_a_record(plan, tmp_path, blends, monkeypatch):
    monkeypatch.setattr(learning_curves, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(learning_curves.evaluation, "held_out_blends", lambda folder, count: blends)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    learning_curves.main([str(tmp_path), str(tmp_path / "plan.json")])
    record = json.loads((tmp_path / "record.json").read_text())
    assert list(record["networks"]) == ["tiny"] and len(record["networks"]["tiny"]["points"]) == 3
    assert str(tmp_path) not in json.dumps(record)
