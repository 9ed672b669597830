"""Too little memory, in whatever words a library says so."""

import errno
import sys

import pytest
from udean.runtime import RunError
from udean.runtime.job import Job
from udean.runtime.run.run import Settings, guarded
from udean.runtime.system.extras import require
from udean.runtime.system.memory import lacks_memory

WORDS = [
    MemoryError("Unable to allocate 3. GiB for an array"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("can't start new thread"),
    RuntimeError("std::bad_alloc"),
    ImportError("libx.so: failed to map segment from shared object"),
]


@pytest.mark.parametrize("error", WORDS, ids=str)
def test_a_scan_that_fails_for_lack_of_memory_says_so(error, tmp_path):
    job = Job(tmp_path / "a.nii", tmp_path / "a_sr.nii", tmp_path)

    def fail():
        raise error

    assert lacks_memory(error)
    assert "does not fit into this machine's memory" in guarded(job, Settings(), fail).message


def test_other_errors_are_not_taken_for_it(tmp_path):
    assert not lacks_memory(RuntimeError("shapes differ")) and not lacks_memory(RunError("No such file."))


def test_a_library_that_memory_is_too_small_for_is_not_said_to_be_missing(monkeypatch):
    class Full:
        def find_spec(self, name, *_):
            if name == "some_library":
                raise ImportError("some.so: failed to map segment from shared object")

    monkeypatch.setattr(sys, "meta_path", [Full(), *sys.meta_path])
    with pytest.raises(RunError, match=r"not enough memory.* to load some_library\.$"):
        require("some_library", "cpu")
