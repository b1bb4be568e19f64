"""Alignment and pairs on galaxies whose place and direction are known."""

import math

import numpy as np
import pytest
import torch
from skimage.measure import inertia_tensor_eigvals, moments_central

from galnb.smearing import ROUNDING, active_pixels, align, best_pairs, orientations, pair_distances
from tests.tiny_runs import one_thread  # noqa: F401


def galaxy(angle: float, *, x: float = 0.0, y: float = 0.0, mirror: bool = False, size: int = 48):
    """Two unequal lobes and a bright one off the line: no symmetry, so one orientation is right."""
    line = torch.arange(size) - (size - 1) / 2
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    u = (columns - x) * math.cos(angle) + (rows - y) * math.sin(angle)
    v = -(columns - x) * math.sin(angle) + (rows - y) * math.cos(angle)
    v = -v if mirror else v

    def lobe(a, b, width, height):
        return height * torch.exp(-((u - a) ** 2 + (v - b) ** 2) / (2 * width**2))

    return (lobe(-9, 0, 2, 0.9) + lobe(8, -1, 3, 0.5) + lobe(4, 4, 1.5, 0.4)).clamp(0, 1)[None, None]


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.2, 2.0, 3.0, -1.0])
@pytest.mark.parametrize("mirror", [False, True])
def test_alignment_undoes_shift_turn_and_mirror(angle, mirror):
    given = galaxy(angle, x=3.3, y=-2.2, mirror=mirror)
    wanted = align(galaxy(0.0))
    # interpolating twice blurs lobes of 1.5 px: a few hundredths of the peak; a wrong orientation gives 0.07
    assert (align(given) - wanted).square().mean().sqrt() < 0.012
    assert (given - wanted).square().mean().sqrt() > 0.05


def test_moments_of_the_aligned_image_by_scikit_image(generator):
    given = torch.cat([galaxy(0.7, x=4.0), galaxy(2.5, y=3.0, mirror=True)])
    for image, before in zip(align(given)[:, 0].double().numpy(), given[:, 0].double().numpy(), strict=True):
        moments = moments_central(image, order=3)
        assert abs(moments[1, 1]) < 0.02 * moments[0, 2]  # axes along rows and columns
        assert moments[0, 2] > moments[2, 0] and moments[0, 3] > 0 and moments[3, 0] > 0
        rows, columns = np.indices(image.shape)
        centre = [(axis * image).sum() / image.sum() for axis in (rows, columns)]
        assert centre == pytest.approx([23.5, 23.5], abs=0.05)
        # the shape itself is not changed: linear sampling adds less than 0.3 px^2 to its moments
        assert inertia_tensor_eigvals(image) == pytest.approx(inertia_tensor_eigvals(before), abs=0.4)


def test_blank_images_come_back(generator):
    blank = torch.zeros(1, 1, 8, 8)
    assert torch.equal(align(torch.cat([blank, galaxy(0.0, size=8)]))[:1], blank)


def test_orientations_share_their_axes():
    views = orientations(torch.rand(2, 1, 5, 5))
    assert views.shape == (4, 2, 1, 5, 5) and torch.equal(views[3], views[1].flip(-2))
    assert torch.equal(views.flip(-1), views[[1, 0, 3, 2]])


def test_distances_equal_the_slow_definition(generator):
    first, second = (
        torch.rand(3, 1, 12, 12, generator=generator),
        torch.rand(4, 1, 12, 12, generator=generator),
    )
    a, b = align(first), align(second)
    slow = torch.tensor(
        [[min((view[i] - y).square().mean().sqrt() for view in orientations(a)) for y in b] for i in range(3)]
    )
    assert torch.allclose(pair_distances(first, second), slow, atol=1e-6)


def test_planted_twins_are_found_in_order(generator):
    real = torch.cat([torch.rand(5, 1, 48, 48, generator=generator) * 0.4, galaxy(1.9, x=2.0), galaxy(0.1)])
    other = galaxy(0.0, size=48).flip(-1) * 0.7
    generated = torch.cat([torch.rand(2, 1, 48, 48, generator=generator), other, galaxy(-0.6, mirror=True)])
    found = best_pairs(generated, real, count=2, min_active=5)
    assert found.generated.tolist() == [3, 2] and set(found.real.tolist()) == {5, 6}
    assert found.distances[0] < 0.02 < found.distances[1]
    exact = (found.generated_images - found.real_images).square().mean((1, 2, 3)).sqrt()
    assert torch.equal(found.distances, exact)
    assert len(set(best_pairs(generated, real, count=50, min_active=0).real.tolist())) == 4  # no image twice


def test_empty_images_match_best_until_the_threshold():
    blank = torch.zeros(1, 1, 48, 48)
    generated, real = torch.cat([galaxy(0.0), blank]), torch.cat([galaxy(0.5) * 0.9, blank])
    assert best_pairs(generated, real, count=1, min_active=0).generated.tolist() == [1]
    assert best_pairs(generated, real, count=1, min_active=1).generated.tolist() == [0]


def test_lit_pixels_count_from_the_first_grey_level():
    levels = torch.arange(256).float() / 255
    assert active_pixels(levels.view(1, 1, 16, 16)).tolist() == [255]
    below = torch.full((1, 1, 2, 2), (1 - 2 * ROUNDING) / 255)
    assert active_pixels(below).tolist() == [0]


@pytest.mark.parametrize(
    ("generated", "real", "options", "message"),
    [
        (
            torch.rand(2, 1, 8, 8),
            torch.rand(2, 1, 9, 9),
            {},
            r"real ones \(1, 9, 9\)",
        ),
        (torch.rand(2, 1, 8, 9), torch.rand(2, 1, 8, 9), {}, "align needs squares"),
        (torch.rand(2, 1, 8, 8) * 255, torch.rand(2, 1, 8, 8), {}, "generated images: got values"),
        (torch.rand(2, 1, 8, 8), torch.full((1, 1, 8, 8), math.nan), {}, "real images: .*NaN"),
        (torch.rand(2, 1, 8, 8), torch.zeros(1, 1, 8, 8), {}, r"no real image has 1 lit pixels \(most: 0\)"),
        (torch.rand(2, 1, 8, 8), torch.rand(1, 1, 8, 8), {"min_active": -1}, "min_active=-1"),
        (torch.rand(2, 1, 8, 8), torch.rand(1, 1, 8, 8), {"count": 0}, "count=0"),
    ],
)
def test_bad_input_is_refused(generated, real, options, message):
    with pytest.raises(ValueError, match=message):
        best_pairs(generated, real, **{"min_active": 1, **options})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_a_set_lies_at_no_distance_from_itself_in_any_precision(generator, dtype):
    full = torch.cat(
        [torch.rand(3, 1, 32, 32, generator=generator), galaxy(0.3, size=32), galaxy(1.0, size=32)]
    )
    images = full.to(dtype)
    apart = pair_distances(images, images)
    assert apart.diagonal().max() < 1e-6 and apart.dtype == torch.float32
    torch.testing.assert_close(apart, pair_distances(images.float(), images.float()))
    found = best_pairs(images, images, count=5, min_active=1)
    assert (found.distances == 0).all() and torch.equal(found.generated, found.real)
    assert align(images).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_lights_the_same_pixels(dtype):
    levels = (torch.arange(256) / 255).view(1, 1, 16, 16)
    assert active_pixels(levels.to(dtype)).tolist() == [255]
