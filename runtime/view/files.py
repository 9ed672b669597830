"""What the panes show, as NIfTI files made on demand: one volume, float32 in the scan's units.

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
from .comparison import Comparison, compare
from .results import Result

Kind = Literal["lr", "tricubic", "sr", "difference", "consistency"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LARGEST = 32767  # voxels along an axis of NIfTI-1


@dataclass(frozen=True)
class Volume:
    """A NIfTI file to be sent: its size in bytes, and its bytes in pieces."""

    size: int
    pieces: Iterator[bytes]


@dataclass(frozen=True)
class Opened:
    """A result beside its scan. comparison: None where the scan cannot be shown, and `problem` says why."""

    sr: Scan
    comparison: Comparison | None
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
    try:
        sidecar = result.sidecar
        found = compare(result.open_source(), sr, sidecar.card, number, sidecar.profile_mm(number))
        return Opened(sr, found, "")
    except RunError as error:
        return Opened(sr, None, str(error))


def volume(opened: Opened, kind: Kind, number: int = 0) -> Volume:
    """One of the volumes that are shown; `number` of a series. Raises RunError if there is none."""
    found = opened.comparison
    if kind == "sr":
        voxels = opened.sr.voxels()
        if opened.sr.volumes > 1:
            voxels = voxels[..., number]
        return _on(opened.sr, lambda k: opened.sr.in_units(voxels[:, :, k]))
    if found is None:
        raise RunError(opened.problem)
    if kind == "lr":
        return _on(found.scan, lambda k: found.scan.in_units(found.lr[:, :, k]))
    if kind == "consistency":
        affine = found.coarse.affine(found.scan.affine)
        return _file(found.coarse.shape, affine, lambda k: found.difference[:, :, k])
    if kind == "tricubic":
        return _on(opened.sr, lambda k: found.interpolated(2, k))
    return _on(opened.sr, lambda k: found.fine(2, k) - found.interpolated(2, k))


Planes = Callable[[int], NDArray[np.float32]]


def _on(scan: Scan, plane: Planes) -> Volume:
    return _file(scan.shape, scan.affine, plane)


def _file(shape: tuple[int, int, int], affine: NDArray[np.float64], plane: Planes) -> Volume:
    """A file on a grid, whose planes (i, j) are made one by one."""
    head = preamble(_header(shape, affine))
    pieces = (np.asfortranarray(plane(k), "<f4").tobytes("F") for k in range(shape[2]))
    return Volume(len(head) + 4 * math.prod(shape), itertools.chain([head], pieces))


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
