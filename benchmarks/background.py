"""What does leaving out the background save on a skull-stripped scan, and what does it change in the head?

    python -m udean.benchmarks.background

The ICBM152 T1, 78 % zero, is taken as a scan. "every window": a background that differs everywhere by a
millionth, so that nothing can be left out; "twins": byte-identical windows are computed once; "content": and
windows around the content are not even looked at. Target: content at least 1.8 times faster than every
window, at 50 dB or more inside the head.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import typer

from ..runtime.engines import open_engine
from ..runtime.resolver import SuperResolver
from . import common
from .demo import template


def main(times: int = 5, preset: str = "compact", engine: Path | None = None) -> None:
    volume, _ = template()
    inside = np.repeat(np.repeat(np.repeat(volume > 0, 2, 0), 2, 1), 2, 2)
    kept = {}
    with tempfile.TemporaryDirectory() as folder:
        opened = open_engine(engine or common.model(Path(folder), preset)[1])

    noise = np.random.default_rng(0).uniform(1e-6, 2e-6, volume.shape).astype(np.float32) * volume.max()
    never_still = np.where(volume == 0, noise, volume)

    def ours(name: str, resolve: SuperResolver, scan: np.ndarray) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            kept[name] = resolve(scan)
            timings = resolve.timings
            assert timings
            return {"total": timings.total, "network": timings.network, "windows": timings.computed}

        return run

    cropping, whole = SuperResolver(opened), SuperResolver(opened, crop=False)
    runs = {
        "every window": ours("every window", whole, never_still),
        "twins": ours("twins", whole, volume),
        "content": ours("content", cropping, volume),
    }
    figures = common.alternate(runs, times)
    medians = common.medians(figures)
    result = {
        "zero": round(float(np.mean(volume == 0)), 4),
        "model": opened.card.name,
        "engine": str(opened.info),
        "median": medians,
        "times faster": {
            name: round(medians["every window"]["total"] / medians[name]["total"], 3)
            for name in ("twins", "content")
        },
        "inside the head, against every window": {
            name: common.deviation(kept[name][inside], kept["every window"][inside])
            for name in ("twins", "content")
        },
        "content equals twins inside the head": bool(
            (kept["content"][inside] == kept["twins"][inside]).all()
        ),
    }
    common.record("background", result)


if __name__ == "__main__":
    typer.run(main)
