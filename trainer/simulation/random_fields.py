"""Smooth random fields and rotations, with which synthetic heads are bent, textured and turned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def smooth_field(rng: np.random.Generator, shape: Sequence[int], width: float) -> NDArray[Any]:
    """A smooth Gaussian random field, float32, of unit variance, correlated over `width` voxels."""
    step = max(1, int(width / 2))
    coarse = [n // step + 8 for n in shape]
    field = ndimage.gaussian_filter(rng.standard_normal(coarse, np.float32), width / step)
    field /= field.std()
    if step == 1:
        return field[tuple(slice(n) for n in shape)]
    for axis, n in enumerate(shape):  # separable linear interpolation
        at = np.arange(n) / step + 2
        low = np.floor(at).astype(int)
        t = np.expand_dims((at - low).astype(np.float32), [a for a in range(3) if a != axis])
        field = np.take(field, low, axis) * (1 - t) + np.take(field, low + 1, axis) * t
    return field


def rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """The (3, 3) matrix of rotations by three angles, in radians, about the axes in their order."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix
