"""The best linear estimate of what lies between slices, by the scan's own texture.

How alike two voxels of tissue are depends on their distance, much the same along all axes, and lines in plane
tell it. With the slice profile, the estimate with the least mean square error follows (universal kriging:
Matheron, Cahiers du Centre de morphologie mathématique 1, 1969). A network has learned other heads; this
knows nothing but the scan.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SLICES = 16  # that are examined at most
REACH = 3.0  # standard deviations of the taper to the end of the lines: few pairs are so far apart
LEAST = 1e-4  # of the variance: noise that a scan without any is taken to have, so that matrices are regular

Matrix = NDArray[np.float64]


def covariance(
    slices: NDArray[np.float32], tissue: NDArray[np.bool_], noise: float, size: int
) -> Matrix | None:
    """Covariance of tissue at distances of 0 to size - 1 voxels along lines in plane, (size,).

    slices: (rows, columns, slices); tissue: where they show any; noise: their standard deviation. None if
    there is no tissue, or no texture in it.
    """
    some = slice(None, None, -(-slices.shape[2] // SLICES))
    slices, tissue = slices[:, :, some], tissue[:, :, some]
    if not tissue.any():
        return None
    mean = slices[tissue].mean()
    total, pairs = np.zeros(size), np.zeros(size)
    for axis in (0, 1):
        inside = np.moveaxis(tissue, axis, 2)
        lines = np.where(inside, np.moveaxis(slices, axis, 2) - mean, np.float32(0))
        length = min(size, lines.shape[2])
        for sums, values in ((total, lines), (pairs, inside.astype(np.float32))):
            power = np.abs(np.fft.rfft(values, 2 * values.shape[2], axis=2)) ** 2
            sums[:length] += np.fft.irfft(power.sum((0, 1)))[:length]
    found = total / np.maximum(pairs, 1)
    found[0] -= noise**2
    reach = min(size, max(slices.shape[:2])) / REACH
    found *= np.exp(-((np.arange(size) / reach) ** 2) / 2)
    if found[0] <= LEAST * mean**2:
        return None
    # Each distance is estimated for itself; no object has a negative power at any frequency.
    power = np.fft.rfft(np.concatenate([found, found[-2:0:-1]])).real
    return np.fft.irfft(np.maximum(power, 0), 2 * size - 2)[:size]


def between(covariance: Matrix, seen: NDArray[np.floating], noise: float) -> NDArray[np.float32]:
    """The matrix (size, slices) from slices to voxels, which keeps what is constant or linear across slices.

    covariance: (size,) at least. seen: the slice profile's matrix (slices, size). noise: of the slices.
    """
    count, size = seen.shape
    away = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    alike = covariance[away] @ seen.T
    slices = seen @ alike
    slices[np.diag_indices(count)] += noise**2 + LEAST * covariance[0]
    drift = np.column_stack([np.ones(size), np.linspace(-1, 1, size)])
    kept = seen @ drift
    weights = np.linalg.solve(slices, np.column_stack([alike.T, kept]))
    simple, ours = weights[:, :-2].T, weights[:, -2:]
    return (simple + (drift - simple @ kept) @ np.linalg.solve(kept.T @ ours, ours.T)).astype(np.float32)
