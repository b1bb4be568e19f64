"""Blends against scikit-image's warp as the slow oracle, and against what blending means."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from skimage.measure import block_reduce
from skimage.transform import AffineTransform, warp
from torch import nn

from galnb import blending
from galnb.blending import BLEND_RULES, Blends, Perturbation, fixed_shift_blends, make_blends, segment
from galnb.images import ImageSet

STILL = Perturbation(flip=False, rotate=False, scale=(1, 1), shift=(0, 0))
# Coordinates are float32: an error of 3e-5 px at 424 px, times a largest slope of 1 per px.
TOLERANCE = 5e-5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(batch, bank, count, perturbation, seed, with_self=False):
    """The partners, shifts, scales and matrices of `make_blends` with the same seed."""
    generator = seeded(seed)
    others = blending._draw_others(batch, bank, count, generator, with_self=with_self)
    return others.flatten(), *(
        part.flatten(0, 1) for part in blending._draw_geometry(others.shape, perturbation, generator, "cpu")
    )


def slow_warp(frame, shift, matrix, crop, size, mode="constant"):
    """One perturbed stamp by scikit-image: warp, crop, box average, in float64; and the warped coverage."""
    height, width = frame.shape[-2:]
    to_frame = np.eye(3)
    to_frame[:2, :2] = matrix
    left, top = (width - 1) / 2, (height - 1) / 2
    centre = AffineTransform(translation=(-left - crop * shift[0], -top - crop * shift[1]))
    back = centre + AffineTransform(matrix=to_frame) + AffineTransform(translation=(left, top))

    def stamp(pixels):
        warped = warp(pixels.astype(float), back, order=1, mode=mode, cval=0, clip=False)
        inside = warped[(height - crop) // 2 :, (width - crop) // 2 :][:crop, :crop]
        return block_reduce(inside, (crop // size, crop // size, 1), np.mean)

    return stamp(np.moveaxis(frame.numpy(), 0, -1)), stamp(np.ones((height, width, 1)))


@pytest.mark.parametrize(
    ("side", "crop", "size", "count"),
    [((40, 40), None, None, 2), ((90, 72), 60, 20, 3), ((31, 31), 31, 31, 4)],
)
@pytest.mark.parametrize(("fill", "mode"), [("zeros", "constant"), ("reflect", "symmetric")])
def test_galaxies_and_footprints_agree_with_scikit_image(side, crop, size, count, fill, mode):
    images = torch.rand(6, 3, *side, generator=seeded(1))
    perturbation = Perturbation(fill=fill)
    blends = make_blends(
        images, count=count, perturbation=perturbation, generator=seeded(2), crop=crop, size=size
    )
    others, shift, scale, matrix = drawn(6, images, count, perturbation, 2)
    crop, size = crop or min(side), size or crop or min(side)
    galaxies, footprints = blends.galaxies[:, 1:].flatten(0, 1), blends.footprints[:, 1:].flatten(0, 1)
    assert torch.equal(scale.view(6, -1), blends.scales[:, 1:])
    for k, other in enumerate(others):
        expected, coverage = slow_warp(images[other], shift[k].numpy(), matrix[k].numpy(), crop, size, mode)
        np.testing.assert_allclose(galaxies[k].movedim(0, -1), expected, atol=TOLERANCE)
        if fill == "zeros":  # the ones that scikit-image has warped are whole only where no fill took part
            np.testing.assert_array_equal(footprints[k, 0], coverage[..., 0] > 1 - 1e-3 / (crop // size) ** 2)


@pytest.mark.parametrize("rule", blending.BLEND_RULES)
@pytest.mark.parametrize("fill", blending.FILLS)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_shapes_ranges_and_the_first_galaxy(rule, fill, count):
    images = torch.rand(5, 3, 64, 64, generator=seeded())
    perturbation = Perturbation(fill=fill)
    blends = make_blends(
        images, rule=rule, count=count, perturbation=perturbation, generator=seeded(), crop=48, size=16
    )
    assert len(blends) == 5
    assert blends.blended.shape == (5, 3, 16, 16)
    assert blends.galaxies.shape == (5, count, 3, 16, 16)
    assert blends.blended.dtype == blends.galaxies.dtype == torch.float32
    for pixels in (blends.blended, blends.galaxies):
        assert pixels.min() >= 0
        assert pixels.max() <= 1 + 1e-6  # bilinear weights add up to 1 only to float32 rounding
    first = nn.functional.avg_pool2d(images[..., 8:56, 8:56], 3)
    torch.testing.assert_close(blends.galaxies[:, 0], first, atol=1e-6, rtol=0)
    assert blends.footprints[:, 0].all()
    assert (blends.offsets[:, 0] == 0).all()
    assert (blends.scales[:, 0] == 1).all()


def test_a_maximum_hides_nothing_and_adds_nothing():
    blends = make_blends(torch.rand(8, 3, 20, 20, generator=seeded()), count=4, generator=seeded())
    assert (blends.blended[:, None] >= blends.galaxies).all()
    assert (blends.blended[:, None] == blends.galaxies).any(1).all()


def test_a_sum_adds_light_above_the_sky_of_the_first():
    images = 0.3 * torch.rand(4, 3, 21, 21, generator=seeded())
    blends = make_blends(images, rule="sum", count=3, generator=seeded())
    galaxies = blends.galaxies.double().numpy()
    ring = np.ones((21, 21), bool)
    ring[1:-1, 1:-1] = False
    for blended, (first, *others) in zip(blends.blended.numpy(), galaxies, strict=True):
        sky = np.median(first[:, ring], axis=-1)[:, None, None]
        np.testing.assert_allclose(blended, np.clip(first + sum(others) - 2 * sky, 0, 1), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rule", BLEND_RULES)
@pytest.mark.parametrize("fill", blending.FILLS)
def test_every_float_is_blended_in_float32(dtype, rule, fill):
    given = torch.rand(3, 3, 64, 64, generator=seeded()).to(dtype)
    options = {"rule": rule, "perturbation": Perturbation(fill=fill), "crop": 48, "size": 16}
    made = [make_blends(images, generator=seeded(1), **options) for images in (given, given.float())]
    made += [fixed_shift_blends(images, shift=9, generator=seeded(1)) for images in (given, given.float())]
    for one, other in (made[:2], made[2:]):
        assert one.blended.dtype == one.galaxies.dtype == torch.float32
        assert torch.equal(one.blended, other.blended) and torch.equal(one.galaxies, other.galaxies)
    halves = Blends(
        **{**vars(made[0]), "blended": made[0].blended.half(), "galaxies": made[0].galaxies.half()}
    )
    found = BLEND_RULES[rule](halves.galaxies)
    torch.testing.assert_close(found.float(), made[0].blended, atol=2e-3, rtol=0)
    assert segment(halves, noise=0.0, generator=seeded()).isfinite().all()


def test_no_image_meets_itself_and_none_comes_twice():
    levels = torch.arange(1, 7) / 10
    images = levels[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    for seed in range(20):
        blends = make_blends(images, count=4, perturbation=STILL, generator=seeded(seed))
        met = blends.galaxies[:, :, 0, 4, 4].sort(1).values
        assert (met.diff(dim=1) > 0.05).all()


def test_partners_take_the_place_of_images():
    images, bank = torch.full((3, 1, 8, 8), 0.2), torch.full((2, 1, 12, 10), 0.7)
    blends = make_blends(images, perturbation=STILL, generator=seeded(), partners=bank)
    torch.testing.assert_close(blends.galaxies[:, 1], torch.full((3, 1, 8, 8), 0.7))
    assert blends.footprints.all()


@pytest.mark.parametrize("fill", blending.FILLS)
def test_the_generator_decides_everything(fill):
    images = torch.rand(6, 3, 40, 40, generator=seeded())
    make = partial(make_blends, images, count=3, perturbation=Perturbation(fill=fill))
    first, again, other = (make(generator=seeded(seed)) for seed in (3, 3, 4))
    for name in Blends.__dataclass_fields__:
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert not torch.equal(first.blended, other.blended)
    plain = make_blends(images, count=3, generator=seeded(3))
    for name in ("offsets", "scales", "footprints"):  # the same geometry under every fill
        assert torch.equal(getattr(first, name), getattr(plain, name)), name
    real = first.footprints.expand_as(first.galaxies)
    torch.testing.assert_close(first.galaxies[real], plain.galaxies[real])


def test_offsets_and_scales_say_where_a_galaxy_went_and_how_large_it_is():
    y, x = torch.meshgrid(*[torch.arange(121) - 60.0] * 2, indexing="ij")
    blob = torch.exp(-(x**2 + y**2) / (2 * 6.0**2)).expand(30, 1, -1, -1)
    blends = make_blends(blob, generator=seeded())
    second = blends.galaxies[:, 1, 0]
    flux = second.sum((1, 2))
    centroid = torch.stack([(second * axis).sum((1, 2)) / flux for axis in (x, y)], 1)
    torch.testing.assert_close(centroid, blends.offsets[:, 1], atol=0.01, rtol=0)  # sampling of a round blob
    width = ((second * x**2).sum((1, 2)) / flux - centroid[:, 0] ** 2).sqrt() / 6
    torch.testing.assert_close(width, blends.scales[:, 1], rtol=0.01, atol=0)  # bilinear blurs by < 1 %


def test_perturbations_stay_in_their_ranges_and_fill_them():
    blends = make_blends(torch.rand(400, 1, 6, 6, generator=seeded()), generator=seeded())
    shift, scale = blends.offsets[:, 1].abs() / 6, blends.scales[:, 1].log()
    assert 10 / 240 <= shift.min() < 11 / 240 < 48 / 240 < shift.max() <= 49 / 240
    assert -1 <= scale.min() < -0.98 < 0.48 < scale.max() <= 0.5
    assert abs(scale.mean() + 0.25) < 4 * 1.5 / math.sqrt(12 * 400)  # log-uniform; 4 standard errors
    assert 0.4 < (blends.offsets[:, 1] > 0).float().mean() < 0.6


def test_padding_of_the_paper_protocol_is_as_frequent_as_in_its_code():
    """60 % of perturbed stamps have padding, 14 % of their area: Monte-Carlo of the reference's ranges."""
    images = torch.rand(600, 1, 106, 106, generator=seeded())  # 424 / 4 px, crop 240 / 4
    padded = (~make_blends(images, generator=seeded(), crop=60).footprints[:, 1]).flatten(1)
    assert abs(padded.any(1).float().mean() - 0.60) < 0.08  # 4 standard errors of 600 draws
    assert abs(padded.float().mean() - 0.14) < 0.03


def test_fixed_shift_moves_the_second_galaxy_to_the_right():
    images = torch.rand(5, 3, 30, 40, generator=seeded())
    blends = fixed_shift_blends(images, shift=12, generator=seeded())
    second = blends.galaxies[:, 1]
    assert (second[..., :12] == 0).all()
    matches = (second[:, None, ..., 12:] == images[None, ..., :28]).flatten(2).all(2)  # (blend, image)
    assert (matches.sum(1) == 1).all()
    assert not matches.diagonal().any()
    np.testing.assert_array_equal(blends.blended, torch.maximum(images, second))
    assert not blends.footprints[:, 1, ..., :12].any()
    assert blends.footprints[:, 1, ..., 12:].all()
    assert torch.equal(blends.offsets[:, 1], torch.tensor([[12.0, 0.0]]).expand(5, 2))


def test_segments_of_a_maximum_put_it_together_again():
    images = torch.rand(6, 3, 24, 24, generator=seeded())
    blends = fixed_shift_blends(images, shift=5, generator=seeded())
    halves = segment(blends, noise=0.0, generator=seeded())
    torch.testing.assert_close(halves.sum(1), blends.blended)  # without ties each pixel goes to one galaxy
    brighter = blends.galaxies.mean(2).argmax(1)
    kept = (halves != 0).any(2)
    assert torch.equal(kept[:, 1], (brighter == 1))
    noisy = segment(blends, noise=0.1, generator=seeded())
    mask = kept[:, :, None].expand_as(noisy)
    assert torch.equal(noisy[mask], halves[mask])
    # Gaussian noise cut at 0: mean 0.1 / sqrt(2 pi); 4 standard errors of 10,368 pixels
    assert abs(noisy[~mask].mean() - 0.1 / math.sqrt(2 * math.pi)) < 4 * 0.06 / math.sqrt(10_368)


IMAGES = torch.rand(3, 3, 16, 16, generator=seeded())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "mean"}, "rule 'mean' is unknown; known are max, sum"),
        ({"count": 1}, "count=1: expected a whole number of at least 2"),
        ({"count": 2.5}, "count=2.5: expected a whole number"),
        ({"count": 4}, "got 3 images for blends of 4 galaxies; expected at least 4"),
        ({"count": 4, "partners": IMAGES[:2]}, "got 2 images for blends of 4 galaxies; expected at least 3"),
        ({"crop": 0}, "crop=0: expected a whole number of at least 1"),
        ({"crop": -8}, "crop=-8"),
        ({"size": 0}, "size=0"),
        ({"size": -2}, "size=-2"),
        ({"size": 5}, "crop is 16, size 5; expected crop to be a multiple of size"),
        ({"crop": 18}, "crop is 18; 16 x 16 px need an even margin"),
        ({"crop": 15}, "crop is 15; 16 x 16 px need an even margin"),
        ({"partners": IMAGES[:, :1]}, "partners: got 1 channels, expected 3"),
        ({"partners": 255 * IMAGES}, "partners"),
        ({"images": (255 * IMAGES).byte()}, "images.*uint8"),
        ({"images": 255 * IMAGES}, "images"),
        ({"images": IMAGES - 0.5}, "images"),
        ({"images": IMAGES[0]}, r"images.*\(batch, channel, height, width\)"),
        ({"images": IMAGES / 0}, "images.*NaN"),
        ({"images": IMAGES.numpy()}, "images: got ndarray.*torch.from_numpy"),
        ({"images": list(IMAGES)}, "images: got list.*torch.stack"),
        ({"images": ImageSet(IMAGES, tuple("abc"), "noise")}, r"images: got ImageSet.*give its \.pixels"),
        ({"images": IMAGES.movedim(1, -1)}, r"channels seem to stand last: use x\.permute"),
        ({"partners": IMAGES.movedim(1, -1)}, "partners: got .*channels seem to stand last"),
        ({"generator": 0}, r"generator is 0; expected a torch\.Generator"),
        ({"generator": None}, "generator is None"),
    ],
)
def test_make_blends_says_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        make_blends(**{"images": IMAGES, "generator": seeded(), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fill": "ones"}, "fill 'ones' is unknown; known are zeros, reflect, noise"),
        ({"scale": (0, 1)}, "scale"),
        ({"scale": (2, 1)}, "scale"),
        ({"scale": (1, math.nan)}, "scale"),
        ({"shift": (-0.1, 0.1)}, "shift"),
        ({"shift": (10, 49)}, "fractions of the side"),
    ],
)
def test_perturbation_refuses_what_it_cannot_do(changes, message):
    with pytest.raises(ValueError, match=message):
        Perturbation(**changes)


def test_blends_check_their_shapes():
    good = vars(make_blends(IMAGES, generator=seeded()))
    for name, wrong, message in [
        ("galaxies", good["blended"], "galaxies"),
        ("blended", good["blended"][:2], "blended: got shape .*expected"),
        ("footprints", good["footprints"].float(), "footprints: got torch.float32"),
        ("offsets", good["offsets"][..., :1], "offsets"),
        ("scales", good["scales"].T, "scales"),
    ]:
        with pytest.raises(ValueError, match=message):
            Blends(**{**good, name: wrong})


def test_fixed_shift_and_segment_refuse_bad_numbers():
    for shift, message in (
        (-1, "shift=-1: expected a whole number"),
        (16, "shift is 16; expected 0 <= shift < 16"),
    ):
        with pytest.raises(ValueError, match=message):
            fixed_shift_blends(IMAGES, shift=shift, generator=seeded())
    for act in (
        partial(fixed_shift_blends, IMAGES),
        partial(segment, make_blends(IMAGES, generator=seeded()), noise=0.1),
    ):
        with pytest.raises(ValueError, match=r"generator is 0; expected a torch\.Generator"):
            act(generator=0)
    with pytest.raises(ValueError, match="got 1 images for blends of 2"):
        fixed_shift_blends(IMAGES[:1], shift=3, generator=seeded())
    blends = fixed_shift_blends(IMAGES, shift=3, generator=seeded())
    for noise in (-0.1, math.nan):
        with pytest.raises(ValueError, match="noise="):
            segment(blends, noise=noise, generator=seeded())
