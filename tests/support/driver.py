"""A CUDA driver on the processor: PyCUDA's calls, real memory, the real kernels compiled for the host.

Streams do nothing until something waits for them; then any stream whose next step may run is picked at
random. What runs therefore depends on stream order and events alone, as on a device, and a missing event
shows as a wrong result. Freed memory is overwritten.
"""

import ctypes
import random
import struct
import subprocess
import threading
import types
from pathlib import Path

import numpy as np
from udean.runtime import EngineInfo
from udean.runtime.cuda import device

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "runtime" / "cuda" / "kernels.cu"


def compile_kernels(folder, include):
    """The kernels as a library for this processor."""
    library = folder / "kernels.so"
    command = ["g++", "-std=c++17", "-O2", "-ffp-contract=off", "-w", "-shared", "-fPIC", f"-I{include}"]
    command += [f'-DKERNELS="{KERNELS}"', "-o", str(library), str(HERE / "kernels_on_host.cpp")]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


class Driver:
    """Stands for the module `pycuda.driver`. memory: bytes of the device."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    def __init__(self, library, seed=0, memory=1 << 30):
        self.library, self.random = library, random.Random(seed)
        self.memory, self.used, self.streams, self.clock = memory, 0, [], 0
        self.lost_after = None
        self.leaks, self.threads = 0, threading.local()
        self.Device = self.Context = self  # one device, whose calls are here
        self.context = Context(self)

    def init(self):
        pass

    def __call__(self, index):  # Device(index)
        return self

    def count(self):
        return 1

    def name(self):
        return "Processor"

    def compute_capability(self):
        return 9, 0

    def retain_primary_context(self):
        return self.context

    @property
    def stack(self):
        """The contexts of this thread, the current one last."""
        return self.threads.__dict__.setdefault("stack", [])

    def pop(self):  # Context.pop
        self.stack.pop()

    def module_from_buffer(self, ptx):
        for name in ("digest_int16", "blend_half"):
            assert f".entry {name}(".encode() in ptx
        return types.SimpleNamespace(get_function=self.kernel)

    def Stream(self):
        self.streams.append(Stream(self))
        return self.streams[-1]

    def Event(self):
        return Event(self)

    def mem_alloc(self, size):
        if self.used + size > self.memory:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        return Allocation(self, size)

    def pagelocked_empty(self, shape, dtype):
        return np.empty(shape, dtype)

    def memcpy_htod(self, target, source):
        ctypes.memmove(int(target), source.ctypes.data, source.nbytes)

    def memcpy_dtoh(self, target, source):
        ctypes.memmove(target.ctypes.data, int(source), target.nbytes)

    def memset_d8(self, target, value, size):
        ctypes.memset(int(target), value, size)

    def memset_d8_async(self, target, value, size, stream):
        stream.add(lambda: ctypes.memset(int(target), value, size))

    def memcpy_htod_async(self, target, source, stream):
        stream.add(lambda: self.memcpy_htod(target, source))

    def memcpy_dtoh_async(self, target, source, stream):
        stream.add(lambda: self.memcpy_dtoh(target, source))

    def memcpy_dtod_async(self, target, source, size, stream):
        stream.add(lambda: ctypes.memmove(target, source, size))

    def kernel(self, name):
        def call(*args, block, grid, stream):
            assert grid[0] < 1 << 31 and max(grid[1:]) <= 65535, "the grid is too large"
            buffer = packed(args)

            def step():
                sizes = (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block)
                assert self.library.launch(name.encode(), *sizes, buffer) == len(buffer), name

            stream.add(step)

        return call

    def forget(self):
        """Drop what a lost device has left undone."""
        for stream in self.streams:
            stream.steps.clear()

    def run_until(self, done):
        """Take steps of streams in random order until done() holds."""
        while not done():
            ready = [stream for stream in self.streams if stream.steps and stream.steps[0][1]()]
            assert ready, "the streams wait for each other"
            if self.lost_after is not None:
                self.lost_after -= 1
                if self.lost_after < 0:
                    raise self.Error("cuStreamSynchronize failed: an illegal memory access was encountered")
            stream = self.random.choice(ready)
            self.clock += 1
            stream.steps.pop(0)[0]()


def packed(args):
    """Arguments in one buffer, by PyCUDA 2026.1's rules: structures as plain bytes."""
    kinds, values = "", []
    for arg in args:
        if isinstance(arg, np.number):
            kinds, values = kinds + arg.dtype.char, [*values, arg.item()]
        elif isinstance(arg, Allocation):
            kinds, values = kinds + "P", [*values, int(arg)]
        else:
            assert isinstance(arg, np.void)
            kinds, values = f"{kinds}{arg.itemsize}s", [*values, bytes(arg.tobytes())]
    return struct.pack(kinds, *values)


class Allocation:
    """Device memory, aligned as `cuMemAlloc` does."""

    def __init__(self, driver, size):
        assert driver.stack, "no context is current"
        self.driver, self.size, self.freed = driver, size, False
        self.buffer = np.full(size + 256, 0xA5, np.uint8)
        driver.used += size

    def __int__(self):
        return -(-self.buffer.ctypes.data // 256) * 256

    def free(self):
        assert not self.freed and self.driver.stack and not self.driver.context.released
        self.freed = True
        self.driver.used -= self.size
        self.buffer[:] = 0x5A

    def __del__(self):
        if self.freed:
            return
        if self.driver.stack and not self.driver.context.released:
            self.free()
        else:  # "clean-up operation failed (dead context maybe?)": the memory stays taken
            self.driver.leaks += 1


class Stream:
    def __init__(self, driver):
        self.driver, self.steps = driver, []
        self.handle = id(self)

    def add(self, step, ready=lambda: True):
        self.steps.append((step, ready))

    def wait_for_event(self, event):
        record = event.record_now
        self.add(lambda: None, lambda: record is None or record.done)

    def synchronize(self):
        self.driver.run_until(lambda: not self.steps)


class Record:
    done, time = False, 0


class Event:
    def __init__(self, driver):
        self.driver, self.record_now = driver, None

    def record(self, stream):
        record = self.record_now = Record()

        def step():
            record.done, record.time = True, self.driver.clock

        stream.add(step)

    def synchronize(self):
        record = self.record_now
        self.driver.run_until(lambda: record is None or record.done)

    def time_since(self, other):
        return float(self.record_now.time - other.record_now.time)


class Context:
    """The primary context. As in PyCUDA, memory is freed only in threads that have it on their stack."""

    def __init__(self, driver):
        self.driver, self.released = driver, False

    def push(self):
        if self.released:
            raise self.driver.Error("invalid device context")
        self.driver.stack.append(self)

    def detach(self):
        self.released = True


def Gpu(driver):
    """The runtime's own device, on this driver."""
    return device.Gpu(0, driver)


class Engine:
    """A plain function of windows as a CUDA engine. half: compute in float16.

    window: the only one that it takes, as a plan does, by default the card's; None: any.
    """

    def __init__(self, network, card, gpu, half=False, slots=2, least=1, most=64, window=()):
        self.network, self.card, self.gpu, self.half, self.slots = network, card, gpu, half, slots
        self.limits, self.calls = (least, most), []
        self.window = card.window if window == () else window
        self.info = EngineInfo("numpy", np.__version__, gpu.name, card.precision, card.name, "0" * 64)

    def batches(self, window):
        return self.limits

    def enqueue(self, slot):
        assert self.limits[0] <= slot.shape[0] <= self.limits[1]
        assert slot.lr % 256 == slot.sr % 256 == 0  # TensorRT takes no other addresses
        self.calls.append(slot.shape[0])
        (stream,) = (s for s in self.gpu.cuda.streams if s.handle == slot.stream)

        def step():
            view(slot.sr, slot.fine, self.half)[...] = self.network(view(slot.lr, slot.shape, self.half))

        stream.add(step)


def view(address, shape, half):
    dtype = np.dtype(np.float16 if half else np.float32)
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)
