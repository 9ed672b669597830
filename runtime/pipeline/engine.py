"""The engine interface: a trained network that turns LR windows into HR windows, in any library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..models.card import ModelCard

Windows: TypeAlias = NDArray[np.float32]  # (N, slices, rows, columns) in the network's range
Inference: TypeAlias = Callable[[Windows], Windows]  # LR to HR
Library = Literal["auto", "openvino", "onnxruntime"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class EngineInfo:
    """The engine that runs a network, for messages and sidecars.

    precision: of the arithmetic, such as "bf16". model: file name, or "embedded". sha256: of its file.
    """

    library: str
    version: str
    device: str
    precision: str
    model: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.library} {self.version} on {self.device}, {self.precision}"


@dataclass(frozen=True)
class EngineRequest:
    """What an engine is opened with.

    name: of the model for messages. precision: of the arithmetic; "auto": the library's choice. threads: of
    the processor; None: one for each core that this process may use.
    """

    file: Path
    name: str
    sha256: str
    precision: Precision
    threads: int | None = None

    def info(self, library: str, version: str, device: str, precision: str) -> EngineInfo:
        """Of the engine that was opened."""
        return EngineInfo(library, version, device, precision, self.name, self.sha256)


class Engine(Protocol):
    """A network on a device, ready to run."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def info(self) -> EngineInfo: ...

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Restore a batch of windows. Called from one thread at a time, from any thread.

        Parameters
        ----------
        windows
            LR windows (N, slab, H, W), float32, in the network's range (0 to about 1). They are not kept.

        Returns
        -------
        ndarray
            HR windows (N, slab·s, s·H, s·W), float32, in the same range; the array is not used again.
        """
        ...
