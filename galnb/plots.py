"""Draw one thing into given Axes and return them; nothing here decides, shows or saves.

Common arguments: `ax`, the Axes to draw into (default: the current ones), always returned; `title`, `xlabel`,
`ylabel`, text. Images are (C, H, W) in [0, 1], one at a time. Red speaks for, blue against, white is zero.
What cannot be drawn (a batch, an unknown name, no values) is a ValueError that says what was expected.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from galnb.training import History

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito (2008)
STYLE = {
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


@contextmanager
def style() -> Iterator[None]:
    """Give figures the look of the book inside a `with` block: white, 150 dpi, colour-blind-safe.

    Only the settings of `STYLE` are put back afterwards: `plt.rc_context` would also undo the backend that a
    notebook starts inside the block.

    Chapter: Galaxies as pixels
    """
    before = {name: plt.rcParams[name] for name in STYLE}
    plt.rcParams.update(STYLE)
    try:
        yield
    finally:
        plt.rcParams.update(before)


def show_image(image: torch.Tensor, *, ax: Axes | None = None, title: str = "") -> Axes:
    """Show one grey or RGB image (1 or 3, H, W), black = 0 and white = 1.

    Chapter: Galaxies as pixels
    """
    _check(image, channels=(1, 3))
    ax = ax or plt.gca()
    pixels = image.detach().cpu().float().clamp(0, 1).movedim(0, -1).squeeze(-1).numpy()
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

    Parameters
    ----------
    rows : sequence of sequences of images, or tensor (rows, columns, C, H, W)
        None leaves a place empty.
    row_labels, column_labels : sequence of str, optional
        One for each row and column.
    size : float, default 1.5
        Inches per image.

    Chapter: Galaxies as pixels
    """
    widths = sorted({len(row) for row in rows})
    if len(widths) != 1 or not widths[0]:
        raise ValueError(f"rows hold {widths} images; expected the same number, at least one, in each")
    for labels, count, name in ((row_labels, len(rows), "row"), (column_labels, widths[0], "column")):
        if len(labels) not in (0, count):
            raise ValueError(f"got {len(labels)} {name} labels for {count} {name}s")
    figure, axes = plt.subplots(
        len(rows),
        widths[0],
        figsize=(size * widths[0], size * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    for row, line in zip(rows, axes, strict=True):
        for image, ax in zip(row, line, strict=True):
            _bare(ax) if image is None else show_image(image, ax=ax)
    for label, ax in zip(column_labels, axes[0], strict=False):
        ax.set_title(label)
    for label, ax in zip(row_labels, axes[:, 0], strict=False):
        ax.set_ylabel(label)
    return figure


def loss_curves(
    history: History,
    *,
    names: Sequence[str] = (),
    window: int = 1,
    ax: Axes | None = None,
    ylabel: str = "loss",
) -> Axes:
    """Draw losses against the training step.

    Parameters
    ----------
    history : galnb.training.History
        Steps and losses; NaN leaves a gap.
    names : sequence of str, optional
        Which losses; default all.
    window : int, default 1
        Draw the mean over so many entries on top of the single ones.

    Chapter: The deblender GAN
    """
    names = tuple(names) or tuple(sorted(history.losses))
    if not history.steps or not set(names) <= set(history.losses):
        raise ValueError(f"no losses to draw for {list(names)}; the history knows {sorted(history.losses)}")
    ax = ax or plt.gca()
    for name in names:
        values = np.array(history.losses[name])
        (line,) = ax.plot(history.steps, values, label=name, linewidth=1, alpha=1 if window < 2 else 0.3)
        if window > 1 and len(values) >= window:
            line.set_label(None)
            mean = np.convolve(values, np.ones(window) / window, "valid")
            ax.plot(history.steps[window - 1 :], mean, color=line.get_color(), label=name)
    ax.set(xlabel="training step", ylabel=ylabel)
    ax.legend()
    return ax


def relevance_scale(*maps: torch.Tensor, share: float = 0.995) -> float:
    """Return one colour scale for several maps (C, H, W): the `share` quantile of their |relevance|.

    A few pixels hold most of the relevance; with their maximum as the scale all others would look white.

    Chapter: Polarized LRP
    """
    sizes = np.concatenate([np.abs(_flat(relevance)).ravel() for relevance in maps])
    return float(np.quantile(sizes, share)) or float(sizes.max()) or 1.0


def relevance_map(
    relevance: torch.Tensor,
    *,
    ax: Axes | None = None,
    scale: float | None = None,
    title: str = "",
    bar: bool = True,
) -> Axes:
    """Show one map of relevance (C, H, W), its channels added, in colours symmetric about zero.

    Parameters
    ----------
    scale : float, optional
        The colours run from -scale to scale; give panels to be compared the same one.
        Default: `relevance_scale(relevance)`.
    bar : bool, default True
        Draw a colour bar.

    Chapter: Polarized LRP
    """
    flat = _flat(relevance)
    scale = relevance_scale(relevance) if scale is None else scale
    if not (scale > 0 and np.isfinite(flat).all()):
        raise ValueError(f"scale is {scale}; expected a number > 0 and a map of finite numbers")
    ax = ax or plt.gca()
    ax.imshow(flat, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest")
    if bar:
        _relevance_bar([ax])
    return _bare(ax, title, frame=True)


def polarized_maps(
    positive: torch.Tensor,
    negative: torch.Tensor,
    *,
    axes: Sequence[Axes] | None = None,
    scale: float | None = None,
) -> Sequence[Axes]:
    """Show both polarities of one image on one common scale, with their masses (sums) in the titles.

    Parameters
    ----------
    positive, negative : torch.Tensor (C, H, W), >= 0
        Evidence for "fake" is drawn with its sign turned, in blue.
    axes : two matplotlib Axes, optional
        Default: those of a new figure.
    scale : float, optional
        As in `relevance_map`; default common to both.

    Chapter: Polarized LRP
    """
    if positive.shape != negative.shape or min(positive.min(), negative.min()) < 0:
        raise ValueError(
            f"got shapes {tuple(positive.shape)}, {tuple(negative.shape)} and minima {positive.min():.3g}, "
            f"{negative.min():.3g}; expected one shape and values >= 0. For a signed map take relevance_map"
        )
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(6.4, 3), layout="constrained")[1]
    scale = relevance_scale(positive, negative) if scale is None else scale
    relevance_map(positive, ax=axes[0], scale=scale, title=f"for real, mass {positive.sum():.3g}", bar=False)
    relevance_map(-negative, ax=axes[1], scale=scale, title=f"for fake, mass {negative.sum():.3g}", bar=False)
    _relevance_bar(axes)
    return axes


def overlay(
    image: torch.Tensor,
    relevance: torch.Tensor,
    *,
    ax: Axes | None = None,
    scale: float | None = None,
    title: str = "",
) -> Axes:
    """Lay a map of relevance over its image in grey; strong relevance hides the image.

    Chapter: Polarized LRP
    """
    flat = _flat(relevance)
    scale = relevance_scale(relevance) if scale is None else scale
    ax = show_image(image.mean(0, keepdim=True), ax=ax)
    opacity = np.sqrt(np.clip(np.abs(flat) / scale, 0, 1))
    ax.imshow(flat, cmap="RdBu_r", vmin=-scale, vmax=scale, alpha=opacity, interpolation="nearest")
    return _bare(ax, title)


def footprint_outline(
    footprint: torch.Tensor, *, ax: Axes | None = None, colour: str = COLOURS[4], label: str = ""
) -> Axes:
    """Outline the real pixels of an image, footprint (1, H, W) bool, on the Axes that show the image.

    Chapter: Blending
    """
    _check(footprint, channels=(1,))
    ax = ax or plt.gca()
    height, width = footprint.shape[-2:]
    inside = np.pad(footprint[0].cpu().numpy().astype(float), 1)
    ax.contour(
        np.arange(-1, width + 1), np.arange(-1, height + 1), inside, [0.5], colors=[colour], linewidths=1.5
    )
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    if label:
        ax.plot([], [], color=colour, label=label)
    return ax


def histograms(
    samples: Mapping[str, torch.Tensor],
    *,
    bins: int | Sequence[float] = 40,
    ax: Axes | None = None,
    xlabel: str = "",
) -> Axes:
    """Compare named samples of any shape by histograms of area 1 in common bins (number or edges).

    Chapter: Galaxies as pixels
    """
    values = {
        name: np.asarray(torch.as_tensor(sample).detach().cpu()).ravel() for name, sample in samples.items()
    }
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
    ylabel: str = "",
    label: str = "",
) -> Axes:
    """Draw the median of a score in bins of another quantity, with bands for the middle 50 % and 90 %.

    Parameters
    ----------
    x, scores : torch.Tensor (N,)
        Such as separation in pixels and PSNR in dB.
    bins : int or bin edges, default 6
        A number gives bins with equally many values; empty bins and values beyond the edges are left out.

    Chapter: Evaluation
    """
    x, scores = (np.asarray(torch.as_tensor(values).detach().cpu(), float) for values in (x, scores))
    if x.shape != scores.shape or x.ndim != 1 or not len(x):
        raise ValueError(f"got shapes {x.shape} and {scores.shape}; expected two rows of equal length")
    edges = np.quantile(x, np.linspace(0, 1, bins + 1)) if isinstance(bins, int) else np.asarray(bins, float)
    place = np.digitize(x, edges[1:-1])
    within = (x >= edges[0]) & (x <= edges[-1])
    groups = [
        group for index in range(len(edges) - 1) if len(group := np.flatnonzero(within & (place == index)))
    ]
    if not groups:
        raise ValueError(f"no x between the edges {edges.tolist()}; x runs from {x.min():g} to {x.max():g}")
    centres = [np.median(x[group]) for group in groups]
    low, lower, middle, upper, high = np.transpose(
        [np.percentile(scores[g], (5, 25, 50, 75, 95)) for g in groups]
    )
    ax = ax or plt.gca()
    (line,) = ax.plot(centres, middle, marker="o", markersize=4, label=label or None)
    for bottom, top, alpha in ((lower, upper, 0.3), (low, high, 0.12)):
        ax.fill_between(centres, bottom, top, color=line.get_color(), alpha=alpha, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def _check(image: torch.Tensor, channels: Sequence[int] = ()) -> None:
    shape = tuple(image.shape)
    if len(shape) != 3 or (channels and shape[0] not in channels):
        expected = " or ".join(map(str, channels)) or "C"
        raise ValueError(
            f"got shape {shape}, expected one image ({expected}, H, W); of a batch take images[0]"
        )


def _flat(relevance: torch.Tensor) -> np.ndarray:
    _check(relevance)
    return relevance.detach().cpu().double().sum(0).numpy()


def _relevance_bar(axes: Sequence[Axes]) -> None:
    bar = axes[-1].figure.colorbar(
        axes[-1].images[-1], ax=list(axes), label="relevance per pixel", extend="both", shrink=0.8
    )
    bar.formatter.set_powerlimits((-2, 3))


def _bare(ax: Axes, title: str = "", *, frame: bool = False) -> Axes:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(frame)
    if title:
        ax.set_title(title)
    return ax
