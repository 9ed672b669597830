"""The grid that a user asks for, and cubic B-spline interpolation onto it.

A target grid fills the scan's field of view, from the outer edge of the first voxel to that of the last along
every axis, with voxels of exactly the asked size. If they do not divide it, one more is taken and the
overhang is the same at both ends. The header's position of a slice is its centre, however thick it is, so
along the slices the first voxel lies (T - t)/2 before the first slice's centre if t divides T.

Everything along an axis is a small matrix (target voxels, scan's voxels), so NumPy is enough.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..models.card import GridKind
from .geometry import Factors, fine_affine

SLACK = 1e-3  # of a voxel: what a field of view may lose, or be thought of as nothing
SAME = 1e-5  # of a voxel size: headers store rounded float32, and 512 voxels add up what it is off
UNITS = {"mm": 1.0, "um": 1e-3, "µm": 1e-3, "cm": 10.0}

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Asked:
    """The spacing that a user asks for. sizes: mm along (i, j, k), None for the scan's smallest ("iso")."""

    sizes: Spacing | None

    @classmethod
    def parse(cls, text: object) -> Asked:
        """From "1mm", "1x1x2mm", "iso", a number or three, in mm. Raises RunError for anything else."""
        if isinstance(text, Asked):
            return text
        if isinstance(text, str):
            if text.strip().lower() == "iso":
                return cls(None)
            found = re.fullmatch(r"\s*([\d.]+(?:\s*[x×]\s*[\d.]+){0,2})\s*(mm|um|µm|cm)?\s*", text, re.I)
            parts: list[Any] = re.split(r"[x×]", found[1], flags=re.I) if found else []
            unit = UNITS[(found[2] or "mm").lower()] if found else 1.0
        else:
            parts, unit = list[Any](text) if isinstance(text, Sequence) else [text], 1.0
        values: list[float] = []
        with contextlib.suppress(TypeError, ValueError):
            values = [float(part) * unit for part in parts]
        if len(values) == 1:
            values *= 3
        if len(values) != 3 or not all(math.isfinite(v) and v > 0 for v in values):
            raise RunError(f"The spacing '{text}' is not of the form 1mm, 1x1x2mm or iso.")
        return cls((values[0], values[1], values[2]))

    def spacing(self, zooms: Sequence[float]) -> Spacing:
        """Millimetres along (i, j, k) for a scan with these voxel sizes."""
        finest = round(min(zooms), 6)  # of the header's float32
        return self.sizes or (finest, finest, finest)

    def __str__(self) -> str:
        if self.sizes is None:
            return "iso"
        return "x".join(f"{size:g}" for size in self.sizes) + "mm"


@dataclass(frozen=True)
class Grid:
    """A grid over a scan's field of view, in the scan's voxel axes.

    shape: voxels (i, j, k). step: size of a voxel in the scan's voxels. start: position of its first voxel's
    centre, in the scan's voxels.
    """

    shape: tuple[int, int, int]
    step: Spacing
    start: Spacing

    @classmethod
    def over(cls, shape: Sequence[int], zooms: Sequence[float], spacing: Spacing) -> Grid:
        """The grid of this spacing (mm) over a scan of this shape and these voxel sizes (mm)."""
        sizes, steps, starts = [], [], []
        for count, zoom, asked in zip(shape, zooms, spacing, strict=True):
            step = asked / zoom
            if abs(step - 1) < SAME:
                step = 1.0
            size = max(1, math.ceil(count / step - SLACK))
            sizes.append(size)
            steps.append(step)
            starts.append((count - size * step) / 2 + step / 2 - 0.5)
        return cls(
            (sizes[0], sizes[1], sizes[2]), (steps[0], steps[1], steps[2]), (starts[0], starts[1], starts[2])
        )

    @classmethod
    def of(cls, shape: Sequence[int], factors: Factors, grid: GridKind) -> Grid:
        """The grid of a slab model's own factors over a scan of this shape, both by (i, j, k)."""
        matrix = fine_affine(np.eye(4), factors, grid)
        (i, j, k), (x, y, z), (a, b, c) = (
            [n * f for n, f in zip(shape, factors, strict=True)],
            map(float, np.diag(matrix)[:3]),
            map(float, matrix[:3, 3]),
        )
        return cls((i, j, k), (x, y, z), (a, b, c))

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Voxel coordinates of this grid to the scan's, (4, 4)."""
        matrix = np.diag([*self.step, 1.0])
        matrix[:3, 3] = self.start
        return matrix

    def affine(self, affine: NDArray[np.floating]) -> NDArray[np.float64]:
        """The grid's (4, 4) affine that belongs to the scan's."""
        return (np.asarray(affine) @ self.matrix).astype(np.float64)

    def places(self, axis: int) -> NDArray[np.float64]:
        """Positions of its voxels' centres along an axis, in the scan's voxels."""
        return self.start[axis] + self.step[axis] * np.arange(self.shape[axis], dtype=np.float64)

    def nearest(self, axis: int, place: float) -> int:
        """The index along an axis of the voxel nearest to a position given in the scan's voxels."""
        return min(max(round((place - self.start[axis]) / self.step[axis]), 0), self.shape[axis] - 1)

    def turned(self, axes: Sequence[int]) -> Grid:
        """A grid that `over` has made, in a scan's (row, column, slice), which are these stored axes.

        It is the same from either end, so it does not matter which of them are reversed.
        """
        shape, step, start = ([values[n] for n in axes] for values in (self.shape, self.step, self.start))
        (i, j, k), (x, y, z), (a, b, c) = map(int, shape), map(float, step), map(float, start)
        return Grid((i, j, k), (x, y, z), (a, b, c))

    def labels(self, volume: NDArray[Any]) -> NDArray[Any]:
        """A volume (i, j, k) of the scan's on this grid by nearest neighbours; halfway, the next one."""
        index = [
            np.clip(np.floor(self.places(axis) + 0.5 + SLACK), 0, size - 1).astype(np.intp)
            for axis, size in enumerate(volume.shape)
        ]
        return volume[np.ix_(*index)]

    def weights(self, axis: int, size: int) -> NDArray[np.float32]:
        """The interpolation along an axis of the scan's `size` voxels, (voxels, size)."""
        return spline_weights(size, self.places(axis), self.step[axis])


def spline_weights(size: int, places: NDArray[np.float64], step: float = 1.0) -> NDArray[np.float32]:
    """Cubic B-spline interpolation of `size` samples at places (n,) in samples, as a matrix (n, size).

    Unser, IEEE Signal Processing Magazine 16(6), 1999. Beyond the ends the samples are continued by their
    mirror image for the prefilter; a place beyond the ends gets the end's value. step: size of a target voxel
    in samples: a larger one than a sample is a mean over what it has more (its width is the root of step² -
    1), so that voxels made coarser do not alias.
    """
    extra = math.sqrt(max(step * step - 1, 0.0))
    offsets = (np.arange(9) - 4) / 9 * extra if extra > SLACK else np.zeros(1)
    places = np.clip((places[:, None] + offsets).ravel(), 0, size - 1)
    if size == 1:
        return np.ones((len(places) // len(offsets), 1), np.float32)

    def mirrored(index: NDArray[np.intp]) -> NDArray[np.intp]:
        index = np.abs(index) % (2 * size - 2)
        return np.minimum(index, 2 * size - 2 - index)

    samples, rows = np.arange(size), np.arange(len(places))
    prefilter = np.diag(np.full(size, 4 / 6))
    for side in (-1, 1):
        np.add.at(prefilter, (samples, mirrored(samples + side)), 1 / 6)
    base = np.floor(places).astype(int)
    basis = np.zeros((len(places), size))
    for tap in range(-1, 3):
        t = np.abs(places - base - tap)
        value = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.maximum(2 - t, 0) ** 3 / 6)
        np.add.at(basis, (rows, mirrored(base + tap)), value)
    basis = basis.reshape(-1, len(offsets), size).mean(1)
    return np.linalg.solve(prefilter.T, basis.T).T.astype(np.float32)


def along(weights: NDArray[np.float32], volume: NDArray[Any], axis: int) -> NDArray[np.float32]:
    """A matrix (n, size) applied along one axis of a volume; float32."""
    if weights.shape[0] == weights.shape[1] and np.array_equal(
        weights, np.eye(len(weights), dtype=np.float32)
    ):
        return np.asarray(volume, np.float32)
    moved = np.tensordot(weights, np.asarray(volume, np.float32), (1, axis))
    return np.moveaxis(moved, 0, axis)
