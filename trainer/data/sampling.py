"""Groups of volumes, sampled as slabs: around foreground voxels, depending on the random generator alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.scan.voxels import Volume
from ..simulation.kspace import Scale

FOREGROUND = 0.1  # share of the network's range above which a voxel shows tissue


@dataclass(frozen=True)
class Aligned:
    """One scan on one or more grids of a common origin, slices last.

    factors: voxels of each volume per LR voxel along (row, column, slice); the first are (1, 1, 1).
    """

    volumes: tuple[Volume, ...]
    factors: tuple[Scale, ...]


@dataclass(frozen=True)
class Group:
    """Scans to draw slabs from. Each slab axis of a scan counts as a member."""

    members: tuple[Aligned, ...]

    def draw(
        self,
        rng: np.random.Generator,
        count: int,
        slab: tuple[int, int, int],
        augment: bool = False,
        turns: bool = True,
    ) -> tuple[NDArray[Any], ...]:
        """Slabs centred on tissue, float32 (count, slices, rows, columns), one array for each grid.

        slab: (rows, columns, slices) on the LR grid. augment: random flips along all axes (across slices, if
        the scan has more than a slab's) and, if turns, transposition in plane.
        Every scan must have the voxels that are `needed`.
        """
        drawn = [self._one(rng, slab, augment, turns) for _ in range(count)]
        return tuple(np.stack(arrays) for arrays in zip(*drawn, strict=True))

    def _one(
        self, rng: np.random.Generator, slab: tuple[int, int, int], augment: bool, turns: bool
    ) -> list[NDArray[Any]]:
        member = self.members[rng.integers(len(self.members))]
        corner = _tissue_corner(rng, member.volumes[0], needed(slab))
        flips = (rng.random(3) < 0.5) & augment
        flips &= corner + slab < member.volumes[0].shape
        transpose = augment and slab[0] == slab[1] and rng.random() < 0.5 and turns
        patches = []
        for volume, factors in zip(member.volumes, member.factors, strict=True):
            index = []
            for a, n, s, flip in zip(corner, slab, factors, flips, strict=True):
                index.append(slice((a + n) * s, a * s, -1) if flip else slice(a * s, (a + n) * s))
            patch = np.moveaxis(volume[tuple(index)], 2, 0)
            patches.append((patch.swapaxes(1, 2) if transpose else patch).astype(np.float32))
        return patches


def needed(slab: tuple[int, int, int]) -> NDArray[Any]:
    """Smallest number of LR voxels (rows, columns, slices) that a scan must have.

    A flip about an LR voxel keeps the grids aligned: it takes one more voxel on the far side.
    """
    return np.add(slab, (1, 1, 0))


def _tissue_corner(rng: np.random.Generator, volume: Volume, need: NDArray[Any]) -> NDArray[Any]:
    """Corner of a box whose centre shows tissue; of any box after 1000 failed attempts (an empty scan)."""
    room = np.asarray(volume.shape) - need
    corner = rng.integers(0, room + 1)
    for _ in range(1000):
        if volume[tuple(corner + need // 2)] > FOREGROUND:
            break
        corner = rng.integers(0, room + 1)
    return corner
