"""The ablation: one change per variant, fair pairs, a table that adds up."""

from dataclasses import replace

import pytest
import torch

from book import ablation
from galnb import blending
from tests.tiny_runs import one_thread  # noqa: F401


def test_each_variant_changes_one_thing_that_exists():
    base, *others = ablation.VARIANTS.items()
    assert base[1] == ({}, {}, {})
    for name, (model, schedule, data) in others:
        assert sum(map(bool, (model, schedule, data))) == 1, name
        assert replace(ablation.MODEL, **model) != ablation.MODEL or not model
        assert replace(ablation.TRAINING, **schedule) != ablation.TRAINING or not schedule
        assert data.keys() <= {"share"}


def test_gains_are_paired_by_seed():
    base, other = list(ablation.VARIANTS)[:2]
    runs = {
        base: [{"psnr": value, "ssim": 0.5} for value in (20.0, 24.0, 22.0)],
        other: [{"psnr": value, "ssim": 0.6} for value in (21.0, 25.0, 23.0)],
    }
    rows = ablation.table(runs)
    assert list(rows) == [base, other]
    assert rows[base]["psnr"] == pytest.approx(22) and rows[base]["gain_db"] == 0
    # a scatter of 2 dB between seeds, none between pairs
    assert rows[other]["gain_db"] == pytest.approx(1) and rows[other]["gain_spread_db"] == pytest.approx(0)
    assert rows[other]["psnr_of_seeds"] == [21, 25, 23] and rows[other]["ssim"] == pytest.approx(0.6)


def test_a_variant_trains_and_is_scored(monkeypatch, generator):
    small = {"widths": (8, 8), "blocks": (1, 1), "discriminator_width": 4, "dense": 4}
    monkeypatch.setattr(ablation, "MODEL", replace(ablation.MODEL, **small))
    monkeypatch.setattr(ablation, "TRAINING", replace(ablation.TRAINING, steps=2, warmup=1, save_every=2))
    monkeypatch.setattr(ablation, "BATCH", 2)
    frames = torch.randint(256, (8, 3, 424, 424), dtype=torch.uint8, generator=generator)
    blends = blending.make_blends(frames[:2].float() / 255, generator=generator, crop=240, size=80)
    found = {
        name: ablation.train_variant(name, 0, frames, blends)
        for name in ("as shipped, but small", "a quarter of the galaxies", "paints instead of sharing")
    }
    assert all(10 < run["psnr"] < 60 and 0 < run["ssim"] < 1 for run in found.values())
    assert len({run["psnr"] for run in found.values()}) == 3, "the changes must reach the training"
