"""An SR volume lies where its scan lies: for any orientation, either grid, any slab axis."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.eulerangles import euler2mat
from udean.runtime import SuperResolver
from udean.runtime.scan.geometry import coarse_affine, fine_affine, is_singular, slab_axis
from udean.runtime.scan.orientation import Orientation

from ...support.fakes import FakeEngine, card, interpolation

ANGLE = st.floats(-3, 3)
GRIDS = st.sampled_from(["fft", "center"])


@st.composite
def affines(draw):
    """Oblique, flipped, anisotropic, off-centre."""
    zooms = np.array(draw(st.tuples(*[st.floats(0.4, 4)] * 3)))
    flips = np.array(draw(st.tuples(*[st.sampled_from([-1, 1])] * 3)))
    order = draw(st.permutations(range(3)))
    affine = np.eye(4)
    affine[:3, :3] = euler2mat(*(draw(ANGLE) for _ in range(3)))[:, order] * zooms * flips
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return affine


@settings(max_examples=40, deadline=None)
@given(
    affine=affines(),
    shape=st.tuples(*[st.integers(4, 12)] * 3),
    scale=st.sampled_from([(2, 2, 2), (2, 2, 1), (3, 2, 2)]),
    grid=GRIDS,
    axis=st.sampled_from([None, 0, 1, 2]),
    direction=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda d: np.linalg.norm(d) > 0.1),
)
def test_phantom_overlays_its_fine_self_to_a_thousandth_of_a_voxel(
    affine, shape, scale, grid, axis, direction
):
    """The phantom's intensity is the distance (mm) along a direction: an error in it is a shift."""
    direction = np.array(direction) / np.linalg.norm(direction)

    def phantom(shape, affine):
        world = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T
        return (world + affine[:3, 3]) @ direction

    made = phantom(shape, affine)
    # Of both signs, since negative voxels of a magnitude image are cut; of unlike ends, unlike phases.
    level = made.mean() + 0.2 * np.ptp(made)
    engine = FakeEngine(interpolation(scale, grid), card(scale, 3, (4, 4), grid))  # none reflected
    lr = nib.Nifti1Image((made - level).astype(np.float32), affine)
    lr.set_qform(affine, 1)  # keeps to float32 precision
    sr = SuperResolver(engine).image(lr, axis=axis)
    turn = Orientation.of(affine, axis)
    factors = turn.by_stored(scale)
    assert sr.shape == tuple(n * f for n, f in zip(shape, factors, strict=True))
    voxel = np.linalg.norm(sr.affine[:3, :3], axis=0).min()
    error = np.abs(sr.get_fdata() + level - phantom(sr.shape, sr.affine))
    # Where the network sees an axis turned round, what lies beyond its last LR voxel is a reflection.
    beyond = [(s - 1) * flip * (grid == "fft") for s, flip in zip(factors, turn.flipped, strict=True)]
    restored = tuple(slice(n - last) for n, last in zip(sr.shape, beyond, strict=True))
    assert error[restored].max() < 1e-3 * voxel
    lost = np.abs(lr.get_qform() - affine).max()  # a float32 quaternion near half a turn holds four digits
    np.testing.assert_allclose(sr.get_qform(), sr.get_sform(), atol=1e-3 * voxel + lost)
    np.testing.assert_allclose(sr.header.get_zooms(), np.linalg.norm(sr.affine[:3, :3], axis=0), rtol=1e-5)


@settings(deadline=None)
@given(
    affine=affines(),
    factors=st.tuples(*[st.integers(1, 4)] * 3),
    grid=GRIDS,
    flipped=st.tuples(*[st.booleans()] * 3),
)
def test_the_grids_are_where_they_say(affine, factors, grid, flipped):
    fine = fine_affine(affine, factors, grid, flipped)
    np.testing.assert_allclose(coarse_affine(fine, factors, grid, flipped), affine, atol=1e-9)
    if grid == "fft":  # LR voxel i lies on HR voxel s·i, or on the last of its s where it is seen from there
        at = np.multiply(factors, (1, 2, 3)) + np.multiply(np.subtract(factors, 1), flipped)
        np.testing.assert_allclose(fine @ [*at, 1], affine @ [1, 2, 3, 1], atol=1e-9)
    else:  # outer edges coincide, voxel coordinates -½ of both grids
        np.testing.assert_allclose(fine @ [-0.5, -0.5, -0.5, 1], affine @ [-0.5, -0.5, -0.5, 1], atol=1e-9)


@pytest.mark.parametrize(
    ("zooms", "axis"),
    [
        ((1, 1, 1), 2),
        ((1.00001, 1, 1), 2),
        ((3, 1, 1), 0),
        ((1, 3, 1), 1),
        ((2, 2, 1), 2),
        ((0.5, 1, 1), 0),
        ((1, 3, 2), 1),
    ],
)
def test_slabs_stack_along_the_odd_axis_out_else_the_coarsest_else_the_last(zooms, axis):
    assert slab_axis(zooms) == axis


def test_singular_affines_are_known():
    assert is_singular(np.diag([1, 1, 0, 1])) and is_singular(np.full((4, 4), np.nan))
    assert is_singular(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert not is_singular(np.diag([1e-3, 1e-3, 1e-3, 1]))
