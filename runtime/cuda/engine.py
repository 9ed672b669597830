"""The CUDA engine interface: a network that puts its work on a stream, between two device buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..models.card import ModelCard
from ..pipeline.engine import EngineInfo
from .device import Gpu


@dataclass(frozen=True)
class Slot:
    """One batch in flight: a stream, and the device addresses of its input and output.

    index: of the slot, and therefore of the execution context. stream: the CUDA stream's handle. lr: address
    of (N, slab, H, W); sr: address for (N, slab·s, s·H, s·W); both in the engine's type.
    """

    index: int
    stream: int
    lr: int
    sr: int
    shape: tuple[int, int, int, int]
    fine: tuple[int, int, int, int]


class CudaEngine(Protocol):
    """A network on a CUDA device. half: whether it takes and yields float16, else float32."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def info(self) -> EngineInfo: ...

    @property
    def gpu(self) -> Gpu: ...

    @property
    def half(self) -> bool: ...

    @property
    def slots(self) -> int:
        """Number of batches that may be in flight."""
        ...

    def batches(self, window: tuple[int, int]) -> tuple[int, int]:
        """The least and most windows of this size in one call; RunError for a size it does not accept."""
        ...

    def enqueue(self, slot: Slot) -> None:
        """Put the network's work on the slot's stream and return. Raises OutOfMemory, GpuError."""
        ...
