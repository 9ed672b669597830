"""The stages of one volume, from LR to SR voxels, in order.

A stage takes a task and returns it with what it has done. To put one in, write it below and name it in
`restore` or, if it needs the engine or what the engine yields, in `_pass_slabs`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cuda import CudaPipeline
from ..cuda.mean_over_axes import mean_over_axes as mean_on_device
from ..cuda.measured_band import Held
from ..models.card import ModelCard
from ..pipeline import error_map
from ..pipeline.air import find_air
from ..pipeline.content import Content, survey
from ..pipeline.host import LrVolume, Pass, batch_size
from ..pipeline.mean_over_axes import along_other_axes, lost_detail, mean_with
from ..pipeline.tiling import Box, Tiling, Window, tile_windows
from ..scan import intensity
from ..scan.noise import estimate_noise
from ..scan.output import scratch
from ..scan.rings import rings
from ..system.progress import in_turn
from ..system.trace import Stopwatch
from ..task import Look, Options, Slab, Task
from .measured_band import Holding
from .network import Network

Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class VolumeStages:
    """The stages of a network with these options; they hold nothing else, so any thread may use them."""

    network: Network
    options: Options

    @property
    def card(self) -> ModelCard:
        return self.network.card

    @property
    def holding(self) -> Holding:
        return Holding(self.card, self.options.consistency)

    def tiling(self, shape: Shape) -> Tiling:
        """The windows of an LR volume (rows, columns, slices) that is all content."""
        options = self.options
        window = self.network.window if options.window == "auto" else options.window
        return tile_windows(shape, self.card, options.overlap, window, options.weighting)

    def tilings(self, shape: Shape) -> list[Tiling]:
        """The windows along each slab axis of a mean over three."""
        rows, columns, slices = shape
        turned = (columns, slices, rows), (rows, slices, columns), shape
        return [self.tiling(one) for one in turned]

    def look(self, lr: NDArray[Any], slope: float = 1.0, inter: float = 0.0) -> Look:
        """Look through an LR volume (rows, columns, slices); voxel · slope + inter is in the scan's units.

        Raises IntensityError for NaN and Inf, and for intensities that float32 does not hold.
        """
        content = survey(lr)
        if not self.options.crop:
            content = dataclasses.replace(content, box=_whole(lr.shape))
        if content.low == content.high:
            return Look(content, 1.0)
        unit = intensity.unit(lr, self.card.intensity, slope, inter)
        air = None
        if self.options.crop and self.network.on_host:
            air = find_air(lr, self.tiling(_shape(lr)).slices)
        if not (self.holding.wanted or self.options.error_map):
            return Look(content, unit, air)
        return Look(content, unit, air, estimate_noise(lr, unit, slope, inter), rings(lr))

    def restore(self, task: Task) -> None:
        """Fill the SR voxels of a task, and its expected errors."""
        if task.look.content.low == task.look.content.high:
            fill_constant(task)
            return
        for stage in (self._crop_to_content, self._lay_windows):
            task = stage(task)
        self._with_engine(task)

    def run(
        self,
        sr: NDArray[Any],
        volume: LrVolume,
        tiling: Tiling,
        store: intensity.Storage = intensity.IN_THE_NETWORKS_RANGE,
        watch: Stopwatch | None = None,
    ) -> None:
        """The network alone over a volume that has no more to it, such as a stream's slab."""
        look = Look(Content(0, 1, 0, _whole(volume.voxels.shape)), 1.0)
        self._with_engine(
            Task(
                volume.voxels,
                sr,
                look,
                watch or Stopwatch(),
                volume.gain,
                volume.offset,
                store=store,
                tiling=tiling,
            )
        )

    def run_on_noise(self, tiling: Tiling, count: int) -> Stopwatch:
        """Run that many of a tiling's windows; returns how long it took."""
        shape = tiling.rows.window, tiling.columns.window, tiling.slices.window * count
        volume = LrVolume(np.random.default_rng(0).random(shape, np.float32))
        windows, watch = tile_windows(shape, self.card, 0.0, shape[:2]), Stopwatch()
        self.run(np.empty(windows.fine_shape, np.float32), volume, windows, watch=watch)
        return watch

    def warm_up(self) -> None:
        """Run the network once, so that one-time initialisation does not slow down the first volume."""
        window = self.options.window
        rows, columns = window if isinstance(window, tuple) else self.card.window
        self.run_on_noise(self.tiling((rows, columns, self.card.slab[0])), 1)

    def seconds_per_window(self, tiling: Tiling) -> float:
        """How long the network takes for one of a tiling's windows, measured on a batch of noise."""
        count = batch_size(tiling)
        self.run_on_noise(tiling, count)  # what a library does once for windows of a new size
        return self.run_on_noise(tiling, count).seconds["network"] / count

    def _with_engine(self, task: Task) -> None:
        self.network.in_turn(lambda: self._pass_slabs(task))

    def _pass_slabs(self, task: Task) -> None:
        """The stages that pass slabs on as they are asked for, so that none holds a volume."""
        restore = self._restore_along_each_axis if task.best else self._restore_windows
        with contextlib.ExitStack() as opened:
            for stage in (restore, self._hold_measured, self._to_units):
                task = stage(task)
                if isinstance(task.slabs, Generator):
                    opened.enter_context(contextlib.closing(task.slabs))
            self._fill(task)
        if task.errors is not None:
            self._expect_errors(task, task.errors)

    def _crop_to_content(self, task: Task) -> Task:
        """Constant background stays what it is, and everything else is done in the box that is left.

        So windows lie alike however much background there is.
        """
        content, slope = task.look.content, task.slope
        store = intensity.storage(task.sr.dtype, task.look.unit, slope, task.inter, content.low, content.high)
        # At least a training window: the network has never seen a smaller one.
        window: Window = None if self.options.window == "auto" else self.options.window
        box = tile_windows(_shape(task.lr), self.card, window=window).around(content.box)
        sr = self._surround(task.sr, box, background(task))
        errors = None if task.errors is None else self._surround(task.errors, box, 0)
        # What was cut off was one value: the ends of what is left meet.
        cut = [p.stop - p.start < n for p, n in zip(box, task.lr.shape, strict=True)]
        meet = [ring or c for ring, c in zip(task.look.rings, cut, strict=True)]
        look = dataclasses.replace(task.look, rings=tuple(meet))
        return task.replace(lr=task.lr[box], sr=sr, store=store, look=look, errors=errors)

    def _lay_windows(self, task: Task) -> Task:
        return task.replace(tiling=self.tiling(_shape(task.lr)))

    def _restore_windows(self, task: Task) -> Task:
        """The network, window by window, and the blending of what it answers."""
        assert task.tiling is not None
        pipeline, (held, store, later) = self.network.pipeline, self._storing(task)
        given = Pass(task.volume, task.tiling, store, task.watch, task.progress)
        slabs = pipeline.slabs(given, held) if isinstance(pipeline, CudaPipeline) else pipeline.slabs(given)
        return task.replace(slabs=slabs, **later)

    def _storing(self, task: Task) -> tuple[Held | None, intensity.Storage, dict[str, bool]]:
        """How the pipeline holds the measured band, what it stores, and what later stages must know."""
        held = None if self.network.on_host else self.holding.on_device(task)
        in_range = held is None and task.look.noise is not None
        store = intensity.IN_THE_NETWORKS_RANGE if in_range else task.store
        return held, store, {"held": held is not None, "in_range": in_range}

    def _restore_along_each_axis(self, task: Task) -> Task:
        """The same with slabs along each axis in turn, and their mean.

        A GPU takes it if nothing on the host needs the other two volumes, as expected errors do, and a
        measured band that is the host's to take, for the detail that the mean loses.
        """
        pipeline = self.network.pipeline
        held, store, later = self._storing(task)
        alone = task.errors is None and (held is not None or self.holding.weight_of(task) is None)
        tilings = self.tilings(_shape(task.lr))
        if isinstance(pipeline, CudaPipeline) and alone:
            given = Pass(task.volume, tilings[2], store, task.watch, task.progress)
            if slabs := mean_on_device(pipeline, given, tilings, held):
                return task.replace(slabs=slabs, **later)
        told = iter(in_turn(task.progress, list(map(len, tilings))))

        def restore(turned: LrVolume) -> Generator[Slab]:
            tiling = self.tiling(_shape(turned.voxels))
            given = Pass(turned, tiling, intensity.IN_THE_NETWORKS_RANGE, task.watch, next(told))
            yield from pipeline.slabs(given)

        factor = self.card.scale[0]
        others = along_other_axes(task.volume, restore, factor, functools.partial(scratch, sr=task.sr))
        slabs = mean_with(restore(task.volume), others, task.errors)
        return task.replace(slabs=slabs, in_range=True, detail=lost_detail(others[0], others[1], factor))

    def _hold_measured(self, task: Task) -> Task:
        """The measured band from the scan; see `pipeline.measured_band`."""
        weight = self.holding.weight_of(task)
        if weight is None or task.held:
            return task
        planes = ((first, np.moveaxis(voxels, 2, 0)) for first, voxels in task.slabs)
        held = self.holding.of_slabs(planes, task.volume.plane, _shape(task.lr), weight, task.look.rings)
        return task.replace(slabs=((first, np.moveaxis(slab, 0, 2)) for first, slab in held))

    def _to_units(self, task: Task) -> Task:
        """From the network's range to stored voxels, if the pipeline has not done so."""
        if not task.in_range:
            return task
        slabs = ((first, task.store.restore(voxels)) for first, voxels in task.slabs)
        return task.replace(slabs=slabs, in_range=False)

    def _fill(self, task: Task) -> None:
        for first, voxels in task.slabs:
            with task.watch.time("blend"):
                task.sr[:, :, first : first + voxels.shape[2]] = voxels

    def _expect_errors(self, task: Task, errors: NDArray[np.float32]) -> None:
        """From the spread over slab axes to expected errors, in place."""
        assert task.look.noise is not None
        unit, weight = task.look.unit, self.holding.weight_of(task)
        noise = task.look.noise.sigma / unit * (weight.share if weight else 1)
        with task.watch.time("blend"):
            error_map.expect(errors, noise, unit, self.card)

    def _surround(self, target: NDArray[Any], box: Box, value: Any) -> NDArray[Any]:
        """Fill what lies outside a box of LR voxels; returns the view inside of it."""
        low = [part.start * s for part, s in zip(box, self.card.scale, strict=True)]
        high = [part.stop * s for part, s in zip(box, self.card.scale, strict=True)]
        inside = [slice(None)] * 3
        for axis in (2, 0, 1):
            for outside in (slice(0, low[axis]), slice(high[axis], None)):
                index = list(inside)
                index[axis] = outside
                target[tuple(index)] = value
            inside[axis] = slice(low[axis], high[axis])
        return target[tuple(inside)]


def fill_constant(task: Task) -> None:
    """A constant volume holds nothing to restore and stays what it is."""
    task.sr[...] = background(task)
    if task.errors is not None:
        task.errors[...] = 0


def background(task: Task) -> Any:
    """The value around a volume's content, as the SR voxels store it."""
    value = task.look.content.background
    return value * task.slope + task.inter if task.sr.dtype.kind == "f" else value


def _whole(shape: tuple[int, ...]) -> Box:
    rows, columns, slices = (slice(0, n) for n in shape)
    return rows, columns, slices


def _shape(volume: NDArray[Any]) -> Shape:
    rows, columns, slices = volume.shape
    return rows, columns, slices
