"""Files for the viewer, made on demand: a volume as NIfTI, float32 in the scan's units, or a plane as PNG.

The tricubic volume and the differences are computed plane by plane while they are sent, so that nothing
larger than the two scans is held. Headers hold the geometry and nothing about a patient.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..scan.nifti import Header, preamble
from ..scan.scan import Scan
from .comparison import ERROR_SHARE, Comparison, compare
from .pictures import PlaneName, lays, png
from .results import Result

VolumeKind = Literal["lr", "tricubic", "sr", "error", "difference", "consistency"]
KINDS: tuple[VolumeKind, ...] = get_args(VolumeKind)
LARGEST = 32767  # voxels along an axis of NIfTI-1


@dataclass(frozen=True)
class VolumeFile:
    """A NIfTI file to be sent: its size in bytes, and its bytes in pieces."""

    size: int
    pieces: Iterator[bytes]


@dataclass(frozen=True)
class Opened:
    """A result beside its scan.

    comparison: None if the scan cannot be shown; then `problem` says why. error_map: of the size of the
    result, if there is one.
    """

    sr: Scan
    comparison: Comparison | None
    error_map: Scan | None
    problem: str


class Shelf:
    """Keeps the result in hand open; safe from any thread."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._last: tuple[object, Opened] | None = None

    def open(self, result: Result, number: int = 0) -> Opened:
        """A result, one volume of a series. Raises RunError if the SR scan itself cannot be shown."""
        state = result.sidecar.path.stat()
        label = result.sidecar.path, state.st_mtime_ns, state.st_ino, number
        with self._turn:
            if self._last and self._last[0] == label:
                return self._last[1]
            self._last = None  # before the next two come into memory
            opened = _open(result, number)
            self._last = label, opened
            return opened


def _open(result: Result, number: int) -> Opened:
    sr = result.open()
    if number >= sr.volumes:
        raise RunError(f"{result.name} has {sr.volumes} volumes.")
    errors = result.open_error_map()
    if errors and errors.shape != sr.shape:
        raise RunError(f"{errors.name} is of another size than {sr.name}: run udean-run again.")
    sidecar = result.sidecar
    if sidecar.labels:
        return Opened(sr, None, errors, f"{result.name} is {sidecar.labels}: there is nothing to compare.")
    try:
        found = compare(result.open_source(), sr, sidecar.card, number, sidecar.profile_mm(number))
        return Opened(sr, found, errors, "")
    except RunError as error:
        return Opened(sr, None, errors, str(error))


def volume(opened: Opened, kind: VolumeKind, number: int = 0) -> VolumeFile:
    """One of the volumes that are shown; `number` of a series. Raises RunError if there is none."""
    scan, planes = _planes(opened, kind, number)
    if kind == "consistency" and (found := opened.comparison):
        return _file(found.coarse.shape, found.coarse.affine(found.scan.affine), lambda k: planes(2, k))
    return _file(scan.shape, scan.affine, lambda k: planes(2, k))


def still(opened: Opened, kind: VolumeKind, name: PlaneName, index: int, number: int = 0) -> bytes:
    """A plane of the result, by name and number, or what the others say of the same place, as PNG.

    For browsers that cannot draw volumes. Raises RunError if there is none.
    """
    sr, found = opened.sr, opened.comparison
    lay = lays(sr.affine)[name]
    if index >= sr.shape[lay.axis]:
        raise RunError(f"There are {sr.shape[lay.axis]} {name} planes.")
    scan, planes = _planes(opened, kind, number)
    if found and kind == "lr":
        place = found.grid.start[lay.axis] + found.grid.step[lay.axis] * index
        index = min(max(round(place), 0), scan.shape[lay.axis] - 1)
    plane = planes(lay.axis, index)
    low, high = grey(found) if found else (float(plane.min()), float(plane.max()))
    if kind == "error":
        low, high = 0.0, ERROR_SHARE * high
    return png(lay.picture(plane - low) / max(high - low, 1e-12))


def grey(found: Comparison) -> tuple[float, float]:
    """The intensities that are shown black and white."""
    return min(0.0, float(found.measured.min())), found.unit


def _planes(
    opened: Opened, kind: VolumeKind, number: int
) -> tuple[Scan, Callable[[int, int], NDArray[np.float32]]]:
    """A kind of pane: the scan on whose grid it lies, and its planes by axis and index."""
    found, stored = opened.comparison, {"sr": opened.sr, "error": opened.error_map}.get(kind)
    if stored:
        voxels = stored.voxels()
        voxels = voxels[..., number] if stored.volumes > 1 else voxels
        return stored, lambda axis, index: stored.in_units(np.take(voxels, index, axis))
    if kind == "error":
        raise RunError("There is no map of expected errors.")
    if found is None:
        raise RunError(opened.problem)
    if kind == "lr":
        return found.scan, lambda axis, index: found.scan.in_units(np.take(found.lr, index, axis))
    if kind == "consistency":
        return found.scan, lambda axis, index: np.take(found.difference, index, axis)
    if kind == "tricubic":
        return opened.sr, found.interpolated
    return opened.sr, lambda axis, index: found.fine(axis, index) - found.interpolated(axis, index)


def _file(
    shape: tuple[int, int, int], affine: NDArray[np.float64], plane: Callable[[int], NDArray[np.float32]]
) -> VolumeFile:
    """A file on a grid, whose planes (i, j) are made one by one."""
    head = preamble(_header(shape, affine))
    pieces = (np.asfortranarray(plane(k), "<f4").tobytes("F") for k in range(shape[2]))
    return VolumeFile(len(head) + 4 * math.prod(shape), itertools.chain([head], pieces))


def _header(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Header:
    """Geometry and nothing else, as an sform: of two affines, programs differ which they take."""
    header = nib.Nifti1Header() if max(shape) <= LARGEST else nib.Nifti2Header()
    header.set_data_dtype(np.dtype("<f4"))
    header.set_data_shape(shape)
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header.set_xyzt_units("mm")  # as the affine is, whatever the file counts in
    header.set_sform(affine, "scanner")
    header.set_slope_inter(1, 0)
    return header
