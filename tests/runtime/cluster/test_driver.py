"""`--ray` as a user meets it: a real cluster on this machine, real processes, some of them killed."""

import collections
import contextlib
import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from udean.runtime.run.manifest import Shard
from udean.runtime.run.status import standing

from ...support.fakes import card, onnx_model
from ..commands.test_run import COMMAND, scan, udean_run
from ..dicom.test_series import classic

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs Ray")
PATIENCE = 240  # a busy machine starts Ray in a minute; an idle one in five seconds


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return onnx_model(tmp_path_factory.mktemp("model") / "sr.onnx", card((2, 2, 2), 3, (16, 16)), "conv")


HEAD = """
import sys, ray
ray.init("local", num_cpus=2, num_gpus=0, object_store_memory=100 << 20, include_dashboard=False,
         log_to_driver=False, logging_level="ERROR")
print("address", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def cluster():
    """The environment in which a cluster of two cores is reached; one for the whole module."""
    word = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = os.environ | word | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120"}
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    said = next((line for line in head.stdout if line.startswith("address")), "address none")
    yield environment | {"RAY_ADDRESS": said.split()[1]}
    head.communicate()


@pytest.fixture
def cohort(tmp_path):
    for n in range(6):
        scan(tmp_path / "scans" / f"{n}.nii{'.gz' * (n % 2)}", (20 + n, 18, 7))
    (tmp_path / "scans" / "bad.nii").write_bytes(b"bad")
    return tmp_path / "scans"


def ray_run(cluster, *arguments, **options):
    return udean_run("--ray", "--threads", "1", *arguments, env=cluster, timeout=PATIENCE, **options)


def contents(folder):
    """The scans; what a killed process was at is none."""
    return {p.name: p.read_bytes() for p in folder.glob("*.nii*") if p.suffix != ".part"}


def written(out):
    """How often each scan was written, over all runs."""
    lines = [json.loads(line) for line in (out / Shard().manifest).read_text().splitlines()]
    return collections.Counter(line["target"] for line in lines if line["status"] == "written")


def workers(file=""):
    """The processes of workers that have a file of this name mapped into their memory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            maps = (process / "maps").read_text()
            if (process / "cmdline").read_bytes().startswith(b"ray::Worker") and file in maps:
                found.append(int(process.name))
    return found


def until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def test_the_same_bytes_and_the_same_resume_as_without(cluster, model, cohort, tmp_path):
    classic(cohort / "dicom", shape=(5, 20, 18))
    voxels = np.random.default_rng(0).integers(0, 255, (9, 8, 5)).astype(np.uint8)
    nib.save(nib.MGHImage(voxels, np.eye(4)), cohort / "orig.mgz")
    plain = udean_run("--engine", model, "-o", tmp_path / "plain", cohort)
    done = ray_run(cluster, "--engine", model, "-o", "by ray", "scans", cwd=tmp_path)
    assert done.returncode == plain.returncode == 1, done.stderr
    assert "2 by Ray" in done.stdout and "8 written, 0 kept, 1 failed" in done.stdout
    assert done.stderr.count("\n") == 1 and "bad.nii is not a NIfTI" in done.stderr
    assert contents(tmp_path / "plain") == contents(tmp_path / "by ray")
    assert (
        len(contents(tmp_path / "by ray")) == 7 and len(os.listdir(tmp_path / "by ray" / "series-003")) == 10
    )
    sidecar = json.loads((tmp_path / "by ray" / "0_sr.json").read_text())
    assert sidecar["Sources"] == ["../scans/0.nii"] and sidecar["udean"]["timings"]["windows"] > 0
    by_ray = ray_run(cluster, "--engine", model, "-o", tmp_path / "plain", cohort)
    again = udean_run("--engine", model, "-o", tmp_path / "by ray", cohort)
    for kept in (by_ray, again):
        assert "0 written, 8 kept, 1 failed" in kept.stdout, kept.stderr


def test_a_scan_that_kills_its_worker_twice_is_set_aside_and_named(cluster, model, cohort, tmp_path):
    (cohort / "bad.nii").unlink()
    scan(cohort / "3 killer.nii", (128, 128, 120))
    out = tmp_path / "out"
    command = ["--ray", "--engine", str(model), "--threads", "1", "-o", str(out)]
    command += ["--window", "32x32", "--overlap", "0.8"]  # half a minute of it, in which it can be killed
    process = subprocess.Popen(
        [*COMMAND, *command, str(cohort)],
        env=cluster,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    killed = []
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and len(killed) < 2 and time.monotonic() < deadline:
        for pid in set(workers("3 killer_sr.nii")) - set(killed):
            time.sleep(1)  # the scan before it is written and noted meanwhile
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        time.sleep(0.05)
    output, errors = process.communicate(timeout=PATIENCE)
    assert len(killed) == 2 and process.returncode == 1, errors
    assert "6 written, 0 kept, 1 failed" in output
    failures = [line for line in errors.splitlines() if line.startswith("Failed: ")]
    assert len(failures) == 1 and "3 killer.nii has killed its worker 2 times" in failures[0]
    assert set(written(out).values()) == {1}
    assert not [name for name in os.listdir(out) if name.endswith(".part")]
    again = udean_run(
        "--engine", model, "--window", "32x32", "--overlap", "0.8", "-o", out, cohort
    )  # it stays aside, without Ray too
    assert "0 written, 6 kept, 1 failed" in again.stdout and "killed its worker" in again.stderr


def test_a_driver_that_is_killed_leaves_every_scan_whole_and_done_once(cluster, model, tmp_path):
    for n in range(12):
        scan(tmp_path / "scans" / f"{n:02}.nii.gz", (32, 32, 12))
    out = tmp_path / "out"
    command = ["--ray", "--engine", str(model), "--threads", "1", "-o", str(out), str(tmp_path / "scans")]
    first = subprocess.Popen([*COMMAND, *command], env=cluster, stdout=subprocess.DEVNULL)
    until(lambda: (out / Shard().manifest).exists() and len(written(out)) >= 3)
    first.kill()
    first.communicate()
    until(lambda: not workers())  # Ray ends what belongs to a driver that is gone
    before = contents(out)
    second = ray_run(cluster, *command[1:])
    assert second.returncode == 0 and "0 failed" in second.stdout, second.stderr
    counts = written(out)
    assert set(counts.values()) == {1} and standing(out).done == 12 and standing(out).left == 0
    assert before.items() <= contents(out).items() and len(contents(out)) == 12
    assert not [name for name in os.listdir(out) if name.endswith(".part")]


def test_an_interruption_is_as_clean_as_without(cluster, model, tmp_path):
    for n in range(12):
        scan(tmp_path / "scans" / f"{n:02}.nii", (32, 32, 12))
    out = tmp_path / "out"
    command = ["--ray", "--engine", str(model), "--threads", "1", "-o", str(out), str(tmp_path / "scans")]
    process = subprocess.Popen(
        [*COMMAND, *command], env=cluster, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    until(lambda: (out / Shard().manifest).exists() and written(out))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and b"Interrupted" in errors and b"Traceback" not in errors
    done = {path.name.removesuffix(".json") for path in out.glob("*.json")}
    assert done == {name.removesuffix(".nii") for name in contents(out)}
    assert done == {target.removesuffix(".nii") for target in written(out)}
    assert not [name for name in os.listdir(out) if name.endswith(".part")]


def test_what_cannot_start_is_one_sentence(cluster, model, tmp_path):
    source = scan(tmp_path / "a.nii")
    bare = onnx_model(tmp_path / "bare.onnx", None)
    for arguments, word in (
        (["--engine", bare], "model card"),
        (["--engine", model, "--device", "cuda"], "no GPU"),
        (["--engine", model, "--device", "cuda:0"], "without a number"),
        (["--engine", model, "--threads", "3"], "fewer --threads"),
        (["--engine", model, "--ray-address", "ray://127.0.0.1:1"], "--ray-address auto"),
        (["--engine", model, "--ray-address", "scans/"], "not 'scans/'"),
        (["--engine", model, "head:6379"], "--ray-address head:6379"),
        (["--engine", model, "--profile", tmp_path / "p.json"], "--profile"),
    ):
        done = udean_run("--ray", *arguments, source, env=cluster, timeout=PATIENCE)
        assert done.returncode == 2 and word in done.stderr, (arguments, done.stderr)
        assert done.stderr.count("\n") == 1 and not (tmp_path / "sr").exists()


def test_without_an_address_this_machine_is_the_cluster(model, tmp_path):
    source = scan(tmp_path / "a.nii")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = udean_run("--ray", "--engine", model, source, env=environment, timeout=PATIENCE)
    assert done.returncode == 0 and "1 written" in done.stdout, done.stderr


def test_without_ray_the_sentence_says_how_to_get_it(model, tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise ImportError('No module named ray')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = udean_run("--ray", "--engine", model, scan(tmp_path / "a.nii"), env=environment)
    assert done.returncode == 2 and "pip install 'udean[cluster]'" in done.stderr
