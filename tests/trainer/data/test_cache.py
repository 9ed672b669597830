"""The cache of prepared volumes stays within its bound, and takes nothing from a training that runs."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from udean.runtime.errors import RunError
from udean.runtime.system.files import cache_folder
from udean.trainer.data.cache import Recipe


@pytest.fixture
def scans(tmp_path):
    paths = [tmp_path / f"{i}.nii" for i in range(4)]
    for i, path in enumerate(paths):
        volume = np.random.default_rng(i).random((20, 20, 20), np.float32)  # 16 kB as float16
        nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
    return paths


def test_what_was_used_longest_ago_goes_first(scans, monkeypatch):
    monkeypatch.setenv("UDEAN_CACHE_GB", "50e-6")
    first = Recipe(scans[0]).prepared().voxels
    kept = np.array(first)
    for path in (*scans[1:3], scans[0], scans[3]):  # the first is used again before the fourth comes
        Recipe(path).prepared()
    files = sorted((cache_folder() / "volumes").glob("*.npy"))
    assert len(files) == 3 and sum(f.stat().st_size for f in files) <= 50e3
    assert len(list((cache_folder() / "volumes").glob("*.unit"))) == 3
    np.testing.assert_array_equal(first, kept)
    before = {f: f.stat().st_mtime_ns for f in files}
    Recipe(scans[0]).prepared()  # still there: no new file
    assert set((cache_folder() / "volumes").glob("*.npy")) == set(before)


def test_a_bound_smaller_than_a_volume_still_trains(scans, monkeypatch):
    monkeypatch.setenv("UDEAN_CACHE_GB", "0")
    volumes = [Recipe(path).prepared().voxels for path in scans]
    assert all(v.max() >= 1 for v in volumes)


@pytest.mark.parametrize("bound", ["much", "nan", ""])
def test_a_bound_that_is_not_a_number_is_said(scans, monkeypatch, bound):
    monkeypatch.setenv("UDEAN_CACHE_GB", bound)
    with pytest.raises(RunError, match="UDEAN_CACHE_GB"):
        Recipe(scans[0]).prepared()


def test_what_a_killed_training_left_unfinished_goes(scans):
    Recipe(scans[0]).prepared()
    (file,) = (cache_folder() / "volumes").glob("*.npy")
    left = file.with_name(f".{file.name}.1234.part")
    file.rename(left)
    Recipe(scans[0]).prepared()
    assert file.exists() and not left.exists()


def test_a_name_that_is_not_text_has_its_place_too(scans):
    path = Path(os.fsdecode(os.fsencode(scans[0].parent) + b"/m\xfcde.nii"))
    scans[0].rename(path)
    np.testing.assert_array_equal(Recipe(path).prepared().voxels, Recipe(path).prepared().voxels)
