"""Storage for an SR scan's voxels: in memory, or in a file that appears when it is complete."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import DiskError, RunError
from ..system.files import atomic
from ..system.memory import of_machine
from .nifti import Header, preamble
from .scan import write_scan

Room: TypeAlias = Callable[[Header], NDArray[Any]]  # an SR header to the array that takes its voxels


class Draft(Protocol):
    """Room for the voxels of a result that does not exist yet. One of `commit` and `discard` ends it."""

    @property
    def mapped(self) -> bool:
        """Whether the voxels are mapped from the file, so that a volume need not fit into memory."""
        ...

    def room(self, header: Header) -> NDArray[Any]:
        """An array for the voxels of this header. Raises RunError if there is no room for them."""
        ...

    def commit(self) -> None:
        """Make the result appear, whole. Raises RunError if it cannot be written."""
        ...

    def discard(self) -> None:
        """Leave nothing behind."""
        ...


class FileDraft:
    """Room for the voxels of a file that does not exist yet; see `Draft`.

    The voxels of an uncompressed file lie in that file, as a memory map, so a volume need not fit into
    memory; those of a compressed one lie in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open = contextlib.ExitStack()
        self._header: Header | None = None
        self._voxels: NDArray[Any] | None = None

    @property
    def mapped(self) -> bool:
        return not self.path.name.lower().endswith(".gz")

    def room(self, header: Header) -> NDArray[Any]:
        """An array for the voxels of this header. Raises RunError if the disk has no room for them."""
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        self._header = header
        if not self.mapped:
            self._voxels = voxels = np.empty(shape, dtype, order="F")
            return voxels
        start = preamble(header)
        size = len(start) + math.prod(shape) * dtype.itemsize
        file = self._open.enter_context(atomic(self.path))
        try:
            file.write(start)
            file.flush()
            _allocate(file.fileno(), size)
            self._voxels = voxels = np.memmap(file.name, dtype, "r+", len(start), shape, order="F")
        except OSError as error:
            self.discard()
            raise RunError(f"Cannot write {self.path}: {error.strerror or error}.") from error
        return voxels

    def commit(self) -> None:
        """Make the file appear, whole. Raises RunError if it cannot be written."""
        voxels, self._voxels = self._voxels, None
        assert voxels is not None
        if isinstance(voxels, np.memmap):
            voxels.flush()
            self._open.close()
        else:
            write_scan(self.path, self._header, voxels)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._voxels = None
        abandoned = RunError("abandoned")
        with contextlib.suppress(RunError):
            self._open.__exit__(RunError, abandoned, None)


def in_memory(name: str) -> Room:
    """Room in memory; refuses an SR volume that this machine cannot hold before any voxel is read."""

    def room(header: Header) -> NDArray[Any]:
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        check_memory(name, header)
        return np.empty(shape, dtype, order="F")

    return room


def scratch(shape: tuple[int, ...], sr: NDArray[Any]) -> NDArray[np.float32]:
    """Room for a float32 volume that an SR volume is made from: in memory or, if the SR volume is mapped, in
    a nameless file in the same folder, which disappears with the array.

    Raises RunError if there is no room for it, DiskError if that is in the folder.
    """
    size = 4 * math.prod(shape)
    if not isinstance(sr, np.memmap) or sr.filename is None:
        if size > of_machine():
            raise RunError(
                f"This machine's memory does not hold the {size / 2**30:.0f} GiB of a volume along another "
                "slab axis: leave out the mean over three axes, or give the scan as .nii."
            )
        return np.empty(shape, np.float32)
    folder = Path(sr.filename).parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            _allocate(file.fileno(), size)
            return np.memmap(file, np.float32, "r+", shape=shape)
    except OSError as error:
        raise DiskError(
            f"{folder} has no room for {size / 2**30:.1f} GiB of a volume along another slab axis: "
            f"{error.strerror or error}."
        ) from error


def _allocate(handle: int, size: int) -> None:
    """Take the space of a file now, since a map on a full disk would kill the process later."""
    getattr(os, "posix_fallocate", lambda handle, _, size: os.truncate(handle, size))(handle, 0, size)


def check_memory(name: str, header: Header) -> None:
    """Raise RunError if the machine's memory cannot hold the volume of this SR header."""
    memory = of_machine()
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    size = math.prod(shape) * dtype.itemsize
    if size > memory:
        raise RunError(
            f"The SR volume of {name} ({' x '.join(map(str, shape))}) would need {size / 2**30:.0f} GiB "
            f"and this machine has {memory / 2**30:.0f} GiB: crop the scan, or give it as .nii."
        )
