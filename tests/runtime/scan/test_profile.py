"""Slice profiles are what they are called, and a scan tells how wide its own is."""

import numpy as np
import pytest
from scipy import ndimage
from udean.runtime import RunError
from udean.runtime.scan.profile import deviation, estimate_deviation, profile, profile_matrix

SHAPES = ("gaussian", "box", "slr")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_profile_has_its_width_at_half_maximum(shape):
    place = np.linspace(0, 1.5, 3001)
    values = profile(shape, place)
    assert abs(place[np.argmax(values < values[0] / 2)] - 0.5) < 2e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_slices_see_what_lies_around_their_centres(shape):
    centers = np.array([10.0, 14.25, 20.0])
    seen = profile_matrix(shape, 4.0, centers, 40)
    np.testing.assert_allclose(seen.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(seen @ np.arange(40), centers, atol=0.02)
    spread = np.sqrt(seen[0] @ (np.arange(40) - 10.0) ** 2)
    assert abs(spread - deviation(shape, 4.0)) < 0.1


def test_a_box_of_whole_voxels_is_their_mean():
    seen = profile_matrix("box", 3.0, np.array([1.0, 4.0]), 6)
    np.testing.assert_allclose(seen, np.kron(np.eye(2), np.full(3, 1 / 3)), atol=1e-6)


def test_an_unknown_profile_is_refused():
    with pytest.raises(RunError, match="gaussian, box, slr"):
        profile("square", np.zeros(1))


@pytest.fixture(scope="module")
def texture():
    """An object of much the same spectrum along all axes, which falls as anatomy's does."""
    noise = np.random.default_rng(0).standard_normal((80, 80, 96))
    parts = [ndimage.gaussian_filter(noise, sd) for sd in (0.7, 1.5, 3, 6)]
    return (0.5 + 0.08 * sum(part / part.std() for part in parts)).astype(np.float32)


@pytest.mark.parametrize(
    "shape, width", [("gaussian", 4), ("box", 4), ("slr", 4), ("box", 2.5), ("box", 2), ("gaussian", 5)]
)
@pytest.mark.parametrize("noise", [0, 0.03])
def test_a_scan_tells_how_wide_its_profile_is(texture, shape, width, noise):
    slices = texture @ profile_matrix(shape, width, np.arange(24) * 4 + 1.5, 96).T
    slices += noise * np.random.default_rng(1).standard_normal(slices.shape).astype(np.float32)
    told = estimate_deviation(slices, 4.0)
    assert told == pytest.approx(deviation(shape, width) / 4, abs=0.05)


def test_too_few_slices_tell_nothing(texture):
    assert estimate_deviation(texture[..., :4], 4.0) is None
    assert estimate_deviation(np.zeros((40, 40, 12), np.float32), 4.0) is None
