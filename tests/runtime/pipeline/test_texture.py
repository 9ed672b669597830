"""The linear estimate between slices: what theory says it is, for textures that are known."""

import numpy as np
import pytest
from scipy import ndimage
from udean.runtime.pipeline import texture
from udean.runtime.scan.profile import profile_matrix
from udean.runtime.scan.regrid import spline_weights

STEP, SIZE = 5.0, 60
CENTERS = np.arange(12) * STEP + (STEP - 1) / 2
SEEN = profile_matrix("gaussian", STEP, CENTERS, SIZE)


@pytest.fixture(scope="module")
def truth():
    """Texture of a few voxels around a mean, (rows, columns, SIZE), of standard deviation 0.1."""
    noise = np.random.default_rng(0).standard_normal((48, 44, SIZE))
    fine = ndimage.gaussian_filter(noise, 2, mode="wrap")
    return (0.5 + 0.1 * fine / fine.std()).astype(np.float32)


def test_covariance_is_that_of_the_texture_without_its_noise(truth):
    tissue = np.ones(truth.shape, bool)
    noisy = truth + 0.05 * np.random.default_rng(1).standard_normal(truth.shape, np.float32)
    found = texture.covariance(noisy, tissue, 0.05, 200)
    away = np.arange(8)
    np.testing.assert_allclose(found[:8], 0.01 * np.exp(-((away / 4) ** 2)), atol=1e-3)
    assert found.shape == (200,)


def test_voxels_outside_tissue_do_not_count(truth):
    tissue = np.zeros(truth.shape, bool)
    tissue[10:40, 8:40] = True
    inside = texture.covariance(truth, tissue, 0.0, 40)
    holes = np.where(tissue, truth, np.float32(7))
    np.testing.assert_array_equal(texture.covariance(holes, tissue, 0.0, 40), inside)


@pytest.mark.parametrize("rows", [24, 48])
def test_no_frequency_has_a_negative_power_however_short_the_lines_are(truth, rows):
    """Some noise would be amplified without bounds otherwise."""
    ramp = truth[:rows, :24] + np.linspace(0, 0.3, SIZE, dtype=np.float32)
    found = texture.covariance(ramp, np.ones(ramp.shape, bool), 0.0, 100)
    full = found[np.abs(np.subtract.outer(np.arange(100), np.arange(100)))]
    assert np.linalg.eigvalsh(full).min() > -1e-9


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_it_is_nearer_to_the_truth_than_a_spline_by_what_theory_says(truth, noise):
    tissue = np.ones(truth.shape, bool)
    covariance = texture.covariance(truth, tissue, 0.0, SIZE)
    slices = truth @ SEEN.T
    slices += noise * np.random.default_rng(2).standard_normal(slices.shape, np.float32)
    weights = texture.between(covariance, SEEN, noise)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(weights @ SEEN @ np.arange(SIZE), np.arange(SIZE), atol=1e-3)
    error, plain = (
        np.mean((slices @ w.T - truth)[:, :, 5:-5] ** 2)
        for w in (weights, spline_weights(len(SEEN), (np.arange(SIZE) - CENTERS[0]) / STEP))
    )
    full = covariance[np.abs(np.subtract.outer(np.arange(SIZE), np.arange(SIZE)))]
    known = full @ SEEN.T @ np.linalg.inv(SEEN @ full @ SEEN.T + noise**2 * np.eye(len(SEEN)))
    least = np.diag(full - known @ SEEN @ full)[5:-5].mean()
    assert error < 1.1 * least and error < 0.97 * plain


def test_what_has_no_texture_has_no_estimate():
    flat, tissue = np.full((30, 30, 5), 0.5, np.float32), np.ones((30, 30, 5), bool)
    assert texture.covariance(flat, tissue, 0.0, 30) is None
    noise = 0.1 * np.random.default_rng(0).standard_normal(flat.shape, np.float32)
    assert texture.covariance(flat + noise, tissue, 0.11, 30) is None
    assert texture.covariance(flat, ~tissue, 0.0, 30) is None
