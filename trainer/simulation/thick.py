"""Thick slices of an isotropic volume, as a 2-D acquisition would see it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import RunError
from ...runtime.scan.profile import ProfileShape, profile_matrix
from ...runtime.scan.regrid import Grid, along

FEWEST = 2  # slices


@dataclass(frozen=True)
class Thick:
    """How slices lie. step: distance of their centres; width: of their profile at half maximum; both in fine
    voxels.

    width None: as wide as the step; less leaves gaps, more overlaps. noise: Rician, as a share of the
    volume's 99.9th percentile.
    """

    step: float
    shape: ProfileShape = "gaussian"
    width: float | None = None
    noise: float = 0.0


@dataclass(frozen=True)
class Slices:
    """Thick slices as a user specifies them, in mm. gap: between slices; negative: they overlap."""

    thickness: float
    gap: float = 0.0
    profile: ProfileShape = "gaussian"
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.profile not in get_args(ProfileShape):
            raise RunError(
                f"The slice profile is one of {', '.join(get_args(ProfileShape))}, not '{self.profile}'."
            )
        if not (self.thickness > 0 and self.thickness + self.gap > 0 and 0 <= self.noise < 1):
            raise RunError("The slice thickness, and the spacing (thickness plus gap), must be positive.")

    def of(self, size: float) -> Thick:
        """In voxels of this size along the slice normal, mm. Raises RunError if slices are not thicker."""
        step = (self.thickness + self.gap) / size
        if step <= 1 or self.thickness <= size:
            raise RunError(f"its voxels of {size:.3g} mm are no thinner than the slices asked for.")
        return Thick(step, self.profile, self.thickness / size, self.noise)


def first_center(count: int, step: float) -> float:
    """Position of the first of `count` slices, such that the target grid over them begins with plane 0."""
    return (math.ceil(count * step - 1e-3) - count * step) / 2 + (step - 1) / 2


def lr_grid(shape: tuple[int, int, int], axis: int, step: float) -> Grid:
    """The grid of slices `step` voxels apart along an axis of a scan, as `slices_of` cuts them."""
    count = int(shape[axis] / step + 1e-6)
    sizes, steps, starts = list(shape), [1.0] * 3, [0.0] * 3
    sizes[axis], steps[axis], starts[axis] = count, step, first_center(count, step)
    return Grid(
        (sizes[0], sizes[1], sizes[2]), (steps[0], steps[1], steps[2]), (starts[0], starts[1], starts[2])
    )


def slices_of(
    volume: NDArray[np.float32], thick: Thick, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float64], int]:
    """Cut slices (rows, columns, slices) from a volume; also their centres along axis 2 and the planes
    covered.

    There are as many slices as fit in the volume; the target grid over them (`regrid.Grid`) has its first
    planes. Raises RunError for fewer than two.
    """
    count = int(volume.shape[2] / thick.step + 1e-6)
    if count < FEWEST:
        raise RunError(
            f"{volume.shape[2]} planes have room for {count} slices {thick.step:.3g} planes apart: too few."
        )
    size = int(np.ceil(count * thick.step - 1e-3))
    centers = first_center(count, thick.step) + np.arange(count, dtype=np.float64) * thick.step
    seen = profile_matrix(thick.shape, thick.width or thick.step, centers, volume.shape[2])
    slices = along(seen, volume, 2)
    if thick.noise:
        random = np.random.default_rng(seed)
        sd = np.float32(thick.noise * np.percentile(volume, 99.9))
        real, imaginary = sd * random.standard_normal((2, *slices.shape), np.float32)
        slices = np.hypot(slices + real, imaginary).astype(np.float32)
    return slices, centers, size
