"""The runtime's face: a trained network applied to volumes, with units and geometry kept.

resolve = SuperResolver("sr.onnx")      # load once
sr = resolve(volume)                    # ndarray (rows, columns, slices)
for fine in resolve.stream(slices, count, intensities): ...     # while the scan goes on
image = resolve.image(nib_image)        # nibabel in, nibabel out
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args, overload

import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from .cuda import CudaEngine, CudaPipeline
from .cuda.device import GpuError
from .cuda.measured_band import WHOLE, Held
from .engines.choose import choose_engine, cpu_model, open_engine
from .errors import RunError
from .pipeline import consistency as measured
from .pipeline import error_map as expected
from .pipeline import through_plane
from .pipeline.air import find_air
from .pipeline.axes import mean_over_axes
from .pipeline.content import Content, survey
from .pipeline.engine import Engine, Library, Precision
from .pipeline.host import HostPipeline, LrVolume, batch_size
from .pipeline.stream import Band, resolve_stream
from .pipeline.tiling import Box, Tiling, Weighting, Window, tile_windows
from .scan import intensity
from .scan.choice import Choice, choose, why_one_axis
from .scan.foreign import from_itk, from_tensor, is_itk, is_tensor, to_itk, to_tensor
from .scan.geometry import Factors, fine_affine
from .scan.intensity import Intensities
from .scan.interpolation import band_weights
from .scan.kinds import check_layout, check_voxels, with_labels
from .scan.nifti import Header
from .scan.noise import Noise, estimate_noise
from .scan.orientation import Orientation
from .scan.output import Room, in_memory, scratch
from .scan.regrid import Asked, Grid, along, spline_weights
from .scan.rings import rings
from .scan.scan import Scan, fine_image, image_scan, tell_remarks
from .system.trace import Stopwatch, Trace, span
from .system.typed import Mismatch, typed
from .task import (
    Consistency,
    Fallback,
    Info,
    Labels,
    Look,
    MeasuredBand,
    Options,
    Output,
    Progress,
    Slab,
    Task,
    Timings,
)

if TYPE_CHECKING:
    from SimpleITK import Image
    from torch import Tensor

log = logging.getLogger("udean")

NOISY = 0.01  # of the unit: noise at which a coarser grid takes half of its band as it is, half as means
# What `SuperResolver` may be given, where a wrong type would only show later, and as something else.
GIVEN: dict[str, Any] = {
    "threads": int | None,
    "overlap": float | tuple[float, float, float] | None,
    "window": Literal["plane", "auto"] | tuple[int, int] | None,
    "weighting": Weighting | tuple[Weighting, Weighting, Weighting],
    "device": str,
    "fallback": Fallback,
    **dict.fromkeys(("crop", "strict", "best", "error_map"), bool),
    "trace": Trace | None,
}


class SuperResolver:
    """A network and its windows, ready for any number of volumes from any number of threads.

    Threads take turns at the engine. Leaving a `with` block, or `close`, lets go of it and its memory.

    Parameters
    ----------
    engine
        A model file (.plan, .onnx, checkpoint) or None for the embedded model: it is loaded, and run once so
        that no volume waits for that. Or an open engine.
    device, precision, threads, library
        See `choose_engine`.
    overlap, window, weighting, crop, consistency
        See `Options`.
    to
        The spacing wanted: "1mm", "1x1x2mm", "iso", or mm. Thick slices then go through the embedded
        through-plane model, on the processor.
    strict
        Refuse scans outside the model's range, which are warned about otherwise; see `choice`.
    best
        The mean over slabs along each of the three axes: better, at three times the cost, for models of one
        factor along all axes.
    error_map
        The expected error of each voxel too, which takes that mean; see `pipeline.error_map`.
    labels
        "nearest" brings label maps, which are refused otherwise, to the grid of a scan of their size, by
        nearest neighbours.
    fallback
        "cpu" to go on without a GPU that fails.
    trace
        Told when each stage was at work.

    Raises
    ------
    RunError
        With what the user can do: no such file, an option out of range, a device that is not there, too
        little memory. Methods raise it too.
    """

    def __init__(
        self,
        engine: str | Path | Engine | CudaEngine | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        overlap: float | tuple[float, float, float] | None = None,
        window: Window = "auto",
        weighting: Weighting | tuple[Weighting, Weighting, Weighting] = "gaussian",
        threads: int | None = None,
        library: Library = "auto",
        crop: bool = True,
        fallback: Fallback = "none",
        trace: Trace | None = None,
        consistency: Consistency = "auto",
        to: str | float | Sequence[float] | None = None,
        strict: bool = False,
        best: bool = False,
        error_map: bool = False,
        labels: Labels = "leave",
    ) -> None:
        if labels not in get_args(Labels):
            raise RunError(f"Label maps are one of {', '.join(get_args(Labels))}, not '{labels}'.")
        threads, overlap, window, weighting = (
            _given(name, value)
            for name, value in (
                ("threads", threads),
                ("overlap", overlap),
                ("window", window),
                ("weighting", weighting),
            )
        )
        for name, value in (
            ("device", device),
            ("fallback", fallback),
            ("crop", crop),
            ("strict", strict),
            ("best", best),
            ("error_map", error_map),
            ("trace", trace),
        ):
            _given(name, value)
        if not (engine is None or isinstance(engine, str | Path) or hasattr(engine, "card")):
            raise RunError(f"A model is a file's path or an open engine, not {type(engine).__name__}.")
        if not (
            consistency in ("auto", "off") or (isinstance(consistency, int | float) and 0 <= consistency <= 1)
        ):
            raise RunError(f"The consistency is auto, off or a number from 0 to 1, not '{consistency}'.")
        self.trace = trace
        self._asked = None if to is None else Asked.parse(to)
        self._strict = strict
        self._through_plane = ThroughPlane(threads, library, trace)
        self._fallback: Callable[[], Engine] | None = None
        loading = engine is None or isinstance(engine, str | Path)
        if engine is None or isinstance(engine, str | Path):
            path = None if engine is None else Path(engine)
            if fallback == "cpu":
                self._fallback = lambda: open_engine(cpu_model(path), "cpu", "auto", threads, library)
            try:
                with span(trace, "load"):
                    engine = choose_engine(path, device, precision, threads, library)
            except GpuError as error:
                engine, _ = self._without_gpu(error)
        self._engine: Engine | CudaEngine | None = engine
        self._pipeline: HostPipeline | CudaPipeline | None = _pipeline(engine)
        self.card = engine.card
        if (best or error_map) and (self.card.kind != "slab" or len(set(self.card.scale)) > 1):
            scale = "x".join(map(str, self.card.scale))
            raise RunError(
                f"The mean over three slab axes needs a model of one factor along all axes, and "
                f"{self.card.name} has {scale}: leave out {'--error-map' if error_map else '--best'}."
            )
        asked = self._asked and str(self._asked)
        best = best or error_map
        self.options = Options(overlap, window, weighting, crop, consistency, asked, best, error_map, labels)
        self._check_error_map()
        self._turn = threading.Lock()
        self._last = threading.local()
        try:
            self.tiling((1, 1, 1))  # options out of range are refused now
            if loading:
                with span(trace, "warm-up"):
                    self._warm_up()
        except MemoryError as error:
            raise RunError("Windows of this size do not fit into memory: take smaller ones.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_error_map(self) -> None:
        """Raise RunError if a map of expected errors is asked for and cannot be right."""
        if not self.options.error_map:
            return
        if self.options.to is not None:
            raise RunError(
                "Expected errors are known on the model's own grid: leave out --to, or --error-map."
            )
        if self.options.consistency != "auto":
            raise RunError(
                "Expected errors are known for --consistency auto: leave out --consistency, or --error-map."
            )
        expected.figures(self.card)

    def close(self) -> None:
        """Let go of the engine, once the volume in hand is done."""
        with self._turn:
            if isinstance(self._pipeline, CudaPipeline):
                self._pipeline.close()
            self._engine = self._pipeline = None
            self._through_plane.close()

    def __repr__(self) -> str:
        return (
            f"<SuperResolver {self.card.name}, closed>"
            if self._engine is None
            else f"<SuperResolver {self.describe()}>"
        )

    def to(self, spacing: str | float | Sequence[float]) -> SuperResolver:
        """This one, with its engine and its turn, restoring scans to another spacing.

        Parameters
        ----------
        spacing
            "1mm", "1x1x2mm", "iso", or mm.

        Returns
        -------
        SuperResolver
            It has this one's engine: `close` this one alone.

        Raises
        ------
        RunError
            For what is not a spacing, and if this one is to expect errors, which are known on the model's own
            grid alone.
        """
        other = copy.copy(self)
        other._asked = Asked.parse(spacing)
        other.options = dataclasses.replace(self.options, to=str(other._asked))
        other._check_error_map()
        return other

    def info(self) -> Info:
        """The model, what runs it and how. Raises RunError if this is closed."""
        return Info(self.card, self.engine.info, self.options)

    @property
    def engine(self) -> Engine | CudaEngine:
        if self._engine is None:
            raise RunError("This SuperResolver is closed: open another.")
        return self._engine

    @property
    def _running(self) -> HostPipeline | CudaPipeline:
        if self._pipeline is None:
            raise RunError("This SuperResolver is closed: open another.")
        return self._pipeline

    @property
    def _on_host(self) -> bool:
        """Whether the processor runs the network."""
        return not isinstance(self._pipeline, CudaPipeline)

    @property
    def error_map(self) -> NDArray[np.float32] | None:
        """The expected absolute error of each voxel of the last volume, image or scan of this thread.

        float32 in its units, of the result's shape; see `pipeline.error_map` for what it promises. None if it
        was not asked for, has gone into a room of its own, or the voxels are too uneven for three slab axes.
        """
        return getattr(self._last, "errors", None)

    @property
    def timings(self) -> Timings | None:
        """Of the last volume that this thread has resolved."""
        return getattr(self._last, "timings", None)

    @overload
    def __call__(
        self,
        volume: NDArray[Any],
        dtype: Output = "input",
        progress: Progress | None = None,
        zooms: Sequence[float] | None = None,
    ) -> NDArray[Any]: ...

    @overload
    def __call__(
        self,
        volume: Tensor,
        dtype: Output = "input",
        progress: Progress | None = None,
        zooms: Sequence[float] | None = None,
    ) -> Tensor: ...

    def __call__(
        self,
        volume: NDArray[Any] | Tensor,
        dtype: Output = "input",
        progress: Progress | None = None,
        zooms: Sequence[float] | None = None,
    ) -> NDArray[Any] | Tensor:
        """Resolve one volume.

        An array does not say how it lies in the world, so the network sees it as it is. It was trained on
        rows, columns and slices that run to the right, to the front and to the head, see `scan.orientation`.

        Parameters
        ----------
        volume
            LR voxels (rows, columns, slices) of any real dtype, in any unit. A tensor may be on any device.
        dtype
            "input" keeps the volume's, integers rounded and clipped to the range of its voxels; or "float32".
            A magnitude image, which has no negative voxels, gets none in either.
        progress
            progress(done, all) counts windows.
        zooms
            Voxel sizes (rows, columns, slices), by default as equal as a mean over three slab axes needs
            them; see `why_one_axis`.

        Returns
        -------
        array or tensor
            SR voxels (s·rows, s·columns, s·slices) in the same unit, s being the card's scale; a tensor on
            the volume's device for a tensor.

        Raises
        ------
        RunError
            For other shapes and dtypes, NaN or Inf.
        """
        if is_tensor(volume):
            return to_tensor(self(from_tensor(volume), dtype, progress, zooms), volume, keep=dtype == "input")
        _check(volume)
        self._needs_slabs()
        if zooms is not None and not (len(zooms) == 3 and all(0 < zoom < np.inf for zoom in zooms)):
            raise RunError(f"Voxel sizes are three positive numbers of (rows, columns, slices), not {zooms}.")
        start, watch = time.perf_counter(), Stopwatch(self.trace)
        sr = np.empty(self.tiling(_triple(volume.shape)).fine_shape, _stored_dtype(volume.dtype, dtype), "F")
        best = self.options.best and self.why_one_axis(zooms) is None
        errors = np.empty(sr.shape, np.float32, "F") if best and self.options.error_map else None
        look = self._look(volume, 1.0, 0.0)
        self._resolve(Task(volume, sr, look, watch, progress=progress, best=best, errors=errors))
        self._note(start, watch)
        self._last.errors = errors
        return sr

    def stream(
        self,
        slices: Iterable[NDArray[Any]],
        count: int,
        intensities: Intensities,
        dtype: Output = "input",
    ) -> Generator[NDArray[Any]]:
        """Resolve a volume while its slices arrive.

        The engine is held while a slab is computed, never while waiting, so other threads and volumes take
        turns with a stream; leaving it half read holds nothing up.

        Parameters
        ----------
        slices
            `count` LR slices (rows, columns) of one real dtype, in order, equally spaced. The next is asked
            for when all that can be computed has been yielded, in the thread that asks this generator.
        intensities
            What whole volumes read off themselves; from an earlier volume of the same protocol and receiver
            gain, see `intensities`, or Intensities(unit). Slices that go beyond its low and high are clipped
            to their own range instead.
        dtype
            As for a volume.

        Yields
        ------
        array
            SR slices (s·rows, s·columns) as soon as their windows are complete: those of `self(volume)` with
            crop=False and the same intensities, bit for bit by OpenVINO and ONNX Runtime on a processor, to
            rounding by libraries whose kernels depend on the size of a batch, since batches end with their
            slab here.

        Raises
        ------
        RunError
            For too few or too many slices, for other shapes or dtypes, NaN or Inf.
        """
        self._needs_slabs()
        if self.options.best:
            raise RunError(
                "The mean over three slab axes, and expected errors, need a whole volume: a stream has slabs "
                "along one."
            )
        if not isinstance(count, int | np.integer) or count < 1:
            raise RunError(f"A stream has a whole number of slices, at least one, not {count}.")
        if not isinstance(intensities, Intensities):
            raise RunError(f"A stream needs Intensities, such as Intensities(700.0), not {intensities!r}.")
        _stored_dtype(np.dtype(np.float32), dtype)  # a dtype that is none is refused now
        return self._stream(slices, count, intensities, dtype)

    def _stream(
        self, slices: Iterable[NDArray[Any]], count: int, intensities: Intensities, dtype: Output
    ) -> Generator[NDArray[Any]]:
        start, watch = time.perf_counter(), Stopwatch(self.trace, "stream")
        yield from resolve_stream(
            slices,
            count,
            intensities,
            self.tiling,
            lambda given: _stored_dtype(given, dtype),
            self._run,
            self._stream_band(intensities),
            watch,
        )
        self._note(start, watch)

    def intensities(self, volume: NDArray[Any]) -> Intensities:
        """What a volume says about others of its protocol and gain, for `stream`.

        Parameters
        ----------
        volume
            LR voxels (rows, columns, slices) of any real dtype.

        Raises
        ------
        RunError
            For other shapes and dtypes, NaN or Inf, and for a constant volume, which says nothing.
        """
        _check(volume)
        look = self._look(volume, 1.0, 0.0)
        if look.content.low == look.content.high:
            raise RunError("A constant volume says nothing about intensities: take one that shows something.")
        low, high = look.content.low.item(), look.content.high.item()
        return Intensities(look.unit, low, high, look.noise.sigma if look.noise else 0.0, look.rings)

    @overload
    def image(self, image: SpatialImage, dtype: Output = "input", axis: int | None = None) -> Nifti1Image: ...

    @overload
    def image(self, image: Image, dtype: Output = "input", axis: int | None = None) -> Image: ...

    def image(
        self, image: SpatialImage | Image, dtype: Output = "input", axis: int | None = None
    ) -> Nifti1Image | Image:
        """Resolve a nibabel or SimpleITK image into one of the same library.

        Parameters
        ----------
        image
            Of three dimensions, or four of which the last is time.
        dtype
            As for a volume.
        axis
            That across the slices, 0 to 2, by default the coarsest.

        Returns
        -------
        image
            SR voxels with the affine of their own grid, and the LR header's other fields.

        Raises
        ------
        RunError
            For what is not an image, and for scans that `scan` refuses.
        """
        if is_itk(image):
            return to_itk(self.image(from_itk(image), dtype, axis))
        if not isinstance(image, SpatialImage):
            raise RunError(f"An image is nibabel's or SimpleITK's, not {type(image).__name__}.")
        return fine_image(*self.scan(tell_remarks(image_scan(image, series=True)), dtype, axis))

    def scan(
        self,
        scan: Scan,
        dtype: Output = "input",
        axis: int | None = None,
        progress: Progress | None = None,
        room: Room | None = None,
        looks: Sequence[Look] | None = None,
        error_room: Room | None = None,
    ) -> tuple[Header, NDArray[Any]]:
        """Resolve a scan, a time series volume by volume.

        Parameters
        ----------
        scan
            See `open_scan`.
        dtype, axis
            As for a volume and for an image.
        progress
            progress(done, all) counts the windows of each volume.
        room
            Where the SR voxels go, by default into memory.
        looks
            What `look` has found in the scan, if it was asked before.
        error_room
            Where expected errors go, if they were asked for; by default into memory, see `error_map`.

        Returns
        -------
        header
            The SR scan's.
        array
            Its voxels as stored, (i, j, k) or (i, j, k, t).

        Raises
        ------
        RunError
            For NaN and Inf, labels, masks and CT, and what `strict` refuses; GpuError if the GPU fails.
        """
        start, watch = time.perf_counter(), Stopwatch(self.trace, Path(scan.name).name)
        scan = self.prepared(scan)
        choice = self.choice(scan, axis)
        header = self.header(scan, dtype, axis)
        sr = (room or in_memory(scan.name))(header)
        errors = None
        if self.options.error_map and choice.best:
            errors = (error_room or in_memory(scan.name))(self.header(scan, "float32", axis))
        self._last.errors = None if error_room else errors
        with watch.time("read"):
            scan = scan.loaded()
            looks = looks or self.look(scan, axis)
        if scan.labels:
            grid = choice.grid or Grid.of(scan.shape, self.layout(scan, axis)[1], self.card.grid)
            self._resample_labels(scan, grid, sr, watch)
            self._last.found = []
        else:
            self._last.found = self._restore(scan, sr, errors, choice, looks, watch, progress)
        self._note(start, watch)
        return header, sr

    def _restore(
        self,
        scan: Scan,
        sr: NDArray[Any],
        errors: NDArray[np.float32] | None,
        choice: Choice,
        looks: Sequence[Look],
        watch: Stopwatch,
        progress: Progress | None,
    ) -> list[through_plane.Findings]:
        """Fill the SR voxels of a scan, volume by volume; what thick slices told about themselves."""
        volumes, found = _volumes(scan.voxels()), []
        maps = [None] * len(volumes) if errors is None else _volumes(errors)
        try:
            for lr, fine, look, expects in zip(volumes, _volumes(sr), looks, maps, strict=True):
                if choice.grid is None:
                    turn = Orientation.of(scan.affine, choice.axis)
                    task = self._task(lr, fine, scan, turn, choice, look, watch, progress)
                    if expects is not None:
                        task = task.replace(errors=turn.turned(expects))
                    self._resolve(task)
                    for volume in (fine, expects) if self.card.grid == "fft" else ():
                        if volume is not None:
                            with watch.time("blend"):
                                turn.settle(volume, turn.by_stored(self.card.scale))
                else:
                    found += self._regrid(lr, fine, scan, choice.grid, choice, look, watch, progress)
        except intensity.IntensityError as error:
            raise RunError(f"{scan.name}: {error}") from None
        return found

    @staticmethod
    def _resample_labels(scan: Scan, grid: Grid, sr: NDArray[Any], watch: Stopwatch) -> None:
        """Fill the voxels of a label map on another grid."""
        for volume, fine in zip(_volumes(scan.voxels()), _volumes(sr), strict=True):
            with watch.time("blend"):
                labels = grid.labels(volume)
                fine[...] = scan.in_units(labels) if sr.dtype.kind == "f" else labels

    def prepared(self, scan: Scan) -> Scan:
        """The scan, read and looked at for labels if these are not refused."""
        return with_labels(scan) if self.options.labels == "nearest" and scan.labels is None else scan

    def look(self, scan: Scan, axis: int | None = None) -> list[Look]:
        """Look through the volumes of a scan, none of a label map's: content, unit, noise.

        Can be done ahead, in any thread.

        Raises
        ------
        RunError
            For NaN and Inf, labels and CT.
        """
        if scan.labels:
            return []
        turn = Orientation.of(scan.affine, self.choice(scan, axis).axis)
        volumes = [turn.turned(volume) for volume in _volumes(scan.voxels())]
        check_voxels(scan, volumes[0])
        try:
            return [self._look(volume, scan.slope, scan.inter) for volume in volumes]
        except intensity.IntensityError as error:
            raise RunError(f"{scan.name}: {error}") from None

    def header(self, scan: Scan, dtype: Output = "input", axis: int | None = None) -> Header:
        """The header that the SR scan will have. Raises RunError for what `strict` refuses."""
        choice = self.choice(scan, axis)
        if self._strict and choice.warnings:
            raise RunError(f"{scan.name} is refused by --strict: {'; '.join(choice.warnings)}.")
        if choice.grid is not None:
            return scan.header_on(choice.grid, _stored_dtype(scan.dtype, dtype))
        _, factors, _ = self.layout(scan, axis)
        return scan.fine_header(factors, self.card.grid, _stored_dtype(scan.dtype, dtype))

    def choice(self, scan: Scan, axis: int | None = None) -> Choice:
        """Which model restores a scan onto which grid, and what is said against it."""
        turn, _, _ = self.layout(scan, axis)
        choice = choose(scan.name, scan.shape, scan.zooms, turn.axes, self.card, self._asked)
        if scan.labels:  # nothing is restored, so nothing is said against it
            return dataclasses.replace(choice, warnings=())
        return choice.along_each_axis(scan.zooms, self.options.error_map) if self.options.best else choice

    @staticmethod
    def why_one_axis(zooms: Sequence[float] | None) -> str | None:
        """Why a volume of these voxel sizes gets no mean over three slab axes; None if it may have it."""
        return None if zooms is None else why_one_axis(zooms)

    def model_for(self, scan: Scan, axis: int | None = None) -> Engine | CudaEngine:
        """The engine that restores a scan: the embedded through-plane model's for thick slices."""
        kind = self.choice(scan, axis).kind
        return self.engine if kind == self.card.kind else self._through_plane.engine()

    @property
    def found(self) -> list[through_plane.Findings]:
        """What the last scan of this thread has told about its slices; a volume each, if they are thick."""
        return getattr(self._last, "found", [])

    def describe(self) -> str:
        """The model and what runs it, in one line."""
        scale = "x".join(map(str, self.card.scale))
        held = "" if self._holds else ", measured band left to the network"
        best = ", mean over three slab axes at three times the cost" if self.options.best else ""
        best += ", with expected errors" if self.options.error_map else ""
        return f"{self.card.name} ({self.card.method}, {scale}): {self.engine.info}{held}{best}"

    def tiling(self, shape: tuple[int, int, int]) -> Tiling:
        """The windows of an LR volume (rows, columns, slices) that is all content."""
        options = self.options
        # A GPU has places of one size for its windows, and a plan may take no other.
        window = None if options.window == "auto" and not self._on_host else options.window
        return tile_windows(shape, self.card, options.overlap, window, options.weighting)

    def tilings(self, shape: tuple[int, int, int]) -> list[Tiling]:
        """The windows of an LR volume (rows, columns, slices) along each slab axis of a mean over three."""
        rows, columns, slices = shape
        turned = (columns, slices, rows), (rows, slices, columns), shape
        return [self.tiling(one) for one in turned]

    def layout(self, scan: Scan, axis: int | None = None) -> tuple[Orientation, Factors, Tiling]:
        """How a scan will be resolved: turned how, HR voxels per LR voxel along (i, j, k), windows."""
        turn = Orientation.of(scan.affine, axis)
        factors = turn.by_stored(self.card.scale)
        check_layout(scan, factors, self.options.labels == "nearest")
        rows, columns, slices = (scan.shape[n] for n in turn.axes)
        return turn, factors, self.tiling((rows, columns, slices))

    def _resolve(self, task: Task) -> None:
        """Fill the SR voxels of a task.

        What a volume goes through is this list. A stage takes a task and returns it with what it has done;
        those after `_lay_windows` pass slabs on as they are asked for, so that none holds a volume.
        """
        content = task.look.content
        if content.low == content.high:
            # A constant volume holds nothing to restore and stays what it is.
            task.sr[...] = self._background(task)
            if task.errors is not None:
                task.errors[...] = 0
            return
        for stage in (self._crop_to_content, self._lay_windows):
            task = stage(task)
        self._compute(task)

    def _task(
        self,
        voxels: NDArray[Any],
        sr: NDArray[Any],
        scan: Scan,
        turn: Orientation,
        choice: Choice,
        look: Look,
        watch: Stopwatch,
        progress: Progress | None,
    ) -> Task:
        """A scan's volume, LR and SR voxels (i, j, k) as stored, to be restored as chosen."""
        lr, fine = turn.turned(voxels), turn.turned(sr)
        return Task(lr, fine, look, watch, scan.slope, scan.inter, progress, best=choice.best)

    def _regrid(
        self,
        voxels: NDArray[Any],
        sr: NDArray[Any],
        scan: Scan,
        grid: Grid,
        choice: Choice,
        look: Look,
        watch: Stopwatch,
        progress: Progress | None,
    ) -> list[through_plane.Findings]:
        """Fill the SR voxels on the grid that was asked for; what thick slices told about themselves."""
        content, unit = look.content, look.unit
        if content.low == content.high:
            sr[...] = (
                content.background * scan.slope + scan.inter if sr.dtype.kind == "f" else content.background
            )
            return []
        store = intensity.storage(sr.dtype, unit, scan.slope, scan.inter, content.low, content.high)
        found, turn = [], Orientation.of(scan.affine, choice.axis)
        if choice.kind == "slab":
            factors = turn.by_stored(self.card.scale)
            fine = np.empty([n * f for n, f in zip(voxels.shape, factors, strict=True)], np.float32, "F")
            self._resolve(self._task(voxels, fine, scan, turn, choice, look, watch, progress))
            placed = fine_affine(np.eye(4), factors, self.card.grid, turn.flipped)
            to_fine = np.linalg.inv(placed) @ grid.matrix
            for axis, (step, start) in enumerate(zip(np.diag(to_fine), to_fine[:3, 3], strict=False)):
                places = start + step * np.arange(grid.shape[axis])
                weights = spline_weights(fine.shape[axis], places, step)
                if step > 1:  # a mean over voxels, which costs measured detail as well as noise
                    noise = look.noise.sigma / unit if look.noise else 0.0
                    share = np.float32(1 / (1 + (noise / NOISY) ** 2))
                    weights += share * (band_weights(fine.shape[axis], places, step) - weights)
                fine = along(weights, fine, axis)
            fine /= np.float32(unit)
            fine = turn.turned(fine)
        else:
            lr = voxels * np.float32(scan.slope / unit) + np.float32(scan.inter / unit)
            for axis in turn.axes[:2]:
                lr = along(grid.weights(axis, lr.shape[axis]), lr, axis)
            # The grid is the same from either end, so the centres are those of turned slices too.
            step, start = 1 / grid.step[choice.axis], grid.start[choice.axis]
            centers = (np.arange(voxels.shape[choice.axis]) - start) * step
            slices = np.ascontiguousarray(turn.turned(lr))
            stack = through_plane.Stack(slices, centers, step, grid.shape[choice.axis])
            engine = self.engine if self.card.kind == "through-plane" else self._through_plane.engine()
            assert callable(engine)  # through-plane models are opened for the processor
            with self._turn:
                fine, told = through_plane.restore(stack, engine, watch, progress)
            found = [told]
        with watch.time("blend"):
            turn.turned(sr)[...] = store.restore(fine)
        return found

    def _compute(self, task: Task) -> None:
        """The stages that need the engine, when it is this thread's turn; without a GPU that fails if that
        may be."""
        with self._turn:
            try:
                self._pass_slabs(task)
            except GpuError as error:
                self._engine, self._pipeline = self._without_gpu(error)
                self._pass_slabs(task)

    def _pass_slabs(self, task: Task) -> None:
        with contextlib.ExitStack() as opened:
            restore = self._restore_along_each_axis if task.best else self._restore_windows
            for stage in (restore, self._hold_measured, self._to_units):
                task = stage(task)
                if isinstance(task.slabs, Generator):
                    opened.enter_context(contextlib.closing(task.slabs))
            self._fill(task)
        if task.errors is not None:
            self._expect_errors(task)

    def _crop_to_content(self, task: Task) -> Task:
        """Constant background stays what it is, and everything else is done in the box that is left.

        So windows lie alike however much background there is.
        """
        content, slope = task.look.content, task.slope
        store = intensity.storage(task.sr.dtype, task.look.unit, slope, task.inter, content.low, content.high)
        # At least a training window: a network's statistics are of no smaller ones.
        box = tile_windows(_triple(task.lr.shape), self.card, window=self._least_window).around(content.box)
        sr = self._surround(task.sr, box, self._background(task))
        errors = None if task.errors is None else self._surround(task.errors, box, 0)
        # What was cut off was one value: the ends of what is left meet.
        cut = [p.stop - p.start < n for p, n in zip(box, task.lr.shape, strict=True)]
        meet = [ring or c for ring, c in zip(task.look.rings, cut, strict=True)]
        look = dataclasses.replace(task.look, rings=tuple(meet))
        return task.replace(lr=task.lr[box], sr=sr, store=store, look=look, errors=errors)

    def _lay_windows(self, task: Task) -> Task:
        return task.replace(tiling=self.tiling(_triple(task.lr.shape)))

    def _restore_windows(self, task: Task) -> Task:
        """The network, window by window, and the blending of what it answers."""
        assert task.tiling is not None
        pipeline, given = self._running, (task.volume, task.tiling)
        if isinstance(pipeline, CudaPipeline) and (held := self._held_on_device(task)):
            slabs = pipeline.slabs(*given, task.store, task.watch, task.progress, held)
            return task.replace(slabs=slabs, held=True)
        in_range = task.look.noise is not None
        store = intensity.IN_THE_NETWORKS_RANGE if in_range else task.store
        slabs = pipeline.slabs(*given, store, task.watch, task.progress)
        return task.replace(slabs=slabs, in_range=in_range)

    def _held_on_device(self, task: Task) -> Held | None:
        """How a GPU takes the measured band from the scan; None if it is left, or the host's to take."""
        weight = self.weight(task.look, task.slope, task.inter)
        if weight is None:
            return None
        shape, card = _triple(task.lr.shape), self.card
        found = measured.operators(shape, card.scale, card.grid, task.look.rings, card.transfer, WHOLE)
        return found and Held(found, weight)

    def _restore_along_each_axis(self, task: Task) -> Task:
        """The same with slabs along each axis in turn, and their mean."""
        pipeline, plans = self._running, self.tilings(_triple(task.lr.shape))
        total, done = sum(map(len, plans)), 0

        def restore(turned: LrVolume) -> Generator[Slab]:
            nonlocal done
            plan = self.tiling(_triple(turned.voxels.shape))
            before, told = done, task.progress
            progress = told and (lambda n, _: told(before + n, total))
            yield from pipeline.slabs(turned, plan, intensity.IN_THE_NETWORKS_RANGE, task.watch, progress)
            done += len(plan)

        room = functools.partial(scratch, sr=task.sr)
        slabs = mean_over_axes(task.volume, restore, self.card.scale[0], room, task.errors)
        return task.replace(slabs=slabs, in_range=True)

    def _hold_measured(self, task: Task) -> Task:
        """The measured band from the scan; see `pipeline.consistency`."""
        weight = self.weight(task.look, task.slope, task.inter, task.best)
        if weight is None or task.held:
            return task
        planes = ((first, np.moveaxis(voxels, 2, 0)) for first, voxels in task.slabs)
        held = self._band(planes, task.volume.plane, _triple(task.lr.shape), weight, task.look.rings)
        return task.replace(slabs=((first, np.moveaxis(slab, 0, 2)) for first, slab in held))

    def _to_units(self, task: Task) -> Task:
        """From the network's range to stored voxels, where the pipeline has not done so."""
        if not task.in_range:
            return task
        slabs = ((first, task.store.restore(voxels)) for first, voxels in task.slabs)
        return task.replace(slabs=slabs, in_range=False)

    def _fill(self, task: Task) -> None:
        for first, voxels in task.slabs:
            with task.watch.time("blend"):
                task.sr[:, :, first : first + voxels.shape[2]] = voxels

    def _expect_errors(self, task: Task) -> None:
        """From the spread over slab axes to expected errors, in place."""
        assert task.errors is not None and task.look.noise is not None
        unit = task.look.unit
        weight = self.weight(task.look, task.slope, task.inter, task.best)
        noise = task.look.noise.sigma / unit * (weight.share if weight else 1)
        # Integers are stored as the scan's are, others in its units.
        sr = LrVolume(task.sr, 1 / unit)
        if task.sr.dtype.kind != "f":
            sr = dataclasses.replace(task.volume, voxels=task.sr)
        with task.watch.time("blend"):
            expected.expect(task.errors, sr.plane, noise, unit, self.card)

    def _run(
        self, sr: NDArray[Any], volume: LrVolume, tiling: Tiling, store: intensity.Storage, watch: Stopwatch
    ) -> None:
        """The network alone over a volume that has no more to it, such as a stream's slab."""
        look = Look(Content(0, 1, 0, _whole(volume.voxels.shape)), 1.0)
        self._compute(
            Task(volume.voxels, sr, look, watch, volume.gain, volume.offset, store=store, tiling=tiling)
        )

    def weight(
        self, look: Look, slope: float = 1.0, inter: float = 0.0, best: bool = False
    ) -> measured.Weight | None:
        """How much of a volume's measured band is taken from it; None if it is left to the network.

        best: by a mean over three slab axes.
        """
        if look.noise is None or not self._holds:
            return None
        given = self.options.consistency
        share = None if given == "auto" else float(given)
        low = min(look.content.low * slope, look.content.high * slope) + inter
        return measured.weight(look.noise.sigma / look.unit, low >= 0, share, best)

    def measured_band(self, scan: Scan, looks: Sequence[Look], best: bool = False) -> list[MeasuredBand]:
        """How the measured band of a scan that was looked through is held, by volume; empty if it is not."""
        held = []
        for look in looks:
            weight = self.weight(look, scan.slope, scan.inter, best)
            if look.noise and weight:
                noise = round(look.noise.sigma / look.unit, 5)
                held.append(MeasuredBand(round(weight.share, 4), noise, look.noise.source, look.rings))
        return held

    @property
    def why_unheld(self) -> str:
        """Why the measured band is left to the network, where it is."""
        if self.options.consistency == "off":
            return "left to the network, as asked for"
        if not self._holds:
            return "left to the network: the model's card does not say what the scan measures"
        return "nothing to hold: the volume is constant"

    @property
    def _holds(self) -> bool:
        """Whether the measured band is taken from scans."""
        given = self.options.consistency
        return given != "off" and (given != "auto" or self.card.consistency != "off")

    def _band(
        self,
        slabs: Iterable[tuple[int, NDArray[np.float32]]],
        lr_plane: Callable[[int], NDArray[np.float32]],
        shape: tuple[int, int, int],
        weight: measured.Weight,
        meet: measured.Rings,
    ) -> Generator[tuple[int, NDArray[np.float32]]]:
        card = self.card
        return measured.hold_measured(
            slabs, lr_plane, shape, card.scale, card.grid, weight, meet, card.transfer
        )

    def _stream_band(self, known: Intensities) -> Band | None:
        """The measured band of a stream. Its slices are not a ring: the first cannot wait for the last."""
        if not self._holds:
            return None
        look = Look(
            Content(known.low, known.high, 0, _whole((1, 1, 1))),
            known.unit,
            noise=Noise(known.noise, "air"),
        )
        weight, meet = self.weight(look), (known.rings[0], known.rings[1], False)
        assert weight is not None
        return lambda slabs, lr_plane, shape: self._band(slabs, lr_plane, shape, weight, meet)

    def _background(self, task: Task) -> Any:
        value = task.look.content.background
        return value * task.slope + task.inter if task.sr.dtype.kind == "f" else value

    def seconds_per_window(self, tiling: Tiling) -> float:
        """How long the network takes for one of a tiling's windows, measured on a batch of noise."""
        self._restore_noise(tiling)  # what a library does once for windows of a new size
        return self._restore_noise(tiling).seconds["network"] / batch_size(tiling)

    def _warm_up(self) -> None:
        """Run the network once: libraries put off to their first call what nobody should wait for later."""
        if self.card.kind == "through-plane":
            return
        window = self.options.window
        rows, columns = window if isinstance(window, tuple) else self.card.window
        self._restore_noise(self.tiling((rows, columns, self.card.slab[0])))

    def _restore_noise(self, tiling: Tiling) -> Stopwatch:
        """What a batch of a tiling's windows takes."""
        shape = tiling.rows.window, tiling.columns.window, tiling.slices.window * batch_size(tiling)
        volume = LrVolume(np.random.default_rng(0).random(shape, np.float32))
        windows = tile_windows(shape, self.card, 0.0, shape[:2])
        watch = Stopwatch()
        self._run(
            np.empty(windows.fine_shape, np.float32), volume, windows, intensity.IN_THE_NETWORKS_RANGE, watch
        )
        return watch

    def _needs_slabs(self) -> None:
        """Raise RunError if what was asked for depends on voxel sizes, which an array alone does not have."""
        if self._asked is not None or self.card.kind != "slab":
            raise RunError("A spacing can be asked for a scan or an image, whose voxel sizes are known.")

    def _without_gpu(self, error: GpuError) -> tuple[Engine, HostPipeline]:
        """What the processor has instead, if that was asked for."""
        if self._fallback is None:
            raise error
        engine = self._fallback()
        log.warning("%s Going on with %s.", error, engine.info)
        return engine, HostPipeline(engine)

    def _look(self, lr: NDArray[Any], slope: float, inter: float) -> Look:
        """Look through an LR volume (rows, columns, slices)."""
        content = survey(lr)
        if not self.options.crop:
            content = dataclasses.replace(content, box=_whole(lr.shape))
        if content.low == content.high:
            return Look(content, 1.0)
        unit = intensity.unit(lr, self.card.intensity, slope, inter)
        air = None
        if self.options.crop and self._on_host:
            air = find_air(lr, self.tiling(_triple(lr.shape)).slices)
        if not (self._holds or self.options.error_map):
            return Look(content, unit, air)
        return Look(content, unit, air, estimate_noise(lr, unit, slope, inter), rings(lr))

    @property
    def _least_window(self) -> Window:
        return None if self.options.window == "auto" else self.options.window

    def _surround(self, target: NDArray[Any], box: Box, background: Any) -> NDArray[Any]:
        """Fill what lies outside a box of LR voxels; returns the view inside of it."""
        low = [part.start * s for part, s in zip(box, self.card.scale, strict=True)]
        high = [part.stop * s for part, s in zip(box, self.card.scale, strict=True)]
        inside = [slice(None)] * 3
        for axis in (2, 0, 1):
            for outside in (slice(0, low[axis]), slice(high[axis], None)):
                index = list(inside)
                index[axis] = outside
                target[tuple(index)] = background
            inside[axis] = slice(low[axis], high[axis])
        return target[tuple(inside)]

    def _note(self, start: float, watch: Stopwatch) -> None:
        stages = {name: watch.seconds[name] for name in ("read", "gather", "network", "blend")}
        total = time.perf_counter() - start
        self._last.timings = Timings(**stages, total=total, windows=watch.windows, computed=watch.computed)


class ThroughPlane:
    """The embedded model for thick slices, opened when it is first needed."""

    def __init__(self, threads: int | None, library: Library, trace: Trace | None) -> None:
        self._open = lambda: open_engine(None, "cpu", "auto", threads, library, "through-plane")
        self._trace, self._opening = trace, threading.Lock()
        self._engine: Engine | None = None

    def engine(self) -> Engine:
        with self._opening:
            if self._engine is None:
                with span(self._trace, "load"):
                    self._engine = self._open()
            return self._engine

    def close(self) -> None:
        self._engine = None


def _pipeline(engine: Engine | CudaEngine) -> HostPipeline | CudaPipeline:
    return HostPipeline(engine) if callable(engine) else CudaPipeline(engine)


def _given(name: str, value: Any) -> Any:
    """An argument as its declared type. Raises RunError if it is of another."""
    try:
        return typed(GIVEN[name], value.item() if isinstance(value, np.generic) else value)
    except Mismatch as error:
        raise RunError(f"{name} {error}.") from None


def _whole(shape: tuple[int, ...]) -> Box:
    rows, columns, slices = (slice(0, n) for n in shape)
    return rows, columns, slices


def _volumes(voxels: NDArray[Any]) -> list[NDArray[Any]]:
    """The volumes of a series, or the one that there is."""
    return [voxels] if voxels.ndim == 3 else [voxels[..., t] for t in range(voxels.shape[3])]


def _check(volume: NDArray[Any]) -> None:
    if not isinstance(volume, np.ndarray):
        raise RunError(
            f"A volume is an array or a tensor, not {type(volume).__name__}; images go to `image`."
        )
    if isinstance(volume, np.ma.MaskedArray):
        raise RunError("A masked array has voxels without a value: fill them, as by volume.filled(0).")
    if volume.ndim != 3 or not volume.size or volume.dtype.kind not in "iuf":
        raise RunError(f"A volume must be 3-D and real, not {volume.dtype} of shape {volume.shape}.")


def _triple(shape: tuple[int, ...]) -> tuple[int, int, int]:
    rows, columns, slices = shape
    return rows, columns, slices


def _stored_dtype(dtype: np.dtype[Any], output: Output) -> np.dtype[Any]:
    if output not in ("input", "float32"):
        raise RunError(f"The output's dtype is 'input' or 'float32', not '{output}'.")
    return np.dtype(np.float32) if output == "float32" else dtype.newbyteorder("=")
