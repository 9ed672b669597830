"""A scan through the stages, volume by volume, each turned as the network sees it and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..pipeline.through_plane import Findings
from ..scan.intensity import IntensityError
from ..scan.kinds import check_voxels
from ..scan.model_choice import Choice
from ..scan.orientation import Orientation
from ..scan.scan import Scan, volumes
from ..system.trace import Stopwatch
from ..task import Look, Progress, Task
from . import to_spacing
from .volume import VolumeStages


def look(stages: VolumeStages, scan: Scan, axis: int) -> list[Look]:
    """Look through its volumes. axis: the one across the slices. Raises RunError for what is refused."""
    turn = Orientation.of(scan.affine, axis)
    turned = [turn.turned(volume) for volume in volumes(scan.voxels())]
    check_voxels(scan, turned[0])
    try:
        return [stages.look(volume, scan.slope, scan.inter) for volume in turned]
    except IntensityError as error:
        raise RunError(f"{scan.name}: {error}") from None


def restore(
    stages: VolumeStages,
    scan: Scan,
    choice: Choice,
    looks: Sequence[Look],
    sr: NDArray[Any],
    errors: NDArray[np.float32] | None,
    watch: Stopwatch,
    progress: Progress | None,
) -> list[Findings]:
    """Fill its SR voxels and expected errors, both as stored; what thick slices told about themselves.

    Raises RunError, with the scan's name, for intensities that float32 does not hold.
    """
    turn, card = Orientation.of(scan.affine, choice.axis), stages.card
    grid = choice.grid and choice.grid.turned(turn.axes)
    given, fine = volumes(scan.voxels()), volumes(sr)
    maps = [None] * len(given) if errors is None else volumes(errors)
    found = []
    try:
        for lr, volume, seen, expected in zip(given, fine, looks, maps, strict=True):
            task = Task(
                turn.turned(lr), turn.turned(volume), seen, watch, scan.slope, scan.inter, progress
            ).replace(best=choice.best, errors=None if expected is None else turn.turned(expected))
            if grid is not None:
                found.append(to_spacing.restore(stages, task, grid, choice.kind))
                continue
            stages.restore(task)
            for filled in (volume, expected) if card.grid == "fft" else ():
                if filled is not None:
                    with watch.time("blend"):
                        turn.settle(filled, turn.by_stored(card.scale))
    except IntensityError as error:
        raise RunError(f"{scan.name}: {error}") from None
    return [one for one in found if one is not None]
