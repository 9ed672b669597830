"""A CUDA device as the runtime uses it: its context, the kernels, and a sentence for every failure."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import re
import weakref
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from ..errors import RunError, first_line
from ..system.extras import require

BLOCK = (32, 4, 1)  # threads of a block: columns, rows


def blocks(rows: int, columns: int, layers: int) -> tuple[int, int, int]:
    """The grid of blocks that has a thread for each voxel."""
    return -(-columns // BLOCK[0]), -(-rows // BLOCK[1]), layers


class GpuError(RunError):
    """The GPU is missing, busy, or has been lost; `--fallback cpu` continues without it."""


class OutOfMemory(Exception):
    """The GPU's memory does not hold a batch; the pipeline halves the batch and continues."""


FULL = re.compile(
    r"out.?of.?memory|alloc_?failed|memory.?allocation|failed to allocate|bad.?alloc"
    r"|(insufficient|too little|not enough|available) memory",
    re.IGNORECASE,
)


def is_full(text: str) -> bool:
    """Whether a library's error says that memory ran out; an illegal memory access does not count."""
    return bool(FULL.search(text))


class Gpu:
    """One CUDA device. index: as the driver counts. capability: compute capability, such as "9.0".

    driver: the module `pycuda.driver`, or one like it. The primary context is released with the last
    reference, at the latest when Python ends, after everything in it (see `closes`). Raises GpuError if there
    is no such device, or PyCUDA is missing.
    """

    def __init__(self, index: int = 0, driver: Any = None) -> None:
        try:
            self.cuda: Any = driver or _driver()
        except RunError as error:
            raise GpuError(f"No GPU can be used without PyCUDA. {error}") from error
        self.index = index
        try:
            self.cuda.init()
            if index >= self.cuda.Device.count():
                raise GpuError(f"There is no GPU {index} here: {self.cuda.Device.count()} were found.")
            device = self.cuda.Device(index)
            self.name: str = device.name()
            self.capability = ".".join(map(str, device.compute_capability()))
            # A separate context could not share memory and streams with the engines' libraries.
            self._context = device.retain_primary_context()
        except self.cuda.Error as error:
            raise GpuError(
                f"GPU {index} cannot be used ({first_line(error)}): is another process on it?"
            ) from error
        self._kernels: Any = None
        self._streams: list[Any] = []
        weakref.finalize(self, _release, self.cuda, self._context, self._streams)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make this device's context current inside the block; errors of the driver become ours."""
        try:
            self._context.push()
        except self.cuda.Error as error:
            raise self._lost(error) from error
        try:
            yield
        except self.cuda.MemoryError as error:
            raise OutOfMemory(str(error)) from error
        except self.cuda.Error as error:
            raise self._lost(error) from error
        finally:
            with contextlib.suppress(self.cuda.Error):
                self.cuda.Context.pop()

    def kernel(self, name: str) -> Any:
        """A kernel by its name in `kernels.cu`; the driver compiles its PTX for the card."""
        if self._kernels is None:
            packed = files("udean.runtime.cuda") / "kernels.ptx.gz"
            self._kernels = self.cuda.module_from_buffer(gzip.decompress(packed.read_bytes()))
        return self._kernels.get_function(name)

    def streams(self, count: int) -> list[Any]:
        """The first `count` streams of this device; always the same ones, because engines bind to them."""
        while len(self._streams) < count:
            self._streams.append(self.cuda.Stream())
        return self._streams[:count]

    def closes(self, owner: object, resource: Any) -> weakref.finalize[..., Any]:
        """Call a resource's `close()` inside this context, in whichever thread its owner ends.

        PyCUDA frees memory only if the context is current, and leaks it otherwise. Calling the returned
        finalizer closes it earlier.
        """
        return weakref.finalize(owner, _close, self, resource)

    def _lost(self, error: Exception) -> GpuError:
        return GpuError(
            f"GPU {self.index} ({self.name}) stopped working ({first_line(error)}): start again, or continue "
            "with --fallback cpu."
        )


def is_reachable() -> bool:
    """Whether PyCUDA is installed, or else the bindings that PyTorch for CUDA brings."""
    return find_spec("pycuda") is not None or _has_bindings()


def _has_bindings() -> bool:
    return find_spec("cuda") is not None and find_spec("cuda.bindings") is not None


def _driver() -> Any:
    """PyCUDA, or else the bindings that PyTorch for CUDA brings."""
    try:
        return importlib.import_module("pycuda.driver")
    except ModuleNotFoundError:
        if not _has_bindings():
            return require("pycuda.driver", "trt")
    except ImportError:  # PyCUDA is installed, but something it needs is not: `require` says what
        return require("pycuda.driver", "trt")
    from . import bindings

    return bindings


def _close(gpu: Gpu, resource: Any) -> None:
    with contextlib.suppress(GpuError), gpu.current():  # on a lost device, nothing is left to free
        resource.close()


def _release(cuda: Any, context: Any, streams: list[Any]) -> None:
    with contextlib.suppress(cuda.Error):
        context.push()
        streams.clear()
        cuda.Context.pop()
        context.detach()
