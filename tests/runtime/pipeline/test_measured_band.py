"""The measured band is the scan's: held to whole Fourier transforms, which share no code with the stage."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from udean.runtime import Intensities, RunError, SuperResolver
from udean.runtime.pipeline.measured_band import REACH, Weight, hold_measured, weight

from ...support.fakes import FakeEngine, card, nearest

CARD = card((2, 2, 2), 3, (8, 8)).replace(consistency="truncation")
RANDOM = np.random.default_rng(0)
ALL = Weight(1.0)


@pytest.fixture(autouse=True)
def same_numbers_in_any_order_of_tests(monkeypatch):
    monkeypatch.setitem(globals(), "RANDOM", np.random.default_rng(0))


def low(volume, scale, grid="fft"):
    """An HR volume through one whole FFT, its k-space truncated: the LR volume, real."""
    space = np.fft.fftn(volume)
    for axis, s in enumerate(scale):
        size = volume.shape[axis] // s
        if s > 1:
            k = np.fft.fftfreq(size, 1 / size).astype(int)
            space = space.take(k, axis) / s
            shift = 0 if grid == "fft" else (s - 1) / 2 / s
            phase = np.exp(2j * np.pi * k * shift / size)
            phase[2 * np.abs(k) == size] = 0  # the Nyquist frequency has no sign of its own
            space *= np.expand_dims(phase, [a for a in range(3) if a != axis])
    return np.fft.ifftn(space).real


def smooth(shape, sigma=1.2):
    return ndimage.gaussian_filter(RANDOM.normal(size=shape), sigma, mode="wrap").astype(np.float32)


def held(sr, lr, scale, grid="fft", w=ALL, rings=(True,) * 3, chunk=5, transfer=()):
    planes = np.ascontiguousarray(np.moveaxis(sr, 2, 0))
    out = np.full_like(planes, np.nan)
    slabs = ((n, planes[n : n + chunk]) for n in range(0, len(planes), chunk))
    stage = hold_measured(slabs, lambda k: lr[:, :, k], lr.shape, scale, grid, w, rings, transfer)
    for first, slab in stage:
        out[first : first + len(slab)] = slab
    return np.moveaxis(out, 0, 2)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(3, 19)] * 3),
    scale=st.tuples(*[st.integers(1, 4)] * 3),
    grid=st.sampled_from(["fft", "center"]),
    share=st.sampled_from([0.25, 1.0]),
)
def test_on_a_ring_it_is_the_whole_fourier_transforms_answer(shape, scale, grid, share):
    hr = [n * s for n, s in zip(shape, scale, strict=True)]
    truth, sr = smooth(hr), smooth(hr)
    lr = low(truth, scale, grid).astype(np.float32)
    new = held(sr, lr, scale, grid, Weight(share))
    before, after = lr - low(sr, scale, grid), lr - low(new, scale, grid)
    # The Nyquist frequencies of even sizes stay what they are: look at the others.
    for axis, (n, s) in enumerate(zip(shape, scale, strict=True)):
        if n % 2 == 0 and s > 1:
            alternating = np.expand_dims((-1.0) ** np.arange(n), [a for a in range(3) if a != axis])
            before -= alternating * (before * alternating).mean(axis, keepdims=True)
            after -= alternating * (after * alternating).mean(axis, keepdims=True)
    np.testing.assert_allclose(after, (1 - share) * before, atol=2e-5)
    # What the scan has not measured is not touched: the change has no high band.
    change = new - sr
    assert (
        abs(change - held(np.zeros_like(sr), low(change, scale, grid).astype("f4"), scale, grid)).max() < 2e-5
    )


@pytest.mark.parametrize(("scale", "grid"), [((2, 2, 2), "fft"), ((2, 3, 2), "center")])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_lost_detail_is_given_back_beyond_the_measured_band_only(scale, grid, share):
    shape = (9, 11, 13)
    truth, sr = (smooth([n * s for n, s in zip(shape, scale, strict=True)]) for _ in range(2))
    lr = low(truth, scale, grid).astype(np.float32)
    detail = sr - held(np.zeros_like(sr), low(sr, scale, grid).astype("f4"), scale, grid)
    wanted = held(sr, lr, scale, grid, Weight(share)) + 0.3 * detail
    np.testing.assert_allclose(
        held(sr, lr, scale, grid, Weight(share, detail=1.3)), wanted, atol=1e-4 * abs(sr).max()
    )
    assert abs(detail).max() > 0.05 * abs(sr).max()


def test_detail_of_air_stays_what_it_is():
    sr, lr = smooth((16, 16, 16)) ** 2 * 1e-2, np.zeros((8, 8, 8), np.float32)
    assert np.array_equal(held(sr, lr, (2, 2, 2), w=Weight(1.0, 0.05, 0.1, detail=1.5)), sr)


LINES = (tuple(np.linspace(1, 0.4, 9)), (1.0, 1.0, 0.5, 0.5), (1.0, 0.3))


def blurred(lr):
    """An LR volume through the point spread of LINES, by one whole FFT; without Nyquist frequencies."""
    space = np.fft.fftn(lr)
    for axis, (n, line) in enumerate(zip(lr.shape, LINES, strict=True)):
        frequency = np.abs(np.fft.fftfreq(n))
        passed = np.interp(frequency, np.linspace(0, 0.5, len(line)), line) * (frequency < 0.5)
        space *= np.expand_dims(passed, [a for a in range(3) if a != axis])
    return np.fft.ifftn(space).real.astype(np.float32)


@pytest.mark.parametrize(("scale", "grid"), [((2, 2, 2), "fft"), ((2, 3, 2), "center")])
def test_the_point_spread_is_passed_both_ways(scale, grid):
    """On a ring SR + U·T·(LR - T·D(SR)), frequency by frequency; elsewhere nearly so."""
    shape = (14, 16, 18)
    truth, sr = (smooth([n * s for n, s in zip(shape, scale, strict=True)]) for _ in range(2))
    lr = blurred(low(truth, scale, grid))
    new = held(sr, lr, scale, grid, transfer=LINES)
    residual = lr - blurred(low(sr, scale, grid))
    wanted = blurred(residual)
    np.testing.assert_allclose(low(new - sr, scale, grid), wanted, atol=3e-5)
    assert np.square(lr - blurred(low(new, scale, grid))).sum() < 0.5 * np.square(residual).sum()
    open_ended = held(sr, lr, scale, grid, rings=(True, True, False), transfer=LINES)
    middle = slice(4 * scale[2], -4 * scale[2])
    apart, change = (open_ended - new)[..., middle], new - sr
    assert np.sqrt(np.mean(apart**2)) < 0.05 * np.sqrt(np.mean(change**2))
    assert abs(apart).max() < 0.06 * abs(change).max()  # over 40 draws 0.054 at most


def test_an_answer_that_agrees_with_the_scan_stays_bit_for_bit_at_weight_0_and_nearly_so_at_1():
    truth = smooth((24, 30, 40))
    lr = low(truth, (2, 2, 2)).astype(np.float32)
    np.testing.assert_array_equal(held(truth, lr, (2, 2, 2), w=Weight(0.0)), truth)
    assert abs(held(truth, lr, (2, 2, 2)) - truth).max() < 1e-4


@pytest.mark.parametrize("chunk", [1, 4, 7, 200])
def test_slabs_of_any_size_give_the_same_bits_in_order(chunk):
    truth, sr = smooth((20, 22, 80)), smooth((20, 22, 80))
    lr = low(truth, (2, 2, 2)).astype(np.float32)
    wanted = held(sr, lr, (2, 2, 2), rings=(True, False, False))
    np.testing.assert_array_equal(held(sr, lr, (2, 2, 2), rings=(True, False, False), chunk=chunk), wanted)
    np.testing.assert_array_equal(held(sr, lr, (2, 2, 2), rings=(True, False, False), chunk=chunk), wanted)


def test_a_pipeline_that_begins_again_is_followed():
    truth, sr = smooth((12, 14, 60)), smooth((12, 14, 60))
    lr, planes = low(truth, (2, 2, 2)).astype(np.float32), np.moveaxis(sr, 2, 0)

    def begun_twice():
        yield from ((n, planes[n : n + 5] * 9) for n in range(0, 30, 5))
        yield from ((n, planes[n : n + 5]) for n in range(0, 60, 5))

    out = np.empty_like(planes)
    stage = hold_measured(begun_twice(), lambda k: lr[:, :, k], lr.shape, (2, 2, 2), "fft", ALL)
    for first, slab in stage:
        out[first : first + len(slab)] = slab
    np.testing.assert_array_equal(np.moveaxis(out, 0, 2), held(sr, lr, (2, 2, 2), rings=(False,) * 3))


def test_a_cropped_scan_rings_no_more_at_its_ends_than_the_whole_one_does_there():
    """A ramp has ends that do not meet; reflected, they disturb less than where the ring is enforced."""
    truth = np.broadcast_to(np.arange(96, dtype=np.float32) / 96, (16, 16, 96)) + 0.05 * smooth((16, 16, 96))
    lr = np.ascontiguousarray(truth[::2, ::2, ::2])  # cropped from a smooth world: no ringing of its own
    sr = truth + 0.02 * smooth(truth.shape, 2.5)
    reflected = held(sr, lr, (2, 2, 2), rings=(True, True, False)) - truth
    ring = held(sr, lr, (2, 2, 2), rings=(True, True, True)) - truth
    ends = np.r_[0:8, 88:96]
    assert np.abs(reflected[..., ends]).max() < 0.5 * np.abs(ring[..., ends]).max()
    middle = slice(8 * 2, -8 * 2)
    assert np.sqrt((reflected[..., middle] ** 2).mean()) < np.sqrt(((sr - truth)[..., middle] ** 2).mean())


def test_memory_is_that_of_the_reach_not_of_the_volume():
    def peak(count):
        plane = np.ones((64, 64), np.float32)
        slabs = ((n, np.ones((4, 128, 128), np.float32)) for n in range(0, 2 * count, 4))
        tracemalloc.start()
        for _ in hold_measured(slabs, lambda k: plane, (64, 64, count), (2, 2, 2), "fft", ALL):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(400) < peak(80) + 5e6  # 640 further HR planes have 42 MB


def test_the_weight_falls_with_noise_and_air_is_left_out_of_magnitudes():
    shares = [weight(noise, True).share for noise in (0, 0.01, 0.02, 0.045, 0.09)]
    assert shares[0] == 1 and shares == sorted(shares, reverse=True) and shares[3] == 0.5 and shares[4] < 0.1
    assert shares[2] == pytest.approx(0.99, abs=0.005)  # so that small lesions stay
    assert weight(0.045, False) == Weight(0.5) and weight(0.2, True, 0.7).share == 0.7
    truth = np.zeros((32, 32, 32), np.float32)
    truth[8:24, 8:24, 8:24] = 0.8
    truth = ndimage.gaussian_filter(truth, 1)
    lr = np.abs(low(truth, (2, 2, 2)) + 0.01 * RANDOM.normal(size=(16, 16, 16))).astype(np.float32)
    new = held(truth * np.float32(0.9), lr, (2, 2, 2), w=weight(0.01, True, 1.0))
    air = [np.sqrt(np.mean(np.square(x))) for x in (new[:4] - truth[:4], lr[:2])]
    assert air[0] < 0.2 * air[1]
    inside = (slice(12, 20),) * 3
    assert abs(new[inside] - truth[inside]).mean() < 0.02 < abs(0.9 * truth[inside] - truth[inside]).mean()


# The whole way: models, volumes, streams.


def network(windows):
    """A network whose answer depends on the whole window and is wrong in the measured band."""
    fine = nearest(windows, (2, 2, 2))
    return fine * np.float32(1.1) - windows.mean((1, 2, 3), keepdims=True) * np.float32(0.1)


def head(shape=(40, 36, 30)):
    places = np.meshgrid(*[np.linspace(-1.2, 1.2, n) for n in shape], indexing="ij")
    inside = (np.sum(np.square(places), 0) < 1) * (1 + 0.3 * smooth(shape, 1) / 0.1)
    return np.abs(ndimage.gaussian_filter(inside, 0.7) * 800 + RANDOM.normal(0, 4, shape)).astype(np.float32)


def test_only_a_model_whose_card_says_so_is_held_unless_asked_for():
    volume, plain = head(), CARD.replace(consistency="off")

    def resolved(model_card, **options):
        return SuperResolver(FakeEngine(network, model_card), **options)(volume)

    free = resolved(plain)
    np.testing.assert_array_equal(resolved(CARD, consistency="off"), free)
    forced, auto = resolved(plain, consistency=1.0), resolved(CARD)
    for other in (forced, auto):
        assert np.sqrt(np.mean((other - free) ** 2)) > 5
    again = low(forced, (2, 2, 2))
    inside = ndimage.gaussian_filter(volume, 1) > 0.2 * volume.max()
    error = [np.sqrt(np.mean((low(sr, (2, 2, 2)) - volume)[inside] ** 2)) for sr in (free, auto, forced)]
    assert error[2] < 0.2 * error[0] and error[2] <= 1.01 * error[1] < error[0], again.shape
    for wrong in (-0.1, 1.1, "on", float("nan")):
        with pytest.raises(RunError, match=r"auto.*off"):
            resolved(CARD, consistency=wrong)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_run_to_run_it_is_the_same_bits_and_integers_keep_their_range(dtype):
    volume = head().astype(dtype)
    resolve = SuperResolver(FakeEngine(network, CARD))
    first = resolve(volume)
    np.testing.assert_array_equal(resolve(volume), first)
    assert first.dtype == dtype and first.min() >= 0
    if dtype == "int16":
        assert first.max() <= volume.max()


@pytest.mark.parametrize("shape", [(20, 21, 40), (9, 8, 2), (8, 8, 1), (3, 30, 55)])
def test_a_stream_has_the_bits_of_a_volume_whose_slices_are_no_ring(shape):
    volume = np.abs(RANDOM.normal(500, 200, shape)).astype(np.int16)
    resolve = SuperResolver(FakeEngine(network, CARD), crop=False)
    known = resolve.intensities(volume)
    if known.rings[2]:
        pytest.skip("of noise that looks like a ring")
    slices = (volume[:, :, n] for n in range(shape[2]))
    stream = np.stack(list(resolve.stream(slices, shape[2], known)), 2)
    np.testing.assert_array_equal(stream, resolve(volume))


def test_a_streams_slices_come_a_reach_later():
    volume, came = head((16, 16, 90)), []
    resolve = SuperResolver(FakeEngine(network, CARD), crop=False)

    def arriving():
        for n in range(90):
            came.append(n)
            yield volume[:, :, n]

    for z, _ in enumerate(resolve.stream(arriving(), 90, Intensities(800.0, noise=4.0))):
        assert len(came) <= min(90, z // 2 + 2 * REACH + 2 * 3)
