"""The CUDA pipeline, written once for every CUDA engine: gather, network, blend and store on the device.

The volume is uploaded once. Batches of windows rotate through the slots, each a stream with an execution
context of its own; their outputs go to a shared ring of batches. Another stream blends slab after slab, in
one fixed order, as soon as a slab's windows are complete, and stores finished slices as voxels of the
output's type; a third copies these to the host while later ones are computed. Events synchronise the streams;
the host only waits for finished slabs. The number of slots therefore changes nothing in the result.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pipeline.host import Pass, twins
from ..pipeline.tiling import Tiling
from ..scan.intensity import LOST, IntensityError
from .device import GpuError, OutOfMemory
from .engine import CudaEngine, Slot
from .measured_band import Held
from .workspace import LANDING, Kept, Order, Workspace

__all__ = ["CudaEngine", "CudaPipeline", "Slot"]

BATCH_VOXELS = 16 * 64 * 64  # LR voxels of a batch's windows: enough work to fill a large GPU
# Sizes of volumes whose buffers stay allocated: as many as a volume has that is turned to each of its axes.
SIZES = 3
LAYERS = 65_535  # of a grid; a batch needs one per slice of its windows

log = logging.getLogger("udean")


class CudaPipeline:
    """Resolves volumes by a CUDA engine; buffers stay allocated for volumes of the last few sizes."""

    def __init__(self, engine: CudaEngine) -> None:
        self.engine = engine
        self._batch: int | None = None  # after memory ran out
        self._workspaces: dict[object, tuple[Workspace, weakref.finalize[..., Any]]] = {}  # the oldest first
        self._busy: object = None  # the key of the one in use

    def close(self) -> None:
        """Free the device buffers; the next volume allocates them again."""
        while self._workspaces:
            self._drop()

    def _drop(self) -> None:
        """Free the oldest buffers."""
        _, closes = self._workspaces.pop(next(iter(self._workspaces)))
        closes()

    def slabs(
        self, given: Pass, held: Held | None = None, kept: Kept | None = None, others: Sequence[Any] = ()
    ) -> Generator[tuple[int, NDArray[Any]]]:
        """Yield finished slabs: (first HR slice, voxels to store (rows, columns, slices)), valid until the
        next step.

        held: how to take the measured band from the volume before they are stored, None to leave it.
        kept: where on the device the slabs stay; what is yielded is then empty. others: see `Workspace.runs`.
        If memory runs out, the batch is halved and the volume restarted, so slabs may come twice.
        Raises GpuError if the device is lost, RunError for non-finite values.
        """
        # The network computes in float32 anyway, and its output is no more precise.
        volume, store, tiling = given.volume, given.store, given.tiling
        if _is_foreign(volume.voxels.dtype):
            volume = dataclasses.replace(volume, voxels=volume.voxels.astype(np.float32))
        if _is_foreign(store.dtype):
            store = dataclasses.replace(store, dtype=np.dtype(np.float32))
        given = dataclasses.replace(given, volume=volume, store=store)
        least, most = self.engine.batches((tiling.rows.window, tiling.columns.window))
        wanted = max(1, BATCH_VOXELS // (tiling.rows.window * tiling.columns.window))
        wanted = min(wanted, most, LAYERS // tiling.slices.window, self._batch or most)
        # Batches of equal size: the last is filled up.
        batch = max(least, math.ceil(len(tiling) / math.ceil(len(tiling) / wanted)))
        while True:
            try:
                yield from self._resolve(given, batch, held, kept, others)
                return
            except OutOfMemory as error:
                crowded = bool(self._workspaces.keys() - {self._busy})
                self.close()
                if crowded:
                    continue
                if batch <= max(least, 1):
                    raise GpuError(
                        f"{self.engine.gpu.name} does not have enough memory for one batch: free memory, use "
                        "smaller windows, or continue with --fallback cpu."
                    ) from error
                batch = self._batch = max(least, batch // 2)
                log.warning("The GPU's memory is full: continuing with batches of %d windows.", batch)

    def _resolve(
        self, given: Pass, batch: int, held: Held | None, kept: Kept | None, others: Sequence[Any]
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        volume, tiling, store, watch = given.volume, given.tiling, given.store, given.watch
        with self.engine.gpu.current():
            band = held and held.operators.key
            key = (_key(tiling), volume.voxels.dtype.newbyteorder("="), store.dtype, batch, band)
            self._busy = None
            if key not in self._workspaces:
                while len(self._workspaces) >= SIZES:  # before the next one is allocated
                    self._drop()
                made = Workspace(self.engine, tiling, volume, store.dtype, batch, held)
                self._workspaces[key] = made, self.engine.gpu.closes(self, made)
            self._busy, (work, _) = key, self._workspaces[key]
            with watch.time("gather"):
                work.upload(volume, watch)
                sources = twins(work.digests(), work.kept)
            order = Order(tiling, sources, batch, work.ring, work.stride)
            watch.windows += len(sources)
            watch.computed += len(order.computed)
            try:
                work.begin(order, tiling, volume, held)
                yield from self._run(work, order, given, kept, others)
            finally:
                work.finish()
            work.clock.tell()

    def _run(
        self, work: Workspace, order: Order, given: Pass, kept: Kept | None, others: Sequence[Any]
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        tiling = given.tiling
        landing: collections.deque[tuple[int, int, int, int]] = collections.deque()
        issued, stored, per_slab = 0, 0, len(tiling.rows.starts) * len(tiling.columns.starts)

        def land() -> tuple[int, NDArray[Any]]:
            number, start, count, done = landing.popleft()
            with given.watch.time("blend", "wait"):
                planes = work.landed(number, count)
            if given.progress:
                given.progress(done, len(tiling))
            return start, planes

        for k in range(len(tiling.slices.starts)):
            while issued < len(order.batches) and order.may_issue(issued, k):
                work.issue(issued, order, given.volume, self.engine)
                issued += 1
            work.blend(k, order, tiling)
            for first, count in work.runs(k, others):
                if len(landing) == LANDING:
                    yield land()
                work.store(stored, first, count, given.store, kept)
                landing.append((stored, first, 0 if kept else count, (k + 1) * per_slab))
                stored += 1
        while landing:
            yield land()
        given.watch.seconds["network"] += work.network_seconds(len(order.batches))
        if work.flawed():
            raise IntensityError(LOST)


def _is_foreign(dtype: np.dtype[Any]) -> bool:
    """Whether `kernels.cu` has no kernels for this type: float16, and floats of more than 8 bytes."""
    return dtype.kind == "f" and dtype.itemsize not in (4, 8)


def _key(tiling: Tiling) -> tuple[object, ...]:
    """A key that distinguishes tilings."""
    axes = (tiling.rows, tiling.columns, tiling.slices)
    return tuple((a.size, a.window, a.scale, a.starts, b"".join(s.tobytes() for s in a.shares)) for a in axes)
