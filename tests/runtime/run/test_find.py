"""Finding scans and placing results: odd names, circular links, folders that are read-only or full."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from udean.runtime.run.find import find_scans

from ...support.fakes import card, onnx_model
from ..commands.test_run import scan, udean_run

NAMES = [
    "a b.nii",
    "頭部 é.nii.gz",
    "$(touch x);'\".nii",
    "<script>.nii",
    "-o.nii",
    "back\\slash.nii",
    "tab\t.nii",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return onnx_model(tmp_path_factory.mktemp("model") / "sr.onnx", card((2, 2, 2), 3, (16, 16)))


def test_a_file_that_cannot_be_read_is_told_for_it_may_be_a_slice(tmp_path, monkeypatch, caplog):
    scan(tmp_path / "a.nii", (6, 6, 4))
    (tmp_path / "slice-7").write_bytes(b"")
    real = open

    def fail(path, *rest, **named):
        if str(path).endswith("slice-7"):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **named)

    monkeypatch.setattr("builtins.open", fail)
    (job,) = find_scans([str(tmp_path)])
    assert job.source.name == "a.nii" and "slice-7: Permission denied" in caplog.text
    assert "series is not whole" in caplog.text


def test_any_name_that_the_system_allows_works(model, tmp_path):
    folder = tmp_path / "all of 患者's scans"
    for name in NAMES:
        scan(folder / name, (6, 6, 4))
    odd = os.fsencode(folder) + b"/\xff\xfe.nii"  # no text in any encoding
    shutil.copy(folder / NAMES[0], odd)
    done = udean_run("--engine", model, "--report", folder, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout.count("->") == len(NAMES) + 1, done.stderr
    out = folder.with_name(folder.name + "-sr")
    results = sorted(name for name in os.listdir(os.fsencode(out)) if b"_sr.nii" in name)
    assert len(results) == len(NAMES) + 1 and b"\xff\xfe_sr.nii" in results
    again = udean_run("--engine", model, folder)
    assert again.returncode == 0 and f"0 written, {len(NAMES) + 1} kept" in again.stdout
    command = [sys.executable, "-m", "udean.runtime.commands.status", out]
    status = subprocess.run(command, capture_output=True, text=True)
    assert status.returncode == 0 and f"{len(NAMES) + 1} done" in status.stdout


def test_links_are_followed_and_circles_of_links_are_not(model, tmp_path):
    folder = tmp_path / "scans"
    scan(folder / "own.nii")
    scan(tmp_path / "elsewhere" / "linked.nii")
    (folder / "site").symlink_to(tmp_path / "elsewhere")
    (folder / "site again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    (folder / "file.nii").symlink_to(folder / "file.nii")
    (folder / "gone.nii").symlink_to(folder / "nothing.nii")
    done = udean_run("--engine", model, folder)
    assert done.returncode == 1 and "2 written, 0 kept, 2 failed" in done.stdout, done.stderr
    assert sorted(re.findall(r"(\w+\.nii) (?:is a link|->)", done.stdout + done.stderr)) == [
        "file.nii",
        "gone.nii",
        "linked.nii",
        "own.nii",
    ]


def test_a_folder_inside_that_cannot_be_read_is_named(model, tmp_path):
    scan(tmp_path / "scans" / "a.nii")
    (tmp_path / "scans" / "locked").mkdir()
    (tmp_path / "scans" / "locked").chmod(0)
    code = (
        "import os, sys; from udean.runtime import RunError; from udean.runtime.run import find\n"
        "os.geteuid() or os.seteuid(65534)\n"
        "try: find.find_scans([sys.argv[1]])\n"
        "except RunError as error: print(error)"
    )
    folder = tmp_path
    while folder != folder.parent:  # whoever is nobody has to get here
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o055)
        folder = folder.parent
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "scans"], capture_output=True, text=True)
    assert re.search(r"Cannot read .*locked: Permission denied", done.stdout), done.stderr


def test_a_full_disk_stops_the_run_before_the_first_scan(model, tmp_path):
    for n in range(3):
        scan(tmp_path / "scans" / f"{n}.nii")
    out = tmp_path / "out"
    out.mkdir()
    (out / "udean-manifest.jsonl").symlink_to("/dev/full")
    done = udean_run("--engine", model, tmp_path / "scans", "-o", out)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "No space left" in done.stderr and "Failed" not in done.stderr
    assert os.listdir(out) == ["udean-manifest.jsonl"]


def test_a_disk_that_fills_up_stops_the_run_and_room_lets_it_go_on(model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    mount = shlex.join(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(out)])
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("needs a file system of its own")
    for n in range(8):
        scan(tmp_path / "scans" / f"{n}.nii", (24, 24, 12))  # 110 kB each when restored
    command = [
        sys.executable,
        "-m",
        "udean.runtime.commands.run",
        "--engine",
        model,
        tmp_path / "scans",
        "-o",
        out,
    ]
    run, there = shlex.join(map(str, command)), shlex.quote(str(out))
    script = (
        f"{mount} && {run}; code=$?; ls -A {there}; mount -o remount,size=9m {there} && {run}; exit $code"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("Failed") <= 2, done.stderr
    assert "No space left" in done.stderr and re.search(r"Stopped, [45] scans left", done.stderr)
    first, second = done.stdout.split("Model ")[1:]
    assert "2 written" in first and ".part" not in first
    assert "6 written, 2 kept, 0 failed" in second


def test_results_of_odd_names_are_whole(model, tmp_path):
    source = scan(tmp_path / "x y" / "é.nii.gz")
    assert udean_run("--engine", model, source).returncode == 0
    (made,) = (tmp_path / "x y" / "sr").glob("*.json")
    assert json.loads(made.read_text())["Sources"] == ["../é.nii.gz"]
    assert np.asarray(nib.load(made.with_name("é_sr.nii.gz")).dataobj).shape == (40, 36, 14)


def test_the_same_pattern_goes_on_where_it_also_matches_results(model, tmp_path):
    for name in ("a/x.nii", "a/y.nii.gz", "S.NII.GZ"):
        scan(tmp_path / "g" / name, (6, 6, 4))
    quoted = [f"{tmp_path}/g/**/*.[nN]*"]
    for status in ("3 written, 0 kept", "0 written, 3 kept"):
        done = udean_run("--engine", model, *quoted)
        assert done.returncode == 0 and status in done.stdout, done.stderr
    inside = tmp_path / "g" / "a"
    for status in ("2 written, 0 kept", "0 written, 2 kept"):
        shell = sorted(path for path in inside.iterdir() if ".nii" in path.name)
        done = udean_run("--engine", model, *shell, "-o", inside)
        assert done.returncode == 0 and status in done.stdout, done.stderr
    sr = tmp_path / "g" / "sr" / "S_sr.nii.gz"  # compressed, and so called
    assert sr.read_bytes()[:2] == b"\x1f\x8b" and nib.load(sr).shape == (12, 12, 8)


def test_one_output_folder_spelled_in_two_ways_is_one(model, tmp_path):
    for name in "xy":
        scan(tmp_path / "a" / f"{name}.nii", (6, 6, 4))
    done = udean_run("--engine", model, "--report", "a/x.nii", tmp_path / "a" / "y.nii", cwd=tmp_path)
    assert done.returncode == 0 and "2 written" in done.stdout, done.stderr
    assert (tmp_path / "a" / "sr" / "udean-report.html").read_text().count("</h2>") == 2


def test_a_name_may_be_as_long_as_the_system_allows(model, tmp_path):
    source = scan(tmp_path / ("n" * (255 - len("_sr.json")) + ".nii"), (6, 6, 4))
    done = udean_run("--engine", model, source)
    assert done.returncode == 0 and "1 written" in done.stdout, done.stderr


def test_nothing_lies_beside_the_root_of_all_folders(model):
    done = udean_run("--engine", model, "/")
    assert done.returncode == 2 and "choose one with -o" in done.stderr and "Traceback" not in done.stderr
