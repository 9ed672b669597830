"""What a command says must not end its work: readers leave, disks are full, terminals know ASCII only."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
from typing import Any, TextIO

# What terminals without Unicode are shown in place of signs that we use ourselves.
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
    shown in plain letters. A stream that was closed when the process began stands for /dev/null, before
    another file takes its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number: this one
    codecs.register_error(ERRORS, _plain)
    sys.stderr = _guarded(sys.stderr, "stderr")
    sys.stdout = _guarded(sys.stdout, "stdout")


class _Enduring(io.RawIOBase):
    """A stream's bytes. Those that it does not take are dropped, and stderr is told so once."""

    def __init__(self, raw: io.FileIO, name: str, owner: TextIO) -> None:
        self._raw, self._name = raw, name
        self._owner = owner  # which would close the file if it went
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
            while (written := self._raw.write(data)) is None:  # a pipe that does not block, and is full
                select.select([], [self._raw], [])
            return written
        except BrokenPipeError:  # the reader has seen enough, as `head` does
            self._left = True
        except OSError as error:
            if not self._told and self._name != "stderr":
                self._told = True
                print(
                    f"{self._name} takes no more ({error.strerror}): what it misses is lost.", file=sys.stderr
                )
        return size


def _guarded(stream: TextIO | None, name: str) -> TextIO:
    if stream is None:
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  as long as the process lives
    raw = getattr(getattr(stream, "buffer", None), "raw", getattr(stream, "buffer", None))
    if type(stream) is not io.TextIOWrapper or not isinstance(raw, io.FileIO):
        return stream  # guarded already, or a notebook's
    buffered = io.BufferedWriter(_Enduring(raw, name, stream))
    lines = stream.line_buffering or stream.write_through or name == "stderr"
    return io.TextIOWrapper(buffered, stream.encoding, ERRORS, line_buffering=lines)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    shown = (PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in text)
    return "".join(shown), error.end
