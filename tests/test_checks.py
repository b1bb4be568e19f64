"""Tests of galnb/checks.py: what a beginner gives by mistake meets a sentence, at every public door."""

import pytest
import torch

from galnb import blending, classifiers, evaluation, explorer, mosaic, phantom, plots, relevance, smearing
from galnb.blending import batches, fills
from galnb.checks import check_floats, check_kind
from galnb.gans import deblender, lightweight
from galnb.images import ImageSet, check_images
from galnb.smearing.histograms import score
from galnb.training import TrainingConfig, load_checkpoint, save_checkpoint, train
from galnb.training.experiments import experiment


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


PIXELS = torch.rand(4, 3, 32, 32, generator=draw())
GREY = PIXELS.mean(1, keepdim=True)
LABELS = torch.arange(4)
SMALL = {"size": 32, "width": 4, "root_blocks": 1, "branch_blocks": 1, "discriminator_width": 4, "dense": 4}
GAN = deblender.deblender(deblender.DeblenderConfig(discriminator_norm="group", **SMALL))
BLENDS = blending.make_blends(PIXELS, generator=draw())
BOXES = ((0, 0, 8), (8, 8, 8))
JUDGE, ONE = GAN.discriminator, TrainingConfig(steps=1)


def first(images):
    """One image of a batch; what is no tensor stays as it is."""
    return images[0] if isinstance(images, torch.Tensor) else images


DOORS = {
    "make_blends": lambda x: blending.make_blends(x, generator=draw()),
    "partners": lambda x: blending.make_blends(PIXELS, partners=x, generator=draw()),
    "fixed_shift_blends": lambda x: blending.fixed_shift_blends(x, shift=5, generator=draw()),
    "segment": lambda x: blending.segment(x, noise=0.1, generator=draw()),
    "blend_batches": lambda x: batches.blend_batches(x, batch_size=2, seed=0),
    "image_batches": lambda x: batches.image_batches(x, batch_size=2, seed=0),
    "labelled_batches": lambda x: batches.labelled_batches(x, LABELS, batch_size=2, seed=0, size=24),
    "train": lambda x: train(GAN, x, ONE),
    "sky_tile": lambda x: fills.sky_tile(x, generator=draw()),
    "restore_noise": lambda x: fills.restore_noise(x, PIXELS, generator=draw()),
    "deblend": lambda x: deblender.deblend(GAN, x),
    "relevance": lambda x: relevance.relevance(JUDGE, x, rule="epsilon"),
    "polarized_relevance": lambda x: relevance.polarized_relevance(JUDGE, x, reading="composite"),
    "examine": lambda x: explorer.examine(GAN, first(x), reading="composite", generator=draw()),
    "compose": lambda x: explorer.compose(PIXELS[0], first(x), explorer.Placement(), generator=draw()),
    "psnr": lambda x: evaluation.psnr(PIXELS, x, data_range=1),
    "ssim": lambda x: evaluation.ssim(PIXELS, x, data_range=1),
    "nearest": lambda x: evaluation.nearest(x, PIXELS),
    "judge_figures": lambda x: evaluation.judge_figures(GAN, BLENDS.galaxies, x),
    "detect": lambda x: evaluation.detect(first(x)),
    "boundary_contrast": lambda x: phantom.boundary_contrast(x, BLENDS.footprints[:, 1]),
    "footprint": lambda x: phantom.boundary_contrast(PIXELS, x),
    "edge_profile": lambda x: phantom.edge_profile(x, BLENDS.footprints[:, 1]),
    "background_histograms": lambda x: phantom.background_histograms(first(x), BOXES),
    "probe_fill": lambda x: phantom.probe_fill(JUDGE, {"a": PIXELS, "b": x}),
    "histograms": lambda x: smearing.histograms(x),
    "score": lambda x: score(x, GREY),
    "relative_mae": lambda x: smearing.relative_mae(x, torch.ones(16)),
    "align": lambda x: smearing.align(x),
    "best_pairs": lambda x: smearing.best_pairs(x, GREY, min_active=1),
    "mosaic": lambda x: mosaic.compose(x, size=128, placements=2, generator=draw()),
    "train_classifier": lambda x: classifiers.train_classifier(
        x, LABELS, (GREY, LABELS), classifiers.ClassifierConfig(steps=1), size=32
    ),
    "scores": lambda x: classifiers.scores(classifiers.CLASSIFIERS["CNN"](32), x, LABELS),
    "show_image": lambda x: plots.show_image(first(x)),
    "overlay": lambda x: plots.overlay(PIXELS[0], first(x)),
}
SLIPS = {
    "channels last": PIXELS.movedim(1, -1),
    "list": list(PIXELS),
    "ImageSet": ImageSet(PIXELS, tuple("abcd"), "by hand"),
    "array": PIXELS.numpy(),
    "bytes": PIXELS.mul(255).byte(),
    "NaN": PIXELS.where(PIXELS > 0.5, torch.nan),
    "nothing": None,
}
MAY = {  # whole sentences of their own, or no slip there
    ("partners", "nothing"), ("blend_batches", "bytes"), ("background_histograms", "channels last"),
}  # fmt: skip


@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_with_a_sentence(door, slip):
    if (door, slip) in MAY:
        return
    with pytest.raises(ValueError, match=r"got|expected|does not take|needs|not finite") as refused:
        DOORS[door](SLIPS[slip])
    place = refused.traceback[-1].path
    assert "galnb" in place.parts and "site-packages" not in place.parts, "an error of another library"


@pytest.mark.parametrize(
    "act",
    [
        lambda gan: relevance.relevance(gan, PIXELS, rule="epsilon"),
        lambda gan: relevance.polarized_relevance(gan, PIXELS),
        lambda gan: phantom.probe_fill(gan, {"a": PIXELS, "b": PIXELS}),
    ],
)
@pytest.mark.parametrize("given", [GAN, "deblender-bounded", None])
def test_where_a_network_is_asked_for_no_gan_passes(act, given):
    with pytest.raises(ValueError, match=r"model: got .*, expected Module; .*gan\.discriminator"):
        act(given)


@pytest.mark.parametrize(
    "act",
    [
        lambda gan: train(gan, batches.blend_batches(PIXELS, batch_size=2, seed=0), ONE),
        lambda gan: save_checkpoint("a.safetensors", gan, experiment={}, step=1),
        lambda gan: explorer.examine(gan, PIXELS[0], reading="composite", generator=draw()),
        lambda gan: evaluation.judge_figures(gan, BLENDS.galaxies, BLENDS.galaxies),
        lambda gan: deblender.deblend(gan, PIXELS),
        lambda gan: lightweight.generate(gan, 1, generator=draw()),
    ],
)
def test_where_a_gan_is_asked_for_its_checkpoint_is_told_apart(act):
    with pytest.raises(ValueError, match=r"Checkpoint.*\.gan"):
        act(load_checkpoint("lightweight-64"))


def test_settings_of_another_kind():
    feed = batches.blend_batches(PIXELS, batch_size=2, seed=0)
    plan = experiment("deblender-bounded", "quick")
    with pytest.raises(ValueError, match=r"config: got GanExperiment, expected TrainingConfig; .*\.training"):
        train(GAN, feed, plan)
    with pytest.raises(ValueError, match=r"batches: got Tensor, expected a function such as .*blend_batches"):
        train(GAN, PIXELS, ONE)
    grey = batches.blend_batches(GREY, batch_size=2, seed=0)
    with pytest.raises(ValueError, match=r"\(2, 1, 32, 32\).*\(2, 3, 32, 32\).*build the networks for yours"):
        train(GAN, grey, ONE)
    with pytest.raises(ValueError, match=r"perturbation: got dict.*Perturbation\(fill="):
        blending.make_blends(PIXELS, perturbation={"fill": "noise"}, generator=draw())
    for wrong in ({"scale": 1.0}, {"shift": 0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; expected"):
            blending.Perturbation(**wrong)
    with pytest.raises(ValueError, match=r"placement: got tuple.*Placement\(x="):
        explorer.compose(*PIXELS[:2], (10, 0), generator=draw())
    with pytest.raises(
        ValueError, match="polarized: got Tensor, expected Polarized; what polarized_relevance"
    ):
        relevance.deletion_gate(JUDGE, PIXELS, PIXELS, generator=draw())


def test_check_kind_lets_the_right_class_pass():
    check_kind(int, "a number", steps=3, size=True)
    with pytest.raises(ValueError, match="size: got str, expected int; give a number"):
        check_kind(int, "give a number", steps=3, size="3")


def test_check_floats_looks_for_numbers_that_are_none_only_when_asked():
    broken = torch.tensor([0.0, torch.inf])
    check_floats(broken)
    with pytest.raises(ValueError, match=r"maps: got NaN or infinite values, expected finite.*nan_to_num"):
        check_floats(broken, name="maps", finite=True)


def test_check_images_counts_channels():
    assert check_images(PIXELS, channels=3) is PIXELS and check_images(GREY, channels=1) is GREY
    with pytest.raises(
        ValueError, match=r"\(4, 3, 32, 32\), expected 1 channel; use x.mean\(1, keepdim=True\)"
    ):
        check_images(PIXELS, channels=1)
    with pytest.raises(ValueError, match=r"\(4, 1, 32, 32\), expected 3 channels; use x.expand"):
        check_images(GREY, channels=3)
