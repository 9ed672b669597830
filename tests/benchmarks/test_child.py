"""A process of its own for what is measured: it answers, fails in words, and ends with its parent."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
from udean.benchmarks.child import Child, Failed, in_child


def test_functions_and_objects_answer_from_another_process():
    assert in_child("os:getppid") != in_child("os:getpid")
    with contextlib.closing(Child("collections:Counter", "aab")) as child:
        assert child.ask("most_common", 1) == [("a", 2)] and child.ask("total") == 3


def test_what_goes_wrong_there_is_said_here():
    with pytest.raises(Failed, match="ZeroDivisionError: "):
        in_child("operator:floordiv", 1, 0)
    with pytest.raises(Failed, match=r"ended \(7\): it says nothing"):
        in_child("os:_exit", 7)
    with pytest.raises(Failed, match="not ready after 0 s"):
        Child("time:sleep", 600, limit=0.1)


def test_it_ends_with_its_parent_also_amid_a_computation():
    """A benchmark that is out of time is killed; its processes would compute on beside the next one."""
    script = "from udean.benchmarks.child import Child\nchild = Child('os:getpid')\n"
    script += "print(child.answer, flush=True)\nchild.ask('time:sleep', 600)\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
