"""The example for Slurm: a sound script, and what it asks of udean-run, with variables as Slurm sets them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import udean

from .runtime.commands.test_run import scan
from .support.fakes import card, onnx_model

SCRIPT = Path(udean.__file__).parent / "deploy" / "slurm" / "udean-array.sh"
BIN = Path(sys.executable).parent


def submit(task, count, arguments=(), **variables):
    slurm = {
        "SLURM_ARRAY_TASK_ID": task,
        "SLURM_ARRAY_TASK_MAX": count - 1,
        "SLURM_ARRAY_TASK_COUNT": count,
        "SLURM_CPUS_PER_TASK": 1,
        **variables,
    }
    given = {name: str(value) for name, value in slurm.items() if value is not None}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")} | given
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    command = ["bash", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_script_is_sound():
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0
    checked = subprocess.run([BIN / "shellcheck", SCRIPT], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_the_tasks_of_an_array_do_every_scan_once(tmp_path):
    model = onnx_model(tmp_path / "model.onnx", card((2, 2, 2), 3, (16, 16)))
    names = [f"a scan {n}.nii" for n in range(5)]
    for name in names:
        scan(tmp_path / "my scans" / name, (6, 6, 4))
    out = tmp_path / "out"
    done = [submit(n, 2, ["--engine", model, tmp_path / "my scans", "-o", out]) for n in range(2)]
    assert [task.returncode for task in done] == [0, 0], done
    told = "".join(task.stdout for task in done)
    assert all(told.count(f"/{name} ->") == 1 for name in names)
    status = subprocess.run([BIN / "udean-status", out], capture_output=True, text=True)
    assert "5 done, 0 failed, 0 left" in status.stdout


@pytest.mark.parametrize("variables", [{"SLURM_ARRAY_TASK_ID": None}, {"SLURM_ARRAY_TASK_COUNT": 1}])
def test_what_would_be_another_share_is_refused(variables):
    done = submit(3, 4, ["nothing"], **variables)
    assert done.returncode != 0 and "array" in done.stderr
