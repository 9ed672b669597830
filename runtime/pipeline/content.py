"""A volume's range, and its bounding box, outside which it has a single value.

Zeroed background is most of a skull-stripped scan. Windows cover only the content, and everything around it
stays background. Volumes are read in pieces, in their order in memory or in the file, and never copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scan.intensity import NOT_FINITE, IntensityError
from .tiling import Box

MARGIN = (4, 4, 1)  # LR voxels around the content that belong to it, because a restored edge reaches further


@dataclass(frozen=True)
class Content:
    """low, high: smallest and largest voxel. background: the value outside `box`, in stored units."""

    low: Any
    high: Any
    background: Any
    box: Box


def survey(volume: NDArray[Any]) -> Content:
    """Read a volume (rows, columns, slices) once.

    The background is the value of the first voxel, a corner; if something lies in that corner, the box is the
    whole volume. Raises IntensityError for NaN and Inf.
    """
    background = volume[0, 0, 0]
    low = high = background
    seen = [np.zeros(n, bool) for n in volume.shape]
    for index in planes(volume):
        plane = volume[index]
        least_here, most_here = plane.min(), plane.max()
        if not (np.isfinite(least_here) and np.isfinite(most_here)):  # NaN and Inf show up in one of them
            raise IntensityError(f"There are {NOT_FINITE}")
        low, high = min(low, least_here), max(high, most_here)
        content = plane != background
        for axis in range(3):
            others = tuple(n for n in range(3) if n != axis)
            seen[axis][index[axis]] |= content.any(axis=others)
    box = [_extent(s, margin) for s, margin in zip(seen, MARGIN, strict=True)]
    return Content(low, high, background, (box[0], box[1], box[2]))


def planes(volume: NDArray[Any]) -> Iterator[Box]:
    """The pieces of a volume: planes one voxel thick, each as contiguous as the volume allows."""
    axis = int(np.argmax(np.abs(volume.strides)))
    for n in range(volume.shape[axis]):
        piece = [slice(None)] * 3
        piece[axis] = slice(n, n + 1)
        yield piece[0], piece[1], piece[2]


def _extent(seen: NDArray[np.bool_], margin: int) -> slice:
    """From the first to the last true value, with margins, within the volume."""
    found = np.flatnonzero(seen)
    if not found.size:
        return slice(0, len(seen))
    return slice(max(0, int(found[0]) - margin), min(len(seen), int(found[-1]) + 1 + margin))
