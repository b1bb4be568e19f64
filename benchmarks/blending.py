"""`make_blends` against a loop over `skimage.transform.warp` that makes the same blends and footprints."""

import statistics
from functools import partial

import numpy as np
import torch
from skimage.measure import block_reduce
from skimage.transform import AffineTransform, warp
from torch.nn import functional

from benchmarks import seconds_of_pair
from galnb import blending

BATCH = 256
SEED = 0
GOAL = 10
# side of the images, crop, size of the stamps, whether the loop warps the whole image before it crops (as the
# code of Reiman and Göhre does), pairs of runs
CASES = [(80, 80, 80, False, 15), (424, 240, 80, False, 5), (424, 240, 80, True, 5)]


def main() -> str:
    """Return a Markdown table; the two run in turn and change places in every pair."""
    torch.set_num_threads(2)
    rows = [
        f"{BATCH} maximum blends of two galaxies, 3 channels, zero fill, 2 threads; one pair = both once.",
        "",
        "| images | stamps | loop warps | make_blends | loop | ratio (median, range) | goal | largest "
        "difference | footprints alike |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for side, crop, size, whole, pairs in CASES:
        images = torch.rand(BATCH, 3, side, side, generator=torch.Generator().manual_seed(1))
        inputs = _inputs(images)
        runs = [partial(_ours, images, crop, size), partial(_loop, *inputs, crop, size, whole)]
        (galaxies, covered), (slow_galaxies, slow_covered) = [run() for run in runs]
        difference = np.abs(galaxies - slow_galaxies).max()
        alike = (covered == slow_covered).mean()
        seconds = np.array([seconds_of_pair(runs, turn % 2 == 1) for turn in range(pairs)])
        ratios = seconds[:, 1] / seconds[:, 0]
        ours, loop = (statistics.median(column) * 1e3 for column in seconds.T)
        rows.append(
            f"| {side} px | {size} px of {crop} | {'whole image' if whole else 'crop only'} | {ours:.0f} ms "
            f"| {loop:.0f} ms | {np.median(ratios):.1f} ({ratios.min():.1f} to {ratios.max():.1f}) "
            f"| >= {GOAL} | {difference:.0e} | {alike:.4%} |"
        )
    return "\n".join([*rows, "", _floor()])


def _floor() -> str:
    """Say how near the goal is: the loop against PyTorch's bilinear sampling of these pixels alone."""
    images = torch.rand(BATCH, 3, 80, 80, generator=torch.Generator().manual_seed(1))
    frames, others, shift, matrix = _inputs(images)
    affine = torch.from_numpy(np.concatenate([matrix, shift[:, :, None]], 2)).float()

    def sampling():
        grid = functional.affine_grid(affine, images.shape, align_corners=False)
        functional.grid_sample(images[others], grid, align_corners=False)

    runs = [sampling, partial(_loop, frames, others, shift, matrix, 80, 80, False)]
    seconds = np.array([seconds_of_pair(runs, turn % 2 == 1) for turn in range(16)])[1:]
    ratios = seconds[:, 1] / seconds[:, 0]
    return (
        f"Sampling alone at 80 px, no blend or footprint: {1e3 * np.median(seconds[:, 0]):.0f} ms, "
        f"ratio {np.median(ratios):.1f} ({ratios.min():.1f} to {ratios.max():.1f}): the most that PyTorch's "
        "own operations allow on this machine."
    )


def _ours(images, crop, size):
    """Second galaxies as (B, H, W, C) and their footprints (B, H, W)."""
    generator = torch.Generator().manual_seed(SEED)
    blends = blending.make_blends(images, generator=generator, crop=crop, size=size)
    return blends.galaxies[:, 1].movedim(1, -1).numpy(), blends.footprints[:, 1, 0].numpy()


def _inputs(images):
    """What the loop needs, ready before the clock runs: images with channels last, and the same draws."""
    generator = torch.Generator().manual_seed(SEED)
    others = blending._draw_others(len(images), images, 2, generator)
    shift, _, matrix = blending._draw_geometry(others.shape, blending.Perturbation(), generator, "cpu")
    frames = np.ascontiguousarray(images.movedim(1, -1).numpy())
    return frames, others[:, 0].numpy(), shift[:, 0].double().numpy(), matrix[:, 0].double().numpy()


def _loop(frames, others, shift, matrix, crop, size, whole):
    side, factor = frames.shape[1], crop // size
    middle, margin = (side - 1) / 2, (side - crop) // 2
    ones = np.ones((side, side), np.float32)
    galaxies, footprints, blended = [], [], []
    for index, frame in enumerate(frames):
        linear = np.eye(3)
        linear[:2, :2] = matrix[index]
        output = (side - 1) / 2 if whole else (crop - 1) / 2
        to_frame = (
            AffineTransform(translation=-output - crop * shift[index])
            + AffineTransform(matrix=linear)
            + AffineTransform(translation=(middle, middle))
        )
        shape = None if whole else (crop, crop)
        second = warp(frames[others[index]], to_frame, output_shape=shape, clip=False)
        covered = warp(ones, to_frame, output_shape=shape, clip=False)
        first = frame[margin : margin + crop, margin : margin + crop]
        if whole:
            second, covered = (
                part[margin : margin + crop, margin : margin + crop] for part in (second, covered)
            )
        if factor > 1:
            first, second = (block_reduce(part, (factor, factor, 1), np.mean) for part in (first, second))
            covered = block_reduce(covered, (factor, factor), np.min)
        galaxies.append(second)
        footprints.append(covered > 0.999)
        blended.append(np.maximum(first, second))
    return np.stack(galaxies), np.stack(footprints)


if __name__ == "__main__":
    print(main())
