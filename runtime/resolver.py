"""The runtime's face: a trained network applied to volumes, with units and geometry kept.

resolve = SuperResolver("sr.onnx")      # load once
sr = resolve(volume)                    # ndarray (rows, columns, slices)
for fine in resolve.stream(slices, count, intensities): ...     # while the scan goes on
image = resolve.image(nib_image)        # nibabel in, nibabel out
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from .arguments import (
    check_options,
    check_progress,
    check_scan,
    check_stream,
    check_volume,
    check_zooms,
    stored_dtype,
    typed_options,
    typed_others,
)
from .cuda import CudaEngine
from .errors import RunError
from .pipeline.engine import Engine, Library, Precision
from .pipeline.host import batch_size
from .pipeline.stream import resolve_stream
from .pipeline.through_plane import Findings
from .pipeline.tiling import Tiling, Weighting, Window
from .scan.geometry import Factors
from .scan.intensity import Intensities
from .scan.kinds import check_layout, doubt_of_sign, with_labels
from .scan.model_choice import Choice, choose, why_one_axis
from .scan.nifti import Header
from .scan.orientation import Orientation
from .scan.other_libraries import ItkImage, from_itk, from_tensor, is_itk, is_tensor, to_itk, to_tensor
from .scan.output import Room, in_memory
from .scan.regrid import Asked, Grid
from .scan.scan import Scan, fine_image, image_scan, tell_remarks, volumes
from .stages import scan as whole_scan
from .stages import to_spacing
from .stages.network import Network
from .stages.volume import VolumeStages
from .system.trace import Stopwatch, Trace, span
from .task import (
    Consistency,
    Fallback,
    HeldBand,
    Info,
    Labels,
    Look,
    Options,
    Output,
    Progress,
    Task,
    Timings,
)

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("udean")

Itk = TypeVar("Itk", bound=ItkImage)


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
        device, threads, fallback, strict, trace = typed_others(
            device=device, threads=threads, fallback=fallback, strict=strict, trace=trace
        )
        self.trace, self._strict, self._last = trace, strict, threading.local()
        self._asked = None if to is None else Asked.parse(to)
        asked = self._asked and str(self._asked)
        self.options = typed_options(
            Options(overlap, window, weighting, crop, consistency, asked, best, error_map, labels)
        )
        is_file = engine is None or isinstance(engine, str | Path)
        if not (is_file or hasattr(engine, "card")):
            raise RunError(f"A model is a file's path or an open engine, not {type(engine).__name__}.")
        self._opened = {
            "engine": engine,
            "device": device,
            "precision": precision,
            "threads": threads,
            "library": library,
            "fallback": fallback,
            "strict": strict,
        }
        self._network = Network(engine, device, precision, threads, library, fallback, trace)
        self.card = self._network.card
        check_options(self.options, self.card)
        try:
            self.tiling((1, 1, 1))  # options out of range are refused now
            if is_file and self.card.kind != "through-plane":
                with span(trace, "warm-up"):
                    self._warm_up()
        except MemoryError as error:
            raise RunError("Windows of this size do not fit into memory: take smaller ones.") from error

    def __reduce__(self) -> tuple[Callable[[], SuperResolver], tuple[()]]:
        """Copies, and what a pickle is read into, open the model anew: engines stay in their process.

        A trace is left behind. Raises RunError if this is closed, or was given an open engine.
        """
        opened = {**self._opened, **dataclasses.asdict(self.options)}
        if self.engine is opened["engine"] or hasattr(opened["engine"], "card"):
            raise RunError(
                "A SuperResolver with an engine that was given to it cannot be copied, or sent to another "
                "process: open one there, with a model file."
            )
        return partial(type(self), **opened), ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the engine, once the volume in hand is done."""
        self._network.close()

    def __repr__(self) -> str:
        return (
            f"<SuperResolver {self.card.name}, closed>"
            if self._network.closed
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
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other._asked = Asked.parse(spacing)
        other.options = dataclasses.replace(self.options, to=str(other._asked))
        check_options(other.options, other.card)
        return other

    def info(self) -> Info:
        """The model, what runs it and how. Raises RunError if this is closed."""
        return Info(self.card, self.engine.info, self.options)

    @property
    def engine(self) -> Engine | CudaEngine:
        """The open engine. Raises RunError if this is closed."""
        return self._network.engine

    @property
    def _stages(self) -> VolumeStages:
        return VolumeStages(self._network, self.options)

    @property
    def error_map(self) -> NDArray[np.float32] | None:
        """The expected absolute error of each voxel of the last volume, image or scan of this thread.

        float32 in its units, of the result's shape; see `pipeline.error_map` for what it promises. None if it
        was not asked for, has gone into a room of its own, or the voxels are too uneven for three slab axes.
        """
        return getattr(self._last, "errors", None)

    @property
    def timings(self) -> Timings | None:
        """Seconds of the last volume that this thread has resolved; None before the first."""
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
        check_volume(volume)
        self._needs_slabs()
        check_zooms(zooms)
        check_progress(progress)
        start, watch = time.perf_counter(), Stopwatch(self.trace)
        rows, columns, slices = volume.shape
        fine_shape = self.tiling((rows, columns, slices)).fine_shape
        sr = np.empty(fine_shape, stored_dtype(volume.dtype, dtype), "F")
        best = self.options.best and self.why_one_axis(zooms) is None
        errors = np.empty(sr.shape, np.float32, "F") if best and self.options.error_map else None
        look = self._stages.look(volume)
        self._heed(doubt_of_sign("The volume", volume))
        self._stages.restore(Task(volume, sr, look, watch, progress=progress, best=best, errors=errors))
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
        check_stream(slices, count, intensities, self.options.best)
        stored_dtype(np.dtype(np.float32), dtype)  # one that does not exist is refused now
        return self._stream(slices, count, intensities, dtype)

    def _stream(
        self, slices: Iterable[NDArray[Any]], count: int, intensities: Intensities, dtype: Output
    ) -> Generator[NDArray[Any]]:
        start, watch = time.perf_counter(), Stopwatch(self.trace, "stream")
        stages = self._stages
        yield from resolve_stream(
            slices,
            count,
            intensities,
            self.tiling,
            lambda given: stored_dtype(given, dtype),
            stages.run,
            stages.holding.of_stream(intensities),
            watch,
        )
        self._note(start, watch)

    def intensities(self, volume: NDArray[Any]) -> Intensities:
        """Read off a volume the intensities of others with its protocol and gain, for `stream`.

        Parameters
        ----------
        volume
            LR voxels (rows, columns, slices) of any real dtype.

        Raises
        ------
        RunError
            For other shapes and dtypes, NaN or Inf, and for a constant volume, which says nothing.
        """
        check_volume(volume)
        look = self._stages.look(volume)
        if look.content.low == look.content.high:
            raise RunError("A constant volume says nothing about intensities: take one that shows something.")
        low, high = look.content.low.item(), look.content.high.item()
        return Intensities(look.unit, low, high, look.noise.sigma if look.noise else 0.0, look.rings)

    @overload
    def image(self, image: SpatialImage, dtype: Output = "input", axis: int | None = None) -> Nifti1Image: ...

    @overload
    def image(self, image: Itk, dtype: Output = "input", axis: int | None = None) -> Itk: ...

    def image(
        self, image: SpatialImage | ItkImage, dtype: Output = "input", axis: int | None = None
    ) -> Nifti1Image | ItkImage:
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
        check_scan(scan)
        check_progress(progress)
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
            with watch.time("blend"):
                to_spacing.place_labels(scan, grid, sr)
            self._last.found = []
        else:
            self._last.found = whole_scan.restore(
                self._stages, scan, choice, looks, sr, errors, watch, progress
            )
        self._note(start, watch)
        return header, sr

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
        looks = whole_scan.look(self._stages, scan, self.choice(scan, axis).axis)
        self._heed(doubt_of_sign(scan.name, volumes(scan.voxels())[0], scan.slope, scan.inter))
        return looks

    def _heed(self, doubt: str) -> None:
        """Tell a doubt about a volume that was read, if there is one. Raises RunError if `strict`."""
        if doubt and self._strict:
            raise RunError(f"Refused by --strict: {doubt}")
        if doubt:
            log.warning("%s", doubt)

    def header(self, scan: Scan, dtype: Output = "input", axis: int | None = None) -> Header:
        """The header that the SR scan will have. Raises RunError for what `strict` refuses."""
        choice = self.choice(scan, axis)
        if self._strict and choice.warnings:
            raise RunError(f"{scan.name} is refused by --strict: {'; '.join(choice.warnings)}.")
        if choice.grid is not None:
            return scan.header_on(choice.grid, stored_dtype(scan.dtype, dtype))
        _, factors, _ = self.layout(scan, axis)
        return scan.fine_header(factors, self.card.grid, stored_dtype(scan.dtype, dtype))

    def choice(self, scan: Scan, axis: int | None = None) -> Choice:
        """The model and the grid for a scan, with warnings if it is outside the model's range."""
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
        return self.engine if kind == self.card.kind else self._network.through_plane

    @property
    def found(self) -> list[Findings]:
        """Estimates from the last scan of this thread, one per volume if its slices are thick, else none."""
        return getattr(self._last, "found", [])

    def describe(self) -> str:
        """The model and what runs it, in one line."""
        scale = "x".join(map(str, self.card.scale))
        held = "" if self._stages.holding.wanted else ", measured band left to the network"
        best = ", mean over three slab axes at three times the cost" if self.options.best else ""
        best += ", with expected errors" if self.options.error_map else ""
        return f"{self.card.name} ({self.card.method}, {scale}): {self.engine.info}{held}{best}"

    def tiling(self, shape: tuple[int, int, int]) -> Tiling:
        """The windows of an LR volume (rows, columns, slices) that is all content."""
        return self._stages.tiling(shape)

    def tilings(self, shape: tuple[int, int, int]) -> list[Tiling]:
        """The windows of an LR volume (rows, columns, slices) along each slab axis of a mean over three."""
        return self._stages.tilings(shape)

    def layout(self, scan: Scan, axis: int | None = None) -> tuple[Orientation, Factors, Tiling]:
        """How a scan will be resolved: turned how, HR voxels per LR voxel along (i, j, k), windows."""
        turn = Orientation.of(scan.affine, axis)
        factors = turn.by_stored(self.card.scale)
        check_layout(scan, factors, self.options.labels == "nearest")
        rows, columns, slices = (scan.shape[n] for n in turn.axes)
        return turn, factors, self.tiling((rows, columns, slices))

    def measured_band(self, scan: Scan, looks: Sequence[Look]) -> list[HeldBand]:
        """How the measured band of a scan that was looked through is held, by volume; empty if it is not."""
        return self._stages.holding.record(scan, looks)

    @property
    def why_unheld(self) -> str:
        """Why the measured band is left to the network, if it is."""
        return self._stages.holding.why_not

    def seconds_per_window(self, tiling: Tiling) -> float:
        """How long the network takes for one of a tiling's windows, measured on a batch of noise."""
        count = batch_size(tiling)
        self._stages.run_on_noise(tiling, count)  # what a library does once for windows of a new size
        return self._stages.run_on_noise(tiling, count).seconds["network"] / count

    def _warm_up(self) -> None:
        """Run the network on a window, so that initialisation does not slow down the first volume."""
        window = self.options.window
        rows, columns = window if isinstance(window, tuple) else self.card.window
        self._stages.run_on_noise(self.tiling((rows, columns, self.card.slab[0])), 1)

    def _needs_slabs(self) -> None:
        """Raise RunError if what was asked for depends on voxel sizes, which an array alone does not have."""
        if self._asked is not None or self.card.kind != "slab":
            raise RunError("A spacing can be asked for a scan or an image, whose voxel sizes are known.")

    def _note(self, start: float, watch: Stopwatch) -> None:
        stages = {name: watch.seconds[name] for name in ("read", "gather", "network", "blend")}
        total = time.perf_counter() - start
        self._last.timings = Timings(**stages, total=total, windows=watch.windows, computed=watch.computed)
