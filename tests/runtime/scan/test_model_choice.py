"""Voxel sizes choose the model; what a model was not made for is said."""

import pytest
from udean.runtime import RunError
from udean.runtime.scan.model_choice import choose
from udean.runtime.scan.regrid import Asked

from ...support.fakes import card

SLAB = card((2, 2, 2), 3, (8, 8))


def chosen(zooms, to=None, axis=2, shape=(64, 64, 20)):
    axes = [*(n for n in range(3) if n != axis), axis]
    return choose("scan", shape, zooms, axes, SLAB, None if to is None else Asked.parse(to))


def test_without_a_spacing_the_slab_model_restores_and_thick_slices_are_named():
    assert chosen((1, 1, 1)).warnings == () and chosen((1, 1, 1)).grid is None
    found = chosen((1, 1, 5))
    assert found.kind == "slab" and "1 x 1 x 5 mm" in found.warnings[0] and "--to" in found.warnings[0]


@pytest.mark.parametrize(
    "zooms, axis", [((1, 1, 4), 2), ((1, 4, 1), 1), ((4, 1, 1), 0), ((0.75, 0.75, 5.5), 2)]
)
def test_thick_slices_go_through_the_through_plane_model_along_any_axis(zooms, axis):
    found = chosen(zooms, "iso", axis=2)
    assert (found.kind, found.axis, found.warnings) == ("through-plane", axis, ())
    assert found.asked == (min(zooms),) * 3


def test_a_slab_models_own_factors_keep_its_grid():
    assert chosen((1, 1, 1), "0.5mm").grid is None
    assert chosen((1.0005, 1.0005, 1.0005), "0.5mm").grid is not None
    found = chosen((1, 1, 1), "0.7mm")
    assert found.kind == "slab" and found.grid.shape == (92, 92, 29)


def test_what_cannot_be_done_well_is_said():
    with pytest.raises(RunError, match=r"divide them by 11\.1.*0\.625mm or more"):
        chosen((0.45, 0.45, 5), "iso")
    with pytest.raises(RunError, match="already"):
        chosen((1, 1, 1), "1mm")
    assert "interpolated" in chosen((1, 1, 4), "0.6mm").warnings[0]
    assert "divided by 1.33" in chosen((1, 1, 4), "1x1x3mm").warnings[0]
    assert "finer than the model restores" in chosen((1, 1, 1), "0.25mm").warnings[0]


@pytest.mark.parametrize("size", [0.1, 4.0])
def test_voxel_sizes_out_of_range_are_named(size):
    assert "outside the 0.3 to 2.5 mm" in chosen((size,) * 3).warnings[0]
