"""Estimates from a scan: its noise, and whether its ends meet."""

import numpy as np
import pytest
from scipy import ndimage
from udean.runtime.scan.noise import estimate_noise
from udean.runtime.scan.rings import rings

RANDOM = np.random.default_rng(0)


def head(shape=(72, 64, 60)):
    """A smooth head of about 1000, with air around it, no noise."""
    places = np.meshgrid(*[np.linspace(-1.4, 1.4, n) for n in shape], indexing="ij")
    texture = ndimage.gaussian_filter(RANDOM.normal(size=shape), 2.5) * 12
    return ndimage.gaussian_filter((np.sum(np.square(places), 0) < 1) * (900 + 60 * texture), 1.0)


def noisy(volume, sigma, channels=1):
    parts = RANDOM.normal(0, sigma, (2 * channels, *volume.shape))
    parts[::2] += volume / np.sqrt(channels)
    return np.sqrt(np.sum(parts**2, 0)).astype(np.float32)


@pytest.mark.parametrize("sigma", [5, 20, 50])
@pytest.mark.parametrize("channels", [1, 8])
def test_noise_is_read_off_air_whatever_the_coil(sigma, channels):
    if channels > 1 and sigma == 50:
        return  # the floor of eight channels' noise is as bright as tissue
    found = estimate_noise(noisy(head(), sigma, channels), 1000.0)
    assert found.source == "air" and found.sigma == pytest.approx(sigma, rel=0.12)


@pytest.mark.parametrize("sigma", [10, 30])
def test_noise_is_read_off_tissue_where_air_is_zeroed(sigma):
    volume = head()
    stripped = np.where(volume > 300, noisy(volume, sigma), 0)
    found = estimate_noise(stripped, 1000.0)
    assert found.source == "residue" and 0.8 * sigma < found.sigma < sigma + 10


def test_noise_is_in_the_scans_units_and_small_odd_volumes_do_not_fail():
    stored = (noisy(head(), 20) * 2 + 30).astype(np.int16)
    assert estimate_noise(stored, 1000.0, 0.5, -15).sigma == pytest.approx(20, rel=0.12)
    for shape in ((1, 1, 2), (3, 3, 3), (5, 1, 9), (4, 4, 1)):
        assert estimate_noise(RANDOM.normal(9, 1, shape), 10.0).sigma >= 0
    clean = head()
    assert estimate_noise(clean, 1000.0).sigma < 10


@pytest.mark.parametrize("sigma", [0, 5, 10, 20, 30, 50])
@pytest.mark.parametrize("air", [1.0, 0.1])
def test_dark_bone_is_not_taken_for_air(sigma, air):
    """A head of textured bone, dark as air, in a scan that may be cropped to it."""
    random, shape = np.random.default_rng(sigma), (96, 96, 64)
    texture = ndimage.gaussian_filter(random.normal(size=shape), 0.8)
    texture *= np.linspace(10, 60, shape[1])[:, None] / texture.std()  # from compact bone to spongy
    volume = np.where(np.indices(shape)[0] % 48 < 24, 700.0, 70 + texture)
    volume = np.pad(np.maximum(volume, 0), [(0, int(96 * air)), (0, 0), (0, 0)])
    found = estimate_noise(noisy(volume, sigma), 1000.0)
    assert found.sigma == pytest.approx(sigma, rel=0.15, abs=2)


def truncated(volume, axis):
    size = volume.shape[axis] // 2
    k = np.fft.fftfreq(size, 1 / size).astype(int)
    space = np.fft.fft(volume, axis=axis).take(k, axis)
    return np.abs(np.fft.ifft(space, axis=axis)) / 2


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sigma", [0, 20])
def test_truncation_of_a_ring_is_told_from_a_cropped_scan(axis, sigma):
    volume = head((96, 96, 96))
    neck = [slice(None)] * 3
    neck[axis] = slice(40, 96)  # cut through the head: one end is bright, the other one is air
    neck = volume[tuple(neck)]
    assert rings(noisy(truncated(neck, axis), sigma))[axis]
    part = [slice(None)] * 3
    part[axis] = slice(20, 48)
    cropped = truncated(volume, axis)[tuple(part)]
    assert not rings(noisy(cropped, sigma))[axis]


def test_ends_that_are_alike_meet_and_short_axes_are_not_judged():
    assert rings(np.zeros((30, 30, 30))) == (True, True, True)
    assert rings(np.ones((3, 30, 5))) == (False, True, False)


def test_ends_that_differ_by_their_noise_alone_need_not_meet():
    """As a head in the middle of its field: its slices can go on as they come."""
    for sigma in (5, 50):
        assert rings(noisy(np.pad(head((48, 48, 48)), 8), sigma)) == (False, False, False)


def test_what_is_near_zero_in_an_image_with_signs_is_not_taken_for_air():
    volume = np.where(head() > 500, 900, -400) + RANDOM.normal(0, 10, (72, 64, 60))
    volume[:20] = RANDOM.normal(60, 25, (20, 64, 60))  # between inverted and upright tissue
    found = estimate_noise(volume, 1000.0)
    assert found.source == "residue" and found.sigma == pytest.approx(10, rel=0.2)
