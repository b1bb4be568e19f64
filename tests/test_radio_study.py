"""The study of five folds: blocks are fair and disjoint, scores compare equal numbers of images."""

import pytest
import torch

from book import radio_study


def test_blocks_hold_a_fifth_of_each_class_and_never_change():
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([395, 824, 291, 248]))  # FIRST, training
    block = radio_study.deal(labels)
    counts = torch.stack([torch.bincount(labels[block == fold], minlength=4) for fold in range(5)])
    assert counts.sum(0).tolist() == [395, 824, 291, 248]
    assert (counts.max(0).values - counts.min(0).values).max() <= 1
    assert torch.equal(block, radio_study.deal(labels))
    mixed = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    assert (radio_study.deal(labels[mixed]) != block[mixed]).any(), "dealt by place, not by class alone"


def test_perfect_generator_scores_as_real_images_do():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(400, 1, 64, 64, generator=generator) ** 12
    images[images < 0.2] = 0
    labels = torch.arange(400) % 4
    counted = [radio_study.image_counts(images[labels == label][:60]) for label in range(4)]
    same = radio_study.score_classes(counted, images[300:], labels[300:])
    dark = radio_study.score_classes(
        [counts * 0 + counted[0][:1] for counts in counted], images[300:], labels[300:]
    )
    assert same.shape == (4,) and (same < dark).all()


def test_every_way_to_smear_belongs_to_a_kind():
    assert set(radio_study.SMEARS) == set(radio_study.KINDS)
    assert radio_study.TRAINING.stages[-1] == (f"step{radio_study.STEPS}", 1.0)
    assert radio_study.by_class([1, 2, 3, 0.123456]) == {"FRI": 1, "FRII": 2, "Compact": 3, "Bent": 0.12346}


@pytest.mark.parametrize("ratio", [0, 0.5, 1, 2, 5])
def test_generated_images_even_out_the_classes(ratio):
    labels = torch.repeat_interleave(
        torch.arange(4), torch.tensor([316, 659, 232, 198])
    )  # four blocks of FIRST
    wanted = radio_study.balanced_counts(labels, ratio)
    assert wanted.sum() == round(ratio * len(labels)) and (wanted >= 0).all()
    total = torch.bincount(labels) + wanted
    if ratio >= 1:  # then no class has more than its share
        assert total.max() - total.min() <= 1
    with pytest.raises(ValueError, match="ratio is -1"):
        radio_study.balanced_counts(torch.tensor([0, 1]), -1)


def test_resampled_scores_draw_without_repeats():
    generator = torch.Generator().manual_seed(0)
    level = torch.randint(0, 256, (40, 1, 32, 32), generator=generator).float()
    lit = torch.rand(level.shape, generator=generator) < torch.linspace(0.3, 0, 40).view(-1, 1, 1, 1)
    counts = radio_study.image_counts(level * lit / 255)
    whole = radio_study.resampled_scores(counts, counts, count=40, generator=generator)
    assert whole.tolist() == [0] * radio_study.DRAWS  # all 40 of 40
    few, many = (
        radio_study.resampled_scores(counts, counts, count=n, generator=generator).mean() for n in (10, 30)
    )
    assert few > many > 0  # fewer images, larger score
    with pytest.raises(ValueError, match="got 40 and 40 images; expected at least 41"):
        radio_study.resampled_scores(counts, counts, count=41, generator=generator)


def test_roughness_is_the_noise_of_a_curve_and_blind_to_its_slope():
    assert radio_study.roughness([0.1, 0.2, 0.3, 0.4]) == pytest.approx(0, abs=1e-9)
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.05
    climb = torch.linspace(0, 3, 20_000, dtype=torch.float64)
    assert radio_study.roughness((climb + noise).tolist()) == pytest.approx(0.05, rel=0.03)
