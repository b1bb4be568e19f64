"""Measure the fills themselves, and the audit on sets whose faults are planted or unknown."""

from pathlib import Path

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch.nn import functional as F

from galnb import blending, phantom
from galnb.blending.fills import fill_noise, fill_zeros, restore_noise
from galnb.images.pixels import border_noise
from galnb.phantom.auditing import SERIOUS, audit

SCALES = (0.4, 0.5, 0.65)  # magnifications at which a noise fill is compared with the image's own sky
SPACING = 4  # px between pixels that enter a test: noise of neighbours is correlated


def sky_of_the_border(frames: torch.Tensor, width: int = 53) -> torch.Tensor:
    """Mask (K, 1, H, W): border without sources, which are 3 sigma above the sky in means of 9 x 9 px."""
    smooth = F.avg_pool2d(frames.mean(1, keepdim=True), 9, 1, 4, count_include_pad=False)
    border = torch.ones_like(smooth, dtype=torch.bool)
    border[..., width:-width, width:-width] = False
    for frame, edge in zip(smooth, border, strict=True):
        kept = frame[edge]
        for _ in range(5):
            level = kept.median()
            spread = 1.4826 * (kept - level).abs().median()
            kept = kept[kept < level + 3 * spread]
        edge &= F.max_pool2d((frame > level + 3 * spread).float(), 9, 1, 4) == 0
    return border


def passes(frames: torch.Tensor, scale: float, generator: torch.Generator) -> list[tuple[bool, bool]]:
    """Say of each frame whether fill and sky, and two halves of its sky, pass a two-sample test at 1 %.

    Frames (K, C, 424, 424) are shrunk by `scale` and averaged by 3, as blends are.
    """
    places = ((torch.arange(360) + 0.5) / 180 - 1) * 360 / frames.shape[-1] / scale
    y, x = torch.meshgrid(places, places, indexing="ij")
    grid = torch.stack([x, y], -1).expand(len(frames), -1, -1, -1)

    def thin(images: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(images, 3).mean(1)[:, ::SPACING, ::SPACING]

    stamps = thin(fill_noise(frames, grid, generator))
    own = thin(fill_zeros(sky_of_the_border(frames).float(), grid, generator)) > 0.999
    fill = thin((grid.abs() > 1 + 1 / frames.shape[-1]).any(-1)[:, None].float()) == 1
    found = []
    for stamp, sky, drawn in zip(stamps, own, fill, strict=True):
        rows = torch.arange(len(stamp))[:, None].expand_as(sky)
        upper = sky & (rows < len(stamp) // 2)
        pairs = ((stamp[sky], stamp[drawn]), (stamp[upper], stamp[sky & ~upper]))
        found.append(tuple(bool(ks_2samp(*pair).pvalue > 0.01) for pair in pairs))
    return found


def measure_fills(frames: torch.Tensor, *, seed: int = 0) -> dict:
    """Return pass rates by scale, and the noise that resampling leaves, before and after `restore_noise`."""
    draw = torch.Generator().manual_seed(seed)
    rates = {}
    for scale in SCALES:
        found = [row for part in frames.split(20) for row in passes(part.float() / 255, scale, draw)]
        rates[str(scale)] = dict(zip(("fill", "own_halves"), np.mean(found, 0).tolist(), strict=True))
    left, restored = [], []
    for part in frames.split(20):
        images = part.float() / 255
        before = F.avg_pool2d(images[..., 92:332, 92:332], 3)
        # one frame at a time: each galaxy meets itself, warped
        warped = torch.cat([_warped(one[None], draw) for one in images])
        wanted = border_noise(before).clamp_min(1e-6)
        left.append(border_noise(warped) / wanted)
        restored.append(border_noise(restore_noise(warped, before, generator=draw)) / wanted)
    levels = torch.tensor([0.16, 0.5, 0.84])
    noise = {
        name: torch.cat(values).mean(1).quantile(levels).tolist()
        for name, values in (("left", left), ("restored", restored))
    }
    return {"images": len(frames), "pass": rates, "noise": noise}


def boxes_of(image: torch.Tensor, footprint: torch.Tensor, draw: torch.Generator, side: int = 6):
    """Draw one box in the fill and two in the sky of an image (C, H, W), or None where there is no room.

    Sky boxes are among the darkest 30 % of those without fill, and do not overlap.
    """
    light = F.avg_pool2d(image.mean(0)[None, None], side, 1)[0, 0]
    share = F.avg_pool2d(footprint[None].float(), side, 1)[0, 0]
    data = share > 0.999
    if not data.any():
        return None
    places = [(share < 0.001).nonzero(), (data & (light <= light[data].quantile(0.3))).nonzero()]
    if min(map(len, places)) == 0:
        return None
    fill, sky = (part[torch.randint(len(part), (), generator=draw)] for part in places)
    others = places[1][((places[1] - sky).abs() >= side).any(1)]
    if not len(others):
        return None
    other = others[torch.randint(len(others), (), generator=draw)]
    return [(*place.tolist(), side) for place in (fill, sky, other)]


def told_apart(blends: dict[str, blending.Blends], *, seed: int = 0) -> dict[str, float]:
    """Return how often a two-sample test (1 %) tells fill from sky, and sky from sky, in boxes of 6 px."""
    found = {}
    for fill, of_fill in blends.items():
        draw, hits = torch.Generator().manual_seed(seed), []
        for image, footprint in zip(of_fill.galaxies[:, 1], of_fill.footprints[:, 1], strict=True):
            if boxes := boxes_of(image, footprint, draw):
                pairs = ((boxes[0], boxes[1]), (boxes[1], boxes[2]))
                tests = [phantom.background_histograms(image, pair).p_value for pair in pairs]
                hits.append([test < 0.01 for test in tests])
        rates = np.mean(hits, 0).tolist()
        found[fill] = {"images": len(hits), "fill_from_sky": rates[0], "sky_from_sky": rates[1]}
    return found


def _warped(frame: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    fill = blending.Perturbation(fill="noise")
    blends = blending.make_blends(frame, perturbation=fill, generator=draw, crop=240, size=80, partners=frame)
    return blends.galaxies[:, 1]


def planted(galaxies: torch.Tensor, *, seed: int = 0) -> dict:
    """Return how well the audit tells stamps with a planted frame from untouched ones."""
    blends = blending.make_blends(galaxies, generator=torch.Generator().manual_seed(seed))
    frame = 1 - blends.footprints[:, 1].float().mean((1, 2, 3)) >= 0.02
    clean, faulty = (audit(images).severity for images in (galaxies, blends.galaxies[frame, 1]))
    above = (faulty[:, None] > clean).float() + (faulty[:, None] == clean).float() / 2
    return {
        "images": len(galaxies),
        "planted": len(faulty),
        "auc": float(above.mean()),
        "false_alarms": float((clean > 0).float().mean()),
        "found": float((faulty >= SERIOUS).float().mean()),
    }


def audited(folder: Path) -> dict:
    """Audit a folder as it lies there; names only of what is blank."""
    report = audit(folder)
    return {
        "images": len(report.names),
        "counts": report.counts,
        "with_finding": float((report.severity > 0).float().mean()),
        "serious": float((report.severity >= SERIOUS).float().mean()),
        "blank": [report.names[f.image] for f in report.findings if f.kind == "blank"],
        "whole_set": [f.text for f in report.findings if f.image is None],
    }
