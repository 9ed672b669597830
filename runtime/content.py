"""What a volume holds: its range, and the box outside which it is one value.

Zeroed background is most of a skull-stripped scan. Windows are planned over the content and a margin, and
what lies outside becomes the background itself, which no network has to see. Volumes are read in
pieces, in the order in which they lie in memory or in the file, and never copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .intensity import IntensityError

Box = tuple[slice, slice, slice]
MARGIN = (4, 4, 1)  # LR voxels around the content that the network sees as background, which has an edge too


@dataclass(frozen=True)
class Content:
    """low, high: smallest and largest voxel. background: the value outside `box`, in stored units."""

    low: Any
    high: Any
    background: Any
    box: Box


def survey(volume: NDArray[Any], least: tuple[int, int, int] = (1, 1, 1)) -> Content:
    """Look through a volume (rows, columns, slices) once.

    The background is the value of the first voxel, a corner; a volume with something in that corner has a
    box as large as itself. least: the box is at least this large where the volume is, so that a window
    fits and sees the scan's own voxels. Raises IntensityError for NaN and Inf.
    """
    background = volume[0, 0, 0]
    low = high = background
    seen = [np.zeros(n, bool) for n in volume.shape]
    for index in planes(volume):
        plane = volume[index]
        least_here, most_here = plane.min(), plane.max()
        if not (np.isfinite(least_here) and np.isfinite(most_here)):  # NaN and Inf show in one of them
            raise IntensityError("There are NaN or infinite voxels.")
        low, high = min(low, least_here), max(high, most_here)
        content = plane != background
        for axis in range(3):
            others = tuple(n for n in range(3) if n != axis)
            seen[axis][index[axis]] |= content.any(axis=others)
    box = [_extent(s, margin, n) for s, margin, n in zip(seen, MARGIN, least, strict=True)]
    return Content(low, high, background, (box[0], box[1], box[2]))


def planes(volume: NDArray[Any]) -> Iterator[Box]:
    """Where the pieces of a volume are: planes one voxel thick, each as contiguous as the volume allows."""
    axis = int(np.argmax(np.abs(volume.strides)))
    for n in range(volume.shape[axis]):
        piece = [slice(None)] * 3
        piece[axis] = slice(n, n + 1)
        yield piece[0], piece[1], piece[2]


def _extent(seen: NDArray[np.bool_], margin: int, least: int) -> slice:
    """From the first to the last that is seen, margins added, at least so long, inside the volume."""
    size = len(seen)
    found = np.flatnonzero(seen)
    if not found.size:
        return slice(0, size)
    start, stop = max(0, int(found[0]) - margin), min(size, int(found[-1]) + 1 + margin)
    length = max(stop - start, min(least, size))
    start = min(max(0, start - (length - (stop - start)) // 2), size - length)
    return slice(start, start + length)
