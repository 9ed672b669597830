"""Output problems must not end a command: readers leave, disks are full, terminals know only ASCII, names of
files hold line breaks and codes that terminals obey."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
from typing import Any, TextIO

from ..system.files import printable

# Replacements of our own symbols on terminals without Unicode.
PLAIN = {
    "×": "x",
    "·": "*",
    "±": "+/-",
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "→": "->",
    "≥": ">=",
    "≤": "<=",
}
ERRORS = "udean-plain"


def guard_streams() -> None:
    """Make stdout and stderr take everything: what cannot be written is dropped, what cannot be encoded is
    shown in plain letters. A stream that was closed when the process began is opened on /dev/null, before
    another file gets its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number: this one
    codecs.register_error(ERRORS, _plain)
    sys.stderr = _guarded(sys.stderr, "stderr")
    sys.stdout = _guarded(sys.stdout, "stdout")


def say(text: str, error: bool = False) -> None:
    """Print one line, on stdout or stderr: what is not printable, as it may stand in names, is escaped."""
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


class _Enduring(io.RawIOBase):
    """A stream's bytes. Those that it does not accept are dropped, which is reported once on stderr."""

    def __init__(self, raw: io.FileIO, name: str, owner: TextIO) -> None:
        self._raw, self._name = raw, name
        self._owner = owner  # keeps the file open
        self._told = self._left = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self._left:
            return size
        try:
            written: int | None
            while (written := self._raw.write(data)) is None:  # a full non-blocking pipe
                select.select([], [self._raw], [])
            return written
        except BrokenPipeError:  # the reader has seen enough, as `head` does
            self._left = True
        except OSError as error:
            if not self._told and self._name != "stderr":
                self._told = True
                print(
                    f"{self._name} accepts no more output ({error.strerror}): the rest is lost.",
                    file=sys.stderr,
                )
        return size


def _guarded(stream: TextIO | None, name: str) -> TextIO:
    if stream is None:
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  as long as the process lives
    raw = getattr(getattr(stream, "buffer", None), "raw", getattr(stream, "buffer", None))
    if type(stream) is not io.TextIOWrapper or not isinstance(raw, io.FileIO):
        return stream  # already guarded, or a notebook's
    buffered = io.BufferedWriter(_Enduring(raw, name, stream))
    lines = stream.line_buffering or stream.write_through or name == "stderr"
    return io.TextIOWrapper(buffered, stream.encoding, ERRORS, line_buffering=lines)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    shown = (PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in text)
    return "".join(shown), error.end
