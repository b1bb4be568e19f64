"""Milliseconds per blend at a batch of 256, one thread: our network against SEP with segments as masks.

The tools take turns, once in each order; the better of both counts. On a busy machine trust the CPU time of
one thread. Weights do not change the speed: without shipped ones the network is drawn fresh.
"""

import contextlib
import dataclasses
import os
import time
from functools import partial

import torch

from galnb import evaluation, training
from galnb.evaluation import classical
from galnb.gans import deblender
from galnb.training import experiments

BATCH = 256
NAME = "deblender-bounded"


def main() -> str:
    """Return a Markdown table of milliseconds per blend and the ratio to SEP."""
    blended = evaluation.held_out_blends(None, count=BATCH).blended
    tools = _tools()
    for run in tools.values():
        run(blended[:64])  # the size of a batch, or the compiled network would be compiled anew
    order = list(tools)
    times = {name: [] for name in order}
    for name in [*order, *reversed(order)]:
        wall, own = time.perf_counter(), time.process_time()
        tools[name](blended)
        times[name].append(((time.perf_counter() - wall), (time.process_time() - own)))
    best = {
        name: [1e3 * min(seconds) / BATCH for seconds in zip(*both, strict=True)]
        for name, both in times.items()
    }
    rows = [("", "ms per blend", "CPU ms per blend", "relative to SEP"), ("---", "--:", "--:", "--:")]
    for name, (wall, own) in best.items():
        rows.append((name, f"{wall:.1f}", f"{own:.1f}", f"{wall / best[order[0]][0]:.2f}x"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _tools():
    gan, many = _gan(), os.cpu_count() or 1
    compiled = dataclasses.replace(gan, generator=torch.compile(gan.generator))
    return {
        "SEP segments": classical.sep_segments,
        "SEP segments, tuned": partial(classical.sep_segments, detection=classical.TUNED),
        "symmetry templates": classical.symmetry_templates,
        "photutils segments": classical.photutils_segments,
        NAME: partial(_deblend, gan),
        f"{NAME}, compiled": partial(_deblend, compiled),
        f"{NAME}, bfloat16": partial(_deblend, gan, half=True),
        f"{NAME}, {many} threads": partial(_deblend, gan, threads=many),
    }


def _gan():
    try:
        gan = training.load_checkpoint(NAME).gan
    except ValueError:
        gan = deblender.deblender(experiments.experiment(NAME, "laptop").model)
    gan.generator.to(memory_format=torch.channels_last)
    return gan


def _deblend(gan, blended, *, threads=1, half=False):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    precision = torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext()
    try:
        with precision:
            return deblender.deblend(gan, blended.to(memory_format=torch.channels_last), batch=64)
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    print(main())
