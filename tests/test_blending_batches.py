"""Batches: functions of their number, by the rules of the blends."""

from functools import partial

import pytest
import torch

from galnb.blending import BLEND_RULES, Perturbation
from galnb.blending.batches import blend_batches, image_batches, labelled_batches, mix_batches
from galnb.images import turned
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_is_drawn_as_float32(dtype):
    given, labels = images(channels=1).to(dtype), torch.arange(12)
    for feed in (
        partial(blend_batches, seed=1, batch_size=3, crop=10, turn_first=0.5),
        partial(labelled_batches, labels=labels, seed=1, batch_size=3, size=8),
        partial(image_batches, seed=1, batch_size=3),
    ):
        found, wanted = feed(given)(2), feed(given.float())(2)
        assert same(found, wanted) and all(t.dtype in (torch.float32, torch.int64) for t in found.values())


def test_a_share_of_first_galaxies_is_turned_by_any_angle():
    """The witness is a bar whose angle is known before and measured after."""
    grid = torch.arange(96.0) - 47.5
    bar = torch.exp(-((grid[:, None] / 3) ** 2) - (grid / 14) ** 2).expand(2, 1, -1, -1)
    options = {"batch_size": 40, "seed": 2, "crop": 64}
    for share in (0.0, 0.5, 1.0):
        first = blend_batches(bar, turn_first=share, **options)(0)["galaxies"][:, 0, 0]
        place = torch.arange(64.0) - 31.5
        xx, yy = (first * place**2).sum((1, 2)), (first * place[:, None] ** 2).sum((1, 2))
        angle = torch.atan2(2 * (first * place * place[:, None]).sum((1, 2)), xx - yy) / 2  # of the long axis
        at_rest = ((angle * 2 / torch.pi) - (angle * 2 / torch.pi).round()).abs() < 1e-3
        assert abs(at_rest.float().mean() - (1 - share)) < 4 * (share * (1 - share) / 40) ** 0.5 + 0.06
        torch.testing.assert_close(first.sum((1, 2)), bar[0].sum().expand(40), rtol=5e-3, atol=0)
    whole = torch.ones(3, 1, 92, 92)  # holds a square of 64 under any turn: nothing of the outside comes in
    first = blend_batches(whole, turn_first=1.0, **options)(0)["galaxies"][:, 0]
    assert first.min() > 1 - 1e-6


def test_without_a_turn_nothing_else_is_drawn():
    bank = images(size=32)
    one, other = (
        blend_batches(bank, batch_size=3, seed=5, crop=16, **how) for how in ({}, {"turn_first": 0.0})
    )
    assert same(one(3), other(3))
    # Drawn in this order: images, angles, shares. A run that was begun with these batches can be continued.
    generator = torch.Generator().manual_seed(5 * 1_000_003 + 3)
    chosen = torch.randint(len(bank), (3,), generator=generator)
    angle = 2 * torch.pi * torch.rand(3, generator=generator)
    share = torch.rand(3, generator=generator)
    found = blend_batches(bank, batch_size=3, seed=5, crop=16, turn_first=float(share.median()))(3)[
        "galaxies"
    ][:, 0]
    still = share >= share.median()
    assert still.sum() == 2 and (angle > 0).all()
    candidates = torch.stack([turned(bank[chosen][..., 8:24, 8:24], turn) for turn in range(8)])
    exact = (candidates == found).flatten(2).all(-1).any(0)
    assert torch.equal(exact, still)


def test_frames_that_are_not_square_are_turned_without_shear():
    y, x = torch.meshgrid(torch.arange(80.0) - 39.5, torch.arange(120.0) - 59.5, indexing="ij")
    disc = ((x**2 + y**2) < 15**2).float().expand(1, 1, -1, -1)
    for feed in (
        labelled_batches(disc, torch.zeros(1).long(), batch_size=20, seed=0, size=40),
        blend_batches(disc.repeat(2, 1, 1, 1), batch_size=20, seed=0, crop=40, turn_first=1.0),
    ):
        batch = feed(0)
        drawn = batch["images"] if "images" in batch else batch["galaxies"][:, 0]
        torch.testing.assert_close(drawn, disc[..., 20:60, 40:80].expand(20, -1, -1, -1), atol=1.0, rtol=0)
        assert ((drawn - disc[..., 20:60, 40:80]).abs() > 0.6).float().mean() < 0.02  # the rim


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
        (images(), {"batch_size": 0}, "batch_size=0: expected a whole number of at least 1"),
        (images(), {"turn_first": 1.5}, r"turn_first is 1\.5; expected a share"),
        (images(), {"turn_first": 0.5}, r"got \(16, 16\) px, crop 16; .*at least 22\.6 px"),
        (images(size=33), {"turn_first": 0.5, "crop": 25}, r"got \(33, 33\) px, crop 25"),
        (images(size=33), {"turn_first": 0.5, "crop": 16}, "crop is 16; 33 x 33 px need an even margin"),
        (images().numpy(), {}, "images: got ndarray"),
        (images(2), {"count": 3}, "got 2 images for blends of 3 galaxies"),
        (images() * 255, {}, "images: got values"),
        (images()[0], {}, "images: got shape"),
        (images()[0].byte(), {}, "images: got shape"),
        (list(images()), {}, r"images: got list.*torch\.stack"),
    ],
)
def test_bad_input_is_refused_before_training(bank, options, message):
    with pytest.raises(ValueError, match=message):
        blend_batches(bank, **{"batch_size": 2, "seed": 0, **options})


def test_labelled_images_keep_their_label_their_levels_and_their_light():
    levels = torch.tensor([0.2, 0.5, 0.9])
    bank = torch.zeros(3, 1, 48, 48)
    bank[:, :, 18:30, 21:27] = levels.view(3, 1, 1, 1)
    batch = labelled_batches(bank, torch.tensor([2, 0, 1]), batch_size=60, seed=4, size=32)(0)
    assert batch["images"].shape == (60, 1, 32, 32)
    wanted = levels[torch.tensor([1, 2, 0])][batch["labels"]]  # label 0 is bright .5, and so on
    assert torch.equal(batch["images"].amax((1, 2, 3)), wanted)  # picked pixels keep their height
    assert len(torch.unique(batch["images"])) == 4
    area = (batch["images"] > 0).sum((1, 2, 3)).float()
    assert (area - 72).abs().max() <= 12  # 6 x 12 px, whatever the angle; its rim may gain or lose a pixel
    assert set(batch["labels"].tolist()) == {0, 1, 2}


def test_labelled_images_are_turned_and_mirrored_every_way():
    corner = torch.zeros(1, 1, 65, 65)
    corner[0, 0, 32, 32:48] = 1.0  # an arm to the right, shorter one up
    corner[0, 0, 24:32, 32] = 0.5
    batch = labelled_batches(corner, torch.tensor([0]), batch_size=300, seed=0, size=65)(1)
    grid = torch.arange(65.0) - 32
    arms = [
        torch.atan2((part * grid[:, None]).sum((1, 2)), (part * grid).sum((1, 2)))
        for part in ((batch["images"][:, 0] == 1).float(), (batch["images"][:, 0] == 0.5).float())
    ]
    turn = torch.sin(arms[1] - arms[0])  # +1 or -1: a right angle, mirrored or not
    assert (turn.abs() > 0.95).all() and 0.4 < (turn > 0).float().mean() < 0.6
    counts = torch.histc(arms[0], 6, -torch.pi, torch.pi)
    assert counts.min() > 25 and counts.max() < 80  # uniform: 50 each, four standard deviations


def test_labelled_batches_depend_on_number_and_seed_alone():
    bank, labels = images(channels=1), torch.arange(12) % 4
    first, again, other = (labelled_batches(bank, labels, batch_size=3, seed=s, size=12) for s in (5, 5, 6))
    assert all(torch.equal(first(7)[name], again(7)[name]) for name in ("images", "labels"))
    assert not torch.equal(first(7)["images"], first(8)["images"])
    assert not torch.equal(first(7)["images"], other(7)["images"])


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (torch.zeros(3).long(), {}, r"got 12 images and labels \(3,\)"),
        (torch.zeros(12), {}, "expected one whole number per image"),
        (torch.zeros(12).long(), {"size": 17}, "size 17: expected at most the side of the images, 16"),
        (torch.zeros(12).long(), {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_labelled_batches_refuse_what_does_not_match(labels, options, message):
    with pytest.raises(ValueError, match=message):
        labelled_batches(images(), labels, **{"batch_size": 2, "seed": 0, "size": 8, **options})


def test_image_batches_hold_whole_images_under_all_symmetries():
    bank = images()
    batch = image_batches(bank, batch_size=400, seed=2)(3)["images"]
    symmetric = torch.stack([turned(bank, turn) for turn in range(8)])  # (8, 12, C, H, H)
    same = (batch[:, None, None] == symmetric).flatten(3).all(-1)
    assert same.any((1, 2)).all(), "each is an image of the bank, no pixel resampled"
    assert same.any(2).sum(0).min() > 25 and same.any(1).sum(0).min() > 10  # 50 and 33 expected


def test_image_batches_depend_on_number_and_seed_alone():
    one, two = image_batches(images(), batch_size=4, seed=0), image_batches(images(), batch_size=4, seed=0)
    assert torch.equal(one(5)["images"], two(5)["images"])
    assert not torch.equal(one(5)["images"], one(6)["images"])


def test_image_batches_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="batch_size=0"):
        image_batches(images(), batch_size=0, seed=0)
    with pytest.raises(ValueError, match="expected squares"):
        image_batches(torch.zeros(2, 3, 8, 9), batch_size=1, seed=0)
