"""The cost of a scan, before it is resolved: windows, arithmetic, memory, time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..engines.checkpoint import flop_per_voxel
from ..models.kind import model_kind
from ..pipeline.host import buffer_nbytes
from ..pipeline.tiling import Tiling
from ..resolver import SuperResolver


@dataclass(frozen=True)
class Cost:
    """An upper bound: background and byte-identical windows are not computed.

    flop: multiplications and additions of the network; None if the model's card does not say. nbytes: of
    voxels and buffers, without the interpreter and the network's library.
    """

    windows: int
    flop: int | None
    nbytes: int
    seconds: float

    def __str__(self) -> str:
        flop = "unknown GFLOP" if self.flop is None else f"{self.flop / 1e9:.0f} GFLOP"
        return f"at most {self.windows} windows, {flop}, {self.nbytes / 1e6:.0f} MB and {self.seconds:.1f} s"


class Estimator:
    """Knows what a window costs; measures the engine's speed once for each size."""

    def __init__(self, resolve: SuperResolver, model: Path | None) -> None:
        self._resolve, self._flop = resolve, resolve.card.flop
        if model and model_kind(model) == "checkpoint":
            self._flop = flop_per_voxel(model)
        self._seconds: dict[tuple[int, int], float] = {}

    def __call__(self, plans: Sequence[Tiling], volumes: int, coarse: int, fine: int) -> Cost:
        """plans: windows that a volume goes through, for each slab axis. volumes: of a series. coarse, fine:
        bytes of all LR and SR voxels."""
        voxels, seconds = 0, 0.0
        for plan in plans:
            size = plan.rows.window, plan.columns.window
            if size not in self._seconds:
                self._seconds[size] = self._resolve.stages.seconds_per_window(plan)
            voxels += math.prod(size) * len(plan) * volumes
            seconds += self._seconds[size] * len(plan) * volumes
        held = 4 * math.prod(plans[0].fine_shape) * (len(plans) - 1)  # float32 along the other axes
        nbytes = coarse + fine + held + max(map(buffer_nbytes, plans))
        flop = self._flop * voxels or None
        return Cost(sum(map(len, plans)) * volumes, flop, nbytes, seconds)
