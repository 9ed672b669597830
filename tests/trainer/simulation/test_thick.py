"""Thick slices lie where their header says, see what their profile says, and lead back to the scan's grid."""

import json

import nibabel as nib
import numpy as np
import pytest
from udean.runtime import RunError
from udean.runtime.scan.regrid import Grid
from udean.trainer.simulation.files import simulate
from udean.trainer.simulation.thick import Slices, Thick, lr_grid, slices_of

from ...support.commands import here

AFFINE = np.array([[0, 0.75, 0.1, 5], [-0.75, 0, 0, -7], [0, 0.1, -0.75, 3], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("step", [3.0, 4.4, 5.5 / 0.75])
def test_a_ramp_is_itself_at_the_slices_centres(step):
    ramp = np.broadcast_to(np.arange(60, dtype=np.float32), (2, 3, 60))
    slices, centers, size = slices_of(ramp, Thick(step, "box"))
    np.testing.assert_allclose(slices[0, 0, 1:-1], centers[1:-1], atol=0.03)
    assert size == np.ceil(len(centers) * step) <= 60


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [3.0, 4.4])
def test_the_target_grid_over_the_slices_is_the_scans_own(axis, step):
    shape = (31, 32, 33)
    lr = lr_grid(shape, axis, step)
    zooms = [s * 0.75 for s in lr.step]
    back = Grid.over(lr.shape, zooms, (0.75, 0.75, 0.75))
    np.testing.assert_allclose(lr.matrix @ back.matrix, np.eye(4), atol=1e-9)
    assert all(0 <= n - m < step for n, m in zip(shape, back.shape, strict=True))


def test_gaps_leave_out_what_lies_in_them():
    volume = np.zeros((2, 2, 24), np.float32)
    volume[:, :, 5] = 1  # between the first two slices of 3, 6 apart: planes 1 to 4 and 7 to 10
    assert slices_of(volume, Slices(3, 3, "box").of(1.0))[0].max() == 0
    assert slices_of(volume, Slices(6, 0, "box").of(1.0))[0].max() > 0.1


def test_a_scan_becomes_thick_slices_with_a_record(tmp_path):
    volume = (500 + 100 * np.random.default_rng(0).random((20, 21, 22))).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, AFFINE), tmp_path / "a.nii.gz")
    made = simulate(tmp_path / "a.nii.gz", tmp_path / "lr", Slices(3.0, 0.3, "slr"), axis=1)
    image = nib.load(made)
    assert image.shape == (20, 4, 22) and image.get_data_dtype() == np.int16
    size = np.linalg.norm(AFFINE[:3, 1])
    np.testing.assert_allclose(image.header.get_zooms()[1], 3.3, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(image.affine[:3, 1]), 3.3, rtol=1e-5)
    center = np.linalg.inv(AFFINE) @ image.affine @ (0, 0, 0, 1)
    np.testing.assert_allclose(
        center[:3], (0, (18 - 4 * 3.3 / size) / 2 + (3.3 / size - 1) / 2, 0), atol=1e-4
    )
    record = json.loads((tmp_path / "lr/a.json").read_text())
    assert (record["thickness"], record["gap"], record["profile"]) == (3.0, 0.3, "slr")


def test_what_makes_no_slices_is_refused(tmp_path):
    for wrong in ({"thickness": 0}, {"thickness": 2, "gap": -2}, {"thickness": 2, "profile": "round"}):
        with pytest.raises(RunError):
            Slices(**wrong)
    with pytest.raises(RunError, match="no thinner"):
        Slices(1.0).of(1.0)
    with pytest.raises(RunError, match="too few"):
        slices_of(np.zeros((2, 2, 9), np.float32), Thick(5))


def test_the_commands_simulate_restore_and_evaluate(tmp_path):
    """From HR to thick slices to the HR grid again, where `udean-eval` compares."""
    smooth = np.random.default_rng(0).standard_normal((9, 9, 9)).repeat(5, 0).repeat(5, 1).repeat(5, 2)
    affine = AFFINE.copy()
    affine[:3, :3] = np.rint(affine[:3, :3] / 0.75) * 0.75
    nib.save(nib.Nifti1Image((300 + 50 * smooth).astype(np.int16), affine), tmp_path / "a.nii.gz")

    def call(command, *words):
        done = here(command, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(
        "udean-simulate", "a.nii.gz", "--out", "lr", "--thick", "3mm", "--profile", "box", "--slab-axis", "2"
    )
    call("udean-run", "lr/a.nii.gz", "-o", "sr", "--to", "iso")
    call("udean-eval", "--sr", "sr", "--hr", "a.nii.gz", "--json", "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert nib.load(tmp_path / "sr/a_sr.nii.gz").shape == (45, 45, 44)
    assert 15 < figures["scans"]["a"]["psnr"] < 60
