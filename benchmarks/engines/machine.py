"""The machine while it is measured: clocks, load, and a GPU's memory by the driver's own `nvidia-smi`."""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

PERIOD = 0.02  # seconds between samples of a GPU


def clocks() -> list[float]:
    """MHz of each core now, as far as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]


def load() -> float:
    """Average number of running or waiting processes over the last minute."""
    return os.getloadavg()[0]


class GpuMonitor:
    """Samples a GPU's memory in use (bytes, of all processes) and its clock (MHz) until closed.

    bus: PCI address, since the driver's numbers are not CUDA's. Without `nvidia-smi` there are no samples.
    """

    def __init__(self, bus: str) -> None:
        self.mhz: list[float] = []
        self._memory: list[tuple[float, int]] = []
        self._held: dict[str, int] = collections.defaultdict(int)
        self._peaks: dict[str, int] = collections.defaultdict(int)
        self._process: subprocess.Popen[str] | None = None
        if not shutil.which("nvidia-smi"):
            return
        query = ["--query-gpu=memory.used,clocks.sm", "--format=csv,noheader,nounits"]
        command = ["nvidia-smi", f"--id={bus}", *query, f"--loop-ms={PERIOD * 1000:.0f}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process and self._process.stdout
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # "[N/A]" if a device does not report it
                used, mhz = map(float, line.split(","))
                self._memory.append((time.perf_counter(), int(used * 2**20)))
                self.mhz.append(mhz)

    @contextlib.contextmanager
    def watch(self, name: str) -> Iterator[None]:
        """Attribute memory growth inside the block to a name; one at a time, while the others are idle."""
        if self._process:
            time.sleep(3 * PERIOD)
        start, before = time.perf_counter(), self._memory[-1][1] if self._memory else 0
        try:
            yield
        finally:
            if self._memory:
                time.sleep(3 * PERIOD)
                seen = [used for at, used in self._memory if at >= start] or [before]
                self._peaks[name] = max(self._peaks[name], self._held[name] + max(seen) - before)
                self._held[name] += seen[-1] - before

    def peak(self, name: str) -> int | None:
        """Peak bytes attributed to a name; None if nothing was measured."""
        return self._peaks.get(name)

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
