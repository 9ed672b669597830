"""PyTorch on a GPU: runs a checkpoint in half precision, channels last, on our streams and buffers.

Hundreds of operators run for a batch, and the host takes longer to launch them than a large GPU to compute
them. So what a slot does is captured as a CUDA graph, which is launched as a whole.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..cuda import Slot
from ..cuda.device import Gpu, GpuError, OutOfMemory, is_full
from ..cuda.pipeline import SIZES
from ..errors import RunError, first_line
from ..models.card import ModelCard
from ..pipeline.engine import EngineInfo, EngineRequest
from .checkpoint import load_network

log = logging.getLogger("udean")


@dataclass(frozen=True)
class Memory:
    """Device memory in a form that other libraries accept: numba's CUDA array interface, version 3."""

    __cuda_array_interface__: dict[str, Any]


@dataclass(frozen=True)
class Captured:
    """The network's work from a slot's input to an output of its own, as a CUDA graph."""

    graph: Any
    output: Any


class TorchCudaEngine:
    """The LR encoder and SR decoder of a checkpoint, in float16 (auto) or float32 without TF32.

    graphs: whether they are captured; False once that has failed.
    """

    card: ModelCard
    info: EngineInfo
    slots = 2
    graphs = True

    def __init__(self, request: EngineRequest, gpu: Gpu) -> None:
        file, precision = request.file, request.precision
        self._torch, network, self.card = load_network(file)
        if not self._torch.cuda.is_available():
            raise GpuError(
                f"This PyTorch ({self._torch.__version__}) cannot use a GPU: install one built for CUDA."
            )
        if precision == "bf16":
            raise RunError("PyTorch computes in fp16 or fp32 on a GPU: use --precision fp16, fp32 or auto.")
        self.gpu, self.half = gpu, precision != "fp32"
        self._device = self._torch.device("cuda", gpu.index)
        dtype = self._torch.float16 if self.half else self._torch.float32
        layout = self._torch.channels_last
        # By slot, input and size; None after the first run.
        self._captured: dict[tuple[object, ...], Captured | None] = {}
        with self._failing():
            self._network = network.eval().to(self._device, dtype, memory_format=layout)
        self._streams: dict[int, Any] = {}
        version = self._torch.__version__
        self.info = request.info("torch", version, gpu.name, "fp16" if self.half else "fp32")

    def batches(self, window: tuple[int, int]) -> tuple[int, int]:
        return 1, 1 << 20

    def enqueue(self, slot: Slot) -> None:
        torch = self._torch
        if slot.stream not in self._streams:
            self._streams[slot.stream] = torch.cuda.ExternalStream(slot.stream, self._device)
        stream = self._streams[slot.stream]
        with self._failing(), torch.inference_mode(), torch.cuda.stream(stream):
            self._tensor(slot.sr, slot.fine).copy_(self._output(slot, stream))

    def _output(self, slot: Slot, stream: Any) -> Any:
        """The network's output: by its operators for a size that is new, then by a graph."""
        key = slot.index, slot.stream, slot.lr, slot.shape
        if captured := self._captured.get(key):
            captured.graph.replay()
            return captured.output
        lr = self._tensor(slot.lr, slot.shape)
        if not self.graphs:
            return self._run(lr)
        if key not in self._captured:
            while len(self._captured) >= SIZES * self.slots:
                del self._captured[next(iter(self._captured))]
            self._captured[key] = None
            return self._run(lr)
        try:
            captured = self._captured[key] = self._capture(lr, stream)
        except RuntimeError as error:  # full memory too: the graph's own comes on top
            self.graphs = False
            self._captured.clear()
            log.warning(
                "PyTorch cannot capture the network as a CUDA graph (%s): its operators are launched one "
                "by one, which takes longer.",
                first_line(error),
            )
            return self._run(lr)
        captured.graph.replay()
        return captured.output

    def _capture(self, lr: Any, stream: Any) -> Captured:
        self._run(lr)  # loads, in this thread, what a capture must not
        graph = self._torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile, for another volume.
        with self._torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = self._run(lr)
        return Captured(graph, output)

    def _run(self, lr: Any) -> Any:
        torch = self._torch
        # No TF32 (10-bit mantissas). What is measured anew in each process may choose another algorithm, and
        # results would not be the same from run to run.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            return self._network(lr.contiguous(memory_format=torch.channels_last))

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn PyTorch's exceptions into OutOfMemory or GpuError."""
        try:
            yield
        except RuntimeError as error:
            # cuDNN, cuBLAS and the runtime have no exceptions of their own.
            if isinstance(error, self._torch.OutOfMemoryError) or is_full(str(error)):
                self._let_go()
                raise OutOfMemory(first_line(error)) from error
            raise GpuError(f"PyTorch failed on the GPU: {first_line(error)}") from error

    def _let_go(self) -> None:
        """Give back the memory of graphs, and what PyTorch keeps for later."""
        with contextlib.suppress(RuntimeError):
            self._torch.cuda.synchronize(self._device)
            self._captured.clear()
            self._torch.cuda.empty_cache()

    def _tensor(self, address: int, shape: tuple[int, ...]) -> Any:
        typestr = "<f2" if self.half else "<f4"
        interface = {"shape": shape, "typestr": typestr, "data": (address, False), "version": 3}
        return self._torch.as_tensor(Memory(interface), device=self._device)
