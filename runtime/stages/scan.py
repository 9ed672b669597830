"""A scan through the stages, volume by volume, each turned as the network sees it and back."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cuda import CudaEngine
from ..errors import RunError
from ..models.card import ModelCard
from ..pipeline.engine import Engine
from ..pipeline.through_plane import Findings
from ..pipeline.tiling import Tiling
from ..scan.geometry import Factors
from ..scan.intensity import IntensityError
from ..scan.kinds import check_layout, check_voxels, doubt_of_sign, with_labels
from ..scan.model_choice import Choice, choose
from ..scan.nifti import Header
from ..scan.orientation import Orientation
from ..scan.regrid import Asked, Grid
from ..scan.scan import Scan, volumes
from ..system.trace import Stopwatch
from ..task import Look, Output, Progress, Task, stored_dtype
from . import to_spacing
from .volume import VolumeStages

log = logging.getLogger("udean")


@dataclass(frozen=True)
class ScanStages:
    """What is decided about a scan before it is restored, and its way through the stages.

    asked: the spacing wanted, if any. strict: refuse what is otherwise warned about. Everywhere, axis is that
    across the slices, by default the coarsest.
    """

    volumes: VolumeStages
    asked: Asked | None
    strict: bool

    @property
    def card(self) -> ModelCard:
        return self.volumes.card

    def prepared(self, scan: Scan) -> Scan:
        """The scan, read and looked at for labels if these are not refused."""
        wanted = self.volumes.options.labels == "nearest" and scan.labels is None
        return with_labels(scan) if wanted else scan

    def layout(self, scan: Scan, axis: int | None = None) -> tuple[Orientation, Factors, Tiling]:
        """How a scan will be resolved: turned how, HR voxels per LR voxel along (i, j, k), windows."""
        turn = Orientation.of(scan.affine, axis)
        factors = turn.by_stored(self.card.scale)
        check_layout(scan, factors, self.volumes.options.labels == "nearest")
        rows, columns, slices = (scan.shape[n] for n in turn.axes)
        return turn, factors, self.volumes.tiling((rows, columns, slices))

    def choice(self, scan: Scan, axis: int | None = None) -> Choice:
        """The model and the grid for a scan, with warnings if it is outside the model's range."""
        turn, _, _ = self.layout(scan, axis)
        choice = choose(scan.name, scan.shape, scan.zooms, turn.axes, self.card, self.asked)
        if scan.labels:  # nothing is restored, so nothing is said against it
            return dataclasses.replace(choice, warnings=())
        options = self.volumes.options
        return choice.along_each_axis(scan.zooms, options.error_map) if options.best else choice

    def model(self, scan: Scan, axis: int | None = None) -> Engine | CudaEngine:
        """The engine that restores a scan: the embedded through-plane model's for thick slices."""
        network = self.volumes.network
        return network.engine if self.choice(scan, axis).kind == self.card.kind else network.through_plane

    def header(self, scan: Scan, dtype: Output = "input", axis: int | None = None) -> Header:
        """The header that the SR scan will have. Raises RunError for what `strict` refuses."""
        choice, stored = self.choice(scan, axis), stored_dtype(scan.dtype, dtype)
        if self.strict and choice.warnings:
            raise RunError(f"{scan.name} is refused by --strict: {'; '.join(choice.warnings)}.")
        if choice.grid is not None:
            return scan.header_on(choice.grid, stored)
        return scan.fine_header(self.layout(scan, axis)[1], self.card.grid, stored)

    def look(self, scan: Scan, axis: int | None = None) -> list[Look]:
        """Look through the volumes of a scan, none of a label map's: content, unit, noise.

        Can be done ahead, in any thread. Raises RunError for NaN and Inf, labels and CT.
        """
        if scan.labels:
            return []
        turn = Orientation.of(scan.affine, self.choice(scan, axis).axis)
        turned = [turn.turned(volume) for volume in volumes(scan.voxels())]
        check_voxels(scan, turned[0])
        try:
            looks = [self.volumes.look(volume, scan.slope, scan.inter) for volume in turned]
        except IntensityError as error:
            raise RunError(f"{scan.name}: {error}") from None
        self.heed(doubt_of_sign(scan.name, volumes(scan.voxels())[0], scan.slope, scan.inter))
        return looks

    def heed(self, doubt: str) -> None:
        """Tell a doubt about a volume that was read, if there is one. Raises RunError if `strict`."""
        if doubt and self.strict:
            raise RunError(f"Refused by --strict: {doubt}")
        if doubt:
            log.warning("%s", doubt)

    def restore(
        self,
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
        if scan.labels:
            grid = choice.grid or Grid.of(scan.shape, self.layout(scan, choice.axis)[1], self.card.grid)
            with watch.time("blend"):
                to_spacing.place_labels(scan, grid, sr)
            return []
        turn = Orientation.of(scan.affine, choice.axis)
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
                    found.append(to_spacing.restore(self.volumes, task, grid, choice.kind))
                    continue
                self.volumes.restore(task)
                for filled in (volume, expected) if self.card.grid == "fft" else ():
                    if filled is not None:
                        with watch.time("blend"):
                            turn.settle(filled, turn.by_stored(self.card.scale))
        except IntensityError as error:
            raise RunError(f"{scan.name}: {error}") from None
        return [one for one in found if one is not None]
