"""Volumes whose truth is known: a textured head, a slanted edge, a smooth ramp. (rows, columns, slices)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[Any]  # float32
SLANT = 0.1  # slices and columns over which the edge moves by rows: the edge is sampled between voxels
BRIGHT = 1000.0  # of white matter, and of what is cut by the edge


def head(shape: tuple[int, ...], seed: int = 0) -> Volume:
    """Grey matter around white matter around fluid, 3 % of texture in each, and air."""
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)
    radius = np.sqrt(i**2 + (1.1 * j) ** 2 + k**2)
    volume = np.zeros(shape)
    for outer, level in ((0.85, 0.7 * BRIGHT), (0.7, BRIGHT), (0.15, 0.25 * BRIGHT)):
        share = np.clip((outer - radius) * min(shape) / 2 + 0.5, 0, 1)  # partial volume at the boundary
        volume += share * (level - volume)
    texture = _smooth_noise(shape, 1.0, seed)
    return (volume * (1 + 0.03 * texture)).astype(np.float32)


def edge(shape: tuple[int, ...]) -> tuple[Volume, Volume]:
    """A bright block with a slanted face across the rows, and each voxel's distance into it, in voxels."""
    i, j, k = np.meshgrid(*[np.arange(n) - n / 2 for n in shape], indexing="ij", sparse=True)
    depth = (i + shape[0] / 4 + SLANT * (j + k)) / np.sqrt(1 + 2 * SLANT**2)
    block = np.clip(depth + 0.5, 0, 1) * np.clip(shape[0] * 0.35 - i + 0.5, 0, 1)
    for across, size in ((j, shape[1]), (k, shape[2])):
        block = block * np.clip(0.4 * size - np.abs(across) + 0.5, 0, 1)
    return (BRIGHT * block).astype(np.float32), depth


def ramp(shape: tuple[int, ...]) -> Volume:
    """A smooth wave of one period along the rows, nothing finer: from 0.2 to 1 of what is bright."""
    wave = 0.6 - 0.4 * np.cos(2 * np.pi * np.arange(shape[0]) / shape[0])
    return np.broadcast_to(BRIGHT * wave[:, None, None], shape).astype(np.float32)


def _smooth_noise(shape: tuple[int, ...], sigma: float, seed: int) -> NDArray[np.float64]:
    """Gaussian noise of correlation length sigma, mean 0 and standard deviation 1."""
    space = np.fft.rfftn(np.random.default_rng(seed).standard_normal(shape))
    axes = [np.fft.fftfreq(n) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    squares = sum(f**2 for f in np.meshgrid(*axes, indexing="ij", sparse=True))
    noise = np.fft.irfftn(space * np.exp(-2 * (np.pi * sigma) ** 2 * squares), shape, (0, 1, 2))
    return (noise - noise.mean()) / noise.std()
