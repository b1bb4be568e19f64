"""Compose a blend by hand, ask a network about it, draw and export the answer; widgets not included."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from galnb import plots
from galnb.blending import BLEND_RULES
from galnb.blending.fills import FILLS
from galnb.files import write_atomically
from galnb.gans import Gan
from galnb.images import check_images
from galnb.relevance import Polarized, deletion_gate, polarized_relevance
from galnb.training.checkpoints import shipped_names


@dataclass(frozen=True)
class Placement:
    """Say where the second galaxy of a blend stands.

    Parameters
    ----------
    x, y : float
        Pixels from the centre, to the right and down.
    angle : float
        Degrees, counter-clockwise.
    scale, flux : float
        Magnification, > 0; factor on the light above the sky, >= 0.

    Notes
    -----
    A wrong value is a ValueError. Chapter: The explorer
    """

    x: float = 10.0
    y: float = 0.0
    angle: float = 0.0
    scale: float = 1.0
    flux: float = 1.0

    def __post_init__(self) -> None:
        finite = all(math.isfinite(value) for value in vars(self).values())
        if not (finite and self.scale > 0 and self.flux >= 0):
            raise ValueError(f"got {self}; expected finite numbers, scale > 0 and flux >= 0")


@dataclass(frozen=True)
class Examination:
    """Hold what a discriminator says about one image (C, H, W) in [0, 1]: its maps, a batch of one, and the
    changes of the logit by `galnb.relevance.deletion_gate`, positive map first.

    Chapter: The explorer
    """

    image: torch.Tensor
    maps: Polarized
    gate: tuple[float, float]


def compose(
    first: torch.Tensor,
    second: torch.Tensor,
    placement: Placement,
    *,
    rule: str = "max",
    fill: str = "noise",
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend two galaxies as placed by hand.

    Parameters
    ----------
    first, second : torch.Tensor, shape (C, H, W)
        Square images in [0, 1] of one shape; the first stays in the centre.
    placement : Placement
        Of the second.
    rule, fill : str
        Keys of `galnb.blending.BLEND_RULES` and `galnb.blending.fills.FILLS`.
    generator : torch.Generator
        For fills that draw noise.

    Returns
    -------
    blended : torch.Tensor, shape (C, H, W)
    galaxies : torch.Tensor, shape (2, C, H, W)
        The truth.

    Notes
    -----
    Images or names that do not fit are a ValueError. Chapter: The explorer
    """
    for name, image in (("first", first), ("second", second)):
        check_images(image[None], name=name)
    if first.shape != second.shape or first.shape[1] != first.shape[2]:
        got = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"got galaxies of shape {got}; expected two square images of one shape")
    if rule not in BLEND_RULES or fill not in FILLS:
        raise ValueError(f"got {rule!r}, {fill!r}; expected one of {sorted(BLEND_RULES)}, {sorted(FILLS)}")
    angle, size = math.radians(placement.angle), first.shape[-1]
    cos, sin = math.cos(angle) / placement.scale, math.sin(angle) / placement.scale
    back = torch.tensor([[cos, -sin], [sin, cos]])  # rows run down, so this turns counter-clockwise
    shift = torch.tensor([[placement.x], [placement.y]]) * (2 / size)
    grid = F.affine_grid(torch.cat([back, -back @ shift], 1)[None], [1, 1, size, size], align_corners=False)
    moved = FILLS[fill](second[None], grid, generator)[0]
    sky = second.flatten(1).median(1).values[:, None, None]
    galaxies = torch.stack([first, (sky + placement.flux * (moved - sky)).clamp(0, 1)])
    return BLEND_RULES[rule](galaxies[None])[0], galaxies


def examine(
    gan: Gan,
    image: torch.Tensor,
    *,
    reading: str = "reference",
    references: torch.Tensor | None = None,
    generator: torch.Generator,
) -> Examination:
    """Ask the discriminator about one image: score, both maps, deletion gate.

    Parameters
    ----------
    gan : Gan
        Whose discriminator judges.
    image : torch.Tensor, shape (C, H, W)
        In [0, 1].
    reading : str
        Key of `galnb.relevance.READINGS`.
    references : torch.Tensor, shape (K, C, H, W), optional
        In [0, 1]; used by reading "reference" only.
    generator : torch.Generator
        Draws the sky noise of the gate.

    Notes
    -----
    A wrong value is a ValueError, as in `galnb.relevance.polarized_relevance`. Chapter: The explorer
    """
    check_images(image[None], name="image")
    given = gan.prepare(image[None])
    others = gan.prepare(references) if reading == "reference" and references is not None else None
    maps = polarized_relevance(gan.discriminator, given, reading=reading, references=others)
    gate = deletion_gate(gan.discriminator, given, maps, generator=generator)[0]
    return Examination(image, maps, tuple(gate.tolist()))


def radial_profile(maps: torch.Tensor, *, width: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Average maps over rings about their centre, channels added.

    Parameters
    ----------
    maps : torch.Tensor, shape (B, C, H, W)
        Square.
    width : float
        Of a ring, pixels; rings that leave the image are left out.

    Returns
    -------
    radius, profile : torch.Tensor, shapes (R,) and (B, R)
        Middle of each ring, pixels; mean per pixel of the ring.

    Notes
    -----
    Chapter: Training stages
    """
    if maps.ndim != 4 or maps.shape[-1] != maps.shape[-2] or not 0 < width <= maps.shape[-1] / 2:
        raise ValueError(f"got shape {tuple(maps.shape)}, width {width}; expected square (B, C, H, W) maps")
    size = maps.shape[-1]
    line = torch.arange(size) - (size - 1) / 2
    ring = (torch.hypot(line, line[:, None]) / width).long().flatten()
    count = int(size / 2 / width)
    member = F.one_hot(ring.clamp(max=count), count + 1)[:, :count].to(maps)
    return (torch.arange(count) + 0.5) * width, maps.sum(1).flatten(1) @ member / member.sum(0)


def gate_verdicts(gate: Sequence[float]) -> tuple[str, str]:
    """Say "passed", "FAILED" or "empty map" for both changes of the logit.

    Chapter: The explorer
    """
    wanted = zip(gate, (-1, 1), strict=True)
    return tuple(
        "passed" if change * sign > 0 else "FAILED" if change else "empty map" for change, sign in wanted
    )


def numbers(examination: Examination) -> dict:
    """Return what the figure of an examination shows, as numbers that JSON can hold.

    Chapter: The explorer
    """
    positive, negative = examination.maps.per_pixel()
    radius, profiles = radial_profile(torch.cat([positive, negative]))
    return {
        "logit": float(examination.maps.score),
        "probability_real": float(examination.maps.score.sigmoid()),
        "reading": examination.maps.reading,
        "mass": {"positive": float(positive.sum()), "negative": float(negative.sum())},
        "leak": examination.maps.leak[0].tolist(),
        "gate_logit_change": list(examination.gate),
        "gate": list(gate_verdicts(examination.gate)),
        "radius_px": radius.tolist(),
        "profile": {"positive": profiles[0].tolist(), "negative": profiles[1].tolist()},
    }


POLARITIES = {"both": (1, 1), "for real": (1, 0), "for fake": (0, 1)}


def draw(
    blended: torch.Tensor,
    drawn: torch.Tensor,
    examination: Examination,
    *,
    polarity: str = "both",
    strongest: float = 1.0,
    judged: int | None = None,
) -> Figure:
    """Draw the blend, the two galaxies drawn from it, and what the discriminator says about one image.

    Parameters
    ----------
    blended, drawn : torch.Tensor, shapes (C, H, W) and (2, C, H, W)
        In [0, 1].
    examination : Examination
        About a drawn galaxy or any other image.
    polarity : str
        Key of `POLARITIES`: which map the overlay shows.
    strongest : float
        Share of the pixels, in (0, 1], that the overlay keeps: those with the strongest relevance.
    judged : int, optional
        Which drawn galaxy the examination is about, to mark it.

    Returns
    -------
    matplotlib.figure.Figure
        Not registered with pyplot: it vanishes when nobody holds it. Chapter: The explorer
    """
    if polarity not in POLARITIES or not 0 < strongest <= 1:
        got = f"polarity {polarity!r}, strongest {strongest}"
        raise ValueError(f"got {got}; expected one of {sorted(POLARITIES)} and a share in (0, 1]")
    with plots.style():
        figure = Figure(figsize=(8.4, 4.5), dpi=100, layout="none")
        axes = figure.subplots(2, 4, gridspec_kw={"left": 0.01, "right": 0.95, "wspace": 0.12, "hspace": 0.3})
        figure.subplots_adjust(top=0.93, bottom=0.1)
        _draw_images(axes[0], blended, drawn, examination, judged)
        _draw_maps(axes[1], examination, POLARITIES[polarity], strongest)
    return figure


def _draw_images(axes, blended, drawn, examination, judged) -> None:
    names = [
        f"drawn: {name}" + " ◂ judged" * (judged == index) for index, name in enumerate(("first", "second"))
    ]
    for ax, image, name in zip(axes, (blended, *drawn), ("blend", *names), strict=False):
        plots.show_image(image, ax=ax, title=name)
    axes[3].set_axis_off()
    facts, score = numbers(examination), float(examination.maps.score)
    lines = [
        f"called {'real' if score > 0 else 'fake'}",
        f"logit {score:+.2f}, p(real) {facts['probability_real']:.3f}",
    ]
    lines += [f'reading "{examination.maps.reading}"', ""]
    for name, change, verdict in zip(("positive", "negative"), examination.gate, facts["gate"], strict=True):
        lines += [f"{name} map: mass {facts['mass'][name]:.3g}", f"  gate: logit {change:+.2f}, {verdict}"]
    axes[3].text(
        0, 0.97, "\n".join(lines), va="top", fontsize=9, transform=axes[3].transAxes, linespacing=1.5
    )


def _draw_maps(axes, examination, shown, strongest) -> None:
    positive, negative = (part[0] for part in examination.maps.per_pixel())
    scale = plots.relevance_scale(positive, negative)
    for ax, part, name in zip(axes, (positive, -negative), ("for real", "for fake"), strict=False):
        plots.relevance_map(part, ax=ax, scale=scale, title=name, bar=False)
    signed = shown[0] * positive - shown[1] * negative
    kept = max(1, round(strongest * signed.numel()))
    weakest = signed.abs().flatten().topk(kept).values[-1]
    signed = torch.where(signed.abs() >= weakest, signed, 0)
    plots.overlay(
        examination.image, signed, ax=axes[2], scale=scale, title=f"strongest {strongest:.0%} on image"
    )
    radius, profiles = radial_profile(torch.stack([positive, negative]))
    for profile, colour, name in zip(profiles, plots.COLOURS[1::-1], ("for real", "for fake"), strict=True):
        axes[3].plot(radius, profile / scale, color=colour, label=name)
    axes[3].set(xlabel="radius / px", title="mean relevance / scale", ylim=(0, None))
    axes[3].yaxis.tick_right()
    axes[3].spines[:].set_visible(True)
    axes[3].legend(fontsize=8)


def export(folder: str | Path, name: str, figure: bytes, facts: Mapping) -> tuple[Path, Path]:
    """Write a figure and its numbers side by side, each file whole or not at all.

    Parameters
    ----------
    folder, name : str or Path
        ``folder/name.png`` and ``folder/name.json`` are written; existing ones are replaced.
    figure : bytes
        From `to_png`.
    facts : mapping
        From `numbers`, and whatever else JSON can hold.

    Notes
    -----
    A name with a folder in it, or a number that is not finite, is a ValueError. Chapter: The explorer
    """
    if not name or Path(name).name != name:
        raise ValueError(f"name is {name!r}; expected a plain file name without folder")
    text = json.dumps(dict(facts), indent=1, allow_nan=False) + "\n"
    paths = Path(folder) / f"{name}.png", Path(folder) / f"{name}.json"
    for path, content in zip(paths, (figure, text.encode()), strict=True):
        write_atomically(path, content)
    return paths


def shipped_stages() -> dict[str, dict[str, str]]:
    """List the deblenders that come with the package: name -> stage -> name for `load_checkpoint`.

    Chapter: The explorer
    """
    found: dict[str, dict[str, str]] = {}
    for full in shipped_names("deblender-"):
        name, _, stage = full.partition("@")
        found.setdefault(name, {})[stage or "final"] = full
    order = ("early", "middle", "final")
    return {
        name: {stage: stages[stage] for stage in order if stage in stages} for name, stages in found.items()
    }
