"""A field of 25,000 placements on 8,000 x 8,000 px in colour: seconds and peak memory of `galnb.mosaic`."""

import subprocess
import sys

GOAL_SECONDS, GOAL_GIB = 60, 2.0
STEPS = """
import resource, time, torch
torch.set_num_threads(2)
from galnb import evaluation, mosaic
from galnb.images import hubble_deep_field
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(peak())
real, draw = hubble_deep_field(size=64).pixels, torch.Generator().manual_seed(0)
stamps = real[torch.randint(len(real), (3010,), generator=draw)]  # as many as the report's
setting = dict(size=8000, placements=25_000, generator=draw, blanks=range(3000, 3010))
wall, busy = time.perf_counter(), time.process_time()
field = mosaic.compose(stamps, **setting)
print(time.perf_counter() - wall, time.process_time() - busy, peak())
wall, busy = time.perf_counter(), time.process_time()
found = evaluation.detect(field.image)
print(time.perf_counter() - wall, time.process_time() - busy, peak(), len(found))
"""


def main() -> str:
    """Return a Markdown table; everything runs in a process of its own, whose peak memory is taken."""
    done = subprocess.run([sys.executable, "-c", STEPS], check=True, capture_output=True, text=True)
    (imports,), composed, detected = (map(float, line.split()) for line in done.stdout.splitlines())
    rows = [("25,000 placements, 8,000 x 8,000 px, RGB", "measured", "goal"), ("---", "---", "---")]
    wall, busy, peak = composed
    rows += [
        ("composing, wall time", f"{wall:.1f} s", f"<= {GOAL_SECONDS} s"),
        ("CPU time, all threads", f"{busy:.1f} s", ""),
        ("peak memory of the process", f"{peak:.2f} GiB", f"<= {GOAL_GIB:g} GiB"),
        ("of which the imports alone", f"{imports:.2f} GiB", ""),
    ]
    wall, busy, peak, count = detected
    rows += [
        (f"then detecting {count:,.0f} sources with SEP", f"{wall:.1f} s ({busy:.1f} s of CPU)", ""),
        ("peak memory of both", f"{peak:.2f} GiB", ""),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(main())
