"""The history, and runs that are stopped at the worst moments."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from galnb.gans import from_json
from galnb.gans.deblender import deblender
from galnb.training import History, TrainingConfig, load_checkpoint, train
from tests.tiny_runs import RUN, TINY, batches, one_thread, plain_gan, run  # noqa: F401

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    gan, history = run(folder)
    return folder, gan, history


def weights(gan):
    return {**gan.generator.state_dict(prefix="g."), **gan.discriminator.state_dict(prefix="d.")}


def assert_same_run(folder, gan, history, uninterrupted):
    """Bit by bit: weights, losses, and the files that others read."""
    wanted_folder, wanted_gan, wanted = uninterrupted
    assert all(torch.equal(tensor, weights(wanted_gan)[name]) for name, tensor in weights(gan).items())
    assert history.steps == wanted.steps == list(range(RUN.steps))
    assert history.losses.keys() == wanted.losses.keys()
    for name, values in history.losses.items():
        assert torch.equal(
            torch.tensor(values).nan_to_num(-1), torch.tensor(wanted.losses[name]).nan_to_num(-1)
        )
    assert (folder / "history.json").read_bytes() == (wanted_folder / "history.json").read_bytes()
    for name in ("early.safetensors", "middle.safetensors", "final.safetensors"):
        ours, theirs = (load_checkpoint(place / name) for place in (folder, wanted_folder))
        assert (ours.step, ours.experiment) == (theirs.step, theirs.experiment)
        assert all(torch.equal(t, weights(theirs.gan)[key]) for key, t in weights(ours.gan).items())


def start(mode, folder):
    command = [sys.executable, "-m", "tests.tiny_runs", mode, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_killed_at_a_random_moment_and_continued(tmp_path, uninterrupted):
    process = start("slow", tmp_path)
    try:
        while not (tmp_path / "resume.pt").is_file():
            assert process.poll() is None, "the run ended before it wrote anything"
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.4))  # a run takes 12 x 0.05 s and more
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert torch.load(tmp_path / "resume.pt")["step"] < RUN.steps
    assert_same_run(tmp_path, *run(tmp_path, resume=True), uninterrupted)


def test_killed_in_the_middle_of_writing_a_resume_point(tmp_path, uninterrupted):
    assert start("torn", tmp_path).wait() == -signal.SIGKILL
    (torn,) = tmp_path.glob(".resume.pt.*.part")
    with pytest.raises(RuntimeError):
        torch.load(torn)  # the test would be empty if the half were readable
    assert (
        torch.load(tmp_path / "resume.pt")["step"] == RUN.save_every
    )  # saved after step 1 too, with "early"
    assert_same_run(tmp_path, *run(tmp_path, resume=True), uninterrupted)


@pytest.mark.parametrize("stop", [0, 4, 9])
def test_stopped_by_an_exception_and_continued(tmp_path, uninterrupted, stop):
    def interrupt(step, losses, gan):
        if step == stop:
            raise KeyboardInterrupt

    told = rf"stopped after step {stop + 1} of 12; resume=True .* from the last"
    with pytest.raises(KeyboardInterrupt, match=told):
        run(tmp_path, callback=interrupt)
    assert torch.load(tmp_path / "resume.pt")["step"] == {0: 1, 4: 4, 9: 10}[stop]  # "early" is of step 1
    assert_same_run(tmp_path, *run(tmp_path, resume=True), uninterrupted)


def test_resuming_a_finished_run_changes_nothing_and_more_steps_go_on(tmp_path, uninterrupted):
    folder, gan, _ = uninterrupted
    (tmp_path / "resume.pt").write_bytes((folder / "resume.pt").read_bytes())
    again, history = run(tmp_path, resume=True)
    assert all(torch.equal(tensor, weights(gan)[name]) for name, tensor in weights(again).items())
    _, history = run(tmp_path, resume=True, config=replace(RUN, steps=14, save_every=7))
    assert history.steps == list(range(14))


def test_resume_without_a_resume_point_starts_anew(tmp_path, uninterrupted):
    assert_same_run(tmp_path, *run(tmp_path, resume=True), uninterrupted)


@pytest.mark.parametrize("keep", [0, 1, 1000, 0.5, 0.99])
def test_truncated_resume_point_is_refused(tmp_path, uninterrupted, keep):
    content = (uninterrupted[0] / "resume.pt").read_bytes()
    (tmp_path / "resume.pt").write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(ValueError, match=r"resume\.pt is damaged.*delete it to start anew"):
        run(tmp_path, resume=True)


def test_foreign_resume_point_is_refused_and_not_executed(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "resume.pt")
    with pytest.raises(ValueError, match="no resume point; delete it"):
        run(tmp_path, resume=True)

    class Trap:
        def __reduce__(self):
            return (Path(tmp_path / "executed").touch, ())

    torch.save({"config": Trap()}, tmp_path / "resume.pt")
    with pytest.raises(ValueError, match="damaged or no resume point"):
        run(tmp_path, resume=True)
    assert not (tmp_path / "executed").exists()


def test_resume_of_another_run_is_refused_by_name(tmp_path, uninterrupted):
    (tmp_path / "resume.pt").write_bytes((uninterrupted[0] / "resume.pt").read_bytes())
    changed = replace(RUN, learning_rate=1.0, ema=0.5, seed=3)
    with pytest.raises(
        ValueError, match=r"config\.ema', 'config\.learning_rate', 'config\.seed'\] differ.*0\.9"
    ):
        run(tmp_path, resume=True, config=changed)
    # A loss weight changes no shape: only the config can tell.
    with pytest.raises(ValueError, match=r"\['model\.adversarial_weight'\] differ"):
        train(deblender(replace(TINY, adversarial_weight=1.0)), batches(), RUN, folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"model\.gan"):
        train(plain_gan(), batches(), RUN, folder=tmp_path, resume=True)
    run_with = {"folder": tmp_path, "resume": True}
    short = replace(RUN, steps=13)
    train(deblender(TINY), batches(), short, experiment={"batch_size": 4, "rule": "max"}, **run_with)
    with pytest.raises(ValueError, match=r"\['experiment\.batch_size'\] differ"):
        train(deblender(TINY), batches(), short, experiment={"batch_size": 8, "rule": "max"}, **run_with)


def test_resume_needs_a_folder():
    with pytest.raises(ValueError, match="give one of them and the folder, got folder=None"):
        run(None, resume=True)


def test_stage_checkpoints_hold_the_mean_generator(uninterrupted):
    folder, gan, _ = uninterrupted
    steps = {
        stage: load_checkpoint(folder / f"{stage}.safetensors") for stage in ("early", "middle", "final")
    }
    assert {stage: checkpoint.step for stage, checkpoint in steps.items()} == {
        "early": 1,
        "middle": 4,
        "final": 12,
    }
    assert torch.equal(steps["final"].gan.generator.head[0].weight, gan.generator.head[0].weight)
    raw = torch.load(folder / "resume.pt")["generator"]["head.0.weight"]
    assert not torch.equal(raw, gan.generator.head[0].weight)
    assert from_json(TrainingConfig, steps["final"].experiment["training"]) == RUN


def test_history_fills_gaps_with_nan_and_is_strict_json(uninterrupted):
    history = History()
    history.add(0, {"a": 1.0})
    history.add(1, {"b": 2.0})
    history.add(2, {"a": 3.0, "b": 4.0})
    assert history.steps == [0, 1, 2]
    assert str(history.losses) == "{'a': [1.0, nan, 3.0], 'b': [nan, 2.0, 4.0]}"

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads((uninterrupted[0] / "history.json").read_text(), parse_constant=refuse)
    kept = uninterrupted[2].losses["discriminator/total"]
    assert read["losses"]["discriminator/total"] == [None if math.isnan(value) else value for value in kept]
    assert math.isnan(kept[0]) and not math.isnan(kept[RUN.burn_in])


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_folder_that_holds_a_run_is_not_replaced_unless_told(tmp_path):
    few = replace(RUN, steps=2, stages=(("final", 1.0),))
    run(tmp_path, config=few)
    before = contents(tmp_path)
    assert sorted(before) == ["final.safetensors", "history.json", "resume.pt"]
    told = (
        r"already holds a run \(resume\.pt, history\.json, final.*resume=True.*another folder.*overwrite=True"
    )
    with pytest.raises(ValueError, match=told):
        run(tmp_path, config=replace(few, seed=1))
    assert contents(tmp_path) == before
    train(deblender(TINY), batches(), replace(few, seed=1), folder=tmp_path, overwrite=True)
    assert load_checkpoint(tmp_path / "final.safetensors").experiment["training"]["seed"] == 1
    # what an overwritten run left must not be gone on with
    with pytest.raises(KeyboardInterrupt):
        options = {"callback": interrupt_at_once, "folder": tmp_path, "overwrite": True}
        train(deblender(TINY), batches(), replace(few, steps=9), **options)
    assert contents(tmp_path) == {}


def interrupt_at_once(step, losses, gan):
    raise KeyboardInterrupt


@pytest.mark.parametrize("kept", ["history.json", "final.safetensors", "resume.pt"])
def test_each_file_of_a_run_is_kept(tmp_path, kept):
    (tmp_path / kept).write_bytes(b"weeks of work")
    (tmp_path / "notes.txt").write_text("not a part of a run")
    with pytest.raises(ValueError, match=rf"holds a run \({kept}\)"):
        run(tmp_path)
    if kept != "resume.pt":  # nothing to go on from: resuming would begin anew and replace it
        with pytest.raises(ValueError, match=r"go on from resume\.pt"):
            run(tmp_path, resume=True)
    assert (tmp_path / kept).read_bytes() == b"weeks of work"


def test_a_run_stopped_before_anything_was_saved_begins_anew(tmp_path):
    late = replace(RUN, stages=(("final", 1.0),))
    with pytest.raises(KeyboardInterrupt, match="from the last resume point"):
        run(tmp_path, config=late, callback=interrupt_at_once)
    assert contents(tmp_path) == {}
    assert run(tmp_path, config=late, resume=True)[1].steps == list(range(RUN.steps))


def test_a_folder_that_is_none_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"cannot write into .*file.*give a folder of yours"):
            run(folder)
    with pytest.raises(ValueError, match=r"resume=True goes on .* overwrite=True replaces it"):
        train(plain_gan(), batches(), RUN, folder=tmp_path, resume=True, overwrite=True)
    with pytest.raises(ValueError, match="give one of them and the folder, got folder=None"):
        train(plain_gan(), batches(), RUN, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"
