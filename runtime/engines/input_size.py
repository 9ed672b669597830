"""Models exported for one input size: their windows are of that size, and so are batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import RunError
from ..pipeline.engine import Inference, Windows


@dataclass(frozen=True)
class InputSize:
    """The input size that a graph requires; None in a dimension that accepts any."""

    batch: int | None
    rows: int | None
    columns: int | None

    @classmethod
    def of(cls, shape: Sequence[object]) -> InputSize:
        """Of an input (N, slab, H, W), in which whatever is not a number stands for any size."""
        n, _, h, w = (size if isinstance(size, int) else None for size in shape)
        return cls(n, h, w)

    @property
    def window(self) -> tuple[int, int] | None:
        """The only window (rows, columns) that the graph takes; None if it takes others."""
        return (self.rows, self.columns) if self.rows and self.columns else None

    def check(self, rows: int, columns: int) -> None:
        """Raise RunError if the graph takes no such window."""
        if self.rows in (None, rows) and self.columns in (None, columns):
            return
        wanted = "x".join(str(size or "any") for size in (self.rows, self.columns))
        raise RunError(
            f"The model takes windows of {wanted} only, not {rows}x{columns}: give --window {wanted}, or "
            "export it again."
        )

    def run(self, network: Inference, windows: Windows) -> Windows:
        """The network's output for windows (N, slab, H, W); the last batch is filled up with zeros.

        Raises RunError if H or W differs from the graph's.
        """
        self.check(*windows.shape[2:])
        if self.batch is None or len(windows) == self.batch:
            return network(windows)
        missing = -len(windows) % self.batch
        filled = np.concatenate([windows, np.zeros((missing, *windows.shape[1:]), windows.dtype)])
        outputs = [network(part).copy() for part in np.split(filled, len(filled) // self.batch)]
        return np.concatenate(outputs)[: len(windows)]
