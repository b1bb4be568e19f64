"""The tools of the smearing study: histograms against a NumPy loop over images, and the times of the rest."""

import resource
import statistics
import tempfile
import time

import numpy as np
import torch

from benchmarks import seconds_of_pair
from galnb import smearing
from galnb.gans.radio import radio
from galnb.images import first_radio
from galnb.smearing.histograms import EDGES, score_checkpoints
from galnb.training import save_checkpoint
from galnb.training.experiments import class_numbers, experiment

SIZE = 64
PAIRS = 7


def main() -> str:
    """Return a Markdown table; loop and package run in turn and change places in every pair."""
    torch.set_num_threads(2)
    found = first_radio(split="train", size=SIZE)
    many = found.pixels.repeat(6, 1, 1, 1)[:10_000].contiguous()
    noise = torch.rand(1_000, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    rows = [
        f"FIRST, {SIZE} px, 2 threads. Loop: `numpy.histogram` for each image and each of three histograms.",
        "",
        "| what | time | goal |",
        "|---|---|---|",
        _against_the_loop("10,000 images, three histograms", many, ">= 20"),
        _against_the_loop("the same for 1,000 images of noise, every pixel lit", noise, ""),
        _row("one look at 10,000 images (smallest, largest): the least any check of them costs",
             lambda: torch.aminmax(many), ""),
        _row("align 2,000", lambda: smearing.align(many[:2_000]), "<= 5 s"),
        _row("best pairs, 1,000 x 2,000, four orientations",
             lambda: smearing.best_pairs(many[2_000:3_000], many[:2_000], min_active=50),
             "<= 60 s, <= 2 GiB"),
        _row("score one checkpoint, 4 x 1,000 images", _scoring(found), "<= 30 s"),
    ]  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return "\n".join([*rows, "", f"Peak memory of all of it: {peak:.2f} GiB."])


def _against_the_loop(what, images, goal):
    runs = [lambda: smearing.histograms(images), lambda: _loop(images.numpy())]
    ours, theirs = (run() for run in runs)
    difference = max(np.abs(a.numpy() - b).max() for a, b in zip(ours.values(), theirs, strict=True))
    seconds = np.array([seconds_of_pair(runs, turn % 2 == 1) for turn in range(PAIRS)])
    ratios = seconds[:, 1] / seconds[:, 0]
    ours, loop = (statistics.median(column) for column in seconds.T)
    return (
        f"| {what} | {ours * 1e3:.0f} ms, loop {loop * 1e3:.0f} ms: {np.median(ratios):.1f}x "
        f"({ratios.min():.1f} to {ratios.max():.1f}), largest difference {difference:.0e} | {goal} |"
    )


def _loop(images):
    edges = [part.numpy() for part in EDGES.values()]
    counts = [np.zeros(len(part) - 1) for part in edges]
    for image in images:
        level = np.floor(image * 255 + 1e-3)
        values = (level, (level >= 1).sum(), level.sum())
        for total, value, bins in zip(counts, values, edges, strict=True):
            total += np.histogram(value, bins)[0]
    heights = [total / np.diff(bins) for total, bins in zip(counts, edges, strict=True)]
    return [part / max(part.sum(), 1e-300) for part in heights]


def _scoring(found):
    model = experiment("radio-plain", "laptop").model

    def run():
        with tempfile.TemporaryDirectory() as folder:
            path = save_checkpoint(f"{folder}/fresh.safetensors", radio(model), experiment={}, step=0)
            labels = class_numbers(found.labels)
            score_checkpoints([path], found.pixels, labels, generator=torch.Generator().manual_seed(0))

    return run


def _row(what, run, goal):
    started = time.perf_counter()
    run()
    return f"| {what} | {time.perf_counter() - started:.2f} s | {goal} |"


if __name__ == "__main__":
    print(main())
