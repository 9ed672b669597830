"""Folders of scans: which are found, how their results are named, when they are made again."""

import importlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from udean.runtime import RunError, SuperResolver
from udean.runtime.run import run as folder
from udean.runtime.run.find import find_scans, result_name
from udean.runtime.run.manifest import Known, Shard
from udean.runtime.run.run import Settings, prepare, run_all
from udean.runtime.system.files import atomic

from ...support.fakes import FakeEngine, card, nearest

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
        ("orig.mgz", "orig_sr.nii.gz"),
        ("S.NII.GZ", "S_sr.nii.gz"),
        ("ORIG.MGZ", "ORIG_sr.nii.gz"),
        ("sub-01_T1w.Nii", "sub-01_res-hi_desc-sr_T1w.nii"),
    ],
)
def test_results_have_names_of_their_own(name, result):
    assert result_name(name) == result


def test_a_folder_goes_to_a_new_folder_beside_it(tmp_path):
    for name in ("a.nii", "sub/b.NII.GZ", ".hidden/c.nii", "._d.nii", "sr/a_sr.nii", "sub-1_desc-sr_T1w.nii"):
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
        ([f"{tmp_path}/*.img"], None),
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
    outcomes = list(run_all(jobs, resolve))
    assert [o.status for o in outcomes] == ["failed", "written"]
    sidecar = json.loads((tmp_path / "scans-sr" / "sub-01_res-hi_desc-sr_T1w.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-01_T1w.nii.gz"] and sidecar["SpatialReference"] == "orig"
    made = sidecar["udean"]
    assert len(made["request"]["input_sha256"]) == 64 and made["engine"]["device"] == "cpu"
    assert made["timings"]["windows"] > 0 and made["model_card"]["scale"] == [2, 2, 2]
    lines = [json.loads(line) for line in (tmp_path / "scans-sr" / Shard().manifest).read_text().splitlines()]
    assert [line["status"] for line in lines] == ["run", "queued", "queued", "failed", "written"]
    assert "not a NIfTI" in lines[3]["message"] and lines[4]["target"] == "sub-01_res-hi_desc-sr_T1w.nii.gz"


def test_a_scan_is_kept_only_while_everything_about_it_is_the_same(tmp_path, resolve):
    source = scan(tmp_path / "a.nii")
    (job,) = find_scans([str(source)])
    prepare([job])

    def status(resolve=resolve, **settings):
        (outcome,) = run_all([job], resolve, Settings(**settings))
        return outcome.status

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
    (before,) = run_all([job], resolve)
    assert before.status == "written"
    monkeypatch.setattr(
        os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    (after,) = run_all([job], resolve, Settings(overwrite=True))
    assert after.status == "failed" and "No space left" in after.message
    assert set(os.listdir(job.root)) == {"a_sr.nii", Shard().manifest}


def test_what_nobody_foresaw_fails_one_scan_only(tmp_path, resolve):
    scan(tmp_path / "scans" / "a.nii")
    jobs = find_scans([f"{tmp_path}/scans"])
    prepare(jobs)
    for error, word in ((MemoryError(), "memory"), (TypeError("odd"), "unexpectedly")):

        def network(windows, error=error):
            raise error

        resolve.engine.network = network
        (outcome,) = run_all(jobs, resolve)
        assert outcome.status == "failed" and word in outcome.message
    with pytest.raises(TypeError):
        list(run_all(jobs, resolve, Settings(debug=True)))


def test_scans_overlap_and_come_back_in_order(tmp_path, resolve):
    """While the network has one scan, the next one is read: the reading thread is ahead of the network."""
    for n in range(4):
        scan(tmp_path / "scans" / f"{n}.nii.gz", seed=n)
    jobs = find_scans([f"{tmp_path}/scans"])
    prepare(jobs)
    outcomes = list(run_all(jobs, resolve))
    assert [outcome.job for outcome in outcomes] == jobs
    for n, job in enumerate(jobs):
        assert outcomes[n].status == "written" and outcomes[n].timings.write > 0
        found, wanted = (np.asarray(nib.load(path).dataobj) for path in (job.target, job.source))
        np.testing.assert_array_equal(found, nearest(wanted, CARD.scale))


def watched(resolve, monkeypatch):
    """A list to which "network" is added when the network begins a scan, and "written" when one is there."""
    said, network, replace = [], resolve.engine.network, os.replace

    def begun(windows):
        said.append("network")  # all windows of so small a scan are one batch
        return network(windows)

    def written(partial, path):
        if str(path).endswith("_sr.nii"):
            time.sleep(0.2)
            said.append("written")
        replace(partial, path)

    monkeypatch.setattr(resolve.engine, "network", begun)
    monkeypatch.setattr(os, "replace", written)
    return said


def by_a_worker(jobs, resolve, settings, monkeypatch):
    """As a Ray actor does it: all scans at once, in threads of Ray's."""
    ray = pytest.importorskip("ray")
    workers = importlib.import_module("udean.runtime.cluster.workers")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    worker = workers.Worker(lambda: resolve)
    assert worker.open().node == "here"
    with ThreadPoolExecutor(len(jobs)) as threads:
        return list(threads.map(lambda job: worker.resolve(job, settings, Known()), jobs))


def by_a_run(jobs, resolve, settings, monkeypatch):
    return list(run_all(jobs, resolve, settings))


@pytest.mark.parametrize("way", [by_a_run, by_a_worker])
@pytest.mark.parametrize("large", [True, False])
def test_of_large_results_one_is_held_at_a_time(tmp_path, resolve, monkeypatch, way, large):
    monkeypatch.setattr(folder, "LARGE", 0 if large else 1 << 30)
    for n in range(3):
        scan(tmp_path / "scans" / f"{n}.nii", n)
    jobs = find_scans([f"{tmp_path}/scans"])
    prepare(jobs)
    did = watched(resolve, monkeypatch)
    outcomes = way(jobs, resolve, Settings(), monkeypatch)
    assert [outcome.status for outcome in outcomes] == ["written"] * 3
    if large:
        assert did == ["network", "written"] * 3
    else:  # the next one does not wait
        assert did[:2] == ["network", "network"]


def test_a_closed_run_finishes_the_scan_being_written(tmp_path, resolve):
    for n in range(5):
        scan(tmp_path / "scans" / f"{n}.nii")
    jobs = find_scans([f"{tmp_path}/scans"])
    prepare(jobs)
    noted = []
    run = run_all(jobs, resolve, noted=noted.append)
    next(run)
    run.close()
    assert [outcome.job for outcome in noted] == [job for job in jobs if job.sidecar.exists()]
    left = set(os.listdir(jobs[0].root))
    assert not [name for name in left if name.startswith(".")]
    for job in jobs:
        assert job.target.exists() == job.sidecar.exists()


def test_what_a_killed_run_has_left_is_removed(tmp_path, resolve):
    (job,) = find_scans([str(scan(tmp_path / "a.nii"))])
    prepare([job])
    mine = [job.root / ".a_sr.nii.77.part", job.root / ".a_sr.json.77.part"]
    others = [job.root / ".b_sr.nii.77.part", job.root / ".a_sr.nii.old"]
    for path in mine + others:
        path.touch()
    with atomic(job.target) as living:
        prepare([job])
        assert not any(path.exists() for path in mine) and all(path.exists() for path in others)
        assert Path(living.name).exists()


def test_a_bids_dataset_gives_a_derived_dataset(tmp_path, resolve):
    root = tmp_path / "data"
    scan(root / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    scan(root / "derivatives" / "other" / "sub-01_T1w.nii.gz")
    (root / "dataset_description.json").write_text("{}")
    jobs = find_scans([str(root)])
    prepare(jobs)
    assert [o.status for o in run_all(jobs, resolve)] == ["written"]
    assert (tmp_path / "data-sr/sub-01/anat/sub-01_res-hi_desc-sr_T1w.nii.gz").exists()
    described = json.loads((tmp_path / "data-sr" / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative" and described["GeneratedBy"][0]["Name"] == "udean"


def test_a_series_is_resolved_volume_by_volume_where_asked_for(tmp_path, resolve):
    data = np.random.default_rng(0).integers(0, 900, (9, 8, 5, 3)).astype(np.int16)
    for name in ("a.nii", "b.nii.gz"):
        image = nib.Nifti1Image(data, np.eye(4))
        image.header["pixdim"][4] = 2.5
        (tmp_path / "scans").mkdir(exist_ok=True)
        nib.save(image, tmp_path / "scans" / name)
    jobs = find_scans([f"{tmp_path}/scans"])
    prepare(jobs)
    for outcome in run_all(jobs, resolve):
        assert outcome.status == "failed" and "--series" in outcome.message
    for outcome in run_all(jobs, resolve, Settings(series=True)):
        assert outcome.status == "written"
        sr = nib.load(outcome.job.target)
        assert sr.shape == (18, 16, 10, 3) and sr.header["pixdim"][4] == 2.5
        for t in range(3):
            np.testing.assert_array_equal(np.asarray(sr.dataobj)[..., t], nearest(data[..., t], CARD.scale))


def test_freesurfers_scans_become_nifti(tmp_path, resolve):
    data = np.random.default_rng(0).integers(0, 255, (9, 8, 5)).astype(np.uint8)
    affine = np.array([[-1, 0, 0, 4], [0, 0, 1, -3], [0, -1, 0, 5], [0, 0, 0, 1.0]])
    image = nib.MGHImage(data, affine)
    nib.save(image, tmp_path / "orig.mgz")
    nib.save(image, tmp_path / "plain.mgh")
    (tmp_path / "cut.mgz").write_bytes((tmp_path / "orig.mgz").read_bytes()[:200])
    (tmp_path / "short.mgh").write_bytes((tmp_path / "plain.mgh").read_bytes()[:400])
    (tmp_path / "bad.mgz").write_bytes(b"nothing")
    jobs = find_scans([f"{tmp_path}/*.mg[hz]"])
    prepare(jobs)
    outcomes = {outcome.job.source.name: outcome for outcome in run_all(jobs, resolve)}
    for name in ("orig.mgz", "plain.mgh"):
        assert outcomes[name].status == "written", outcomes[name].message
        sr = nib.load(outcomes[name].job.target)
        assert sr.shape == (18, 16, 10)
        np.testing.assert_array_equal(np.asarray(sr.dataobj)[::2, ::2, ::2], data)
        np.testing.assert_allclose(sr.affine, affine @ np.diag([0.5, 0.5, 0.5, 1]))
    for name in ("cut.mgz", "short.mgh", "bad.mgz"):
        assert outcomes[name].status == "failed" and name in outcomes[name].message, outcomes[name].message
        assert "unexpectedly" not in outcomes[name].message


def test_a_result_of_another_scan_is_not_replaced(tmp_path, resolve):
    one, two = scan(tmp_path / "p1" / "T1.nii"), scan(tmp_path / "p2" / "T1.nii", seed=1)
    out = tmp_path / "out"

    def run(source, **settings):
        jobs = find_scans([str(source)], out)
        prepare(jobs)
        (outcome,) = run_all(jobs, resolve, Settings(**settings))
        return outcome

    assert run(one).status == "written"
    before = (out / "T1_sr.nii").read_bytes()
    for _ in range(2):
        refused = run(two)
        assert refused.status == "failed" and f"replace the result of {one}, for {two}" in refused.message
    assert run(scan(tmp_path / "p3" / "T1.nii.gz")).status == "failed"  # it would have the same sidecar
    assert (out / "T1_sr.nii").read_bytes() == before and run(one).status == "kept"
    (tmp_path / "way").symlink_to(tmp_path / "p1")
    scan(one, seed=2)  # the same scan, changed, by whatever way to it
    assert run(tmp_path / "way" / "T1.nii").status == "written"
    assert run(two, overwrite=True).status == "written"
    two = two.rename(tmp_path / "T1.nii")  # the data set has moved, and changed
    scan(two, seed=3)
    assert run(two).status == "written"


def test_what_stands_in_the_way_of_a_sidecar_is_named(tmp_path, resolve):
    (job,) = find_scans([str(scan(tmp_path / "a.nii"))])
    prepare([job])
    job.sidecar.mkdir()
    (outcome,) = run_all([job], resolve)
    assert outcome.status == "failed" and str(job.sidecar) in outcome.message
    assert "unexpectedly" not in outcome.message


def test_two_links_to_one_file_are_two_scans(tmp_path):
    scan(tmp_path / "annex" / "object.nii")
    for session in "12":
        (tmp_path / "scans" / session).mkdir(parents=True)
        (tmp_path / "scans" / session / "T1.nii").symlink_to(tmp_path / "annex" / "object.nii")
    jobs = find_scans([f"{tmp_path}/scans"])
    assert [str(job.target.relative_to(tmp_path)) for job in jobs] == [
        "scans-sr/1/T1_sr.nii",
        "scans-sr/2/T1_sr.nii",
    ]
    (tmp_path / "scans" / "x.nii").symlink_to(tmp_path / "scans-sr" / "1" / "T1_sr.nii")
    scan(tmp_path / "scans-sr" / "1" / "T1_sr.nii")
    with pytest.raises(RunError, match="collide"):  # it would be replaced
        find_scans([f"{tmp_path}/scans"])


def test_folders_that_a_pattern_matches_are_searched_as_if_they_were_named(tmp_path):
    for name in ("a b/x.nii", "c/deep/y.nii", "z.nii", "c-sr/deep/y_sr.nii", "notes.txt"):
        scan(tmp_path / name) if ".nii" in name else (tmp_path / name).touch()
    (tmp_path / "c-sr" / Shard().manifest).touch()

    def targets(*inputs):
        return {str(job.target.relative_to(tmp_path)) for job in find_scans([*map(str, inputs)])}

    wanted = {"sr/z_sr.nii", "a b-sr/x_sr.nii", "c-sr/deep/y_sr.nii"}
    assert targets(tmp_path / "*") == wanted
    assert targets(*sorted(p for p in tmp_path.iterdir() if p.suffix != ".txt")) == wanted  # by the shell
    assert targets(tmp_path / "**" / "*") == {"a b/sr/x_sr.nii", "c/deep/sr/y_sr.nii", "sr/z_sr.nii"}
    with pytest.raises(RunError, match="results of earlier runs"):
        find_scans([f"{tmp_path}/c-sr"])


def test_an_output_folder_has_one_spelling(tmp_path, monkeypatch):
    for name in "xyz":
        scan(tmp_path / "a" / f"{name}.nii")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    jobs = find_scans(["a/x.nii", f"{tmp_path}/a/y.nii", "link/../a/z.nii", "link/x.nii"])
    assert [job.target for job in jobs] == [Path("a/sr") / f"{name}_sr.nii" for name in "xyz"]
    assert {job.root for job in jobs} == {Path("a/sr")}


def test_a_file_that_no_run_has_made_is_never_replaced(tmp_path, resolve):
    scans, out = tmp_path / "scans", tmp_path / "scans-sr"
    for name in ("a.nii", "b.nii"):
        scan(scans / name)
    theirs = scan(out / "a_sr.nii", seed=9).read_bytes()
    (out / "b_sr.json").write_text('{"EchoTime": 0.003}')
    found = find_scans([str(scans)])
    prepare(found)
    for settings in (Settings(), Settings(overwrite=True), Settings()):
        outcomes = list(run_all(found, resolve, settings))
        assert [o.status for o in outcomes] == ["failed", "failed"]
        assert all("is not a result of udean" in o.message for o in outcomes)
    assert (out / "a_sr.nii").read_bytes() == theirs and not (out / "b_sr.nii").exists()
    (out / "a_sr.nii").unlink()
    (out / "b_sr.json").unlink()
    assert [o.status for o in run_all(found, resolve)] == ["written", "written"]
    (out / "a_sr.json").unlink()  # as a run leaves it that is killed before its sidecar
    assert [o.status for o in run_all(found, resolve)] == ["written", "kept"]


def test_what_looks_like_a_result_or_is_half_a_scan_is_named(tmp_path, caplog):
    for name in ("a.nii", "b_sr.nii", "sub-1_desc-sr_T1w.nii"):
        scan(tmp_path / "scans" / name)
    nib.save(nib.Nifti1Pair(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / "scans" / "c.img")
    assert [job.source.name for job in find_scans([str(tmp_path / "scans")])] == ["a.nii"]
    for name in ("b_sr.nii", "sub-1_desc-sr_T1w.nii", "c.hdr", "c.img"):
        assert f"/scans/{name}" in caplog.text
    (job,) = find_scans([str(tmp_path / "scans" / "b_sr.nii")])
    assert job.target.name == "b_sr_sr.nii"


def test_json_nested_beyond_reason_is_no_sidecar(tmp_path, resolve):
    scan(tmp_path / "scans" / "a.nii")
    found = find_scans([str(tmp_path / "scans")])
    prepare(found)
    assert [o.status for o in run_all(found, resolve)] == ["written"]
    found[0].sidecar.write_text('{"a":' * 100_000)
    assert [o.status for o in run_all(found, resolve)] == ["written"]


def test_a_scan_that_is_still_being_written_is_not_restored(tmp_path, resolve):
    """An uncompressed file that is copied has all of its bytes from the start, and not yet its voxels."""
    (tmp_path / "scans").mkdir()
    source, other = scan(tmp_path / "scans" / "a.nii"), scan(tmp_path / "scans" / "b.nii", 1)
    jobs = find_scans([str(tmp_path / "scans")])
    prepare(jobs)

    def write_on(done, count):
        if done == count:
            os.utime(source, (1, 1))

    first, second = run_all(jobs, resolve, progress=write_on)
    assert first.status == "failed" and "changed while it was restored" in first.message
    assert second.status == "written" and not jobs[0].target.exists() and other.exists()
    assert [outcome.status for outcome in run_all(jobs, resolve)] == ["written", "kept"]
