"""Nothing leaves the machine: no socket but those asked for, no file outside output and cache folder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

BIN = Path(sys.executable).parent
# By these, libraries know an automatic build and keep quiet there; users have none of them.
BUILD = "CI GITHUB_ACTIONS GITLAB_CI CIRCLECI TRAVIS JENKINS_URL BUILD_ID TF_BUILD ORT_DISABLE_TELEMETRY"
CALLS = (
    "trace=connect,sendto,sendmsg,sendmmsg,openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink"
)
pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


@pytest.fixture
def scans(tmp_path):
    (tmp_path / "out" / "scans").mkdir(parents=True)
    data = np.random.default_rng(0).integers(0, 1000, (32, 32, 24)).astype(np.int16)
    for name in ("one", "two"):
        nib.save(nib.Nifti1Image(data, np.diag([1, 1, 2, 1])), tmp_path / "out" / "scans" / f"{name}.nii.gz")
    return tmp_path / "out" / "scans"


def traced(tmp_path, *command, home=True, seconds=300, server=False):
    """Strangers' addresses that a command has called, and files that it has written elsewhere."""
    log, out = tmp_path / "strace.log", tmp_path / "out"
    env = {k: v for k, v in os.environ.items() if k not in BUILD.split() and not k.startswith("XDG_")}
    env["TMPDIR"] = str(tmp_path / "tmp")
    (tmp_path / "tmp").mkdir(exist_ok=True)
    (tmp_path / "home").mkdir(exist_ok=True)
    env = env | {"HOME": str(tmp_path / "home")} if home else {k: v for k, v in env.items() if k != "HOME"}
    line = [
        "strace",
        "-f",
        "-qq",
        "-s",
        "300",
        "-o",
        log,
        "-e",
        CALLS,
        BIN / command[0],
        *map(str, command[1:]),
    ]
    if server:
        line = ["timeout", "-s", "INT", "25", *line]
    done = subprocess.run(line, cwd=out, env=env, capture_output=True, text=True, timeout=seconds)
    assert done.returncode in ((0, 124) if server else (0,)), done.stderr
    text = log.read_text(errors="replace")
    called = [
        line
        for line in text.splitlines()
        if re.search(r"AF_INET6?", line) and not re.search(r'"127\.|"::1"|"::ffff:127\.', line)
    ]
    written = set()
    for name in re.findall(r'(?:openat|open|creat)\((?:AT_FDCWD, )?"([^"]+)", [^)]*O_(?:WRONLY|RDWR)', text):
        if not re.match(r"/dev/|/proc/|/sys/", path := os.path.join(out, name)):
            written.add(path)
    mine = (str(out), str(tmp_path / "tmp"), str(tmp_path / "home" / ".cache" / "udean"))
    left = [path for path in written if not path.startswith(mine) and "__pycache__" not in path]
    return called, sorted(path for path in left if os.path.exists(path))


RUN = ["udean-run", "scans", "-o", "sr"]
COMMANDS = {
    "openvino": [*RUN, "--library", "openvino"],
    "onnxruntime": [*RUN, "--library", "onnxruntime"],
    "simulate": ["udean-simulate", "scans", "-o", "lr"],
    "doctor": ["udean", "doctor"],
    "inspect": ["udean-export", "inspect", Path(__file__).parents[1] / "runtime/models/default.onnx"],
}


@pytest.mark.parametrize("home", [True, False], ids=["home", "no-home"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_calls_nobody_and_writes_nothing_elsewhere(name, home, scans, tmp_path):
    assert traced(tmp_path, *COMMANDS[name], home=home) == ([], [])
    assert not [path for path in (tmp_path / "home").rglob("*") if ".cache/udean" not in str(path)]


def test_a_server_calls_nobody(scans, tmp_path):
    command = ["udean-serve", "--port", "0", "--metrics-port", "0", "--library", "onnxruntime"]
    assert traced(tmp_path, *command, server=True) == ([], [])


def test_export_and_training_call_nobody(scans, tmp_path):
    (tmp_path / "out" / "c.toml").write_text(
        "[network]\nchannels = 8\ngroups = 1\nblocks = 1\ndiscriminator = 4\n"
        "[schedule]\nsteps = 2\nbatch = 2\npatch = 16\n[machine]\nworkers = 0\n"
    )
    groups = ("--source", "scans/one.nii.gz", "--target", "scans/two.nii.gz", "--target-simulated")
    train = ("udean-train", *groups, "--config", "c.toml", "--preset", "compact", "--out", "run")
    assert traced(tmp_path, *train) == ([], [])
    assert traced(tmp_path, "udean-export", "run/checkpoint.pt", "-o", "models", "--allow-untrusted") == (
        [],
        [],
    )


def test_workers_of_a_cluster_call_nobody(scans, tmp_path):
    called, _ = traced(tmp_path, *RUN, "--ray", "--threads", "1")
    assert called == []


def test_a_user_without_name_and_home_is_served(scans, tmp_path):
    """A container's: no passwd entry, HOME unset."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    for folder in (tmp_path, scans.parent, scans):
        os.chmod(folder, 0o777)
    caps = "+dac_override,+dac_read_search"  # as the Python may lie in root's own folder
    become = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", f"--inh-caps={caps}"]
    gone = ("HOME", "USER", "LOGNAME", "CI")
    env = {k: v for k, v in os.environ.items() if k not in gone} | {"TMPDIR": str(tmp_path)}
    command = [*become, f"--ambient-caps={caps}", BIN / "udean-run", scans]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
