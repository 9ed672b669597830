"""Volumes with a known truth: a textured head, an edge, a ramp, pairs of points, disks of little contrast.

All are (rows, columns, slices), float32, on the HR grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..scan.voxels import Volume

SLANT = 0.1  # shift of the edge, in rows, per slice and column: so it is sampled between voxels
BRIGHT = 1000.0  # of white matter, and of the block with the edge
# Standard deviation of the head's own point spread, HR voxels: to the embedded model it is as sharp as
# Colin27, an average of 27 scans of one head, in which the best factor for its detail is 1.05.
SPREAD = 0.6
CELL = 16  # HR voxels along each side of a pair's surroundings
POINT = 0.4  # standard deviation of a point, HR voxels
DISTANCES = tuple(np.arange(1.5, 5.01, 0.25).tolist())  # of two points, HR voxels
PHASES = 4  # sub-voxel positions at which each distance is tried
DIAMETERS = tuple(np.linspace(7.0, 1.5, 10).tolist())  # of the ACR phantom's disks, mm: here HR voxels
CONTRASTS = (0.014, 0.025, 0.036, 0.051)  # of its four slices
RADII = (0.28, 0.50, 0.72)  # of the three disks of a spoke, as shares of the phantom's
THICK = 5  # HR slices that are evaluated together: the ACR phantom's slices have 5 mm


@dataclass(frozen=True)
class Pair:
    """Two points: the middle between them, their distance and the axis along which they lie; HR voxels."""

    middle: tuple[float, float, float]
    distance: float
    axis: int


@dataclass(frozen=True)
class Disk:
    """One disk of a spoke: its mask (rows, columns) and its slices."""

    spoke: int
    inside: NDArray[np.bool_]
    slices: slice


def head_phantom(shape: tuple[int, ...], seed: int = 0) -> Volume:
    """Grey matter around white matter around fluid, 3 % of texture in each, and air."""
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)
    radius = np.sqrt(i**2 + (1.1 * j) ** 2 + k**2)
    volume = np.zeros(shape)
    for outer, level in ((0.85, 0.7 * BRIGHT), (0.7, BRIGHT), (0.15, 0.25 * BRIGHT)):
        share = np.clip((outer - radius) * min(shape) / 2 + 0.5, 0, 1)  # partial volume at the boundary
        volume += share * (level - volume)
    noise = _blurred(np.random.default_rng(seed).standard_normal(shape), 1.0)
    texture = (noise - noise.mean()) / noise.std()
    return np.maximum(_blurred(volume * (1 + 0.03 * texture), SPREAD), 0).astype(np.float32)


def edge(shape: tuple[int, ...]) -> tuple[Volume, Volume]:
    """A bright block with a slanted face across the rows, and each voxel's distance into it, in voxels."""
    i, j, k = np.meshgrid(*[np.arange(n) - n / 2 for n in shape], indexing="ij", sparse=True)
    depth = (i + shape[0] / 4 + SLANT * (j + k)) / np.sqrt(1 + 2 * SLANT**2)
    block = np.clip(depth + 0.5, 0, 1) * np.clip(shape[0] * 0.35 - i + 0.5, 0, 1)
    for across, size in ((j, shape[1]), (k, shape[2])):
        block = block * np.clip(0.4 * size - np.abs(across) + 0.5, 0, 1)
    return (BRIGHT * block).astype(np.float32), depth


def ramp(shape: tuple[int, ...]) -> Volume:
    """A smooth wave of one period along the rows, nothing finer: from 0.2 to 1 times BRIGHT."""
    wave = 0.6 - 0.4 * np.cos(2 * np.pi * np.arange(shape[0]) / shape[0])
    return np.broadcast_to(BRIGHT * wave[:, None, None], shape).astype(np.float32)


def pairs(shape: tuple[int, ...]) -> tuple[Volume, list[Pair]]:
    """Pairs of points on even grey, of all DISTANCES along each axis, as many as fit."""
    volume = np.full(shape, 0.4 * BRIGHT)
    cells = np.array(list(np.ndindex(*(n // CELL for n in shape)))) * CELL
    cells = np.random.default_rng(0).permutation(cells)  # keeps neighbours' ringing from favouring an axis
    wanted = [(d, axis, p) for p in range(PHASES) for d in DISTANCES for axis in range(3)]
    found = []
    for corner, (distance, axis, phase) in zip(cells, wanted, strict=False):
        middle = corner + CELL / 2 + (phase / PHASES, phase / PHASES, phase / PHASES)
        part = tuple(slice(n, n + CELL) for n in corner)
        for sign in (-0.5, 0.5):
            at = middle + sign * distance * np.eye(3)[axis]
            near = [
                np.exp(-0.5 * ((np.arange(p.start, p.stop) - c) / POINT) ** 2)
                for p, c in zip(part, at, strict=True)
            ]
            volume[part] += 0.5 * BRIGHT * np.einsum("i,j,k->ijk", *near)
        found.append(Pair(tuple(middle.tolist()), distance, axis))
    return volume.astype(np.float32), found


def low_contrast(shape: tuple[int, ...]) -> tuple[Volume, Volume, list[Disk]]:
    """A cylinder with low-contrast disks, after the ACR's large phantom: 10 spokes of 3 disks each, of
    decreasing size, in 4 stacks of slices of increasing contrast. Also the same without disks, and their
    positions.
    """
    i, j = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape[:2]], indexing="ij")
    reach = 0.45 * min(shape[:2])
    body = BRIGHT * np.clip(reach - np.hypot(i, j) + 0.5, 0, 1)
    plain = np.repeat(body[:, :, None], shape[2], 2)
    volume, found = plain.copy(), []
    depth = shape[2] // len(CONTRASTS)
    for stack, contrast in enumerate(CONTRASTS):
        first = stack * depth + (depth - THICK) // 2
        for spoke, diameter in enumerate(DIAMETERS):
            angle = 2 * np.pi * spoke / len(DIAMETERS)
            for share in RADII:
                apart = np.hypot(i - share * reach * np.cos(angle), j - share * reach * np.sin(angle))
                disk = np.clip(diameter / 2 - apart + 0.5, 0, 1)
                volume[:, :, stack * depth : (stack + 1) * depth] += (contrast * BRIGHT * disk)[:, :, None]
                number = stack * len(DIAMETERS) + spoke
                found.append(Disk(number, apart <= max(diameter / 2, 1), slice(first, first + THICK)))
    return volume.astype(np.float32), plain.astype(np.float32), found


def _blurred(volume: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """A volume, as a ring, smoothed by a Gaussian of this standard deviation, voxels."""
    axes = [np.fft.fftfreq(n) for n in volume.shape[:-1]] + [np.fft.rfftfreq(volume.shape[-1])]
    squares = sum(f**2 for f in np.meshgrid(*axes, indexing="ij", sparse=True))
    space = np.fft.rfftn(volume) * np.exp(-2 * (np.pi * sigma) ** 2 * squares)
    return np.fft.irfftn(space, volume.shape, (0, 1, 2))
