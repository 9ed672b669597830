"""A volume whose slices are still arriving: the whole volume's bits, as soon as they can be known."""

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from udean.runtime import Intensities, RunError, SuperResolver, open_engine

from ...support.fakes import FakeEngine, card, nearest, onnx_model
from ..engines.test_choose import tiny_checkpoint

CARD = card((2, 2, 2), 3, (8, 8))
RANDOM = np.random.default_rng(0)
VOLUME = RANDOM.integers(0, 900, (20, 21, 17)).astype(np.int16)


def network(scale):
    """A network whose answer depends on the whole window and leaves the scan's range: blending matters."""
    rows, columns, slices = scale

    def run(windows):
        fine = nearest(windows, (slices, rows, columns))
        return fine * np.float32(1.5) - windows.mean((1, 2, 3), keepdims=True) * np.float32(0.7)

    return run


def resolver(model_card=CARD, **options):
    return SuperResolver(FakeEngine(network(model_card.scale), model_card), crop=False, **options)


def arriving(volume, log=None):
    for n in range(volume.shape[2]):
        if log is not None:
            log.append(n)
        yield volume[:, :, n]


def streamed(resolve, volume, dtype="input"):
    known = resolve.intensities(volume)
    return np.stack(list(resolve.stream(arriving(volume), volume.shape[2], known, dtype)), 2)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 19), st.integers(1, 19), st.integers(1, 23)),
    window=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    slab=st.integers(1, 6),
    scale=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
    overlap=st.floats(0, 0.9),
    weighting=st.sampled_from(["gaussian", "hann", "constant"]),
    kind=st.sampled_from(["uint8", "int16", ">u2", "int32", "uint64", "float16", "float32", "float64"]),
    dtype=st.sampled_from(["input", "float32"]),
    seed=st.integers(0, 99),
)
def test_a_stream_is_the_volume_bit_for_bit(
    shape, window, slab, scale, overlap, weighting, kind, dtype, seed
):
    random = np.random.default_rng(seed)
    volume = random.integers(0, 120, shape).astype(kind)
    volume[random.random(shape) < 0.3] = 0
    volume[0, 0, 0], volume[-1, -1, -1] = 100, 0  # a constant volume stays what it is and is not computed
    if volume.size == 1:
        return
    resolve = resolver(card(scale, slab, window), overlap=overlap, weighting=weighting)
    whole, found = resolve(volume, dtype), streamed(resolve, volume, dtype)
    assert found.dtype == whole.dtype
    np.testing.assert_array_equal(found.view(np.uint8), np.ascontiguousarray(whole).view(np.uint8))


@pytest.mark.parametrize(
    "options", [{}, {"overlap": (0.5, 0.3, 0.7)}, {"window": "plane"}, {"window": (24, 9)}]
)
@pytest.mark.parametrize(
    ("library", "precision"),
    [("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32"), ("onnxruntime", "fp16")],
)
def test_engines_stream_the_bits_of_the_volume(tmp_path, library, precision, options):
    half = "fp16" if precision == "fp16" else "fp32"
    file = onnx_model(tmp_path / "conv.onnx", card((2, 2, 2), 3, (16, 16)).replace(precision=half), "conv")
    engine = open_engine(file, "cpu", precision, 1, library)
    resolve = SuperResolver(engine, crop=False, **options)
    volume = RANDOM.integers(0, 900, (37, 29, 8)).astype(np.float32)
    np.testing.assert_array_equal(streamed(resolve, volume), resolve(volume))


def test_pytorch_which_rounds_as_its_batches_are_agrees_to_rounding(tmp_path):
    file, _ = tiny_checkpoint(tmp_path / "tiny.pt")
    resolve = SuperResolver(file, "cpu", crop=False)
    volume = RANDOM.integers(0, 900, (37, 29, 8)).astype(np.float32)
    whole = resolve(volume)
    np.testing.assert_allclose(streamed(resolve, volume), whole, atol=1e-6 * whole.max())


@pytest.mark.parametrize(
    ("slab", "overlap", "count"), [(3, 0.25, 17), (3, 0.7, 9), (1, 0.0, 5), (5, 0.0, 11), (4, 0.5, 3)]
)
def test_a_slice_goes_out_as_soon_as_its_windows_are_complete(slab, overlap, count):
    resolve = resolver(card((2, 2, 2), slab, (8, 8)), overlap=overlap)
    volume, came = VOLUME[:, :, :count], []
    starts = resolve.stages.tiling(volume.shape).slices.starts
    stream = resolve.stream(arriving(volume, came), count, resolve.intensities(volume))
    assert not came  # nobody has asked yet
    for z, _ in enumerate(stream):
        last = max(start for start in starts if start <= z // 2 < start + slab)
        assert len(came) == min(last + slab, count), f"SR slice {z}"


def test_memory_does_not_grow_with_the_stream():
    resolve = resolver(card((2, 2, 2), 3, (32, 32)))

    def peak(count):
        def slices():
            for n in range(count):
                yield np.full((64, 64), n, np.uint16)

        tracemalloc.start()
        for _ in resolve.stream(slices(), count, Intensities(100.0)):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(20)
    short, long = peak(20), peak(620)  # threads may be ahead by half a MB
    assert long < short + 2e6  # the 600 further slices have 5 MB, and 39 MB when restored


def test_giver_and_taker_may_do_with_their_arrays_what_they_like():
    resolve, buffer = resolver(), np.empty(VOLUME.shape[:2], VOLUME.dtype)

    def slices():
        for n in range(VOLUME.shape[2]):
            buffer[...] = VOLUME[:, :, n]
            yield buffer

    whole, found = resolve(VOLUME), []
    for fine in resolve.stream(slices(), VOLUME.shape[2], resolve.intensities(VOLUME)):
        found.append(fine.copy())
        fine[...] = 0
    np.testing.assert_array_equal(np.stack(found, 2), whole)


def test_a_stream_half_read_holds_nothing_up():
    resolve, threads = resolver(), threading.active_count()
    whole, known = resolve(VOLUME), resolve.intensities(VOLUME)
    first, second = (resolve.stream(arriving(VOLUME), VOLUME.shape[2], known) for _ in range(2))
    for z, (one, other) in enumerate(zip(first, second, strict=True)):  # and volumes in between
        np.testing.assert_array_equal(one, whole[:, :, z])
        np.testing.assert_array_equal(other, whole[:, :, z])
        if z == 9:
            np.testing.assert_array_equal(resolve(VOLUME), whole)
    left = resolve.stream(arriving(VOLUME), VOLUME.shape[2], known)
    next(left)
    left.close()
    assert threading.active_count() == threads
    left = resolve.stream(arriving(VOLUME), VOLUME.shape[2], known)
    next(left)
    resolve.close()
    with pytest.raises(RunError, match="closed"):
        list(left)


def test_streams_and_volumes_share_a_resolver_between_threads():
    resolve = resolver()
    whole, known = resolve(VOLUME), resolve.intensities(VOLUME)

    def work(n):
        sr = streamed(resolve, VOLUME) if n % 2 else resolve(VOLUME)
        return sr, resolve.timings

    with ThreadPoolExecutor(6) as pool:
        for sr, timings in pool.map(work, range(12)):
            np.testing.assert_array_equal(sr, whole)
            assert timings.windows == timings.computed == len(resolve.stages.tiling(VOLUME.shape))
    assert known == resolve.intensities(VOLUME)


def test_timings_tell_the_waiting_from_the_work():
    resolve, clock = resolver(), threading.Event()

    def slices():
        for n in range(9):
            clock.wait(0.01)
            yield VOLUME[:, :, n]

    list(resolve.stream(slices(), 9, Intensities(700.0)))
    timings = resolve.timings
    assert timings.read >= 0.09 and timings.total >= timings.read + timings.network > timings.read


@pytest.mark.parametrize(
    ("slices", "sentence"),
    [
        ([VOLUME[:, :, 0]] * 4, "ended after 4 of 5"),
        ([], "ended after 0 of 5"),
        ([VOLUME[:, :, 0]] * 6, "has more than the 5"),
        ([VOLUME[:, :, 0]] * 4 + [VOLUME[:, 1:, 0]], r"Slice 5 of 5 is int16 of shape \(20, 20\)"),
        ([VOLUME[:, :, 0]] * 4 + [VOLUME[:, :, 0] * 1.0], "Slice 5 of 5 is float64"),
        ([VOLUME[:, :, 0]] * 2 + [VOLUME[:, :, :2]], "Slice 3 of 5 must be 2-D"),
        ([VOLUME[:, :, 0] * 1j], "Slice 1 of 5 must be 2-D and real, not complex128"),
        (
            [VOLUME[:, :, 0] * 1.0] * 3 + [np.full(VOLUME.shape[:2], np.inf)],
            "Slice 4 of 5 has NaN or infinite voxels",
        ),
    ],
)
def test_slices_that_make_no_volume_are_refused(slices, sentence):
    resolve = resolver()
    with pytest.raises(RunError, match=sentence):
        list(resolve.stream(iter(slices), 5, Intensities(700.0)))
    assert streamed(resolve, VOLUME).shape == (40, 42, 34)  # and the next one is served


def test_what_cannot_be_known_is_refused_before_the_first_slice():
    resolve, known = resolver(), Intensities(1.0)
    with pytest.raises(RunError, match="at least one"):
        resolve.stream([], 0, known)
    with pytest.raises(RunError, match="'int8'"):
        resolve.stream([], 3, known, dtype="int8")
    for values in [(0.0,), (-3.0,), (np.nan,), (np.inf,), (1.0, 5, 4), (1.0, np.nan, 4)]:
        with pytest.raises(RunError, match="unit above 0"):
            Intensities(*values)
    for field in ({"unit": "7"}, {"unit": None}, {"noise": np.inf}, {"low": [1]}):
        with pytest.raises(RunError, match="unit above 0"):
            Intensities(**{"unit": 1.0} | field)
    for rings in (None, True, (True, False), (1, 0, 0)):
        with pytest.raises(RunError, match="True and False"):
            Intensities(1.0, rings=rings)
    with pytest.raises(RunError, match="constant"):
        resolve.intensities(np.zeros((4, 4, 4)))


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32])
def test_without_more_than_a_unit_a_magnitude_image_stays_one(dtype):
    volume = VOLUME.astype(dtype)
    found = np.stack(list(resolver().stream(arriving(volume), 17, Intensities(700.0))), 2)
    assert found.min() == 0 and found.max() > volume.max()  # nothing says how bright it may get
    np.testing.assert_array_equal(found > 0, resolver()(volume) > 0)


def test_slices_beyond_what_was_told_are_not_cut_off():
    resolve, known = resolver(), Intensities(700.0, 10, 300)
    found = np.stack(list(resolve.stream(arriving(VOLUME), 17, known)), 2)
    assert VOLUME[..., 4].max() > 800 and found[..., 8].max() > 800
    signed = VOLUME - np.int16(450)
    found = np.stack(list(resolve.stream(arriving(signed), 17, Intensities(700.0))), 2)
    assert found.min() < -400
