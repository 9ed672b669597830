"""What an H100 can do at best: bytes and operations of each stage, and its bottleneck. Nothing is measured.

    python -m udean.benchmarks.gpu_on_paper [--shape 160,160,128] [--preset paper]

Every stage takes at least as long as its operations at the card's peak or its bytes at the memory's or the
bus's rate, whichever is longer; in the network this holds for each convolution by itself, with everything
between two of them fused. Real kernels reach only part of that: the figures are what a measurement is
to be compared with.

Source: NVIDIA, "H100 Tensor Core GPU", datasheet, 2024 (SXM): peaks without sparsity, memory, bus.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from ..export.graph import read
from ..runtime.cuda.pipeline import BATCH_VOXELS
from ..runtime.pipeline.tiling import tile_windows
from . import common
from .common import run_script
from .engines.roofline import BYTES, Roofs, convolutions

# Operations per second (fp16 by tensor cores, fp32 without: TF32 is off) and bytes per second.
H100 = Roofs({"fp16": 989.4e12, "fp32": 66.9e12}, 3.35e12)
BUS = 64e9  # bytes per second each way, PCI Express 5.0 x16
VOXEL = 2  # bytes of an LR or SR voxel as stored, uint16
MEAN = 4  # of the running mean, float32


def main(shape: str = "160,160,128", preset: str = "paper", out: Path = common.RESULTS) -> None:
    rows, columns, slices = common.numbers(shape)
    with tempfile.TemporaryDirectory() as folder:
        graph, card = read(common.untrained(Path(folder), preset).full)
    plan = tile_windows((rows, columns, slices), card)
    window = plan.rows.window, plan.columns.window
    lr, hr = rows * columns * slices, math.prod(plan.fine_shape)
    taken = len(plan) * window[0] * window[1] * card.slab[0]  # LR voxels of all windows
    made = taken * math.prod(card.scale)
    batch = max(1, BATCH_VOXELS // (window[0] * window[1]))
    layers = convolutions(graph, *window)
    flop = len(plan) * sum(layer.flop for layer in layers)
    # The measured band: each plane times a matrix along columns and rows, to the LR grid and back; it is
    # copied, and read and written by each of these.
    fine_rows, fine_columns, fine_slices = plan.fine_shape
    products = fine_slices * 4.0 * fine_rows * columns * (fine_columns + rows)
    stages = [
        _stage("upload", lr * VOXEL, BUS),
        _stage("gather", taken * (VOXEL + BYTES["fp16"])),
        _stage("blend", made * (BYTES["fp16"] + 2 * MEAN)),
        _stage("measured band", hr * 8 * MEAN, flop=products),
        _stage("store", hr * (MEAN + VOXEL)),
        _stage("download", hr * VOXEL, BUS),
    ]
    network = {}
    for precision in ("fp16", "fp32"):
        size = BYTES[precision]
        moved = [size * (batch * a.values + a.weights) / batch for a in layers]
        knee = H100.flops[precision] / H100.copy
        by_memory = [a.flop < knee * m for a, m in zip(layers, moved, strict=True)]
        network[precision] = {
            "bytes": len(plan) * sum(moved),
            "flop": flop,
            "layers": len(layers),
            "layers bound by memory": sum(by_memory),
            "seconds": flop / H100.attainable(layers, precision, batch),
        }
    result = {
        "preset": preset,
        "shape": [rows, columns, slices],
        "windows": len(plan),
        "window": list(window),
        "batch": batch,
        "stages": stages,
        "network": network,
    }
    common.record(f"gpu-on-paper-{preset}", result, out)


def _stage(name: str, size: float, rate: float = H100.copy, flop: float = 0.0) -> dict[str, Any]:
    """Its bytes at a rate, or its operations at half the peak: products and sums are rounded apart."""
    moving, computing = size / rate, flop / (H100.flops["fp32"] / 2)
    bound = "arithmetic" if computing > moving else "bus" if rate == BUS else "memory"
    figures = {"bytes": size, "flop": flop, "bound by": bound, "seconds": max(moving, computing)}
    return {"stage": name, **figures}


if __name__ == "__main__":
    run_script(main)
