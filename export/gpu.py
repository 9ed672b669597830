"""The runtime's CUDA engines as plain functions of windows, measured in the way they will run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.cuda import CudaEngine, Slot
from ..runtime.cuda.device import Gpu, GpuError, OutOfMemory
from ..runtime.engines.choose import choose_engine
from ..runtime.pipeline.engine import Windows
from .errors import ExportError


def builder_gpu() -> Gpu:
    """The GPU that builds plans. Raises RunError without PyCUDA, ExportError without a GPU."""
    try:
        return Gpu()
    except GpuError as error:
        reason = str(error.__cause__ or error).rstrip(".")
        raise ExportError(
            f"A TensorRT plan is built on the GPU that will run it, and no GPU is available here ({reason}): "
            "take the .onnx there, pip install 'udean[trt,export]', udean-export --from MODEL.onnx"
        ) from None


def cuda_version(gpu: Gpu) -> str:
    """The newest CUDA version that the driver knows, such as "13.1"."""
    version = gpu.cuda.get_driver_version()
    return f"{version // 1000}.{version % 1000 // 10}"


def cuda_engine(path: Path) -> CudaEngine:
    """The runtime's engine for a .plan or an .onnx on the first GPU."""
    engine: Any = choose_engine(path, "cuda", "auto", None, "auto")
    return engine


class CudaNetwork:
    """An engine as a function of LR windows (N, slab, H, W); uses its slots, and so profiles, in turn."""

    def __init__(self, engine: CudaEngine) -> None:
        self._engine = engine
        with engine.gpu.current():
            self._streams = engine.gpu.streams(engine.slots)
        self._turn = itertools.cycle(range(engine.slots))

    def __call__(self, windows: Windows) -> Windows:
        gpu = self._engine.gpu
        least, most = self._engine.batches((windows.shape[2], windows.shape[3]))
        try:
            with gpu.current():
                batches = (windows[start : start + most] for start in range(0, len(windows), most))
                return np.concatenate([self._run(batch, least) for batch in batches])
        except OutOfMemory:
            raise ExportError(
                f"{gpu.name} does not have enough memory for {most} windows: use smaller sizes."
            ) from None

    def _run(self, windows: Windows, least: int) -> Windows:
        engine, cuda, card = self._engine, self._engine.gpu.cuda, self._engine.card
        dtype = np.float16 if engine.half else np.float32
        short = max(0, least - len(windows))
        lr = np.pad(windows, [(0, short), (0, 0), (0, 0), (0, 0)]).astype(dtype, order="C")
        n, slab, h, w = lr.shape
        sr = np.empty((n, card.slab[1], h * card.scale[0], w * card.scale[1]), dtype)
        index = next(self._turn)
        stream = self._streams[index]
        source, target = cuda.mem_alloc(lr.nbytes), cuda.mem_alloc(sr.nbytes)
        cuda.memcpy_htod_async(source, lr, stream)
        engine.enqueue(Slot(index, stream.handle, int(source), int(target), (n, slab, h, w), sr.shape))
        cuda.memcpy_dtoh_async(sr, target, stream)
        stream.synchronize()
        source.free()
        target.free()
        return sr[: len(windows)].astype(np.float32)
