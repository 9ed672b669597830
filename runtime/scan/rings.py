"""Whether a scan's ends meet: along which axes its k-space was truncated as a ring.

A discrete Fourier transform sees the field of view as a ring, so if its two ends differ, as at a cut-off
neck, truncation leaves ringing that alternates from voxel to voxel, of a known size. A scan that was cropped
since, or whose slices were selected one by one, has none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NEAR = 6  # voxels at each end in which ringing is looked for
LEAST = 4 * NEAR  # least number of voxels along an axis
LINES = 1 << 14  # examined at most
ABOVE_NOISE = 4  # times its variance, that the ends must differ by
FINER = 4  # how much finer the step is drawn that the expected ringing is made of


def rings(volume: NDArray[Any]) -> tuple[bool, bool, bool]:
    """For each axis of an LR volume, whether its end joins its beginning; read at its ends only."""
    first, second, third = (_is_ring(volume, axis) for axis in range(3))
    return first, second, third


def _is_ring(volume: NDArray[Any], axis: int) -> bool:
    size = volume.shape[axis]
    if size < LEAST:
        return False
    ends = [volume.take(range(*part), axis) for part in ((0, NEAR), (size - NEAR, size))]
    start, end = (np.moveaxis(e, axis, 0).reshape(NEAR, -1) for e in ends)
    step = max(1, start.shape[1] // LINES)
    start, end = (e[:, ::step].astype(np.float64) for e in (start, end))
    jump = start[:2].mean(0) - end[-2:].mean(0)
    expected = _ringing(size)
    found = np.concatenate((_curvature(start), _curvature(end)))
    # The least-squares factor of the expected ringing: 1 if the ends meet, 0 if they do not.
    power = (jump**2).sum() * (expected**2).sum()
    if power == 0:
        return True
    # Ends that differ by their noise alone do not say whether they meet; then it makes no difference either.
    apart = found - np.outer(expected, jump)  # of second differences, six times as noisy as voxels
    noise = (apart**2).mean() / 6
    return bool((jump**2).mean() > ABOVE_NOISE * noise and (expected @ found @ jump) / power > 0.5)


def _ringing(size: int) -> NDArray[np.float64]:
    """Curvature at both ends of a ramp that jumps by 1 where its ends meet, with k-space truncated."""
    fine = size * FINER
    ramp = 0.5 - (np.arange(fine) + FINER / 2) / fine
    truncated = np.fft.irfft(np.fft.rfft(ramp)[: size // 2 + 1], size) / FINER
    return np.concatenate((_curvature(truncated[:NEAR]), _curvature(truncated[-NEAR:])))


def _curvature(lines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Second differences along the first axis, in which a voxel's alternation is largest."""
    return lines[:-2] - 2 * lines[1:-1] + lines[2:]
