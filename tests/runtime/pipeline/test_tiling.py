"""Windows: their places and weights, and that blending changes nothing on which they agree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from udean.runtime import RunError
from udean.runtime.pipeline.tiling import reflect, tile_axis, tile_windows, window_profile

from ...support.fakes import card, nearest, stitched

WEIGHTINGS = st.sampled_from(["gaussian", "hann", "constant"])
GRIDS = st.sampled_from(["fft", "center"])


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 23), st.integers(1, 23), st.integers(1, 11)),
    window=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    slices=st.integers(1, 5),
    scale=st.sampled_from([(1, 1, 1), (2, 2, 2), (2, 2, 1), (3, 2, 1)]),
    overlap=st.floats(0, 0.95),
    weighting=WEIGHTINGS,
    grid=GRIDS,
    seed=st.integers(0, 99),
)
def test_identity_and_nearest_give_the_volume_back_bit_for_bit(
    shape, window, slices, scale, overlap, weighting, grid, seed
):
    random = np.random.default_rng(seed)
    volume = (random.normal(size=shape) * 10.0 ** random.integers(-20, 20, shape)).astype(np.float32)
    plan = tile_windows(shape, card(scale, slices, window, grid), overlap, None, weighting)
    np.testing.assert_array_equal(stitched(volume, plan, scale), nearest(volume, scale))


@given(size=st.integers(1, 500), window=st.integers(1, 80), overlap=st.floats(0, 0.99), grid=GRIDS)
def test_windows_cover_evenly_with_the_overlap_asked_for(size, window, overlap, grid):
    axis = tile_axis(size, window, 2, grid, overlap, "gaussian")
    steps = np.diff(axis.starts)
    assert axis.span(0)[0] == 0 and axis.span(len(axis.starts) - 1)[1] == 2 * size
    if steps.size:
        assert steps.min() >= 1 and steps.max() - steps.min() <= 1
        assert steps.max() <= max(1, window * (1 - overlap) + 1e-6)
        assert axis.starts[0] == 0 and axis.starts[-1] == size - window


@given(size=st.integers(1, 200), window=st.integers(1, 80), data=st.data())
def test_a_part_is_widened_to_a_window_where_the_axis_has_one(size, window, data):
    start = data.draw(st.integers(0, size - 1))
    part = slice(start, data.draw(st.integers(start + 1, size)))
    wide = tile_axis(size, window, 2, "fft", 0.25, "gaussian").around(part)
    assert 0 <= wide.start <= part.start < part.stop <= wide.stop <= size
    assert wide.stop - wide.start == max(part.stop - part.start, min(window, size))


@given(size=st.integers(1, 60), window=st.integers(1, 20), overlap=st.floats(0, 0.9), weighting=WEIGHTINGS)
def test_running_mean_is_the_weighted_mean(size, window, overlap, weighting):
    axis = tile_axis(size, window, 2, "fft", overlap, weighting)
    random = np.random.default_rng(0)
    mean = np.full(2 * size, np.nan, np.float32)
    total, weights = np.zeros(2 * size), np.zeros(2 * size)
    for n, start in enumerate(axis.starts):
        new = random.normal(size=2 * window).astype(np.float32)
        axis.blend(n, new, mean, dim=0)
        low, high = axis.span(n)
        part = slice(low - 2 * start, high - 2 * start)
        weight = window_profile(window, 2, "fft", weighting)[part]
        total[low:high] += weight * new[part]
        weights[low:high] += weight
    np.testing.assert_allclose(mean, total / weights, atol=1e-5)


@pytest.mark.parametrize("weighting", ["gaussian", "hann"])
def test_weight_knows_the_grid(weighting):
    fft = window_profile(3, 2, "fft", weighting)  # LR positions 0, ½, 1, 1½, 2, 2½ about the centre 1
    assert fft.argmax() == 2 and fft[2] == 1
    assert fft.argmin() == 5 and fft[5] < fft[0] == fft[4]
    center = window_profile(3, 2, "center", weighting)
    np.testing.assert_allclose(center, center[::-1])


def test_extrapolated_slice_gives_way_to_the_next_slab():
    axis = tile_axis(5, 3, 2, "fft", 0.25, "gaussian")
    assert axis.starts == (0, 2)
    assert axis.shares[1] == pytest.approx([0.5, 1], abs=0.03)  # HR slices 4 and 5, LR 2 and 2½


def test_reflection_is_numpys():
    for size in (1, 2, 3, 7):
        padded = np.pad(np.arange(size), 9, mode="reflect")
        np.testing.assert_array_equal(reflect(np.arange(-9, size + 9), size), padded)


@pytest.mark.parametrize(
    "options",
    [
        {"overlap": 1.0},
        {"overlap": -0.1},
        {"overlap": float("nan")},
        {"window": (0, 4)},
        {"weighting": "box"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(RunError):
        tile_windows((8, 8, 8), card((2, 2, 2), 3, (4, 4)), **options)
