"""Blends per second in training `deblender-bounded` (preset laptop): plain float32 against every other path.

The paths take turns, once in each order, and the better of both counts. The bound: convolutions do nearly all
of the arithmetic, so no path in float32 beats the same number of operations at the speed of a large matrix
product on the same threads.
"""

import dataclasses
import itertools
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from galnb import images
from galnb.blending import batches
from galnb.gans import deblender
from galnb.training import experiments, steps

STEPS = 6
PATHS = {
    "eager, float32": {},
    "channels last": {"channels_last": True},
    "bfloat16 autocast": {"precision": "bf16-mixed"},
    "bfloat16 autocast, channels last": {"precision": "bf16-mixed", "channels_last": True},
    "compiled": {"compile": True},
    "compiled, channels last": {"compile": True, "channels_last": True},
}


def main() -> str:
    """Return a Markdown table of blends per second and ratios to the plain path."""
    chosen = experiments.experiment("deblender-bounded", "laptop")
    stamps = images.hubble_deep_field(size=80).pixels
    fresh = batches.blend_batches(stamps, batch_size=chosen.batch_size, seed=0)
    feed = [fresh(index) for index in range(4)]
    plain = dataclasses.replace(chosen.training, channels_last=False, compile=False, device="cpu")
    runs = {name: _path(chosen.model, dataclasses.replace(plain, **change)) for name, change in PATHS.items()}
    seconds = {name: [] for name in runs}
    for name in [*runs, *reversed(runs)]:
        seconds[name].append(runs[name](feed))
    best = {name: min(found) for name, found in seconds.items()}
    base = best["eager, float32"]
    rows = [("", "blends per second", "relative to eager"), ("---", "--:", "--:")]
    rows += [
        (name, f"{chosen.batch_size / found:.1f}", f"{base / found:.2f}x") for name, found in best.items()
    ]
    bound = _operations(chosen.model, plain, feed) / _product_speed()
    rows.append(("bound: its convolutions as one matrix product", "", f"{base / bound:.2f}x"))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n{torch.get_num_threads()} threads; data not counted, they come from a thread ahead."


def _path(model, config):
    """Return a function that takes a few steps and returns the seconds of one."""
    gan = deblender.deblender(model)
    state = steps.begin(gan, config)

    def run(feed):
        endless, taken = itertools.cycle(feed), []
        for _ in range(STEPS + 4):  # the first four meet every shape once: compilation, layouts
            started = time.perf_counter()
            steps.take_step(state, endless)
            taken.append(time.perf_counter() - started)
        return statistics.mean(taken[4:])  # four steps hold one turn of the discriminator

    return run


def _operations(model, config, feed):
    """Count the floating-point operations of a mean step."""
    gan = deblender.deblender(model)
    state, endless = steps.begin(gan, config), itertools.cycle(feed)
    with FlopCounterMode(display=False) as counter:
        for _ in range(4):
            steps.take_step(state, endless)
    return counter.get_total_flops() / 4


def _product_speed():
    """Return the operations per second of a large float32 matrix product."""
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    taken = []
    for _ in range(8):
        started = time.perf_counter()
        left @ right
        taken.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(taken)


if __name__ == "__main__":
    print(main())
