"""Room for an SR scan's voxels: in memory, or in a file that appears when they are all there."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..system.files import atomic
from .nifti import Header, preamble
from .scan import write_scan

Room: TypeAlias = Callable[[Header], NDArray[Any]]  # an SR header to the array that takes its voxels


class Draft(Protocol):
    """Room for the voxels of a result that does not exist yet. One of `commit` and `discard` ends it."""

    @property
    def mapped(self) -> bool:
        """Whether the voxels lie in the file already, so that a volume need not fit into memory."""
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
            # Taken now, since a map on a full disk would kill the process later.
            getattr(os, "posix_fallocate", lambda handle, _, size: os.truncate(handle, size))(
                file.fileno(), 0, size
            )
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


def check_memory(name: str, header: Header) -> None:
    """Raise RunError if the machine's memory cannot hold the volume of this SR header."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    size = math.prod(shape) * dtype.itemsize
    if size > memory:
        raise RunError(
            f"The SR volume of {name} ({' x '.join(map(str, shape))}) would need {size / 2**30:.0f} GiB "
            f"and this machine has {memory / 2**30:.0f} GiB: crop the scan, or give it as .nii."
        )
