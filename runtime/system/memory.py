"""Memory: how much there is, what the user's limit allows, whether an error says that there is too little."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

from ..errors import RunError

NO_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "can't start new thread",
    "allocate memory",
    "failed to map segment",  # of a library that is loaded
)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, whichever library it comes from."""
    refused = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or refused or any(words in str(error) for words in NO_MEMORY):
        return True
    # Libraries in C++ say all kinds of things when an allocation fails.
    return isinstance(error, RuntimeError) and not isinstance(error, RunError) and _at_the_limit()


def of_machine() -> float:
    """Bytes of this machine's memory; infinite if unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


def limit() -> str:
    """The limit of this process for a message; empty if there is none."""
    allowed = _allowed()
    return f" (ulimit -v allows {allowed / 1e9:.1f} GB)" if allowed else ""


def _allowed() -> int | None:
    """Bytes of address space that `ulimit -v` allows, or None for no limit."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _at_the_limit() -> bool:
    """Whether this process has had nearly all of the address space that it may have."""
    allowed = _allowed()
    if not allowed:
        return False
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return False
    peak = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPeak")), 0)
    return peak > 0.9 * allowed
