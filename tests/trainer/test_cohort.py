"""Groups of scans: finding, caching, sampling by foreground, and their errors."""

import nibabel as nib
import numpy as np
import pytest
from udean.runtime.errors import RunError
from udean.trainer import cohort
from udean.trainer.cohort import CohortError, Group


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def save(path, volume):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
    return path


@pytest.fixture
def scan(tmp_path):
    volume = np.zeros((40, 44, 36), np.float32)
    volume[25:35, 28:40, 20:30] = 200
    return save(tmp_path / "scans" / "a.nii.gz", volume)


def test_folders_globs_and_files_are_found_once(tmp_path, scan):
    other = save(tmp_path / "scans" / "sub" / "b.nii", np.ones((4, 4, 4), np.int16))
    found = cohort.find_scans([tmp_path / "scans", str(tmp_path / "scans" / "*.nii.gz"), scan])
    assert found == [scan, other]
    with pytest.raises(CohortError, match="holds no"):
        cohort.find_scans([tmp_path / "nothing"])


def test_cached_volume_is_scaled_by_the_intensity_rule_and_follows_its_file(scan):
    volume = cohort.cached(scan)
    assert volume.max() == 1 and volume.dtype == np.float16
    save(scan, np.full((40, 44, 36), 7, np.int16))
    assert (cohort.cached(scan) == 1).all()


def test_patches_are_centred_on_tissue_and_repeatable(scan):
    group = Group.load([scan], (16, 16, 6))
    draw = group.draw(np.random.default_rng(1), 8, (16, 16, 6), (0, 1, 2))
    assert draw.shape == (8, 6, 16, 16)
    # A flip may move the centre by one voxel; tissue is near it in every case.
    assert (draw[:, 2:5, 7:10, 7:10].max((1, 2, 3)) > cohort.FOREGROUND).all()
    again = group.draw(np.random.default_rng(1), 8, (16, 16, 6), (0, 1, 2))
    np.testing.assert_array_equal(draw, again)


def test_a_volume_smaller_than_a_patch_is_named(scan):
    with pytest.raises(CohortError, match=r"a\.nii\.gz has .* a training patch needs 64"):
        Group.load([scan], (64, 64, 6))


def test_unreadable_and_4d_scans_are_named(tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"not a scan")
    with pytest.raises(RunError, match=r"bad\.nii\.gz is "):
        Group.load([tmp_path / "bad.nii.gz"], (4, 4, 4))
    save(tmp_path / "series.nii", np.zeros((8, 8, 8, 3), np.int16))
    with pytest.raises(RunError, match="4-D"):
        Group.load([tmp_path / "series.nii"], (4, 4, 4))


def test_validation_windows_lie_on_the_fft_grid(tmp_path):
    rng = np.random.default_rng(0)
    hr = rng.integers(1, 1000, (48, 48, 24)).astype(np.int16)
    save(tmp_path / "hr" / "a.nii", hr)
    save(tmp_path / "lr" / "a.nii", hr[::2, ::2, ::2].copy())
    folders = ([str(tmp_path / "hr")], [str(tmp_path / "lr")])
    lr_windows, hr_windows = cohort.validation_windows(*folders, (2, 2, 2), (16, 16, 3), count=5)
    assert lr_windows.shape == (5, 3, 16, 16) and hr_windows.shape == (5, 6, 32, 32)
    np.testing.assert_allclose(hr_windows[:, ::2, ::2, ::2], lr_windows, rtol=2e-3)
    with pytest.raises(CohortError, match="at scale"):
        cohort.validation_windows(*folders, (3, 3, 3), (16, 16, 3))
