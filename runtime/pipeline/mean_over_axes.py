"""The mean over three slab axes: the network's slabs laid across rows, columns and slices in turn.

A slab sees three slices of a volume; along each axis these are different ones, with different errors. The
mean has smaller errors, at three times the cost. Two of the volumes must be complete before the third can be
added to them, slab by slab, in the network's range, before the measured band is taken from the scan.

What the three do not have in common, the mean loses: of detail of variance E and correlation ρ, (1 + 2ρ) / 3.
If one axis's detail has the size that fits the truth best, that of the mean is too small by this factor.
`lost_detail` says how much so, and the stage of the measured band, which tells detail from what the scan
holds, makes up for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from .host import LrVolume

Slabs = Generator[tuple[int, NDArray[np.float32]], None, None]
Scratch = Callable[[tuple[int, int, int]], NDArray[np.float32]]

BLOCK = 128  # HR voxels along each axis, in which the detail is compared


def along_other_axes(
    volume: LrVolume, restore: Callable[[LrVolume], Slabs], scale: int, scratch: Scratch
) -> list[NDArray[np.float32]]:
    """The HR volumes (rows, columns, slices) of slabs along rows and along columns.

    restore: the slabs of a volume whose slices lie along its last axis, in order; restarting at 0 replaces
    what came before. scale: HR voxels per LR voxel, along every axis. scratch: allocates an HR volume of this
    shape.
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
    return others


def middle_block(size: int) -> slice:
    """Where, along an axis of so many voxels, the detail is compared."""
    return slice((size - min(size, BLOCK)) // 2, (size + min(size, BLOCK)) // 2)


def lost_detail(one: NDArray[np.float32], other: NDArray[np.float32], scale: int) -> float:
    """How many times smaller the detail of the mean of three is than theirs, 1 to 3, by two of them.

    Detail is what lies beyond the frequencies of the LR grid, in the middle of the volumes.
    """
    block = tuple(map(middle_block, one.shape))
    spectra = []
    for volume in (one[block], other[block]):
        for axis, n in enumerate(volume.shape):  # tapered: its ends do not meet
            volume = volume * np.hanning(n + 2)[1:-1].astype(np.float32).reshape(np.roll((n, 1, 1), axis))
        spectra.append(np.fft.rfftn(volume))
    rows, columns, slices = one[block].shape
    low = [
        np.abs(f) < 0.5 / scale
        for f in (np.fft.fftfreq(rows), np.fft.fftfreq(columns), np.fft.rfftfreq(slices))
    ]
    high = ~(low[0][:, None, None] & low[1][:, None] & low[2])
    first, second = (spectrum[high] for spectrum in spectra)
    size = (np.vdot(first, first).real + np.vdot(second, second).real) / 2
    common = np.vdot(first, second).real / size if size else 1.0
    return float(3 / (1 + 2 * np.clip(common, 0, 1)))


def mean_with(
    slabs: Slabs, others: Sequence[NDArray[np.float32]], spread: NDArray[np.float32] | None = None
) -> Slabs:
    """Yield the mean of slabs along slices and the two other volumes, as slabs: (first HR slice, float32
    (rows, columns, slices)).

    spread: if given, filled with the standard deviation of the three at each voxel (rows, columns, slices),
    for each slab before it is yielded.
    """
    with contextlib.closing(slabs):
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
