"""A volume, or a label map, on the grid that was asked for instead of the model's own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.card import ModelKind
from ..pipeline import through_plane
from ..scan import intensity
from ..scan.geometry import fine_affine
from ..scan.interpolation import band_weights
from ..scan.regrid import Grid, along, spline_weights
from ..scan.scan import Scan, volumes
from ..task import Task
from .volume import VolumeStages, fill_constant

NOISY = 0.01  # of the unit: noise at which a coarser grid takes half of its band as it is, half as means


def restore(stages: VolumeStages, task: Task, grid: Grid, kind: ModelKind) -> through_plane.Findings | None:
    """Fill the SR voxels of a task, on a grid in its (row, column, slice).

    kind: of the model that restores it. Returns what thick slices told about themselves.
    """
    content = task.look.content
    if content.low == content.high:
        fill_constant(task)
        return None
    unit, found = task.look.unit, None
    store = intensity.storage(task.sr.dtype, unit, task.slope, task.inter, content.low, content.high)
    if kind == "slab":
        fine = _interpolated(stages, task, grid)
    else:
        fine, found = _between_slices(stages, task, grid)
    with task.watch.time("blend"):
        task.sr[...] = store.restore(fine)
    return found


def _interpolated(stages: VolumeStages, task: Task, grid: Grid) -> NDArray[np.float32]:
    """By the slab model, then from its grid to the one asked for; in the network's range."""
    card, look = stages.card, task.look
    fine = np.empty([n * s for n, s in zip(task.lr.shape, card.scale, strict=True)], np.float32, "F")
    stages.restore(task.replace(sr=fine))
    to_fine = np.linalg.inv(fine_affine(np.eye(4), card.scale, card.grid)) @ grid.matrix
    for axis, (step, start) in enumerate(zip(np.diag(to_fine), to_fine[:3, 3], strict=False)):
        places = start + step * np.arange(grid.shape[axis])
        weights = spline_weights(fine.shape[axis], places, step)
        if step > 1:  # a mean over voxels, which costs measured detail as well as noise
            noise = look.noise.sigma / look.unit if look.noise else 0.0
            share = np.float32(1 / (1 + (noise / NOISY) ** 2))
            weights += share * (band_weights(fine.shape[axis], places, step) - weights)
        fine = along(weights, fine, axis)
    fine /= np.float32(look.unit)
    return fine


def _between_slices(
    stages: VolumeStages, task: Task, grid: Grid
) -> tuple[NDArray[np.float32], through_plane.Findings]:
    """By interpolation within the slices, and by the through-plane model between them; likewise."""
    stack = stack_of(task.volume.in_range(), grid)
    engine = stages.network.through_plane
    assert callable(engine)  # through-plane models are opened for the processor
    share = stages.holding.of_slices
    return stages.network.in_turn(
        lambda: through_plane.restore(stack, engine, task.watch, task.progress, share)
    )


def stack_of(lr: NDArray[np.float32], grid: Grid) -> through_plane.ThickSlices:
    """A scan in the network's range as thick slices on a grid, both in (row, column, slice)."""
    noise = through_plane.noise_of(lr)
    for axis in (0, 1):
        weights = grid.weights(axis, lr.shape[axis])
        noise *= float(np.sqrt((weights**2).sum(1).mean()))
        lr = along(weights, lr, axis)
    step, count = 1 / grid.step[2], lr.shape[2]
    centers = (np.arange(count) - grid.start[2]) * step
    return through_plane.ThickSlices(np.ascontiguousarray(lr), centers, step, grid.shape[2], noise)


def place_labels(scan: Scan, grid: Grid, sr: NDArray[Any]) -> None:
    """Fill the voxels of a label map, (i, j, k) or (i, j, k, t), on another grid by nearest neighbours."""
    for volume, fine in zip(volumes(scan.voxels()), volumes(sr), strict=True):
        labels = grid.labels(volume)
        fine[...] = scan.in_units(labels) if sr.dtype.kind == "f" else labels
