"""The expected error of each SR voxel: as far as it can be known without the truth.

Slabs along three axes see different slices of the same place: if they differ, at most one is right (the
spread of an ensemble: Lakshminarayanan et al., NeurIPS 2017). The scan's noise comes through as well. The
squares add up, as shares of the intensity that becomes 1 in the network:

    expected error² = floor² + (noise · σ)² + (spread · s)²

σ: noise that the measured band brings, the scan's times the band's weight; s: local RMS of the spread. The
weights belong to a model and are part of its card, as `error_map.floor` and so on, with `error_map.interval`:
in tissue, |error| <= interval · expected error in nine of ten voxels. `benchmarks.error_map` measures and
checks them on different heads. Neither the local energy of the added detail nor the spread's size relative to
the detail of the whole volume improved the estimate, and flips would cost eight times as much. Errors are
relative to a scan without noise. In air nothing is promised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..models.card import ModelCard
from ..scan.voxels import Planes
from .measured_band import binomial

SHARE = 0.9  # of tissue voxels whose error is within the interval
NAMES = ("floor", "noise", "spread", "interval")
NEAR = 4  # passes of the binomial filter: a Gaussian of 1.4 voxels, the scale of the local spread


def key(name: str) -> str:
    """The name of a figure in the card's quality."""
    return f"error_map.{name}"


def calibration(card: ModelCard) -> dict[str, float]:
    """The card's weights and interval, by name. Raises RunError if it has none."""
    found = {name: card.quality[key(name)] for name in NAMES if key(name) in card.quality}
    if len(found) < len(NAMES):
        raise RunError(
            f"The errors of {card.name} are not measured, so none can be predicted: measure them with "
            "`python -m udean.recipes.error_map`, or leave out --error-map."
        )
    return found


def described(card: ModelCard) -> str:
    """The promise of an error map, as a sentence."""
    return (
        "Expected absolute error of each voxel, in the scan's units: of the tissue's voxels, "
        f"{SHARE:.0%} are within {calibration(card)['interval']:.2f} times it of a scan without noise"
    )


def expect(errors: NDArray[np.float32], noise: float, unit: float, card: ModelCard) -> None:
    """Turn the spread over slab axes into expected errors, in place, plane by plane.

    errors: float32 (rows, columns, slices); the standard deviation of three results in the network's range,
        then errors in the scan's units, of which `unit` becomes 1 in the network. noise: σ.
    Memory is that of some ten planes. Raises RunError if the card has no figures.
    """
    weights = calibration(card)
    known = np.float32(weights["floor"] ** 2 + (weights["noise"] * noise) ** 2)
    share = np.float32(weights["spread"] ** 2)
    squares = (np.square(errors[:, :, z]) for z in range(errors.shape[2]))
    for z, near in enumerate(_smooth(squares, NEAR)):  # it reads ahead of what is written
        errors[:, :, z] = np.float32(unit) * np.sqrt(known + share * near)


def _smooth(planes: Iterable[Planes], times: int) -> Iterator[Planes]:
    """A volume's planes through the binomial filter (1, 2, 1) / 4 along all axes, `times` times."""
    for _ in range(times):
        planes = _smooth_once(planes)
    return iter(planes)


def _smooth_once(planes: Iterable[Planes]) -> Iterator[Planes]:
    """One pass; beyond its ends the volume repeats its end planes."""
    inside = (binomial(binomial(plane, 0), 1) for plane in planes)
    before = here = next(inside)
    for after in inside:
        yield (before + 2 * here + after) / np.float32(4)
        before, here = here, after
    yield (before + 3 * here) / np.float32(4)
