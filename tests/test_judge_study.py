"""The record of what each shipped judge is worth belongs to the weights that are shipped."""

import hashlib

import pytest
import torch
from torch import nn

from book import judge_study
from galnb import evaluation, notebook
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
    assert min(RECORD["judges"]["phantom-zeros"]["true_called_fake"]) > 0.95
    assert min(found["true_called_fake"]) >= 0.75  # of 8, where the record says nearly all of 300
