"""Named experiments: from a folder of images to checkpoints."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from galnb import images as readers
from galnb.training import experiments
from galnb.training.checkpoints import load_checkpoint
from galnb.training.experiments import (
    TRAINABLE,
    class_numbers,
    deblender_batches,
    galaxy_zoo_frames,
    run_deblender,
    run_lightweight,
    run_radio,
)
from galnb.training.presets import experiment
from tests.tiny_runs import TINY, one_thread  # noqa: F401

SMALL_SIZES = {
    field: getattr(TINY, field) for field in ("size", "width", "root_blocks", "discriminator_width", "dense")
}


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """Six frames like Galaxy Zoo's, of which the last two are for testing."""
    monkeypatch.setattr(readers, "GALAXY_ZOO_TEST", 2)
    pixels = np.random.default_rng(0)
    folder = tmp_path / "zoo"
    folder.mkdir()
    for index in range(6):
        coarse = Image.fromarray(pixels.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        coarse.resize((424, 424), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg")
    return folder


@pytest.fixture
def small(monkeypatch):
    """The quick preset with networks of a few hundred weights."""

    def chosen(name, preset):
        full = experiment(name, preset)
        return replace(full, model=replace(full.model, **SMALL_SIZES), batch_size=4)

    monkeypatch.setattr(experiments, "experiment", chosen)
    return chosen


@pytest.mark.parametrize(("split", "limit"), [("train", None), ("train", 3), ("test", None), (None, 5)])
def test_frames_are_the_readers_images_in_bytes(zoo, split, limit):
    frames = galaxy_zoo_frames(zoo, split=split, limit=limit)
    wanted = readers.galaxy_zoo(zoo, size=424, crop=424, split=split, limit=limit).pixels
    assert frames.dtype == torch.uint8
    assert torch.equal(frames, (wanted * 255).round().byte())


def test_the_test_set_is_never_trained_on(zoo, small):
    chosen = replace(small("deblender-paper", "quick"), batch_size=64)
    test = readers.galaxy_zoo(zoo, size=16, crop=240, split="test").pixels
    train = readers.galaxy_zoo(zoo, size=16, crop=240, split="train").pixels
    central = deblender_batches(f"galaxyzoo:{zoo}", chosen, seed=0)(0)["galaxies"][:, 0]

    def found(bank):
        turned = torch.stack([torch.rot90(b, k, (-2, -1)) for b in (bank, bank.flip(-1)) for k in range(4)])
        return {
            (turned[:, i, None] - central).abs().amax((2, 3, 4)).min().item() < 0.02 for i in range(len(bank))
        }

    # a box average of bytes against an area average of floats: the same within 1/255
    assert found(train) == {True} and found(test) == {False}


def test_one_blend_in_sixteen_is_hubbles(zoo, small, monkeypatch):
    stamps = readers.hubble_deep_field(size=16, limit=20)
    monkeypatch.setattr(readers, "hubble_deep_field", lambda *, size: stamps)  # read once
    for batch_size, hubble in ((4, 1), (32, 2)):
        chosen = replace(small("deblender-paper", "quick"), batch_size=batch_size)
        mixed = deblender_batches(f"galaxyzoo:{zoo},hubble", chosen, seed=0)(0)
        alone = deblender_batches("hubble", replace(chosen, batch_size=hubble), seed=0)(0)
        assert mixed["blended"].shape == (batch_size, 3, 16, 16)
        assert torch.equal(mixed["blended"][-hubble:], alone["blended"])


def test_a_run_leaves_checkpoints_that_tell_their_story_and_goes_on(zoo, small, tmp_path):
    options = {
        "data": f"galaxyzoo:{zoo}",
        "folder": tmp_path / "run",
        "progress": False,
        "features": "random",
    }
    history = run_deblender("deblender", "quick", steps=4, **options)
    assert history.steps == [0, 1, 2, 3] and "burn_in/total" in history.losses
    kept = load_checkpoint(tmp_path / "run" / "final.safetensors")
    story = {name: value for name, value in kept.experiment.items() if name != "training"}
    assert story == {
        "name": "deblender-paper", "preset": "quick", "data": "galaxyzoo", "batch_size": 4, "images": 0,
        "rule": "max", "fill": "zeros", "features": "random",
    }  # fmt: skip
    assert kept.experiment["training"]["steps"] == 4 and str(tmp_path) not in str(kept.experiment)
    assert run_deblender("deblender", "quick", steps=6, resume=True, **options).steps == list(range(6))


def test_a_run_can_begin_with_the_weights_of_another(zoo, small, tmp_path, monkeypatch):
    options = {"data": f"galaxyzoo:{zoo}", "progress": False}
    run_deblender("deblender", "quick", steps=2, folder=tmp_path / "first", **options)
    first = tmp_path / "first" / "final.safetensors"
    begun = []
    monkeypatch.setattr(experiments, "train", lambda gan, *_, **__: begun.append(gan))
    run_deblender("deblender", "quick", steps=2, folder=tmp_path / "second", start=first, **options)
    kept = load_checkpoint(first).gan
    for part in ("generator", "discriminator"):
        mine, other = getattr(begun[0], part).state_dict(), getattr(kept, part).state_dict()
        assert all(torch.equal(mine[name], other[name]) for name in other)
    with pytest.raises(ValueError, match=r"first.*holds a generator of other sizes .* same name"):
        run_deblender("deblender-bounded", "quick", folder=tmp_path / "third", start=first, **options)
    with pytest.raises(ValueError, match="no shipped weights are named 'nothing'"):
        run_deblender("deblender", "quick", folder=tmp_path / "third", start="nothing", **options)
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    "data",
    ["cosmos", "galaxyzoo", "hubble,cosmos", "galaxyzoo:", "hubble:x", "hubble,hubble", "galaxyzoo:a,b"],
)
def test_unknown_data_are_refused(data, small):
    with pytest.raises(
        ValueError, match="are unknown; give hubble, galaxyzoo:FOLDER or galaxyzoo:FOLDER,hubble"
    ):
        deblender_batches(data, small("deblender-paper", "quick"), seed=0)


def test_unknown_names_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'vanilla' cannot be trained here; known are deblender, .*bounded"):
        run_deblender("vanilla", "quick", data="hubble", folder=tmp_path)
    with pytest.raises(ValueError, match="preset 'huge' is unknown"):
        run_deblender("deblender", "huge", data="hubble", folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        run_deblender("deblender", "quick", data=f"galaxyzoo:{tmp_path / 'nowhere'}", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_trainable_name_has_its_presets():
    kinds = {"run_deblender": "count", "run_radio": "sigma", "run_lightweight": "augmentation"}
    for entry in TRAINABLE.values():
        for preset in ("quick", "laptop", "gpu"):
            assert hasattr(experiment(entry.experiment, preset).model, kinds[entry.run.__name__])


@pytest.fixture
def first(monkeypatch):
    """Twelve images in place of FIRST; what was asked of the reader is kept."""
    asked = []

    def first_radio(**options):
        asked.append(options)
        pixels = torch.rand(12, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        classes = tuple(readers.RADIO_CLASSES[index % 4] for index in range(12))
        return readers.ImageSet(pixels, tuple(map(str, range(12))), "test", classes)

    def chosen(name, preset):
        full = experiment(name, preset)
        return replace(full, model=replace(full.model, size=16, width=4, latent=6), batch_size=4)

    monkeypatch.setattr(readers, "first_radio", first_radio)
    monkeypatch.setattr(experiments, "experiment", chosen)
    return asked


def test_a_radio_run_leaves_checkpoints_and_goes_on(first, tmp_path):
    history = run_radio("radio", "quick", folder=tmp_path / "run", steps=2, progress=False)
    assert history.steps == [0, 1] and "discriminator/wasserstein" in history.losses
    assert first == [{"split": "train", "size": 32, "limit": 400}]  # twice the size, for turning
    kept = load_checkpoint(tmp_path / "run" / "final.safetensors")
    story = {name: value for name, value in kept.experiment.items() if name != "training"}
    assert story == {
        "name": "radio-plain", "preset": "quick", "data": "first", "split": "train", "batch_size": 4,
        "images": 400,
    }  # fmt: skip
    options = {"folder": tmp_path / "run", "steps": 4, "progress": False, "resume": True}
    assert run_radio("radio", "quick", **options).steps == [0, 1, 2, 3]
    assert load_checkpoint(tmp_path / "run" / "final.safetensors").step == 4


def test_a_smeared_run_is_smeared_in_its_file(first, tmp_path):
    run_radio("radio-smeared", "quick", folder=tmp_path, steps=1, progress=False)
    kept = load_checkpoint(tmp_path / "final.safetensors")
    assert kept.gan.config.sigma == 1.0
    assert [type(layer).__name__ for layer in kept.gan.generator.body][-2:] == ["Smear", "Hardtanh"]


def test_radio_and_deblender_runs_are_not_mixed_up(tmp_path):
    with pytest.raises(ValueError, match="'deblender' cannot be trained here; known are radio, radio-plain"):
        run_radio("deblender", "quick", folder=tmp_path)


def test_class_numbers_follow_the_published_order():
    """FRI 0, FRII 1, Compact 2, Bent 3: Griese et al. 2023."""
    assert class_numbers(("Bent", "FRI", "Compact", "FRII")).tolist() == [3, 0, 2, 1]
    assert class_numbers(()).dtype == torch.long
    with pytest.raises(ValueError, match=r"classes \['FR0'\] are unknown; known are FRI, FRII"):
        class_numbers(("FRI", "FR0"))


def test_a_lightweight_run_leaves_checkpoints_and_never_sees_the_test_images(zoo, tmp_path, monkeypatch):
    def chosen(name, preset):
        full = experiment(name, preset)
        return replace(full, model=replace(full.model, width=2, widest=8, latent=4), batch_size=2)

    monkeypatch.setattr(experiments, "experiment", chosen)
    seen, image_batches = [], experiments.image_batches
    monkeypatch.setattr(
        experiments, "image_batches", lambda images, **o: seen.append(images) or image_batches(images, **o)
    )
    options = {"data": f"galaxyzoo:{zoo}", "folder": tmp_path / "run", "progress": False}
    assert run_lightweight("lightweight", "quick", steps=2, **options).steps == [0, 1]
    assert torch.equal(seen[0], readers.galaxy_zoo(zoo, size=64, crop=240, split="train").pixels)
    kept = load_checkpoint(tmp_path / "run" / "final.safetensors")
    assert kept.gan.config.augmentation.hue == 0.25 and kept.step == 2
    story = {name: value for name, value in kept.experiment.items() if name != "training"}
    assert story == {
        "name": "lightweight-64", "preset": "quick", "data": "galaxyzoo", "split": "train", "batch_size": 2,
        "images": 0,
    }  # fmt: skip
    assert run_lightweight("lightweight", "quick", steps=3, resume=True, **options).steps == [0, 1, 2]
    with pytest.raises(ValueError, match="give hubble or galaxyzoo:FOLDER"):
        run_lightweight("lightweight", "quick", data="cosmos", folder=tmp_path)
