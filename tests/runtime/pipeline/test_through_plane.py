"""Detail between thick slices: held to the slices, and not spoilt by a network that suits the scan badly."""

import numpy as np
import pytest
from scipy import ndimage
from udean.runtime.pipeline import through_plane
from udean.runtime.pipeline.through_plane import CHANNELS, ThickSlices, held_to, restore
from udean.runtime.scan.profile import deviation, profile_matrix

STEP = 4.0


@pytest.fixture(scope="module")
def truth():
    noise = np.random.default_rng(0).standard_normal((40, 37, 64))
    parts = [ndimage.gaussian_filter(noise, sd) for sd in (0.8, 2, 5)]
    return (0.5 + 0.08 * sum(part / part.std() for part in parts)).astype(np.float32)


@pytest.fixture(scope="module")
def stack(truth):
    centers = np.arange(16) * STEP + (STEP - 1) / 2
    slices = truth @ profile_matrix("gaussian", STEP, centers, 64).T
    return ThickSlices(slices, centers, STEP, 64)


def silent(windows):
    return np.zeros_like(windows[:, :1])


def sharpening(windows):
    return windows[:, 1:2] - ndimage.gaussian_filter1d(windows[:, 1:2], 1.5, axis=2)


def error(volume, truth):
    return float(np.sqrt(np.mean((volume - truth) ** 2)))


def test_the_network_is_shown_planes_distances_and_the_profile(stack, monkeypatch):
    monkeypatch.setattr(through_plane, "trusted", lambda *_: (1.0, 0.0))
    seen = []

    def spy(windows):
        seen.append(windows)
        return sharpening(windows)

    restore(stack, spy)
    assert seen and all(w.shape[1] == CHANNELS and w.shape[2] % 2 == w.shape[3] % 2 == 0 for w in seen)
    distance = seen[-1][0, 3, :, 0] * 4
    np.testing.assert_allclose(distance[:8], [1.5, 0.5, 0.5, 1.5] * 2, atol=1e-5)
    assert len(distance) == 64
    assert np.ptp(seen[-1][0, 4]) == 0


def missed(volume, stack, sd):
    return volume @ profile_matrix("gaussian", sd * 2.3548, stack.centers, 64).T - stack.slices


def test_the_result_gives_back_the_slices_up_to_half_their_noise(stack):
    volume, found = restore(stack, silent)
    sd = found.deviation * STEP
    before, after = (error(missed(v, stack, sd), 0) for v in (stack.interpolated(), volume))
    assert before > found.noise > 0 and after < 0.51 * found.noise


def test_slices_without_noise_are_given_back(stack):
    sd = deviation("gaussian", STEP)
    volume = stack.interpolated()
    before = np.abs(missed(volume, stack, sd)).mean()
    held_to(volume, stack, sd, 0.0)
    assert np.abs(missed(volume, stack, sd)).mean() < 0.35 * before


def test_noise_is_not_sharpened(stack, truth):
    """The slices' noise alone is what plain interpolation misses: the result does not follow it."""
    noisy = stack.slices + 0.1 * np.random.default_rng(2).standard_normal(stack.slices.shape, np.float32)
    noisy = ThickSlices(noisy, stack.centers, STEP, 64)
    volume, found = restore(noisy, silent)
    assert 0.08 < found.noise < 0.12
    assert error(volume, truth) < 1.01 * error(noisy.interpolated(), truth)


def test_lesions_in_noisy_slices_keep_what_the_slices_say_of_them(stack):
    """Noise has little of what is as large as a lesion: the result is held to that all the same."""
    random, lesion = np.random.default_rng(3), np.zeros(stack.slices.shape, np.float32)
    lesion[15:21, 14:20, 6:8] = 0.3
    noise = 0.1 * random.standard_normal(lesion.shape, np.float32)
    ill = ThickSlices(stack.slices + lesion + noise, stack.centers, STEP, 64)
    without = ThickSlices(stack.slices + noise, stack.centers, STEP, 64).interpolated()
    volume = without.copy()
    held_to(volume, ill, deviation("gaussian", STEP), 0.1)
    before, after = (
        missed(v, ill, deviation("gaussian", STEP))[15:21, 14:20, 6:8].mean() for v in (without, volume)
    )
    assert before < -0.25 and after > 0.5 * before


def test_a_field_of_view_within_the_head_and_narrower_than_high_is_nearer_too(truth):
    within = truth[8:28, 8:28] + np.linspace(0, 0.3, 64, dtype=np.float32)
    centers = np.arange(16) * STEP + (STEP - 1) / 2
    stack = ThickSlices(within @ profile_matrix("gaussian", STEP, centers, 64).T, centers, STEP, 64)
    volume, _ = restore(stack, silent)
    assert error(volume, within) < error(stack.interpolated(), within)


def test_held_to_the_slices_it_is_nearer_to_the_truth_than_interpolation(stack, truth):
    volume = stack.interpolated()
    before = error(volume, truth)
    held_to(volume, stack, deviation("gaussian", STEP), 0.0)
    assert error(volume, truth) < 0.97 * before


def test_without_a_network_that_helps_the_scans_own_texture_does(stack, truth):
    volume, found = restore(stack, silent)
    held = stack.interpolated()
    held_to(held, stack, found.deviation * STEP, found.noise)
    assert found.texture > 0.8 and error(volume, truth) < 0.97 * error(held, truth)


@pytest.mark.parametrize("wrong", [-1.0, 3.0, "noise"])
def test_a_network_that_is_wrong_for_a_scan_does_not_spoil_it(stack, truth, wrong):
    random = np.random.default_rng(1)

    def network(windows):
        if wrong == "noise":
            return 0.1 * random.standard_normal(windows[:, :1].shape, np.float32)
        return wrong * sharpening(windows)

    volume, found = restore(stack, network)
    assert error(volume, truth) < error(stack.interpolated(), truth)
    assert found.gain < 0.5


def test_a_slice_without_data_stays_so_and_does_not_distort_its_neighbours(stack, truth):
    slices = stack.slices.copy()
    slices[:, :, (5, 6, 10)] = 0
    slices[:, :, 15] = 0  # at an end: where a head ends, say
    volume, found = restore(ThickSlices(slices, stack.centers, STEP, 64), silent)
    whole, _ = restore(stack, silent)
    assert found.empty == (5, 6, 10)
    assert (volume[:, :, 20:28] == 0).all() and (volume[:, :, 40:44] == 0).all()
    beside = [19, 28, 39, 44]
    assert (volume[:, :, beside] != 0).all()
    assert error(volume[:, :, beside], truth[:, :, beside]) < 1.5 * error(
        whole[:, :, beside], truth[:, :, beside]
    )


def test_around_a_slice_of_noise_nothing_is_restored_and_elsewhere_it_is(stack, truth):
    slices = stack.slices.copy()
    slices[:, :, 8] = np.random.default_rng(4).random(slices.shape[:2])
    spoilt = ThickSlices(slices, stack.centers, STEP, 64)
    volume, found = restore(spoilt, silent)
    whole, usual = restore(stack, silent)
    assert found.odd == (8,) and usual.odd == ()
    near, far = slice(30, 38), [*range(24), *range(44, 64)]
    np.testing.assert_allclose(volume[:, :, near], spoilt.interpolated()[:, :, near], atol=1e-6)
    assert error(volume[:, :, far], truth[:, :, far]) < 1.05 * error(whole[:, :, far], truth[:, :, far])


def test_if_every_other_slice_has_moved_it_is_no_worse_than_interpolation(truth):
    centers = np.arange(16) * STEP + (STEP - 1) / 2
    smooth = ndimage.gaussian_filter(truth, (1, 1, 4))
    seen = profile_matrix("box", STEP, centers, 64).T
    still, moved = (part.astype(np.float32) @ seen for part in (smooth, np.roll(smooth, 3, axis=0)))
    slices = still.copy()
    slices[:, :, 1::2] = moved[:, :, 1::2]
    stack = ThickSlices(slices, centers, STEP, 64)
    volume, found = restore(stack, silent)
    _, usual = restore(ThickSlices(still, centers, STEP, 64), silent)
    assert found.continuity < 0.5 and usual.continuity == 1
    assert error(volume, smooth) < 1.002 * error(stack.interpolated(), smooth)


def test_air_is_not_computed(stack):
    empty = np.zeros((80, 80, 16), np.float32)
    empty[20:60, 20:57] = stack.slices
    computed = []

    def network(windows):
        computed.append(windows[:, 0].size)
        return sharpening(windows)

    restore(ThickSlices(empty, stack.centers, STEP, 64), network)
    trials = 2  # one call for each axis in plane
    assert 0 < sum(computed[trials:]) < 2 * 57 * 60 * 64
