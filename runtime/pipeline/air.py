"""Finds where a scan shows only air, so that the network can skip it.

Air in a magnitude image is not zero but noise (Rician; Gudbjartsson and Patz, MRM 34, 1995), and no two of
its windows are alike. Its level is estimated from the scan itself: the lowest peak in the histogram of local
means. In each window the network then sees one box around everything that rises above that level.

The rule errs on the side of anatomy. If the lowest peak is not noise (an abdomen that fills the field of
view, a dark but smooth tissue), no air is found and every voxel is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tiling import Axis, Tiling

SIGMAS = 6.0  # how far above the air's local means tissue begins: one false voxel in 10^9
SPOT = 9.0  # the same for single voxels, whose Rayleigh tail is longer
MARGIN = 8  # voxels around everything above the level: the skin's partial volume, and room for the seam
STEP = 8  # spans begin and end at multiples of it, so that a scan has few window shapes
SHARE = 0.05  # of the volume: with less air, skipping it is not worth the effort
ENOUGH = 1000  # local means of air that are needed to estimate its spread
FEW = 16  # bins from the lowest local mean to the peak, of which its deviation is then a few
BRIGHT = 0.15  # of the 99.9th percentile: a higher peak is that of tissue
# Standard deviation over mean of single voxels: 0.52 for Rayleigh noise of one channel, 0.25 for the sum of
# squares of four; tissue of a signal-to-noise ratio of 3 has 0.33.
NOISY = 0.35

Span = tuple[slice, slice]  # rows, columns


@dataclass(frozen=True)
class Air:
    """Thresholds. mean: for a mean over 3×3 voxels of a slab; voxel: for a single voxel."""

    mean: float
    voxel: float


def find_air(volume: NDArray[Any], slices: Axis) -> Air | None:
    """The level of the air in an LR volume (rows, columns, slices), stored units; None if there is none.

    Zeroed background does not count: it is already skipped, see `content`.
    """
    if min(volume.shape[:2]) < 3:
        return None
    means, voxels = [], []
    every = max(1, len(slices.starts) // 64)  # 64 slabs are as good as all
    for k in range(0, len(slices.starts), every):
        slab = _slab(volume, slices, k)
        means.append(_local_means(slab)[::2, ::2].ravel())
        voxels.append(slab[0, 1:-1:2, 1:-1:2].ravel())
    local, single = np.concatenate(means), np.concatenate(voxels)
    noisy = local > local.min()  # zeroed voxels say nothing about the noise beside them
    local, single = local[noisy], single[noisy]
    if not local.size:
        return None
    lowest, bright = float(local.min()), float(np.percentile(local, 99.9))
    if not bright > lowest:
        return None
    counts, edges = np.histogram(local, 512, (lowest, bright))
    low = counts[: max(2, int(BRIGHT * len(counts)))]
    peak = int(low.argmax())
    mode = float(edges[peak] + edges[peak + 1]) / 2
    if peak < FEW:  # the air of a scan with little noise fills a few bins: its peak lies somewhere in them
        finer, edges = np.histogram(local, 3 * FEW, (lowest, float(edges[2 * peak + 2])))
        at = int(finer.argmax())
        mode = float(edges[at] + edges[at + 1]) / 2
    # The peak's lower half is air only; its upper half may run into tissue.
    below = local[local <= mode] - mode
    spread = float(np.sqrt(np.mean(below.astype(np.float64) ** 2)))
    inside = np.abs(local - mode) <= 3 * spread
    if counts.max() > low[peak] or inside.sum() < max(ENOUGH, SHARE * inside.size):
        return None
    air = single[inside]
    mean, deviation = float(air.mean(dtype=np.float64)), float(air.std(dtype=np.float64))
    if deviation < NOISY * (mean - min(lowest, 0.0)):
        return None
    return Air(mode + SIGMAS * spread, mean + SPOT * deviation)


def occupied(volume: NDArray[Any], tiling: Tiling, air: Air) -> list[Span | None]:
    """For each window the rows and columns around everything above the air; None if there is nothing."""
    spans: list[Span | None] = []
    for k in range(len(tiling.slices.starts)):
        slab = _slab(volume, tiling.slices, k)
        shown = np.asarray((slab > air.voxel).any(0))
        shown[1:-1, 1:-1] |= _local_means(slab) > air.mean
        rows, columns = tiling.rows, tiling.columns
        shown = np.pad(shown, (rows.margins, columns.margins), constant_values=True)
        for row in rows.starts:
            for column in columns.starts:
                top, left = row - rows.starts[0], column - columns.starts[0]
                spans.append(_around(shown[top : top + rows.window, left : left + columns.window]))
    return spans


def joined(spans: list[Span | None]) -> Span | None:
    """The smallest rows and columns that contain all of these."""
    found = [span for span in spans if span]
    if any(span == (slice(None), slice(None)) for span in found):
        return slice(None), slice(None)
    if not found:
        return None
    rows, columns = (
        slice(min(span[n].start for span in found), max(span[n].stop for span in found)) for n in range(2)
    )
    return rows, columns


def _slab(volume: NDArray[Any], slices: Axis, k: int) -> NDArray[np.float32]:
    """(slices, rows, columns), float32."""
    return np.moveaxis(volume[:, :, slices.source(k)], 2, 0).astype(np.float32)


def _local_means(slab: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means over all slices and 3×3 voxels in plane: (rows - 2, columns - 2)."""
    plane = slab.mean(0)
    plane = plane[:-2] + plane[1:-1] + plane[2:]
    return (plane[:, :-2] + plane[:, 1:-1] + plane[:, 2:]) / np.float32(9)


def _around(shown: NDArray[np.bool_]) -> Span | None:
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    return (_span(rows, shown.shape[0]), _span(columns, shown.shape[1])) if rows.size else None


def _span(found: NDArray[np.intp], size: int) -> slice:
    low, high = int(found[0]) - MARGIN, int(found[-1]) + 1 + MARGIN
    return slice(max(0, low // STEP * STEP), min(size, -(-high // STEP) * STEP))
