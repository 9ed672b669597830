"""The call for a lent GPU: nothing is lost by a step that fails, hangs or does not fit into the time."""

import json
import os
import re
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from udean.benchmarks import common

from . import gpu_check
from .gpu_check import Check, CheckOutcome


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Runs these steps instead of the real ones: the exit code, the JSON after each, and what was printed."""

    def call(*steps, minutes=1.0):
        monkeypatch.setattr(gpu_check, "steps", lambda device, out: list(steps))
        monkeypatch.setattr(gpu_check, "LEAST", 2.0)
        arguments = ["--device", "cpu", "--out", str(tmp_path), "--minutes", str(minutes)]
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", *arguments])
        code = gpu_check.main()
        return code, json.loads((tmp_path / "gpu-check-cpu.json").read_text()), capsys.readouterr().out

    return call


def step(name, code, limit=30.0):
    return Check(name, limit, ("-c", code))


def test_a_step_that_fails_or_hangs_keeps_no_other_from_running(check):
    code, found, said = check(
        step("bad", "print('why 1'); raise SystemExit(3)"),
        step("hangs", "import time; print('begun 2', flush=True); time.sleep(600)", limit=6.0),
        step("good", "import udean.runtime; print('psnr 42.0 dB')"),
    )
    assert code == 1
    assert [s["state"] for s in found["steps"]] == ["failed (3)", "out of time after 6 s", "done"]
    assert [s["told"] for s in found["steps"]] == [["why 1"], ["begun 2"], ["psnr 42.0 dB"]]
    for text in ("why 1", "begun 2", "psnr 42.0 dB", "numpy"):
        assert text in said or text in found


def test_a_training_takes_the_time_that_is_left_and_a_later_call_goes_on(tmp_path, check):
    scans = tmp_path / "hr"
    scans.mkdir()
    for name in "ab":
        nib.save(nib.Nifti1Image(common.textured((80, 72, 12)), np.eye(4)), scans / f"{name}.nii.gz")
    (begun,) = gpu_check.training("compact", scans, tmp_path / "runs" / "one")
    a_few = replace(begun, arguments=(*begun.arguments, "--steps", "2"))
    outcome = gpu_check.run(a_few, 120.0, dict(os.environ))
    assert outcome.state == "done", outcome.told
    assert (tmp_path / "runs" / "one" / "checkpoint.pt").exists()
    (later,) = gpu_check.training("compact", scans, tmp_path / "runs" / "one")
    assert "--resume" in later.arguments and gpu_check.run(later, 120.0, dict(os.environ)).state == "done"
    code, found, _ = check(replace(step("trains", "import time; time.sleep(60)"), goes_on=True), minutes=0.1)
    assert code == 0 and found["steps"][0]["state"] == "to go on"


def test_what_a_bare_machine_lacks_is_named(check, monkeypatch):
    monkeypatch.setattr(gpu_check, "NEEDED", "numpy no_such_module")
    _, found, said = check(step("one", "print(1)"))
    assert found["missing"] == ["no_such_module"] and "Missing here" in said


def test_what_does_not_fit_into_the_time_is_not_begun(check):
    code, found, _ = check(step("late", "print(1)"), minutes=0.02)
    assert code == 1 and found["steps"][0]["state"].startswith("not begun")


def test_figures_are_kept_wherever_they_were_printed(check):
    chatter = "print('5 patches/s'); print('\\n'.join('0' for _ in range(500)))"
    made = Check("speaks", 30.0, ("-c", chatter), "patches/s")
    _, found, said = check(made)
    assert found["steps"][0]["telling"] == ["5 patches/s"] and "5 patches/s" in said
    assert len(found["steps"][0]["told"]) == gpu_check.TAIL


def test_a_table_is_told_by_its_rows(tmp_path):
    """As `udean-bench` prints it."""
    (bench,) = (s for s in gpu_check.steps("cuda", tmp_path) if s.name == "PyTorch against the PyTorch path")
    printed = [
        "┃ engine  ┃ s a volume ┃",
        "│ PyTorch path fp32 │ 1.6  │",
        "Warning: torch is busy",
        "│ torch fp16   │ 0.1  │",
    ]
    rows = [line for line in printed if re.search(bench.telling, line)]
    lines = gpu_check.summary({}, [CheckOutcome("bench", "done", 1.0, [], rows)])
    assert [line.strip() for line in lines[2:]] == [
        "engine s a volume",
        "PyTorch path fp32 1.6",
        "torch fp16 0.1",
    ]


def test_a_step_for_a_library_that_is_not_installed_is_left_out_and_is_no_failure(check):
    code, found, _ = check(Check("library", 30.0, ("-c", "raise SystemExit(1)"), needs=("no-such-library",)))
    assert code == 0 and found["steps"][0]["state"] == "left out: no-such-library not installed"


def test_a_step_that_skips_everything_has_failed(check):
    made = Check("tests", 30.0, ("-c", "print('60 skipped in 1 s')"), "skipped", proof=r"\d+ passed")
    code, found, _ = check(made)
    assert code == 1 and found["steps"][0]["state"] == "failed (it has shown nothing)"


def test_a_later_call_takes_the_steps_that_are_named_and_keeps_the_first_calls_file(
    check, monkeypatch, tmp_path
):
    check(step("one", "print(1)"), step("two", "print(2)"))
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--only", "TWO"])
    assert gpu_check.main() == 0
    later = json.loads((tmp_path / "gpu-check-cpu-two.json").read_text())
    assert [s["name"] for s in later["steps"]] == ["two"]
    assert len(json.loads((tmp_path / "gpu-check-cpu.json").read_text())["steps"]) == 2


def test_the_summary_is_short_whatever_was_printed():
    outcomes = [
        CheckOutcome(f"step {n}", "done", 1.0, [], [f"figure {m} of {n}" for m in range(50)])
        for n in range(5)
    ]
    lines = gpu_check.summary({"gpu": "Some GPU"}, outcomes)
    assert len(lines) <= 40 and lines[0].startswith("Some GPU")
    assert all(any(f"step {n}" in line for line in lines) for n in range(5))
    assert any("figure 49 of 4" in line for line in lines)


def test_the_real_steps_are_commands_that_there_are(tmp_path):
    for device in ("cuda", "cpu"):
        steps = gpu_check.steps(device, tmp_path)
        assert device == "cpu" or sum(s.limit for s in steps) < 20 * 60
        assert len({s.name for s in steps}) == len(steps)
        written = [
            b for s in steps for a, b in zip(s.arguments, s.arguments[1:], strict=False) if a == "--json"
        ]
        assert device == "cpu" or len(set(written)) == len(written)  # none is written over
        for s in steps:
            files = [a for a in s.arguments if a.endswith(".py")]
            modules = [b for a, b in zip(s.arguments, s.arguments[1:], strict=False) if a == "-m"]
            assert all((gpu_check.ROOT / file).is_file() for file in files)
            assert modules or files
            assert all(m == "pytest" or m.startswith("udean.benchmarks.") for m in modules)
