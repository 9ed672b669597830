"""Which scans are found, what their results are called, when they are made again."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from udean.runtime import RunError, SuperResolver
from udean.runtime.folder import MANIFEST, attempt, find_scans, prepare, result_name, run_all

from .fakes import FakeEngine, card, nearest

CARD = card((2, 2, 2), 3, (8, 8))


@pytest.fixture
def resolve():
    return SuperResolver(FakeEngine(lambda x: nearest(x, (2, 2, 2)), CARD))


def scan(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).integers(0, 100, (9, 8, 5)).astype(np.int16)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return path


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("brain.nii.gz", "brain_sr.nii.gz"),
        ("a.b.nii", "a.b_sr.nii"),
        ("sub-01_T1w.nii.gz", "sub-01_res-hi_desc-sr_T1w.nii.gz"),
        ("sub-01_ses-2_run-1_T2w.nii", "sub-01_ses-2_run-1_res-hi_desc-sr_T2w.nii"),
        ("sub-01_res-lo_desc-preproc_T1w.nii", "sub-01_res-hi_desc-sr_T1w.nii"),
        ("sub-01.nii", "sub-01_sr.nii"),
        ("subject_T1w.nii", "subject_T1w_sr.nii"),
    ],
)
def test_results_have_names_of_their_own(name, result):
    assert result_name(name) == result


def test_a_folder_goes_to_a_new_folder_beside_it(tmp_path):
    for name in ("a.nii", "sub/b.nii.gz", ".hidden/c.nii", "._d.nii", "sr/a_sr.nii", "sub-1_desc-sr_T1w.nii"):
        scan(tmp_path / "scans" / name)
    jobs = find_scans([f"{tmp_path}/scans"])
    assert [job.target.relative_to(tmp_path) for job in jobs] == [
        Path("scans-sr/a_sr.nii"),
        Path("scans-sr/sub/b_sr.nii.gz"),
    ]


def test_files_and_patterns_go_to_a_folder_beside_them(tmp_path):
    scan(tmp_path / "a.nii")
    scan(tmp_path / "b[1].nii")
    for inputs in ([f"{tmp_path}/a.nii", f"{tmp_path}/b[1].nii"], [f"{tmp_path}/*.nii", f"{tmp_path}/a.nii"]):
        jobs = find_scans(inputs)
        assert [str(job.target.relative_to(tmp_path)) for job in jobs] == ["sr/a_sr.nii", "sr/b[1]_sr.nii"]


def test_inputs_without_scans_and_colliding_results_are_refused(tmp_path):
    scan(tmp_path / "a" / "x.nii")
    scan(tmp_path / "b" / "x.nii")
    scan(tmp_path / "a" / "x_sr.nii")
    (tmp_path / "empty").mkdir()
    for inputs, out in (
        ([f"{tmp_path}/empty"], None),
        ([f"{tmp_path}/*.mgh"], None),
        ([f"{tmp_path}/a", f"{tmp_path}/b"], tmp_path / "out"),
        ([f"{tmp_path}/a/x.nii", f"{tmp_path}/a/x_sr.nii"], tmp_path / "a"),
    ):
        with pytest.raises(RunError, match=r"holds no scan|collide"):
            find_scans(inputs, out)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (job,) = find_scans([str(scan(tmp_path / "a.nii"))])
    tmp_path.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:  # whom no permission stops
            os.seteuid(65534)
        with pytest.raises(RunError, match="output folder"):
            prepare([job])
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)


def test_sidecar_and_manifest_tell_how_a_scan_was_made(tmp_path, resolve):
    scan(tmp_path / "scans" / "sub-01_T1w.nii.gz")
    (tmp_path / "scans" / "bad.nii").write_bytes(b"bad")
    jobs = find_scans([f"{tmp_path}/scans"])
    prepare(jobs)
    outcomes = list(run_all(jobs, resolve=resolve))
    assert [o.status for o in outcomes] == ["failed", "written"]
    sidecar = json.loads((tmp_path / "scans-sr" / "sub-01_res-hi_desc-sr_T1w.json").read_text())
    assert sidecar["Sources"] == ["../scans/sub-01_T1w.nii.gz"] and sidecar["SpatialReference"] == "orig"
    made = sidecar["udean"]
    assert len(made["request"]["input_sha256"]) == 64 and made["engine"]["device"] == "cpu"
    assert made["timings"]["windows"] > 0 and made["model_card"]["scale"] == [2, 2, 2]
    lines = [json.loads(line) for line in (tmp_path / "scans-sr" / MANIFEST).read_text().splitlines()]
    assert [line["status"] for line in lines] == ["failed", "written"]
    assert "not a NIfTI" in lines[0]["message"] and lines[1]["target"] == "sub-01_res-hi_desc-sr_T1w.nii.gz"


def test_a_scan_is_kept_only_while_everything_about_it_is_the_same(tmp_path, resolve):
    source = scan(tmp_path / "a.nii")
    (job,) = find_scans([str(source)])
    prepare([job])

    def status(resolve=resolve, **options):
        return attempt(job, resolve=resolve, **options).status

    assert [status(), status()] == ["written", "kept"]
    assert [status(overwrite=True), status()] == ["written", "kept"]
    assert [status(dtype="float32"), status(dtype="float32")] == ["written", "kept"]
    other = SuperResolver(resolve.engine, overlap=0.5)
    assert [status(other), status(other), status()] == ["written", "kept", "written"]
    scan(source, seed=1)
    assert [status(), status()] == ["written", "kept"]
    with open(job.target, "r+b") as file:
        file.truncate(400)
    assert [status(), status()] == ["written", "kept"]
    job.target.unlink()
    assert status() == "written"
    job.sidecar.write_text("{")
    assert [status(), status()] == ["written", "kept"]


def test_no_sidecar_vouches_for_a_file_that_could_not_be_replaced(tmp_path, resolve, monkeypatch):
    (job,) = find_scans([str(scan(tmp_path / "a.nii"))])
    prepare([job])
    before = attempt(job, resolve=resolve)
    assert before.status == "written"
    monkeypatch.setattr(
        os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    after = attempt(job, resolve=resolve, overwrite=True)
    assert after.status == "failed" and "No space left" in after.message
    assert os.listdir(job.root) == ["a_sr.nii"]


def test_what_nobody_foresaw_fails_one_scan_only(tmp_path, resolve):
    scan(tmp_path / "scans" / "a.nii")
    jobs = find_scans([f"{tmp_path}/scans"])
    prepare(jobs)
    for error, word in ((MemoryError(), "memory"), (TypeError("odd"), "unexpectedly")):

        def network(windows, error=error):
            raise error

        resolve.engine.network = network
        (outcome,) = run_all(jobs, resolve=resolve)
        assert outcome.status == "failed" and word in outcome.message
    with pytest.raises(TypeError):
        list(run_all(jobs, resolve=resolve, debug=True))
