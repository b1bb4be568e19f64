"""Draw one thing into given Axes and return them; nothing here decides, shows or saves.

Common arguments: `ax`, the Axes to draw into (default: the current ones), always returned; `title`, `xlabel`,
`ylabel`, text. Images are (C, H, W) in [0, 1], one at a time, of any floating type; maps of relevance are
(C, H, W) of finite numbers, their channels added. Red speaks for, blue against, white is zero.
What cannot be drawn (a batch, bytes, no values) is a ValueError that says what was expected.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from galnb.checks import at_least

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito (2008)
_STYLE = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
}
_SIGNED = plt.get_cmap("RdBu_r")


@contextmanager
def style() -> Iterator[None]:
    """Give figures the look of the book inside a `with` block: white, 150 dpi, colour-blind-safe.

    Only these settings are put back afterwards: `plt.rc_context` would also undo the backend that a notebook
    starts inside the block.
    """
    before = {name: plt.rcParams[name] for name in _STYLE}
    plt.rcParams.update(_STYLE)
    try:
        yield
    finally:
        plt.rcParams.update(before)


def show_image(image: torch.Tensor, *, ax: Axes | None = None, title: str = "") -> Axes:
    """Show one grey or RGB image (1 or 3, H, W), black = 0 and white = 1; what lies beyond is cut."""
    ax = ax or plt.gca()
    pixels = _image(image, channels=(1, 3)).float().clamp(0, 1).movedim(0, -1).squeeze(-1).numpy()
    ax.imshow(pixels, vmin=0, vmax=1, cmap="gray", interpolation="nearest")
    return _bare(ax, title)


def image_grid(
    rows: Sequence[Sequence[torch.Tensor | None]],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    size: float = 1.5,
) -> Figure:
    """Show rows of images in a new figure.

    rows: images, None for an empty place, or a tensor (rows, columns, C, H, W).
    row_labels, column_labels: one for each row and column. size: inches per image.
    """
    try:
        rows = [list(row) for row in rows]
    except TypeError as error:
        raise ValueError(f"{error}; expected one image in each place of each row") from error
    widths = sorted({len(row) for row in rows})
    if len(widths) != 1 or not widths[0]:
        raise ValueError(f"rows hold {widths} images; expected the same number, at least one, in each")
    for labels, count, name in ((row_labels, len(rows), "row"), (column_labels, widths[0], "column")):
        if len(labels) not in (0, count):
            raise ValueError(f"got {len(labels)} {name} labels for {count} {name}s")
    inches = (size * widths[0], size * len(rows))
    figure, axes = plt.subplots(len(rows), widths[0], figsize=inches, squeeze=False, layout="constrained")
    for row, line in zip(rows, axes, strict=True):
        for image, ax in zip(row, line, strict=True):
            _bare(ax) if image is None else show_image(image, ax=ax)
    for label, ax in zip(column_labels, axes[0], strict=False):
        ax.set_title(label)
    for label, ax in zip(row_labels, axes[:, 0], strict=False):
        ax.set_ylabel(label)
    return figure


def loss_curves(
    steps: Sequence[int],
    losses: Mapping[str, Sequence[float]],
    *,
    names: Sequence[str] = (),
    window: int = 1,
    ax: Axes | None = None,
    ylabel: str = "loss",
) -> Axes:
    """Draw losses against the training step.

    losses: one value per step under each name; NaN leaves a gap. names: which of them, default all.
    window: draw the mean over so many entries on top of the single ones.
    """
    at_least(1, window=window)
    names = tuple(names) or tuple(sorted(losses))
    if not len(steps) or not names or not set(names) <= set(losses):
        raise ValueError(f"no losses to draw for {list(names)}; known are {sorted(losses)}")
    if uneven := [name for name in names if len(losses[name]) != len(steps)]:
        raise ValueError(f"{uneven} have not one value for each of the {len(steps)} steps")
    ax = ax or plt.gca()
    for name in names:
        values = np.array(losses[name])
        (line,) = ax.plot(steps, values, label=name, linewidth=1, alpha=1 if window < 2 else 0.3)
        if window > 1 and len(values) >= window:
            line.set_label(None)
            mean = np.convolve(values, np.ones(window) / window, "valid")
            ax.plot(steps[window - 1 :], mean, color=line.get_color(), label=name)
    ax.set(xlabel="training step", ylabel=ylabel)
    ax.legend()
    return ax


def relevance_scale(*maps: torch.Tensor, share: float = 0.995) -> float:
    """Return one colour scale for several maps: the `share` quantile of their |relevance|, > 0.

    A few pixels hold most of the relevance; with their maximum as the scale all others would look white.
    """
    if not maps:
        raise ValueError("got no map; expected at least one (C, H, W)")
    sizes = np.concatenate([np.abs(_image(relevance).sum(0).numpy()).ravel() for relevance in maps])
    return float(np.quantile(sizes, share)) or float(sizes.max()) or 1.0


def relevance_map(
    relevance: torch.Tensor,
    *,
    ax: Axes | None = None,
    scale: float | None = None,
    title: str = "",
    bar: bool = True,
) -> Axes:
    """Show one map of relevance in colours symmetric about zero.

    scale: the colours run from -scale to scale; give panels to be compared the same one.
        Default: `relevance_scale(relevance)`. bar: whether to draw a colour bar.
    """
    flat, scale = _scaled(relevance, scale)
    ax = ax or plt.gca()
    drawn = ax.imshow(flat, cmap=_SIGNED, vmin=-scale, vmax=scale, interpolation="nearest")
    if bar:
        colours = ax.figure.colorbar(drawn, ax=ax, label="relevance per pixel", extend="both", shrink=0.8)
        colours.formatter.set_powerlimits((-2, 3))
    return _bare(ax, title, frame=True)


def overlay(
    image: torch.Tensor,
    relevance: torch.Tensor,
    *,
    ax: Axes | None = None,
    scale: float | None = None,
    title: str = "",
) -> Axes:
    """Lay a map of relevance over its image in grey; strong relevance hides the image.

    Opacity is the square root of |relevance| / scale. Both are mixed here and drawn as one picture: some
    versions of matplotlib (3.10.0) forget the opacity of single pixels in a picture that is drawn small.
    """
    flat, scale = _scaled(relevance, scale)
    grey = _image(image).clamp(0, 1).mean(0).numpy()
    if grey.shape != flat.shape:
        raise ValueError(f"the image is {grey.shape} and its map {flat.shape} px; expected one size")
    opacity = np.sqrt(np.clip(np.abs(flat) / scale, 0, 1))[..., None]
    colours = _SIGNED((flat / scale + 1) / 2)[..., :3]
    ax = ax or plt.gca()
    ax.imshow(opacity * colours + (1 - opacity) * grey[..., None], interpolation="nearest")
    return _bare(ax, title)


def footprint_outline(footprint: torch.Tensor, *, ax: Axes | None = None, colour: str = COLOURS[4]) -> Axes:
    """Outline the real pixels of an image, footprint (1, H, W) bool, on the Axes that show the image."""
    inside = np.pad(_image(footprint, channels=(1,))[0].numpy(), 1)
    ax = ax or plt.gca()
    height, width = footprint.shape[-2:]
    edges = [np.arange(-1, side + 1) for side in (width, height)]
    ax.contour(*edges, inside, [0.5], colors=[colour], linewidths=1.5)
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    return ax


def histograms(
    samples: Mapping[str, torch.Tensor],
    *,
    bins: int | Sequence[float] = 40,
    ax: Axes | None = None,
    xlabel: str = "",
) -> Axes:
    """Compare named samples of any shape by histograms of area 1 in common bins (number or edges)."""
    values = {name: _numbers(sample, name).ravel() for name, sample in samples.items()}
    if not values or not all(len(sample) for sample in values.values()):
        raise ValueError(f"samples {list(values)} hold nothing to count; expected at least one value in each")
    ax = ax or plt.gca()
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins)
    for index, (name, sample) in enumerate(values.items()):
        dashes = ("-", "--", ":")[index % 3]
        ax.hist(sample, edges, density=True, histtype="step", linewidth=1.5, linestyle=dashes, label=name)
    ax.set(xlabel=xlabel, ylabel="density")
    ax.legend()
    return ax


def score_against(
    x: torch.Tensor,
    scores: torch.Tensor,
    *,
    bins: int | Sequence[float] = 6,
    ax: Axes | None = None,
    xlabel: str = "",
    label: str = "",
) -> Axes:
    """Draw the median of a score in bins of another quantity, with bands for the middle 50 % and 90 %.

    x, scores: (N,), such as separation in pixels and PSNR in dB.
    bins: a number gives bins with equally many values, else edges; empty bins and values beyond are left out.
    """
    x, scores = _numbers(x, "x").astype(float), _numbers(scores, "scores").astype(float)
    if x.shape != scores.shape or x.ndim != 1 or not len(x):
        raise ValueError(f"got shapes {x.shape} and {scores.shape}; expected two rows of equal length")
    edges = np.quantile(x, np.linspace(0, 1, bins + 1)) if isinstance(bins, int) else np.asarray(bins, float)
    place = np.digitize(x, edges[1:-1])
    within = (x >= edges[0]) & (x <= edges[-1])
    groups = [np.flatnonzero(within & (place == index)) for index in range(len(edges) - 1)]
    groups = [group for group in groups if len(group)]
    if not groups:
        raise ValueError(f"no x between the edges {edges.tolist()}; x runs from {x.min():g} to {x.max():g}")
    centres = [np.median(x[group]) for group in groups]
    bands = np.transpose([np.percentile(scores[group], (5, 25, 50, 75, 95)) for group in groups])
    ax = ax or plt.gca()
    (line,) = ax.plot(centres, bands[2], marker="o", markersize=4, label=label or None)
    for bottom, top, alpha in ((bands[1], bands[3], 0.3), (bands[0], bands[4], 0.12)):
        ax.fill_between(centres, bottom, top, color=line.get_color(), alpha=alpha, linewidth=0)
    ax.set_xlabel(xlabel)
    return ax


def _image(image: torch.Tensor, channels: Sequence[int] = ()) -> torch.Tensor:
    """Return one image or map as finite float64 on the CPU."""
    if not isinstance(image, torch.Tensor) or image.ndim != 3 or len(image) not in (channels or [len(image)]):
        found = tuple(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
        shape = f"({' or '.join(map(str, channels)) or 'C'}, H, W)"
        raise ValueError(
            f"got {found}, expected one image {shape}; of a batch take x[0], of a set .pixels[0]"
        )
    if not (image.is_floating_point() or image.dtype == torch.bool):
        raise ValueError(
            f"got dtype {image.dtype}, expected floats in [0, 1]; from 8 bit use x.float() / 255"
        )
    image = image.detach().cpu().double()
    if not image.isfinite().all():
        raise ValueError("got NaN or infinite values, expected finite ones; see torch.nan_to_num")
    return image


def _scaled(relevance: torch.Tensor, scale: float | None) -> tuple[np.ndarray, float]:
    flat = _image(relevance).sum(0).numpy()
    scale = relevance_scale(relevance) if scale is None else float(scale)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale is {scale:g}; expected a finite number > 0")
    return flat, scale


def _numbers(values: torch.Tensor | Sequence[float], name: str) -> np.ndarray:
    try:
        values = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is {type(values).__name__}; expected numbers, such as a tensor") from error
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    if values.isnan().any():
        raise ValueError(f"{name} holds NaN; expected numbers, see torch.nan_to_num")
    return values.numpy()


def _bare(ax: Axes, title: str = "", *, frame: bool = False) -> Axes:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(frame)
    if title:
        ax.set_title(title)
    return ax
