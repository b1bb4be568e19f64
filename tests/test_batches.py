"""Batches: functions of their number, by the rules of the blends."""

import pytest
import torch

from galnb.batches import blend_batches, mix_batches
from galnb.blending import BLEND_RULES, Perturbation
from tests.tiny_runs import images


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_batch_depends_on_its_number_and_the_seed_alone():
    first, again = (blend_batches(images(), batch_size=3, seed=5) for _ in range(2))
    early = first(8)
    first(0), first(9)
    assert same(early, first(8)) and same(early, again(8))
    assert not same(early, first(9))
    assert not same(early, blend_batches(images(), batch_size=3, seed=6)(8))


@pytest.mark.parametrize("rule", sorted(BLEND_RULES))
@pytest.mark.parametrize("count", [2, 3])
def test_the_parts_make_up_the_blend(rule, count):
    batch = blend_batches(images(), batch_size=4, seed=0, rule=rule, count=count)(3)
    assert batch["galaxies"].shape == (4, count, 3, 16, 16)
    assert batch["blended"].dtype == torch.float32 and batch["blended"].is_contiguous()
    # the same turn for all keeps the rule: it looks at pixels and at the outermost ring
    assert torch.allclose(batch["blended"], BLEND_RULES[rule](batch["galaxies"]), atol=1e-6)


def test_bytes_and_floats_give_the_same_blends():
    whole = (images(size=32) * 255).round()
    options = {"batch_size": 4, "seed": 2, "crop": 24, "size": 8}
    floats, integers = blend_batches(whole / 255, **options)(0), blend_batches(whole.byte(), **options)(0)
    for name, tensor in floats.items():
        assert tensor.shape[-2:] == (8, 8)
        assert torch.allclose(tensor, integers[name], atol=1e-6)  # x / 255 against x * (1 / 255)


def test_the_first_galaxy_is_an_image_turned_by_a_symmetry_of_the_square():
    bank = images()
    for index in range(8):
        first = blend_batches(bank, batch_size=1, seed=3)(index)["galaxies"][0, 0]
        bank_turned = torch.stack(
            [torch.rot90(b, k, (-2, -1)) for b in (bank, bank.flip(-1)) for k in range(4)]
        )  # (8, B, C, H, W)
        assert ((bank_turned - first).abs().amax((2, 3, 4)) < 1e-6).any()
    ramp = torch.linspace(0, 1, 256).view(1, 1, 16, 16).expand(2, 1, 16, 16)  # no symmetry of its own
    seen = {
        tuple(blend_batches(ramp, batch_size=1, seed=3)(i)["galaxies"][0, 0, 0, 0, :2].tolist())
        for i in range(60)
    }
    assert len(seen) == 8


def test_perturbation_is_passed_on():
    still = Perturbation(flip=False, rotate=False, scale=(1, 1), shift=(0, 0))
    batch = blend_batches(images()[:1].repeat(2, 1, 1, 1), batch_size=2, seed=0, perturbation=still)(0)
    assert torch.allclose(batch["galaxies"][:, 0], batch["galaxies"][:, 1], atol=1e-5)


def test_mixed_batches_stand_one_after_another():
    many, few = blend_batches(images(), batch_size=3, seed=0), blend_batches(images(), batch_size=1, seed=1)
    mixed = mix_batches(many, few)(4)
    assert mixed["blended"].shape[0] == mixed["galaxies"].shape[0] == 4
    assert torch.equal(mixed["blended"][:3], many(4)["blended"])
    assert torch.equal(mixed["galaxies"][3:], few(4)["galaxies"])


@pytest.mark.parametrize(
    ("bank", "options", "message"),
    [
        (images(), {"batch_size": 0}, "batch_size is 0; expected at least 1"),
        (images(2), {"count": 3}, "got 2 images for blends of 3 galaxies"),
        (images() * 255, {}, "images: got values"),
        (images()[0], {}, "images: got shape"),
    ],
)
def test_bad_input_is_refused_before_training(bank, options, message):
    with pytest.raises(ValueError, match=message):
        blend_batches(bank, **{"batch_size": 2, "seed": 0, **options})
