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
    group = Group.target([scan], (0, 1, 2))
    (draw,) = group.draw(np.random.default_rng(1), 8, (16, 16, 6), augment=True)
    assert draw.shape == (8, 6, 16, 16) and draw.dtype == np.float32
    # A flip may move the centre by one voxel; tissue is near it in every case.
    assert (draw[:, 2:5, 7:10, 7:10].max((1, 2, 3)) > cohort.FOREGROUND).all()
    (again,) = group.draw(np.random.default_rng(1), 8, (16, 16, 6), augment=True)
    np.testing.assert_array_equal(draw, again)


def test_a_volume_smaller_than_a_patch_is_refused(scan):
    with pytest.raises(CohortError, match="smaller than a training patch"):
        Group.target([scan]).draw(np.random.default_rng(0), 1, (64, 64, 3))


@pytest.mark.parametrize("scale", [(2, 2, 2), (2, 2, 1), (3, 3, 1)])
def test_augmented_pairs_stay_on_the_fft_grid(tmp_path, scale):
    """HR[s·i] = LR[i] holds in every patch, flipped or transposed, along every slab axis."""
    shape = tuple(20 * s for s in scale)
    hr = np.random.default_rng(0).integers(1, 1000, shape).astype(np.int16)
    save(tmp_path / "hr" / "a.nii", hr)
    save(tmp_path / "lr" / "a.nii", np.ascontiguousarray(hr[tuple(slice(None, None, s) for s in scale)]))
    group = Group.pairs([tmp_path / "hr"], [tmp_path / "lr"], scale)
    lr, fine = group.draw(np.random.default_rng(0), 24, (16, 16, 3), augment=True)
    s, through = scale[0], scale[2]
    assert fine.shape == (24, 3 * through, 16 * s, 16 * s)
    np.testing.assert_allclose(fine[:, ::through, ::s, ::s], lr, rtol=2e-3)
    with pytest.raises(CohortError, match="at scale"):
        Group.pairs([tmp_path / "hr"], [tmp_path / "lr"], (4, 4, 4))


def test_source_scans_come_with_their_truncation_along_every_slab_axis(tmp_path):
    """A smooth head is the same on both grids, so LR voxels equal the HR voxels they lie on."""
    y, x, z = np.meshgrid(*[np.arange(48)] * 3, indexing="ij")
    head = 1000 * np.exp(-((y - 22) ** 2 + (x - 26) ** 2 + (z - 24) ** 2) / 60)
    save(tmp_path / "a.nii", head.astype(np.float32))
    group = Group.source([tmp_path / "a.nii"], (2, 2, 1), (0, 1, 2))
    low, high = group.draw(np.random.default_rng(0), 12, (16, 16, 3), augment=True)
    assert high.shape == (12, 3, 32, 32)
    np.testing.assert_allclose(low, high[:, :, ::2, ::2], atol=2e-3)


def test_unreadable_and_4d_scans_are_named(tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"not a scan")
    with pytest.raises(RunError, match=r"bad\.nii\.gz is "):
        Group.target([tmp_path / "bad.nii.gz"])
    save(tmp_path / "series.nii", np.zeros((8, 8, 8, 3), np.int16))
    with pytest.raises(RunError, match="4-D"):
        Group.target([tmp_path / "series.nii"])
