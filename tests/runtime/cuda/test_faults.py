"""Failures of a GPU, on the emulated driver: memory, threads, Python's end, addresses, limits."""

import gc
import re
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
from udean.runtime import RunError, SuperResolver
from udean.runtime.cuda.device import GpuError, OutOfMemory, is_full
from udean.runtime.cuda.workspace import Order
from udean.runtime.engines import onnxruntime_cuda
from udean.runtime.models.card import METADATA_KEY
from udean.runtime.pipeline.engine import EngineRequest
from udean.runtime.pipeline.tiling import tile_windows

from ...support import driver
from ...support.fakes import FakeEngine, card
from .test_pipeline import CARD, NVCC, SHIPPED, library, smoothed

__all__ = ["library"]  # a fixture
needs_kernels = pytest.mark.skipif(NVCC is None, reason="needs nvcc and the CUDA headers")
VOLUME = np.random.default_rng(0).normal(size=(60, 60, 9)).astype(np.float32)


def resolver(library, memory=1 << 30, **engine):
    gpu = driver.Gpu(driver.Driver(library, memory=memory))
    return SuperResolver(driver.Engine(smoothed, CARD, gpu, **engine)), gpu.cuda


@pytest.mark.parametrize(
    "text",
    [
        "CUDA failure 2: out of memory ; GPU=0",
        "cuMemAlloc failed: out of memory",
        "Error Code 2: OutOfMemory (Requested size was 1024 bytes.)",
        "Available memory of 12 is smaller than requested bytes of 4096",
        "Failed to allocate memory for requested buffer of size 4096",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "std::bad_alloc",
    ],
)
def test_full_memory_is_told(text):
    assert is_full(text)
    assert isinstance(onnxruntime_cuda._ours(RuntimeError(text)), OutOfMemory)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0",
        "cudaErrorMisalignedAddress: misaligned address in memory",
        "invalid memory type",
    ],
)
def test_other_faults_of_memory_are_not_full_memory(text):
    assert not is_full(text)
    assert isinstance(onnxruntime_cuda._ours(RuntimeError(text)), GpuError)


@needs_kernels
def test_memory_is_freed_in_whatever_thread_it_runs_out(library):
    resolve, cuda = resolver(library, memory=3_600_000)
    wanted = SuperResolver(FakeEngine(smoothed, CARD), window=CARD.window)(VOLUME)
    found = []
    threads = [threading.Thread(target=lambda: found.append(resolve(VOLUME))) for _ in range(2)]
    resolve(VOLUME[:20, :20])  # in this thread, so that the others must free what was allocated here
    for thread in threads:
        thread.start()
        thread.join()
    for result in found:
        np.testing.assert_array_equal(result, wanted)
    assert len(found) == 2 and cuda.leaks == 0 and cuda.used > 0
    closing = threading.Thread(target=resolve.close)
    closing.start()
    closing.join()
    assert (cuda.used, cuda.leaks) == (0, 0)


@needs_kernels
def test_memory_that_never_suffices_is_all_given_back(library):
    resolve, cuda = resolver(library, memory=40_000)
    with pytest.raises(GpuError, match="does not have enough memory for one batch"):
        resolve(VOLUME)
    assert (cuda.used, cuda.leaks) == (0, 0)


@needs_kernels
def test_the_context_goes_with_the_last_reference_and_after_its_memory(library):
    resolve, cuda = resolver(library)
    resolve(VOLUME)
    assert cuda.used > 0 and not cuda.context.released
    del resolve
    gc.collect()
    assert (cuda.used, cuda.leaks, cuda.context.released) == (0, 0, True)


AT_EXIT = """
import atexit, ctypes, sys
import numpy as np
from udean.tests.support import driver
from udean.tests.support.fakes import card, nearest
from udean.runtime import SuperResolver

cuda = driver.Driver(ctypes.CDLL(sys.argv[1]))
# Asked first, and so the last to run.
atexit.register(lambda: print(cuda.used, cuda.leaks, cuda.context.released))
model = card((2, 2, 2), 3, (8, 8))
resolve = SuperResolver(driver.Engine(lambda x: nearest(x, (2, 2, 2)), model, driver.Gpu(cuda)))
resolve(np.random.default_rng(0).random((20, 20, 9), np.float32))
assert cuda.used
"""


@needs_kernels
def test_python_ends_without_noise_and_with_nothing_left(library):
    script = AT_EXIT.replace("udean.tests", __package__.rsplit(".", 2)[0])
    done = subprocess.run([sys.executable, "-c", script, library._name], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0 0 True\n", "")


@needs_kernels
def test_engines_see_the_same_streams_whatever_the_volumes(library):
    resolve, cuda = resolver(library)
    engine, seen = resolve.engine, set()
    enqueue = engine.enqueue
    engine.enqueue = lambda slot: (seen.add((slot.index, slot.stream)), enqueue(slot))
    for shape in ((20, 20, 9), (33, 20, 9), (9, 12, 5)):
        resolve(VOLUME[tuple(map(slice, shape))])
    assert len(seen) == engine.slots and len(cuda.streams) == engine.slots + 2


@needs_kernels
@pytest.mark.parametrize("most", [1, 4, 7, 64])
def test_every_batch_has_the_same_size_and_few_windows_are_filled_up(library, most):
    resolve, _ = resolver(library, most=most)
    resolve(VOLUME)
    calls = resolve.engine.calls
    assert len(set(calls)) == 1
    assert sum(calls) - resolve.timings.computed < len(calls)


@needs_kernels
@pytest.mark.parametrize("window", [(7, 5), (8, 8), (3, 1)])
def test_every_batch_begins_aligned(library, window):
    """`driver.Engine` refuses other addresses, as TensorRT does."""
    small = card((2, 2, 2), 3, window)
    for half in (False, True):
        gpu = driver.Gpu(driver.Driver(library))
        found = SuperResolver(driver.Engine(smoothed, small, gpu, half=half, most=5))(VOLUME[:20, :21])
        wanted = SuperResolver(FakeEngine(smoothed, small), window=small.window)(VOLUME[:20, :21])
        np.testing.assert_allclose(found, wanted, atol=0.02 if half else 0)


@needs_kernels
def test_no_slab_makes_a_grid_too_large(library):
    """The driver refuses a grid of more than 65535 layers; windows of one voxel are the smallest."""
    deep = card((1, 1, 1), 7, (1, 1))
    volume = np.arange(100 * 100 * 7, dtype=np.float32).reshape(100, 100, 7)
    gpu = driver.Gpu(driver.Driver(library))
    engine = driver.Engine(lambda x: x, deep, gpu, most=1 << 20)
    np.testing.assert_allclose(SuperResolver(engine, overlap=0)(volume), volume, rtol=1e-5)
    assert max(engine.calls) * 7 <= 65535


def test_the_order_of_windows_takes_time_in_proportion():
    """Counted, not timed: how often the list of sources is read, a window."""

    class Counted(list):
        reads = 0

        def __getitem__(self, key):
            found = super().__getitem__(key)
            Counted.reads += len(found) if isinstance(key, slice) else 1
            return found

    for side in (100, 300):
        tiling = tile_windows((side, side, 30), CARD)
        Counted.reads = 0
        Order(tiling, Counted(range(len(tiling))), 16, 8, 16)
        assert Counted.reads <= 2 * len(tiling)


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("fp16", "1")])
def test_onnx_runtime_keeps_its_tensor_cores_in_half_precision_only(monkeypatch, tmp_path, precision, tf32):
    asked, loaded, shape = [], [], ["batch", 3, "rows", "columns"]

    class Session:
        def __init__(self, model, options, providers):
            asked.append(providers[0])

        def get_modelmeta(self):
            text = CARD.replace(precision=precision).to_json()
            return types.SimpleNamespace(custom_metadata_map={METADATA_KEY: text})

        def get_inputs(self):
            kind = "tensor(float16)" if precision == "fp16" else "tensor(float)"
            return [types.SimpleNamespace(type=kind, shape=shape)]

        def get_providers(self):
            return ["CUDAExecutionProvider"]

    ort = types.SimpleNamespace(
        __version__="1",
        InferenceSession=Session,
        get_available_providers=lambda: ["CUDAExecutionProvider"],
        preload_dlls=lambda: loaded.append(len(asked)),
        SessionOptions=types.SimpleNamespace,
        RunOptions=lambda: types.SimpleNamespace(add_run_config_entry=lambda *_: None),
        GraphOptimizationLevel=types.SimpleNamespace(ORT_DISABLE_ALL=0),
    )
    monkeypatch.setattr(onnxruntime_cuda, "require", lambda *_: ort)
    model = tmp_path / "m.onnx"
    model.write_bytes(b"model")
    gpu = types.SimpleNamespace(index=0, name="GPU", streams=lambda n: [types.SimpleNamespace(handle=7)] * n)
    request = EngineRequest(model, "m", "0", "auto")
    free = onnxruntime_cuda.OnnxRuntimeCudaEngine(request, gpu)
    assert (free.window, free.batches((8, 9))) == (None, (1, 1 << 20))
    assert loaded == [0]  # CUDA and cuDNN from their wheels, before the first session
    assert asked[0] == "CPUExecutionProvider"
    settings = asked[1][1]
    assert (settings["use_tf32"], settings["prefer_nhwc"], settings["user_compute_stream"]) == (
        tf32,
        "1",
        "7",
    )
    shape[:] = 4, 3, 64, 64
    fixed = onnxruntime_cuda.OnnxRuntimeCudaEngine(request, gpu)
    assert (fixed.window, fixed.batches((64, 64))) == ((64, 64), (4, 4))
    with pytest.raises(RunError, match="64x64 only, not 8x9"):
        fixed.batches((8, 9))


def test_the_shipped_kernels_ask_for_no_new_driver():
    found = re.search(r"^\.version (\d+)\.(\d+)", SHIPPED, re.MULTILINE)
    assert found and (int(found[1]), int(found[2])) <= (7, 0)  # of CUDA 11.0: drivers since 450
