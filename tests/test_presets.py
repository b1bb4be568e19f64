"""Presets: every notebook has all three, and none contradicts what it promises."""

import dataclasses
from pathlib import Path

import pytest

from galnb.blending import BLEND_RULES, FILLS
from galnb.gans.deblender import DeblenderConfig
from galnb.training import TrainingConfig
from galnb.training.experiments import TRAINABLE
from galnb.training.presets import EXPERIMENTS, PRESETS, DeblenderExperiment, GanExperiment, experiment

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
EVERY = [(name, preset) for name in EXPERIMENTS for preset in PRESETS]


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_every_experiment_is_complete_and_frozen(name, preset):
    chosen = experiment(name, preset)
    assert chosen.minutes > 0 and chosen.memory_gib > 0 and chosen.images >= 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.minutes = 0
    if isinstance(chosen, DeblenderExperiment):
        assert chosen.rule in BLEND_RULES and chosen.fill in FILLS
    if isinstance(chosen, (DeblenderExperiment, GanExperiment)):
        assert chosen.training.burn_in < chosen.training.steps
        assert chosen.training.warmup < chosen.training.steps
        # a paper-sized resume point takes 0.25 GB: not a thousand times
        assert chosen.training.save_every <= chosen.training.steps <= 200 * chosen.training.save_every
        assert chosen.training.stages[-1][1] == 1.0
    if name.startswith("deblender"):
        assert [stage for stage, _ in chosen.training.stages] == ["early", "middle", "final"]


def test_gpu_radio_is_the_published_one():
    """Rustige et al. 2023: sizes, losses and schedule."""
    chosen = experiment("radio-plain", "gpu")
    model, training = chosen.model, chosen.training
    assert (model.size, model.width, model.latent, model.penalty) == (128, 64, 100, 10)
    assert (chosen.batch_size, training.betas, training.discriminator_steps) == (300, (0, 0.9), 5)
    assert training.steps * training.discriminator_steps == 100_000
    assert training.learning_rate == training.discriminator_learning_rate == 1e-4


@pytest.mark.parametrize("preset", PRESETS)
def test_smeared_radio_differs_by_its_smearing_alone(preset):
    plain, smeared = (experiment(f"radio-{kind}", preset) for kind in ("plain", "smeared"))
    assert plain.model.sigma == 0 < smeared.model.sigma
    assert dataclasses.replace(smeared, model=plain.model) == plain


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
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


@pytest.mark.parametrize("preset", PRESETS)
def test_a_name_means_one_architecture_at_every_preset(preset):
    assert experiment("deblender-paper", preset).model.generator == "branched"
    assert experiment("deblender-bounded", preset).model.generator == "gated"


def test_defaults_are_valid():
    assert DeblenderConfig().count == 2 and TrainingConfig().steps == 1000


def test_notebooks_and_trainable_names_are_known():
    missing = {path.stem for path in NOTEBOOKS.glob("*.ipynb")} - EXPERIMENTS.keys()
    assert not missing
    assert {entry.experiment for entry in TRAINABLE.values()} <= EXPERIMENTS.keys()


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no experiment is named '99_x'; known are \['01_images'"):
        experiment("99_x", "quick")
    with pytest.raises(ValueError, match="preset 'fast' is unknown; known are quick, laptop, gpu"):
        experiment("01_images", "fast")
