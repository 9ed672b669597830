"""The time of each stage of a volume on a GPU, and whether runs agree.

    python -m udean.benchmarks.gpu_stages [--shape 160,160,128] [--preset paper] [--device cuda]

An untrained checkpoint, by PyTorch. `gpu_on_paper` says what to expect of it.
"""

from __future__ import annotations

import collections
import hashlib
import statistics
import tempfile
from pathlib import Path
from typing import Any

import typer
from numpy.typing import NDArray

from ..runtime.cuda import CudaEngine
from ..runtime.engines.choose import choose_engine
from ..runtime.pipeline.engine import Engine
from ..runtime.resolver import SuperResolver
from ..runtime.system.trace import Trace
from . import common

WAYS: dict[str, dict[str, Any]] = {
    "windows alone": {"consistency": "off"},
    "and the measured band": {"consistency": 1.0},
    "and the mean over three slab axes": {"consistency": 1.0, "best": True},
}
WARMING = 2  # volumes before any is timed: a graph is captured on a slot's second batch


def main(
    shape: str = "160,160,128",
    preset: str = "paper",
    device: str = "cuda",
    repeats: int = 5,
    out: Path = common.RESULTS,
) -> None:
    volume, found = common.head([int(n) for n in shape.split(",")]), {}
    with tempfile.TemporaryDirectory() as folder:
        path, _, _ = common.unexported(Path(folder), preset, common.PRESETS[preset])
        engine: Any = choose_engine(path, device, "auto", None, "auto")
    for way, options in WAYS.items():
        found[way] = measure(engine, volume, options, repeats)
        _tell(way, found[way])
    if getattr(engine, "graphs", False):
        engine.graphs = False
        found["windows alone, without CUDA graphs"] = measure(engine, volume, WAYS["windows alone"], repeats)
        _tell("windows alone, without CUDA graphs", found["windows alone, without CUDA graphs"])
    about = {"preset": preset, "shape": list(volume.shape), "engine": str(engine.info)}
    common.record(common.slug(f"gpu-stages {preset} {engine.info.device}"), about | {"ways": found}, out)


def measure(
    engine: Engine | CudaEngine, volume: NDArray[Any], options: dict[str, Any], repeats: int
) -> dict[str, Any]:
    """Seconds of each run, and of each stage in one more, traced run; digests: of the different results."""
    with SuperResolver(engine, window=engine.card.window, **options) as resolve:
        for _ in range(WARMING):
            resolve(volume)
        totals, networks, digests = [], [], set[str]()
        for _ in range(repeats):
            digests.add(_digest(resolve(volume)))
            timings = resolve.timings
            assert timings
            totals.append(timings.total)
            networks.append(timings.network)
    trace = Trace()
    with SuperResolver(engine, window=engine.card.window, trace=trace, **options) as resolve:
        resolve(volume)
        trace.spans.clear()  # of the first volume, for which memory was allocated
        resolve(volume)
    stages: dict[str, float] = collections.defaultdict(float)
    for span in trace.spans:
        stages[span.stage] += span.stop - span.start
    return {
        "seconds": statistics.median(totals),
        "network_seconds": statistics.median(networks),
        "outside_network": round(1 - sum(networks) / sum(totals), 4),
        "seconds_of_all": totals,
        "stages": {stage: round(seconds, 5) for stage, seconds in stages.items()},
        "digests": sorted(digests),
    }


def _digest(voxels: NDArray[Any]) -> str:
    return hashlib.sha256(voxels.tobytes()).hexdigest()[:16]


def _tell(way: str, found: dict[str, Any]) -> None:
    results = found["digests"]
    same = "each run the same" if len(results) == 1 else f"{len(results)} DIFFERENT results"
    print(
        f"{way}: {found['seconds']:.4f} s, {found['outside_network']:.1%} of it outside the network, {same}",
        flush=True,
    )


if __name__ == "__main__":
    typer.run(main)
