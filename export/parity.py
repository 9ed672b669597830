"""Parity: how far an exported model deviates from the float32 network, on noise and on a real brain.

Errors are measured on windows of random intensities (every frequency, two window sizes) and on windows of
the ICBM152 T1, truncated in k-space to the model's LR grid. A model beyond the limits is not written.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.cuda.device import is_reachable
from ..runtime.engines.choose import open_engine
from ..runtime.models.card import ModelCard, ModelPrecision
from ..runtime.models.kind import model_kind
from ..runtime.pipeline.engine import Inference, Windows
from ..runtime.scan import intensity
from .errors import ExportError

Probes = dict[str, list[Windows]]  # batches by the name of their set
Size = tuple[int, int, int]  # windows, rows, columns

SEED = 0


@dataclass(frozen=True)
class Deviation:
    """Deviation of an output from the reference.

    max_error: largest absolute difference, in the network's intensities.
    relative: max_error over the largest absolute value of the reference.
    psnr: dB over the range of the reference; at most 200.
    """

    max_error: float
    relative: float
    psnr: float

    def rounded(self) -> dict[str, float]:
        """Safe bounds for the card: errors rounded up to one digit, PSNR down to whole dB.

        The last digits depend on the processor; a card, and therefore the model's bytes, should not.
        """
        return {
            "max_error": _round_up(self.max_error),
            "relative": _round_up(self.relative),
            "psnr": float(math.floor(self.psnr)),
        }


@dataclass(frozen=True)
class Limit:
    """Limits of a precision on every set of windows: largest relative error, least PSNR (dB)."""

    relative: float
    psnr: float


LIMITS: dict[ModelPrecision, Limit] = {
    "fp32": Limit(relative=1e-5, psnr=100.0),
    "fp16": Limit(relative=1e-2, psnr=60.0),
    # Eight bits: single voxels may be off, the image may not.
    "int8": Limit(relative=math.inf, psnr=45.0),
}


def output_deviation(output: Windows, reference: Windows) -> Deviation:
    """Compare an output with the reference, both float32 of one shape; NaN counts as infinite."""
    if output.shape != reference.shape:
        raise ExportError(f"The model yields shape {output.shape}, but {reference.shape} is expected.")
    error = np.abs(output.astype(np.float64) - reference)
    if not np.isfinite(error).all():
        return Deviation(math.inf, math.inf, 0.0)
    largest = float(error.max())
    span = float(np.ptp(reference)) or 1.0
    rmse = float(np.sqrt(np.mean(error**2)))
    psnr = 200.0 if rmse == 0 else min(200.0, 20 * math.log10(span / rmse))
    return Deviation(largest, largest / (float(np.abs(reference).max()) or 1.0), psnr)


def probe_windows(card: ModelCard, sizes: Sequence[Size] = ()) -> Probes:
    """Batches (N, slab, H, W) by name: "random" and "brain". sizes: use only these (N, H, W).

    Without sizes the random windows have the training size and an odd one.
    """
    rng = np.random.default_rng(SEED)
    random = [
        rng.random((n, card.slab[0], h, w), dtype=np.float32)
        for n, h, w in sizes or [(1, *card.window), (2, 37, 29)]
    ]
    return {"random": random, "brain": [brain_windows(card, *(sizes or [(4, *card.window)])[0])]}


def brain_windows(card: ModelCard, count: int, rows: int, columns: int) -> Windows:
    """Windows (count, slab, rows, columns) of the ICBM152 T1 on the card's LR grid, in the network's range.

    They lie along the middle of the head from bottom to top. Smaller volumes are padded by reflection.
    """
    lr = _brain(card.scale, card.intensity)
    short = [max(0, want - n) for want, n in zip((rows, columns, 0), lr.shape, strict=True)]
    lr = np.pad(lr, [(s // 2, s - s // 2) for s in short], mode="symmetric")
    top, left = (lr.shape[0] - rows) // 2, (lr.shape[1] - columns) // 2
    starts = np.linspace(lr.shape[2] * 0.2, lr.shape[2] * 0.8 - card.slab[0], count).astype(int)
    slabs = [lr[top : top + rows, left : left + columns, k : k + card.slab[0]] for k in starts]
    return np.ascontiguousarray(np.moveaxis(np.stack(slabs), 3, 1), np.float32)


@functools.cache
def _brain(scale: tuple[int, int, int], rule: str) -> Windows:
    """The ICBM152 T1 (rows, columns, slices), truncated by the scale, its intensities by the rule."""
    from ..trainer.simulation import icbm152, kspace

    brain: Windows
    brain, _ = icbm152.load_t1()
    if max(scale) > 1:
        even = np.asarray(kspace.crop(brain, scale), np.float32)
        brain = kspace.acquire(even, kspace.Acquisition(scale))
    return brain / np.float32(intensity.unit(brain, rule))


def run(network: Inference, windows: Probes) -> Probes:
    """The network's outputs for the windows."""
    return {name: [network(batch) for batch in batches] for name, batches in windows.items()}


def deviations(network: Inference, windows: Probes, expected: Probes) -> dict[str, Deviation]:
    """The worst deviation from the expected output on each set of windows."""
    found: dict[str, Deviation] = {}
    for name, outputs in run(network, windows).items():
        each = [
            output_deviation(output, wanted) for output, wanted in zip(outputs, expected[name], strict=True)
        ]
        found[name] = Deviation(
            max(d.max_error for d in each), max(d.relative for d in each), min(d.psnr for d in each)
        )
    return found


def enforce(found: dict[str, Deviation], precision: ModelPrecision, engine: str) -> None:
    """Raise ExportError if a deviation is beyond the limit of the precision.

    An int8 model is calibrated on scans, and noise is not a scan: only the brain counts.
    """
    limit = LIMITS[precision]
    for name, d in found.items():
        if precision == "int8" and name == "random":
            continue
        if d.relative > limit.relative or d.psnr < limit.psnr:
            raise ExportError(
                f"in {engine} it is off by {d.relative:.1e} relative and {d.psnr:.1f} dB on {name} windows; "
                f"{precision} has to reach {limit.relative:.0e} and {limit.psnr:.0f} dB."
            )


def engines(path: Path) -> Iterator[tuple[str, Inference]]:
    """Every engine of this machine that runs an artefact, by name, opened one after another by the runtime.

    OpenVINO is made to compute in float32: using bfloat16 is the runtime's choice, not the model's.
    """
    if model_kind(path) == "plan":
        yield "tensorrt", _cuda_network(path)
        return
    yield "onnxruntime-cpu", open_engine(path, library="onnxruntime")
    if importlib.util.find_spec("openvino"):
        yield "openvino-cpu", open_engine(path, precision="fp32", library="openvino")
    import onnxruntime as ort

    if "CUDAExecutionProvider" in ort.get_available_providers() and is_reachable():
        yield "onnxruntime-cuda", _cuda_network(path)


def _cuda_network(path: Path) -> Inference:
    from .gpu import CudaNetwork, cuda_engine

    return CudaNetwork(cuda_engine(path))


def card_entries(found: dict[str, dict[str, Deviation]]) -> dict[str, dict[str, float]]:
    """Deviations by engine and windows as the card holds them, with keys such as "onnxruntime-cpu/brain"."""
    return {f"{engine}/{name}": d.rounded() for engine, sets in found.items() for name, d in sets.items()}


def _round_up(value: float) -> float:
    if not 0 < value < math.inf:
        return value
    step = 10.0 ** math.floor(math.log10(value))
    return float(f"{math.ceil(value / step) * step:.0e}")
