"""A degradation read off LR scans alone: widths, noise and sampling come back, of scans of other people."""

import numpy as np
import pytest
from scipy import ndimage
from udean.trainer.simulation.estimate import Seen, estimate
from udean.trainer.simulation.kspace import Acquisition, Degradation, acquire, transfer

SHAPE = (96, 112, 96)
# Tolerances. Widths add as their squares, so that is how people of other anatomy disturb them: 0 may come
# back as 0.8 LR voxels, 1 as 0.6 to 1.3, 1.8 as 1.6 to 2. Noise: share of the level.
SQUARE, NOISE = 0.64, 0.15


def person(seed):
    """A body of a few sharp tissues in air, bent and shaded; no two alike, and none with a partner."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    radii = rng.uniform(0.65, 0.85, 3)[:, None, None, None]
    body = ((grid / radii) ** 2).sum(0) < 1
    coarse = ndimage.gaussian_filter(rng.standard_normal(SHAPE, np.float32), 4)
    fine = ndimage.gaussian_filter(rng.standard_normal(SHAPE, np.float32), 1.5)
    level = np.digitize(coarse / coarse.std() + 0.5 * fine / fine.std(), (-0.8, 0.2, 1.0))
    image = body * np.asarray((0.25, 0.55, 0.75, 1.0), np.float32)[level]
    return ndimage.gaussian_filter(image, 0.5).astype(np.float32)


@pytest.fixture(scope="module")
def sources():
    return [Seen(person(seed), (1.0, 1.0, 1.0)) for seed in range(3)]


def seen(degradation, seed=10):
    lr = acquire(person(seed), Acquisition(**vars(degradation)), seed)
    return Seen(700 * lr, (2.0, 2.0, 2.0))


@pytest.mark.parametrize("width", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.8, 1.8)])
@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_widths_and_noise_of_one_scan_come_back(sources, width, noise):
    found = estimate([seen(Degradation(width=width, noise=noise))], sources, (2, 2, 2)).degradation
    assert np.square(found.width) == pytest.approx(np.square(width), abs=SQUARE)
    assert found.noise == pytest.approx(noise, rel=NOISE)
    assert found.partial_fourier == 1 and not found.elliptical


def test_partial_fourier_and_empty_corners_are_seen(sources):
    scans = [seen(Degradation(partial_fourier=0.75, elliptical=True, noise=0.02), s) for s in (10, 11)]
    found = estimate(scans, sources, (2, 2, 2)).degradation
    assert found.elliptical and found.phase_axis == 1
    assert found.partial_fourier == pytest.approx(0.75, abs=0.051)
    assert found.noise == pytest.approx(0.02, rel=NOISE)


def test_voxels_of_another_size_are_compared_at_the_same_frequencies(sources):
    """HR scans of half the voxel size show the same anatomy at twice as many voxels."""
    scan = seen(Degradation(width=(0.0, 1.4, 1.4), noise=0.01))
    finer = [Seen(ndimage.zoom(s.volume, 1.25, order=3), (0.8, 0.8, 0.8)) for s in sources]
    both = [estimate([scan], group, (2, 2, 2)).degradation for group in (sources, finer)]
    assert np.square(both[1].width) == pytest.approx(np.square(both[0].width), abs=SQUARE)


def test_the_transfer_halves_what_has_no_partner():
    frequency = np.array([0.0, 0.2, 0.3, 0.5])
    partial = Degradation(partial_fourier=0.75, phase_axis=0)
    np.testing.assert_allclose(transfer(partial, 0, frequency), [1, 1, 0.5, 0.5])
    np.testing.assert_allclose(transfer(partial, 1, frequency), 1)
    half = np.array([np.log(2) / np.pi])
    np.testing.assert_allclose(transfer(Degradation(width=(2.0, 0, 0)), 0, half), 0.5)
