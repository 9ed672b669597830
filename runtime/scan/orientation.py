"""Turns stored voxels to the orientation in which networks see every scan, and were trained.

A network is not a function that flips and transposes with its input, so a scan is restored along the world's
axes, however its file stores it: rows, columns and slices run to the right, to the front or to the head
(RAS+), and slabs are stacked across the slices or, if all voxel sizes are equal, from foot to head. For an
oblique scan the nearest axes are used. All results are views; no voxel is copied or interpolated.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from .geometry import Flips, slab_axis

T = TypeVar("T", bound=np.generic)
V = TypeVar("V")

# A rotation by half a degree before the nearest axes are chosen. Planes are prescribed at 45 degrees, at
# which two axes are equally near and rounding would decide, but not at 45.5.
TILT = np.eye(3) + np.cross(np.eye(3), np.array([1.0, 2.0, 3.0]) * 0.0025)


@dataclass(frozen=True)
class Orientation:
    """The stored axes that become (row, column, slice), and whether each stored axis is reversed."""

    axes: tuple[int, int, int]
    flipped: Flips

    @classmethod
    def of(cls, affine: NDArray[np.floating], axis: int | None = None) -> Orientation:
        """The orientation of voxels with this (4, 4) affine to RAS+, mm.

        axis: the stored one across the slices, by default that of `geometry.slab_axis` among the world's.
        Raises RunError if `axis` is not 0, 1 or 2.
        """
        if axis is not None and (
            isinstance(axis, bool) or not isinstance(axis, int | np.integer) or axis not in (0, 1, 2)
        ):
            raise RunError(f"The axis across the slices is 0, 1 or 2, not {axis!r}.")
        linear = np.asarray(affine, np.float64)[:3, :3]
        zooms = np.linalg.norm(linear, axis=0)
        cosines = TILT @ (linear / zooms)
        nearest = max(
            itertools.permutations(range(3)), key=lambda axes: np.abs(cosines[range(3), axes]).sum()
        )
        if axis is None:
            axis = nearest[slab_axis([zooms[n] for n in nearest])]
        flipped = [bool(cosines[nearest.index(n), n] < 0) for n in range(3)]
        first, second = (n for n in nearest if n != axis)
        return cls((first, second, axis), (flipped[0], flipped[1], flipped[2]))

    @property
    def axis(self) -> int:
        """The stored axis across the slices."""
        return self.axes[2]

    def turned(self, voxels: NDArray[T]) -> NDArray[T]:
        """A view (rows, columns, slices) of stored voxels (i, j, k), of any grid along the same axes."""
        flips = tuple(slice(None, None, -1 if flip else None) for flip in self.flipped)
        return voxels[flips].transpose(self.axes)

    def stored(self, voxels: NDArray[T]) -> NDArray[T]:
        """A view (i, j, k), as they are stored, of voxels (rows, columns, slices); undoes `turned`."""
        flips = tuple(slice(None, None, -1 if self.flipped[n] else None) for n in self.axes)
        return voxels[flips].transpose([self.axes.index(n) for n in range(3)])

    def settle(self, sr: NDArray[Any], factors: Sequence[int]) -> None:
        """Move an SR volume (i, j, k), in place, to the "fft" grid of the scan as it is stored.

        A network that sees an axis reversed puts LR voxel i on HR voxel s·i + s - 1 of it; the grid's
        contract is s·i, the same origin. factors: s along (i, j, k). The voxels beyond the last LR voxel
        there have not been restored, and are filled by reflection, as windows are at the rim.
        """
        lags = [(s - 1) * flip for s, flip in zip(factors, self.flipped, strict=True)]
        if not any(lags):
            return
        last = sr.shape[2] - 1 - lags[2]
        for n in range(sr.shape[2]):
            if n > last:
                sr[:, :, n] = sr[:, :, max(2 * last - n, 0)]
            else:
                sr[:, :, n] = _ahead(_ahead(sr[:, :, n + lags[2]], 0, lags[0]), 1, lags[1])

    def by_stored(self, values: Sequence[V]) -> tuple[V, V, V]:
        """Values given by (row, column, slice), such as a card's factors, in the order of stored axes."""
        i, j, k = (values[self.axes.index(n)] for n in range(3))
        return i, j, k


def _ahead(plane: NDArray[T], axis: int, lag: int) -> NDArray[T]:
    """A plane's voxels shifted by `lag` along an axis, with reflection at the end."""
    if not lag:
        return plane
    last = plane.shape[axis] - 1 - lag
    beyond = [max(last - t, 0) + lag for t in range(1, lag + 1)]
    return plane.take([*range(lag, plane.shape[axis]), *beyond], axis)
