"""The LR scan of a known volume, and plain interpolation of it. NumPy only.

Volumes are (rows, columns, slices); factors are HR voxels per LR voxel along each.
"""

from __future__ import annotations

import numpy as np

from ..models.card import GridKind
from ..scan.geometry import Factors
from ..scan.interpolation import acquired_again, cubic_weights
from ..scan.voxels import Volume


def acquire(hr: Volume, factors: Factors, grid: GridKind, noise: float = 0.0, seed: int = 0) -> Volume:
    """The magnitude LR volume of truncated k-space, float32. noise: standard deviation of a real channel, in
    the volume's units."""
    image = acquired_again(hr, factors, grid)
    real, imaginary = noise * np.random.default_rng(seed).standard_normal((2, *image.shape))
    return np.abs(image + real + 1j * imaginary).astype(np.float32)


def sinc(lr: Volume, factors: Factors, grid: GridKind) -> Volume:
    """Zero-filled interpolation onto the HR grid, float32."""
    for axis, factor in enumerate(factors):
        if factor == 1:
            continue
        size = lr.shape[axis]
        space = np.moveaxis(np.fft.rfft(lr, axis=axis), axis, -1)
        if size % 2 == 0:  # this coefficient stands for both signs of the Nyquist frequency
            space[..., -1] /= 2
        if grid == "center":
            space = space * np.exp(-1j * np.pi * np.arange(space.shape[-1]) * (factor - 1) / (size * factor))
        lr = np.moveaxis(np.fft.irfft(space, size * factor, axis=-1) * factor, -1, axis)
    return lr.astype(np.float32)


def tricubic(lr: Volume, factors: Factors, grid: GridKind) -> Volume:
    """Keys' cubic interpolation onto the HR grid, float32."""
    for axis, factor in enumerate(factors):
        weights = cubic_weights(lr.shape[axis], factor, grid)
        lr = np.moveaxis(np.tensordot(weights, lr, (1, axis)), 0, axis)
    return lr.astype(np.float32)
