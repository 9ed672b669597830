"""The CUDA pipeline and its kernels, run on the processor, against the host pipeline: bit for bit."""

import dataclasses
import gzip
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from udean.runtime import RunError, SuperResolver
from udean.runtime.cuda.device import GpuError
from udean.runtime.system.trace import Trace

from ...support import driver
from ...support.fakes import FakeEngine, card, nearest

NVCC = shutil.which("nvcc")
SHIPPED = gzip.decompress(driver.KERNELS.with_suffix(".ptx.gz").read_bytes()).decode()
pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc and the CUDA headers")
CARD = card((2, 2, 2), 3, (8, 8))
NETWORK = "udean.runtime.stages.network"  # where engines are opened


def include_folder():
    """CUDA's headers."""
    assert NVCC
    found = subprocess.run([NVCC, "--dryrun", "-E", "x.cu"], capture_output=True, text=True).stderr
    root = re.search(r"_HERE_=(\S+)", found)
    assert root
    return Path(root[1]).parent / "include"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return driver.compile_kernels(tmp_path_factory.mktemp("kernels"), include_folder())


def smoothed(windows):
    """A network whose answer depends on the whole window, so that blending matters."""
    fine = nearest(windows.astype(np.float32), (2, 2, 2))
    return fine + windows.astype(np.float32).mean((1, 2, 3), keepdims=True) * np.float32(0.3)


def on_both(library, volume, model_card, options, network=smoothed, seed=0, **engine):
    """The results of the host pipeline and of the CUDA pipeline for a volume."""
    gpu = driver.Gpu(driver.Driver(library, seed))
    options = {"window": model_card.window} | options  # the processor would take whole planes
    cuda = SuperResolver(driver.Engine(network, model_card, gpu, **engine), **options)
    host = SuperResolver(FakeEngine(network, model_card), **options)
    return host(volume), cuda(volume), cuda


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 23), st.integers(1, 23), st.integers(1, 11)),
    window=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    slices=st.integers(1, 4),
    grid=st.sampled_from(["fft", "center"]),
    overlap=st.floats(0, 0.8),
    weighting=st.sampled_from(["gaussian", "hann", "constant"]),
    dtype=st.sampled_from(
        [
            "uint8",
            "int8",
            "uint16",
            "int16",
            ">i2",
            "uint32",
            "int32",
            "uint64",
            "int64",
            "float32",
            "float64",
        ]
    ),
    slots=st.integers(1, 4),
    most=st.integers(1, 9),
    order=st.permutations(range(3)),
    seed=st.integers(0, 99),
)
def test_any_volume_is_the_host_pipelines_bit_for_bit(
    library, shape, window, slices, grid, overlap, weighting, dtype, slots, most, order, seed
):
    random = np.random.default_rng(seed)
    volume = random.integers(0, 120, shape).astype(dtype)
    volume[random.random(shape) < 0.3] = 0
    volume = np.asarray(volume.transpose(order), order="C").transpose(
        np.argsort(order)
    )  # in any memory order
    options = {"overlap": overlap, "weighting": weighting, "crop": bool(seed % 2)}
    host, cuda, _ = on_both(
        library, volume, card((2, 2, 2), slices, window, grid), options, seed=seed, slots=slots, most=most
    )
    np.testing.assert_array_equal(cuda, host)
    assert cuda.dtype == host.dtype


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_streams_and_their_timing_change_nothing(library, slots, seed):
    volume = np.random.default_rng(0).normal(size=(30, 25, 14)).astype(np.float32)
    host, cuda, _ = on_both(library, volume, CARD, {"overlap": 0.4}, seed=seed, slots=slots, most=5)
    np.testing.assert_array_equal(cuda, host)


@pytest.mark.parametrize("shape", [(30, 25, 14), (5, 6, 3)])
def test_a_gpu_takes_the_processors_windows_unless_its_engine_takes_no_others(library, shape):
    """Whole planes: a network with attention is another function in other windows."""
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    gpu = driver.Gpu(driver.Driver(library))
    host = SuperResolver(FakeEngine(smoothed, CARD))
    cuda = SuperResolver(driver.Engine(smoothed, CARD, gpu, window=None))
    np.testing.assert_array_equal(cuda(volume), host(volume))
    assert cuda.stages.tiling(shape).rows.window == shape[0] and cuda.timings.windows == host.timings.windows
    fixed = SuperResolver(driver.Engine(smoothed, CARD, gpu))
    assert fixed.stages.tiling(shape).rows.window == CARD.window[0]


def test_outputs_that_are_kept_take_bounded_memory_and_change_nothing(library, monkeypatch):
    volume = np.zeros((40, 40, 12), np.int16)
    volume[::7, ::5, 3:6] = 100
    monkeypatch.setattr("udean.runtime.cuda.workspace.KEPT_BYTES", 2 * 6 * 16 * 16 * 4)
    host, cuda, resolve = on_both(library, volume, CARD, {"overlap": 0.0, "crop": False}, most=3)
    np.testing.assert_array_equal(cuda, host)
    ((work, _),) = resolve._network.pipeline._workspaces.values()
    assert work.kept == 2 and resolve.timings.computed < resolve.timings.windows


def test_half_precision_is_that_of_its_windows(library):
    volume = np.random.default_rng(0).integers(0, 900, (20, 21, 9)).astype(np.int16)

    def network(windows):
        return nearest(windows.astype(np.float16), (2, 2, 2)).astype(np.float32)

    host, cuda, _ = on_both(library, volume, CARD, {}, network, half=True)
    np.testing.assert_array_equal(cuda, host)


def test_identical_windows_are_computed_once(library):
    volume = np.zeros((40, 40, 12), np.int16)
    volume[:6, :6, :3] = np.random.default_rng(0).integers(1, 9, (6, 6, 3))
    volume[-1, -1, -1] = 5
    host, cuda, resolve = on_both(library, volume, CARD, {"overlap": 0.0}, most=3)
    np.testing.assert_array_equal(cuda, host)
    assert resolve.timings.computed == sum(resolve.engine.calls) == 3 and resolve.timings.windows == 100


def test_a_profile_that_takes_full_batches_only_gets_them(library):
    volume = np.random.default_rng(0).normal(size=(20, 20, 9)).astype(np.float32)
    host, cuda, resolve = on_both(library, volume, CARD, {}, least=4, most=4)
    np.testing.assert_array_equal(cuda, host)
    assert set(resolve.engine.calls) == {4}


def test_volumes_of_equal_and_other_size_follow_each_other(library):
    gpu = driver.Gpu(driver.Driver(library))
    cuda = SuperResolver(driver.Engine(smoothed, CARD, gpu))
    host = SuperResolver(FakeEngine(smoothed, CARD), window=CARD.window)
    random = np.random.default_rng(0)
    streams = []
    for shape in ((20, 20, 9), (20, 20, 9), (9, 12, 5), (20, 20, 9)):
        volume = random.normal(size=shape).astype(np.float32)
        np.testing.assert_array_equal(cuda(volume), host(volume))
        streams.append(len(gpu.cuda.streams))
    assert streams[0] == streams[1]  # nothing is allocated anew


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.7])
@pytest.mark.parametrize(("slices", "count"), [(3, 17), (4, 9), (5, 2), (1, 3)])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_stream_is_the_volume_bit_for_bit(library, overlap, slices, count, dtype):
    volume = np.random.default_rng(0).integers(0, 900, (20, 21, count)).astype(dtype)
    options = {"overlap": overlap, "crop": False}
    host, _, cuda = on_both(library, volume, card((2, 2, 2), slices, (8, 9)), options, most=5)
    known, streams = cuda.intensities(volume), len(cuda.engine.gpu.cuda.streams)
    for _ in range(2):
        found = list(cuda.stream((volume[:, :, n] for n in range(count)), count, known))
        np.testing.assert_array_equal(np.stack(found, 2), host)
        assert len(cuda.engine.gpu.cuda.streams) <= streams * 2  # nothing is allocated for each slab


def test_a_gpu_lost_in_a_stream_is_a_sentence_or_the_processor_goes_on(library, monkeypatch, caplog):
    volume = np.random.default_rng(0).normal(size=(20, 20, 19)).astype(np.float32)
    whole = SuperResolver(FakeEngine(smoothed, CARD), window=CARD.window, crop=False)(volume)
    gpu = driver.Gpu(driver.Driver(library))
    monkeypatch.setattr(
        "udean.runtime.stages.network.choose_engine", lambda *_: driver.Engine(smoothed, CARD, gpu)
    )
    monkeypatch.setattr(f"{NETWORK}.open_engine", lambda *_: FakeEngine(smoothed, CARD))
    for fallback in ("none", "cpu"):
        gpu.cuda.lost_after = None
        resolve, found = SuperResolver("sr.onnx", crop=False, fallback=fallback), []
        stream = resolve.stream((volume[:, :, n] for n in range(19)), 19, resolve.intensities(volume))
        found.append(next(stream))
        gpu.cuda.lost_after = 40
        if fallback == "none":
            with pytest.raises(GpuError, match="stopped working"):
                list(stream)
            gpu.cuda.forget()
        else:
            np.testing.assert_array_equal(np.stack([*found, *stream], 2), whole)
            assert resolve.engine.info.device == "cpu" and "Going on" in caplog.text


def test_full_memory_halves_the_batch_says_so_and_goes_on(library, caplog):
    volume = np.random.default_rng(0).random((60, 60, 9), np.float32)
    host = SuperResolver(FakeEngine(smoothed, CARD), window=CARD.window)(volume)
    gpu = driver.Gpu(driver.Driver(library, memory=3_600_000))
    cuda = SuperResolver(driver.Engine(smoothed, CARD, gpu))
    np.testing.assert_array_equal(cuda(volume), host)
    assert max(cuda.engine.calls) < 64 and "memory is full" in caplog.text
    again = len(caplog.records)
    cuda(volume)
    assert len(caplog.records) == again  # it has learned

    gpu = driver.Gpu(driver.Driver(library, memory=1000))
    with pytest.raises(GpuError, match="memory"):
        SuperResolver(driver.Engine(smoothed, CARD, gpu))(volume)


def test_a_lost_gpu_is_a_sentence_and_the_processor_goes_on_where_asked_for(library, monkeypatch, caplog):
    volume = np.random.default_rng(0).normal(size=(20, 20, 9)).astype(np.float32)
    gpu = driver.Gpu(driver.Driver(library))
    gpu.cuda.lost_after = 12
    resolve = SuperResolver(driver.Engine(smoothed, CARD, gpu))
    with pytest.raises(GpuError, match="stopped working"):
        resolve(volume)
    gpu.cuda.forget()
    gpu.cuda.lost_after = 12
    monkeypatch.setattr(
        "udean.runtime.stages.network.choose_engine", lambda *_: driver.Engine(smoothed, CARD, gpu)
    )
    monkeypatch.setattr(f"{NETWORK}.open_engine", lambda *_: FakeEngine(smoothed, CARD))
    resolve = SuperResolver("sr.onnx", fallback="cpu")
    np.testing.assert_array_equal(resolve(volume), SuperResolver(FakeEngine(smoothed, CARD))(volume))
    assert resolve.engine.info.device == "cpu" and "Going on" in caplog.text


def test_a_network_that_breaks_down_is_refused(library):
    gpu = driver.Gpu(driver.Driver(library))
    with pytest.raises(RunError, match="NaN or infinite"):
        SuperResolver(driver.Engine(lambda x: smoothed(x) * np.nan, CARD, gpu))(
            np.random.default_rng(0).normal(size=(20, 20, 9)).astype(np.float32)
        )


def test_an_abandoned_volume_leaves_the_pipeline_usable(library):
    gpu = driver.Gpu(driver.Driver(library))
    resolve = SuperResolver(driver.Engine(smoothed, CARD, gpu))
    volume = np.random.default_rng(0).normal(size=(20, 20, 19)).astype(np.float32)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve(volume, progress=stop)
    np.testing.assert_array_equal(
        resolve(volume), SuperResolver(FakeEngine(smoothed, CARD), window=CARD.window)(volume)
    )


def test_the_shipped_ptx_is_that_of_the_source(tmp_path):
    assert NVCC
    made = tmp_path / "kernels.ptx"
    subprocess.run([NVCC, "--ptx", "-arch=compute_75", "-o", made, driver.KERNELS], check=True)

    made = made.read_text()

    def code(text):  # without comments, and without the PTX version, which is lowered for older drivers
        return re.sub(r"//.*|\.version .*", "", text).split()

    if version(made) != version(SHIPPED):
        pytest.skip("another nvcc than the one that made the shipped PTX")
    assert code(made) == code(SHIPPED)
    assert not re.search(r"\bfma\.rn", SHIPPED)  # products and sums are rounded apart


def version(text):
    return re.search(r"release (\S+), (V\S+)", text)[0]


def test_a_trace_shows_every_stream_and_changes_nothing(library):
    volume = np.random.default_rng(0).normal(size=(30, 25, 14)).astype(np.float32)
    gpu, trace = driver.Gpu(driver.Driver(library)), Trace()
    engine = driver.Engine(smoothed, CARD, gpu, slots=2, most=5)
    host, cuda = (
        SuperResolver(FakeEngine(smoothed, CARD), window=CARD.window),
        SuperResolver(engine, trace=trace),
    )
    np.testing.assert_array_equal(cuda(volume), host(volume))
    lanes = {}
    for span in trace.spans:
        assert span.start <= span.stop
        lanes.setdefault(span.lane, []).append(span)
    stages = {lane: {span.stage for span in spans} for lane, spans in lanes.items()}
    assert stages["GPU stream 0"] == {"upload", "gather", "network"}
    assert stages["GPU stream 1"] == {"gather", "network"}
    assert stages["GPU blending"] == {"blend"} and stages["GPU copying"] == {"download"}
    assert sum(span.stage == "network" for span in trace.spans) == len(engine.calls)
    for lane in stages.keys() - {"MainThread"}:  # a stream does one thing after the other
        assert all(a.stop <= b.start for a, b in itertools.pairwise(lanes[lane]))


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble])
def test_floats_that_the_kernels_do_not_know_are_computed_in_float32(library, dtype):
    volume = np.random.default_rng(0).integers(0, 900, (20, 21, 9)).astype(dtype)
    host, cuda, _ = on_both(library, volume, CARD, {})
    np.testing.assert_array_equal(cuda, host)
    assert cuda.dtype == dtype


def scan(shape, seed=0, dtype="int16"):
    """A ball of texture in noisy air: there are tissue, air and noise, and its slices do not form a ring."""
    random = np.random.default_rng(seed)
    at = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    ball = np.clip(2 - 2.5 * np.sqrt(sum(a**2 for a in at)), 0, 1)
    texture = 1 + 0.2 * random.standard_normal(shape)
    return np.rint(1000 * ball * texture + 15 * np.abs(random.standard_normal(shape))).astype(dtype)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(4, 26), st.integers(4, 26), st.integers(2, 40)),
    scale=st.sampled_from([(2, 2, 2), (2, 2, 1), (3, 2, 2)]),
    grid=st.sampled_from(["fft", "center"]),
    overlap=st.floats(0, 0.7),
    dtype=st.sampled_from(["uint8", "int16", "float32", "float64"]),
    consistency=st.sampled_from(["auto", 1.0, 0.5]),
    transfer=st.booleans(),
    rings=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    slots=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_the_measured_band_is_the_hosts(
    library, shape, scale, grid, overlap, dtype, consistency, transfer, rings, slots, seed
):
    model_card = card(scale, 3, (8, 8), grid).replace(
        consistency="transfer" if transfer else "truncation",
        transfer=((1.0, 0.8, 0.3),) * 3 if transfer else (),
    )

    def network(windows):
        fine = nearest(windows.astype(np.float32), (scale[2], *scale[:2]))
        return fine + windows.astype(np.float32).mean((1, 2, 3), keepdims=True) * np.float32(0.3)

    volume = scan(shape, seed) // (8 if dtype == "uint8" else 1)
    volume = volume.astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("udean.runtime.stages.volume.rings", lambda _: rings)
        # The host leaves noisy air to interpolation; a GPU computes it.
        options = {"overlap": overlap, "consistency": consistency, "crop": False}
        host, cuda, _ = on_both(library, volume, model_card, options, network, seed, slots=slots, most=7)
    tolerance = 1 if np.dtype(dtype).kind in "iu" else 1e-4 * float(np.abs(host).max())
    np.testing.assert_allclose(cuda.astype(float), host.astype(float), atol=tolerance, rtol=0)


def test_the_device_holds_the_band_itself_and_sends_stored_voxels(library):
    """Results are downloaded as int16, half the bytes of float32."""
    volume, model_card = scan((20, 20, 30)), CARD.replace(consistency="truncation")
    gpu = driver.Gpu(driver.Driver(library))
    downloads = []
    fetch = gpu.cuda.memcpy_dtoh_async
    gpu.cuda.memcpy_dtoh_async = lambda target, *rest: (downloads.append(target.dtype), fetch(target, *rest))
    resolve = SuperResolver(driver.Engine(smoothed, model_card, gpu), consistency=1.0)
    held = resolve(volume)
    assert np.dtype(np.float32) not in downloads and np.dtype(np.int16) in downloads
    resolve.options = dataclasses.replace(resolve.options, consistency="off")
    assert np.abs(resolve(volume).astype(int) - held).max() > 20


def uneven(windows):
    """A network whose answer depends on the place in the window, so that slabs along other axes differ."""
    fine = smoothed(windows)
    return fine + np.linspace(0, 0.2, fine.shape[1], dtype=np.float32)[:, None, None]


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("seed", range(3))
def test_the_mean_over_three_slab_axes_is_taken_on_the_device_and_is_the_hosts_bit_for_bit(
    library, dtype, seed
):
    volume = np.random.default_rng(seed).integers(0, 900, (14 + seed, 21, 11)).astype(dtype)
    downloads, told = [], []
    host, cuda, resolve = on_both(library, volume, CARD, {"best": True}, uneven, seed, most=5)
    np.testing.assert_array_equal(cuda, host)
    driven = resolve.engine.gpu.cuda
    fetch, used = driven.memcpy_dtoh_async, driven.used
    driven.memcpy_dtoh_async = lambda target, *more: (downloads.append(target), fetch(target, *more))
    np.testing.assert_array_equal(resolve(volume, progress=lambda *n: told.append(n)), host)
    assert driven.used == used  # buffers for a volume turned to each axis stay, those of the mean do not
    assert sum(part.nbytes for part in downloads if part.dtype != np.uint64) == host.nbytes
    assert told[-1][0] == told[-1][1] and told == sorted(told)
    single = SuperResolver(resolve.engine)(volume)
    assert (single != host).any()


def test_the_measured_band_of_the_mean_is_the_hosts(library):
    volume, held = scan((20, 18, 30)), CARD.replace(consistency="truncation")
    host, cuda, resolve = on_both(library, volume, held, {"best": True, "crop": False}, uneven)
    np.testing.assert_allclose(cuda.astype(int), host.astype(int), atol=1)
    resolve.options = dataclasses.replace(resolve.options, consistency="off")
    assert np.abs(resolve(volume).astype(int) - host).max() > 20


def test_a_mean_that_the_device_cannot_hold_is_the_hosts(library, caplog):
    volume = np.random.default_rng(0).integers(0, 900, (14, 21, 11)).astype(np.int16)
    host, _, _ = on_both(library, volume, CARD, {"best": True}, uneven)
    gpu = driver.Gpu(driver.Driver(library))
    resolve = SuperResolver(driver.Engine(uneven, CARD, gpu, most=5), best=True)
    allocate = gpu.cuda.mem_alloc

    def full(size):
        if size == 4 * host.size and any(room.size == size for room in given):
            raise gpu.cuda.MemoryError("cuMemAlloc failed: out of memory")
        given.append(allocate(size))
        return given[-1]

    given, gpu.cuda.mem_alloc = [], full
    np.testing.assert_array_equal(resolve(volume), host)
    assert "does not hold the mean" in caplog.text
    assert all(room.freed for room in given if room.size == 4 * host.size)
