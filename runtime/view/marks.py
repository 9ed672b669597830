"""`qc.tsv`: a reader's rating of each scan, one row per scan, written atomically.

Source: BIDS 1.10, "Tabular files": tab-separated, a header row, "n/a" for what is missing, no quoting.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from ..errors import RunError
from ..system.files import atomic, lock

NAME = "qc.tsv"
Rating = Literal["good", "bad", "unsure"]
RATINGS: tuple[Rating, ...] = get_args(Rating)
NOTE = 1000  # characters
MISSING = "n/a"


@dataclass(frozen=True)
class Mark:
    """One row. filename: the result's name on the page. timestamp: UTC, ISO 8601."""

    filename: str
    rating: str
    note: str
    timestamp: str


COLUMNS = [field.name for field in fields(Mark)]


class Marks:
    """The table of an output folder; readers in several processes may share it."""

    def __init__(self, root: Path) -> None:
        self.path = root / NAME
        self._turn = threading.Lock()

    def read(self) -> dict[str, Mark]:
        """All rows by file name. Raises RunError if the file is not such a table: it is never overwritten."""
        try:
            lines = self.path.read_text("utf-8-sig").split("\n")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"Cannot read {self.path}: {error}.") from error
        if lines[0].split("\t") != COLUMNS:
            raise RunError(f"{self.path} does not have the columns {', '.join(COLUMNS)}: move it away.")
        rows = [line.split("\t") for line in lines[1:] if line]
        if any(len(row) != len(COLUMNS) for row in rows):
            raise RunError(f"{self.path} has rows that do not match its header: repair it by hand.")
        found = (Mark(*("" if cell == MISSING else cell for cell in row)) for row in rows)
        return {mark.filename: mark for mark in found}

    def write(self, filename: str, rating: str, note: str) -> Mark | None:
        """Set a scan's row; without rating and note it is removed, and None is returned.

        Raises RunError if the rating is invalid, the note too long or the file cannot be written.
        """
        if rating not in (*RATINGS, ""):
            raise RunError(f"'{rating}' is not a rating: take {', '.join(RATINGS)}.")
        note = " ".join("".join(c if c.isprintable() else " " for c in note).split())
        if len(note) > NOTE:
            raise RunError(f"The note has {len(note)} characters: at most {NOTE} are kept.")
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        mark = Mark(filename, rating, note, now) if rating or note else None
        with self._turn, self._locked():
            marks = self.read()
            marks.pop(filename, None)
            if mark:
                marks[filename] = mark
            rows = [COLUMNS, *(astuple(marks[name]) for name in sorted(marks))]
            with atomic(self.path) as file:
                for row in rows:
                    file.write(("\t".join(cell or MISSING for cell in row) + "\n").encode())
        return mark

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from writing between our reading and writing, if the file system has locks."""
        path = self.path.with_name(f".{NAME}.lock")
        try:
            with open(path, "ab") as file:
                with contextlib.suppress(OSError):  # some file systems have none
                    lock(file, wait=True)
                yield
        except OSError as error:
            raise RunError(f"Cannot write {self.path}: {error.strerror or error}.") from error
