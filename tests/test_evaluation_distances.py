"""Distances of image sets: closed forms, scipy's matrix root, explicit loops, and intervals that cover."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch

from galnb.evaluation import distances
from galnb.evaluation.distances import embed, frechet_distance, kernel_distance
from galnb.gans.features import feature_network
from galnb.images import ImageSet
from tests.tiny_runs import one_thread  # noqa: F401

BOTH = pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])


def normal(count, size, generator, *, shift=0.0, scale=1.0):
    """Vectors of a normal distribution whose variances are scale² / k, its mean `shift` on every axis."""
    spread = scale / torch.arange(1, size + 1).sqrt()
    return torch.randn(count, size, generator=generator) * spread + shift


def with_root(a, b):
    """The definition with the root of a matrix, as scipy takes it."""
    a, b = a.double().numpy(), b.double().numpy()
    one, other = (np.cov(x, rowvar=False) for x in (a, b))
    root = scipy.linalg.sqrtm(one @ other).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + other - 2 * root)


@pytest.mark.parametrize(("count", "size"), [(60, 12), (12, 12), (30, 29)])
def test_frechet_distance_is_the_one_with_scipys_matrix_root(count, size, generator):
    a, b = normal(count, size, generator), normal(count, size, generator, shift=0.3, scale=1.4)
    # the root of a singular matrix has half the digits
    tolerance = 1e-9 if count > size else 1e-5
    assert frechet_distance(a, b, features="random").value == pytest.approx(with_root(a, b), rel=tolerance)


def test_frechet_distance_of_fewer_images_than_features_is_exact(generator):
    """8 images, 500 features: turned into the 16 axes that the sets span, where scipy's root can work."""
    a, b = normal(8, 500, generator), normal(8, 500, generator, shift=0.01)
    axes = torch.linalg.qr(torch.cat([a, b]).double().T).Q
    wanted = with_root(a.double() @ axes, b.double() @ axes)
    assert frechet_distance(a, b, features="random").value == pytest.approx(wanted, rel=1e-5)


def test_frechet_distance_of_many_draws_is_the_closed_form(generator):
    """|m1 - m2|² + sum (s1 - s2)²: 20,000 draws of 3 numbers, standard error from the interval."""
    a, b = normal(20_000, 3, generator), normal(20_000, 3, generator, shift=0.5, scale=2)
    found = frechet_distance(a, b, features="random")
    wanted = 3 * 0.25 + sum(1 / k for k in (1, 2, 3))
    assert found.low < wanted < found.high and found.high - found.low < 0.2


@BOTH
def test_distances_do_not_depend_on_the_order_and_turn_with_nothing(distance, generator):
    a, b = normal(20, 30, generator), normal(20, 30, generator, scale=1.5)
    one, other = (distance(*pair, features="random") for pair in ((a, b), (b, a)))
    assert one.value == pytest.approx(other.value, rel=1e-10) and one.low == pytest.approx(other.low)
    turn = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64)).Q
    turned = distance(a.double() @ turn, b.double() @ turn, features="random")
    assert turned.value == pytest.approx(one.value, rel=1e-8)


def test_the_frechet_distance_of_a_set_to_itself_is_zero(generator):
    for count, size in ((20, 5), (20, 50), (400, 30), (2, 1)):
        a = normal(count, size, generator, shift=3)
        for order in (a, a.flip(0), a[torch.randperm(count, generator=generator)]):
            found = frechet_distance(a, order, features="random")
            assert (found.value, found.low) == (0, 0) and found.high < 1e-6
            assert frechet_distance(a, order + 1e-4, features="random").value > 0
    flat = torch.ones(4, 3)
    assert frechet_distance(flat, flat, features="random").value == 0
    assert frechet_distance(flat, flat + 1, features="random").value == 3


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_another_precision_are_no_further(kind, generator):
    a, b = (torch.rand(5, 3, 16, 16, generator=generator).bfloat16().float() for _ in range(2))
    wanted, found = (frechet_distance(x, y, features="random") for x, y in ((a, b), (a.to(kind), b.to(kind))))
    same = kind == torch.float64 or (a.to(kind).float() == a).all()
    assert found.value == pytest.approx(wanted.value, rel=1e-5 if same else 1e-2)
    assert frechet_distance(a.to(kind), a.to(kind), features="random").value == 0


def test_an_image_set_is_told_to_give_its_pixels():
    found = ImageSet(torch.zeros(2, 3, 8, 8), ("a", "b"), "nowhere")
    with pytest.raises(ValueError, match=r"got ImageSet; .*its \.pixels"):
        frechet_distance(found, found, features="random")


def test_kernel_distance_is_the_double_loop(generator):
    a, b = normal(7, 4, generator), normal(7, 4, generator, shift=0.4)
    x, y = a.double().tolist(), b.double().tolist()

    def k(u, v):
        return (sum(p * q for p, q in zip(u, v, strict=True)) / 4 + 1) ** 3

    pairs = [(i, j) for i in range(7) for j in range(7)]
    own = sum(k(s[i], s[j]) for s in (x, y) for i, j in pairs if i != j) / 42
    wanted = own - 2 * sum(k(x[i], y[j]) for i, j in pairs) / 49
    assert kernel_distance(a, b, features="random").value == pytest.approx(wanted, rel=1e-12)


def test_kernel_distance_has_the_kernel_of_scikit_learn(generator):
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    a, b = normal(30, 6, generator).double(), normal(30, 6, generator, scale=1.3).double()
    aa, bb, ab = (pairwise.polynomial_kernel(*pair) for pair in ((a, a), (b, b), (a, b)))  # degree 3, 1/D, 1
    wanted = sum((k.sum() - np.trace(k)) / (30 * 29) for k in (aa, bb)) - 2 * ab.mean()
    assert kernel_distance(a, b, features="random").value == pytest.approx(wanted, rel=1e-10)


def test_kernel_distance_has_no_bias_and_frechet_distance_has(generator):
    """Sets of one distribution: the mean of 200 kernel distances is 0 within 4 standard errors."""
    draws = [[normal(10, 20, generator) for _ in range(2)] for _ in range(200)]
    kernel = torch.tensor([kernel_distance(a, b, features="random").value for a, b in draws])
    assert kernel.mean().abs() < 4 * kernel.std() / 200**0.5
    assert min(frechet_distance(a, b, features="random").value for a, b in draws) > 0.3


@pytest.mark.parametrize(("count", "size"), [(200, 4), (30, 60)], ids=["many images", "more features"])
@BOTH
def test_intervals_cover_the_mean_over_other_draws(distance, count, size, generator):
    """95 % nominal; of 120 draws at least 88 % (4 standard errors below) hold the mean at that count."""
    found = []
    for _ in range(120):
        a, b = normal(count, size, generator), normal(count, size, generator, shift=0.1, scale=1.5)
        found.append(distance(a, b, features="random"))
    mean = np.mean([one.value for one in found])
    assert np.mean([one.low <= mean <= one.high for one in found]) >= 0.88
    errors = np.mean([(one.high - one.value) / distances._NORMAL for one in found])
    assert errors == pytest.approx(np.std([one.value for one in found]), rel=0.35)


def test_intervals_cover_a_known_distance(generator):
    """Normal distributions with a closed form, 500 draws of 2 numbers, where the bias is small."""
    wanted = 2 * 0.25 + 0.5**2 * (1 + 1 / 2)
    draws = [(normal(500, 2, generator), normal(500, 2, generator, shift=0.5, scale=1.5)) for _ in range(120)]
    found = [frechet_distance(a, b, features="random") for a, b in draws]
    assert np.mean([one.low <= wanted <= one.high for one in found]) >= 0.88


def test_a_bootstrap_would_lie_above_the_distance(generator):
    """Why there is none: with repeated images even the smallest of 50 resampled distances is too large."""
    a, b = normal(30, 60, generator), normal(30, 60, generator)
    value = frechet_distance(a, b, features="random").value
    resampled = [
        frechet_distance(
            *(x[torch.randint(30, (30,), generator=generator)] for x in (a, b)), features="random"
        )
        for _ in range(50)
    ]
    assert min(one.value for one in resampled) > value


def test_images_and_their_vectors_give_the_same(generator):
    a, b = (torch.rand(9, 3, 16, 16, generator=generator) for _ in range(2))
    vectors = [embed(x, "random") for x in (a, b)]
    assert torch.allclose(vectors[0], feature_network("random", pooled=True)(a), atol=1e-6)
    network = feature_network("random", pooled=True)
    for distance in (frechet_distance, kernel_distance):
        one = distance(a, b, features="random")
        assert one == distance(a, b, features=network)
        other = distance(*vectors, features="random")  # passes of another size round differently
        assert dataclasses.astuple(one)[:3] == pytest.approx(dataclasses.astuple(other)[:3], rel=1e-5)
        assert (one.count, one.features) == (9, "random")
    assert dataclasses.is_dataclass(one) and one.low <= one.value <= one.high


@BOTH
def test_bad_sets_are_refused(distance, generator):
    a = normal(6, 3, generator)
    with pytest.raises(ValueError, match=r"6 and 5 images; expected equally many.*first N of each"):
        distance(a, a[:5], features="random")
    with pytest.raises(ValueError, match=r"1 and 1 images; .*at least 2"):
        distance(a[:1], a[:1], features="random")
    with pytest.raises(ValueError, match=r"\(6, 3\) and \(6, 2\); expected finite, of one length"):
        distance(a, a[:, :2], features="random")
    with pytest.raises(ValueError, match="finite"):
        distance(a, a * torch.nan, features="random")
    with pytest.raises(ValueError, match="known are"):
        distance(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), features="fid")
    with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
        distance(torch.rand(2, 3, 8, 8) * 2, torch.rand(2, 3, 8, 8), features="random")


def test_bad_networks_and_halves_are_refused(generator, monkeypatch):
    with pytest.raises(ValueError, match=r"features \(64, 2, 2\) of an image, expected a vector"):
        embed(torch.rand(2, 3, 16, 16), feature_network("random"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"galnb\[features\]"):
        embed(torch.rand(2, 3, 8, 8), "efficientnet-lite0")


@BOTH
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.numpy(), "got ndarray; expected a tensor of images"),
        (lambda a: a.tolist(), "got list; expected a tensor"),
        (lambda a: a[0], r"got \(3,\); expected a tensor"),
        (lambda a: a[:, :0], r"got \(6, 0\); .* D at least 1"),
        (lambda a: a * torch.inf, "finite"),
    ],
)
def test_sets_of_another_kind_are_refused(distance, change, message, generator):
    a = normal(6, 3, generator)
    with pytest.raises(ValueError, match=message):
        distance(change(a), change(a), features="random")


@BOTH
def test_gradients_are_left_out(distance, generator):
    a, b = normal(6, 3, generator).double().requires_grad_(), normal(6, 3, generator).double()
    assert distance(a, b, features="random") == distance(a.detach(), b, features="random")


@pytest.mark.parametrize("other", [None, 3, np.random.default_rng(0)])
def test_what_is_no_network_is_refused(other):
    with pytest.raises(ValueError, match=r"feature network .* is unknown; known are"):
        embed(torch.rand(2, 3, 8, 8), other)
