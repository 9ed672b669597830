"""What every benchmark needs: model, volume, fair repetition, yardstick, a result with its circumstances."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.onnx import serialize, to_onnx
from ..runtime.card import ModelCard
from ..runtime.files import write_json
from ..trainer import checkpoint, networks

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("numpy", "torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "monai", "pycuda")
PRESETS = {
    "paper": networks.Architecture(),
    "compact": networks.Architecture(channels=32, groups=2, blocks=3, skip="cubic"),
}


def model(folder: Path, preset: str = "paper") -> tuple[Path, Path, Path]:
    """An untrained network of a preset's size: checkpoint, ONNX in float32 and in half precision.

    Speed does not depend on the weights' values.
    """
    import torch

    torch.manual_seed(0)
    network = networks.super_resolution(PRESETS[preset]).eval()
    card = ModelCard(
        name=f"{preset}-untrained",
        method="none",
        scale=(2, 2, 2),
        slab=(3, 6),
        window=(64, 64),
        grid="fft",
        intensity="percentile-99.9",
        skip=PRESETS[preset].skip,
        precision="fp32",
        parameters=networks.parameter_count(network),
        toolkit="benchmark",
        trained_on="nothing",
    )
    path = folder / f"{preset}.pt"
    checkpoint.save(path, card, PRESETS[preset], network)
    full, half = folder / f"{preset}.onnx", folder / f"{preset}.fp16.onnx"
    full.write_bytes(serialize(to_onnx(network, 3, half=False), card))
    half.write_bytes(serialize(to_onnx(network, 3, half=True), card.replace(precision="fp16")))
    return path, full, half


def head(shape: Sequence[int], dtype: str = "int16") -> NDArray[Any]:
    """A volume that is noise and waves wherever one looks, so that every window has to be computed."""
    axes = np.meshgrid(*(np.linspace(0, 9, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    waves = np.sin(axes[0]) * np.cos(axes[1]) * np.sin(axes[2] + 1) * 300 + 500
    noise = np.random.default_rng(0).standard_normal(shape, np.float32) * 20
    return np.asfortranarray((waves + noise).astype(dtype))


class TorchPath:
    """The yardstick: what a careful user would write today. Eager PyTorch behind MONAI's sliding window.

    precision: "fp32" without TF32, or "fp16" by autocast, channels last. seconds: inside the network, of
    the last volume.
    """

    def __init__(self, path: Path, device: str = "cpu", precision: str = "fp32", batch: int = 4) -> None:
        import torch

        self._torch: Any = torch
        network: Any
        network, _ = checkpoint.load_generator(path)
        layout = torch.channels_last if precision == "fp16" else torch.contiguous_format
        self._network = network.eval().to(device, memory_format=layout)
        self._device, self._precision, self._batch, self.seconds = device, precision, batch, 0.0

    def __call__(self, volume: NDArray[Any]) -> NDArray[np.float32]:
        """An LR volume (rows, columns, slices) to the SR volume, in its units."""
        from monai.inferers.utils import sliding_window_inference

        torch, self.seconds = self._torch, 0.0
        unit = float(np.percentile(volume, 99.9))
        with torch.inference_mode(), torch.autocast(self._device, enabled=self._precision == "fp16"):
            lr = torch.from_numpy(volume.astype(np.float32) / unit).to(self._device)[None, None]
            sr = sliding_window_inference(
                lr, (64, 64, 3), self._batch, self._predict, overlap=(0.25, 0.25, 1 / 3), mode="gaussian"
            )
            found: Any = sr
            return found[0, 0].float().cpu().numpy() * unit

    def _predict(self, windows: Any) -> Any:
        start = self._now()
        sr = self._network(windows[:, 0].permute(0, 3, 1, 2).contiguous())
        self.seconds += self._now() - start
        return sr.permute(0, 2, 3, 1)[:, None]

    def _now(self) -> float:
        if self._device != "cpu":
            self._torch.cuda.synchronize()
        return time.perf_counter()


def alternate(
    runs: dict[str, Callable[[], dict[str, float]]], times: int = 5
) -> dict[str, dict[str, list[float]]]:
    """Run each once to warm up, then all by turns; returns the figures of each, in order.

    By turns, so that a disturbance of the machine meets all alike.
    """
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in runs}
    for turn in range(times + 1):
        for name, run in runs.items():
            found = run()
            print(f"{turn or 'warm-up'} {name}: {found}", file=sys.stderr, flush=True)
            if turn:
                for key, value in found.items():
                    figures[name].setdefault(key, []).append(round(value, 4))
    return figures


def medians(figures: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {name: {k: statistics.median(v) for k, v in kinds.items()} for name, kinds in figures.items()}


def deviation(found: NDArray[Any], wanted: NDArray[Any]) -> dict[str, float]:
    """PSNR (dB) and largest error, both relative to the wanted volume's range."""
    error = found.astype(np.float64) - wanted
    span = float(wanted.max()) - float(wanted.min())
    mse = float(np.mean(error**2))
    psnr = 10 * np.log10(span**2 / mse) if mse else float("inf")
    return {"psnr": round(float(psnr), 2), "largest": float(np.abs(error).max() / span)}


def record(name: str, result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write a result with what it was measured on: machine, versions, command."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    circumstances = {
        "command": " ".join(["python", "-m", f"udean.benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "versions": versions,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", {**circumstances, **result})
    print(json.dumps(result, indent=2))


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def _processor() -> str:
    """The processor's name and what makes it fast here."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    flags = [flag for flag in wanted if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(flags)})"
