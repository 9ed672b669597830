"""The host pipeline: gather windows, run the network, blend: three overlapping stages.

Gathering and the network have a thread each, and blending runs in the caller's; queues of one item join them,
so copies hide behind the network and memory is bounded by a few batches and one slab. Windows are processed
in one fixed order, whatever the threads do, so the result is bit-identical every time.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..scan.intensity import LOST, IntensityError, Storage
from ..scan.interpolation import linear
from ..scan.voxels import Planes
from ..system.progress import Progress
from ..system.threads import ahead
from ..system.trace import Stopwatch
from .air import Air, Span, joined, occupied
from .engine import Inference
from .tiling import Axis, Tiling

# Windows per network call: activations of 64 channels then stay near 4 MB. Measured with 1, 2, 4, 8 and 16
# windows of 64x64x3 on two cores, OpenVINO and ONNX Runtime: 4 takes at most 2 % more than the fastest.
BATCH_VOXELS = 4 * 64 * 64
SEAM = 4  # LR voxels over which the network's output fades into interpolated air
WHOLE: Span = (slice(None), slice(None))
KEPT_OUTPUTS = 64  # outputs held for later byte-identical windows


@dataclass(frozen=True)
class LrVolume:
    """An LR volume in memory or in a memory map, and its conversion to the network's range.

    voxels: (rows, columns, slices), any real dtype; the network sees float32 voxels·gain + offset.
    air: the air that the network may skip, which is interpolated instead; None: nothing is skipped.
    """

    voxels: NDArray[Any]
    gain: float = 1.0
    offset: float = 0.0
    air: Air | None = None

    def in_range(self) -> NDArray[np.float32]:
        """A copy of the voxels in the network's range."""
        values = self.voxels.astype(np.float32)
        values *= np.float32(self.gain)
        values += np.float32(self.offset)
        return values

    def plane(self, k: int) -> NDArray[np.float32]:
        """Slice k (rows, columns) in the network's range."""
        return LrVolume(self.voxels[:, :, k], self.gain, self.offset).in_range()


@dataclass(frozen=True)
class Pass:
    """A volume on its way through a pipeline, and what becomes of its voxels.

    progress(done, all) counts blended windows.
    """

    volume: LrVolume
    tiling: Tiling
    store: Storage
    watch: Stopwatch
    progress: Progress | None = None


class HostPipeline:
    """Resolves volumes by an engine of the processor; one at a time."""

    def __init__(self, network: Inference) -> None:
        self._network = network

    def slabs(self, given: Pass) -> Generator[tuple[int, NDArray[Any]]]:
        """Yield finished slabs: (first HR slice, voxels (rows, columns, slices) to be stored)."""
        watch, steps = given.watch, (given.volume, self._network, given.tiling)
        with contextlib.closing(resolve_slabs(*steps, watch=watch, progress=given.progress)) as slabs:
            for first, planes in slabs:
                with watch.time("blend"):
                    restored = given.store.restore(planes)
                yield first, np.moveaxis(restored, 0, 2)


def resolve_slabs(
    volume: LrVolume,
    network: Inference,
    tiling: Tiling,
    batch: int | None = None,
    watch: Stopwatch | None = None,
    progress: Progress | None = None,
) -> Generator[tuple[int, Planes]]:
    """Yield finished HR slabs in order: (first HR slice, float32 (slices, rows, columns)), network's range.

    The yielded planes are overwritten in the next step. network: float32 (N, slab, H, W) of the tiling's
    windows to float32 (N, slab·s, s·H, s·W). batch: windows per call. progress(done, all) counts blended
    windows. Raises RunError if the network yields another shape or non-finite values.
    """
    watch = watch or Stopwatch()
    with watch.time("gather"):
        sources = twins(contents(volume, tiling))
        spans: list[Span | None] = [WHOLE] * len(sources)
        if volume.air:
            spans = occupied(volume.voxels, tiling, volume.air)
    last_use = {source: n for n, source in enumerate(sources)}
    watch.windows += len(sources)
    watch.computed += sum(spans[source] is not None for source in last_use)
    size = batch or batch_size(tiling)

    batches = ahead(_gather(volume, tiling, sources, spans, size, watch), "gather")
    with contextlib.closing(ahead(_compute(batches, network, tiling, watch), "network")) as outputs:
        arriving = (output for group in outputs for output in group)
        kept: dict[int, Planes] = {}

        def output_of(n: int) -> Planes:
            source = sources[n]
            new = next(arriving) if source == n else kept[source]
            if last_use[source] > n:
                kept[source] = new
            else:
                kept.pop(source, None)
            if progress:
                progress(n + 1, len(sources))
            return new

        yield from _blend(tiling, output_of, watch)


def batch_size(tiling: Tiling) -> int:
    """Windows of one network call."""
    return max(1, BATCH_VOXELS // (tiling.rows.window * tiling.columns.window))


def buffer_nbytes(tiling: Tiling) -> int:
    """Peak bytes of `resolve_slabs`, besides the volume and the network's own memory."""
    coarse = tiling.slices.window * tiling.rows.window * tiling.columns.window * 4
    scales = tiling.slices.scale * tiling.rows.scale * tiling.columns.scale
    slab = tiling.slices.window * tiling.rows.size * tiling.columns.size * scales * 4
    # Three batches in and three out, outputs kept for twins, and four of slab size: band, slab, mean,
    # restored.
    return 3 * batch_size(tiling) * coarse * (1 + scales) + KEPT_OUTPUTS * coarse * scales + 4 * slab


def windows(volume: LrVolume, tiling: Tiling) -> Iterator[Planes]:
    """The LR windows (slab, rows, columns) of a tiling, in its order; views, valid until the next one."""
    for k in range(len(tiling.slices.starts)):
        slab = LrVolume(_slab(volume, tiling, k), volume.gain, volume.offset)
        yield from _cut(slab.in_range(), tiling)


def contents(volume: LrVolume, tiling: Tiling) -> list[Hashable]:
    """A key for each window's content: equal for windows of equal bytes, different for others.

    Most windows can be distinguished from all others by a few of their voxels.
    """

    def stored() -> Iterator[NDArray[Any]]:
        for k in range(len(tiling.slices.starts)):
            yield from _cut(_slab(volume, tiling, k), tiling)

    samples: list[Hashable] = [hash(window[:, ::8, ::8].tobytes()) for window in stored()]
    shared = {sample for sample, count in collections.Counter(samples).items() if count > 1}
    if not shared:
        return samples
    return [
        hashlib.blake2b(window.tobytes()).digest() if sample in shared else sample
        for sample, window in zip(samples, stored(), strict=True)
    ]


def _slab(volume: LrVolume, tiling: Tiling, k: int) -> NDArray[Any]:
    """The LR slab (slices, rows, columns) of a tiling's windows, as stored, with margins."""
    slab = np.ascontiguousarray(np.moveaxis(volume.voxels[:, :, tiling.slices.source(k)], 2, 0))
    margins = ((0, 0), tiling.rows.margins, tiling.columns.margins)
    return np.pad(slab, margins, mode="reflect") if any(map(any, margins)) else slab


def _cut(slab: NDArray[Any], tiling: Tiling) -> Iterator[NDArray[Any]]:
    """The windows of a slab, row by row; views."""
    rows, columns = tiling.rows, tiling.columns
    for row in rows.starts:
        for column in columns.starts:
            top, left = row - rows.starts[0], column - columns.starts[0]
            yield slab[:, top : top + rows.window, left : left + columns.window]


def twins(contents: Sequence[Hashable], most: int = KEPT_OUTPUTS) -> list[int]:
    """For each window, the number of the first one with the same content, so that zeroed air is computed
    once.

    Only the `most` frequent contents count as twins, so that few outputs have to be kept.
    """
    common = {d for d, count in collections.Counter(contents).most_common(most) if count > 1}
    first: dict[Hashable, int] = {}
    return [first.setdefault(d, n) if d in common else n for n, d in enumerate(contents)]


def _gather(
    volume: LrVolume,
    tiling: Tiling,
    sources: list[int],
    spans: list[Span | None],
    size: int,
    watch: Stopwatch,
) -> Iterator[tuple[NDArray[np.float32], Span | None]]:
    """Batches (n <= size, slab, H, W) of the windows to be computed, and the spans in which they are more
    than air.

    Three buffers in turn: one with the network, one waiting in the queue, one being filled.
    """
    shape = (size, tiling.slices.window, tiling.rows.window, tiling.columns.window)
    ring = [np.empty(shape, np.float32) for _ in range(3)]
    turn = filled = 0
    held: list[Span | None] = []
    every = enumerate(windows(volume, tiling))
    while True:
        with watch.time("gather"):
            while filled < size and (item := next(every, None)):
                if sources[item[0]] == item[0]:
                    ring[turn][filled] = item[1]
                    held.append(spans[item[0]])
                    filled += 1
        if not filled:
            return
        yield ring[turn][:filled], joined(held)
        turn, filled, held = (turn + 1) % len(ring), 0, []


def _compute(
    batches: Generator[tuple[NDArray[np.float32], Span | None], None, None],
    network: Inference,
    tiling: Tiling,
    watch: Stopwatch,
) -> Iterator[NDArray[np.float32]]:
    """The network's outputs, batch by batch."""
    axes = (tiling.slices, tiling.rows, tiling.columns)
    fine = tuple(axis.window * axis.scale for axis in axes)
    with contextlib.closing(batches):
        for batch, span in batches:
            with watch.time("network"):
                output = _restored(batch, span, network, tiling)
            if output.shape != (len(batch), *fine):
                raise RunError(
                    f"The network returned {output.shape} for an input {batch.shape}; its model card "
                    f"promises {(len(batch), *fine)}: export the model again."
                )
            yield output


def _restored(
    batch: NDArray[np.float32], span: Span | None, network: Inference, tiling: Tiling
) -> NDArray[np.float32]:
    """The network's output inside the span, blended into interpolation in the air around it."""
    axes = tiling.rows, tiling.columns
    if span and all(part.indices(a.window)[:2] == (0, a.window) for part, a in zip(span, axes, strict=True)):
        return network(batch)
    output = batch
    for dim, axis in enumerate((tiling.slices, *axes), 1):
        output = linear(output, axis.scale, axis.grid, dim)
    if span is None:
        return output
    rows, columns = span
    new = network(np.ascontiguousarray(batch[:, :, rows, columns]))
    inside = output[:, :, _fine(rows, tiling.rows), _fine(columns, tiling.columns)]
    if new.shape != inside.shape:
        return new  # `_compute` rejects it
    weights = _fade(rows, tiling.rows)[:, None] * _fade(columns, tiling.columns)
    np.copyto(inside, new * weights + inside * (1 - weights))
    return output


def _fine(part: slice, axis: Axis) -> slice:
    return slice(part.start * axis.scale, part.stop * axis.scale)


def _fade(part: slice, axis: Axis) -> NDArray[np.float32]:
    """Weights: a ramp from 0 to 1 at ends of the part that lie in air, 1 elsewhere."""
    weights = np.ones((part.stop - part.start) * axis.scale, np.float32)
    ramp = (np.arange(SEAM * axis.scale, dtype=np.float32) + 0.5) / (SEAM * axis.scale)
    if part.start > 0:
        weights[: len(ramp)] *= ramp
    if part.stop < axis.window:
        weights[-len(ramp) :] *= ramp[::-1]
    return weights


def _blend(
    tiling: Tiling, output_of: Callable[[int], Planes], watch: Stopwatch
) -> Iterator[tuple[int, Planes]]:
    """Blend columns into a band, bands into a slab, slabs into the HR planes still unfinished."""
    rows, columns, slices = tiling.rows, tiling.columns, tiling.slices
    depth = slices.window * slices.scale
    fine_rows, fine_columns, _ = tiling.fine_shape
    band = np.empty((depth, rows.window * rows.scale, fine_columns), np.float32)
    slab = np.empty((depth, fine_rows, fine_columns), np.float32)

    def slabs() -> Iterator[Planes]:
        n = 0
        for _ in slices.starts:
            for i in range(len(rows.starts)):
                for j in range(len(columns.starts)):
                    new = output_of(n)
                    n += 1
                    with watch.time("blend"):
                        columns.blend(j, new, band, dim=2)
                with watch.time("blend"):
                    rows.blend(i, band, slab, dim=1)
            yield slab

    return blend_slabs(slices, slabs(), watch)


def blend_slabs(axis: Axis, slabs: Iterable[Planes], watch: Stopwatch) -> Iterator[tuple[int, Planes]]:
    """Blend the HR slabs (window·s, rows, columns) of all windows of an axis, float32, in order.

    Yields the planes that each slab completes: (first HR slice, planes), overwritten in the next step. Raises
    RunError for non-finite values.
    """
    mean, first = np.empty(0, np.float32), 0
    for k, slab in enumerate(slabs):
        with watch.time("blend"):
            if k == 0:
                mean = np.empty_like(slab)
            axis.blend(k, slab, mean, dim=0, first=first)
            last = k + 1 == len(axis.starts)
            finished = (axis.size * axis.scale if last else axis.span(k + 1)[0]) - first
            if not np.isfinite(mean[:finished]).all():
                raise IntensityError(LOST)
        yield first, mean[:finished]
        with watch.time("blend"):
            unfinished = axis.span(k)[1] - first - finished
            mean[:unfinished] = mean[finished : finished + unfinished].copy()
            first += finished
