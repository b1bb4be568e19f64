"""Draw one thing into given Axes and return them; nothing here decides, shows or saves.

Common arguments: `ax`, the Axes to draw into (default: the current ones), always returned; `title`, `xlabel`,
`ylabel`, text. Images are (C, H, W) in [0, 1], one at a time; maps of relevance are (C, H, W) of finite
numbers, their channels added. Both are of any floating type. Red speaks for, blue against, white is zero.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from galnb.checks import at_least, check_floats

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito (2008)
_STYLE = {
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "axes.titlesize": 10,
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

    `plt.rc_context` would also undo what a notebook's backend sets when it starts inside the block.
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

    rows: images, None for an empty place, or a tensor (rows, columns, C, H, W). size: inches per image.
    row_labels, column_labels: one for each row and column, or none at all.
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
    names: Sequence[str],
    window: int = 1,
    ax: Axes | None = None,
    ylabel: str = "loss",
) -> Axes:
    """Draw losses against the training step, faint, and their mean over the last `window` entries.

    losses: one value per step under each name. names: which of them.
    """
    at_least(1, window=window)
    if not names or not all(len(losses.get(name, ())) == len(steps) > 0 for name in names):
        known = {name: len(values) for name, values in losses.items()}
        raise ValueError(f"got {[*names]}; expected names of {known}, a value at each of {len(steps)} steps")
    ax, window = ax or plt.gca(), min(window, len(steps))
    for name in names:
        (line,) = ax.plot(steps, losses[name], linewidth=1, alpha=0.3)
        mean = np.convolve(losses[name], np.ones(window) / window, "valid")
        ax.plot(steps[window - 1 :], mean, color=line.get_color(), label=name)
    ax.set(xlabel="training step", ylabel=ylabel)
    ax.legend()
    return ax


def relevance_scale(*maps: torch.Tensor, share: float = 0.995) -> float:
    """Return one colour scale for several maps: the `share` quantile of their |relevance|, > 0.

    With the maximum, which a few pixels hold, all others would look white.
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
    """Show one map of relevance in colours from -scale to scale (default: `relevance_scale(relevance)`).

    Give panels to be compared the same scale. bar: whether to draw a colour bar.
    """
    flat, scale = _scaled(relevance, scale)
    ax = ax or plt.gca()
    drawn = ax.imshow(flat, cmap=_SIGNED, vmin=-scale, vmax=scale, interpolation="nearest")
    if bar:
        colours = ax.figure.colorbar(drawn, ax=ax, label="relevance per pixel", extend="both", shrink=0.8)
        colours.formatter.set_powerlimits((-2, 3))
    return _bare(ax, title, frame=True)


def overlay(
    image: torch.Tensor, relevance: torch.Tensor, *, ax: Axes | None = None, scale: float | None = None
) -> Axes:
    """Lay a map of relevance over its image in grey, with opacity sqrt(|relevance| / scale).

    Both are mixed here and drawn as one picture: some versions of matplotlib (3.10.0) forget the opacity of
    single pixels in a picture that is drawn small.
    """
    flat, scale = _scaled(relevance, scale)
    grey = _image(image).clamp(0, 1).mean(0).numpy()
    if grey.shape != flat.shape:
        raise ValueError(f"the image is {grey.shape} and its map {flat.shape} px; expected one size")
    opacity = np.sqrt(np.clip(np.abs(flat) / scale, 0, 1))[..., None]
    colours = _SIGNED((flat / scale + 1) / 2)[..., :3]
    ax = ax or plt.gca()
    ax.imshow(opacity * colours + (1 - opacity) * grey[..., None], interpolation="nearest")
    return _bare(ax)


def footprint_outline(footprint: torch.Tensor, *, ax: Axes | None = None, colour: str = COLOURS[4]) -> Axes:
    """Outline the real pixels of an image, footprint (1, H, W) bool, on the Axes that show the image."""
    inside = np.pad(_image(torch.as_tensor(footprint).float(), channels=(1,))[0].numpy(), 1)
    ax = ax or plt.gca()
    height, width = footprint.shape[-2:]
    edges = [np.arange(-1, side + 1) for side in (width, height)]
    ax.contour(*edges, inside, [0.5], colors=[colour], linewidths=1.5)
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    return ax


def histograms(
    samples: Mapping[str, torch.Tensor], *, bins: int = 40, ax: Axes | None = None, xlabel: str = ""
) -> Axes:
    """Compare named samples of any shape by histograms of area 1 in common bins."""
    values = {name: _numbers(sample, name).ravel() for name, sample in samples.items()}
    ax = ax or plt.gca()
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins)
    for index, (name, sample) in enumerate(values.items()):
        dashes = ("-", "--", ":")[index % 3]
        ax.hist(sample, edges, density=True, histtype="step", linewidth=1.5, linestyle=dashes, label=name)
    ax.set(xlabel=xlabel, ylabel="density")
    ax.legend()
    return ax


def score_against(
    x: torch.Tensor, scores: torch.Tensor, *, bins: int = 6, ax: Axes | None = None, label: str = ""
) -> Axes:
    """Draw the median of a score in bins of another quantity, with bands for the middle 50 % and 90 %.

    x, scores: (N,), such as separation in pixels and PSNR in dB. bins: how many, with equally many values.
    """
    x, scores = _numbers(x, "x"), _numbers(scores, "scores")
    if x.shape != scores.shape or x.ndim != 1:
        raise ValueError(f"got shapes {x.shape} and {scores.shape}; expected two rows of equal length")
    place = np.digitize(x, np.quantile(x, np.linspace(0, 1, bins + 1)[1:-1]))
    groups = [place == index for index in np.unique(place)]
    centres = [np.median(x[group]) for group in groups]
    spread = [np.percentile(scores[group], (5, 25, 50, 75, 95)) for group in groups]
    low, lower, middle, upper, high = np.transpose(spread)
    ax = ax or plt.gca()
    (line,) = ax.plot(centres, middle, marker="o", markersize=4, label=label or None)
    for bottom, top, alpha in ((lower, upper, 0.3), (low, high, 0.12)):
        ax.fill_between(centres, bottom, top, color=line.get_color(), alpha=alpha, linewidth=0)
    return ax


def _image(image: torch.Tensor, channels: Sequence[int] = ()) -> torch.Tensor:
    """Return one image or map as finite float64 on the CPU."""
    check_floats(image, name="image", finite=True)
    if image.ndim != 3 or len(image) not in (channels or [len(image)]):
        shape = f"({' or '.join(map(str, channels)) or 'C'}, H, W)"
        raise ValueError(f"got {tuple(image.shape)}, expected one image {shape}; of a batch take x[0]")
    return image.detach().cpu().double()


def _scaled(relevance: torch.Tensor, scale: float | None) -> tuple[np.ndarray, float]:
    scale = relevance_scale(relevance) if scale is None else float(scale)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale:g}; expected a finite number > 0")
    return _image(relevance).sum(0).numpy(), scale


def _numbers(values: torch.Tensor, name: str) -> np.ndarray:
    if not isinstance(values, torch.Tensor) or not values.numel() or values.isnan().any():
        raise ValueError(f"{name}: expected a tensor, at least one number without NaN; see torch.nan_to_num")
    return values.detach().cpu().double().numpy()


def _bare(ax: Axes, title: str = "", *, frame: bool = False) -> Axes:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(frame)
    if title:
        ax.set_title(title)
    return ax
