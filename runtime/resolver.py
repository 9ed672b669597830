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
    checked,
)
from .cuda import CudaEngine
from .errors import RunError
from .pipeline.engine import Engine, Library, Precision
from .pipeline.stream import resolve_stream
from .pipeline.through_plane import Findings
from .pipeline.tiling import Weighting, Window
from .scan.intensity import Intensities
from .scan.kinds import doubt_of_sign
from .scan.model_choice import why_one_axis
from .scan.nifti import Header
from .scan.other_libraries import ItkImage, from_itk, from_tensor, is_itk, is_tensor, to_itk, to_tensor
from .scan.output import Room, in_memory
from .scan.regrid import Asked
from .scan.scan import Scan, fine_image, image_scan, tell_remarks
from .stages.network import Network
from .stages.scan import ScanStages
from .stages.volume import VolumeStages
from .system.trace import Stopwatch, Trace, span
from .task import (
    Consistency,
    Fallback,
    Info,
    Labels,
    Look,
    Options,
    Output,
    Progress,
    Setup,
    Task,
    Timings,
    stored_dtype,
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
        Refuse scans outside the model's range, which are warned about otherwise; see `scan.model_choice`.
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
        self._setup = checked(Setup(engine, device, precision, threads, library, fallback, strict, trace))
        self.trace, self._last = trace, threading.local()
        self._asked = None if to is None else Asked.parse(to)
        spacing = self._asked and str(self._asked)
        given = Options(overlap, window, weighting, crop, consistency, spacing, best, error_map, labels)
        options = checked(given)
        # Expected errors are made of the spread over three slab axes.
        self.options = dataclasses.replace(options, best=options.best or options.error_map)
        self._network = Network(self._setup)
        self.card = self._network.card
        check_options(self.options, self.card)
        try:
            self.stages.tiling((1, 1, 1))  # options out of range are refused now
            if self._setup.is_file and self.card.kind != "through-plane":
                with span(trace, "warm-up"):
                    self.stages.warm_up()
        except MemoryError as error:
            raise RunError("Windows of this size do not fit into memory: take smaller ones.") from error

    def __reduce__(self) -> tuple[Callable[[], SuperResolver], tuple[()]]:
        """Copies, and what a pickle is read into, open the model anew: engines stay in their process.

        A trace is left behind. Raises RunError if this is closed, or was given an open engine.
        """
        if self.engine and not self._setup.is_file:
            raise RunError(
                "A SuperResolver with an engine that was given to it cannot be copied, or sent to another "
                "process: open one there, with a model file."
            )
        given = {**vars(self._setup), **dataclasses.asdict(self.options), "trace": None}
        return partial(type(self), **given), ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the engine and its memory, once the volume in hand is done; no volume follows."""
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
        """The model, what runs it and how.

        Returns
        -------
        Info
            Card, engine and options; as text, a line for each.

        Raises
        ------
        RunError
            If this is closed.
        """
        return Info(self.card, self.engine.info, self.options)

    def describe(self) -> str:
        """The model and what runs it, in one line.

        Returns
        -------
        str
            Such as "udean-2x2x2 (supervised, 2x2x2): openvino 2026.4 on cpu, bf16".

        Raises
        ------
        RunError
            If this is closed.
        """
        scale = "x".join(map(str, self.card.scale))
        held = "" if self.stages.holding.wanted else ", measured band left to the network"
        best = ", mean over three slab axes at three times the cost" if self.options.best else ""
        best += ", with expected errors" if self.options.error_map else ""
        return f"{self.card.name} ({self.card.method}, {scale}): {self.engine.info}{held}{best}"

    @property
    def engine(self) -> Engine | CudaEngine:
        """The open engine. Raises RunError if this is closed."""
        return self._network.engine

    @property
    def stages(self) -> VolumeStages:
        """The stages that a volume goes through."""
        return VolumeStages(self._network, self.options)

    @property
    def scans(self) -> ScanStages:
        """What is decided about a scan before its volumes go through the stages."""
        return ScanStages(self.stages, self._asked, self._setup.strict)

    @property
    def error_map(self) -> NDArray[np.float32] | None:
        """The expected absolute error of each voxel of the last volume, image or scan of this thread.

        float32 in its units, of the result's shape; see `pipeline.error_map` for what it promises. None if it
        was not asked for, has gone into a room of its own, or the voxels are too uneven for three slab axes.
        """
        return getattr(self._last, "errors", None)

    @property
    def slice_estimates(self) -> list[Findings]:
        """What the last scan of this thread told about its thick slices, one for each volume; else empty."""
        return getattr(self._last, "slice_estimates", [])

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
        fine_shape = self.stages.tiling((rows, columns, slices)).fine_shape
        sr = np.empty(fine_shape, stored_dtype(volume.dtype, dtype), "F")
        best = self.options.best and self.why_one_axis(zooms) is None
        errors = np.empty(sr.shape, np.float32, "F") if best and self.options.error_map else None
        look = self.stages.look(volume)
        self.scans.heed(doubt_of_sign("The volume", volume))
        self.stages.restore(Task(volume, sr, look, watch, progress=progress, best=best, errors=errors))
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
        stages = self.stages
        yield from resolve_stream(
            slices,
            count,
            intensities,
            stages.tiling,
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
        look = self.stages.look(volume)
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
            What `scans.look` has found in the scan, if it was asked before.
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
        start, watch, stages = time.perf_counter(), Stopwatch(self.trace, Path(scan.name).name), self.scans
        scan = stages.prepared(scan)
        choice = stages.choice(scan, axis)
        header = stages.header(scan, dtype, axis)
        sr = (room or in_memory(scan.name))(header)
        errors = None
        if self.options.error_map and choice.best:
            errors = (error_room or in_memory(scan.name))(stages.header(scan, "float32", axis))
        self._last.errors = None if error_room else errors
        with watch.time("read"):
            scan = scan.loaded()
            looks = looks or stages.look(scan, axis)
        self._last.slice_estimates = stages.restore(scan, choice, looks, sr, errors, watch, progress)
        self._note(start, watch)
        return header, sr

    @staticmethod
    def why_one_axis(zooms: Sequence[float] | None) -> str | None:
        """Why a volume of these voxel sizes gets no mean over three slab axes.

        Parameters
        ----------
        zooms
            Voxel sizes along the three axes, in one unit; None: as equal as that mean needs them.

        Returns
        -------
        str or None
            A clause, such as "voxels of 0.5 x 0.5 x 2 mm are longer along one than 1.5 times another"; None
            if it may have the mean.
        """
        return None if zooms is None else why_one_axis(zooms)

    def _needs_slabs(self) -> None:
        """Raise RunError if what was asked for depends on voxel sizes, which an array alone does not have."""
        if self._asked is not None or self.card.kind != "slab":
            raise RunError("A spacing can be asked for a scan or an image, whose voxel sizes are known.")

    def _note(self, start: float, watch: Stopwatch) -> None:
        stages = {name: watch.seconds[name] for name in ("read", "gather", "network", "blend")}
        total = time.perf_counter() - start
        self._last.timings = Timings(**stages, total=total, windows=watch.windows, computed=watch.computed)
