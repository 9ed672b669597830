"""Nothing leaves the machine: no socket but those asked for, no file outside output and cache folder.

`strace` shows every call of the processes of a command that could do either.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

BIN = Path(sys.executable).parent
MODEL = Path(__file__).parents[1] / "runtime/models/default.onnx"
# By these, libraries know an automatic build and keep quiet there; users have none of them.
BUILD = "CI GITHUB_ACTIONS GITLAB_CI CIRCLECI TRAVIS JENKINS_URL BUILD_ID TF_BUILD ORT_DISABLE_TELEMETRY"
TRACE = ["strace", "-f", "-qq", "--seccomp-bpf", "-s", "300", "-e"]
CALLS = "bind,connect,sendto,sendmsg,sendmmsg"
FILES = "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink"
pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


@pytest.fixture
def place():
    """A folder of a short name (sockets have at most 107 characters) that any user can reach."""
    with tempfile.TemporaryDirectory(prefix="udean-") as name:
        os.chmod(name, 0o755)
        for part in ("tmp", "home", "out/scans"):
            Path(name, part).mkdir(parents=True)
        data = np.random.default_rng(0).integers(0, 1000, (36, 36, 24)).astype(np.int16)
        for scan in ("one", "two"):
            nib.save(nib.Nifti1Image(data, np.diag([1, 1, 2, 1])), Path(name, f"out/scans/{scan}.nii.gz"))
        yield Path(name)


def surroundings(place, home):
    env = {k: v for k, v in os.environ.items() if k not in BUILD.split() and not k.startswith("XDG_")}
    env |= {"TMPDIR": str(place / "tmp"), "HOME": str(place / "home")}
    return env if home else {k: v for k, v in env.items() if k != "HOME"}


def traced(place, *command, home=True, ready=None, calls=f"{CALLS},{FILES}", codes=(0,)):
    """Strangers' addresses that a command has called or listens on, and what it has written elsewhere.

    ready: what a server says once it listens; it is ended then. calls: of the system, that are traced.
    codes: with which it may end.
    """
    log = place / "strace.log"
    line = [*map(str, (*TRACE, f"trace={calls}", "-o", log, BIN / command[0], *command[1:]))]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen(line, cwd=place / "out", env=surroundings(place, home), **both) as process:
        end = threading.Timer(900, os.killpg, (process.pid, signal.SIGKILL))
        end.start()
        said, told = "", ready is None
        for part in process.stdout:
            said += part
            if not told and re.search(ready, said):
                os.killpg(process.pid, signal.SIGINT)
                told = True
        code = process.wait()
        end.cancel()
    assert code in codes and told, said
    text = log.read_text(errors="replace")
    called = [
        line
        for line in text.splitlines()
        if re.search(r"AF_INET6?", line) and not re.search(r'"127\.|"::1"|"::ffff:127\.', line)
    ]
    written = set()
    to_write = r'(?:openat|open|creat)\((?:AT_FDCWD, )?"([^"]+)", [^)\n]*O_(?:WRONLY|RDWR)'
    for name in re.findall(to_write, text):
        if not re.match(r"/dev/|/proc/|/sys/", path := os.path.join(place / "out", name)):
            written.add(path)
    mine = (str(place / "out"), str(place / "tmp"), str(place / "home/.cache/udean"))
    left = {path for path in written if not path.startswith(mine) and "__pycache__" not in path}
    # Folders too, and whatever else a trace does not show.
    left |= {str(path) for path in (place / "home").rglob("*")} - {str(place / "home/.cache")}
    return called, sorted(path for path in left if not path.startswith(mine) and os.path.exists(path))


RUN = ["udean-run", "scans", "-o", "sr"]
BENCH = ["udean-bench", "--quick", "--shape", "24,24,6", "--repeats", "1", "--commands", "0"]
COMMANDS = {
    "openvino": [*RUN, "--library", "openvino"],
    "onnxruntime": [*RUN, "--library", "onnxruntime"],
    "report": [*RUN, "--library", "onnxruntime", "--report", "--to", "0.8mm"],
    "simulate": ["udean-simulate", "scans", "-o", "lr"],
    "doctor": ["udean", "doctor"],
    "inspect": ["udean-export", "inspect", MODEL],
    "eval": ["udean-eval", "--sr", "scans", "--hr", "scans"],
    "trust": ["udean-trust", "-o", "trust"],
    "bench": [*BENCH, "--engine", "onnxruntime fp32", "--threads", "1", "--json", "."],
    "demo": ["udean-demo", "-o", "demo"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_calls_nobody_and_writes_nothing_elsewhere(name, place):
    assert traced(place, *COMMANDS[name]) == ([], [])


def test_a_bids_app_calls_nobody(place):
    anat = place / "out/bids/sub-01/anat"
    anat.mkdir(parents=True)
    os.link(place / "out/scans/one.nii.gz", anat / "sub-01_T1w.nii.gz")
    (place / "out/bids/dataset_description.json").write_text('{"Name": "one", "BIDSVersion": "1.9.0"}')
    for level in ("participant", "group"):
        assert traced(place, "udean-bids", "bids", "derived", level) == ([], [])
    assert (place / "home/.cache/udean/deno").is_dir(), "the official validator has been asked"
    assert traced(place, "udean-status", "derived") == ([], [])


@pytest.mark.parametrize("name", ["openvino", "doctor"])
def test_nor_does_it_where_there_is_no_home(name, place):
    assert traced(place, *COMMANDS[name], home=False) == ([], [])


def test_servers_call_nobody(place):
    serve = "udean-serve --port 0 --metrics-port 0 --library onnxruntime"
    assert traced(place, *serve.split(), ready="Listening") == ([], [])
    node = "udean-dicom-node --to A@127.0.0.1:9 --allow B --spool spool --port 0 --library onnxruntime"
    assert traced(place, *node.split(), ready="Health and metrics") == ([], [])
    assert traced(place, *RUN, "--library", "onnxruntime") == ([], [])
    assert traced(place, "udean-view", "sr", ready="Look at") == ([], [])


def test_export_and_training_call_nobody(place):
    (place / "out/c.toml").write_text(
        "[network]\nchannels = 8\ngroups = 1\nblocks = 1\ndiscriminator = 4\n"
        "[schedule]\nsteps = 2\nbatch = 2\npatch = 16\n[machine]\nworkers = 0\n"
    )
    groups = ("--source", "scans/one.nii.gz", "--target", "scans/two.nii.gz", "--target-simulated")
    train = ("udean-train", *groups, "--config", "c.toml", "--preset", "compact", "--out", "run")
    assert traced(place, *train) == ([], [])
    assert traced(place, "udean-export", "run/checkpoint.pt", "-o", "models", "--allow-untrusted") == ([], [])


def test_adapting_calls_nobody(place):
    """Scans need not become better: what is traced is how they are read, learned from and judged."""
    rng = np.random.default_rng(0)
    for name, side, size in (("hr/a", 64, 1), ("hr/b", 64, 1), ("lr/c", 32, 2)):
        (place / "out" / name).parent.mkdir(exist_ok=True)
        voxels = np.kron(rng.integers(100, 900, [side // 4] * 3), np.ones((4, 4, 4)))
        voxels = (voxels + rng.normal(0, 20, [side] * 3)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.diag([size, size, size, 1])), place / f"out/{name}.nii.gz")
    adapt = ("udean-adapt", "lr", "--source", "hr", "--minutes", "0.1", "-o", "mine.onnx")
    assert traced(place, *adapt, codes=(0, 1)) == ([], [])


def test_workers_of_a_cluster_call_nobody(place):
    """Nor do the processes that Ray starts; only their calls are traced, as they open files without end."""
    assert traced(place, *RUN, "--ray", calls=CALLS) == ([], [])


def test_a_user_without_name_and_home_is_served(place):
    """A container's: no passwd entry, HOME unset."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    for folder in (place / "out", place / "out/scans", place / "tmp"):
        os.chmod(folder, 0o777)
    caps = "+dac_read_search"  # as the Python may lie in root's own folder
    become = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", f"--inh-caps={caps}"]
    gone = ("HOME", "USER", "LOGNAME", "CI")
    env = {k: v for k, v in os.environ.items() if k not in gone} | {"TMPDIR": str(place / "tmp")}
    command = [*become, f"--ambient-caps={caps}", BIN / "udean-run", place / "out/scans"]
    done = subprocess.run(command, env=env, cwd=place / "out", capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
