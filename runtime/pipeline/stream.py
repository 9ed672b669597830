"""Super-resolution of a volume whose slices are still arriving.

Windows along the slices are evenly spaced, so their positions are known as soon as the number of slices is. A
slab is resolved when its last slice has arrived, by the same pipeline as a whole volume, and blended with the
slabs before it; slices that no later slab will change are yielded. Input slices are requested when they are
needed, in the caller's thread, and held until no slab reads them: memory is that of a slab, however long the
stream.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..scan.intensity import IN_THE_NETWORKS_RANGE, Intensities, Storage, check_finite
from ..system.trace import Stopwatch
from .host import LrVolume, Planes, blend_slabs
from .tiling import Tiling

Run = Callable[[NDArray[Any], LrVolume, Tiling, Storage, Stopwatch], None]
Slabs = Iterable[tuple[int, Planes]]
Band = Callable[[Slabs, Callable[[int], Planes], tuple[int, int, int]], Slabs]


def resolve_stream(
    slices: Iterable[NDArray[Any]],
    count: int,
    intensities: Intensities,
    planned: Callable[[tuple[int, int, int]], Tiling],
    stored: Callable[[np.dtype[Any]], np.dtype[Any]],
    run: Run,
    band: Band | None,
    watch: Stopwatch,
) -> Generator[NDArray[Any]]:
    """Yield the HR slices (s·rows, s·columns) in order; the caller may keep them.

    slices: `count` LR slices (rows, columns). planned: gives the windows of a volume; stored: the output's
    dtype for an input dtype; run: fills an array (rows, columns, slices) with the pipeline's result for a
    volume. band: takes the measured band of SR slabs from LR planes, requested by number, for a volume of
    this shape. Raises RunError for slices that do not form a volume.
    """
    source = iter(slices)
    arriving = _checked(source, count, watch)
    held = {0: next(arriving)}
    rows, columns = held[0].shape
    tiling, dtype = planned((rows, columns, count)), stored(held[0].dtype)
    alone = Tiling(tiling.rows, tiling.columns, tiling.slices.alone)
    slab = np.empty(alone.fine_shape[2:] + alone.fine_shape[:2], np.float32)
    voxels = np.empty((tiling.slices.window, rows, columns), held[0].dtype)
    measured: dict[int, NDArray[Any]] = {}  # slices with SR slices still to come, if `band` is given

    def lr_plane(k: int) -> Planes:
        return LrVolume(measured[k], 1.0 / intensities.unit).in_range()

    def slabs() -> Iterator[Planes]:
        due = 0
        for k, start in enumerate(tiling.slices.starts):
            for n in range(max(held) + 1, min(start + tiling.slices.window, count)):
                held[n] = next(arriving)
            if band:
                measured.update((n, p) for n, p in held.items() if n >= due)
                due = max(held) + 1
            for place, n in enumerate(tiling.slices.source(k)):
                voxels[place] = held[n]
            for n in [n for n in held if n < start]:
                del held[n]
            volume = LrVolume(np.moveaxis(voxels, 0, 2), 1.0 / intensities.unit)
            run(np.moveaxis(slab, 0, 2), volume, alone, IN_THE_NETWORKS_RANGE, watch)
            yield slab

    blended: Slabs = blend_slabs(tiling.slices, slabs(), watch)
    if band:
        blended = band(blended, lr_plane, (rows, columns, count))
    for first, planes in blended:
        with watch.time("blend"):
            seen = np.stack([*measured.values(), voxels[-1]]) if band else voxels
            restored = intensities.storage(dtype, seen).restore(planes).astype(dtype)
        yield from restored
        for n in [n for n in measured if (n + 1) * tiling.slices.scale <= first + len(planes)]:
            del measured[n]
    if next(source, None) is not None:
        raise RunError(f"The stream has more than the {count} slices that were announced.")


def _checked(source: Iterator[NDArray[Any]], count: int, watch: Stopwatch) -> Iterator[NDArray[Any]]:
    """Copies of the slices, because their source may reuse the memory. Raises RunError for invalid ones."""
    shape, dtype = (), np.dtype(np.float32)
    for number in range(count):
        with watch.time("read"):
            given = next(source, None)
        if given is None:
            raise RunError(f"The stream ended after {number} of {count} slices.")
        lr, name = np.array(given), f"Slice {number + 1} of {count}"
        if isinstance(given, np.ma.MaskedArray):
            raise RunError(f"{name} is masked, so it has voxels without a value: fill them first.")
        if lr.ndim != 2 or not lr.size or lr.dtype.kind not in "iuf":
            raise RunError(f"{name} must be 2-D and real, not {lr.dtype} of shape {lr.shape}.")
        if not number:
            shape, dtype = lr.shape, lr.dtype
        if (lr.shape, lr.dtype) != (shape, dtype):
            raise RunError(
                f"{name} is {lr.dtype} of shape {lr.shape}, but the first one is {dtype} of {shape}."
            )
        check_finite(lr, name)
        yield lr
