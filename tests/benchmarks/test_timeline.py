"""The Gantt picture of a trace, as a command."""

import subprocess
import sys

import pytest
from udean.benchmarks import timeline
from udean.runtime import RunError
from udean.runtime.system.trace import Trace

COMMAND = [sys.executable, "-m", "udean.benchmarks.timeline"]


@pytest.fixture
def file(tmp_path):
    trace = Trace()
    trace.add("load", "", 0.0, 1.0)
    trace.add("decode", "a.nii.gz", 1.0, 1.5, "decode")
    trace.add("network", "a.nii.gz", 1.5, 3.0, "network")
    trace.add("network", "b.nii.gz", 3.25, 4.0, "network")
    trace.write(tmp_path / "trace.json")
    return tmp_path / "trace.json"


def test_a_trace_is_drawn_beside_its_file(file):
    done = subprocess.run([*COMMAND, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_stages_are_summed_once_the_model_is_loaded(file):
    seconds = timeline.stages(timeline.read(file))
    assert seconds == {"decode": 0.5, "network": 2.25, "whole": 3.0}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"traceEvents": [1]}', '{"traceEvents": [{"ph": "X", "name": "a"}]}']
)
def test_what_is_no_trace_is_refused(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(RunError, match=r"other\.json"):
        timeline.read(tmp_path / "other.json")
