import numpy as np
import pytest
import torch

from galnb.images.imageset import ImageSet, area_average, check_generator, check_images, check_sizes


def test_check_images_lets_the_convention_pass(random_images):
    check_images(random_images)
    check_images(random_images.double())
    check_images(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1) * (1 + 1e-6))  # one float32 rounding beyond 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.numpy(), "ndarray, expected a torch.Tensor"),
        (lambda x: (x * 255).to(torch.uint8), r"uint8, expected floats in \[0, 1\].*/ 255"),
        (lambda x: x * 255, r"to 2[0-9]+.*expected \[0, 1\].*divide by 255"),
        (lambda x: x * 2 - 1, r"from -0.9.*\(x \+ 1\) / 2"),
        (lambda x: x[0], r"\(3, 16, 16\), expected \(batch, channel, height, width\)"),
        (lambda x: x[:0], r"\(0, 3, 16, 16\), expected"),
        (lambda x: x.masked_fill(x > 0.99, float("nan")), "NaN or infinite"),
        (lambda x: x.masked_fill(x > 0.99, float("inf")), "NaN or infinite"),
    ],
)
def test_check_images_says_what_is_wrong(random_images, change, message):
    with pytest.raises(ValueError, match="^blended: got .*" + message):
        check_images(change(random_images), name="blended")


def test_image_set_holds_one_name_per_image(random_images):
    images = ImageSet(random_images, ("a", "b", "c", "d"), "noise")
    assert len(images) == 4
    assert images.labels is None
    with pytest.raises(ValueError, match="3 names for 4 images"):
        ImageSet(random_images, ("a", "b", "c"), "noise")
    with pytest.raises(ValueError, match="1 labels for 4 images"):
        ImageSet(random_images, ("a", "b", "c", "d"), "noise", ("spiral",))
    with pytest.raises(ValueError, match=r"pixels: got dtype torch\.int64"):
        ImageSet(random_images.long(), ("a", "b", "c", "d"), "noise")


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "80"])
def test_check_sizes_refuses_what_is_no_positive_whole_number(value):
    check_sizes(size=80, crop=np.int64(240), limit=None)
    with pytest.raises(ValueError, match=r"size=.*expected a whole number of at least 1"):
        check_sizes(size=value)


@pytest.mark.parametrize("wrong", [None, 0, torch])
def test_check_generator(generator, wrong):
    check_generator(generator)
    with pytest.raises(ValueError, match=r"generator is .*expected a torch\.Generator"):
        check_generator(wrong)


@pytest.mark.parametrize(("side", "size"), [(12, 4), (7, 3), (10, 9), (5, 1), (6, 6)])
def test_area_average_equals_repeat_and_mean(generator, side, size):
    image = torch.rand(2, side, side, generator=generator)
    # Oracle: each pixel repeated `size` times a side, then plain means over `side` x `side` blocks.
    fine = image.numpy().repeat(size, axis=1).repeat(size, axis=2)
    oracle = fine.reshape(2, size, side, size, side).mean(axis=(2, 4))
    np.testing.assert_allclose(area_average(image, size), oracle, atol=1e-6)  # float32 sums
