"""PyTorch on a GPU: runs a checkpoint in half precision, channels last, on our streams and buffers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cuda import Slot
from ..cuda.device import Gpu, GpuError, OutOfMemory, is_full
from ..errors import RunError, first_line
from ..models.card import ModelCard
from ..pipeline.engine import EngineInfo, Precision
from .checkpoint import load_network


@dataclass(frozen=True)
class Memory:
    """Device memory in a form that other libraries accept: numba's CUDA array interface, version 3."""

    __cuda_array_interface__: dict[str, Any]


class TorchCudaEngine:
    """The LR encoder and SR decoder of a checkpoint, in float16 (auto) or float32 without TF32."""

    card: ModelCard
    info: EngineInfo
    slots = 2

    def __init__(self, file: Path, name: str, sha256: str, precision: Precision, gpu: Gpu) -> None:
        self._torch, network, self.card = load_network(file)
        if not self._torch.cuda.is_available():
            raise GpuError(
                f"This PyTorch ({self._torch.__version__}) cannot use a GPU: install one built for CUDA."
            )
        if precision == "bf16":
            raise RunError("PyTorch computes in fp16 or fp32 on a GPU: use --precision fp16, fp32 or auto.")
        self.gpu, self.half = gpu, precision != "fp32"
        self._device = self._torch.device("cuda", gpu.index)
        self._torch.backends.cuda.matmul.allow_tf32 = self._torch.backends.cudnn.allow_tf32 = False
        self._torch.backends.cudnn.benchmark = True
        dtype = self._torch.float16 if self.half else self._torch.float32
        layout = self._torch.channels_last
        with self._failing():
            self._network = network.eval().to(self._device, dtype, memory_format=layout)
        self._streams: dict[int, Any] = {}
        version = self._torch.__version__
        self.info = EngineInfo("torch", version, gpu.name, "fp16" if self.half else "fp32", name, sha256)

    def batches(self, window: tuple[int, int]) -> tuple[int, int]:
        return 1, 1 << 20

    def enqueue(self, slot: Slot) -> None:
        torch = self._torch
        if slot.stream not in self._streams:
            self._streams[slot.stream] = torch.cuda.ExternalStream(slot.stream, self._device)
        with self._failing(), torch.inference_mode(), torch.cuda.stream(self._streams[slot.stream]):
            lr = self._tensor(slot.lr, slot.shape).contiguous(memory_format=torch.channels_last)
            self._tensor(slot.sr, slot.fine).copy_(self._network(lr))

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn PyTorch's exceptions into OutOfMemory or GpuError."""
        try:
            yield
        except self._torch.OutOfMemoryError as error:
            self._torch.cuda.empty_cache()
            raise OutOfMemory(first_line(error)) from error
        except RuntimeError as error:
            if is_full(str(error)):  # cuDNN, cuBLAS and the runtime have no exceptions of their own
                self._torch.cuda.empty_cache()
                raise OutOfMemory(first_line(error)) from error
            raise GpuError(f"PyTorch failed on the GPU: {first_line(error)}") from error

    def _tensor(self, address: int, shape: tuple[int, ...]) -> Any:
        typestr = "<f2" if self.half else "<f4"
        interface = {"shape": shape, "typestr": typestr, "data": (address, False), "version": 3}
        return self._torch.as_tensor(Memory(interface), device=self._device)
