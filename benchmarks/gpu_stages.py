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

from numpy.typing import NDArray

from ..runtime.cuda import CudaEngine
from ..runtime.engines.choose import choose_engine
from ..runtime.pipeline.engine import Engine
from ..runtime.resolver import SuperResolver
from ..runtime.system.trace import Trace
from . import common
from .common import run_script

WAYS: dict[str, dict[str, Any]] = {
    "windows alone": {"consistency": "off"},
    "and the measured band": {"consistency": 1.0},
    "and the mean over three slab axes": {"consistency": 1.0, "best": True},
}
WITHOUT_GRAPHS = "windows alone, without CUDA graphs"
WARMING = 2  # volumes before any is timed: a graph is captured on a slot's second batch


def main(
    shape: str = "160,160,128",
    preset: str = "paper",
    device: str = "cuda",
    repeats: int = 5,
    out: Path = common.RESULTS,
) -> None:
    volume, found = common.textured(common.numbers(shape)), {}
    with tempfile.TemporaryDirectory() as folder:
        path = common.save_untrained(Path(folder), preset, common.ARCHITECTURES[preset])
        engine: Any = choose_engine(path, device, "auto", None, "auto")
    graphs = getattr(engine, "graphs", False)
    for way, options in (WAYS | ({WITHOUT_GRAPHS: WAYS["windows alone"]} if graphs else {})).items():
        if graphs:
            engine.graphs = way != WITHOUT_GRAPHS
        found[way] = by_stage(engine, volume, options, repeats)
        _tell(way, found[way])
    about = {"preset": preset, "shape": list(volume.shape), "engine": str(engine.info)}
    common.record(common.slug(f"gpu-stages {preset} {engine.info.device}"), about | {"ways": found}, out)


def by_stage(
    engine: Engine | CudaEngine, volume: NDArray[Any], options: dict[str, Any], repeats: int
) -> dict[str, Any]:
    """Seconds of each run, and of each stage in one more, traced run; digests: of the different results."""
    digests = list[str]()
    with SuperResolver(engine, window=engine.card.window, **options) as resolve:

        def run() -> dict[str, float]:
            sr, times = common.timed(resolve, volume)
            digests.append(hashlib.sha256(sr.tobytes()).hexdigest()[:16])
            return times

        runs = common.alternate({"volume": run}, repeats, WARMING)["volume"]
    trace = Trace()
    with SuperResolver(engine, window=engine.card.window, trace=trace, **options) as resolve:
        resolve(volume)
        trace.spans.clear()  # of the first volume, for which memory was allocated
        resolve(volume)
    stages: dict[str, float] = collections.defaultdict(float)
    for span in trace.spans:
        stages[span.stage] += span.stop - span.start
    return {
        "seconds": statistics.median(runs["seconds"]),
        "network_seconds": statistics.median(runs["network"]),
        "outside_network": round(1 - sum(runs["network"]) / sum(runs["seconds"]), 4),
        "seconds_of_all": runs["seconds"],
        "stages": {stage: round(seconds, 5) for stage, seconds in stages.items()},
        "digests": sorted({*digests[WARMING:]}),
    }


def _tell(way: str, found: dict[str, Any]) -> None:
    count = len(found["digests"])
    same = "each run the same" if count == 1 else f"{count} DIFFERENT results"
    outside = f"{found['outside_network']:.1%} of it outside the network"
    print(f"{way}: {found['seconds']:.4f} s, {outside}, {same}", flush=True)


if __name__ == "__main__":
    run_script(main)
