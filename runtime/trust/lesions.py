"""Lesions of known size and contrast are put into a volume, to see how much of their contrast is left.

Balls are added to the truth in homogeneous bright tissue (white matter in T1) or at boundaries of tissues,
such as the cortex, alternately bright and dark. The difference between the results with and without them is
the lesion as the model has kept it; its projection on the true lesion is the transfer: 1 if all of it is
kept, 0 if nothing is. It is the signal-known-exactly task of detectability studies (Barrett and Myers,
Foundations of Image Science, 2004, ch. 13) with a linear template.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..scan.voxels import Volume

RADII = (1.0, 1.5, 2.0, 3.0)  # HR voxels
CONTRAST = 0.3  # of the surrounding tissue
COUNT = 80
REACH = 6  # HR voxels around a lesion's centre in which it is measured
APART = 16  # HR voxels between centres, along at least one axis
BOX = 9  # HR voxels along each side of the cube that must be homogeneous
EVEN, BRIGHT = 0.08, 0.5  # largest spread over mean of such a cube, least mean over the 99th percentile
UNEVEN = 0.15, 0.5  # spread over mean of such a cube at boundaries
Where = Literal["inside", "boundary"]


@dataclass(frozen=True)
class Lesion:
    """radius: HR voxels. sign: 1 bright, -1 dark. place: the box of voxels around it."""

    radius: float
    sign: int
    place: tuple[slice, slice, slice]


def put_lesions(hr: Volume, where: Where = "inside", seed: int = 0) -> tuple[Volume, list[Lesion]]:
    """Lesions for a volume (HR grid), as a volume to be added, float64, and their positions.

    where: in homogeneous tissue, or at its boundaries. There may be none if there is no such place.
    """
    rng = np.random.default_rng(seed)
    hr = hr.astype(np.float64)
    mean = _box_mean(hr)
    spread = np.sqrt(np.maximum(_box_mean(hr * hr) - mean * mean, 0))
    level = mean if where == "inside" else hr
    fit = level > BRIGHT * np.percentile(hr, 99)
    least, most = (0, EVEN) if where == "inside" else UNEVEN
    fit &= (least * mean <= spread) & (spread < most * mean)
    edge = 2 * REACH
    inside = np.zeros(hr.shape, bool)
    inside[(slice(edge, -edge),) * 3] = True
    places = np.argwhere(fit & inside)
    distance = np.sqrt(sum(np.square(np.meshgrid(*[np.arange(-REACH, REACH + 1)] * 3, indexing="ij"))))
    added, found, centres = np.zeros(hr.shape), [], []
    for q in rng.permutation(places)[:4000]:
        if len(found) == COUNT:
            break
        if any(np.abs(q - other).max() < APART for other in centres):
            continue
        radius, sign = RADII[len(found) % len(RADII)], 1 - 2 * (len(found) // len(RADII) % 2)
        i, j, k = (slice(int(n) - REACH, int(n) + REACH + 1) for n in q)
        added[i, j, k] += np.clip(radius + 0.5 - distance, 0, 1) * sign * CONTRAST * level[tuple(q)]
        found.append(Lesion(radius, sign, (i, j, k)))
        centres.append(q)
    return added, found


def contrast_kept(
    added: Volume, lesions: list[Lesion], with_them: Volume, without: Volume
) -> dict[str, dict[str, float]]:
    """The share of contrast left, by radius ("1.5"): the median of "all", "bright" and "dark" lesions."""
    kept: dict[float, list[tuple[int, float]]] = {}
    for lesion in lesions:
        true = added[lesion.place]
        change = with_them[lesion.place].astype(np.float64) - without[lesion.place]
        kept.setdefault(lesion.radius, []).append(
            (lesion.sign, float((change * true).sum() / (true**2).sum()))
        )
    kinds: dict[str, Callable[[int], bool]] = {
        "all": lambda sign: True,
        "bright": lambda sign: sign > 0,
        "dark": lambda sign: sign < 0,
    }
    return {
        f"{radius:g}": {
            kind: float(np.median(shares))
            for kind, wanted in kinds.items()
            if (shares := [share for sign, share in found if wanted(sign)])
        }
        for radius, found in sorted(kept.items())
    }


def _box_mean(volume: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the cube of BOX voxels around each voxel; the volume is continued by reflection."""
    for axis in range(3):
        before = [(BOX // 2 + 1, BOX // 2) if a == axis else (0, 0) for a in range(3)]
        total = np.cumsum(np.pad(volume, before, mode="symmetric"), axis)
        count = volume.shape[axis]
        upper, lower = (np.take(total, range(first, first + count), axis) for first in (BOX, 0))
        volume = (upper - lower) / BOX
    return volume
