"""Tests of galnb/__main__.py and of what `import galnb` costs."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import galnb
from galnb import __main__ as command_line

ROOT = Path(galnb.__file__).parents[1]


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_import_galnb_pulls_in_neither_torch_nor_matplotlib():
    heavy = "{'torch', 'matplotlib', 'numpy', 'scipy', 'skimage'} & set(sys.modules)"
    assert python(f"import sys, galnb; print({heavy} or 'none')").strip() == "none"
    assert python(f"import sys, galnb.__main__; print({heavy} or 'none')").strip() == "none"


def test_without_a_command_the_help_is_printed(capsys):
    assert command_line.main([]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in command_line.COMMANDS) and "usage: python -m galnb" in said


def test_unknown_command_lists_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["chekc"])
    assert stopped.value.code == 2 and "check" in capsys.readouterr().err


def test_check_does_a_real_run(capsys):
    pytest.importorskip("torchvision")
    code = command_line.main(["check"])
    said = capsys.readouterr().out
    assert code == 0, said
    assert said.splitlines()[-1] == "All good." and "matching builds" in said
    assert "Hubble Deep Field" in said and "blended, trained" in said


@pytest.fixture
def quick(monkeypatch):
    """Leave out the real run, which one test above does."""
    monkeypatch.setattr(command_line, "_run", list)
    monkeypatch.setattr(command_line, "_data", list)


def test_check_says_what_to_do_about_foreign_torchvision(quick, monkeypatch, capsys):
    pytest.importorskip("torchvision")
    monkeypatch.setitem(
        sys.modules, "torchvision.ops", None
    )  # importing it now fails, as a foreign build does
    assert command_line.main(["check"]) == 1
    said = capsys.readouterr().out
    assert (
        "do not match" in said
        and "1. install torch and torchvision together" in said
        and "All good" not in said
    )


def test_check_says_what_to_do_on_a_full_disk(quick, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    assert command_line.main(["check"]) == 1
    assert "! 0.0 GiB free" in (said := capsys.readouterr().out) and "free some space" in said


def test_check_names_missing_packages_and_their_purpose(quick, monkeypatch, capsys):
    installed = command_line._version
    monkeypatch.setattr(
        command_line, "_version", lambda name: None if name in ("sep", "numpy") else installed(name)
    )
    assert command_line.main(["check"]) == 1  # numpy is needed, sep is not
    said = capsys.readouterr().out
    assert "- sep is not installed. For detection and deblending to compare with: pip install sep" in said
    assert "! numpy is missing" in said and said.count("\n  1. pip install numpy") == 1 and "  2." not in said


def test_a_failing_step_does_not_hide_the_others(quick, monkeypatch, capsys):
    def _device():
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(command_line, "_device", _device)
    assert command_line.main(["check"]) == 1
    said = capsys.readouterr().out
    assert (
        "! device: RuntimeError: CUDA out of memory" in said
        and "GiB free in" in said
        and "close other" in said
    )


def test_train_leaves_checkpoints_and_goes_on(tmp_path, capsys, monkeypatch):
    from galnb.gans.deblender import DeblenderConfig
    from galnb.training import TrainingConfig, experiments, presets
    from galnb.training.checkpoints import load_checkpoint

    tiny = presets.DeblenderExperiment(
        minutes=0,
        memory_gib=1,
        model=DeblenderConfig(
            size=32, width=4, root_blocks=1, branch_blocks=1, discriminator_width=4, dense=4
        ),
        training=TrainingConfig(steps=2),
        batch_size=2,
        images=8,
    )
    monkeypatch.setattr(experiments, "experiment", lambda name, preset: tiny)
    words = ["train", "deblender", "--preset", "quick", "--folder", str(tmp_path)]
    assert command_line.main(words) == 0
    assert "2 steps done" in capsys.readouterr().out
    assert command_line.main([*words, "--steps", "3", "--resume"]) == 0
    assert load_checkpoint(tmp_path / "final.safetensors").step == 3


def test_train_hands_radio_names_to_the_radio_run(tmp_path, capsys, monkeypatch):
    from galnb.training import History, experiments

    asked = {}

    def run_radio(name, preset, **options):
        asked.update(options, name=name, preset=preset)
        return History([0, 1], {})

    entry = experiments.Trainable("radio-smeared", run_radio)
    monkeypatch.setitem(experiments.TRAINABLE, "radio-smeared", entry)
    words = ["train", "radio-smeared", "--preset", "quick", "--steps", "2", "--folder", str(tmp_path)]
    assert command_line.main(words) == 0
    assert asked == {
        "name": "radio-smeared", "preset": "quick", "folder": str(tmp_path), "steps": 2, "resume": False,
    }  # fmt: skip
    assert "2 steps done" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        (["train", "deblendr"], "deblender-bounded"),
        (["train", "deblender", "--preset", "huge"], "laptop"),
        (["train", "deblender", "--data", "galaxyzoo:/no/such/folder"], "/no/such/folder"),
        (["train", "deblender", "--data", "hubbel"], "galaxyzoo:FOLDER"),
        (["train", "radio-plain", "--data", "hubble"], "takes no --data"),
        (["train", "radio-plain", "--start", "radio-plain"], "takes no --start"),
        (["train", "lightweight-64", "--features", "random"], "takes no --features"),
        (["train", "lightweight-64", "--data", "galaxyzoo:"], "hubble or galaxyzoo:FOLDER"),
    ],
)
def test_train_with_bad_input_is_one_sentence(words, said, capsys, tmp_path):
    assert command_line.main([*words, "--folder", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message
