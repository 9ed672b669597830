"""The command as a user meets it: real files, exit codes and sentences; processes if they are the point."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ...support.commands import here
from ...support.fakes import card, onnx_model
from ..scan.test_scan import bad_scans

CARD = card((2, 2, 2), 3, (16, 16))
COMMAND = [Path(sys.executable).with_name("udean-run")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return onnx_model(tmp_path_factory.mktemp("model") / "sr.onnx", CARD)


def process(*arguments, **options):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, **options)


def udean_run(*arguments, cwd=None, **options):
    """The command in this process, or in one of its own, if there are options for one."""
    return process(*arguments, cwd=cwd, **options) if options else here("udean-run", *arguments, cwd=cwd)


def scan(path, shape=(20, 18, 7), dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).integers(0, 1000, shape).astype(dtype)
    nib.save(nib.Nifti1Image(data, np.diag([1, 1, 2, 1])), path)
    return path


def test_a_scan_is_resolved_and_what_was_chosen_is_said(model, tmp_path):
    source = scan(tmp_path / "brain.nii.gz")
    done = process("--engine", model, source)
    assert done.returncode == 0, done.stderr
    assert "openvino" in done.stdout and "1 written" in done.stdout and done.stderr == ""
    sr = nib.load(tmp_path / "sr" / "brain_sr.nii.gz")
    assert sr.shape == (40, 36, 14) and sr.get_data_dtype() == np.int16
    np.testing.assert_allclose(sr.affine, np.diag([0.5, 0.5, 1, 1]))
    again = udean_run("--engine", model, "--report", source)
    assert again.returncode == 0 and "1 kept" in again.stdout
    assert "brain.nii.gz" in (tmp_path / "sr" / "udean-report.html").read_text()


def test_two_runs_give_the_same_bytes(model, tmp_path):
    source = scan(tmp_path / "brain.nii.gz")
    for name, threads in (("one", 1), ("two", 2)):
        assert (
            udean_run("--engine", model, "-o", tmp_path / name, "--threads", threads, source).returncode == 0
        )
    one, two = ((tmp_path / name / "brain_sr.nii.gz").read_bytes() for name in ("one", "two"))
    assert one == two


def test_every_bad_scan_is_one_sentence_and_the_good_ones_are_done(model, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    cases = bad_scans(folder)
    scan(folder / "good.nii.gz")
    scan(folder / "small.nii", (2, 3, 2))
    nib.save(nib.Nifti1Image(np.full((9, 9, 9), 5, np.uint8), np.eye(4)), folder / "constant.nii")
    cases.pop("missing.nii")
    done = udean_run("--engine", model, "-o", tmp_path / "out", folder)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    sentences = done.stderr.splitlines()
    assert len(sentences) == len(cases)
    for name, word in cases.items():
        (sentence,) = (line for line in sentences if f"/{name} " in line.replace(":", " "))
        assert sentence.startswith("Failed: ") and word in sentence
    assert f"3 written, 0 kept, {len(cases)} failed" in done.stdout
    made = {"good_sr.nii.gz", "small_sr.nii", "constant_sr.nii"}
    made |= {"good_sr.json", "small_sr.json", "constant_sr.json", "udean-manifest.jsonl"}
    assert set(os.listdir(tmp_path / "out")) == made
    assert (nib.load(tmp_path / "out" / "constant_sr.nii").get_fdata() == 5).all()


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))


def test_a_full_disk_fails_the_scan_that_does_not_fit_and_leaves_no_part(model, tmp_path):
    scan(tmp_path / "scans" / "big.nii.gz", (40, 40, 10))
    scan(tmp_path / "scans" / "big.nii", (40, 40, 10))
    scan(tmp_path / "scans" / "little.nii", (4, 4, 4))
    done = udean_run("--engine", model, tmp_path / "scans", preexec_fn=limit_file_size)
    assert done.returncode == 2 and "collide" in done.stderr  # big.nii and big.nii.gz share a sidecar
    (tmp_path / "scans" / "big.nii").rename(tmp_path / "scans" / "plain.nii")
    done = udean_run("--engine", model, tmp_path / "scans", preexec_fn=limit_file_size)
    assert done.returncode == 1 and "1 written, 0 kept, 2 failed" in done.stdout
    assert done.stderr.count("File too large") == 2 and "Traceback" not in done.stderr
    assert set(os.listdir(tmp_path / "scans-sr")) == {
        "little_sr.nii",
        "little_sr.json",
        "udean-manifest.jsonl",
    }


def test_where_nothing_can_start_the_code_is_two(model, tmp_path):
    source = scan(tmp_path / "a.nii")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    bare = onnx_model(tmp_path / "bare.onnx", None)
    for arguments, word in (
        (["--engine", model, "-o", tmp_path / "file", source], "output folder"),
        (["--engine", model, "-o", "/proc/none", source], "output folder"),
        (["--engine", model, tmp_path / "empty"], "holds no scan"),
        (["--engine", model, source, tmp_path / "mistyped.nii"], "mistyped.nii does not exist"),
        (["--engine", model, ""], "argument is empty"),
        (["--engine", model, source, "--out="], "argument is empty (--out=)"),
        (["--engine", tmp_path / "none.onnx", source], "does not exist"),
        (["--engine", bare, source], "model card"),
        (["--engine", model, "--overlap", "1.5", source], "overlap"),
        (["--engine", model, "--window", "big", source], "64x64"),
        (["--engine", model, "--precision", "fp16", source], "fp32 or bf16"),
        (["--engine", model, "--device", "tpu", source], "cuda:N"),
        (["--engine", model, "--device", "cuda:999", source], "GPU"),
        (["--engine", model, "--nonsense", source], "nonsense"),
        (["--engine", model], "SCANS"),
    ):
        done = udean_run(*arguments)
        assert done.returncode == 2 and word in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr and not (tmp_path / "sr").exists()


def test_the_processor_goes_on_without_a_gpu_where_asked_for(model, tmp_path):
    source = scan(tmp_path / "a.nii")
    done = udean_run("--engine", model, "--device", "cuda:999", "--fallback", "cpu", source)
    assert done.returncode == 0 and "Going on with openvino" in done.stderr and "1 written" in done.stdout


def test_debug_shows_the_traceback(model, tmp_path):
    done = process("--engine", model, "--debug", "--window", "big", scan(tmp_path / "a.nii"))
    assert done.returncode != 0 and "Traceback" in done.stderr


def test_dry_run_says_what_would_be_done_and_does_nothing(model, tmp_path):
    source = scan(tmp_path / "a.nii")
    done = udean_run("--engine", model, "--dry-run", source)
    assert done.returncode == 0
    assert "20 x 18 x 7 to 40 x 36 x 14, slices along k, at most 3 windows" in done.stdout
    assert "unknown GFLOP" in done.stdout and " MB and " in done.stdout  # this model's card does not say
    assert os.listdir(tmp_path) == ["a.nii"]


def test_a_dry_run_names_every_bad_scan_and_tells_of_the_others(model, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    cases = bad_scans(folder)
    scan(folder / "good.nii.gz")
    done = udean_run("--engine", model, "--dry-run", folder)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "good.nii.gz ->" in done.stdout
    # Nobody looks at voxels: those of four files are what is wrong with them.
    assert done.stderr.count("Would fail: ") == len(done.stderr.splitlines()) >= len(cases) - 5


def test_windows_overlap_and_weighting_can_differ_by_axis(model, tmp_path):
    source = scan(tmp_path / "a.nii")
    one = ["--overlap", "0,0,0.5", "--weighting", "constant,hann,gaussian", "--window", "plane", "--no-crop"]
    done = udean_run("--engine", model, "--dry-run", *one, source)
    assert done.returncode == 0 and "at most 5 windows" in done.stdout, done.stderr
    for wrong in (["--overlap", "0,1"], ["--weighting", "box"], ["--overlap", "x"]):
        assert udean_run("--engine", model, *wrong, source).returncode == 2


def test_the_share_of_the_measured_band_is_the_one_asked_for(tmp_path):
    source, random = tmp_path / "a.nii", np.random.default_rng(0)
    # Blocks, whose sinc is another than their repetition, and a little noise: noise alone would be no tissue.
    blocks = np.kron(random.integers(200, 1000, (5, 5, 4)), np.ones((4, 4, 3)))
    blocks += random.integers(0, 20, blocks.shape)
    nib.save(nib.Nifti1Image(blocks.astype(np.int16), np.diag([1, 1, 2, 1])), source)
    truncating = onnx_model(tmp_path / "sr.onnx", CARD.replace(consistency="truncation"))
    made = {}
    for share in ("off", "1"):
        out = tmp_path / share
        done = udean_run(
            "--engine", truncating, "--consistency", share, "--dtype", "float32", "-o", out, source
        )
        assert done.returncode == 0, done.stderr
        made[share] = nib.load(out / "a_sr.nii").get_fdata()
    assert np.abs(made["1"] - made["off"]).mean() > 1
    wrong = udean_run("--engine", truncating, "--consistency", "much", source)
    assert wrong.returncode == 2 and "0 to 1" in wrong.stderr


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_whole_files_only(model, tmp_path, stop):
    for n in range(30):
        scan(tmp_path / "scans" / f"{n:02}.nii.gz", (64, 64, 24))
    process = subprocess.Popen(
        [*COMMAND, "--engine", str(model), str(tmp_path / "scans")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background of a script inherits a deaf ear for SIGINT; a user's terminal gives none.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    out = tmp_path / "scans-sr"
    deadline = time.monotonic() + 60
    while not (out / "02_sr.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Interrupted" in errors and "Traceback" not in errors
    left = os.listdir(out)
    assert not [name for name in left if name.startswith(".")]
    assert f"Interrupted: {len(list(out.glob('*.json')))} written" in errors
    for name in left:
        if name.endswith(".nii.gz"):
            assert np.asanyarray(nib.load(out / name).dataobj).shape == (128, 128, 48)


def test_killed_at_any_moment_leaves_whole_files_and_resumes(model, tmp_path):
    names = [f"{n}.nii" for n in range(4)] + [f"{n}.nii.gz" for n in range(4, 8)]
    for name in names:
        scan(tmp_path / "scans" / name, (64, 64, 24))
    out = tmp_path / "scans-sr"
    random = np.random.default_rng(7)
    for _ in range(6):
        process = subprocess.Popen(
            [*COMMAND, "--engine", str(model), str(tmp_path / "scans")], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout and "Model" in process.stdout.readline()
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.communicate()
        for sidecar in out.glob("*.json"):
            made = json.loads(sidecar.read_text())["udean"]
            (image,) = out.glob(sidecar.stem + ".nii*")
            assert made["output_sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    done = udean_run("--engine", model, tmp_path / "scans")
    assert done.returncode == 0 and "0 failed" in done.stdout
    left = {path.name for path in out.iterdir()}
    wanted = {name.replace(".", "_sr.", 1) for name in names} | {f"{n}_sr.json" for n in range(8)}
    assert left == wanted | {"udean-manifest.jsonl"}
