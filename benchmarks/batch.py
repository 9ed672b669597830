"""How many windows should a call of a processor's engine have?

    python -m udean.benchmarks.batch [--times 5]

Milliseconds a window of 64x64x3 voxels. `runtime.host.BATCH_VOXELS` follows the answer.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import typer

from ..runtime.engines.choose import open_engine
from . import common
from .curves import Panel

SIZES = (1, 2, 4, 8, 16)
ENGINES: tuple[tuple[Literal["openvino", "onnxruntime"], Literal["fp32", "bf16"]], ...] = (
    ("openvino", "bf16"),
    ("openvino", "fp32"),
    ("onnxruntime", "fp32"),
)


def main(times: int = 5, preset: str = "paper", windows: int = 16) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        onnx = common.model(Path(folder), preset)[1]
        noise = np.random.default_rng(0).random((windows, 3, 64, 64), np.float32)
        for library, precision in ENGINES:
            engine = open_engine(onnx, "cpu", precision, library=library)

            def run(size: int, engine=engine) -> dict[str, float]:
                start = time.perf_counter()
                for first in range(0, windows, size):
                    engine(noise[first : first + size])
                return {"ms": (time.perf_counter() - start) / windows * 1e3}

            runs = {
                f"batch {size}": lambda size=size, run=run: run(size) for size in SIZES if size <= windows
            }
            medians = common.medians(common.alternate(runs, times))
            found[f"{library} {precision}"] = {name: round(m["ms"], 2) for name, m in medians.items()}
    common.record("batch", {"preset": preset, "milliseconds a window": found})


def panels(result: dict[str, Any]) -> list[Panel]:
    """Milliseconds a window over windows a call."""
    found = result["milliseconds a window"]
    sizes = [int(name.split()[1]) for name in next(iter(found.values()))]
    series = {engine: list(by_size.values()) for engine, by_size in found.items()}
    return [Panel("Windows of a network call", "windows", "ms a window", sizes, series)]


if __name__ == "__main__":
    typer.run(main)
