"""Tests of the shipped weights against their index and cards."""

import hashlib
import json

import pytest
import torch

from galnb.gans import lightweight, radio
from galnb.training import checkpoints

FILES = sorted(checkpoints.WEIGHTS.glob("*.safetensors"))
INDEX = json.loads((checkpoints.WEIGHTS / "index.json").read_text())


def test_index_names_exactly_the_files():
    assert sorted(INDEX) == sorted(path.stem for path in FILES) and "deblender-bounded" in INDEX


def test_weights_stay_small():
    sizes = [path.stat().st_size for path in FILES]
    assert max(sizes) <= 6 * 2**20 and sum(sizes) <= 40 * 2**20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_the_one_of_the_index_and_works(path):
    about = INDEX[path.stem]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == about["sha256"]
    assert about["command"] in (checkpoints.WEIGHTS / "README.md").read_text()
    checkpoint = checkpoints.load_checkpoint(path.stem)
    assert checkpoint.step == about["steps"] > 0
    generator = torch.Generator().manual_seed(0)
    if about["gan"] == "radio":
        drawn = radio.generate(checkpoint.gan, torch.arange(4), generator=generator)
        assert drawn.shape == (4, 1, 64, 64) and drawn.amax(dim=(1, 2, 3)).min() > 0.1
        assert (drawn == 0).float().mean() > 0.5, "the sky of FIRST is exactly black"
        return
    if about["gan"] == "lightweight":
        drawn = lightweight.generate(checkpoint.gan, 8, generator=generator)
        middle, rim = drawn[..., 24:40, 24:40].mean(), drawn[..., :4].mean()
        assert drawn.shape == (8, 3, 64, 64) and middle > 2 * rim, "light in the middle of a dark sky"
        return
    images = torch.rand(2, 3, 80, 80, generator=generator)
    with torch.inference_mode():
        drawn = checkpoint.gan.generator(checkpoint.gan.prepare(images))
        assert drawn.shape == (2, 2, 3, 80, 80) and torch.isfinite(drawn).all()
        assert torch.isfinite(checkpoint.gan.discriminator(checkpoint.gan.prepare(images))).all()
