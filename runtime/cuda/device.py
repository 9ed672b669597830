"""A CUDA device as the runtime uses it: its context, the kernels, and a sentence for whatever goes wrong."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from ..errors import RunError, first_line
from ..system.extras import require


class GpuError(RunError):
    """The GPU is not there, is busy, or has been lost; `--fallback cpu` goes on without it."""


class OutOfMemory(Exception):
    """The GPU's memory does not hold a batch; the pipeline halves it and goes on."""


class Gpu:
    """One CUDA device. index: as the driver counts. capability: compute capability, such as "9.0".

    Raises GpuError if there is no such device, or no PyCUDA to reach it.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            self.cuda: Any = require("pycuda.driver", "trt")
        except RunError as error:
            raise GpuError(f"No GPU can be used without PyCUDA. {error}") from error
        self.index = index
        try:
            self.cuda.init()
            if index >= self.cuda.Device.count():
                raise GpuError(f"There is no GPU {index} here: {self.cuda.Device.count()} are found.")
            device = self.cuda.Device(index)
            self.name: str = device.name()
            self.capability = ".".join(map(str, device.compute_capability()))
            # A context of our own would share neither memory nor streams with the engines' libraries.
            self._context = device.retain_primary_context()
        except self.cuda.Error as error:
            raise GpuError(
                f"GPU {index} cannot be used ({first_line(error)}): is another process on it?"
            ) from error
        self._kernels: Any = None

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make this device's context the thread's own inside the block; errors of the driver become ours."""
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
        """A kernel by its name in `kernels.cu`, which nvcc compiles for this device where it is installed."""
        if self._kernels is None:
            folder = files("udean.runtime.cuda")
            if shutil.which("nvcc"):
                compiler: Any = require("pycuda.compiler", "trt")
                self._kernels = compiler.SourceModule((folder / "kernels.cu").read_text(), no_extern_c=True)
            else:
                self._kernels = self.cuda.module_from_buffer((folder / "kernels.ptx").read_bytes())
        return self._kernels.get_function(name)

    def _lost(self, error: Exception) -> GpuError:
        return GpuError(
            f"GPU {self.index} ({self.name}) stopped working ({first_line(error)}): start again, or go on "
            "with --fallback cpu."
        )
