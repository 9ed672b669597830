"""Whether slices make up one upright, evenly spaced stack: no gap, none twice, none shifted, none alone.

And whether that is all of the stack, or others continue it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError

WIDE = 2.1  # times their thickness, of a distance of slices: the gap is wider than they are
TOLERANCE = 0.05  # of a voxel, for slices out of line; positions are rounded
SAME_SPOT = 0.1  # mm, of slices of two volumes that lie at the same position
APART = 0.02  # relative, of distances of slices that are compared with others


def even_step(name: str, places: NDArray[np.float64], size: NDArray[np.float64]) -> float:
    """Millimetres from one slice to the next.

    name: of the stack, for errors. places: (slices, 3), positions along row, column and normal, sorted
    along the normal. size: of voxels in plane, mm, (2,) or longer. Raises RunError for what is not a stack.
    """
    steps = np.diff(places[:, 2])
    usual = float(np.median(steps))
    if (steps < TOLERANCE * usual).any() or usual <= 0:
        raise RunError(f"{name} has two slices at the same position: give every slice once.")
    for number, step in enumerate(steps):
        if abs(step - usual) > TOLERANCE * usual:
            raise RunError(
                f"{name} is not evenly spaced: {step:.3f} mm between slices {number + 1} and {number + 2} of "
                f"{len(places)}, {usual:.3f} mm elsewhere; a slice may be missing."
            )
    if (np.ptp(places[:, :2], axis=0) > TOLERANCE * size[:2]).any():
        raise RunError(f"{name} has slices that are shifted against each other: it is not one upright stack.")
    return float(steps.mean())


def check_gap(name: str, step: float, thickness: float) -> None:
    """Raise RunError if slices lie so far apart that each stands alone.

    step, thickness: mm; a thickness of 0 is not known.
    """
    if thickness > 0 and step > WIDE * thickness:
        raise RunError(
            f"{name} has slices of {thickness:g} mm that lie {step:.4g} mm apart: each stands alone, and "
            "what lies between them cannot be restored."
        )


def check_alone(name: str, shape: tuple[int, ...], factors: tuple[int, int, int]) -> None:
    """Raise RunError if a scan is a single slice and would be restored across it, from nothing.

    shape: (i, j, k), and volumes in time. factors: HR voxels per LR voxel along them.
    """
    if any(voxels == 1 and factor > 1 for voxels, factor in zip(shape, factors, strict=False)):
        raise RunError(f"{name} is a single slice: there is nothing to restore across it, so it is left.")


def goes_on(spots: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Whether slices of another stack without gaps, or one slice, lie where this has a gap or would go on.

    spots, others: (slices, 3), positions in one space, mm, sorted along the normal that both have.
    """
    if len(spots) < 2:
        return False
    step = np.median(np.diff(spots, axis=0), axis=0)
    if not np.allclose(np.diff(others, axis=0), step, rtol=APART, atol=SAME_SPOT):
        return False
    around = [*spots[:-1] + step, spots[0] - step, spots[-1] + step]
    new = [spot for spot in around if np.linalg.norm(spots - spot, axis=1).min() > SAME_SPOT]
    return any(np.linalg.norm(others - spot, axis=1).min() < SAME_SPOT for spot in new)
