"""Tests of galnb/__main__.py and of what `import galnb` costs."""

import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("words", [[], ["chekc"]], ids=["none", "unknown"])
def test_without_a_known_command_they_are_listed(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(words)
    assert stopped.value.code == 2 and "usage: python -m galnb" in (said := capsys.readouterr().err)
    assert all(name in said for name in ("check", "train", "audit", "sweep"))


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
    monkeypatch.setattr(command_line, "_run", lambda: "ran")
    monkeypatch.setattr(command_line, "_data", lambda: "read")


def test_check_says_what_to_do_about_foreign_torchvision(quick, monkeypatch, capsys):
    pytest.importorskip("torchvision")
    # importing it now fails, as a foreign build does
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    assert command_line.main(["check"]) == 1
    said = capsys.readouterr().out
    assert "! torch: " in said and "torchvision.ops" in said and "+ ran" in said
    assert said.splitlines()[-1].startswith("Install both together: pip install")


def test_check_names_missing_packages(quick, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "_NEEDED", ("galnb", "no-such-package"))
    assert command_line.main(["check"]) == 1
    said = capsys.readouterr().out
    assert "! versions: " in said and "no-such-package" in said and "+ ran" in said
    assert said.splitlines()[-1].endswith("pip install galnb")


@pytest.mark.parametrize("words", [["check"], ["train", "deblender-paper"], ["audit", "folder"]])
def test_without_torch_each_command_says_what_to_do(words):
    hide = "import sys; sys.modules['torch'] = None; import galnb.__main__ as m; "
    done = subprocess.run(
        [sys.executable, "-c", f"{hide}sys.exit(m.main({words}))"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == (1 if words == ["check"] else 2) and "Traceback" not in done.stderr
    assert "pip install" in done.stdout + done.stderr and "torch" in done.stdout + done.stderr


def test_a_failing_step_does_not_hide_the_others(quick, monkeypatch, capsys):
    def _data():
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(command_line, "_data", _data)
    assert command_line.main(["check"]) == 1
    said = capsys.readouterr().out
    assert "! data: RuntimeError: CUDA out of memory" in said and "numpy" in said and "+ ran" in said
    assert "All good" not in said and "Troubleshooting" in said.splitlines()[-1]


TINY = """
[tiny]
gan = "deblender"
minutes = 0.1
memory_gib = 1
batch_size = 2
images = 8
training = { steps = 2, save_every = 1 }
model = { size = 32, width = 4, root_blocks = 1, branch_blocks = 1, discriminator_width = 4, dense = 4 }
"""


def test_train_leaves_checkpoints_goes_on_and_replaces_only_when_told(tmp_path, capsys):
    from galnb.training import load_checkpoint

    file = tmp_path / "my.toml"
    file.write_text(TINY)
    words = ["train", str(file), "--preset", "quick", "--folder", str(tmp_path / "run")]
    final = tmp_path / "run" / "final.safetensors"
    assert command_line.main(words) == 0
    assert "2 steps done" in capsys.readouterr().out
    assert command_line.main([*words, "--steps", "3", "--resume"]) == 0
    assert load_checkpoint(final).step == 3
    assert command_line.main([*words, "--steps", "1"]) == 2
    assert "already holds a run" in (said := capsys.readouterr().err) and "--overwrite" in said
    assert load_checkpoint(final).step == 3
    assert command_line.main([*words, "--steps", "1", "--overwrite"]) == 0
    assert load_checkpoint(final).step == 1


def test_train_stopped_by_hand_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    from galnb import training

    def stopping(state, feed):
        if state.step == 1:
            raise KeyboardInterrupt
        return taken(state, feed)

    taken = training.take_step
    monkeypatch.setattr(training, "take_step", stopping)
    (tmp_path / "my.toml").write_text(TINY)
    words = ["train", str(tmp_path / "my.toml"), "--folder", str(tmp_path / "run")]
    assert command_line.main(words) == 130
    told = "stopped after step 1 of 2; resume=True (--resume), not overwrite, goes on from the last"
    assert capsys.readouterr().err.splitlines()[-1] == f"{told} resume point"
    monkeypatch.undo()
    assert command_line.main([*words, "--resume"]) == 0


@pytest.mark.parametrize(
    "words, said",
    [
        (["train", "deblendr"], "deblender-bounded"),
        (["train", "none.toml"], "none.toml cannot be read"),
        (["train", "deblender-paper", "--preset", "huge"], "laptop"),
        (["train", "deblender-paper", "--data", "galaxyzoo:/no/such/folder"], "/no/such/folder"),
        (["train", "deblender-paper", "--data", "hubbel"], "galaxyzoo:FOLDER"),
        (["train", "radio-plain", "--data", "hubble"], "unknown for radio-plain; give first"),
        (["train", "lightweight-64", "--features", "random"], "takes no features"),
        (["train", "lightweight-64", "--data", "galaxyzoo:"], "hubble or galaxyzoo:FOLDER"),
        (
            ["train", "lightweight-64", "--preset", "quick", "--start", "radio-plain"],
            "generator of other sizes",
        ),
        (["train", "01_images"], "has no gan"),
    ],
)
def test_train_with_bad_input_is_one_sentence(words, said, capsys, tmp_path):
    assert command_line.main([*words, "--folder", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message and not (tmp_path / "run").exists()
