"""Measure one pair of networks of `book.phantom_study` on blends that differ in nothing but their fill."""

from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from galnb import blending, phantom
from galnb.blending.fills import FILLS, sky_tile
from galnb.evaluation import metrics
from galnb.gans import Gan, deblender
from galnb.relevance import polarized_relevance

CHUNK = 50  # frames of 424 px in floats at a time
PADDED = 0.02  # from this share of fill on, an image counts as padded
BINS = (PADDED, 0.05, 0.1, 0.2, 0.4, 1.0)  # of the padded area, for blind detection
READINGS = ("paper", "composite", "sky", "black")
ANGLES = 24  # directions in which straight edges are sought, over 180 degrees


@dataclass(frozen=True)
class Exam:
    """Hold the same blends under every fill, and what the maps are compared with.

    Parameters
    ----------
    blends : dict of str to Blends
        One per fill, equal geometry.
    references : dict of str to torch.Tensor
        Images in [0, 1] for the reading "reference": ``sky`` (two draws of noise like the sky of two galaxy
        images, at the pixel scale of the stamps) and ``black``.
    """

    blends: dict[str, blending.Blends]
    references: dict[str, torch.Tensor]

    @property
    def footprint(self) -> torch.Tensor:
        return next(iter(self.blends.values())).footprints[:, 1]

    @property
    def padding(self) -> torch.Tensor:
        """Share of each second galaxy (B,) that is fill."""
        return 1 - self.footprint.float().mean((1, 2, 3))


def same_blends(
    frames: torch.Tensor, *, seed: int, fills=tuple(FILLS), **sizes
) -> dict[str, blending.Blends]:
    """Blend each frame with another of its chunk, under every fill with equal geometry."""
    made = {fill: [] for fill in fills}
    for number, part in enumerate(frames.split(CHUNK)):
        images = part.float() / 255 if part.dtype == torch.uint8 else part
        for fill in fills:
            generator = torch.Generator().manual_seed(seed * 1009 + number)
            chosen = blending.Perturbation(fill=fill)
            made[fill].append(blending.make_blends(images, perturbation=chosen, generator=generator, **sizes))
    return {
        fill: blending.Blends(
            **{
                field.name: torch.cat([getattr(one, field.name) for one in parts])
                for field in fields(parts[0])
            }
        )
        for fill, parts in made.items()
    }


def sky_reference(frames: torch.Tensor, *, seed: int, size: int, factor: int = 1) -> torch.Tensor:
    """Return noise like the sky of each frame, averaged by `factor` as the stamps are: (K, C, size, size)."""
    images = frames.float() / 255 if frames.dtype == torch.uint8 else frames
    tile = sky_tile(images, generator=torch.Generator().manual_seed(seed))
    wide = size * factor
    tile = tile.repeat(1, 1, *[-(-wide // tile.shape[-1])] * 2)[..., :wide, :wide]
    return F.avg_pool2d(tile, factor)


def make_exam(frames: torch.Tensor, sky: torch.Tensor, *, seed: int) -> Exam:
    """Prepare Galaxy Zoo frames (bytes, 424 px) as the networks of the study know them."""
    sky = sky_reference(sky, seed=seed, size=80, factor=3)
    return Exam(
        same_blends(frames, seed=seed, crop=240, size=80),
        {"sky": sky, "black": torch.zeros_like(sky[:1])},
    )


def auc(higher: torch.Tensor, lower: torch.Tensor) -> float:
    """Return the chance that a value of the first kind exceeds one of the second."""
    if not len(higher) or not len(lower):
        return float("nan")
    return float(stats.mannwhitneyu(higher.numpy(), lower.numpy()).statistic / len(higher) / len(lower))


def psnr_inside(drawn: torch.Tensor, truth: torch.Tensor, footprint: torch.Tensor) -> torch.Tensor:
    """Return the PSNR (B,) in dB, data range 1, of the pixels inside the footprint (B, 1, H, W)."""
    square = ((drawn - truth).square() * footprint).sum((1, 2, 3))
    return -10 * (square / (footprint.sum((1, 2, 3)) * drawn.shape[1])).clamp_min(1e-6).log10()


def quality(drawn: torch.Tensor, blends: blending.Blends) -> dict[str, float]:
    """Score both galaxies, and the second one where no fill took part."""
    both = {"first": 0, "second": 1}
    pairs = {name: (drawn[:, place], blends.galaxies[:, place]) for name, place in both.items()}
    found = {f"psnr_{name}": metrics.psnr(*pair, data_range=1).clamp(max=60) for name, pair in pairs.items()}
    found |= {f"ssim_{name}": metrics.ssim(*pair, data_range=1) for name, pair in pairs.items()}
    found["psnr_inside"] = psnr_inside(*pairs["second"], blends.footprints[:, 1])
    return {name: float(values[~values.isnan()].mean()) for name, values in found.items()}


def qualities(gan: Gan, exam: Exam) -> dict[str, dict[str, float]]:
    """Score what the generator makes of the blends of each fill."""
    return {
        name: quality(deblender.deblend(gan, blends.blended), blends) for name, blends in exam.blends.items()
    }


@torch.no_grad()
def logits(network: nn.Module, images: torch.Tensor, batch: int = 16) -> torch.Tensor:
    return torch.cat([network(part).flatten() for part in images.split(batch)])


def judgement(gan: Gan, drawn: torch.Tensor, exam: Exam, fill: str) -> dict[str, dict[str, float]]:
    """Ask the discriminator to tell real from drawn galaxies: first ones, second ones padded and not."""
    galaxies, padding = exam.blends[fill].galaxies, exam.padding
    real, fake = (
        torch.stack([logits(gan.discriminator, gan.prepare(images[:, place])) for place in (0, 1)])
        for images in (galaxies, drawn)
    )
    every, padded, whole = torch.ones_like(padding, dtype=torch.bool), padding >= PADDED, padding == 0
    found = {}
    for name, place, part in (("first", 0, every), ("padded", 1, padded), ("unpadded", 1, whole)):
        yes, no = real[place, part], fake[place, part]
        found[name] = {
            "images": int(part.sum()),
            "auc": auc(yes, no),
            "accuracy": float(((yes > 0).float().mean() + (no <= 0).float().mean()) / 2),
            "p_real": float(yes.sigmoid().mean()),
            "p_drawn": float(no.sigmoid().mean()),
            "logit_real": float(yes.mean()),
            "logit_drawn": float(no.mean()),
        }
    return found


def read_maps(gan: Gan, images: torch.Tensor, exam: Exam, reading: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positive and negative maps (B, 1, H, W) of images in [0, 1] by one of `READINGS`."""
    relative = reading in exam.references
    references = gan.prepare(exam.references[reading]) if relative else None
    name = "reference" if relative else reading
    found = polarized_relevance(gan.discriminator, gan.prepare(images), reading=name, references=references)
    return found.per_pixel()


def edges(maps: dict[str, torch.Tensor], footprint: torch.Tensor, generator: torch.Generator) -> dict:
    """Measure maps (both signs) along the edge: contrast with its interval, profile, share in the fill."""
    found = {}
    for sign, values in maps.items():
        contrast = phantom.boundary_contrast(values, footprint)
        known = int((~contrast.isnan()).sum())  # a map without any relevance has no contrast
        distance, profile = phantom.edge_profile(values, footprint)
        inside = (values * ~footprint).sum((1, 2, 3)) / values.sum((1, 2, 3)).clamp_min(1e-12)
        found[sign] = {
            "maps": known,
            "contrast": list(phantom.interval(contrast, generator=generator)) if known > 1 else None,
            "profile": profile.nanmean(0).tolist() if known > 1 else None,
            "share_in_fill": float(inside.mean()) if known > 1 else None,
        }
    return found | {"distance": distance.tolist()}


def straight_edges(maps: torch.Tensor) -> torch.Tensor:
    """Return the strength (B,) of the straightest line where no galaxy is, from maps (B, C, H, W) alone.

    The logarithm of each map, less its local mean, is averaged along lines in 24 directions outside a central
    disc of half the width; the strength is the largest average, in units of the typical one of that map.
    Which strength means a frame depends on the network: take the 99th percentile of maps known to have none.
    """
    relevance = maps.detach().float().cpu().sum(1, keepdim=True).abs()
    floor = relevance.flatten(1).quantile(0.05, 1)[:, None, None, None] + 1e-12 * relevance.amax()
    detail = (relevance + floor + 1e-30).log()
    detail = detail - F.avg_pool2d(detail, 9, 1, 4, count_include_pad=False)
    detail = detail - stride_grid(detail)
    y, x = (torch.linspace(-1, 1, side) for side in maps.shape[-2:])
    outside = ((y[:, None] ** 2 + x**2) > 0.25).float()[None, None]
    outside[..., [0, 1, -2, -1], :] = outside[..., [0, 1, -2, -1]] = 0  # there the network pads by itself
    strongest = []
    for angle in torch.arange(ANGLES) * (torch.pi / ANGLES):
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(1, 2, 2)
        grid = F.affine_grid(F.pad(turn, (0, 1)), [1, 1, *maps.shape[-2:]], align_corners=False)
        length = F.grid_sample(outside, grid, align_corners=False).sum(2)
        turned = F.grid_sample(detail * outside, grid.expand(len(maps), -1, -1, -1), align_corners=False)
        line = turned.sum(2) / length.clamp_min(1).sqrt()
        strongest.append(torch.where(length >= maps.shape[-2] / 4, line, 0)[:, 0])
    lines = torch.stack(strongest, 1)  # (B, angles, offsets)
    usual = lines.abs().flatten(1).quantile(0.5, 1).clamp_min(1e-12) / 0.6745
    return (lines.flatten(1) / usual[:, None]).amax(1)


def stride_grid(detail: torch.Tensor, period: int = 16) -> torch.Tensor:
    """Return the grid that strided convolutions print on every map: the mean pattern of all, repeated."""
    mean = detail.mean(0, keepdim=True)
    high, wide = (-(-side // period) * period for side in mean.shape[-2:])
    whole = F.pad(mean, (0, wide - mean.shape[-1], 0, high - mean.shape[-2]), value=torch.nan)
    cell = whole.unflatten(3, (-1, period)).unflatten(2, (-1, period)).nanmean((2, 4))
    return cell.repeat(1, 1, high // period, wide // period)[..., : mean.shape[-2], : mean.shape[-1]]


def detection(strength: torch.Tensor, padding: torch.Tensor, clean: torch.Tensor) -> dict:
    """Return the power of a threshold that 1 % of clean maps pass, in bins of the padded area."""
    threshold = clean.quantile(0.99)
    bins = [(padding >= low) & (padding < high) for low, high in pairwise(BINS)]
    counts = [[int((strength[part] > threshold).sum()), int(part.sum())] for part in bins]
    return {"threshold": float(threshold), "clean": len(clean), "found": counts}


def relevance(gan: Gan, exam: Exam, fill: str, *, firsts: int = 100) -> dict[str, dict]:
    """Measure the maps of real second galaxies by each reading; clean are those without fill and `firsts`."""
    galaxies, padding = exam.blends[fill].galaxies, exam.padding
    padded, whole = padding >= PADDED, padding == 0
    clean = torch.cat([galaxies[whole, 1], galaxies[:firsts, 0]])
    found = {}
    for reading in READINGS:
        up, down = read_maps(gan, galaxies[padded, 1], exam, reading)
        draw = torch.Generator().manual_seed(0)
        found[reading] = edges({"positive": up, "negative": down}, exam.footprint[padded], draw)
        if reading != "black":
            strength = straight_edges(up)
            without = straight_edges(read_maps(gan, clean, exam, reading)[0])
            found[reading]["detection"] = detection(strength, padding[padded], without)
    return found


def on_zeros(gan: Gan, exam: Exam) -> dict[str, dict]:
    """Measure the edge in maps of zero-filled images, whatever the network was trained with."""
    padded, draw = exam.padding >= PADDED, torch.Generator().manual_seed(0)
    images = exam.blends["zeros"].galaxies[padded, 1]
    found = {}
    for reading in READINGS[:3]:
        up, down = read_maps(gan, images, exam, reading)
        found[reading] = edges({"positive": up, "negative": down}, exam.footprint[padded], draw)
    return found


def probe(gan: Gan, exam: Exam) -> dict[str, float]:
    """Return, for each pair of fills, how often the first scores higher on another padded image."""
    padded = exam.padding >= PADDED
    images = {fill: gan.prepare(blends.galaxies[padded, 1]) for fill, blends in exam.blends.items()}
    found = phantom.probe_fill(gan.discriminator, images)
    return {
        "auc": {" over ".join(pair): value for pair, value in found.auc.items()},
        # the same image under both fills: how often does the frame of zeros speak for real?
        "paired": {
            " over ".join(pair): float((found.scores[pair[0]] > found.scores[pair[1]]).float().mean())
            for pair in found.auc
        },
        "logit": {fill: float(scores.mean()) for fill, scores in found.scores.items()},
    }


def measure(gan: Gan, exam: Exam, fill: str) -> dict:
    """Measure generator and discriminator of one run; `fill` is the one that they were trained with."""
    return {
        "quality": qualities(gan, exam),
        "judgement": judgement(gan, deblender.deblend(gan, exam.blends[fill].blended), exam, fill),
        "probe": probe(gan, exam),
        "relevance": relevance(gan, exam, fill),
    }
