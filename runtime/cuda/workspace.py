"""The CUDA pipeline's device state: streams, events and buffers, and the kernels that fill them."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pipeline.host import KEPT_OUTPUTS, LrVolume
from ..pipeline.tiling import Axis, Tiling
from ..scan.intensity import Storage
from ..system.trace import Stopwatch
from .clock import StreamClock
from .device import BLOCK, blocks
from .engine import CudaEngine, Slot
from .measured_band import Held, MeasuredBand, SlabWork

KEPT_BYTES = 1 << 26  # of outputs held for later byte-identical windows: many small ones, few planes
LANDING = 3  # finished slabs between device and host: one written, one copied, one read
ALIGNED = 256  # bytes; TensorRT refuses other addresses, and `mem_alloc` gives no others
# As in kernels.cu; PyCUDA passes a structure as it lies in memory.
VOLUME = np.dtype([("sizes", np.int32, 3), ("steps", np.int64, 3)], align=True)
SPAN = np.dtype([(name, np.int32) for name in ("low", "seen", "high", "skip", "offset")])


@dataclass(frozen=True)
class Kept:
    """An HR volume on the device, float32, for slices that the host need not have.

    address: of its first voxel. steps: voxels from one to the next row, column and slice.
    """

    address: int
    steps: tuple[int, int, int]


class Order:
    """When each window is computed, and where its output lies.

    Computed windows are numbered in tiling order and cut into batches; batch b uses place b modulo `ring` of
    the pool, in which places lie `stride` windows apart. An output that a later identical window reuses is
    kept behind the ring.
    """

    def __init__(self, tiling: Tiling, sources: list[int], batch: int, ring: int, stride: int) -> None:
        self.computed = [n for n, source in enumerate(sources) if n == source]
        self.batches = [self.computed[n : n + batch] for n in range(0, len(self.computed), batch)]
        number = {n: c for c, n in enumerate(self.computed)}
        reused = sorted({source for n, source in enumerate(sources) if n != source})
        self.kept = {n: ring * stride + q for q, n in enumerate(reused)}
        self.place = {n: c // batch % ring * stride + c % batch for n, c in number.items()}
        self.at = np.array([self.kept.get(source, self.place[source]) for source in sources], np.int32)
        per_slab = len(sources) // len(tiling.slices.starts)
        ends = (max(number[s] for s in sources[k : k + per_slab]) for k in range(0, len(sources), per_slab))
        self.needs = [
            end // batch for end in itertools.accumulate(ends, max)
        ]  # the last batch that slab k needs
        slabs = np.arange(len(sources)) // per_slab
        self.last_slab = [int(slabs[windows[-1]]) for windows in self.batches]
        self.ring = ring

    def may_issue(self, batch: int, slab: int) -> bool:
        """Whether the slabs that read this batch's place in the ring have all been blended before `slab`."""
        return batch < self.ring or self.last_slab[batch - self.ring] < slab


class Workspace:
    """Events and buffers for volumes of one size; must be closed inside the context."""

    def __init__(
        self,
        engine: CudaEngine,
        tiling: Tiling,
        volume: LrVolume,
        stored: np.dtype[Any],
        batch: int,
        held: Held | None,
    ) -> None:
        gpu = engine.gpu
        cuda = self._cuda = gpu.cuda
        self.batch, self.tiling = batch, tiling
        axes = (tiling.slices, tiling.rows, tiling.columns)
        self.window = tuple(a.window for a in axes)
        self.fine = tuple(a.window * a.scale for a in axes)
        per_slab = len(tiling.rows.starts) * len(tiling.columns.starts)
        # A slab's windows may begin and end inside a batch; every slot can be one batch ahead.
        self.ring = math.ceil(per_slab / batch) + 1 + engine.slots
        size = np.dtype(np.float16 if engine.half else np.float32).itemsize
        self._window_bytes = math.prod(self.fine) * size
        whole = ALIGNED // math.gcd(ALIGNED, self._window_bytes)
        self.stride = -(-batch // whole) * whole  # windows between batch starts, which are aligned
        self.kept = min(KEPT_OUTPUTS, max(1, KEPT_BYTES // self._window_bytes))
        slices = tiling.slices
        stops = [slices.span(k)[0] for k in range(1, len(slices.starts))] + [tiling.fine_shape[2]]
        # The HR slices, as (first, past the end), that are blended once and for all after each slab.
        self._finished = list(itertools.pairwise([0, *stops]))
        self._allocated: list[Any] = []
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._allocate(engine, tiling, volume, stored, size)
            source = volume.voxels.dtype.newbyteorder("=").name
            self._band = None if held is None else self._measured_band(gpu.kernel, held, source)
            undo.pop_all()

        self._slots = gpu.streams(engine.slots + 2)
        self._blending, self._copying = self._slots.pop(), self._slots.pop()
        self._done = [cuda.Event() for _ in range(self.ring)]
        self._blended: dict[int, Any] = {}
        self._stored = [cuda.Event() for _ in range(LANDING)]
        self._landed = [cuda.Event() for _ in range(LANDING)]
        self._first, self._last = cuda.Event(), cuda.Event()

        self._network = "half" if engine.half else "float"
        self._kernels = {
            "digest": gpu.kernel(f"digest_{source}"),
            "gather": gpu.kernel(f"gather_{source}_{self._network}"),
            "blend": gpu.kernel(f"blend_{self._network}"),
            "store": gpu.kernel(f"store_{stored.name}"),
            "mean_of_three": gpu.kernel("mean_of_three"),
        }

    def _allocate(
        self, engine: CudaEngine, tiling: Tiling, volume: LrVolume, stored: np.dtype[Any], size: int
    ) -> None:
        cuda, empty = self._cuda, self._empty
        self._stage = cuda.pagelocked_empty(volume.voxels.size, volume.voxels.dtype.newbyteorder("="))
        self._volume = empty(self._stage.nbytes)
        self._starts = self._put(np.array(list(_starts(tiling)), np.int32))
        self._order = empty(12 * len(tiling))
        self._at = empty(4 * len(tiling))
        self._digests = empty(16 * len(tiling))
        self._flaw = empty(4)
        self._lr = [empty(self.batch * math.prod(self.window) * size) for _ in range(engine.slots)]
        self._pool = empty((self.ring * self.stride + self.kept) * self._window_bytes)
        depth, (height, width, _) = self.fine[0], tiling.fine_shape
        self._mean = empty(4 * depth * height * width)
        self._out = [empty(depth * height * width * stored.itemsize) for _ in range(LANDING)]
        self._landing = [cuda.pagelocked_empty(depth * height * width, stored) for _ in range(LANDING)]
        self._spans = [self._put(_spans(axis)) for axis in (tiling.rows, tiling.columns)]
        self._shares = [self._put(_shares(axis)) for axis in (tiling.rows, tiling.columns, tiling.slices)]
        self._slabs = _spans(tiling.slices)

    def _measured_band(self, kernel: Any, held: Held, source: str) -> MeasuredBand:
        arrivals = [stop for _, stop in self._finished]
        return MeasuredBand(kernel, self._empty, self._put, held.operators, source, arrivals, self.fine[0])

    def close(self) -> None:
        """Free the buffers. The context must be current in this thread, see `Gpu.current`."""
        allocated = self._allocated
        self.__dict__.clear()  # pinned memory and events are freed with their last reference
        self.__dict__["_allocated"] = allocated
        while allocated:
            allocated.pop().free()

    def upload(self, volume: LrVolume, watch: Stopwatch) -> None:
        """Copy the volume to the device, in its memory order."""
        order = np.argsort(-np.abs(volume.voxels.strides), kind="stable")
        laid = volume.voxels.transpose(order)
        staged = self._stage.reshape(laid.shape)
        np.copyto(staged, laid)
        steps = np.empty(3, np.int64)
        steps[order] = np.array(staged.strides) // staged.itemsize
        shape = np.zeros((), VOLUME)
        shape["sizes"], shape["steps"] = volume.voxels.shape, steps
        self._shape = shape[()]
        self.clock = StreamClock(self._cuda, watch, self._slots[0])
        with self.clock.time("upload", "GPU stream 0", self._slots[0]):
            self._cuda.memcpy_htod_async(self._volume, self._stage, self._slots[0])

    def digests(self) -> list[bytes]:
        """Digests of the tiling's windows, to find identical ones; computed on the device, blocking."""
        count = len(self.tiling)
        stream = self._slots[0]
        with self.clock.time("gather", "GPU stream 0", stream):
            self._cuda.memset_d8_async(self._digests, 0, 16 * count, stream)
            args = self._volume, self._shape, self._starts, _triple(self.window), self._digests
            self._kernels["digest"](*args, block=(256, 1, 1), grid=(count, 4, 1), stream=stream)
        found = np.empty((count, 2), np.uint64)
        self._cuda.memcpy_dtoh_async(found, self._digests, stream)
        stream.synchronize()
        return [row.tobytes() for row in found]

    def begin(self, order: Order, tiling: Tiling, volume: LrVolume, held: Held | None) -> None:
        """Upload which windows are computed, where their outputs lie, and how to hold the measured band."""
        starts = np.array(list(_starts(tiling)), np.int32)[order.computed]
        self._cuda.memcpy_htod(self._order, np.ascontiguousarray(starts))
        self._cuda.memcpy_htod(self._at, order.at)
        self._cuda.memset_d8(int(self._flaw), 0, 4)
        self._blended = {}
        self._waited = -1
        self._first.record(self._slots[0])
        if self._band and held:
            gain, offset = np.float32(volume.gain), np.float32(volume.offset)
            self._band.begin((self._volume, self._shape, gain, offset), held.weight)

    def issue(self, number: int, order: Order, volume: LrVolume, engine: CudaEngine) -> None:
        """Gather a batch and run the network on it, in the next slot.

        The network always gets a full batch, even if the end of the last one is unused: with another size it
        would plan, measure and capture again.
        """
        windows, place, index = order.batches[number], number % self.ring, number % len(self._slots)
        stream = self._slots[index]
        if number >= self.ring:  # the batch whose place it takes
            stream.wait_for_event(self._blended[order.last_slab[number - self.ring]])
        slices, rows, columns = self.window
        starts = int(self._order) + 12 * self.batch * number
        args = self._volume, self._shape, np.uint64(starts), _triple(self.window)
        args += np.float32(volume.gain), np.float32(volume.offset), self._lr[index]
        lane = f"GPU stream {index}"
        with self.clock.time("gather", lane, stream):
            self._kernels["gather"](
                *args, block=BLOCK, grid=blocks(rows, columns, slices * len(windows)), stream=stream
            )
        pool = int(self._pool)
        slot = Slot(
            index,
            stream.handle,
            int(self._lr[index]),
            pool + place * self.stride * self._window_bytes,
            (self.batch, slices, rows, columns),
            (self.batch, self.fine[0], self.fine[1], self.fine[2]),
        )
        with self.clock.time("network", lane, stream):
            engine.enqueue(slot)
        for n in windows:
            if n in order.kept:
                source, target = (pool + at * self._window_bytes for at in (order.place[n], order.kept[n]))
                self._cuda.memcpy_dtod_async(target, source, self._window_bytes, stream)
        self._done[place].record(stream)

    def blend(self, k: int, order: Order, tiling: Tiling) -> None:
        """Blend slab k's windows into the mean, once they are computed."""
        stream = self._blending
        for number in range(self._waited + 1, order.needs[k] + 1):
            stream.wait_for_event(self._done[number % self.ring])
        self._waited = max(self._waited, order.needs[k])
        height, width, _ = tiling.fine_shape
        counts = len(tiling.rows.starts), len(tiling.columns.starts)
        at = np.uint64(int(self._at) + 4 * k * math.prod(counts))
        args = self._pool, at, _triple(self.fine), self._spans[0], np.int32(counts[0]), self._shares[0]
        args += (
            self._spans[1],
            np.int32(counts[1]),
            self._shares[1],
            self._slabs[k],
            self._shares[2],
        )
        args += np.int32(height), np.int32(width), self._mean
        low, high = tiling.slices.span(k)
        with self.clock.time("blend", "GPU blending", stream):
            self._kernels["blend"](*args, block=BLOCK, grid=blocks(height, width, high - low), stream=stream)
        self._blended[k] = self._cuda.Event()
        self._blended[k].record(stream)

    def runs(self, k: int, others: Sequence[Any] = ()) -> list[tuple[int, int]]:
        """The HR slices, as (first, how many), that can be stored once slab k is blended.

        others: two volumes (slices, rows, columns) on the device, which each of these slices becomes the mean
        with; see `pipeline.mean_over_axes`.
        """
        stream, (first, stop) = self._blending, self._finished[k]
        if others:
            height, width, _ = self.tiling.fine_shape
            args = self._mean, np.int32(self.fine[0]), np.int32(height), np.int32(width), np.int32(first)
            grid = blocks(height, width, stop - first)
            with self.clock.time("blend", "GPU blending", stream):
                self._kernels["mean_of_three"](*args, *others, block=BLOCK, grid=grid, stream=stream)
        if self._band is None:
            return [(first, stop - first)]
        step: SlabWork = self._band.steps[k]

        def copy(target: int, source: int, size: int) -> None:
            self._cuda.memcpy_dtod_async(target, source, size, stream)

        with self.clock.time("measured band", "GPU blending", stream):
            self._band.arrive(step, self._mean, self.fine[0], copy, stream)
        return self._band.runs(step)

    def store(self, number: int, first: int, count: int, store: Storage, kept: Kept | None = None) -> None:
        """Turn a run of HR slices, the store's number of this volume, into stored voxels.

        kept: where they stay on the device; otherwise they go to the host.
        """
        height, width, _ = self.tiling.fine_shape
        turn = number % LANDING
        mean, place = self._mean, first
        if self._band:
            with self.clock.time("measured band", "GPU blending", self._blending):
                self._band.correct(first, count, self._blending)
            mean, place = self._band.planes, 0
        # The store LANDING before has landed, so its buffer is free: the host has waited for it.
        # Rows fastest, as in the Fortran order of a NIfTI file whose slices are stacked along its last axis.
        out, steps = self._out[turn], (1, height, height * width)
        if kept:
            out, steps = np.uint64(kept.address + 4 * first * kept.steps[2]), kept.steps
        args = mean, np.int32(self.fine[0]), np.int32(height), np.int32(width), np.int32(place)
        args += tuple(map(np.int64, steps))
        args += (
            np.float64(store.gain),
            np.float64(store.offset),
            np.float64(store.low),
            np.float64(store.high),
        )
        args += np.int32(store.dtype.kind in "iu"), out, self._flaw
        grid = blocks(height, width, count)
        with self.clock.time("blend", "GPU blending", self._blending):
            self._kernels["store"](*args, block=BLOCK, grid=grid, stream=self._blending)
        if kept:
            self._landed[turn].record(self._blending)
            return
        self._stored[turn].record(self._blending)
        self._copying.wait_for_event(self._stored[turn])
        size = count * height * width
        with self.clock.time("download", "GPU copying", self._copying):
            self._cuda.memcpy_dtoh_async(self._landing[turn][:size], self._out[turn], self._copying)
        self._landed[turn].record(self._copying)

    def landed(self, number: int, count: int) -> NDArray[Any]:
        """The stored voxels (rows, columns, slices) of a store, once they have arrived."""
        height, width, _ = self.tiling.fine_shape
        self._landed[number % LANDING].synchronize()
        voxels = self._landing[number % LANDING][: count * height * width]
        return voxels.reshape((height, width, count), order="F")

    def network_seconds(self, batches: int) -> float:
        """Seconds from the first gather to the end of the last batch, on the device's clock."""
        for number in range(max(0, batches - len(self._slots)), batches):
            self._slots[0].wait_for_event(self._done[number % self.ring])
        self._last.record(self._slots[0])
        self._last.synchronize()
        return self._last.time_since(self._first) / 1000

    def flawed(self) -> bool:
        found = np.zeros(1, np.int32)
        self._cuda.memcpy_dtoh(found, self._flaw)
        return bool(found[0])

    def finish(self) -> None:
        """Wait until nothing uses the buffers any more."""
        for stream in (*self._slots, self._blending, self._copying):
            stream.synchronize()

    def _empty(self, nbytes: int) -> Any:
        self._allocated.append(self._cuda.mem_alloc(max(nbytes, 1)))
        return self._allocated[-1]

    def _put(self, values: NDArray[Any]) -> Any:
        room = self._empty(values.nbytes)
        if values.nbytes:
            self._cuda.memcpy_htod(room, values)
        return room


def _triple(sizes: tuple[int, ...]) -> np.void:
    """`struct Window`."""
    return np.void(np.array(sizes, np.int32).tobytes())


def _starts(tiling: Tiling) -> Iterator[tuple[int, int, int]]:
    """First LR (row, column, slice) of each window, in tiling order."""
    for k in tiling.slices.starts:
        for i in tiling.rows.starts:
            for j in tiling.columns.starts:
                yield i, j, k


def _spans(axis: Axis) -> NDArray[np.void]:
    """The axis as `struct Span`s."""
    offset, spans = 0, np.zeros(len(axis.starts), SPAN)
    for n, (start, shares) in enumerate(zip(axis.starts, axis.shares, strict=True)):
        low, high = axis.span(n)
        spans[n] = (low, low + shares.size, high, start * axis.scale, offset)
        offset += shares.size
    return spans


def _shares(axis: Axis) -> NDArray[np.float32]:
    return np.concatenate(axis.shares)
