"""How fast is a volume, and a folder, on a GPU? Against the PyTorch path and the card's own arithmetic.

    python -m udean.benchmarks.gpu [--shape 160,160,128] [--scans 50]

Targets: half precision at least 8 times the PyTorch path in fp32 (no TF32) and twice that in fp16 (autocast,
channels last); 40 % of the card's measured fp16 GEMM rate; at most 5 % outside the network; the folder at
90 % of one volume's rate. Runs every CUDA engine that is installed; `make gpu-check` runs the tests first.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import typer

from ..runtime.cost import flop_per_voxel
from ..runtime.cuda.device import Gpu
from ..runtime.engines import choose_engine
from ..runtime.errors import RunError
from ..runtime.folder import prepare, run_all
from ..runtime.jobs import find_scans
from ..runtime.resolver import SuperResolver
from . import common


def main(shape: str = "160,160,128", times: int = 5, preset: str = "paper", scans: int = 50) -> None:
    rows, columns, slices = map(int, shape.split(","))
    volume = common.head((rows, columns, slices))
    gpu = Gpu()
    kept: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, onnx, half = common.model(folder, preset)
        engines: dict[str, SuperResolver] = {}
        missing: dict[str, str] = {}
        candidates = {
            "torch fp16": checkpoint,
            "onnxruntime fp16": half,
            "tensorrt fp16": folder / "paper.plan",
        }
        for label, model in candidates.items():
            try:
                if model.suffix == ".plan":
                    model = _plan(half, folder)
                engines[label] = SuperResolver(choose_engine(model, "cuda", "auto", None, "auto"))
            except RunError as error:
                missing[label] = str(error)

        def ours(label: str) -> Callable[[], dict[str, float]]:
            def run() -> dict[str, float]:
                kept[label] = engines[label](volume)
                timings = engines[label].timings
                assert timings
                return {"total": timings.total, "network": timings.network, "gather": timings.gather}

            return run

        def yardstick(precision: str) -> Callable[[], dict[str, float]]:
            import torch

            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            path = common.TorchPath(checkpoint, "cuda", precision, batch=16)

            def run() -> dict[str, float]:
                start = time.perf_counter()
                kept[f"PyTorch path {precision}"] = path(volume)
                return {"total": time.perf_counter() - start, "network": path.seconds}

            return run

        runs = {label: ours(label) for label in engines}
        for precision in ("fp32", "fp16"):
            try:
                runs[f"PyTorch path {precision}"] = yardstick(precision)
            except (RuntimeError, AssertionError) as error:  # this PyTorch knows no CUDA
                missing[f"PyTorch path {precision}"] = str(error).splitlines()[0]
        figures = common.alternate(runs, times)
        medians = common.medians(figures)
        result: dict[str, Any] = {
            "device": gpu.name,
            "capability": gpu.capability,
            "shape": [rows, columns, slices],
            "preset": preset,
            "not installed": missing,
            "median seconds": medians,
            "all runs": figures,
        }
        result["gemm TFLOP/s, fp16"] = rate = _gemm()
        for label, resolve in engines.items():
            total, network = medians[label]["total"], medians[label]["network"]
            windows = len(resolve.plan((rows, columns, slices)))
            flop = (flop_per_voxel(onnx) or 0) * np.prod(resolve.card.window) * windows
            facts = {
                "TFLOP/s": round(float(flop) / network / 1e12, 1),
                "share of GEMM": round(float(flop) / network / 1e12 / rate, 3) if rate else None,
                "share outside the network": round(1 - network / total, 4),
                "folder": _folder(resolve, volume, folder, scans, total),
            }
            for precision in ("fp32", "fp16"):
                other = f"PyTorch path {precision}"
                if other in medians:
                    facts[f"times faster than {other}"] = round(medians[other]["total"] / total, 2)
            if (exact := kept.get("PyTorch path fp32")) is not None:
                facts["deviation"] = common.deviation(kept[label], np.maximum(exact, 0))
            result[label] = facts
    slug = "-".join(gpu.name.lower().split())
    common.record(f"gpu-{slug}", result)


def _plan(half: Path, folder: Path) -> Path:
    """A plan of the half-precision model for windows of 64x64."""
    from ..export.plans import Sizes, build_plan
    from ..export.tensorrt import BuildOptions

    return build_plan(
        half, folder, Sizes((1, 16, 16), ((64, 64), (64, 64), (64, 64)), 2), BuildOptions()
    ).path


def _gemm(size: int = 8192, repeat: int = 20) -> float | None:
    """TFLOP/s of a square half-precision matrix product by PyTorch; None where it knows no CUDA."""
    import torch

    if not torch.cuda.is_available():
        return None
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.float16) for _ in range(2))
    for _ in range(3):
        torch.mm(a, b)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        torch.mm(a, b)
    torch.cuda.synchronize()
    return round(2 * size**3 * repeat / (time.perf_counter() - start) / 1e12, 1)


def _folder(
    resolve: SuperResolver, volume: Any, folder: Path, scans: int, seconds: float
) -> dict[str, float]:
    """A folder of .nii.gz scans from file to file, and how near it comes to one volume's rate."""
    source = folder / "scans"
    source.mkdir(exist_ok=True)
    for n in range(scans):
        nib.save(nib.Nifti1Image(volume, np.diag([1, 1, 2, 1])), source / f"{n:03}.nii.gz")
    jobs = find_scans([str(source)], folder / f"out-{time.monotonic_ns()}")
    prepare(jobs)
    start = time.perf_counter()
    outcomes = list(run_all(jobs, resolve))
    wall = time.perf_counter() - start
    assert all(outcome.status == "written" for outcome in outcomes)
    writing = sum(o.timings.write for o in outcomes if o.timings)
    return {
        "seconds a scan": round(wall / scans, 4),
        "share of one volume's rate": round(seconds * scans / wall, 3),
        "writing, seconds a scan": round(writing / scans, 4),
    }


if __name__ == "__main__":
    typer.run(main)
