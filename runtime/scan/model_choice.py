"""The choice of model and grid for a scan, by its voxel sizes and the requested spacing.

Scans whose slices are about as thick as their voxels are wide go through a slab model (2 x 2 x 2), thick
slices through the through-plane model if a spacing is requested. Warnings name what is outside the models'
range.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RunError
from ..models.card import ModelCard, ModelKind
from .regrid import SAME, SLACK, Asked, Grid, Spacing

UNEVEN = 1.5  # how much thicker than wide voxels may be for a slab model
FINEST, COARSEST = 0.3, 2.5  # mm in plane, of the heads that the models were trained and measured on
LARGEST = 8.0  # factor along an axis
FACTORS = (1.5, 7.5)  # between slices and target planes, of the through-plane model's training


@dataclass(frozen=True)
class Choice:
    """How a scan is restored.

    kind: of the model. axis: the one across the slices. grid: the target; None: the slab model's own.
    asked: what was asked for, or chosen, mm; None with the slab model's own grid. warnings: sentences that
    say what is outside the model's range, or not done. best: the mean over three slab axes.
    """

    kind: ModelKind
    axis: int
    grid: Grid | None
    asked: Spacing | None
    warnings: tuple[str, ...]
    best: bool = False

    def along_each_axis(self, zooms: Sequence[float], error_map: bool = False) -> Choice:
        """The same with the mean over three slab axes, or a warning that says why not; error_map: whether
        that costs it a map of expected errors too."""
        why = "thick slices lie along one axis" if self.kind != "slab" else why_one_axis(zooms)
        if why is None:
            return dataclasses.replace(self, best=True)
        unmapped = ", so it gets no map of expected errors" if error_map else ""
        said = f"it is restored along one slab axis, not three{unmapped}: {why}"
        return dataclasses.replace(self, warnings=(*self.warnings, said))


def why_one_axis(zooms: Sequence[float]) -> str | None:
    """Why voxels of these sizes are not restored with slabs along each axis; None if they can be."""
    if max(zooms) <= UNEVEN * (1 + SLACK) * min(zooms):
        return None
    size = " x ".join(f"{zoom:.3g}" for zoom in zooms) + " mm"
    return f"voxels of {size} are longer along one than {UNEVEN} times another"


def choose(
    name: str,
    shape: Sequence[int],
    zooms: Sequence[float],
    axes: Sequence[int],
    card: ModelCard,
    asked: Asked | None,
) -> Choice:
    """The model and the grid for a scan (i, j, k) of these voxel sizes, mm.

    axes: those that are its (row, column, slice), see `orientation`.
    card: of the open model; the embedded through-plane model is available too. Nothing asked for means the
    slab model's own grid, or for a through-plane model the finest isotropic one. Raises RunError if what is
    asked for cannot be done.
    """
    axis = axes[2]
    if zooms[axis] < max(zooms) * (1 - SLACK) and (asked is not None or card.kind == "through-plane"):
        axis = next(n for n in axes if zooms[n] >= max(zooms) * (1 - SLACK))
    wide = max(zoom for n, zoom in enumerate(zooms) if n != axis)
    thick = zooms[axis] / wide
    size = " x ".join(f"{zoom:.3g}" for zoom in zooms) + " mm"
    warnings = []
    if not FINEST * (1 - SLACK) <= wide <= COARSEST * (1 + SLACK):
        warnings.append(
            f"its voxels of {size} are outside the {FINEST} to {COARSEST} mm that models were made for"
        )
    if asked is None and card.kind == "through-plane":
        finest = max(min(zooms), max(zooms) / LARGEST)
        asked = Asked((finest, finest, finest))
    if asked is None:
        if thick > UNEVEN:
            warnings.append(
                f"its slices are {thick:.2g} times as thick as its voxels are wide ({size}), which this "
                "model has not learned: --to 1mm, or --to iso, restores thick slices"
            )
        return Choice("slab", axis, None, None, tuple(warnings))

    spacing = asked.spacing(zooms)
    factors = [zoom / target for zoom, target in zip(zooms, spacing, strict=True)]
    wanted = " x ".join(f"{target:.3g}" for target in spacing) + " mm"
    if max(factors) < 1 + SLACK:
        raise RunError(
            f"{name} has voxels of {size} already, so {wanted} leaves nothing to restore: ask for less."
        )
    if max(factors) > LARGEST * (1 + SLACK):
        raise RunError(
            f"{name} has voxels of {size}, and {wanted} would divide them by {max(factors):.3g}, which no "
            f"model does well: {LARGEST:g} is the most, so ask for {max(zooms) / LARGEST:.3g}mm or more."
        )
    grid = Grid.over(shape, zooms, spacing)
    if card.kind == "slab" and thick <= UNEVEN:
        scale = list(card.scale[:2])
        scale.insert(axis, card.scale[2])
        if all(abs(f - s) < SAME * s for f, s in zip(factors, scale, strict=True)):
            return Choice("slab", axis, None, spacing, tuple(warnings))
        if any(f > s * 1.25 for f, s in zip(factors, scale, strict=True)):
            warnings.append(f"{wanted} is finer than the model restores; the rest is interpolation")
        return Choice("slab", axis, grid, spacing, tuple(warnings))
    if not FACTORS[0] <= factors[axis] <= FACTORS[1] * (1 + SLACK):
        warnings.append(
            f"its slices are divided by {factors[axis]:.3g}, and the through-plane model was made for "
            f"{FACTORS[0]} to {FACTORS[1]}"
        )
    if interpolated := ["ijk"[n] for n in range(3) if n != axis and factors[n] > 1.05]:
        warnings.append(
            f"along {' and '.join(interpolated)} it is interpolated; only across the slices it is restored"
        )
    return Choice("through-plane", axis, grid, spacing, tuple(warnings))
