"""Target grids fill the field of view at exactly the spacing asked for; interpolation is cubic B-spline."""

import numpy as np
import pytest
from scipy import ndimage
from udean.runtime import RunError
from udean.runtime.scan.regrid import Asked, Grid, along, spline_weights

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    "text, sizes",
    [
        ("1mm", (1, 1, 1)),
        ("1", (1, 1, 1)),
        ("0.8 mm", (0.8,) * 3),
        ("1x1x2mm", (1, 1, 2)),
        ("500um", (0.5,) * 3),
        (1.5, (1.5,) * 3),
        ((1, 2, 3), (1, 2, 3)),
        ("iso", None),
        ("ISO", None),
    ],
)
def test_a_spacing_is_read(text, sizes):
    assert Asked.parse(text).sizes == sizes


@pytest.mark.parametrize("text", ["", "0mm", "-1mm", "1x1mm", "1.2.3", "thin", "nan", (1, 2), float("inf")])
def test_what_is_no_spacing_is_refused(text):
    with pytest.raises(RunError, match="not of the form"):
        Asked.parse(text)


@pytest.mark.parametrize("spacing", [1.0, 0.75, 5.5, 0.9, 1.1, 0.6875])
@pytest.mark.parametrize("count, zoom", [(26, 5.5), (512, 0.45), (1, 4.0), (7, 1.0)])
def test_a_grid_fills_the_field_of_view_evenly(count, zoom, spacing):
    grid = Grid.over((count,) * 3, (zoom,) * 3, (spacing,) * 3)
    first, last = (grid.places(0)[[0, -1]] + 0.5) * zoom  # of the first LR voxel's outer edge
    before, after = first - spacing / 2, count * zoom - (last + spacing / 2)
    assert abs(before - after) < 1e-6
    assert -spacing / 2 - 1e-6 <= before <= spacing * 1e-2
    assert np.allclose(np.diff(grid.places(0)) * zoom, spacing)


def test_an_axis_of_the_spacing_asked_for_stays_as_it_is():
    grid = Grid.over((9, 9, 5), (1, np.float32(1.0000001), 4), (1, 1, 1))
    assert grid.start[:2] == (0, 0) and grid.step[:2] == (1, 1) and grid.shape == (9, 9, 20)
    volume = RANDOM.random((9, 9, 5), np.float32)
    np.testing.assert_array_equal(along(grid.weights(0, 9), volume, 0), volume)


def test_a_spacing_close_to_the_scans_is_met_all_the_same():
    """A thousandth of a voxel, 512 times, is half a voxel."""
    grid = Grid.over((512, 512, 30), (0.44921875, 0.44921875, 5), (0.449, 0.449, 1))
    assert grid.step[0] * 0.44921875 == pytest.approx(0.449, abs=1e-9) and grid.shape == (513, 513, 150)


@pytest.mark.parametrize("size", [2, 3, 11])
def test_interpolation_agrees_with_scipys(size):
    samples, places = RANDOM.random(size), np.linspace(-1, size, 57)
    expected = ndimage.map_coordinates(samples, [np.clip(places, 0, size - 1)], order=3, mode="mirror")
    np.testing.assert_allclose(spline_weights(size, places) @ samples, expected, atol=1e-5)


def test_coarser_voxels_do_not_alias():
    wave = np.cos(np.pi * np.arange(200) * 0.9)  # near the scan's Nyquist frequency
    coarse = Grid.over((200, 1, 1), (0.45,) * 3, (1.0, 0.45, 0.45)).weights(0, 200) @ wave
    assert np.abs(coarse[3:-3]).max() < 0.35
    assert np.allclose(spline_weights(50, np.arange(20) * 2.2, 2.2) @ np.ones(50), 1)


def test_a_grid_turned_with_its_scan_is_that_of_the_turned_scan():
    shape, zooms, spacing = (20, 24, 9), (0.9, 1.0, 4.2), (0.8, 0.75, 1.0)
    axes = (2, 0, 1)
    turned = [[values[n] for n in axes] for values in (shape, zooms, spacing)]
    assert Grid.over(shape, zooms, spacing).turned(axes) == Grid.over(*turned)
