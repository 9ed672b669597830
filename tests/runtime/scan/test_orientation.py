"""One picture of one head, however its file stores it."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from nibabel.eulerangles import euler2mat
from scipy import ndimage
from udean.runtime import SuperResolver
from udean.runtime.scan.geometry import fine_affine, flips_between
from udean.runtime.scan.interpolation import acquired_again, cubic_weights, interpolated_plane
from udean.runtime.scan.orientation import Orientation
from udean.runtime.scan.scan import image_scan
from udean.runtime.view.comparison import compare

from ...support.fakes import FakeEngine, card, nearest

ORNTS = [
    np.array([*zip(order, signs, strict=True)], float)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def headed(windows):
    """A network that treats all axes and directions differently."""
    near = (
        windows + 0.3 * np.roll(windows, 1, 2) - 0.2 * np.roll(windows, 2, 3) + 0.1 * np.roll(windows, 1, 1)
    )
    return nearest(near, (2, 2, 2)).astype(np.float32) * np.linspace(0.9, 1.1, near.shape[3] * 2, dtype="f4")


def head(shape=(22, 26, 20), zooms=(1.0, 1.2, 1.1), turn=(0.1, -0.2, 0.15)):
    """Noisy tissue in noisy air, by no symmetry like its mirror images."""
    rng = np.random.default_rng(5)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = ((grid / np.array([0.7, 0.8, 0.6])[:, None, None, None]) ** 2).sum(0) < 1
    tissue = inside * (600 + 200 * ndimage.gaussian_filter(rng.normal(size=shape), 1.5) * 8)
    voxels = np.hypot(tissue + rng.normal(0, 20, shape), rng.normal(0, 20, shape)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = euler2mat(*turn) * zooms
    affine[:3, 3] = (-20, 13, 7)
    return nib.Nifti1Image(voxels, affine)


def stored(image, ornt):
    made = image.as_reoriented(ornt)
    return nib.Nifti1Image(np.ascontiguousarray(made.dataobj), made.affine)


def undone(ornt):
    back = np.empty_like(ornt)
    back[ornt[:, 0].astype(int)] = np.column_stack([range(3), ornt[:, 1]])
    return back


OBLIQUE, DIAGONAL = (0.1, -0.2, 0.15), (0, 0, np.pi / 4)  # the latter as near one axis as the other


@pytest.mark.parametrize(
    ("zooms", "turn", "grid", "to", "every"),
    [
        ((1, 1, 1), OBLIQUE, "fft", None, 1),
        ((1.0, 1.2, 1.1), OBLIQUE, "center", None, 7),
        ((1.0, 1.2, 1.2), DIAGONAL, "fft", "0.7mm", 7),
        ((1, 1, 1), DIAGONAL, "fft", None, 7),
        ((1, 1, 1), OBLIQUE, "fft", "best", 7),
        ((1.6, 1.1, 1.1), (np.pi / 4, 0, 0), "fft", None, 7),
        ((4, 1, 1), OBLIQUE, "fft", "iso", 7),  # thick slices, by the model for them
    ],
)
def test_all_48_ways_to_store_a_scan_give_one_picture_in_one_place(zooms, turn, grid, to, every):
    best = to == "best"
    engine = FakeEngine(headed, card((2, 2, 2), 3, (16, 16), grid))
    resolve = SuperResolver(engine, consistency=0.7, to=None if best else to, best=best)
    image = head(zooms=zooms, turn=turn)
    wanted = resolve.image(image)
    for ornt in ORNTS[::every]:
        lr = stored(image, ornt)
        made = resolve.image(lr)
        if to in (None, "best"):  # whichever way an axis runs
            np.testing.assert_allclose(made.affine, fine_affine(lr.affine, (2, 2, 2), grid), atol=1e-4)
        same, other = in_common(wanted, made.as_reoriented(undone(ornt)))
        # All that float rounding may do to integers is to round a few another way.
        apart = np.abs(same.astype(int) - other)
        assert apart.max() <= 1 and np.mean(apart > 0) < 1e-3


def in_common(one, other):
    """The voxels of two images on one grid that lie in both; they may begin a voxel apart."""
    apart = np.linalg.solve(one.affine, other.affine)
    np.testing.assert_allclose(apart[:3, :3], np.eye(3), atol=1e-4)
    first = np.rint(apart[:3, 3]).astype(int)
    np.testing.assert_allclose(apart[:3, 3], first, atol=1e-3)
    assert np.abs(first).max() <= 1
    slices = []
    for starts in (np.maximum(first, 0), np.maximum(-first, 0)):
        ends = starts + np.array(one.shape) - np.abs(first)
        slices.append(tuple(map(slice, starts, ends)))
    return np.asarray(one.dataobj)[slices[0]], np.asarray(other.dataobj)[slices[1]]


def test_an_axis_that_is_seen_turned_round_keeps_the_grid_of_the_stored_scan():
    """Its last planes, beyond the last LR voxel, are a reflection; all others are what was restored."""
    image = head()
    resolve = SuperResolver(FakeEngine(headed, card((2, 2, 2), 3, (16, 16))), consistency=0.7)
    plain = np.asarray(resolve.image(image).dataobj)
    turned = np.asarray(resolve.image(stored(image, np.array([[0, -1], [1, 1], [2, 1]]))).dataobj)
    np.testing.assert_allclose(turned[:-1].astype(int), plain[-2::-1], atol=1)
    np.testing.assert_array_equal(turned[-1], turned[-3])


def test_an_asked_slab_axis_is_the_stored_one():
    scale = 3, 2, 1
    resolve = SuperResolver(FakeEngine(lambda x: nearest(x, (1, 3, 2)), card(scale, 3, (16, 16))))
    image = stored(head(), np.array([[2, -1], [0, 1], [1, 1]]))
    for axis in range(3):
        sr = resolve.image(image, axis=axis)
        assert sr.shape[axis] == image.shape[axis] and sr.header["dim"][1:4].prod() == 6 * image.dataobj.size


@pytest.mark.parametrize("grid", ["fft", "center"])
def test_yardsticks_lie_where_the_result_lies(grid):
    """Tricubic interpolation and k-space's centre of a phantom that both know exactly, on turned grids."""
    shape, factors = (12, 10, 14), (2, 2, 2)
    for flipped in itertools.product((False, True), repeat=3):
        fine = fine_affine(np.eye(4), factors, grid, flipped)
        places = np.stack(np.meshgrid(*(np.arange(2 * n) for n in shape), indexing="ij"), -1)
        at = places @ fine[:3, :3] + fine[:3, 3]

        def phantom(at):
            return np.cos(2 * np.pi * at / shape + (0.3, 0.5, 0.9)).prod(-1).astype(np.float32)

        sr, lr = phantom(at), phantom(np.moveaxis(np.indices(shape), 0, -1))
        np.testing.assert_allclose(acquired_again(sr, factors, grid, flipped=flipped), lr, atol=1e-5)
        weights = [cubic_weights(n, 2, grid, flip) for n, flip in zip(shape, flipped, strict=True)]
        plane = interpolated_plane(lr, weights, 2, 13)[4:-4, 4:-4]
        np.testing.assert_allclose(plane, sr[4:-4, 4:-4, 13], atol=0.02)
        if grid == "fft":
            assert flips_between(np.eye(4), fine, factors) == flipped


def test_a_result_is_compared_with_its_scan_however_that_is_stored():
    image = head()
    resolve = SuperResolver(FakeEngine(lambda x: nearest(x, (2, 2, 2)), card((2, 2, 2), 3, (16, 16))))
    found = []
    for ornt in ([[0, 1], [1, 1], [2, 1]], [[1, -1], [0, -1], [2, -1]]):
        lr = stored(image, ornt)
        found.append(compare(image_scan(lr), image_scan(resolve.image(lr)), resolve.card))
    one, other = found
    assert one.consistency == pytest.approx(other.consistency, rel=1e-3) and one.snr == other.snr
    np.testing.assert_allclose(
        other.interpolated(2, 10)[:-1, :-1],
        one.interpolated(2, 38 - 10)[-2::-1, -2::-1].T,
        rtol=1e-4,
        atol=0.01,
    )


def test_orientations_say_what_they_do():
    voxels = np.arange(24).reshape(2, 3, 4)
    for axis in range(3):
        turn = Orientation.of(np.diag([-1.0, 1, -1, 1]), axis)
        np.testing.assert_array_equal(turn.stored(turn.turned(voxels)), voxels)
        assert np.shares_memory(turn.turned(voxels), voxels)
    assert turn == Orientation((0, 1, 2), (True, False, True))
    np.testing.assert_array_equal(turn.turned(voxels), voxels[::-1, :, ::-1])
