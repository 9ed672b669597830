"""A process of its own for what is measured: no threads and no allocator of others, its own peak of memory.

What does not finish, such as a compilation, can be stopped.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import pkgutil
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from ..runtime.errors import RunError

PERIOD = 0.5  # seconds between looks at the parent


class Failed(RunError):
    """Something could not be measured; the message says why."""


class Child:
    """Calls a function, or makes an object and calls its methods, in a new process.

    name: of the function or class, "module:name". limit: seconds that the first call may take. Raises Failed.
    """

    def __init__(self, name: str, *arguments: Any, limit: float | None = None) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed with the process
        self._link, theirs = Pipe()
        command = [sys.executable, "-m", __name__, str(theirs.fileno()), str(os.getpid())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdout=self._errors,
                stderr=self._errors,
                start_new_session=True,
            )
        try:
            self.answer = self.ask(name, *arguments, limit=limit)
        except BaseException:
            self.close()
            raise

    def ask(self, name: str, *arguments: Any, limit: float | None = None) -> Any:
        """The answer of a method."""
        try:
            self._link.send((name, arguments))
            if not self._link.poll(limit):
                raise Failed(f"It was not ready after {limit:.0f} s.")
            failed, answer = self._link.recv()
        except (EOFError, ConnectionError):
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines() or ["it says nothing"]
            raise Failed(f"Its process ended ({self._process.returncode}): {said[-1]}") from None
        if failed:
            raise Failed(answer)
        return answer

    def close(self) -> None:
        """Stop the process and those it started: a compiler has many."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._link.close()
        self._errors.close()


def in_child(name: str, *arguments: Any) -> Any:
    """The result of a function that runs in a process of its own. Raises Failed."""
    with contextlib.closing(Child(name, *arguments)) as child:
        return child.answer


def memory_now(name: str) -> int:
    """Bytes that the kernel counts: VmRSS resident now, VmHWM at most (pages of mapped files included)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux: the peak since the process began, in kB or (macOS) bytes
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def forget_peak() -> None:
    """Reset the high-water mark to the current resident size."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _end_with(parent: int) -> None:
    """End this process soon after its parent has ended, even during a computation."""
    while os.getppid() == parent:
        time.sleep(PERIOD)
    os._exit(1)


def main() -> None:
    """Answer the parent's calls until it closes the pipe."""
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    link, held = Connection(int(sys.argv[1])), None
    with contextlib.suppress(EOFError):
        while True:
            call = link.recv_bytes()
            try:
                name, arguments = pickle.loads(call)
                target = getattr(held, name) if held else pkgutil.resolve_name(name)
                answer = target(*arguments)
                if isinstance(target, type):
                    held, answer = answer, None
                link.send((False, answer))
            except Exception as error:  # any error at all is reported to the parent
                name = "" if isinstance(error, RunError) else f"{type(error).__name__}: "
                link.send((True, name + (str(error).strip().splitlines() or [""])[0]))


if __name__ == "__main__":
    main()
