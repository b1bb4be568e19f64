"""Ratios against peers, both sides in one run."""

import time
from collections.abc import Callable, Sequence


def seconds_of_pair(runs: Sequence[Callable[[], object]], swap: bool) -> list[float]:
    """Time two runs one after the other, the second one first if `swap`; seconds in the order given."""
    seconds = [0.0, 0.0]
    for index in (1, 0) if swap else (0, 1):
        started = time.perf_counter()
        runs[index]()
        seconds[index] = time.perf_counter() - started
    return seconds
