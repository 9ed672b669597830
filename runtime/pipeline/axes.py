"""The mean over three slab axes: the network's slabs laid across rows, columns and slices in turn.

A slab sees three slices of a volume; along each axis these are different ones, with different errors. The
mean has smaller errors, at three times the cost. Two of the volumes must be complete before the third can be
added to them, slab by slab, in the network's range, before the measured band is taken from the scan.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator

import numpy as np
from numpy.typing import NDArray

from .host import LrVolume

Slabs = Generator[tuple[int, NDArray[np.float32]], None, None]
Scratch = Callable[[tuple[int, int, int]], NDArray[np.float32]]


def mean_over_axes(
    volume: LrVolume,
    restore: Callable[[LrVolume], Slabs],
    scale: int,
    scratch: Scratch,
    spread: NDArray[np.float32] | None = None,
) -> Slabs:
    """Yield the mean's slabs: (first HR slice, float32 (rows, columns, slices)), as for one axis.

    restore: the slabs of a volume whose slices lie along its last axis, in order; restarting at 0 replaces
    what came before. scale: HR voxels per LR voxel, along every axis. scratch: allocates an HR volume of this
    shape; two are held. spread: if given, filled with the standard deviation of the three at each voxel
    (rows, columns, slices), for each slab before it is yielded.
    """
    rows, columns, slices = (n * scale for n in volume.voxels.shape)
    others: list[NDArray[np.float32]] = []
    for axis in (0, 1):
        # Planes of slices are contiguous in it, because that is how it is read in the end.
        whole = np.moveaxis(scratch((slices, rows, columns)), 0, 2)
        turned = dataclasses.replace(volume, voxels=np.moveaxis(volume.voxels, axis, 2))
        with contextlib.closing(restore(turned)) as slabs:
            for first, slab in slabs:
                np.moveaxis(whole, axis, 2)[:, :, first : first + slab.shape[2]] = slab
        others.append(whole)
    with contextlib.closing(restore(volume)) as slabs:
        for first, slab in slabs:
            here = slice(first, first + slab.shape[2])
            mean = slab + others[0][:, :, here]
            mean += others[1][:, :, here]
            mean /= np.float32(3)
            if spread is not None:
                three = slab, *(other[:, :, here] for other in others)
                squares = np.sum([(one - mean) ** 2 for one in three], axis=0)
                spread[:, :, here] = np.sqrt(squares / np.float32(2))
            yield first, mean
