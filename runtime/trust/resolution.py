"""How fine a method resolves: a slanted edge, and two points."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..scan.voxels import Volume
from .phantoms import DISTANCES, Pair

# The share of two points' brightness that is left between them when they are just resolved: the first maximum
# of a slit's diffraction lies on the other's first minimum (Rayleigh, 1879; Born and Wolf, section 7.6.3).
RAYLEIGH = 8 / np.pi**2
REACH = np.arange(-5, 5.01, 0.25)  # HR voxels from a pair's middle, along which it is sampled


def edge_spread(sr: Volume, depth: Volume) -> dict[str, float]:
    """Figures of a slanted edge (as in ISO 12233): the distance from 10 to 90 %, in HR voxels, overshoot and
    undershoot as shares of the step, and the frequency at which the MTF is one half, in cycles a voxel."""
    middle = tuple(slice(n // 3, n - n // 3) for n in sr.shape[1:])
    bins = np.arange(-10, 10, 0.25)
    near = depth[(slice(None), *middle)]
    place = np.digitize(near, bins)
    profile = np.array(
        [sr[(slice(None), *middle)][place == n].mean(dtype=np.float64) for n in range(1, len(bins))]
    )
    dark, bright = profile[:8].mean(), profile[-8:].mean()
    step = (profile - dark) / (bright - dark)
    rise = [float(np.interp(level, np.maximum.accumulate(step), bins[:-1])) for level in (0.1, 0.9)]
    line = np.diff(step) * np.hanning(len(step) - 1)
    response = np.abs(np.fft.rfft(line, 1024))
    half = int(np.argmax(response < response[0] / 2))
    return {
        "10 to 90 %, voxels": rise[1] - rise[0],
        "overshoot": float(step.max() - 1),
        "undershoot": float(-step.min()),
        "MTF 50 %, cycles a voxel": half / 1024 / 0.25,
    }


def two_points(sr: Volume, pairs: Sequence[Pair]) -> dict[str, float]:
    """The distance, in HR voxels, from which two points are resolved, by axis: the brightness between them
    falls below RAYLEIGH of the weaker one. The largest of DISTANCES if none are."""
    background = float(np.median(sr))
    found = {}
    for axis, name in enumerate(("rows", "columns", "slices")):
        left = []
        for distance in DISTANCES:
            dips = [_dip(sr - background, p) for p in pairs if (p.axis, p.distance) == (axis, distance)]
            if dips:
                left.append((distance, float(np.median(dips))))
        # From the largest distance inwards: between merged points, noise may cause a dip.
        for (near, above), (far, below) in reversed(list(itertools.pairwise(left))):
            if below < RAYLEIGH <= above:
                found[f"{name}, voxels"] = near + (far - near) * (above - RAYLEIGH) / (above - below)
                break
        else:
            found[f"{name}, voxels"] = max(DISTANCES)
    return found


def _dip(sr: Volume, pair: Pair) -> float:
    """The brightness in the middle of a pair, over that of the weaker point."""
    places = np.array(pair.middle) + REACH[:, None] * np.eye(3)[pair.axis]
    line = _interpolated(sr, places)
    centre = len(REACH) // 2
    weaker = min(line[:centre].max(), line[centre + 1 :].max())
    return float(line[centre] / weaker) if weaker > 0 else 1.0


def _interpolated(volume: Volume, places: NDArray[np.floating]) -> NDArray[np.float64]:
    """Trilinear interpolation at (places, 3)."""
    first = np.floor(places).astype(int)
    share = places - first
    total = np.zeros(len(places))
    for corner in np.ndindex(2, 2, 2):
        weight = np.where(corner, share, 1 - share).prod(1)
        total += weight * volume[tuple((first + corner).T)]
    return total
