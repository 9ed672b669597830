"""The position of an SR volume's voxels in the world.

Two grids are in use. On the "fft" grid the LR volume is a centred k-space truncation: LR voxel i lies
exactly on HR voxel s·i, so the origin stays. On the "center" grid the outer voxel edges coincide, so the
first HR voxel lies (1/s - 1)/2 LR voxels from the first LR voxel. Along an axis that a network sees the
other way round (`orientation`), LR voxel i of the "fft" grid lies on HR voxel s·i + s - 1. All functions are
in voxel axes (i, j, k) of the array, float64, millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..models.card import GridKind

Factors = tuple[int, int, int]
Flips = tuple[bool, bool, bool]  # axes that the network sees reversed
AS_STORED: Flips = (False, False, False)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's and MRD's patient coordinates to NIfTI's world


def slab_axis(zooms: Sequence[float]) -> int:
    """The voxel axis across the slices: the one that differs if the two others are equal, for thick slices or
    thin ones; else the one with the largest voxel size; the last one if all are equal.

    Sizes within 0.1 % count as equal: headers store rounded float32.
    """

    def equal(a: int, b: int) -> bool:
        return abs(zooms[a] - zooms[b]) <= 0.001 * max(zooms[a], zooms[b])

    if not (equal(0, 1) and equal(1, 2)):
        for axis in (2, 1, 0):
            if equal(*(a for a in range(3) if a != axis)):
                return axis
    return max(axis for axis in range(3) if zooms[axis] >= 0.999 * max(zooms))


def voxel_factors(scale: Factors, axis: int) -> Factors:
    """The card's (row, column, slice) factors ordered by voxel axis, slices being stacked along `axis`."""
    factors = list(scale[:2])
    factors.insert(axis, scale[2])
    return factors[0], factors[1], factors[2]


def fine_affine(
    affine: NDArray[np.floating], factors: Factors, grid: GridKind, flipped: Flips = AS_STORED
) -> NDArray[np.float64]:
    """The (4, 4) affine of the HR grid that belongs to the LR grid's affine. Inverse of `coarse_affine`."""
    return np.asarray(affine, np.float64) @ _fine_to_coarse(factors, grid, flipped)


def coarse_affine(
    affine: NDArray[np.floating], factors: Factors, grid: GridKind, flipped: Flips = AS_STORED
) -> NDArray[np.float64]:
    """The (4, 4) affine of the LR grid that belongs to an HR grid's affine."""
    return np.asarray(affine, np.float64) @ np.linalg.inv(_fine_to_coarse(factors, grid, flipped))


def flips_between(coarse: NDArray[np.floating], fine: NDArray[np.floating], factors: Factors) -> Flips:
    """For each axis of an HR grid on the "fft" grid of an LR one: whether the network saw it reversed."""
    first = np.linalg.solve(coarse, fine)[:3, 3] * factors  # 0, or 1 - s
    i, j, k = (bool(at < (1 - s) / 2) for at, s in zip(first, factors, strict=True))
    return i, j, k


def lead(factor: int, grid: GridKind, flipped: bool = False) -> float:
    """HR voxels from the first of the `factor` that belong to an LR voxel to its centre."""
    return (factor - 1) / 2 if grid == "center" else float((factor - 1) * flipped)


def lr_coordinate(
    fine: NDArray[np.integer], factor: int, grid: GridKind, flipped: bool = False
) -> NDArray[np.float64]:
    """LR coordinates of HR voxels along an axis: p/s on the "fft" grid, (p + 1/2)/s - 1/2 on "center"."""
    return (fine - lead(factor, grid, flipped)) / factor


def is_singular(affine: NDArray[np.floating]) -> bool:
    """Whether an affine maps the volume to a plane, a line or nowhere."""
    linear = np.asarray(affine, np.float64)[:3, :3]
    if not np.isfinite(affine).all():
        return True
    volume = np.linalg.norm(linear, axis=0).prod()
    return bool(abs(np.linalg.det(linear)) <= 1e-6 * volume)


def _fine_to_coarse(factors: Factors, grid: GridKind, flipped: Flips) -> NDArray[np.float64]:
    """HR voxel coordinates to LR voxel coordinates, (4, 4)."""
    matrix = np.diag([*(1 / np.asarray(factors, np.float64)), 1.0])
    leads = [lead(f, grid, flip) for f, flip in zip(factors, flipped, strict=True)]
    matrix[:3, 3] = -np.array(leads) / factors
    return matrix
