"""What does Ray cost a cohort?

    python -m udean.benchmarks.cluster [--scans 200] [--shape 64,64,32] [--times 3]

The same scans by one process with two cores and by Ray with one such worker; by two processes as shards with
a core each and by Ray with two such workers. Figures are taken between the outcomes at a tenth and at nine
tenths of the cohort: start and end cost the same for 200 scans and for 10 000; total seconds are given too.

The machine's own speed may change by a third within minutes, which is more than Ray costs. So all run twice:
with the embedded model, whose seconds per scan show Ray's overhead round by round; and with a tiny network,
whose processor time shows what everything else takes.

That a cohort survives the death of a worker and of the driver is a test: tests/runtime/cluster/.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import typer

from ..runtime.run.manifest import lines, manifests
from ..runtime.system.files import sha256
from . import common

COMMAND = [sys.executable, "-m", "udean.runtime.commands.run"]
SHARE = ["--num-shards", "2", "--shard"]
KINDS = {
    "one process": [["--threads", "2"]],
    "ray, one worker": [["--threads", "2", "--ray"]],
    "two shards": [["--threads", "1", *SHARE, "0"], ["--threads", "1", *SHARE, "1"]],
    "ray, two workers": [["--threads", "1", "--ray"]],
}
CONTESTS = {
    "one worker over one process": ("ray, one worker", "one process"),
    "two workers over two shards": ("ray, two workers", "two shards"),
}
SECONDS, PROCESSOR = "seconds a scan", "processor seconds a scan"
EMBEDDED, SMALL = "embedded model", "small network"
DONE = ("written", "kept")

Figures = dict[str, dict[str, list[float]]]  # of the runs of each kind, by name


def main(scans: int = 200, shape: str = "64,64,32", times: int = 3) -> None:
    if common.cores() < 2:
        raise SystemExit("Two workers need two cores.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "scans"
        source.mkdir()
        volume = common.textured(common.numbers(shape))
        random = np.random.default_rng(0)
        for n in range(scans):
            scan = volume + random.integers(0, 9, dtype=np.int16)
            nib.save(nib.Nifti1Image(scan, np.diag([1, 1, 2, 1])), source / f"{n:04}.nii.gz")
        arch = dataclasses.replace(common.ARCHITECTURES["compact"], channels=6, groups=1, blocks=1)
        small = common.trained(common.save_untrained(folder, "small", arch), folder)
        engines = {SMALL: ["--engine", str(small.full)], EMBEDDED: []}
        digests: dict[str, set[str]] = {model: set() for model in engines}

        def run(kind: str, model: str) -> dict[str, float]:
            found = _run(folder, source, scans, [[*command, *engines[model]] for command in KINDS[kind]])
            digests[model].add(_digest(folder / "out"))
            return found

        found = {
            model: common.alternate({k: lambda k=k, m=model: run(k, m) for k in KINDS}, times)
            for model in engines
        }
        assert all(len(outputs) == 1 for outputs in digests.values()), "the runs did not give the same bytes"
    medians = {model: common.medians(figures) for model, figures in found.items()}
    alone, workers = (medians[EMBEDDED][kind][SECONDS] for kind in ("one process", "ray, two workers"))
    common.record(
        "cohort",
        {
            "scans": scans,
            "shape": common.numbers(shape),
            "medians": medians,
            "ray's overhead": {name: _overhead(found, *kinds) for name, kinds in CONTESTS.items()},
            "scans in the time of one process, ray with two workers": round(alone / workers, 2),
            "distinct outputs of a model, byte for byte": max(map(len, digests.values())),
            "runs": found,
        },
    )


def _overhead(found: dict[str, Figures], ray: str, other: str) -> dict[str, Any]:
    """Ray's time per scan over the other's, and the processor time it takes besides the network."""
    seconds = zip(found[EMBEDDED][ray][SECONDS], found[EMBEDDED][other][SECONDS], strict=True)
    rounds = [100 * (a / b - 1) for a, b in seconds]

    def processor(model: str, kind: str) -> float:
        return statistics.median(found[model][kind][PROCESSOR])

    beside = processor(SMALL, ray) - processor(SMALL, other)
    return {
        "median of the rounds, %": round(statistics.median(rounds), 1),
        "rounds, %": [round(each, 1) for each in rounds],
        "processor ms a scan beside the network": round(1000 * beside, 1),
        "of a scan by the embedded model, %": round(100 * beside / processor(EMBEDDED, other), 1),
    }


def _run(folder: Path, source: Path, scans: int, options: list[list[str]]) -> dict[str, float]:
    """Run a cohort from scratch; seconds per scan in steady state, and in total."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    start, marks = time.perf_counter(), list[tuple[int, float, float]]()
    command = [*COMMAND, str(source), "-o", str(out)]
    running = [subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL) for more in options]
    low, high = scans // 10, scans - scans // 10
    while any(process.poll() is None for process in running):
        written = (line for path in manifests(out) for line in lines(path))
        done = sum(line.get("status") in DONE for line in written)
        if done >= (low, high, scans + 1)[len(marks)]:
            marks.append((done, time.perf_counter(), _busy()))
        time.sleep(0.1)
    whole = time.perf_counter() - start
    codes = [process.returncode for process in running]
    assert not any(codes) and len(marks) == 2, codes
    (first, begin, idle), (last, end, busy) = marks
    each = last - first
    return {SECONDS: (end - begin) / each, PROCESSOR: (busy - idle) / each, "whole seconds": whole}


def _busy() -> float:
    """Busy seconds of this machine's processors, for all processes."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _digest(out: Path) -> str:
    """The digest of all SR scans and their names."""
    found = "".join(f"{path.name} {sha256(path)}\n" for path in sorted(out.rglob("*.nii.gz")))
    return hashlib.sha256(found.encode()).hexdigest()


if __name__ == "__main__":
    typer.run(main)
