"""Tests of galnb/evaluation/scarlet.py; those that fit need scarlet2."""

import sys

import pytest
import torch

from galnb.evaluation import metrics
from galnb.evaluation.scarlet import scarlet2_sources
from tests.test_classical import gaussian, pair

pytest.importorskip("astropy", reason="pip install 'galnb[sky]'")
CENTRES = torch.tensor([[[0.0, 0.0], [13.0, -4.0]]])


def test_two_round_galaxies_come_out_near_their_truth():
    pytest.importorskip("scarlet2", reason="pip install scarlet2")
    truth, blended = pair(gaussian(0, 0), gaussian(13, -4, flux=0.3))
    parts = scarlet2_sources(blended, centres=CENTRES)
    assert parts.shape == truth.shape and parts.min() >= 0 and parts.max() <= 1
    assert metrics.psnr(parts[0], truth[0], data_range=1).min() > 30  # the blend itself: 24 dB
    swapped = scarlet2_sources(blended, centres=CENTRES.flip(1))
    assert metrics.psnr(swapped[0].flip(0), truth[0], data_range=1).min() > 30, "(x, y) from the middle"


def test_bad_input_and_a_missing_package(monkeypatch):
    _, blended = pair(gaussian(0, 0), gaussian(13, -4))
    with pytest.raises(ValueError, match=r"centres have shape \(1, 1, 2\), expected \(1, 2, 2\)"):
        scarlet2_sources(blended, centres=CENTRES[:, :1])
    with pytest.raises(ValueError, match="got steps 0 and box 61"):
        scarlet2_sources(blended, centres=CENTRES, steps=0)
    monkeypatch.setitem(sys.modules, "scarlet2", None)
    with pytest.raises(ModuleNotFoundError, match="scarlet2 is not installed: pip install scarlet2"):
        scarlet2_sources(blended, centres=CENTRES)
