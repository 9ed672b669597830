"""Does the cost grow linearly with the volume, from 32x32x32 to 320x320x256 LR voxels?

    python -m udean.benchmarks.scaling [--times 3]

A table and a plot: seconds and nanoseconds a voxel over voxels.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import typer

from ..runtime.engines import open_engine
from ..runtime.resolver import SuperResolver
from . import common

SHAPES = ((32, 32, 32), (64, 64, 64), (112, 112, 96), (160, 160, 128), (240, 240, 192), (320, 320, 256))


def main(times: int = 3, preset: str = "compact") -> None:
    with tempfile.TemporaryDirectory() as folder:
        resolve = SuperResolver(open_engine(common.model(Path(folder), preset)[1]))
    rows = []
    for shape in SHAPES:
        volume = common.head(shape)

        def run(volume=volume) -> dict[str, float]:
            resolve(volume)
            timings = resolve.timings
            assert timings
            return {"total": timings.total, "network": timings.network, "windows": timings.computed}

        figures = common.medians(common.alternate({str(shape): run}, times))[str(shape)]
        nanoseconds = figures["total"] / volume.size * 1e9
        rows.append(
            {"shape": list(shape), "voxels": volume.size, **figures, "ns per voxel": round(nanoseconds)}
        )
    common.record("scaling", {"preset": preset, "engine": str(resolve.engine.info), "table": rows})
    draw(common.RESULTS / "scaling.png", rows)


def draw(path: Path, rows: list[dict[str, float]]) -> None:
    """Seconds over voxels, both logarithmic, beside a line of slope 1 through the largest volume."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    voxels, seconds = [r["voxels"] for r in rows], [r["total"] for r in rows]
    axes.loglog(voxels, seconds, "o-", label="measured")
    axes.loglog(voxels, [seconds[-1] * v / voxels[-1] for v in voxels], "--", label="linear")
    axes.set(xlabel="LR voxels", ylabel="seconds", title="Cost of a volume")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    typer.run(main)
