"""A regression guard that counts instead of timing: what a scan may cost, and why that much.

Counts are the same on every machine, so that a change which computes, copies or allocates more fails here,
and not months later in a benchmark. Who spends more on purpose changes the number and its reason.
"""

import subprocess
import sys
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from udean.benchmarks import common
from udean.runtime import SuperResolver
from udean.runtime.pipeline.host import LrVolume, buffer_nbytes, resolve_slabs
from udean.runtime.pipeline.tiling import tile_windows

from ..support.fakes import FakeEngine, card, nearest, onnx_model

CARD = card((2, 2, 2), 3, (32, 32))
SHAPE = (80, 56, 13)  # whole planes, 3 slices in steps of 2; or windows of 32, 32, 3 in steps of 24, 24, 2
PLANES, WINDOWS = 6, 3 * 2 * 6
BATCHES = 3  # of 16 windows of 32x32, which are 4·64·64 voxels: 16, 16 and 4
VOLUME = common.textured(SHAPE)


class Counter:
    """A nearest-neighbour network that counts its calls, windows and voxels."""

    def __init__(self):
        self.calls, self.windows, self.nbytes = 0, 0, 0

    def __call__(self, windows):
        self.calls += 1
        self.windows += len(windows)
        self.nbytes += windows.nbytes
        return nearest(windows, (2, 2, 2))


@pytest.fixture
def counted():
    network = Counter()
    return network, SuperResolver(FakeEngine(network, CARD))


def test_windows_and_calls_of_a_scan(counted):
    network, resolve = counted
    resolve(VOLUME)
    assert resolve.timings.computed == resolve.timings.windows == network.windows == PLANES
    network = Counter()
    resolve = SuperResolver(FakeEngine(network, CARD), window=None)
    before = network.calls
    resolve(VOLUME)
    assert resolve.timings.computed == resolve.timings.windows == network.windows == WINDOWS
    assert network.calls - before == BATCHES  # every batch is full but the last


def test_windows_of_a_scan_in_empty_space(counted):
    """Content of one window's size in a corner of the field of view: the windows that see it, no others."""
    network, resolve = counted
    volume = np.zeros((320, 320, 41), np.int16)
    volume[100:130, 100:130, 20:23] = VOLUME[:30, :30, :3]
    resolve(volume)
    # With margins the content spans 38 x 38 x 5 voxels: at most 3 windows along rows and columns, 4 along
    # slices. The whole field of view has 13 x 13 x 20, or 20 planes of 320 x 320.
    assert network.nbytes <= 3 * 3 * 4 * 32 * 32 * 3 * 4 < 20 * 320 * 320 * 3 * 4 / 50


def test_bytes_handed_to_the_network(counted):
    network, resolve = counted
    resolve(VOLUME)
    # Slices are copied once for each window that shares them, and nothing besides: float32 planes.
    assert network.nbytes == PLANES * 80 * 56 * 3 * 4 < WINDOWS * 32 * 32 * 3 * 4


def test_bytes_allocated_for_a_scan(counted):
    """Peak of NumPy's and Python's own allocations while a scan is resolved, output included."""
    _, resolve = counted
    resolve(VOLUME)  # what is kept for good is there now
    tracemalloc.start()
    sr = resolve(VOLUME)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    batch = 16 * 3 * 32 * 32 * 4  # bytes of 16 windows; the network makes them eight times as large
    slab = 6 * 160 * 112 * 4  # bytes of the HR planes that three LR slices become
    # The output; three batches before the network; after it two waiting or being blended, one being made,
    # and its last step but one inside the fake network, half as large; band, slab, mean and what is stored.
    assert peak <= sr.nbytes + 3 * batch + 3.5 * 8 * batch + 4 * slab


def test_allocations_do_not_grow_with_the_slices():
    """Buffers are made once a scan: three times the slices hold no more at any slab."""

    def held(slices):
        volume = np.random.default_rng(0).random((32, 32, slices), np.float32)
        plan = tile_windows(volume.shape, CARD)
        tracemalloc.start()
        most = 0
        for _ in resolve_slabs(LrVolume(volume), Counter(), plan):
            most = max(most, tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        return most

    # A batch of outputs more or less is how far ahead the threads happen to be; the 400 windows that the
    # larger one has more would be 25 of these.
    batch = 16 * 6 * 64 * 64 * 4
    assert held(1200) <= held(400) + batch + 400 * 500  # and for each window a digest, a number, a place


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's high-water mark")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_peak_memory_of_the_command(tmp_path, suffix):
    """`udean-run` on a scan of 4 MB becoming 33: the kernel's own high-water mark over a short scan's."""

    def peak(shape):
        source = tmp_path / f"{'x'.join(map(str, shape))}{suffix}"
        nib.save(nib.Nifti1Image(common.textured(shape), np.diag([1, 1, 2, 1])), source)
        code = (
            "from udean.runtime.commands.run import main\n"
            "try: main()\n"
            "except SystemExit as end: assert not end.code, end.code\n"
            # not ru_maxrss, which a child inherits from the process that started it
            "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
        )
        command = [sys.executable, "-c", code, "--engine", model, "--library", "onnxruntime"]
        command += ["--threads", "1", "-o", tmp_path / "out", source]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.splitlines()[-1]) * 1024

    model = onnx_model(tmp_path / "sr.onnx", CARD)
    shape = (160, 128, 100)
    plan = tile_windows(shape, CARD)
    scan, output = np.prod(shape) * 2, np.prod(plan.fine_shape) * 2
    # Scan and output once, the pipeline's buffers, and 16 MB for the pieces in which files are read and
    # written. Eight slices hold the library's arena of one batch as well. (56 MB were measured of 72.)
    budget = scan + output + buffer_nbytes(plan) + 16e6
    assert peak(shape) - peak((*shape[:2], 8)) <= budget
