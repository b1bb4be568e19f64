"""The record of what each shipped judge is worth belongs to the weights that are shipped."""

import copy
import hashlib
import json
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from book import judge_study
from galnb import evaluation, notebook
from galnb.gans.deblender import DeblenderConfig, deblend, deblender
from galnb.training import shipped
from galnb.training.checkpoints import shipped_names

RECORD = notebook.record("judges")
NAMES = [*shipped_names("deblender"), *shipped_names("phantom")]


def test_every_shipped_deblender_has_its_judge_measured():
    assert sorted(RECORD["judges"]) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_figures_are_those_of_the_shipped_weights(name):
    judge = RECORD["judges"][name]
    assert judge["sha256"] == hashlib.sha256(shipped(name).read_bytes()).hexdigest()
    assert judge["images"] == judge_study.COUNT
    for key in ("auc", "true_called_fake", "drawn_called_real"):
        assert len(judge[key]) == 2 and all(0 <= value <= 1 for value in judge[key])
    sentence = evaluation.judge_sentence(judge)
    assert ("too little" in sentence) == (min(judge["auc"]) < evaluation.LEAST_AUC)


@pytest.mark.parametrize("name", shipped_names("deblender"))
def test_a_fresh_judge_stands_beside_each_that_misses_the_limit(name):
    judge = RECORD["judges"][name]
    assert ("fresh" in judge) == (min(judge["auc"]) < evaluation.LEAST_AUC)
    if "fresh" in judge:
        assert judge["fresh"]["steps"] == judge_study.FRESH_STEPS
        assert judge["fresh"]["images"] == judge_study.COUNT and not judge["fresh"]["batch_dependent"]


def test_errors_are_enlarged_at_first_and_not_at_the_end():
    true, drawn = torch.full((1, 2, 3, 4, 4), 0.5), torch.full((1, 2, 3, 4, 4), 0.52)
    assert torch.allclose(judge_study.enlarged(true, drawn, 0), torch.tensor(0.66))
    assert torch.allclose(judge_study.enlarged(true, drawn, 125), torch.tensor(0.59))
    assert judge_study.enlarged(true, drawn, judge_study.ENLARGED_STEPS) is drawn
    assert judge_study.enlarged(true, true + 0.4, 0).max() == 1


def test_a_fresh_judge_learns_while_the_generator_stands_still(random_images):
    config = DeblenderConfig(
        size=16, width=4, root_blocks=1, branch_blocks=1, discriminator_width=4, dense=8, seed=3
    )
    gan = deblender(replace(config, discriminator_norm="group", discriminator_kernel=4))
    before = copy.deepcopy(gan.generator.state_dict())
    frames = (random_images.repeat(4, 1, 20, 20)[:, :, :72, :72] * 60).byte()  # dark, as galaxies are
    fresh = judge_study.with_fresh_judge(gan, frames, rule="max", steps=40)
    assert all(torch.equal(before[name], value) for name, value in gan.generator.state_dict().items())
    assert fresh.generator is gan.generator and not fresh.discriminator.training
    true = judge_study.blend_batches(frames, batch_size=12, seed=9, crop=48, size=16)(0)
    drawn = deblend(gan, true["blended"])
    found = evaluation.judge_figures(fresh, true["galaxies"], drawn)
    assert min(found["auc"]) > 0.95  # an untrained generator draws grey
    assert found["auc"] != evaluation.judge_figures(gan, true["galaxies"], drawn)["auc"]


def test_only_what_is_named_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_study, "RECORD", tmp_path / "judges.json")
    monkeypatch.setattr(judge_study, "measure", lambda name, folder: {"name": name, "folder": str(folder)})
    monkeypatch.setattr(sys, "argv", ["judge_study", "zoo", "--only", "deblender-sum"])
    judge_study.main()
    written = json.loads((tmp_path / "judges.json").read_text())["judges"]
    assert written.pop("deblender-sum") == {"name": "deblender-sum", "folder": "zoo"}
    assert written == {name: figures for name, figures in RECORD["judges"].items() if name in written}
    assert len(written) == len(NAMES) - 1
    monkeypatch.setattr(sys, "argv", ["judge_study", "zoo", "--only", "deblender-som"])
    with pytest.raises(ValueError, match=r"deblender-som.*unknown; known are .*deblender-sum"):
        judge_study.main()


def test_border_mass_finds_the_side_that_a_network_weighs():
    weight = torch.full((1, 3, 16, 16), 0.01)
    weight[..., :2] = 1.0
    judge = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 1, bias=False))
    judge[1].weight.data = weight.flatten(1)
    found = judge_study.border_mass(judge, torch.ones(2, 3, 16, 16))
    assert found["left"] == pytest.approx(2 / (2 + 14 * 0.01), abs=1e-4)
    assert found["top"] == found["bottom"] == pytest.approx(2 / 16, abs=1e-4) and found["right"] < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_kernels_of_four_leave_no_frame_of_the_networks_own(name):
    judge = RECORD["judges"][name]
    sides = judge["border_mass"].values()
    assert all(0 <= share <= 1 for share in sides)
    if judge["kernel"] == 4:
        assert max(sides) < 1.5 * 2 / 80


def test_measuring_again_finds_what_the_record_says(galaxy_zoo_folder):
    found = judge_study.measure("phantom-zeros", galaxy_zoo_folder, count=8)
    assert found["images"] == 8 and found["sha256"] == RECORD["judges"]["phantom-zeros"]["sha256"]
    assert max(RECORD["judges"]["phantom-zeros"]["true_called_fake"]) < 0.05
    assert max(found["true_called_fake"]) <= 0.25  # of 8, where the record says hardly any of 300
