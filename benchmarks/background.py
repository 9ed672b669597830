"""What does the content box save on a skull-stripped scan, and what does it change inside the head?

    python -m udean.benchmarks.background

The ICBM152 T1, 78 % zero, is taken as a scan. Target: at least 1.8 times faster than the same engine without
the box (both compute byte-identical windows once), at 50 dB or more inside the head.
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

    def ours(name: str, resolve: SuperResolver) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            kept[name] = resolve(volume)
            timings = resolve.timings
            assert timings
            return {"total": timings.total, "network": timings.network, "windows": timings.computed}

        return run

    names = {"whole": False, "box": True}
    figures = common.alternate({n: ours(n, SuperResolver(opened, crop=c)) for n, c in names.items()}, times)
    medians = common.medians(figures)
    result = {
        "zero": round(float(np.mean(volume == 0)), 4),
        "model": opened.card.name,
        "engine": str(opened.info),
        "median": medians,
        "times faster": round(medians["whole"]["total"] / medians["box"]["total"], 3),
        "inside the head": common.deviation(kept["box"][inside], kept["whole"][inside]),
    }
    common.record("background", result)


if __name__ == "__main__":
    typer.run(main)
