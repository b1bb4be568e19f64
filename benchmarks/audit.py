"""Audit of 100,000 JPEG files of 80 x 80 px: time and memory of the audit of a folder on disk."""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

COUNT = int(os.environ.get("AUDIT_IMAGES", 100_000))
GOAL_SECONDS, GOAL_GIB = 120, 1.0
WRITE = """
import sys, torch
from PIL import Image
from galnb.images import hubble_deep_field
torch.set_num_threads(1)
sky, generator = hubble_deep_field(size=80).pixels, torch.Generator().manual_seed(0)
for number in range(int(sys.argv[2])):
    image = sky[number % len(sky)].flip(1 + number % 2)
    noisy = (image + 0.03 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    pixels = (255 * noisy).round().byte().movedim(0, -1).numpy()
    Image.fromarray(pixels).save(f"{sys.argv[1]}/{number:06}.jpg", quality=95)
"""
READ = """
import resource, sys, time, torch
torch.set_num_threads(2)
from galnb.phantom.auditing import audit
empty = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started, busy = time.perf_counter(), time.process_time()
report = audit(sys.argv[1])
print(len(report.names), time.perf_counter() - started, time.process_time() - busy, empty)
"""


def main() -> str:
    """Return a Markdown table; the audit runs in a process of its own, whose peak memory is taken."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", WRITE, folder, str(COUNT)], check=True)
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / COUNT / 1024
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        done = subprocess.run(
            [sys.executable, "-c", READ, folder], check=True, capture_output=True, text=True
        )
        peak = max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 2**20
    count, wall, busy, empty = map(float, done.stdout.split())
    rows = [
        ("", "measured", "goal"),
        ("---", "---", "---"),
        (f"{count:.0f} JPEG files, {size:.1f} kB each, wall time", f"{wall:.0f} s", f"<= {GOAL_SECONDS} s"),
        ("CPU time, all threads", f"{busy:.0f} s ({busy / count * 1e3:.2f} ms an image)", ""),
        ("peak memory of the process", f"{peak:.2f} GiB", f"<= {GOAL_GIB:g} GiB"),
        ("of which the imports alone", f"{empty / 2**20:.2f} GiB", ""),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(main())
