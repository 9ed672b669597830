"""Models exported for one input size: any number of windows is run in batches of that size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError

Windows = NDArray[np.float32]


@dataclass(frozen=True)
class InputSize:
    """The input size that a graph requires; None in a dimension that accepts any."""

    batch: int | None
    rows: int | None
    columns: int | None

    def run(self, network: Callable[[Windows], Windows], windows: Windows) -> Windows:
        """The network's output for windows (N, slab, H, W); the last batch is filled up with zeros.

        Raises RunError if H or W differs from the graph's.
        """
        size = windows.shape[2:]
        if any(want not in (None, have) for want, have in zip((self.rows, self.columns), size, strict=True)):
            raise RunError(
                f"The model takes windows of {self.rows}x{self.columns} only, not {size[0]}x{size[1]}: "
                "leave out --window, or export it again."
            )
        if self.batch is None or len(windows) == self.batch:
            return network(windows)
        missing = -len(windows) % self.batch
        filled = np.concatenate([windows, np.zeros((missing, *windows.shape[1:]), windows.dtype)])
        outputs = [network(part).copy() for part in np.split(filled, len(filled) // self.batch)]
        return np.concatenate(outputs)[: len(windows)]
