"""Ctrl-C, SIGTERM of a scheduler and SIGHUP of a terminal that is closed: `KeyboardInterrupt` in the main
thread, and never lost.

Libraries turn a KeyboardInterrupt that comes inside them into errors of their own, an ImportError for one, or
print it and go on. So it is remembered that one came.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

INTERRUPTED = 130  # exit code, the shells' for SIGINT
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_came = False


def end_at_once() -> None:
    """Have an interruption end the process with a sentence: for its start, when nothing is written yet.

    Modules in C++ may abort if an exception comes while they are imported.
    """

    def end(*_: Any) -> NoReturn:
        os.write(2, b"Interrupted.\n")
        os._exit(INTERRUPTED)

    _handle(end)


def remember() -> None:
    """Have an interruption raise KeyboardInterrupt, which `check` raises again if it was lost."""

    def interrupt(*_: Any) -> NoReturn:
        global _came
        _came = True
        raise KeyboardInterrupt

    _handle(interrupt)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Around all that a process does: one that was interrupted, and has tidied up, ends here.

    At the interpreter's own end, threads of libraries that are still at work abort the process now and then.
    """
    try:
        yield
    except SystemExit as end:
        if end.code == INTERRUPTED:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise


def came() -> bool:
    """Whether an interruption has come."""
    return _came


def check() -> None:
    """Raise KeyboardInterrupt if an interruption has come, in case that a library has lost it."""
    if _came:
        raise KeyboardInterrupt


def _handle(handler: Any) -> None:
    for stop in STOPS:
        if signal.getsignal(stop) is not signal.SIG_IGN:  # as nohup and a script's & have it
            signal.signal(stop, handler)
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=_by_default)


def _by_default() -> None:
    """Processes of a pool are ended by SIGTERM, and would show a traceback."""
    for stop in STOPS[1:]:
        if getattr(signal.getsignal(stop), "__module__", "") == __name__:
            signal.signal(stop, signal.SIG_DFL)
