"""A draft becomes a whole file or nothing; a mapped one needs memory for slabs, not for the volume."""

import os
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from udean.runtime import RunError, SuperResolver
from udean.runtime.run.find import find_scans
from udean.runtime.run.run import prepare, run_all
from udean.runtime.scan.output import FileDraft
from udean.runtime.scan.scan import open_scan

from ...support.fakes import FakeEngine, card, nearest

CARD = card((2, 2, 2), 3, (32, 32))


def header(path, shape=(4, 5, 6)):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), path)
    return open_scan(path).header


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_draft_appears_when_it_is_committed(tmp_path, name):
    draft = FileDraft(tmp_path / "out" / name)
    voxels = draft.room(header(tmp_path / "lr.nii"))
    voxels[...] = np.arange(120).reshape(4, 5, 6)
    assert not draft.path.exists() and isinstance(voxels, np.memmap) == draft.mapped
    draft.commit()
    np.testing.assert_array_equal(np.asarray(nib.load(draft.path).dataobj), np.arange(120).reshape(4, 5, 6))
    draft.discard()
    assert os.listdir(tmp_path / "out") == [name]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_discarded_draft_leaves_nothing(tmp_path, name):
    (tmp_path / "out").mkdir()
    draft = FileDraft(tmp_path / "out" / name)
    draft.room(header(tmp_path / "lr.nii"))
    draft.discard()
    assert os.listdir(tmp_path / "out") == []


def test_no_room_on_the_disk_is_a_sentence(tmp_path):
    wide = header(tmp_path / "lr.nii")
    wide.set_data_shape((32767, 32767, 32767))
    with pytest.raises(RunError, match="Cannot write"):
        FileDraft(tmp_path / "a.nii").room(wide)
    assert os.listdir(tmp_path) == ["lr.nii"]


def test_memory_is_bounded_by_slabs_not_by_the_volume(tmp_path):
    """From .nii to .nii both volumes stay in their files; more slices take no more memory."""
    peaks = []
    for slices in (240, 600):  # more than what is looked at to tell labels and air from a scan
        source = tmp_path / str(slices) / "lr.nii"
        source.parent.mkdir()
        data = np.random.default_rng(0).integers(0, 900, (96, 96, slices)).astype(np.int16)
        nib.save(nib.Nifti1Image(data, np.eye(4)), source)
        (job,) = find_scans([str(source)])
        prepare([job])
        with SuperResolver(FakeEngine(lambda x: nearest(x, (2, 2, 2)), CARD)) as resolve:
            tracemalloc.start()
            (outcome,) = run_all([job], resolve)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert outcome.status == "written"
        np.testing.assert_array_equal(np.asarray(nib.load(job.target).dataobj), nearest(data, CARD.scale))
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 192 * 192 * 1200 * 2  # the output itself
