"""Tests of galnb/plots.py."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from galnb import plots
from galnb.images import ImageSet

SET = ImageSet(torch.rand(2, 3, 8, 8), source="a", names=("a", "b"))


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def image():
    return torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def relevance():
    return torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(1))


def face(ax, value):
    """Return the colour that the first image of the Axes gives a value."""
    drawn = ax.images[0]
    return drawn.cmap(drawn.norm(value))


def test_style_is_undone_and_white():
    before = dict(matplotlib.rcParams)
    with plots.style():
        assert plt.figure().get_facecolor() == (1, 1, 1, 1) and matplotlib.rcParams["figure.dpi"] == 150
    assert dict(matplotlib.rcParams) == before


def test_everything_is_drawn_into_the_given_axes_and_no_figure_is_opened(image, relevance):
    axes = plt.subplots(1, 2)[1]
    other = plt.figure()  # the current one, which must stay empty
    footprint = image[:1] > 0.5
    for draw in (
        lambda ax: plots.show_image(image, ax=ax),
        lambda ax: plots.relevance_map(relevance, ax=ax, bar=False),
        lambda ax: plots.overlay(image, relevance, ax=ax),
        lambda ax: plots.footprint_outline(footprint, ax=ax),
        lambda ax: plots.loss_curves([0, 1], {"total": [1.0, 0.5]}, names=["total"], ax=ax),
        lambda ax: plots.histograms({"a": image}, ax=ax),
        lambda ax: plots.score_against(torch.arange(9.0), torch.arange(9.0), bins=3, ax=ax),
    ):
        assert draw(axes[0]) is axes[0]
    assert not other.axes and len(plt.get_fignums()) == 2


def test_show_image_keeps_pixels_and_range(image):
    assert np.allclose(plots.show_image(image).images[0].get_array(), image.movedim(0, -1).numpy())
    grey = plots.show_image(image[:1] * 0.1, ax=plt.figure().gca(), title="dim").images[0]
    assert grey.get_clim() == (0, 1) and grey.get_array().shape == (12, 16)


def test_image_grid_places_and_labels(image):
    figure = plots.image_grid(
        [[image, None], [image, image]], row_labels=["a", "b"], column_labels=["c", "d"]
    )
    assert [len(ax.images) for ax in figure.axes] == [1, 0, 1, 1]
    assert [figure.axes[0].get_ylabel(), figure.axes[2].get_ylabel()] == ["a", "b"]
    assert [ax.get_title() for ax in figure.axes] == ["c", "d", "", ""]
    assert len(plots.image_grid(image.expand(2, 3, 3, 12, 16)).axes) == 6


def test_zero_relevance_is_white_in_every_panel(relevance):
    small = plots.relevance_map(relevance * 1e-6, ax=plt.figure().gca())
    lopsided = plots.relevance_map(relevance.abs(), ax=plt.figure().gca(), scale=2.0)
    nothing = plots.relevance_map(torch.zeros(1, 4, 4), ax=plt.figure().gca())
    for ax in (small, lopsided, nothing):
        assert np.allclose(face(ax, 0)[:3], 1, atol=0.04)  # the white of the colour map is 0.97
    red, _, blue, _ = face(lopsided, 2.0)
    assert red > 2 * blue and face(lopsided, -2.0)[2] > 2 * face(lopsided, -2.0)[0]


def test_relevance_map_adds_channels_and_has_a_colour_bar(relevance):
    ax = plots.relevance_map(relevance)
    assert np.allclose(ax.images[0].get_array(), relevance.sum(0).numpy(), atol=1e-6)
    assert [other.get_ylabel() for other in ax.figure.axes if other is not ax] == ["relevance per pixel"]


def test_relevance_scale_is_common_and_ignores_rare_peaks():
    calm = torch.ones(1, 40, 40)
    peaked = calm.clone()
    peaked[0, 0, 0] = 1e6
    assert plots.relevance_scale(peaked) == 1.0
    assert plots.relevance_scale(calm, 3 * calm) == pytest.approx(np.quantile([1] * 1600 + [3] * 1600, 0.995))
    lone = torch.zeros(1, 40, 40)
    lone[0, 0, 0] = 5
    assert plots.relevance_scale(lone) == 5  # the quantile is 0, a colour range cannot be


@pytest.mark.parametrize("inches", [4, 0.7], ids=["enlarged", "smaller than the picture"])
def test_overlay_shows_the_image_where_nothing_is_relevant(inches):
    """A map of zeros but for two squares over a bright picture of 400 px, by the pixels of the canvas."""
    image, relevance = torch.full((3, 400, 400), 0.8), torch.zeros(3, 400, 400)
    relevance[0, :100, :100], relevance[0, -100:, :100] = 2.0, -0.5
    figure = plt.figure(figsize=(inches, inches), dpi=100)
    plots.overlay(image, relevance, ax=figure.add_axes((0, 0, 1, 1)), scale=2.0)
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255
    side = len(drawn)
    assert np.allclose(drawn[side // 2, side // 2], 0.8, atol=0.01), "the image, not an opaque map of zeros"
    assert np.allclose(drawn[side // 8, side // 8], plt.get_cmap("RdBu_r")(1.0)[:3], atol=0.01)
    half = 0.5 * np.array(plt.get_cmap("RdBu_r")(0.375)[:3]) + 0.5 * 0.8  # opacity sqrt(0.5 / 2)
    assert np.allclose(drawn[-side // 8, side // 8], half, atol=0.01)


def test_footprint_outline_follows_the_pixel_edges():
    footprint = torch.zeros(1, 12, 16, dtype=torch.bool)
    footprint[0, 2:9, 5:12] = True
    corners = plots.footprint_outline(footprint).collections[0].get_paths()[0].vertices
    # a contour at one half runs midway between pixel centres: columns 5..11 lie inside 4.5..11.5
    assert (corners.min(0), corners.max(0)) == (pytest.approx([4.5, 1.5]), pytest.approx([11.5, 8.5]))


def test_loss_curves_draw_steps_and_running_mean():
    steps, losses = [10, 20, 30], {"b": [1.0, 2.0, 6.0], "a": [3.0, float("nan"), 1.0], "c": []}
    ax = plots.loss_curves(steps, losses, names=["a", "b"])
    assert ax.get_legend_handles_labels()[1] == ["a", "b"]
    assert all(line.get_xdata() == pytest.approx(steps) for line in ax.lines)
    assert [line.get_ydata() for line in ax.lines[2:]] == [pytest.approx(losses["b"])] * 2
    for window in (3, 9):  # more than there are: the mean of all
        mean = plots.loss_curves(steps, losses, names=["b"], window=window, ax=plt.figure().gca()).lines[1]
        assert (mean.get_xdata(), mean.get_ydata()) == (pytest.approx([30]), pytest.approx([3]))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_floating_type_is_drawn_alike(image, relevance, kind):
    """Values that all types hold exactly: quarters."""
    image, relevance = (image * 4).round() / 4, (relevance * 4).round() / 4
    for draw in (plots.show_image, plots.relevance_map, lambda i, **where: plots.overlay(i, i, **where)):
        for given in (image, relevance) if draw is plots.relevance_map else (image,):
            one, other = (
                draw(x, ax=plt.figure().gca()).images[0].get_array() for x in (given, given.to(kind))
            )
            assert np.array_equal(one, other)
    assert plots.relevance_scale(relevance) == plots.relevance_scale(relevance.to(kind))
    counts = [
        plots.histograms({"a": x}, ax=plt.figure().gca()).patches[0].get_xy() for x in (image, image.to(kind))
    ]
    assert np.allclose(*counts)
    x = torch.arange(9.0)
    lines = [plots.score_against(y, y, bins=3, ax=plt.figure().gca()).lines[0] for y in (x, x.to(kind))]
    assert np.array_equal(lines[0].get_ydata(), lines[1].get_ydata())


def test_histograms_have_area_one_and_common_bins(image):
    ax = plots.histograms({"all": image, "half": image / 2}, bins=10)
    edges = np.histogram_bin_edges(torch.cat([image, image / 2]).numpy(), 10)
    for patch, sample in zip(ax.patches, (image, image / 2), strict=True):
        drawn = patch.get_xy()[1:-1:2, 1]
        assert np.allclose(drawn, np.histogram(sample.numpy(), edges, density=True)[0], rtol=1e-5)


def test_score_against_draws_the_percentiles_of_each_bin():
    x, scores = torch.tensor([2.0, 0.0, 1.0, 0.4, 9.0, 1.5]), torch.tensor([10.0, 1.0, 5.0, 3.0, 99.0, 6.0])
    ax = plots.score_against(x, scores, bins=3)
    assert ax.lines[0].get_xdata() == pytest.approx([0.2, 1.25, 5.5])
    assert ax.lines[0].get_ydata() == pytest.approx([2, 5.5, 54.5])
    middle = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (middle.min(), middle.max()) == (1.5, 76.75)
    constant = plots.score_against(torch.ones(5), torch.arange(5), ax=plt.figure().gca())
    assert constant.lines[0].get_ydata() == pytest.approx([2])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.show_image(torch.rand(2, 3, 8, 8)), "one image"),
        (lambda: plots.show_image(torch.rand(2, 8, 8)), "1 or 3"),
        (lambda: plots.image_grid([]), "rows"),
        (lambda: plots.image_grid([[None], [None, None]]), "rows"),
        (lambda: plots.image_grid([[None]], row_labels=["a", "b"]), "2 row labels for 1"),
        (lambda: plots.show_image(SET), "got ImageSet"),
        (lambda: plots.image_grid([SET]), "one image in each place"),
        (lambda: plots.histograms({"a": SET}), "a: expected a tensor"),
        (lambda: plots.show_image(torch.zeros(3, 8, 8, dtype=torch.uint8)), "from 8 bit"),
        (lambda: plots.show_image(torch.full((1, 4, 4), float("nan"))), "nan_to_num"),
        (lambda: plots.loss_curves([0], {"a": [1.0]}, names=["b"]), "names of {'a': 1}"),
        (lambda: plots.loss_curves([], {}, names=[]), "0 steps"),
        (lambda: plots.loss_curves([], {"a": []}, names=["a"]), "0 steps"),
        (lambda: plots.loss_curves([0, 1], {"a": [1.0]}, names=["a"]), "2 steps"),
        (lambda: plots.loss_curves([0], {"a": [1.0]}, names=["a"], window=0), "window=0"),
        (lambda: plots.relevance_scale(), "no map"),
        (lambda: plots.relevance_map(torch.rand(8, 8)), "one image"),
        (lambda: plots.relevance_map(torch.full((1, 4, 4), float("nan"))), "finite"),
        (lambda: plots.relevance_map(torch.rand(1, 4, 4), scale=0), "scale is 0"),
        (lambda: plots.overlay(torch.rand(3, 4, 4), torch.rand(1, 4, 4), scale=float("nan")), "scale is nan"),
        (lambda: plots.overlay(torch.rand(3, 4, 4), torch.rand(1, 8, 8)), "one size"),
        (lambda: plots.footprint_outline(torch.ones(3, 4, 4)), "one image"),
        (lambda: plots.histograms({}), "at least one"),
        (lambda: plots.histograms({"a": torch.empty(0)}), "at least one"),
        (lambda: plots.histograms({"a": torch.tensor([float("nan")])}), "without NaN"),
        (lambda: plots.score_against(torch.rand(3), torch.rand(4)), "equal length"),
        (lambda: plots.score_against(torch.empty(0), torch.empty(0)), "at least one"),
    ],
)
def test_bad_input_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
