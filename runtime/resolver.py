"""The runtime's face: a trained network applied to volumes, with units and geometry kept.

resolve = SuperResolver("sr.onnx")      # load once
sr = resolve(volume)                    # ndarray (rows, columns, slices)
image = resolve.image(nib_image)        # nibabel in, nibabel out
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from . import intensity
from .engines import Engine, Library, Precision, open_engine
from .errors import RunError
from .geometry import Factors, slab_axis, voxel_factors
from .host import Planes, Stopwatch, Volume, resolve_slabs
from .volume import Header, Scan, fine_image, image_scan
from .windows import OVERLAP, Plan, Weighting, plan_windows

Output = Literal["input", "float32"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Timings:
    """Seconds of the last volume. The stages overlap, so they do not add up to the total.

    windows: all of the plan; computed: those that the network saw, without byte-identical ones.
    """

    read: float
    gather: float
    network: float
    blend: float
    total: float
    windows: int
    computed: int


class SuperResolver:
    """A network and its windows, ready for any number of volumes.

    engine: a model file (.onnx, checkpoint), None for the embedded model, or an open engine. device,
    precision, threads and library are `open_engine`'s; overlap, window and weighting `plan_windows`'s.
    Raises RunError with what the user can do. `timings` tells of the last volume.
    """

    timings: Timings | None = None

    def __init__(
        self,
        engine: str | Path | Engine | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        overlap: float = OVERLAP,
        window: tuple[int, int] | None = None,
        weighting: Weighting = "gaussian",
        threads: int | None = None,
        library: Library = "auto",
    ) -> None:
        if engine is None or isinstance(engine, str | Path):
            engine = open_engine(engine, device, precision, threads, library)
        self.engine = engine
        self.card = engine.card
        self.overlap = overlap
        self.window = window
        self.weighting: Weighting = weighting
        self.plan((1, 1, 1))  # options out of range are refused now

    def __call__(
        self, volume: NDArray[Any], dtype: Output = "input", progress: Progress | None = None
    ) -> NDArray[Any]:
        """Resolve a volume (rows, columns, slices) of any real dtype to (s·rows, s·columns, s·slices).

        dtype: "input" keeps the volume's, integers rounded and clipped to the range of its voxels. A
            magnitude image, which has no negative voxels, gets none whatever the dtype.
        progress(done, all) counts windows. Raises RunError for other shapes and dtypes, NaN or Inf.
        """
        if volume.ndim != 3 or not volume.size or volume.dtype.kind not in "iuf":
            raise RunError(f"A volume must be 3-D and real, not {volume.dtype} of shape {volume.shape}.")
        start, watch = time.perf_counter(), Stopwatch()
        rows, columns, slices = volume.shape
        plan = self.plan((rows, columns, slices))
        stored = _stored_dtype(volume.dtype, dtype)
        sr = self._resolve(volume, 1.0, 0.0, stored, 2, plan, watch, progress)
        self._note(start, watch)
        return sr

    def image(self, image: SpatialImage, dtype: Output = "input", axis: int | None = None) -> Nifti1Image:
        """Resolve a nibabel image. axis: that across the slices, by default the coarsest."""
        return fine_image(*self.scan(image_scan(image), dtype, axis))

    def scan(
        self, scan: Scan, dtype: Output = "input", axis: int | None = None, progress: Progress | None = None
    ) -> tuple[Header, NDArray[Any]]:
        """Resolve a scan; returns the SR volume's header and its voxels as stored, (i, j, k)."""
        start, watch = time.perf_counter(), Stopwatch()
        axis, factors, plan = self.layout(scan, axis)
        stored = _stored_dtype(scan.dtype, dtype)
        _check_memory(scan, scan.fine_nbytes(factors, stored))
        with watch.time("read"):
            voxels = scan.voxels()
        try:
            sr = self._resolve(voxels, scan.slope, scan.inter, stored, axis, plan, watch, progress)
        except intensity.IntensityError:
            raise RunError(f"{scan.name} has NaN or infinite voxels: mask or repair them first.") from None
        header = scan.fine_header(factors, self.card.grid, stored)
        self._note(start, watch)
        return header, sr

    def describe(self) -> str:
        """The model and what runs it, in one line."""
        scale = "x".join(map(str, self.card.scale))
        return f"{self.card.name} ({self.card.method}, {scale}): {self.engine.info}"

    def plan(self, shape: tuple[int, int, int]) -> Plan:
        """The windows of an LR volume (rows, columns, slices)."""
        return plan_windows(shape, self.card, self.overlap, self.window, self.weighting)

    def layout(self, scan: Scan, axis: int | None = None) -> tuple[int, Factors, Plan]:
        """How a scan will be resolved: slab axis, HR voxels per LR voxel along (i, j, k), windows."""
        axis = slab_axis(scan.zooms) if axis is None else axis
        rows, columns, slices = (scan.shape[n] for n in _order(axis))
        return axis, voxel_factors(self.card.scale, axis), self.plan((rows, columns, slices))

    def _resolve(
        self,
        voxels: NDArray[Any],
        slope: float,
        inter: float,
        dtype: np.dtype[Any],
        axis: int,
        plan: Plan,
        watch: Stopwatch,
        progress: Progress | None,
    ) -> NDArray[Any]:
        """Stored LR voxels to stored SR voxels, both (i, j, k) with slices along `axis`.

        A constant volume holds nothing to restore and stays constant; the network does not see it.
        """
        lr = np.moveaxis(voxels, axis, 2)
        sr = np.empty([plan.fine_shape[n] for n in np.argsort(_order(axis))], dtype, order="F")
        low, high = _finite_range(lr)
        integer = dtype.kind in "iu"
        if low == high:
            sr[...] = low if integer else low * slope + inter
            return sr

        unit = intensity.unit(lr if (slope, inter) == (1, 0) else lr * np.float32(slope) + np.float32(inter))
        volume = Volume(lr, slope / unit, inter / unit)
        # Integers are stored with the scan's own slope; other voxels in the scan's units.
        gain, offset = (unit / slope, -inter / slope) if integer else (unit, 0.0)
        if not integer:
            magnitude = min(low * slope, high * slope) + inter >= 0
            low, high = 0.0 if magnitude else -np.inf, np.inf

        target = np.moveaxis(sr, axis, 2)
        for first, planes in resolve_slabs(volume, self.engine, plan, watch=watch, progress=progress):
            with watch.time("blend"):
                restored = _restore(planes, gain, offset, dtype, low, high)
                target[:, :, first : first + len(planes)] = np.moveaxis(restored, 0, 2)
        return sr

    def _note(self, start: float, watch: Stopwatch) -> None:
        stages = {name: watch.seconds[name] for name in ("read", "gather", "network", "blend")}
        total = time.perf_counter() - start
        self.timings = Timings(**stages, total=total, windows=watch.windows, computed=watch.computed)


def _order(axis: int) -> list[int]:
    """Where each of (row, column, slice) lies among the voxel axes."""
    return [n for n in range(3) if n != axis] + [axis]


def _stored_dtype(dtype: np.dtype[Any], output: Output) -> np.dtype[Any]:
    if output not in ("input", "float32"):
        raise RunError(f"The output's dtype is 'input' or 'float32', not '{output}'.")
    return np.dtype(np.float32) if output == "float32" else dtype.newbyteorder("=")


def _finite_range(voxels: NDArray[Any]) -> tuple[Any, Any]:
    """Smallest and largest voxel; NaN and Inf show in one of them."""
    low, high = voxels.min(), voxels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise intensity.IntensityError("The volume has NaN or infinite voxels.")
    return low, high


def _restore(
    planes: Planes, gain: float, offset: float, dtype: np.dtype[Any], low: Any, high: Any
) -> NDArray[Any]:
    """Network intensities to stored voxels, clipped to low..high; integers are rounded."""
    if dtype.kind == "f":
        return np.maximum(planes * np.float32(gain) + np.float32(offset), np.float32(low))
    wide = np.float32 if dtype.itemsize <= 2 else np.float64  # float32 holds 16-bit integers exactly
    values = planes.astype(wide) * wide(gain) + wide(offset)
    top = wide(high) if int(wide(high)) <= int(high) else np.nextafter(wide(high), wide(0))
    return np.rint(np.clip(values, wide(low), top))


def _check_memory(scan: Scan, fine_bytes: int) -> None:
    """Refuse an SR volume that this machine cannot hold before any voxel is read."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return
    if fine_bytes > memory:
        size = " x ".join(map(str, scan.shape))
        raise RunError(
            f"{scan.name} ({size}) would need {fine_bytes / 2**30:.0f} GiB for its SR volume and this "
            f"machine has {memory / 2**30:.0f} GiB: crop the scan."
        )
