"""ONNX Runtime on a GPU: its CUDA provider on our streams, reading and writing our device buffers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cuda import Slot
from ..cuda.device import Gpu, GpuError, OutOfMemory, is_full
from ..errors import RunError, first_line
from ..models.card import ModelCard
from ..pipeline.engine import EngineInfo, EngineRequest
from ..system.extras import require
from .input_size import InputSize
from .onnxruntime import card_of

PROVIDER = "CUDAExecutionProvider"


class OnnxRuntimeCudaEngine:
    """An ONNX model, with a session for each slot, since a session belongs to one stream."""

    card: ModelCard
    info: EngineInfo
    slots = 2

    def __init__(self, request: EngineRequest, gpu: Gpu) -> None:
        self._ort: Any = require("onnxruntime", "gpu")
        if PROVIDER not in self._ort.get_available_providers():
            raise RunError(
                "This ONNX Runtime cannot use a GPU: pip install 'udean[gpu]' in place of 'udean[cpu]'"
            )
        if hasattr(self._ort, "preload_dlls"):  # CUDA and cuDNN from their wheels, if installed
            self._ort.preload_dlls()
        self.gpu = gpu
        # Other slots' sessions open later, and the file may be gone by then.
        self._model = request.file.read_bytes()
        probe = self._probe()
        self.card = card_of(probe, request)
        self.half = probe.get_inputs()[0].type == "tensor(float16)"
        self._size = InputSize.of(probe.get_inputs()[0].shape)
        self.window = self._size.window
        first = gpu.streams(1)[0].handle
        self._sessions = {(0, first): self._session(first)}
        self._options = self._ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        version = self._ort.__version__
        self.info = request.info("onnxruntime", version, gpu.name, self.card.precision)

    def batches(self, window: tuple[int, int]) -> tuple[int, int]:
        self._size.check(*window)
        return (self._size.batch or 1), (self._size.batch or 1 << 20)

    def enqueue(self, slot: Slot) -> None:
        key = slot.index, slot.stream
        if key not in self._sessions:
            self._sessions = {k: s for k, s in self._sessions.items() if k[0] != slot.index}
            self._sessions[key] = self._session(slot.stream)
        session = self._sessions[key]
        binding, dtype = session.io_binding(), np.float16 if self.half else np.float32
        names = session.get_inputs()[0].name, session.get_outputs()[0].name
        binding.bind_input(names[0], "cuda", self.gpu.index, dtype, slot.shape, slot.lr)
        binding.bind_output(names[1], "cuda", self.gpu.index, dtype, slot.fine, slot.sr)
        try:
            session.run_with_iobinding(binding, self._options)
        except Exception as error:  # the library's own exceptions share no base class
            raise _ours(error) from error

    def _probe(self) -> Any:
        """The model's metadata, read without a GPU: a session's settings depend on it."""
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return self._ort.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise _ours(error) from error

    def _session(self, stream: int) -> Any:
        settings = {
            "device_id": str(self.gpu.index),
            "cudnn_conv_algo_search": "HEURISTIC",  # no search at each new size
            "prefer_nhwc": "1",  # the layout of tensor cores
            # No TF32 (10-bit mantissas) in float32. In float16 this switch would disable the tensor cores.
            "use_tf32": "1" if self.half else "0",
            "user_compute_stream": str(stream),
        }
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        try:
            session = self._ort.InferenceSession(self._model, options, providers=[(PROVIDER, settings)])
        except Exception as error:
            raise _ours(error) from error
        if PROVIDER not in session.get_providers():
            raise GpuError(
                "ONNX Runtime cannot start its CUDA provider: its CUDA or cuDNN libraries are missing."
            )
        return session


def _ours(error: Exception) -> Exception:
    text = first_line(error)
    if is_full(text):
        return OutOfMemory(text)
    return GpuError(f"ONNX Runtime failed on the GPU: {text}")
