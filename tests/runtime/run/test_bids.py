"""BIDS trees: which scans are taken, what is said of them, and what the official validator says of that."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from udean.runtime import RunError, SuperResolver
from udean.runtime.run.bids import Selection, source_path, source_uri
from udean.runtime.run.find import find_scans
from udean.runtime.run.run import Settings, prepare, run_all

from ...support.fakes import FakeEngine, card, nearest

CARD = card((2, 2, 2), 3, (8, 8))


@pytest.fixture
def resolve():
    return SuperResolver(FakeEngine(lambda x: nearest(x, (2, 2, 2)), CARD))


def scan(path, volumes=1, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (9, 8, 5) if volumes == 1 else (9, 8, 5, volumes)
    data = np.random.default_rng(seed).integers(0, 100, shape).astype(np.int16)
    image = nib.Nifti1Image(data, np.eye(4))
    image.header.set_xyzt_units("mm", "sec")
    if volumes > 1:
        image.header["pixdim"][4] = 2.5
    nib.save(image, path)


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "my data"
    for subject, session in (("01", "a"), ("01", "b"), ("02", "a")):
        folder, name = root / f"sub-{subject}" / f"ses-{session}", f"sub-{subject}_ses-{session}"
        scan(folder / "anat" / f"{name}_T1w.nii.gz")
        scan(folder / "anat" / f"{name}_FLAIR.nii.gz")
        scan(folder / "anat" / f"{name}_part-phase_T2starw.nii.gz")
        scan(folder / "func" / f"{name}_task-rest_bold.nii.gz", volumes=3)
        (folder / "func" / f"{name}_task-rest_bold.json").write_text('{"EchoTime": 0.03, "SliceTiming": [0]}')
    (root / "task-rest_bold.json").write_text('{"TaskName": "rest", "RepetitionTime": 2.5, "EchoTime": 0.05}')
    (root / "T1w.json").write_text('{"MagneticFieldStrength": 3}')
    scan(root / "derivatives" / "other" / "sub-01_desc-x_T1w.nii.gz")
    (root / "dataset_description.json").write_text(
        '{"Name": "test", "BIDSVersion": "1.10.0", "DatasetType": "raw"}'
    )
    return root


def names(dataset, *labels):
    return [job.source.name for job in find_scans([str(dataset)], select=Selection(*labels))]


def test_a_dataset_gives_its_anatomical_images(dataset, caplog):
    wanted = [f"sub-{s}_ses-{t}" for s, t in (("01", "a"), ("01", "b"), ("02", "a"))]
    assert names(dataset) == [f"{name}_{kind}.nii.gz" for name in wanted for kind in ("FLAIR", "T1w")]
    assert "left out: 3 T2starw, 3 bold" in caplog.text


def test_labels_and_suffixes_choose(dataset):
    assert names(dataset, ["02"], [], ["T1w"]) == ["sub-02_ses-a_T1w.nii.gz"]
    assert names(dataset, ["sub-01"], ["ses-b"], ["T1w", "FLAIR"]) == [
        "sub-01_ses-b_FLAIR.nii.gz",
        "sub-01_ses-b_T1w.nii.gz",
    ]
    assert len(names(dataset, [], ["a"], ["bold"])) == 2
    scan(dataset / "sub-01" / "odd.nii")
    assert "odd.nii" not in names(dataset) + names(dataset / "sub-01", ["01"])
    assert "odd.nii" in names(dataset / "sub-01")


@pytest.mark.parametrize("labels", [(["01", "03"],), ([], ["c"]), ([], [], ["T1W"])])
def test_a_label_that_no_scan_has_is_refused(dataset, labels):
    with pytest.raises(RunError, match=r"sub-03|asked for"):
        names(dataset, *labels)


def test_the_official_validator_finds_no_fault(dataset, resolve, tmp_path):
    (dataset / "README").write_text("A test.")
    select = Selection(suffixes=("T1w", "FLAIR", "bold"))
    for out in (tmp_path / "out", dataset / "derivatives" / "udean"):
        jobs = find_scans([str(dataset)], out, select=select)
        prepare(jobs)
        assert {o.status for o in run_all(jobs, resolve, Settings(series=True))} == {"written"}
        (out / "udean-report.html").touch()
        validator = Path(sys.executable).with_name("bids-validator-deno")
        done = subprocess.run(
            [validator, out, "--format", "json", "--ignoreWarnings"], capture_output=True, text=True
        )
        found = json.loads(done.stdout)
        assert done.returncode == 0 and found["issues"]["issues"] == [], found
        assert found["summary"]["subjects"] and found["summary"]["dataProcessed"]


def test_sources_and_metadata_are_those_of_the_scan(dataset, resolve, tmp_path):
    for out in (tmp_path / "out", dataset / "derivatives" / "udean"):
        jobs = find_scans([str(dataset)], out, select=Selection(["01"], ["a"], ["T1w", "bold"]))
        prepare(jobs)
        assert {o.status for o in run_all(jobs, resolve, Settings(series=True))} == {"written"}
        described = json.loads((out / "dataset_description.json").read_text())
        raw = out / described["DatasetLinks"]["raw"].replace("%20", " ")
        assert raw.resolve() == dataset and described["DatasetType"] == "derivative"
        sidecars = [json.loads(job.sidecar.read_text()) for job in jobs]
        for job, sidecar in zip(jobs, sidecars, strict=True):
            (source,) = sidecar["Sources"]
            assert raw.resolve() / source.removeprefix("bids:raw:") == job.source
        anat, bold = sidecars
        assert anat["MagneticFieldStrength"] == 3 and anat["SkullStripped"] is False
        assert (bold["TaskName"], bold["EchoTime"]) == ("rest", 0.03)  # the nearer file counts
        assert "SliceTiming" not in bold and "MagneticFieldStrength" not in bold


def test_an_output_folder_links_to_every_dataset_it_holds_and_keeps_what_it_says(dataset, resolve, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    scan(other / "sub-09" / "anat" / "sub-09_T1w.nii.gz")
    out.mkdir()
    (out / "dataset_description.json").write_text('{"Name": "mine", "DatasetType": "derivative"}')
    for root in (dataset, other, dataset):
        prepare(find_scans([str(root)], out))
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["Name"] == "mine"
    assert described["DatasetLinks"] == {"raw": "../my%20data", "raw2": "../other"}
    before = (dataset / "dataset_description.json").read_text()
    with pytest.raises(RunError, match="raw dataset"):
        find_scans([str(dataset)], dataset)
    assert (dataset / "dataset_description.json").read_text() == before


def test_a_dataset_whose_name_is_not_text_is_linked_to_by_its_bytes(dataset, tmp_path):
    raw, out = tmp_path / os.fsdecode(b"caf\xe9 %"), tmp_path / os.fsdecode(b"r\xe9sultats")
    dataset.rename(raw)
    (job,) = jobs = find_scans([str(raw)], out, select=Selection(["01"], ["a"], ["T1w"]))
    prepare(jobs)
    uri = source_uri(job.source, job.dataset, job.target, out)
    assert uri.startswith("bids:raw:") and uri.isascii()
    assert source_path(uri, job.target, out) == job.source


def test_datasets_with_equal_names_do_not_replace_each_others_results(dataset, resolve, tmp_path):
    other, out = tmp_path / "other", tmp_path / "out"
    scan(other / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_T1w.nii.gz", seed=1)
    (other / "dataset_description.json").write_text("{}")
    select = Selection(["01"], ["a"], ["T1w"])
    outcomes = []
    for root in (dataset, other, dataset):
        jobs = find_scans([str(root)], out, select=select)
        prepare(jobs)
        outcomes += run_all(jobs, resolve)
    assert [o.status for o in outcomes] == ["written", "failed", "kept"]
    assert f"replace the result of {dataset}" in outcomes[1].message


def test_a_part_of_a_dataset_is_treated_as_in_the_whole(dataset, tmp_path, caplog):
    out = tmp_path / "out"
    whole = {job.source: job.target for job in find_scans([str(dataset)], out)}
    part = find_scans([str(dataset / "sub-01")], out)
    assert {job.source: job.target for job in part}.items() <= whole.items() and len(part) == 4
    assert "left out: 2 T2starw, 2 bold" in caplog.text
    other = dataset / "derivatives" / "other"  # no part of the raw dataset
    assert [job.target for job in find_scans([str(other)], out)] == [out / "sub-01_res-hi_desc-sr_T1w.nii.gz"]


def test_what_a_kept_results_sidecar_takes_over_stays_up_to_date(dataset, resolve, tmp_path):
    (job,) = jobs = find_scans([str(dataset)], tmp_path / "out", select=Selection(["02"], [], ["T1w"]))
    prepare(jobs)

    def run():
        (outcome,) = run_all(jobs, resolve)
        return outcome.status, json.loads(job.sidecar.read_text())

    _, before = run()
    (dataset / "T1w.json").write_text('{"EchoTime": 0.004}')
    status, after = run()
    del before["MagneticFieldStrength"]
    assert status == "kept" and after == {**before, "EchoTime": 0.004} and list(after)[-1] == "udean"
    written = job.sidecar.stat().st_mtime_ns
    assert run()[0] == "kept" and job.sidecar.stat().st_mtime_ns == written


def tree(root):
    return {path.relative_to(root) for path in root.rglob("*") if path.is_file()}


def restored(resolve, *inputs):
    found = find_scans([str(path) for path in inputs])
    prepare(found)
    return [outcome.job.target for outcome in run_all(found, resolve)]


@pytest.mark.parametrize("part", ["sub-01", "sub-01/ses-a/anat", "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz"])
def test_a_part_of_a_dataset_is_restored_among_its_derivatives(dataset, resolve, part):
    before = tree(dataset)
    made = restored(resolve, dataset / part)
    out = dataset / "derivatives" / "udean"
    assert out / "sub-01/ses-a/anat/sub-01_ses-a_res-hi_desc-sr_T1w.nii.gz" in made
    new = tree(dataset) - before
    assert new and all(path.parts[:2] == ("derivatives", "udean") for path in new)
    assert json.loads((out / "dataset_description.json").read_text())["DatasetLinks"] == {"raw": "../.."}
    assert restored(resolve, dataset / part) == made  # kept, in the same place


def test_what_others_derived_is_restored_beside_it(dataset, resolve):
    folder = dataset / "derivatives" / "other"
    (folder / "dataset_description.json").write_text('{"Name": "o", "DatasetType": "derivative"}')
    made = restored(resolve, folder / "sub-01_desc-x_T1w.nii.gz", folder)
    assert all(path.is_relative_to(dataset / "derivatives" / "udean") for path in made)


def test_names_that_are_not_bids_are_told_and_suffixes_advised_only_where_they_help(dataset, caplog):
    anat = dataset / "sub-01" / "ses-a" / "anat"
    for name in ("sub-01", "sub-01_acq-x", "sub-01_T1w_", "sub-01_acq-_T1w", "sub-01_foo"):
        scan(anat / f"{name}.nii.gz")
    assert "sub-01_foo.nii.gz" not in names(dataset)
    kinds, odd = (record.getMessage() for record in caplog.records)
    assert "1 foo" in kinds and "--suffix takes them" in kinds and "acq" not in kinds
    assert all(
        f"/{name}.nii.gz" in odd for name in ("sub-01", "sub-01_acq-x", "sub-01_T1w_", "sub-01_acq-_T1w")
    )
    assert names(dataset, (), (), ("foo",)) == ["sub-01_foo.nii.gz"]
