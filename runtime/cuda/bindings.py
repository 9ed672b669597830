"""The driver's calls that the pipeline needs, as PyCUDA names them, by NVIDIA's own `cuda.bindings`.

PyTorch for CUDA brings these bindings, so a checkpoint runs on a GPU without PyCUDA, which must be compiled.
Errors are raised as `Error`, full memory as `MemoryError`. Memory may be freed in any thread that has the
context; whatever is dropped without `free` is released with the context.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_cuda: Any = importlib.import_module("cuda.bindings.driver")
BLOCKING = 1  # a stream that does not wait for the default stream: CU_STREAM_NON_BLOCKING


class Error(Exception):
    """An error of the driver, in its own words."""


class MemoryError(Error):
    """The device's memory is full."""


def _call(name: str, *args: Any) -> Any:
    code, *found = getattr(_cuda, name)(*args)
    if code != _cuda.CUresult.CUDA_SUCCESS:
        _, text = _cuda.cuGetErrorString(code)
        kind = MemoryError if code == _cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY else Error
        raise kind(f"{name} failed: {text.decode() if text else code}")
    return found[0] if found else None


def init() -> None:
    try:
        _call("cuInit", 0)
    except RuntimeError as error:  # from the bindings: there is no driver to load
        raise Error(str(error)) from error


def get_driver_version() -> int:
    return _call("cuDriverGetVersion")


def mem_get_info() -> tuple[int, int]:
    """Free and total bytes of the current device."""
    _, free, whole = _cuda.cuMemGetInfo()
    return free, whole


class Device:
    """A device by its number."""

    def __init__(self, index: int) -> None:
        self._device = _call("cuDeviceGet", index)

    @staticmethod
    def count() -> int:
        return _call("cuDeviceGetCount")

    def name(self) -> str:
        return _call("cuDeviceGetName", 256, self._device).split(b"\0")[0].decode()

    def compute_capability(self) -> tuple[int, int]:
        kinds = _cuda.CUdevice_attribute
        major, minor = (
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
        return _call("cuDeviceGetAttribute", major, self._device), _call(
            "cuDeviceGetAttribute", minor, self._device
        )

    def pci_bus_id(self) -> str:
        """Its address, such as "0000:01:00.0": the same whichever devices this process may see."""
        return _call("cuDeviceGetPCIBusId", 16, self._device).split(b"\0")[0].decode()

    def retain_primary_context(self) -> Context:
        return Context(self._device)


class Context:
    """The device's primary context, shared with whatever else runs in this process."""

    def __init__(self, device: Any) -> None:
        self._device, self._context = device, _call("cuDevicePrimaryCtxRetain", device)

    def push(self) -> None:
        _call("cuCtxPushCurrent", self._context)

    @staticmethod
    def pop() -> None:
        _call("cuCtxPopCurrent")

    def detach(self) -> None:
        _call("cuDevicePrimaryCtxRelease", self._device)


class Stream:
    """A stream that waits for no other. handle: in the form that libraries accept."""

    def __init__(self) -> None:
        self._stream = _call("cuStreamCreate", BLOCKING)
        self.handle = int(self._stream)

    def wait_for_event(self, event: Event) -> None:
        _call("cuStreamWaitEvent", self._stream, event.event, 0)

    def synchronize(self) -> None:
        _call("cuStreamSynchronize", self._stream)


class Event:
    """A point on a stream, with its time."""

    def __init__(self) -> None:
        self.event = _call("cuEventCreate", 0)

    def record(self, stream: Stream) -> None:
        _call("cuEventRecord", self.event, stream.handle)

    def synchronize(self) -> None:
        _call("cuEventSynchronize", self.event)

    def time_since(self, other: Event) -> float:
        """Milliseconds."""
        return _call("cuEventElapsedTime", other.event, self.event)

    def __del__(self) -> None:
        if hasattr(self, "event"):
            _cuda.cuEventDestroy(self.event)  # refused if the context is gone; then nothing is lost


class Allocation:
    """Bytes on the device; `int` of it is the address."""

    def __init__(self, size: int) -> None:
        self._address = int(_call("cuMemAlloc", size))

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        _call("cuMemFree", self._address)


def mem_alloc(size: int) -> Allocation:
    return Allocation(size)


def pagelocked_empty(count: int, dtype: DTypeLike) -> NDArray[Any]:
    """Page-locked host memory; released with its last view."""
    dtype = np.dtype(dtype)
    pinned = _Pinned(max(1, count * dtype.itemsize))
    memory: Any = (ctypes.c_char * pinned.size).from_address(pinned.address)
    memory.owner = pinned
    return np.frombuffer(memory, dtype, count)


class _Pinned:
    def __init__(self, size: int) -> None:
        self.size, self.address = size, int(_call("cuMemAllocHost", size))

    def __del__(self) -> None:
        if hasattr(self, "address"):
            _cuda.cuMemFreeHost(self.address)


def memcpy_htod(target: Any, source: NDArray[Any]) -> None:
    _call("cuMemcpyHtoD", int(target), source.ctypes.data, source.nbytes)


def memcpy_dtoh(target: NDArray[Any], source: Any) -> None:
    _call("cuMemcpyDtoH", target.ctypes.data, int(source), target.nbytes)


def memcpy_htod_async(target: Any, source: NDArray[Any], stream: Stream) -> None:
    _call("cuMemcpyHtoDAsync", int(target), source.ctypes.data, source.nbytes, stream.handle)


def memcpy_dtoh_async(target: NDArray[Any], source: Any, stream: Stream) -> None:
    _call("cuMemcpyDtoHAsync", target.ctypes.data, int(source), target.nbytes, stream.handle)


def memcpy_dtod_async(target: int, source: int, size: int, stream: Stream) -> None:
    _call("cuMemcpyDtoDAsync", target, source, size, stream.handle)


def memset_d8(target: int, value: int, size: int) -> None:
    _call("cuMemsetD8", target, value, size)


def memset_d8_async(target: Any, value: int, size: int, stream: Stream) -> None:
    _call("cuMemsetD8Async", int(target), value, size, stream.handle)


class Module:
    """Kernels that the driver has compiled."""

    def __init__(self, ptx: bytes) -> None:
        self._module = _call("cuModuleLoadData", ptx + b"\0")

    def get_function(self, name: str) -> Kernel:
        return Kernel(_call("cuModuleGetFunction", self._module, name.encode()))


module_from_buffer = Module


class Kernel:
    """A kernel, called with numpy scalars, structures (`np.void`) and allocations."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(
        self, *args: Any, block: tuple[int, int, int], grid: tuple[int, int, int], stream: Stream
    ) -> None:
        values = [a if isinstance(a, np.generic) else np.uint64(int(a)) for a in args]
        held = [np.frombuffer(value.tobytes(), np.uint8).copy() for value in values]
        pointers = np.array([value.ctypes.data for value in held], np.uint64)
        _call("cuLaunchKernel", self._function, *grid, *block, 0, stream.handle, pointers.ctypes.data, 0)
