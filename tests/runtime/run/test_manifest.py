"""The manifest: what a resumed run goes by; one writer; shards; how far a cohort is."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from udean.runtime import RunError, SuperResolver
from udean.runtime import job as jobs
from udean.runtime.job import Job
from udean.runtime.run.find import find_scans
from udean.runtime.run.manifest import Fingerprint, Manifest, Outcome, Shard
from udean.runtime.run.run import Settings, prepare, run_all
from udean.runtime.run.status import standing

from ...support.fakes import FakeEngine, card, nearest, onnx_model
from ..commands.test_run import COMMAND, udean_run
from .test_run import scan

CARD = card((2, 2, 2), 3, (8, 8))


@pytest.fixture
def resolve():
    return SuperResolver(FakeEngine(lambda x: nearest(x, (2, 2, 2)), CARD))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return onnx_model(tmp_path_factory.mktemp("model") / "sr.onnx", card((2, 2, 2), 3, (16, 16)))


def cohort(folder, count):
    for n in range(count):
        scan(folder / f"{n:02}.nii", seed=n)
    return find_scans([str(folder)])


FILES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1).filter(
    lambda name: name.strip(".")
)


@settings(deadline=None)
@given(st.sets(FILES, max_size=60), st.integers(1, 12), FILES)
def test_shards_are_disjoint_complete_and_stay_when_scans_come_and_go(names, count, new):
    found = [Job(Path("in") / name, Path("out") / name, Path("out")) for name in sorted(names)]
    shares = [Shard(n, count).of(found) for n in range(count)]
    assert sorted((job for share in shares for job in share), key=lambda job: job.source) == found
    other = Job(Path("in") / new, Path("out") / new, Path("out"))
    for n, share in enumerate(shares):
        assert [job for job in Shard(n, count).of([other, *found]) if job != other] == [
            job for job in share if job != other
        ]


def test_shards_are_about_equal():
    found = [Job(Path(f"{n}.nii"), Path(f"out/{n}.nii"), Path("out")) for n in range(2000)]
    sizes = [len(Shard(n, 8).of(found)) for n in range(8)]
    assert sum(sizes) == 2000 and max(sizes) - min(sizes) < 6 * 250**0.5


def test_files_that_are_as_noted_are_not_read_again(tmp_path, resolve, monkeypatch):
    found = cohort(tmp_path / "scans", 3)
    prepare(found)
    read = Counter()
    digest = jobs.sha256
    monkeypatch.setattr(jobs, "sha256", lambda path: read.update([path.name]) or digest(path))

    def statuses():
        read.clear()
        return [outcome.status for outcome in run_all(found, resolve)]

    assert statuses() == ["written"] * 3 and len(read) == 6
    assert statuses() == ["kept"] * 3 and not read
    os.utime(found[0].source)
    assert statuses() == ["kept"] * 3 and set(read) == {"00.nii"}
    scan(found[1].source, seed=9)
    with open(found[2].target, "r+b") as file:
        file.write(b"\1")
    assert statuses() == ["kept", "written", "written"]
    (found[0].root / Shard().manifest).unlink()  # sidecars vouch without it
    assert statuses() == ["kept"] * 3 and len(read) == 6


def test_lines_that_a_killed_run_left_unfinished_spoil_no_other(tmp_path, resolve):
    found = cohort(tmp_path / "scans", 2)
    prepare(found)
    list(run_all(found, resolve))
    path = found[0].root / Shard().manifest
    with open(path, "ab") as file:
        file.write(b'{"time": 1, "source": "../sc')
    assert [outcome.status for outcome in run_all(found, resolve)] == ["kept", "kept"]
    assert standing(found[0].root).done == 2
    path.write_bytes(b"\0\xff{}\n[1]\n3\n" + path.read_bytes())
    assert standing(found[0].root).done == 2


def test_a_scan_that_was_set_aside_stays_so_until_it_changes_or_is_asked_for(tmp_path, resolve):
    found = cohort(tmp_path / "scans", 2)
    prepare(found)
    with Manifest(found) as manifest:
        seen = Fingerprint(found[0].stamps()[0], "")
        manifest.note(Outcome(found[0], "failed", "it kills workers", input=seen, aside=True))
    for _ in range(2):
        assert [outcome.status for outcome in run_all(found, resolve)][:1] == ["failed"]
    assert standing(found[0].root).failed == [("../scans/00.nii", "it kills workers")]
    overwrite = Settings(overwrite=True)
    assert [outcome.status for outcome in run_all(found[:1], resolve, overwrite)] == ["written"]
    with Manifest(found) as manifest:
        manifest.note(Outcome(found[0], "failed", "it kills workers", input=seen, aside=True))
    scan(found[0].source, seed=7)
    assert [outcome.status for outcome in run_all(found, resolve)] == ["written", "kept"]


def test_two_runs_share_a_folder_only_as_shards_of_one_count(tmp_path):
    found = cohort(tmp_path / "scans", 4)
    prepare(found)
    for first, second, together in (
        (Shard(), Shard(), False),
        (Shard(0, 2), Shard(1, 2), True),
        (Shard(0, 2), Shard(0, 2), False),
        (Shard(0, 2), Shard(), False),
        (Shard(), Shard(1, 2), False),
        (Shard(0, 2), Shard(1, 3), False),
    ):
        with Manifest(found, first):
            if together:
                Manifest(found, second).close()
                continue
            with pytest.raises(RunError, match="Another run writes into"):
                Manifest(found, second)
        Manifest(found, second).close()


def test_a_second_command_is_refused_until_the_first_has_died(model, tmp_path):
    for n in range(6):
        scan(tmp_path / "scans" / f"{n}.nii")
    arguments = ["--engine", model, "--window", "4x4", "--overlap", "0.9", tmp_path / "scans"]
    out = tmp_path / "scans-sr"
    first = subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    try:
        assert "Model" in first.stdout.readline()
        deadline, manifest = time.monotonic() + 60, out / Shard().manifest
        while not (manifest.exists() and manifest.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(first.pid, signal.SIGSTOP)  # it lives, and holds its lock, for as long as we look
        assert standing(out).running == 1
        refused = udean_run(*arguments)
        assert refused.returncode == 2 and "Another run writes into" in refused.stderr
    finally:
        first.kill()
        first.communicate()
    assert standing(out).running == 0
    done = udean_run(*arguments)
    assert done.returncode == 0 and "0 failed" in done.stdout
    lines = [json.loads(line) for line in (out / Shard().manifest).read_text().splitlines()]
    written = Counter(line["target"] for line in lines if line["status"] == "written")
    assert set(written.values()) <= {1} and standing(out).done == 6


def test_shards_run_at_once_and_status_adds_them_up(model, tmp_path):
    names = [f"{n}.nii" for n in range(8)]
    for name in names:
        scan(tmp_path / "scans" / name)
    (tmp_path / "scans" / "bad.nii").write_bytes(b"bad")
    out = tmp_path / "out"

    def command(number):
        shard = ["--num-shards", "3", "--shard", str(number), "-o", str(out), str(tmp_path / "scans")]
        return [*COMMAND, "--engine", str(model), "--report", *shard]

    assert subprocess.run(command(2), capture_output=True).returncode in (0, 1)
    waiting = standing(out)
    assert waiting.waiting == [0, 1] and waiting.done + len(waiting.failed) + waiting.left == 9
    both = [subprocess.Popen(command(n), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for n in (0, 1)]
    assert {process.wait() for process in both} <= {0, 1}
    for process in both:
        process.stderr.close()
    pages = {path.name: path.read_text() for path in out.glob("*.html")}
    assert set(pages) == {f"udean-report-{n}-of-3.html" for n in range(3)}
    assert all(sum(f"/{name}</h2>" in page for page in pages.values()) == 1 for name in names)
    told = subprocess.run(
        [sys.executable, "-m", "udean.runtime.commands.status", out], capture_output=True, text=True
    )
    assert told.returncode == 1 and "8 done, 1 failed, 0 left" in told.stdout and "an hour" in told.stdout
    assert "Failed: ../scans/bad.nii: " in told.stdout and "not a NIfTI" in told.stdout
    assert {path.name for path in out.glob("*.nii")} == {name.replace(".", "_sr.") for name in names}
    for wrong in (["--shard", "0"], ["--num-shards", "2"], ["--num-shards", "2", "--shard", "2"]):
        assert udean_run("--engine", model, *wrong, tmp_path / "scans").returncode == 2


def test_one_shard_of_one_is_the_whole(model, tmp_path):
    done = udean_run("--engine", model, "--num-shards", "1", "--shard", "0", scan(tmp_path / "a.nii"))
    assert done.returncode == 0 and "1 written" in done.stdout, done.stderr
    assert (tmp_path / "sr" / Shard().manifest).exists()


def test_status_speaks_of_what_it_is_given(tmp_path, model):
    def status(*arguments):
        command = [sys.executable, "-m", "udean.runtime.commands.status", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    for arguments, word in (([], "OUT"), ([tmp_path], "contains no manifest")):
        done = status(*arguments)
        assert done.returncode == 2 and word in done.stderr
    scan(tmp_path / "status" / "a.nii")  # a folder may be called as a command is
    done = udean_run("--engine", model, "status", cwd=tmp_path)
    assert done.returncode == 0 and "1 written" in done.stdout
    done = status("status-sr")
    assert done.returncode == 0 and done.stdout.startswith("1 done, 0 failed, 0 left")


def test_runs_are_counted_since_clocks_differ(tmp_path, resolve):
    found = cohort(tmp_path / "scans", 2)
    good = found[0].source.read_bytes()
    found[0].source.write_bytes(good[:300])
    prepare(found)
    for shard in (Shard(0, 2), Shard(1, 2)):
        list(run_all(found, resolve, shard=shard))
    for path in found[0].root.glob("*.jsonl"):  # by a machine whose clock is a day ahead
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**line, "time": line["time"] + 86400}) + "\n" for line in lines))
    assert len(standing(found[0].root).failed) == 1
    found[0].source.write_bytes(good)
    assert [o.status for o in run_all(found, resolve)] == ["written", "kept"]
    now = standing(found[0].root)
    assert (now.done, now.failed, now.left, now.waiting) == (2, [], 0, [])


def test_a_file_of_others_under_the_manifests_name_is_kept(resolve, tmp_path):
    jobs = cohort(tmp_path / "scans", 1)
    prepare(jobs)
    (theirs := jobs[0].root / Shard().manifest).write_text("my notes")
    with pytest.raises(RunError, match="was not made by udean"):
        list(run_all(jobs, resolve))
    assert theirs.read_text() == "my notes"
