"""Simulated movement against its definition in any orientation, and registration that undoes it."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from udean.runtime.scan.scan import open_scan
from udean.trainer.data.cache import Recipe
from udean.trainer.data.misalignment import Misalign
from udean.trainer.data.preparation import Preparation
from udean.trainer.data.scans import find
from udean.trainer.simulation import kspace
from udean.trainer.simulation.kspace import Degradation

SHAPE = (60, 70, 50)


def affine(codes, zooms):
    """RAS+ scanner axes stored in another order, as a scanner would."""
    ras = np.diag([*zooms, 1.0])
    turn = ornt_transform(axcodes2ornt(("R", "A", "S")), axcodes2ornt(codes))
    return ras @ inv_ornt_aff(turn, SHAPE)


@pytest.mark.parametrize("codes", ["RAS", "PSR", "LIA"])
@pytest.mark.parametrize("zooms", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.0)])
@pytest.mark.parametrize("seed", range(4))
def test_head_turns_about_head_feet_and_left_right_only(codes, zooms, seed):
    a = affine(codes, zooms)
    matrix, _ = Misalign(seed, degrees=2, voxels=0).transform(SHAPE, a)
    world = a[:3, :3] @ matrix @ np.linalg.inv(a[:3, :3])
    np.testing.assert_allclose(world @ world.T, np.eye(3), atol=1e-9)  # rigid in mm
    turns = np.degrees([world[2, 1] - world[1, 2], world[0, 2] - world[2, 0], world[1, 0] - world[0, 1]]) / 2
    assert 0 < abs(turns[0]) <= 2 and 0 < abs(turns[2]) <= 2 and abs(turns[1]) < 0.04


@pytest.mark.parametrize("codes", ["RAS", "PSR", "LIA"])
def test_head_shifts_along_two_axes_and_shrinks_along_two(codes):
    a = affine(codes, (1.0, 1.0, 1.0))
    centre = (np.asarray(SHAPE) - 1) / 2
    shifts, sizes = [], []
    for seed in range(40):
        matrix, offset = Misalign(seed, degrees=0, voxels=2).transform(SHAPE, a)
        moved = np.linalg.solve(matrix, centre - offset) - centre  # where the centre goes, in voxels
        shifts.append(a[:3, :3] @ moved)
        lost = np.asarray(SHAPE) * (1 - 1 / np.diag(matrix))  # voxels by which the head is smaller
        sizes.append(np.abs(a[:3, :3]) @ lost)
    shifts, sizes = np.array(shifts), np.array(sizes)
    np.testing.assert_allclose(shifts[:, 1], 0, atol=1e-9)
    np.testing.assert_allclose(sizes[:, 2], 0, atol=1e-9)
    assert 1.5 < np.abs(shifts[:, [0, 2]]).max() <= 2 and np.abs(shifts.mean(0)).max() < 0.7
    assert sizes[:, :2].min() >= 0 and 1.5 < sizes[:, :2].max() <= 2.01


def test_no_movement_changes_nothing_and_the_same_seed_moves_the_same_way(tmp_path, head):
    nib.save(nib.Nifti1Image(head(), np.eye(4)), tmp_path / "a.nii")
    scan, volume = open_scan(tmp_path / "a.nii"), head().astype(np.float32)
    np.testing.assert_allclose(Misalign(0, 0, 0)(volume, scan), volume, atol=0.5)
    np.testing.assert_array_equal(Misalign(3)(volume, scan), Misalign(3)(volume, scan))
    assert np.abs(Misalign(3)(volume, scan) - Misalign(4)(volume, scan)).max() > 100


def test_registration_brings_a_moved_head_back(tmp_path, head):
    still = head(0, (64, 64, 64))
    nib.save(nib.Nifti1Image(still, np.eye(4)), tmp_path / "sub-1.nii")
    entries = find([tmp_path / "sub-1.nii"])
    simulated = Degradation(noise=0.01)
    errors = []
    for registered in (False, True):
        prepare = Preparation((2, 2, 2), simulated=simulated, misaligned=True, registered=registered, seed=3)
        (member,) = prepare.pairs(entries, entries).members
        lr, hr = (v.astype(np.float32) for v in member.volumes)
        unit = Recipe(entries[0].path, prepare.lr(entries[0], 2).steps).prepared().unit
        truth = kspace.crop(still, (2, 2, 2)) / unit
        inside = (slice(8, -8),) * 3
        errors.append(np.sqrt(((hr - truth)[inside] ** 2).mean()))
        assert lr.shape == (32, 32, 32) and hr.shape == (64, 64, 64)
    assert errors[1] < 0.5 * errors[0]
