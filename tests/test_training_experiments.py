"""Named experiments: from a folder of images to checkpoints."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from galnb import images as readers
from galnb.blending import BLEND_RULES, FILLS
from galnb.images import sources
from galnb.training import experiments, load_checkpoint
from galnb.training.experiments import (
    _PRESETS,
    GanExperiment,
    class_numbers,
    experiment,
    run,
)
from tests.tiny_runs import TINY, one_thread  # noqa: F401

ROOT = Path(__file__).parents[1]
TABLES = experiments._read(experiments._FILE)
EVERY = [(name, preset) for name in TABLES for preset in _PRESETS]
SMALL_SIZES = {
    field: getattr(TINY, field) for field in ("size", "width", "root_blocks", "discriminator_width", "dense")
}


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """Six frames like Galaxy Zoo's, of which the last two are for testing."""
    monkeypatch.setattr(sources, "GALAXY_ZOO_TEST", 2)
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


def blends(sources, chosen):
    return experiments._blends(sources, chosen, 0)


def test_the_test_set_is_never_trained_on(zoo, small):
    chosen = replace(small("deblender-paper", "quick"), batch_size=64)
    test = readers.galaxy_zoo(zoo, size=16, crop=240, split="test").pixels
    train = readers.galaxy_zoo(zoo, size=16, crop=240, split="train").pixels
    central = blends({"galaxyzoo": str(zoo)}, chosen)(0)["galaxies"][:, 0]

    def found(bank):
        turned = torch.stack([torch.rot90(b, k, (-2, -1)) for b in (bank, bank.flip(-1)) for k in range(4)])
        return {
            (turned[:, i, None] - central).abs().amax((2, 3, 4)).min().item() < 0.02 for i in range(len(bank))
        }

    # a box average of bytes against an area average of floats: the same within 1/255
    assert found(train) == {True} and found(test) == {False}


def test_galaxies_are_turned_first_on_request(zoo, small):
    plain = replace(small("deblender-paper", "quick"), batch_size=4)
    source, turned = {"galaxyzoo": str(zoo)}, replace(plain, turn_first=1.0)
    assert not torch.equal(blends(source, turned)(0)["galaxies"], blends(source, plain)(0)["galaxies"])
    assert blends({**source, "hubble": ""}, turned)(0)["blended"].shape == (4, 3, 16, 16)
    with pytest.raises(ValueError, match="turn_first"):  # a stamp has no surroundings
        blends({"hubble": ""}, turned)


def test_one_blend_in_sixteen_is_hubbles(zoo, small, monkeypatch):
    stamps = readers.hubble_deep_field(size=16, limit=20)
    monkeypatch.setattr(readers, "hubble_deep_field", lambda *, size: stamps)  # read once
    for batch_size, hubble in ((4, 1), (32, 2)):
        chosen = replace(small("deblender-paper", "quick"), batch_size=batch_size)
        mixed = blends({"galaxyzoo": str(zoo), "hubble": ""}, chosen)(0)
        alone = blends({"hubble": ""}, replace(chosen, batch_size=hubble))(0)
        assert mixed["blended"].shape == (batch_size, 3, 16, 16)
        assert torch.equal(mixed["blended"][-hubble:], alone["blended"])


def test_a_run_leaves_checkpoints_that_tell_their_story_and_goes_on(zoo, small, tmp_path):
    options = {
        "data": f"galaxyzoo:{zoo}",
        "folder": tmp_path / "run",
        "progress": False,
        "features": "random",
    }
    history = run("deblender-paper", "quick", steps=4, **options)
    assert history.steps == [0, 1, 2, 3] and "burn_in/total" in history.losses
    kept = load_checkpoint(tmp_path / "run" / "final.safetensors")
    story = {name: value for name, value in kept.experiment.items() if name != "training"}
    assert story == {
        "name": "deblender-paper", "preset": "quick", "data": "galaxyzoo", "split": "train",
        "batch_size": 4, "images": 0, "rule": "max", "fill": "zeros",
        "turn_first": 0.0, "features": "random",
    }  # fmt: skip
    assert kept.experiment["training"]["steps"] == 4 and str(tmp_path) not in str(kept.experiment)
    assert run("deblender-paper", "quick", steps=6, resume=True, **options).steps == list(range(6))


def test_a_run_can_begin_with_the_weights_of_another(zoo, small, tmp_path, monkeypatch):
    options = {"data": f"galaxyzoo:{zoo}", "progress": False}
    run("deblender-paper", "quick", steps=2, folder=tmp_path / "first", **options)
    first = tmp_path / "first" / "final.safetensors"
    begun = []
    monkeypatch.setattr(experiments, "train", lambda gan, *_, **__: begun.append(gan))
    run("deblender-paper", "quick", steps=2, folder=tmp_path / "second", start=first, **options)
    kept = load_checkpoint(first).gan
    for part in ("generator", "discriminator"):
        mine, other = getattr(begun[0], part).state_dict(), getattr(kept, part).state_dict()
        assert all(torch.equal(mine[name], other[name]) for name in other)
    with pytest.raises(ValueError, match=r"first.*holds a generator of other sizes .* same name"):
        run("deblender-bounded", "quick", folder=tmp_path / "third", start=first, **options)
    with pytest.raises(ValueError, match="name of shipped weights 'nothing' is unknown"):
        run("deblender-paper", "quick", folder=tmp_path / "third", start="nothing", **options)
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *(("deblender-paper", data) for data in ("cosmos", "galaxyzoo", "hubble,cosmos", "galaxyzoo:")),
        *(("deblender-paper", data) for data in ("hubble:x", "hubble,hubble", "galaxyzoo:a,b", "first")),
        *(("lightweight-64", data) for data in ("cosmos", "galaxyzoo:", "galaxyzoo:a,hubble", "first")),
        *(("radio-plain", data) for data in ("hubble", "first:x", "galaxyzoo:a")),
    ],
)
def test_unknown_data_are_refused_with_the_known_ones(name, data, tmp_path):
    known = {"deblender-paper": "hubble or galaxyzoo:FOLDER or galaxyzoo:FOLDER,hubble",
             "lightweight-64": "hubble or galaxyzoo:FOLDER", "radio-plain": "first"}  # fmt: skip
    with pytest.raises(ValueError, match=f"are unknown for {name}; give {known[name]}$"):
        run(name, "quick", data=data, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_does_not_belong_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"experiment 'vanilla' is unknown; known are 01_images, .*, deb"):
        run("vanilla", "quick", folder=tmp_path)
    with pytest.raises(ValueError, match="'01_images' has no gan to train; give deblender-bounded"):
        run("01_images", "quick", folder=tmp_path)
    with pytest.raises(ValueError, match="preset 'huge' is unknown; known are quick, laptop, gpu"):
        run("deblender-paper", "huge", folder=tmp_path)
    with pytest.raises(ValueError, match="radio-plain takes no features"):
        run("radio-plain", "quick", folder=tmp_path, features="random")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        run("deblender-paper", "quick", data=f"galaxyzoo:{tmp_path / 'nowhere'}", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def my(folder, text):
    (folder / "my.toml").write_text(text, encoding="utf-8")
    return str(folder / "my.toml")


def test_a_file_of_yours_is_laid_over_what_it_is_like(tmp_path):
    small = "model = { width = 8 }\nquick = { training = { steps = 7 }, batch_size = 2 }\n"
    file = my(tmp_path, f'[mine]\nlike = "deblender-paper"\nminutes = 2\nturn_first = 0.5\n{small}')
    like, mine = experiment("deblender-paper", "quick"), experiment(file, "quick")
    assert mine == replace(
        like, minutes=2, batch_size=2, turn_first=0.5, model=replace(like.model, width=8),
        training=replace(like.training, steps=7),
    )  # fmt: skip
    assert experiment(file, "gpu").training == experiment("deblender-paper", "gpu").training
    both = my(tmp_path, '[a]\nlike = "radio-plain"\nlaptop.batch_size = 2\n[b]\nlike = "a"\nimages = 9\n')
    assert experiment(f"{both}:b", "gpu") == replace(experiment("radio-plain", "gpu"), images=9)
    assert experiment(f"{both}:b", "laptop").batch_size == 2 and experiment(both, "gpu").images == 0
    named = my(tmp_path, '[my-gpu]\nlike = "10_radio_gan"\n[b]\nlike = "my-gpu"\nminutes = 3\n')
    assert experiment(f"{named}:b", "quick") == replace(experiment("10_radio_gan", "quick"), minutes=3)
    first = my(
        tmp_path, '[first]\nminutes = 1\nmemory_gib = 1\ngan = "vanilla"\nbatch_size = 4\ntraining = {}\n'
    )
    assert type(experiment(first, "quick").model).__name__ == "VanillaConfig"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            'like = "deblender-sum"',
            "my.toml at preset 'quick': .like. is 'deblender-sum'; expected a table of fields",
        ),
        ("[a]\nsteps = = 3", "my.toml at preset 'quick': .*line 2"),
        ("", "experiment '' is unknown; known are"),
        ('[a]\nlike = "deblendr"', r"my.toml at preset 'quick': like = 'deblendr' is unknown"),
        ('[a]\nlike = "a"', "like = 'a' is unknown or leads back"),
        ('[a]\nlike = "phantom"\nimage = 3', "Experiment has no field image; known are min"),
        ('[a]\nlike = "phantom"\ntraining.stepz = 3', "TrainingConfig has no field stepz"),
        ('[a]\nlike = "phantom"\nmodel.width = "8"', "width='8': expected a whole number"),
        ('[a]\nlike = "phantom"\nmodel.width = 8.0', "width=8.0: expected a whole number"),
        ('[a]\nlike = "phantom"\nmodel.width = true', "width=True: expected a whole number"),
        ('[a]\nlike = "phantom"\nmodel = 3', "DeblenderConfig: got int, expected Mapping; a table"),
        ('[a]\nlike = "phantom"\nmodel.widths = [8, "8"]', "widths='8': expected a whole number"),
        ('[a]\nlike = "phantom"\ntraining.stages = [["final", 2.0]]', "stages .*a share in"),
        ('[a]\nlike = "phantom"\ntraining.learning_rate = -1', "learning_rate=-1: expected"),
        ('[a]\nlike = "lightweight-64"\nmodel.augmentation.hue = "red"', "hue is 'red'"),
        ('[a]\ngan = "stylegan"', "gan 'stylegan' is unknown; known are deblender, light"),
        (
            '[a]\ngan = "radio"\nminutes = 1',
            "GanExperiment cannot be built .*missing 3 .*'memory_gib', 'training', and 'batch_size'",
        ),
        ("[a]\nquick = 3", ".a. is .*; expected a table of fields, and such a table at 'quick'"),
    ],
)
def test_faults_of_a_file_are_named_with_their_table_and_field(tmp_path, text, told):
    with pytest.raises(ValueError, match=told):
        experiment(my(tmp_path, text), "quick")


def test_missing_files_and_tables_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.toml cannot be read .*give its path"):
        experiment(str(tmp_path / "none.toml"), "quick")
    with pytest.raises(
        ValueError, match=r"my\.toml:c at preset 'quick': experiment 'c' is unknown; known are a, b"
    ):
        experiment(my(tmp_path, "[a]\n[b]") + ":c", "quick")


def test_a_file_of_yours_is_trained(zoo, tmp_path):
    sizes = "size = 16, width = 2, root_blocks = 1, discriminator_width = 2, dense = 4"
    file = my(tmp_path, f'[mine]\nlike = "deblender-paper"\nbatch_size = 2\nmodel = {{ {sizes} }}\n')
    options = {"folder": tmp_path / "run", "progress": False, "data": f"galaxyzoo:{zoo}"}
    assert run(file, "quick", steps=2, **options).steps == [0, 1]
    kept = load_checkpoint(tmp_path / "run" / "final.safetensors")
    assert kept.experiment["name"] == "mine" and kept.gan.config.width == 2
    with pytest.raises(ValueError, match="already holds a run"):
        run(file, "quick", steps=2, **options)
    assert run(file, "quick", steps=1, overwrite=True, **options).steps == [0]


@pytest.mark.parametrize("judge", [{"discriminator_width": 8}, {"discriminator_kernel": 4}])
def test_a_judge_of_another_make_begins_anew(zoo, small, tmp_path, monkeypatch, judge):
    options = {"data": f"galaxyzoo:{zoo}", "progress": False, "steps": 1}
    run("deblender-paper", "quick", folder=tmp_path / "first", **options)
    first = tmp_path / "first" / "final.safetensors"
    plan = small("deblender-paper", "quick")
    other = replace(plan, model=replace(plan.model, **judge))
    monkeypatch.setattr(experiments, "experiment", lambda name, preset: other)
    begun = []
    fresh = experiments.GANS["deblender"][1](other.model).discriminator.state_dict()
    monkeypatch.setattr(experiments, "train", lambda gan, *a, **k: begun.append((gan, k["experiment"])))
    run("deblender-paper", "quick", folder=tmp_path / "second", start=first, **options)
    (gan, story), given = begun[0], load_checkpoint(first).gan.generator.state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in gan.generator.state_dict().items())
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in gan.discriminator.state_dict().items())
    assert (story["start"], story["start_parts"]) == ("final", "generator")


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
    history = run("radio-plain", "quick", folder=tmp_path / "run", steps=2, progress=False)
    assert history.steps == [0, 1] and "discriminator/wasserstein" in history.losses
    assert first == [{"split": "train", "size": 32, "limit": 400}]  # twice the size, for turning
    kept = load_checkpoint(tmp_path / "run" / "final.safetensors")
    story = {name: value for name, value in kept.experiment.items() if name != "training"}
    assert story == {
        "name": "radio-plain", "preset": "quick", "data": "first", "split": "train", "batch_size": 4,
        "images": 400,
    }  # fmt: skip
    options = {"folder": tmp_path / "run", "steps": 4, "progress": False, "resume": True}
    assert run("radio-plain", "quick", **options).steps == [0, 1, 2, 3]
    assert load_checkpoint(tmp_path / "run" / "final.safetensors").step == 4


def test_a_smeared_run_is_smeared_in_its_file(first, tmp_path):
    run("radio-smeared", "quick", folder=tmp_path, steps=1, progress=False)
    kept = load_checkpoint(tmp_path / "final.safetensors")
    assert kept.gan.config.sigma == 1.0
    assert [type(layer).__name__ for layer in kept.gan.generator.body][-2:] == ["Smear", "Hardtanh"]


def test_class_numbers_follow_the_published_order():
    """FRI 0, FRII 1, Compact 2, Bent 3: Griese et al. 2023."""
    assert class_numbers(("Bent", "FRI", "Compact", "FRII")).tolist() == [3, 0, 2, 1]
    assert class_numbers(()).dtype == torch.long
    with pytest.raises(ValueError, match=r"class 'FR0' is unknown; known are FRI, FRII"):
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
    assert run("lightweight-64", "quick", steps=2, **options).steps == [0, 1]
    assert torch.equal(seen[0], readers.galaxy_zoo(zoo, size=64, crop=240, split="train").pixels)
    kept = load_checkpoint(tmp_path / "run" / "final.safetensors")
    assert kept.gan.config.augmentation.hue == 0.25 and kept.step == 2
    story = {name: value for name, value in kept.experiment.items() if name != "training"}
    assert story == {
        "name": "lightweight-64", "preset": "quick", "data": "galaxyzoo", "split": "train", "batch_size": 2,
        "images": 0,
    }  # fmt: skip
    assert run("lightweight-64", "quick", steps=3, resume=True, **options).steps == [0, 1, 2]


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_every_experiment_is_complete_and_frozen(name, preset):
    chosen = experiment(name, preset)
    assert chosen.minutes > 0 and chosen.memory_gib > 0 and chosen.images >= 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.minutes = 0
    if isinstance(chosen, GanExperiment):
        assert chosen.rule in BLEND_RULES and chosen.fill in FILLS
        assert chosen.training.burn_in < chosen.training.steps
        assert chosen.training.warmup < chosen.training.steps
        # a paper-sized resume point takes 0.25 GB: not a thousand times
        assert chosen.training.save_every <= chosen.training.steps <= 200 * chosen.training.save_every
        assert chosen.training.stages[-1][1] == 1.0
    if name.startswith("deblender"):
        stages = [stage for stage, _ in chosen.training.stages]
        wanted = ["early", "middle", "final"]
        assert [stage for stage in stages if stage in wanted] == wanted


def test_gpu_radio_is_the_published_one():
    """Rustige et al. 2023: sizes, losses and schedule."""
    chosen = experiment("radio-plain", "gpu")
    model, training = chosen.model, chosen.training
    assert (model.size, model.width, model.latent, model.penalty) == (128, 64, 100, 10)
    assert (chosen.batch_size, training.betas, training.discriminator_steps) == (300, (0, 0.9), 5)
    assert training.steps * training.discriminator_steps == 100_000
    assert training.learning_rate == training.discriminator_learning_rate == 1e-4


@pytest.mark.parametrize("preset", _PRESETS)
def test_smeared_radio_differs_by_its_smearing_alone(preset):
    plain, smeared = (experiment(f"radio-{kind}", preset) for kind in ("plain", "smeared"))
    assert plain.model.sigma == 0 < smeared.model.sigma
    assert dataclasses.replace(smeared, model=plain.model) == plain


@pytest.mark.parametrize("name", sorted(TABLES))
def test_quick_promises_a_minute_and_three_gibibytes(name):
    chosen = experiment(name, "quick")
    assert chosen.minutes <= 1 and chosen.memory_gib <= 3
    assert experiment(name, "laptop").memory_gib <= 6


def test_gpu_paper_is_the_papers():
    """Reiman & Goehre 2019 and its code: sizes, losses and schedule."""
    chosen = experiment("deblender-paper", "gpu")
    model, training = chosen.model, chosen.training
    assert (model.generator, model.width, model.root_blocks, model.branch_blocks) == ("branched", 64, 10, 6)
    assert (model.discriminator_width, model.dense, model.size, model.count) == (64, 1024, 80, 2)
    assert (model.reconstruction, model.adversarial_weight) == ("mse", 1e-3)
    assert (training.steps - training.burn_in, training.burn_in) == (200_000, 2_000)
    assert training.learning_rate == training.discriminator_learning_rate == 1e-4
    assert (training.betas, training.schedule, training.ema) == ((0.9, 0.999), "drop", 0)
    assert (chosen.rule, chosen.fill) == ("max", "zeros")


@pytest.mark.parametrize("preset", _PRESETS)
def test_a_name_means_one_architecture_at_every_preset(preset):
    assert experiment("deblender-paper", preset).model.generator == "branched"
    assert experiment("deblender-bounded", preset).model.generator == "gated"


def test_every_notebook_is_known():
    assert not {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} - TABLES.keys()


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'99_x' is unknown; known are 01_images"):
        experiment("99_x", "quick")
    with pytest.raises(ValueError, match="preset 'fast' is unknown; known are quick, laptop, gpu"):
        experiment("01_images", "fast")
