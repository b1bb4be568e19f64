"""Nearest training image by SSIM against a scikit-image loop, and how its time grows.

The loop is sampled: it compares 2 of the 40 images with 25 of the 1,000 bank images, floats already, and is
scaled to all pairs, since each pair costs it the same. Our side runs over all 40,000 pairs.
"""

import statistics
import subprocess
import sys
import time
from functools import cache

import numpy as np
import torch
from skimage.metrics import structural_similarity

from benchmarks import seconds_of_pair
from galnb.evaluation.neighbours import nearest
from galnb.images import hubble_deep_field

IMAGES, BANK, SIZE = 40, 1_000, 128
SAMPLE = (2, 25)
ROUNDS = 5
FIELD = 61_636  # images of the larger of the two published sets
SCALING = ((64, 500), (64, 2_000), (128, 500), (256, 100), (256, 300))
THREADS = torch.get_num_threads()
PEAK = """
import resource, torch
from benchmarks.nearest import galaxies
from galnb.evaluation.neighbours import nearest
pieces = (galaxies(100, 256, start).mul(255).byte() for start in range(0, {count}, 100))
nearest(galaxies(8, 256, 7), pieces)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def galaxies(count: int, size: int, seed: int) -> torch.Tensor:
    """Return cutouts of the Hubble Deep Field, (count, 3, size, size), each turned, dimmed and with noise."""
    found = _stamps()
    random = torch.Generator().manual_seed(seed)
    chosen = found[torch.randint(len(found), (count,), generator=random)]
    large = torch.nn.functional.interpolate(chosen, (size, size), mode="bilinear")
    light = 0.5 + 0.5 * torch.rand(count, 1, 1, 1, generator=random)
    return (light * large + 0.02 * torch.randn(large.shape, generator=random)).clamp(0, 1)


@cache
def _stamps() -> torch.Tensor:
    return hubble_deep_field(size=80).pixels


def main() -> str:
    """Return a Markdown table; both sides run in turn and change places in every round."""
    return "\n".join([*_against_the_loop(), "", *_scaling(), "", *_memory()])


def _against_the_loop() -> list[str]:
    images, bank = galaxies(IMAGES, SIZE, 0), galaxies(BANK, SIZE, 1)
    pairs = [(a.numpy(), b.numpy()) for a in images[: SAMPLE[0]] for b in bank[: SAMPLE[1]]]
    share = len(pairs) / (IMAGES * BANK)

    def loop():
        return [structural_similarity(a, b, data_range=1.0, channel_axis=0) for a, b in pairs]

    ours = nearest(images[: SAMPLE[0]], bank[: SAMPLE[1]], count=SAMPLE[1])
    theirs = np.array(loop()).reshape(SAMPLE)
    difference = np.abs(ours.scores.numpy() - np.take_along_axis(theirs, ours.indices.numpy(), 1)).max()
    rows = [
        f"{IMAGES} x {BANK:,} images of {SIZE} px RGB; loop over {len(pairs)} pairs scaled to all; "
        f"largest difference of a score {difference:.0e}.",
        "",
        "| threads | ours | loop | ratio (goal >= 30) |",
        "|---|---|---|---|",
    ]
    for threads in sorted({1, THREADS}):
        torch.set_num_threads(threads)
        runs = [lambda: nearest(images, bank), loop]
        seconds = np.array([seconds_of_pair(runs, turn % 2 == 1) for turn in range(ROUNDS)]) / (1, share)
        ratios = seconds[:, 1] / seconds[:, 0]
        ours, theirs = (statistics.median(column) for column in seconds.T)
        rows.append(
            f"| {threads} | {ours:.1f} s | {theirs:.0f} s | {np.median(ratios):.1f} ({ratios.min():.1f} to "
            f"{ratios.max():.1f}) |"
        )
    return rows


def _scaling() -> list[str]:
    rows = [
        f"{IMAGES} images, {THREADS} threads:",
        "",
        "| side | bank | time | pairs per second | windows per second |",
        "|---|---|---|---|---|",
    ]
    pace = {}
    for size, count in SCALING:
        images, bank = galaxies(IMAGES, size, 0), galaxies(count, size, 1)
        started = time.perf_counter()
        nearest(images, bank)
        seconds = time.perf_counter() - started
        pace[size] = IMAGES * count / seconds
        windows = pace[size] * 3 * (size - 6) ** 2
        rows.append(
            f"| {size} px | {count:,} | {seconds:.1f} s | {pace[size]:,.0f} | {windows / 1e6:,.0f} million |"
        )
    whole = IMAGES * FIELD / pace[256]
    return [
        *rows,
        "",
        f"At the pace of the last row {IMAGES} x {FIELD:,} images of 256 px take {whole / 60:.0f} minutes.",
    ]


def _memory() -> list[str]:
    peaks = []
    for count in (300, 1_200):
        code = PEAK.format(count=count)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(f"{float(done.stdout):.2f} GiB with a bank of {count:,}")
    return [f"Peak memory of a fresh process, 8 images of 256 px, bank in pieces of 100: {', '.join(peaks)}."]


if __name__ == "__main__":
    print(main())
