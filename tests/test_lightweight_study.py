"""The study of small Lightweight GANs: its measures against references, its parts without mixing."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from skimage.color import rgb2hsv

from book import lightweight_study as study
from book.run_notebooks import ROOT
from galnb import images
from galnb.blending.batches import image_batches


def test_preference_is_the_share_of_won_pairs(generator):
    one, other = torch.randn(30, generator=generator).round(decimals=1), torch.randn(40, generator=generator)
    other = other.round(decimals=1)
    won = mannwhitneyu(one, other).statistic / (30 * 40)
    assert study.preference(one, other) == pytest.approx(won, abs=1e-9)
    assert study.preference(one + 9, other) == 1 and study.preference(one, one) == pytest.approx(0.5)


def test_rare_hues_are_green_and_cyan(generator):
    pixels = torch.rand(4, 3, 8, 8, generator=generator)
    hsv = rgb2hsv(pixels.double().numpy(), channel_axis=1)
    chroma = (hsv[:, 1] * hsv[:, 2]) * (hsv[:, 2] > 0.2)
    wanted = (chroma * ((hsv[:, 0] > 0.25) & (hsv[:, 0] < 7 / 12))).sum() / chroma.sum()
    assert study.rare_hues(pixels) == pytest.approx(wanted, abs=1e-4)
    green, red = torch.zeros(2, 1, 3, 4, 4)
    green[:, 1], red[:, 0] = 1, 1
    assert study.rare_hues(green) == 1 and study.rare_hues(red) == 0


def test_kept_back_galaxies_share_no_sky_with_those_trained_on():
    left, right = study.hubble_halves()
    found = images.hubble_deep_field(size=64)
    x = [int(name.split("_")[1]) for name in found.names]
    assert len(left) + len(right) < len(found) and len(right) >= 20
    reach = {"left": [], "right": []}
    for place, stamp in zip(x, found.pixels, strict=True):
        for side, part in (("left", left), ("right", right)):
            if (part == stamp).flatten(1).all(1).any():
                reach[side].append(place)
    assert max(reach["left"]) + 20 <= min(reach["right"]) - 20  # stamps are 40 px of the field wide


def test_hue_in_the_data_turns_the_asked_share(generator):
    bank = torch.rand(20, 3, 8, 8, generator=generator)
    plain = image_batches(bank, batch_size=100, seed=0)
    batches = study.hue_turned(plain, 0.25)
    changed = [(batches(i)["images"] - plain(i)["images"]).abs().amax((1, 2, 3)) > 1e-3 for i in range(10)]
    assert 0.19 < torch.cat(changed).float().mean() < 0.31  # .25, four standard deviations
    assert torch.equal(batches(3)["images"], batches(3)["images"])


def test_parts_of_the_record_stand_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "RECORD", tmp_path / "record.json")
    study.keep({"a": 1.23456789}, {"x": np.ones(2)})
    study.keep({"b": {"c": [2.0]}}, {"y": np.zeros(3)})
    assert json.loads((tmp_path / "record.json").read_text()) == {"a": 1.235, "b": {"c": [2.0]}}
    assert sorted(np.load(tmp_path / "record.npz")) == ["x", "y"]


def test_blurring_keeps_light_and_lowers_peaks():
    point = torch.zeros(1, 3, 15, 15)
    point[..., 7, 7] = 1
    soft = study.blurred(point)
    assert soft.shape == point.shape and soft.sum().item() == pytest.approx(3, abs=1e-5)
    assert soft.max().item() == pytest.approx(1 / (2 * np.pi), rel=0.02)  # a Gaussian of 1 px


def test_the_chapter_writes_the_counts_of_the_record():
    record = json.loads(study.RECORD.read_text(encoding="utf-8"))
    cells = json.loads((ROOT / "notebooks" / "13_lightweight_gan.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    counts = {f"{run['images']:,}" for run in record["runs"].values()}
    assert counts == {"59", "283", "1,400"} and all(count in text for count in counts)
    assert f"record's {record['count']} test images" in text and "forty generated galaxies" in text
    assert len(record["memorised"]["generated"]) == 40
