"""The GPU for which plans are built, and the least that runs one to measure it.

Only export's parity runs here, one batch at a time. What runs scans is the runtime's CUDA pipeline.
"""

from __future__ import annotations

import atexit
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.engines import require
from ..runtime.plan import PlanCard, deserialize
from .errors import ExportError


@dataclass(frozen=True)
class Gpu:
    """A CUDA device as plans name it. capability: compute capability, "9.0". cuda: the driver's version."""

    name: str
    capability: str
    cuda: str


@functools.cache
def gpu() -> Gpu:
    """The first CUDA device; its primary context is current in this thread for the rest of the process.

    It outlives every engine, whose destruction needs it. Raises RunError where PyCUDA is missing and
    ExportError where there is no device.
    """
    cuda: Any = require("pycuda.driver", "trt")
    try:
        cuda.init()
        device = cuda.Device(0)
    except cuda.Error as error:
        raise ExportError(
            f"A TensorRT plan is built on the GPU that will run it, and there is none here ({error}): "
            "take the .onnx there, pip install 'udean[trt,export]', udean-export --from MODEL.onnx"
        ) from None
    context = device.retain_primary_context()
    context.push()
    atexit.register(context.pop)
    version = cuda.get_driver_version()
    return Gpu(
        device.name(),
        ".".join(map(str, device.compute_capability())),
        f"{version // 1000}.{version % 1000 // 10}",
    )


class PlanNetwork:
    """A plan as a function of float32 windows, on the current CUDA context."""

    def __init__(
        self, trt: Any, log: Any, contents: bytes, card: PlanCard, path: Path, capability: str
    ) -> None:
        self._cuda: Any = require("pycuda.driver", "trt")
        self._card = card
        self._half = trt.DataType.HALF
        self.engine = deserialize(trt, log, contents, card, path, capability)
        self._context = self.engine.create_execution_context()
        if self._context is None:
            raise ExportError(f"{path} needs more GPU memory than is free: {log.reason()}")
        self._stream = self._cuda.Stream()

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """LR windows (N, slab, H, W) to HR windows, in batches that the profile takes."""
        profile = self._card.profiles[0]
        batches = [windows[i : i + profile.max[0]] for i in range(0, len(windows), profile.max[0])]
        return np.concatenate([self._run(batch, profile.min[0]) for batch in batches])

    def _run(self, windows: NDArray[np.float32], least: int) -> NDArray[np.float32]:
        short = max(0, least - len(windows))
        lr = np.pad(windows, [(0, short), (0, 0), (0, 0), (0, 0)]).astype(self._dtype("lr"), order="C")
        self._context.set_input_shape("lr", lr.shape)
        sr = np.empty(tuple(self._context.get_tensor_shape("sr")), self._dtype("sr"))
        source, target = self._cuda.mem_alloc(lr.nbytes), self._cuda.mem_alloc(sr.nbytes)
        self._cuda.memcpy_htod_async(source, lr, self._stream)
        self._context.set_tensor_address("lr", int(source))
        self._context.set_tensor_address("sr", int(target))
        if not self._context.execute_async_v3(self._stream.handle):
            raise ExportError(f"TensorRT cannot run {len(lr)} windows of {lr.shape[2]}×{lr.shape[3]} voxels.")
        self._cuda.memcpy_dtoh_async(sr, target, self._stream)
        self._stream.synchronize()
        return sr[: len(windows)].astype(np.float32)

    def _dtype(self, tensor: str) -> type[np.floating]:
        return np.float16 if self.engine.get_tensor_dtype(tensor) == self._half else np.float32
