"""The measured band on the device, taken from the scan as the pipeline does it, as planes are blended.

The host's FFTs are matrices here, and its dictionaries are rings of planes, as large as the order of slabs
requires. Everything runs on the stream that blends, so no synchronisation is needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pipeline.measured_band import Operators, Taps, Weight
from .device import BLOCK, blocks

WHOLE = (
    1 << 27
)  # HR voxels of a ring of slices, none of which is ready before the last; else the host does it
LINE = (128, 1, 1)  # threads
ROWS_OF_A_THREAD = 4  # of a product of matrices, as in kernels.cu
Allocate = Callable[[int], Any]  # bytes to device memory
Put = Callable[[NDArray[Any]], Any]  # an array to device memory


@dataclass(frozen=True)
class Held:
    """The parameters of a volume's measured band."""

    operators: Operators
    weight: Weight


@dataclass(frozen=True)
class SlabWork:
    """The work that is possible once a slab is blended, as ranges (first, past the end).

    arrived: HR slices that are finished. compared: LR slices whose HR slices have all come. ready: HR slices
    that can be corrected.
    """

    arrived: tuple[int, int]
    compared: tuple[int, int]
    ready: tuple[int, int]


@dataclass(frozen=True)
class DevicePlanes:
    """Planes (rows, columns), float32, in a ring on the device; and the first one to use."""

    at: Any
    ring: int
    first: int
    rows: int
    columns: int

    @classmethod
    def all_alike(cls, at: Any, rows: int, columns: int) -> DevicePlanes:
        """One matrix as every plane."""
        return cls(at, 1, 0, rows, columns)

    @property
    def place(self) -> tuple[Any, np.int32, np.int32]:
        """As the kernels' arguments."""
        return self.at, np.int32(self.ring), np.int32(self.first)


def schedule(arrivals: Sequence[int], downs: Sequence[Taps], ups: Sequence[Taps]) -> list[SlabWork]:
    """A step for each slab. arrivals: HR slices finished after it. downs, ups: of `Operators`."""
    needed = list(itertools.accumulate((max(numbers) for numbers, _ in downs), max))  # HR slice, by LR slice
    wanted = list(itertools.accumulate((max(numbers) for numbers, _ in ups), max))  # LR slice, by HR slice
    steps, arrived, compared, ready = [], 0, 0, 0
    for now in arrivals:
        known = compared + sum(z < now for z in needed[compared:])
        done = ready + sum(k < known for k in wanted[ready:now])
        steps.append(SlabWork((arrived, now), (compared, known), (ready, done)))
        arrived, compared, ready = now, known, done
    return steps


def oldest(taps: Sequence[Taps]) -> list[int]:
    """The first plane that this number or a later one needs; none after the last number."""
    least = itertools.accumulate((min(numbers) for numbers, _ in reversed(taps)), min)
    return [*reversed(list(least)), 1 << 30]


class MeasuredBand:
    """Buffers and kernels for volumes of one size.

    kernel: by name. empty, put: device memory, kept by the caller. source: the LR voxels' type as kernels
    name it. arrivals: see `schedule`. most: HR planes that are corrected at once.
    """

    def __init__(
        self,
        kernel: Callable[[str], Any],
        empty: Allocate,
        put: Put,
        operators: Operators,
        source: str,
        arrivals: Sequence[int],
        most: int,
    ) -> None:
        downs, ups = operators.downs, operators.ups
        self.steps, self._most = schedule(arrivals, downs, ups), most
        rows, columns = operators.down
        (self._lr_rows, self._hr_rows), (self._lr_columns, self._hr_columns) = rows.shape, columns.shape
        lr, middle = 4 * self._lr_rows * self._lr_columns, 4 * self._hr_rows * self._lr_columns
        hr = 4 * self._hr_rows * self._hr_columns
        first_seen, first_missing = oldest(downs), oldest(ups)
        # What a step may still read, from the oldest plane to the newest.
        self._waiting_ring = max(s.arrived[1] - s.ready[0] for s in self.steps)
        self._seen_ring = max(s.arrived[1] - min(first_seen[s.compared[0]], s.arrived[0]) for s in self.steps)
        self._missing_ring = max(
            1, *(s.compared[1] - min(first_missing[s.ready[0]], s.compared[0]) for s in self.steps)
        )
        come = max(s.arrived[1] - s.arrived[0] for s in self.steps)
        known = max(1, *(s.compared[1] - s.compared[0] for s in self.steps))
        self._waiting, self._seen = empty(hr * self._waiting_ring), empty(lr * self._seen_ring)
        self._missing = empty(lr * self._missing_ring)
        self._middle = empty(middle * max(come, most))
        self._lr, self._sum = empty(lr * known), empty(lr * max(known, most))
        self._added, self.planes = empty(hr * most), empty(hr * most)
        # One matrix from the left, for rows, and one from the right, for columns.
        self._down, self._up = (
            [DevicePlanes.all_alike(put(np.ascontiguousarray(m)), *m.shape) for m in (left, right.T)]
            for left, right in (operators.down, operators.up)
        )
        self._downs, self._ups = ([put(part) for part in _packed(taps)] for taps in (downs, ups))
        names = ("products", "weighted", "missing", "corrected")
        self._kernels = {name: kernel(name) for name in names}
        self._slices = kernel(f"slices_{source}")

    def begin(self, volume: tuple[Any, ...], weight: Weight) -> None:
        """Start a volume. volume: its voxels, layout, gain and offset, as the kernels' arguments."""
        self._volume, self._share = volume, np.float32(weight.share)
        self._tissue = np.float32(weight.air), np.float32(max(0.0, weight.tissue - weight.air))
        self._detail = np.float32(weight.detail - 1)

    def arrive(
        self, step: SlabWork, mean: Any, depth: int, copy: Callable[[int, int, int], None], stream: Any
    ) -> None:
        """Take the planes that are finished from the ring `mean`, and compare them with the scan.

        copy: (to, from, bytes), on the stream.
        """
        (first, stop), size = step.arrived, 4 * self._hr_rows * self._hr_columns
        for z in range(first, stop):
            copy(int(self._waiting) + z % self._waiting_ring * size, int(mean) + z % depth * size, size)
        count = stop - first
        middle = DevicePlanes(self._middle, count, 0, self._hr_rows, self._lr_columns)
        seen = DevicePlanes(self._seen, self._seen_ring, first, self._lr_rows, self._lr_columns)
        finished = DevicePlanes(mean, depth, first, self._hr_rows, self._hr_columns)
        self._times(finished, self._down[1], middle, count, stream)
        self._times(self._down[0], middle, seen, count, stream)
        first, stop = step.compared
        if not (count := stop - first):
            return
        voxels, layout, gain, offset = self._volume
        grid = blocks(self._lr_rows, self._lr_columns, count)
        args: tuple[Any, ...] = voxels, layout, np.int32(first), gain, offset, self._lr
        self._slices(*args, block=BLOCK, grid=grid, stream=stream)
        self._weighted(self._seen, self._seen_ring, self._downs, first, count, stream)
        args = self._lr, self._sum, np.int32(self._lr_rows), np.int32(self._lr_columns)
        args += (
            self._share,
            *self._tissue,
            self._detail,
            self._missing,
            np.int32(self._missing_ring),
            np.int32(first),
        )
        self._kernels["missing"](*args, block=BLOCK, grid=grid, stream=stream)

    def runs(self, step: SlabWork) -> list[tuple[int, int]]:
        """The HR slices that are ready, as (first, how many) that are corrected at once."""
        start, stop = step.ready
        return [(first, min(self._most, stop - first)) for first in range(start, stop, self._most)]

    def correct(self, first: int, count: int, stream: Any) -> None:
        """Put corrected HR slices into `planes`."""
        self._weighted(self._missing, self._missing_ring, self._ups, first, count, stream)
        summed = DevicePlanes(self._sum, count, 0, self._lr_rows, self._lr_columns)
        middle = DevicePlanes(self._middle, count, 0, self._hr_rows, self._lr_columns)
        added = DevicePlanes(self._added, count, 0, self._hr_rows, self._hr_columns)
        self._times(self._up[0], summed, middle, count, stream)
        self._times(middle, self._up[1], added, count, stream)
        args = self._waiting, np.int32(self._waiting_ring), np.int32(first), self._added
        args += np.int32(self._hr_rows), np.int32(self._hr_columns), *self._tissue, self._detail, self.planes
        grid = blocks(self._hr_rows, self._hr_columns, count)
        self._kernels["corrected"](*args, block=BLOCK, grid=grid, stream=stream)

    def _times(
        self, left: DevicePlanes, right: DevicePlanes, made: DevicePlanes, count: int, stream: Any
    ) -> None:
        """Products of as many planes."""
        sizes = np.int32(made.rows), np.int32(left.columns), np.int32(made.columns)
        grid = blocks(-(-made.rows // ROWS_OF_A_THREAD), made.columns, count)
        args = *left.place, *right.place, *sizes, *made.place
        self._kernels["products"](*args, block=BLOCK, grid=grid, stream=stream)

    def _weighted(self, planes: Any, ring: int, taps: list[Any], first: int, count: int, stream: Any) -> None:
        size = self._lr_rows * self._lr_columns
        args = planes, np.int32(ring), np.int32(size), *taps, np.int32(first), self._sum
        grid = -(-size // LINE[0]), 1, count
        self._kernels["weighted"](*args, block=LINE, grid=grid, stream=stream)


def _packed(taps: Sequence[Taps]) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]:
    """Numbers and weights concatenated, and the start and end of each."""
    ends = np.cumsum([0, *(len(numbers) for numbers, _ in taps)], dtype=np.int32)
    numbers, weights = (list(itertools.chain.from_iterable(part)) for part in zip(*taps, strict=True))
    return np.array(numbers, np.int32), np.array(weights, np.float32), ends
