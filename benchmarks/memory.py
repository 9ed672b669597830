"""How much memory does a volume take, over the interpreter and the loaded engine?

    python -m udean.benchmarks.memory [--shape 160,160,128] [--suffix .nii.gz]

Targets: input + output + 400 MB for 160x160x128; for 512x512x400 as .nii, 1 GB plus the output in its own
dtype.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import typer

from . import common

# In a process of its own, since the peak of a process never falls. VmHWM is the kernel's own high-water mark
# and counts pages of mapped files too; writing 5 to clear_refs sets it back to what is resident now.
CHILD = """
import sys
from pathlib import Path
from udean.runtime import SuperResolver
from udean.runtime.runs.run import prepare, run_all
from udean.runtime.runs.find import find_scans
def field(name):
    line = next(l for l in open('/proc/self/status') if l.startswith(name))
    return int(line.split()[1]) * 1024
resolve = SuperResolver(sys.argv[1], 'cpu')
jobs = find_scans([sys.argv[2]], Path(sys.argv[3]))
prepare(jobs)
Path('/proc/self/clear_refs').write_text('5')
before = field('VmRSS')
(outcome,) = run_all(jobs, resolve)
assert outcome.status == 'written', outcome.message
print(before, field('VmHWM'), outcome.timings.total)
"""


def main(shape: str = "160,160,128", suffix: str = ".nii.gz", preset: str = "paper") -> None:
    rows, columns, slices = map(int, shape.split(","))
    volume = common.head((rows, columns, slices))
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        onnx = common.model(folder, preset)[1]
        source = folder / f"lr{suffix}"
        nib.save(nib.Nifti1Image(volume, np.diag([1, 1, 2, 1])), source)
        done = subprocess.run(
            [sys.executable, "-c", CHILD, onnx, source, folder / "out"],
            check=True,
            capture_output=True,
            text=True,
        )
    before, peak, seconds = map(float, done.stdout.split())
    output = volume.nbytes * 8
    result = {
        "shape": [rows, columns, slices],
        "file": suffix,
        "preset": preset,
        "MB": {
            "input": volume.nbytes / 1e6,
            "output": output / 1e6,
            "interpreter and engine before": before / 1e6,
            "peak": peak / 1e6,
            "peak over before, input and output": (peak - before - volume.nbytes - output) / 1e6,
            "peak over output": (peak - output) / 1e6,
        },
        "seconds": seconds,
    }
    common.record(f"memory-{preset}-{'x'.join(map(str, volume.shape))}{suffix.replace('.', '-')}", result)


if __name__ == "__main__":
    typer.run(main)
