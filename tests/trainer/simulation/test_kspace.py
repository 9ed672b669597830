"""The k-space operator against the analytic grid rule, and each degradation against its definition."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from udean.trainer.simulation import kspace
from udean.trainer.simulation.kspace import Acquisition, DegradationError


def band_limited(shape, seed=0):
    """A smooth, positive, periodic phantom as a function of position, so that any grid can sample it."""
    rng = np.random.default_rng(seed)
    waves = [(rng.integers(-2, 3, 3), rng.random(), rng.random() * 2 * np.pi) for _ in range(5)]

    def at(grid):
        total = np.full(grid[0].shape, 6.0)
        for k, amplitude, phase in waves:
            angle = sum(2 * np.pi * f * g / n for f, g, n in zip(k, grid, shape, strict=True))
            total += amplitude * np.cos(angle + phase)
        return total

    return at


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(1, 4)] * 3).filter(lambda s: max(s) > 1), st.integers(0, 99))
def test_lr_voxel_i_lies_exactly_on_hr_voxel_s_i(scale, seed):
    shape = tuple(6 * s for s in scale)
    phantom = band_limited(shape, seed)
    hr = phantom(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)
    lr = kspace.acquire(hr, Acquisition(scale))
    np.testing.assert_allclose(lr, hr[tuple(slice(None, None, s) for s in scale)], rtol=2e-6)
    np.testing.assert_allclose(kspace.zero_fill(lr, scale), hr, rtol=2e-6)


def test_tricubic_overlays_the_truth_and_is_half_a_voxel_right():
    y, x, z = np.meshgrid(*[np.arange(64)] * 3, indexing="ij")
    hr = np.exp(-((y - 30) ** 2 + (x - 33) ** 2 + (z - 31) ** 2) / 150).astype(np.float32)
    sr = kspace.tricubic(kspace.acquire(hr, Acquisition()), (2, 2, 2))
    assert np.abs(sr - hr).max() < 2e-3
    assert np.abs(np.roll(sr, 1, 0) - hr).max() > 20e-3


@pytest.mark.parametrize("scale", [(2, 2, 2), (2, 2, 1), (3, 3, 2), (4, 4, 1)])
def test_tricubic_is_scipys_spline_at_the_fft_grid(scale):
    from scipy import ndimage

    lr = np.random.default_rng(0).random((9, 7, 8), dtype=np.float32)
    grid = np.meshgrid(*[np.arange(n * s) / s for n, s in zip(lr.shape, scale, strict=True)], indexing="ij")
    expected = ndimage.map_coordinates(lr.astype(float), grid, order=3, mode="reflect")
    np.testing.assert_allclose(kspace.tricubic(lr, scale), expected, atol=1e-5)


def test_noise_is_rician_at_the_stated_level_and_repeatable():
    hr = np.full((32, 32, 32), 100.0, np.float32)
    acquisition = Acquisition(noise=0.05)
    lr = kspace.acquire(hr, acquisition, seed=3)
    assert lr.std() == pytest.approx(5.0, rel=0.05)
    assert lr.mean() == pytest.approx(100 + 5**2 / 200, abs=0.3)  # Gudbjartsson & Patz 1995, high SNR
    np.testing.assert_array_equal(lr, kspace.acquire(hr, acquisition, seed=3))
    assert (lr != kspace.acquire(hr, acquisition, seed=4)).any()


@pytest.mark.parametrize("left_out", [{"elliptical": True}, {"partial_fourier": 0.75}])
def test_points_of_kspace_that_are_left_out_bring_no_noise(left_out):
    acquisition = Acquisition(noise=0.01, **left_out)
    lr = kspace.acquire(np.full((64, 64, 64), 100.0, np.float32), acquisition, seed=3)
    share = kspace.sampling_mask(lr.shape, acquisition).mean()
    assert lr.std() == pytest.approx(share**0.5, rel=0.03)  # at high SNR that of the real part


def test_sampling_masks_leave_out_what_they_say():
    elliptical = kspace.sampling_mask((40, 40, 40), Acquisition(elliptical=True))
    assert elliptical.mean() == pytest.approx(np.pi / 6, abs=0.02)
    partial = kspace.sampling_mask((8, 40, 8), Acquisition(partial_fourier=0.75))
    assert partial.mean() == 0.75 and partial[:, 20].all()  # the centre is always acquired


def test_data_consistency_is_zero_for_the_truth_and_not_for_another_image():
    hr = np.random.default_rng(0).random((16, 16, 16), dtype=np.float32)
    lr = kspace.acquire(hr, Acquisition())
    assert kspace.data_consistency(hr, lr, (2, 2, 2)) < 1e-6
    assert kspace.data_consistency(hr[::-1].copy(), lr, (2, 2, 2)) > 0.01


def test_odd_sizes_are_cropped_to_the_scale():
    assert kspace.crop(np.zeros((197, 233, 155)), (2, 2, 3)).shape == (196, 232, 153)
    with pytest.raises(DegradationError, match="too small"):
        kspace.crop(np.zeros((3, 9, 9)), (2, 2, 2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (1, 1, 1)},
        {"scale": (0, 2, 2)},
        {"partial_fourier": 0.4},
        {"noise": -1},
        {"bias": -0.1},
        {"sampling": "blur", "elliptical": True},
        {"sampling": "bicubic", "tukey": 0.5},
    ],
)
def test_impossible_acquisitions_are_refused(wrong):
    with pytest.raises(DegradationError):
        Acquisition(**wrong)


def test_blur_halves_a_line_at_half_an_lr_voxel_and_keeps_the_grid():
    hr = np.zeros((33, 32, 32), np.float32)
    hr[16] = 1
    lr = kspace.acquire(hr, Acquisition((4, 1, 1), sampling="blur"))
    assert lr.shape == (9, 32, 32) and lr.argmax(0).max() == lr.argmax(0).min() == 4
    fine = kspace.blurred(hr, (4, 1, 1))
    np.testing.assert_array_equal(lr, fine)
    profile = kspace.blurred(np.roll(hr, 2, 0), (4, 1, 1))[:, 0, 0]  # the line half an LR voxel off
    assert profile[4] / lr[4, 0, 0] == pytest.approx(0.5, abs=0.01)


def test_bicubic_reduction_is_that_of_image_programs_on_our_grid():
    """PyTorch's keeps edges, ours origins: by an odd factor, its LR voxel i lies on our HR voxel s·i + 1."""
    hr = np.random.default_rng(0).random((1, 48, 60)).astype(np.float32)
    lr = kspace.acquire(hr, Acquisition((1, 3, 3), sampling="bicubic"))
    theirs = F.interpolate(
        torch.from_numpy(np.roll(hr, 1, (1, 2)))[None], (16, 20), mode="bicubic", antialias=True
    )
    np.testing.assert_allclose(lr[0, 3:-3, 3:-3], theirs[0, 0, 3:-3, 3:-3], atol=1e-6)
    assert kspace.bicubic(np.ones((8, 8, 8)), (2, 2, 2)) == pytest.approx(1)


def test_bias_is_a_smooth_multiplication_of_the_stated_strength():
    hr = np.full((32, 40, 24), 100, np.float32)
    lr = kspace.acquire(hr, Acquisition(bias=0.2), seed=1)
    assert np.log(lr).std() == pytest.approx(0.2, rel=0.15)
    field = kspace.cosine_field((64, 64, 64), np.random.default_rng(0))
    assert field.std() == pytest.approx(1, abs=1e-3) and np.abs(np.diff(field, axis=0)).max() < 0.5
    np.testing.assert_array_equal(lr, kspace.acquire(hr, Acquisition(bias=0.2), seed=1))
    assert (lr != kspace.acquire(hr, Acquisition(bias=0.2), seed=2)).any()
