"""How much faster than the PyTorch path is a volume on the processor, and how near to the network's time?

    python -m udean.benchmarks.speed [--shape 160,160,128] [--times 5]

Targets: bf16 at least 2.2 times the PyTorch path, fp32 at least 1.15 times; at most 4 % of the time outside
the network; the whole command, from file to file, at most 1.06 times the network's time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import typer

from ..runtime.resolver import SuperResolver
from . import common


def main(shape: str = "160,160,128", times: int = 5, preset: str = "paper", commands: int = 1) -> None:
    rows, columns, slices = map(int, shape.split(","))
    volume = common.head((rows, columns, slices))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, onnx, _ = common.model(Path(folder), preset)
        torch_path = common.TorchPath(checkpoint)
        kept: dict[str, Any] = {}

        def yardstick() -> dict[str, float]:
            start = time.perf_counter()
            kept["torch"] = torch_path(volume)
            return {"total": time.perf_counter() - start, "network": torch_path.seconds}

        def ours(name: str, resolve: SuperResolver) -> Callable[[], dict[str, float]]:
            def run() -> dict[str, float]:
                kept[name] = resolve(volume, dtype="float32")
                timings = resolve.timings
                assert timings
                return {"total": timings.total, "network": timings.network}

            return run

        runs: dict[str, Callable[[], dict[str, float]]] = {"torch": yardstick}
        for precision in ("fp32", "bf16"):
            runs[precision] = ours(precision, SuperResolver(onnx, "cpu", precision))
        figures = common.alternate(runs, times)
        medians = common.medians(figures)
        result = {
            "shape": [rows, columns, slices],
            "preset": preset,
            "median seconds": medians,
            "times faster than the PyTorch path": {
                name: round(medians["torch"]["total"] / medians[name]["total"], 3)
                for name in ("fp32", "bf16")
            },
            "share outside the network": {
                name: round(1 - m["network"] / m["total"], 4) for name, m in medians.items()
            },
            "bf16 against fp32": common.deviation(kept["bf16"], kept["fp32"]),
            # Other windows and weights, hence another mean at each voxel: not an error of precision.
            "fp32 against the PyTorch path": common.deviation(kept["fp32"], np.maximum(kept["torch"], 0)),
            "command": [_command(Path(folder), onnx, volume) for _ in range(commands)],
            "all runs": figures,
        }
    common.record(f"speed-{preset}-{'x'.join(map(str, volume.shape))}-{common.cores()}-cores", result)


def _command(folder: Path, onnx: Path, volume: Any) -> dict[str, float]:
    """`udean-run` in a process of its own, from .nii.gz to .nii.gz."""
    source, out = folder / "lr.nii.gz", folder / "out"
    nib.save(nib.Nifti1Image(volume, np.diag([1, 1, 2, 1])), source)
    start = time.perf_counter()
    command = ["udean.runtime.cli", "--engine", onnx, "-o", out, "--overwrite", "--precision", "bf16", source]
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    made = json.loads((out / "lr_sr.json").read_text())["udean"]["timings"]
    return {
        "wall": round(wall, 3),
        "scan": round(made["total"], 3),
        "network": round(made["network"], 3),
        "wall / network": round(wall / made["network"], 4),
        "scan / network": round(made["total"] / made["network"], 4),
    }


if __name__ == "__main__":
    typer.run(main)
