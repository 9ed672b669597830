"""udean-run on DICOM: real folders, and a real process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from ...support.commands import here
from .test_series import change, classic, enhanced, find_series

COMMAND = [Path(sys.executable).with_name("udean-run"), "--precision", "fp32"]


def udean_run(*arguments):
    return here("udean-run", "--precision", "fp32", *arguments)


def test_a_folder_of_series_becomes_a_folder_of_derived_series(model, tmp_path):
    folder = tmp_path / "study"
    files = classic(folder / "a", shape=(5, 20, 18))
    gap = classic(folder / "b", shape=(5, 10, 12), SeriesInstanceUID="1.2.4", SeriesNumber=4)
    gap[2].unlink()
    enhanced(folder / "c.dcm", echoes=2)
    change(folder / "c.dcm", SeriesInstanceUID="1.2.5", SeriesNumber=5)
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4)), folder / "d.nii")
    done = subprocess.run([*COMMAND, "--engine", model, "--report", folder], capture_output=True, text=True)
    assert done.returncode == 1 and "4 written, 0 kept, 1 failed" in done.stdout, done.stderr
    assert "Series 4" in done.stderr and "missing" in done.stderr and "Jane" not in done.stdout + done.stderr
    out = tmp_path / "study-sr"
    names = {"series-003", "series-005-1", "series-005-2"}
    assert {name for name in os.listdir(out) if (out / name).is_dir()} == names
    assert all((out / f"{name}.json").exists() for name in names)

    derived = [pydicom.dcmread(file) for file in sorted((out / "series-003").iterdir())]
    assert len(derived) == 10 and derived[0].ImageType[:2] == ["DERIVED", "SECONDARY"]
    sources = sorted((pydicom.dcmread(f) for f in files), key=lambda d: float(d.ImagePositionPatient[2]))
    lr = np.stack([d.pixel_array for d in sources])
    sr = np.stack([d.pixel_array for d in derived])
    assert sr.shape == (10, 40, 36)
    found = sr[::2, ::2, ::2]  # where LR voxels lie, whichever way the network saw them
    np.testing.assert_array_equal(found if (found == lr).all() else found[::-1], lr)

    again = udean_run("--engine", model, folder)
    assert "0 written, 4 kept, 1 failed" in again.stdout
    (out / "series-003" / "00001.dcm").unlink()
    change(files[0], SeriesDescription="t2")
    repaired = udean_run("--engine", model, folder)
    assert "1 written, 3 kept, 1 failed" in repaired.stdout
    assert "udean-manifest.jsonl" in os.listdir(out) and not [n for n in os.listdir(out) if n[0] == "."]


def test_an_unusable_file_fails_its_series_only(model, tmp_path):
    folder = tmp_path / "study"
    classic(folder / "a", shape=(3, 10, 12))
    (colour,) = classic(folder / "b", shape=(1, 10, 12), SeriesInstanceUID="1.2.4", SeriesNumber=4)
    (nowhere,) = classic(folder / "c", shape=(1, 10, 12), SeriesInstanceUID="1.2.5", SeriesNumber=5)
    change(colour, SamplesPerPixel=3, PhotometricInterpretation="RGB")
    change(nowhere, ImagePositionPatient=None)
    done = udean_run("--engine", model, folder)
    assert done.returncode == 1 and "1 written, 0 kept, 2 failed" in done.stdout, done.stderr
    assert f"{colour} has colour voxels" in done.stderr
    assert f"{nowhere} has no usable ImagePositionPatient" in done.stderr


def test_no_result_replaces_slices_or_what_is_not_its_own(model, tmp_path):
    study = tmp_path / "study"
    files = classic(study / "series-003", shape=(3, 10, 12))
    before = [file.read_bytes() for file in files]
    done = udean_run("--engine", model, "--overwrite", "-o", study, study)
    assert done.returncode == 2 and "collide" in done.stderr
    assert [file.read_bytes() for file in files] == before
    (tmp_path / "out" / "series-003").mkdir(parents=True)
    (tmp_path / "out" / "series-003" / "notes.txt").write_text("mine")
    done = udean_run("--engine", model, "-o", tmp_path / "out", study)
    assert done.returncode == 1 and "series-003 already exists" in done.stderr
    assert os.listdir(tmp_path / "out" / "series-003") == ["notes.txt"]


def test_another_series_in_the_same_folder_replaces_a_result_only_on_request(model, tmp_path):
    inbox, out = tmp_path / "inbox", tmp_path / "out"
    classic(inbox, shape=(3, 10, 12))
    assert udean_run("--engine", model, "-o", out, inbox).returncode == 0
    for file in inbox.iterdir():
        change(file, SeriesInstanceUID="9.9", PatientID="88")
    done = udean_run("--engine", model, "-o", out, inbox)
    assert done.returncode == 1 and "another series" in done.stderr and "--overwrite" in done.stderr
    assert pydicom.dcmread(out / "series-003" / "00001.dcm").PatientID == "77"
    assert udean_run("--engine", model, "--overwrite", "-o", out, inbox).returncode == 0
    assert pydicom.dcmread(out / "series-003" / "00001.dcm").PatientID == "88"


def test_nifti_on_request_lies_where_the_series_lies(model, tmp_path):
    classic(tmp_path / "in", shape=(5, 20, 18))
    done = udean_run("--engine", model, "--format", "nifti", "--dtype", "float32", tmp_path / "in")
    assert done.returncode == 0, done.stderr
    image = nib.load(tmp_path / "in-sr" / "series-003_sr.nii.gz")
    assert image.shape == (36, 40, 10) and image.get_data_dtype() == np.float32
    derived = udean_run("--engine", model, "-o", tmp_path / "dicom", tmp_path / "in")
    assert derived.returncode == 0, derived.stderr
    first = pydicom.dcmread(tmp_path / "dicom" / "series-003" / "00001.dcm")
    lps = np.diag([-1, -1, 1, 1]) @ image.affine
    np.testing.assert_allclose(lps[:3, 3], np.array(first.ImagePositionPatient, float), atol=1e-4)
    np.testing.assert_allclose(image.get_fdata()[:, :, 0].T, first.pixel_array, atol=1)
    sidecar = json.loads((tmp_path / "dicom" / "series-003.json").read_text())
    assert "research only" in sidecar["Description"]


def test_floating_point_dicom_and_folders_without_mr_are_refused(model, tmp_path):
    classic(tmp_path / "in", shape=(3, 10, 10))
    done = udean_run("--engine", model, "--dtype", "float32", tmp_path / "in")
    assert done.returncode == 1 and "--format nifti" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.dcm").write_bytes(b"no dicom")
    done = udean_run("--engine", model, tmp_path / "none")
    assert done.returncode == 2 and "holds no scan" in done.stderr


def test_a_file_may_be_a_whole_series_and_a_dry_run_writes_nothing(model, tmp_path):
    file = enhanced(tmp_path / "one.dcm")
    done = udean_run("--engine", model, "--dry-run", file)
    assert done.returncode == 0 and "18 x 20 x 6 to 36 x 40 x 12" in done.stdout, done.stderr
    assert os.listdir(tmp_path) == ["one.dcm"]
    assert udean_run("--engine", model, file).returncode == 0
    derived = [pydicom.dcmread(f) for f in sorted((tmp_path / "sr" / "series-003").iterdir())]
    assert len(derived) == 12
    # a folder with results in it is not resolved twice
    assert "0 written, 1 kept" in udean_run("--engine", model, "-o", tmp_path / "sr", tmp_path).stdout


@pytest.mark.parametrize("to", ["1mm", "iso", "0.9x0.8x2mm"])
def test_a_spacing_asked_for_is_that_of_the_derived_series_and_lies_as_nifti_does(tmp_path, to):
    """Thick slices, by the embedded models: the same voxels at the same places in both forms."""
    source = tmp_path / "in"
    classic(source, shape=(9, 26, 24), spacing=(1.2, 1.0), thickness=4.0, SeriesDescription="t2 tra")
    made = {}
    for form in ("dicom", "nifti"):
        done = udean_run("--to", to, "--format", form, "-o", tmp_path / form, source)
        assert done.returncode == 0, done.stderr
    image = nib.load(tmp_path / "nifti" / "series-003_sr.nii.gz")
    (series,) = find_series(sorted((tmp_path / "dicom" / "series-003").iterdir()), tmp_path, ours=True)
    made = series.scan()
    np.testing.assert_allclose(made.affine, image.affine, atol=1e-4)
    assert np.array_equal(made.voxels(), np.asarray(image.dataobj.get_unscaled()))
    head = pydicom.dcmread(tmp_path / "dicom" / "series-003" / "00001.dcm")
    wanted = {"1mm": (1, 1, 1), "iso": (1, 1, 1), "0.9x0.8x2mm": (0.8, 0.9, 2)}[to]
    assert [*map(float, head.PixelSpacing), float(head.SliceThickness)] == pytest.approx(wanted, abs=1e-5)
    assert float(head.SpacingBetweenSlices) == pytest.approx(wanted[2], abs=1e-5)
    assert f"{wanted[0]:g} x {wanted[1]:g} x {wanted[2]:g} mm" in head.DerivationDescription
    # Each SR slice names the slices about it: the first and the last those at the ends of the stack.
    given = {str(d.SOPInstanceUID): d.ImagePositionPatient for d in map(pydicom.dcmread, source.iterdir())}
    for name in (1, len(series.frames)):
        sr = pydicom.dcmread(tmp_path / "dicom" / "series-003" / f"{name:05}.dcm")
        named = [given[str(item.ReferencedSOPInstanceUID)] for item in sr.SourceImageSequence]
        gaps = [np.linalg.norm(np.subtract(sr.ImagePositionPatient, place)) for place in given.values()]
        nearest = min(given.values(), key=lambda p: np.linalg.norm(np.subtract(sr.ImagePositionPatient, p)))
        assert nearest in named and min(gaps) < 4.5
