"""Images that no network here may restore are told from those that it may, by header and by voxels."""

import nibabel as nib
import numpy as np
import pytest
from udean.runtime import RunError, SuperResolver
from udean.runtime.scan.scan import open_scan

from ...support.fakes import FakeEngine, card, nearest

RESOLVE = SuperResolver(FakeEngine(lambda x: nearest(x, (2, 2, 2)), card((2, 2, 2), 3, (8, 8))))
RANDOM = np.random.default_rng(0)


def ball(shape=(16, 16, 12)):
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return np.clip(1.2 - np.sqrt(sum(axis**2 for axis in axes)), 0, 1)


def restored(data, intent=None, kind=nib.Nifti1Image):
    image = kind(data, np.diag([2, 2, 2, 1]))
    if intent:
        image.header.set_intent(intent)
    return RESOLVE.image(image)


SHELLS = np.array([0, 2, 41, 1012])[np.digitize(ball(), [0.2, 0.5, 0.8])]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (SHELLS.astype(np.int16), "a map of 4 labels"),
        (SHELLS.astype(np.float32), "a map of 4 labels"),
        ((ball() > 0.3).astype(np.uint8), "a mask"),
        (255 * (ball() > 0.3).astype(np.uint8), "a mask"),
    ],
)
def test_labels_and_masks_are_told_by_their_flat_regions(data, what):
    with pytest.raises(RunError, match=what):
        restored(data)


@pytest.mark.parametrize("intent", ["label", "neuroname", "vector", "z score"])
def test_a_header_may_say_that_there_are_no_intensities(intent):
    with pytest.raises(RunError, match="not intensities"):
        restored((100 * ball() + RANDOM.random((16, 16, 12))).astype(np.float32), intent)


def test_freesurfers_labels_and_overlays_are_named():
    with pytest.raises(RunError, match="labels"):
        restored(SHELLS.astype(np.int32), kind=nib.MGHImage)
    for vertices in (400, 40962):  # more than NIfTI-1 holds along an axis
        with pytest.raises(RunError, match="surface's overlay"):
            restored(RANDOM.random((vertices, 1, 1)).astype(np.float32), kind=nib.MGHImage)


def test_ct_is_told_by_its_air():
    ct = np.where(ball() > 0, 40 + 900 * ball(), -1000) + RANDOM.normal(0, 20, (16, 16, 12))
    for dtype in (np.int16, np.float32):
        with pytest.raises(RunError, match="looks like CT"):
            restored(ct.astype(dtype))
    with pytest.raises(RunError, match="looks like CT"):
        restored(np.where(ball() > 0, ct, -3024).astype(np.int16))


def test_a_single_slice_is_restored_in_plane_only_by_models_that_leave_slices_alone():
    slice_ = RANDOM.integers(0, 999, (16, 16, 1)).astype(np.int16)
    with pytest.raises(RunError, match="is a single slice"):
        restored(slice_)
    flat = SuperResolver(FakeEngine(lambda x: nearest(x, (1, 2, 2)), card((2, 2, 1), 3, (8, 8))))
    assert flat.image(nib.Nifti1Image(slice_, np.diag([1, 1, 5, 1]))).shape == (32, 32, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_scans_are_none_of_that(dtype):
    scan = 200 * ball() + RANDOM.normal(0, 4, (16, 16, 12)) ** 2
    assert restored(scan.astype(dtype)).shape == (32, 32, 24)
    doubled = np.repeat(np.repeat(scan, 2, 0), 2, 1)  # by nearest neighbours: half of all pairs are alike
    assert restored(doubled.astype(dtype)).shape == (64, 64, 24)
    contrast = (scan - 100).astype(np.float32)  # negative, and no CT
    assert restored(contrast).shape == (32, 32, 24)


def test_a_voxel_just_below_zero_does_not_make_a_signed_image():
    def overshoots(x):
        return nearest(x, (2, 2, 2)) - 0.2

    resolve = SuperResolver(FakeEngine(overshoots, card((2, 2, 2), 3, (8, 8))))
    data = (1000 * ball() * (ball() > 0.3)).astype(np.float32)
    data[0, 0, 0] = -1e-5
    image = nib.Nifti1Image(data, np.eye(4))
    assert np.asarray(resolve.image(image).dataobj).min() >= -1e-4
    data[5:8, 5:8, 5] = -300
    assert np.asarray(resolve.image(image).dataobj).min() < -300


def test_a_small_mask_is_told_by_its_two_values():
    lesion = np.zeros((16, 16, 12), np.uint8)
    lesion[7:9, 7:9, 6] = 1
    with pytest.raises(RunError, match="looks like a mask"):
        restored(lesion)


@pytest.mark.parametrize(("top", "dtype"), [(np.pi, np.float32), (4095, np.int16)])
def test_phases_are_told_by_the_range_that_they_fill(top, dtype):
    phases = RANDOM.uniform(-top, top, (16, 16, 12))
    with pytest.raises(RunError, match="looks like phases"):
        restored(phases.astype(dtype))


def test_what_a_converter_writes_beside_a_file_says_that_it_holds_no_magnitudes(tmp_path):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image((900 * ball()).astype(np.float32), np.eye(4)), path)
    (tmp_path / "a.json").write_text('{"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND", "PHASE"]}')
    with pytest.raises(RunError, match="no magnitudes, by the ImageType"):
        RESOLVE.scans.look(open_scan(path))
    (tmp_path / "a.json").write_text('{"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]}')
    assert RESOLVE.scans.look(open_scan(path))


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("sub-1_part-phase_bold", "no magnitudes"),
        ("sub-1_echo-1_part-imag_MEGRE", "no magnitudes"),
        ("sub-1_phasediff", "no magnitudes"),
        ("sub-1_ses-2_T1map", "a computed map"),
        ("sub-1_part-mag_bold", None),
        ("sub-1_acq-phase_T1w", None),
        ("roadmap", None),
    ],
)
def test_a_name_may_say_that_a_file_holds_no_magnitudes(tmp_path, name, word):
    nib.save(nib.Nifti1Image((900 * ball()).astype(np.float32), np.eye(4)), tmp_path / f"{name}.nii.gz")
    scan = open_scan(tmp_path / f"{name}.nii.gz")
    if word is None:
        assert RESOLVE.scans.look(scan)
        return
    with pytest.raises(RunError, match=f"{word}, by its name"):
        RESOLVE.scans.look(scan)
