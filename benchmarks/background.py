"""What does leaving out the background save on a skull-stripped scan, and what does it change in the head?

    python -m udean.benchmarks.background

The ICBM152 T1, 78 % zero, is taken as a scan. "every window": a background that differs everywhere by a
millionth, so that nothing can be left out; "twins": byte-identical windows are computed once; "content":
windows lie over the content alone. So they lie elsewhere, and each has another mean for the network's
channel attention: the head is not the same to the bit. Target: content at least 1.8 times faster than every
window, at 50 dB or more inside the head, with the embedded model's windows and with the paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

from ..runtime.cuda import CudaEngine
from ..runtime.engines.choose import choose_engine
from ..runtime.pipeline.engine import Engine
from ..runtime.resolver import SuperResolver
from . import common
from .demo import template

WINDOWS = ((32, 32), (64, 64))


def main(times: int = 5, engine: Path | None = None, device: str = "cpu") -> None:
    volume, _ = template()
    opened = choose_engine(engine, device, "auto", None, "auto")
    found = {
        f"{rows}x{columns}": measure(opened, (rows, columns), volume, times) for rows, columns in WINDOWS
    }
    about = {"zero": round(float(np.mean(volume == 0)), 4), "model": opened.card.name}
    common.record("background", about | {"engine": str(opened.info), "by window": found})


def measure(
    opened: Engine | CudaEngine, window: tuple[int, int], volume: NDArray[Any], times: int
) -> dict[str, Any]:
    """What the three ways cost, by turns, and how much the head differs from every window's."""
    inside = np.repeat(np.repeat(np.repeat(volume > 0, 2, 0), 2, 1), 2, 2)
    noise = np.random.default_rng(0).uniform(1e-6, 2e-6, volume.shape).astype(np.float32) * volume.max()
    never_still = np.where(volume == 0, noise, volume)
    kept = {}

    def way(name: str, scan: NDArray[Any], crop: bool) -> Callable[[], dict[str, float]]:
        resolve = SuperResolver(opened, window=window, crop=crop)

        def run() -> dict[str, float]:
            kept[name] = resolve(scan)
            timings = resolve.timings
            assert timings
            return {"total": timings.total, "network": timings.network, "windows": timings.computed}

        return run

    runs = {
        "every window": way("every window", never_still, False),
        "twins": way("twins", volume, False),
        "content": way("content", volume, True),
    }
    medians = common.medians(common.alternate(runs, times))
    every = medians["every window"]
    rows: dict[str, Any] = {"every window": every}
    for name in ("twins", "content"):
        faster = round(every["total"] / medians[name]["total"], 3)
        error = common.deviation(kept[name][inside], kept["every window"][inside])
        rows[name] = {**medians[name], "times faster": faster, **error}
    return rows


if __name__ == "__main__":
    typer.run(main)
