"""Shipping weights: a deblender goes into the package with what its judge is worth, or not at all."""

import json

import pytest
import torch

from book import ship
from galnb import evaluation
from galnb.blending import make_blends
from galnb.gans import radio
from galnb.gans.deblender import deblend, deblender
from galnb.training import checkpoints, load_checkpoint, save_checkpoint
from tests.tiny_runs import TINY, images, one_thread  # noqa: F401

STORY = {"name": "deblender-tiny", "data": "hubble", "rule": "sum", "training": {"steps": 9, "seed": 0}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Folder of a finished run of two stages; what is shipped goes beside it."""
    for module in (ship, checkpoints):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path / "weights")
    gan = deblender(TINY)
    for stage in ("early", "final"):
        save_checkpoint(tmp_path / "run" / f"{stage}.safetensors", gan, experiment=STORY, step=9)
    return tmp_path / "run"


@pytest.fixture
def held_out(monkeypatch):
    """Sixteen pixels instead of eighty: blends of the tiny network's size, for every folder."""
    asked = []

    def blends(folder, *, count, rule):
        asked.append((folder, count, rule))
        return make_blends(images(8), rule=rule, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(evaluation, "held_out_blends", blends)
    return asked


def test_every_stage_of_a_deblender_carries_its_judges_figures(run, held_out):
    written = ship.ship(
        run, "tiny", ["early", "final"], {"psnr_db": 30}, torch.float16, galaxyzoo=run / "zoo"
    )
    assert [path.name for path in written] == ["tiny@early.safetensors", "tiny.safetensors"]
    assert held_out == [(run / "zoo", 300, "sum")] * 2
    blends = make_blends(images(8), rule="sum", generator=torch.Generator().manual_seed(0))
    for path, more in zip(written, ({}, {"psnr_db": 30}), strict=True):
        checkpoint = load_checkpoint(path)
        judge = checkpoint.metrics["judge"]
        assert checkpoint.metrics == {**more, "judge": judge} and set(judge) == ship.FIGURES
        assert judge["images"] == 8 and len(judge["auc"]) == 2 and judge["batch_dependent"] is True
    source = load_checkpoint(run / "final.safetensors").gan
    wanted = evaluation.judge_figures(source, blends.galaxies, deblend(source, blends.blended))
    assert judge == wanted


def test_a_deblender_without_figures_is_refused_before_anything_is_written(run):
    complete = {"judge": dict.fromkeys(ship.FIGURES, 0)}
    with pytest.raises(ValueError, match=r"stage early: its judge has no auc, .*give --galaxyzoo FOLDER"):
        ship.ship(run, "tiny", ["early", "final"], complete, torch.float16)
    partial = {"judge": dict.fromkeys(ship.FIGURES - {"auc"}, 0)}
    with pytest.raises(ValueError, match="stage final: its judge has no auc; "):
        ship.ship(run, "tiny", ["final"], partial, torch.float16)
    assert not (run.parent / "weights").exists()
    (path,) = ship.ship(run, "tiny", ["final"], complete, torch.float16)
    assert load_checkpoint(path).metrics == complete


def test_the_last_stage_takes_eight_bits_only_where_told(run):
    complete = {"judge": dict.fromkeys(ship.FIGURES, 0)}
    for last, bits in ((torch.float16, 16), (torch.int8, 8)):
        (path,) = ship.ship(run, "tiny", ["final"], complete, torch.int8, last)
        assert ship.card(path)["generator_bits"] == bits


def test_other_gans_need_no_judge(tmp_path, monkeypatch):
    gan = load_checkpoint("radio-plain").gan
    monkeypatch.setattr(ship, "WEIGHTS", tmp_path / "weights")
    assert gan.name == radio.radio.__name__
    save_checkpoint(tmp_path / "final.safetensors", gan, experiment=STORY, step=1)
    (path,) = ship.ship(tmp_path, "tiny", ["final"], {}, torch.float16)
    assert load_checkpoint(path).metrics == {}


def test_the_index_says_what_the_judge_is_worth(run, held_out):
    ship.ship(run, "tiny", ["final"], {"psnr_db": 30}, torch.float16, galaxyzoo=run)
    ship.write_index()
    card = json.loads((ship.WEIGHTS / "index.json").read_text())["tiny"]
    text = (ship.WEIGHTS / "README.md").read_text()
    assert card["metrics"]["psnr_db"] == 30 and "* psnr_db: 30" in text
    assert f"* judge: {evaluation.judge_sentence(card['metrics']['judge'])}" in text
