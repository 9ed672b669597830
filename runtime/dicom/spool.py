"""A node's spool: series in transit, as folders and small files, so that they survive a kill.

    incoming/SERIES    slices while they arrive; `open-N` while the association N that they come by is open,
                       `refused-N` while a slice is missing that there was no room for
    work/SERIES        finished: restored below `sr`, until the destination has every SR slice; those that
                       it has are lines of `sending`
    quarantine/SERIES-TIME   set aside, with `reason.txt`
    sent/SERIES.json   which slices a series had that has gone out: later ones make no series of their own,
                       even if they say less, or more, of whose they are
    layout             LAYOUT
    studies/STUDY.json numbers of a study's series, so that a result's is free

SERIES and STUDY are hashes of identities: nothing that a peer says is a path. What changes a folder's place
is one rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DiskError, RunError
from ..system.files import atomic, lock, read_json, write_json
from .frame import identity, integer, may_be, require_pydicom

DONE = ".done-"  # begins the name of what was sent and only needs to be removed
MARKER, REFUSED = "open-", "refused-"
NOTE, REASON, SENDING = "note.txt", "reason.txt", "sending"
LAYOUT = b"1\n"  # of the folders and names here: a spool of another one is not touched
HALF = 16  # characters of a series' folder
REMEMBERED = 20_000  # series whose sent slices are remembered; a number, not a time, because clocks jump
BROKEN_OFF = "The sender broke off, or did not repeat what was refused: slices may be missing."


@dataclass(frozen=True)
class SetAside:
    """An entry of the quarantine. name: by which commands know it. since: date and time. size: bytes."""

    name: str
    since: str
    slices: int
    size: int
    reason: str


class Journal:
    """Which SR slices of a series a destination has, by SOP instance: they are not sent there again."""

    def __init__(self, folder: Path, destination: str) -> None:
        self._file, self._end = folder / SENDING, f" {destination}"

    def begin(self) -> None:
        """From now on late slices find a series that has gone out. Raises OSError."""
        self._file.touch()

    def stored(self) -> set[str]:
        """Those it has. Raises OSError."""
        lines = self._file.read_text().splitlines() if self._file.exists() else ()
        return {line.removesuffix(self._end) for line in lines if line.endswith(self._end)}

    def add(self, instance: str) -> None:
        """It has another one. Raises OSError."""
        with open(self._file, "a") as file:
            file.write(f"{instance}{self._end}\n")

    def remove(self, instances: set[str]) -> None:
        """It does not have these after all. Raises OSError or DiskError."""
        kept = sorted(self.stored() - instances)
        with atomic(self._file) as file:
            file.write("".join(f"{instance}{self._end}\n" for instance in kept).encode())


class Spool:
    """The folders of a node. Raises DiskError if they cannot be made, RunError for another version's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming, self.work, self.quarantine, self._sent, self._studies = (
            root / name for name in ("incoming", "work", "quarantine", "sent", "studies")
        )
        self._turn = threading.Lock()
        self._held = None
        layout = root / "layout"
        try:
            for folder in (self.incoming, self.work, self.quarantine, self._sent, self._studies):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not layout.exists() and not any(any(root.rglob(kind)) for kind in ("*.dcm", "*.json")):
                with atomic(layout) as file:
                    file.write(LAYOUT)
            found = layout.read_bytes() if layout.exists() else b""
        except OSError as error:
            raise DiskError(f"Cannot use the spool {root}: {error.strerror or error}.") from error
        if found != LAYOUT:
            raise RunError(
                f"The spool {root} is another version's: let that one finish what waits there, or give a new "
                "folder and send again what lies in incoming, work and quarantine."
            )

    def hold(self) -> None:
        """Become this spool's only node; clean up after a killed one. Raises RunError if another one runs."""
        self._held = open(self.root / "lock", "ab")  # noqa: SIM115  # as long as this process lives
        try:
            lock(self._held)
        except OSError as error:
            raise RunError(f"Another node uses the spool {self.root}.") from error
        for sent in self.work.glob(f"{DONE}*"):
            shutil.rmtree(sent, ignore_errors=True)
        for place in (self._sent, self._studies):
            newest = sorted(place.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
            for file in newest[REMEMBERED:]:
                file.unlink(missing_ok=True)

    def let_go(self) -> None:
        """Leave the spool to another node."""
        if self._held:
            self._held.close()

    def free(self) -> int:
        """Bytes left on its disk."""
        return shutil.disk_usage(self.incoming).free

    # --- slices arrive -----------------------------------------------------------------------------------

    def store(self, series: str, instance: str, data: bytes, token: str, caller: str) -> None:
        """Keep a slice that comes by an association; it is on disk on return. Raises DiskError.

        instance: text by which it is another slice than the others. The same again takes its place; what
        comes under its name and differs is kept beside it, to be judged when all are there.
        """
        folder = self.incoming / series
        with self._turn:
            try:
                folder.mkdir(exist_ok=True, mode=0o700)
                marker = folder / f"{MARKER}{token}"
                if not marker.exists():
                    marker.write_text(caller, "utf-8", "backslashreplace")
            except OSError as error:
                raise DiskError(f"Cannot write {folder}: {error.strerror or error}.") from error
            with atomic(folder / f"{hashed(instance)}-{hashlib.sha256(data).hexdigest()[:8]}.dcm") as file:
                file.write(data)
            (folder / f"{REFUSED}{hashed(instance)}").unlink(missing_ok=True)

    def refuse(self, series: str, instance: str) -> None:
        """Remember that a slice was not kept: its sender may not repeat it. Best effort, on a full disk."""
        with self._turn, contextlib.suppress(OSError):
            (self.incoming / series).mkdir(exist_ok=True, mode=0o700)
            (self.incoming / series / f"{REFUSED}{hashed(instance)}").touch()

    def lacks(self, series: str) -> bool:
        """Whether slices of an incoming series were refused and have not come since."""
        return any((self.incoming / series).glob(f"{REFUSED}*"))

    def markers(self, series: str) -> dict[str, str]:
        """Associations that brought slices of an incoming series and were not released: their callers."""
        found = {}
        for marker in (self.incoming / series).glob(f"{MARKER}*"):
            with contextlib.suppress(FileNotFoundError):
                found[marker.name.removeprefix(MARKER)] = marker.read_text("utf-8")
        return found

    def released(self, series: str, tokens: set[str]) -> None:
        """These associations were released: they have sent all their slices of a series."""
        for token in tokens:
            (self.incoming / series / f"{MARKER}{token}").unlink(missing_ok=True)

    # --- a series is finished ----------------------------------------------------------------------------

    def finish(self, series: str, broken_off: bool) -> str | None:
        """Take a series to work, or aside; returns the reason then. Raises OSError if the disk fails.

        What is of a series that waits in work or was set aside, and of which nothing has gone out, joins it.
        Of a series that has gone out only a sending that has all of its slices is taken.
        """
        with self._turn:
            folder, work = self.incoming / series, self.work / series
            if not folder.is_dir() or (work / SENDING).exists():
                return None
            if broken_off:
                (folder / NOTE).write_text(BROKEN_OFF)
            for marker in (*folder.glob(f"{MARKER}*"), *folder.glob(f"{REFUSED}*")):
                marker.unlink()
            if not _slices(folder):  # all were refused
                shutil.rmtree(folder)
                return None
            here = _slices(folder)
            mine = _note(self._sent / f"{series}.json")
            for note in (mine, *self._related(folder, series)):
                gone = set(note.get("slices", ()))
                if gone and not gone <= here:
                    reason = (
                        f"{len(here)} slices came after a series of {len(gone)} slices had gone out "
                        f"({note.get('time', '')}): send the whole series again to have it restored again."
                    )
                    self.set_aside(folder, series, reason)
                    return reason
            for earlier in self.quarantine.glob(f"{series}-*"):
                if _slices(earlier) <= here:
                    shutil.rmtree(earlier)
                elif not mine:
                    _join(earlier, folder)
            if work.exists():
                shutil.rmtree(work / "sr", ignore_errors=True)  # made of fewer slices
                _join(folder, work, replace=True)
            else:
                os.replace(folder, work)
            return None

    def done(self, folder: Path) -> None:
        """Forget a series that has gone out, all but that it has. Raises DiskError, OSError."""
        self.remember(folder)
        done = self.work / f"{DONE}{folder.name}-{time.time_ns()}"
        os.replace(folder, done)  # in one step: a part of a series would be restored as a whole one
        shutil.rmtree(done, ignore_errors=True)

    def remember(self, folder: Path) -> None:
        """Record which slices of a series have been sent, perhaps in part. Raises DiskError."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        note = {"time": now, "whose": _whose(folder), "slices": sorted(_slices(folder))}
        write_json(self._sent / f"{folder.name}.json", note)

    def _related(self, folder: Path, series: str) -> list[dict[str, Any]]:
        """What has gone out of slices of the same UID that told less, or more, of whose they are.

        Raises OSError or DiskError.
        """
        notes = [file for file in self._sent.glob(f"{series[:HALF]}*.json") if file.stem != series]
        whose = _whose(folder) if notes else []
        return [note for note in map(_note, notes) if may_be(whose, note.get("whose", ()))]

    def set_aside(self, folder: Path, series: str, reason: str) -> None:
        """To quarantine, with the reason beside the slices. Raises OSError if the disk fails."""
        (folder / REASON).write_text(reason + "\n", "utf-8", "backslashreplace")
        os.replace(folder, self.quarantine / f"{series}-{time.time_ns()}")

    def taken(self, study: str, series: str) -> set[int]:
        """Numbers of other series of a study, and of their results, as far as they passed here."""
        known = read_json(self._studies / f"{hashed(study)}.json")
        return {integer(n) for name, numbers in known.items() if name != series for n in numbers}

    def number(self, study: str, series: str, numbers: set[int]) -> None:
        """Record the numbers of a series and its results. Raises DiskError."""
        file = self._studies / f"{hashed(study)}.json"
        write_json(file, read_json(file) | {series: sorted(numbers)}, None)

    def relatives(self, series: str) -> list[Path]:
        """Slices that wait in other folders under the UID of a series: they say otherwise whose they are."""
        places = (self.incoming, self.work, self.quarantine)
        found = (file for place in places for file in place.glob(f"{series[:HALF]}*/*.dcm"))
        return sorted(file for file in found if not file.parent.name.startswith(series))

    # --- an operator looks ------------------------------------------------------------------------------

    def waiting(self) -> dict[str, int]:
        """The number of series in each place."""
        places = {"incoming": self.incoming, "work": self.work, "quarantine": self.quarantine}
        return {name: len(folders(place)) for name, place in places.items()}

    def aside(self) -> list[SetAside]:
        """The quarantine's entries, oldest first."""
        entries = sorted(folders(self.quarantine), key=lambda folder: folder.name.rpartition("-")[2])
        found = []
        for folder in entries:
            with contextlib.suppress(FileNotFoundError):  # an operator has just put it back
                reason = folder / REASON
                text = reason.read_text("utf-8").strip() if reason.exists() else "no reason is known"
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                since = time.strftime("%Y-%m-%d %H:%M", time.localtime(folder.stat().st_ctime))
                found.append(SetAside(folder.name, since, len(_slices(folder)), size, text))
        return found

    def bound(self, limit: int | None) -> list[SetAside]:
        """Remove the oldest entries of the quarantine until it has at most so many bytes; returns those.

        None: no limit. The newest entry stays in any case. By order, not by age, because clocks jump.
        """
        entries = self.aside() if limit is not None else []
        dropped = []
        while limit is not None and len(entries) > 1 and sum(entry.size for entry in entries) > limit:
            dropped.append(entries.pop(0))
            shutil.rmtree(self.quarantine / dropped[-1].name, ignore_errors=True)
        return dropped

    def retry(self, name: str) -> None:
        """Move a set-aside series back to its previous place. Raises RunError if there is none."""
        folder = self._entry(name)
        shutil.rmtree(folder / "sr", ignore_errors=True)
        for note in (REASON, SENDING):
            (folder / note).unlink(missing_ok=True)
        target = self.incoming / name.rpartition("-")[0]
        try:
            os.replace(folder, target)
        except OSError:  # more of it has come meanwhile
            _join(folder, target)

    def drop(self, name: str) -> None:
        """Remove a set-aside series permanently. Raises RunError if there is none."""
        shutil.rmtree(self._entry(name))

    def _entry(self, name: str) -> Path:
        folder = self.quarantine / name
        if folder not in folders(self.quarantine):
            raise RunError(f"No series named {name} is set aside; `queue` lists those that are.")
        return folder


def folders(place: Path) -> list[Path]:
    """The folders of series in a part of the spool; anything else there is left alone."""
    return sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))


def series_name(dataset: Any) -> str:
    """The folder of a slice's series, unique to its patient; its first half is the series' alone.

    Raises AttributeError without a UID.
    """
    series = hashed(repr([str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID)]))
    return series[:HALF] + hashed(repr(identity(dataset)))[HALF:]


def hashed(text: str) -> str:
    """A file name derived from a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _whose(folder: Path) -> list[str]:
    """The identity that a folder's slices share, as hashes; "" for what they do not tell. Raises OSError."""
    try:
        head = require_pydicom().dcmread(next(folder.glob("*.dcm")), stop_before_pixels=True, force=True)
        return [hashed(text) if text else "" for text in identity(head)]
    except OSError:
        raise
    except Exception:  # a damaged file may raise anything
        return []


def _note(path: Path) -> dict[str, Any]:
    """What is noted of a series that has gone out, empty if none has. Raises DiskError if it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DiskError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise DiskError(f"Cannot read {path}: it is damaged.") from error


def _slices(folder: Path) -> set[str]:
    """The names of a folder's slices; files that differ may have one."""
    return {_slice(path) for path in folder.glob("*.dcm")}


def _slice(path: Path) -> str:
    return path.stem.partition("-")[0]


def _join(folder: Path, other: Path, replace: bool = False) -> None:
    """Move a folder's slices, and the notes about them, to another folder.

    replace: slices of the same name there, which are older then.
    """
    here, there = _slices(folder), _slices(other)
    for path in other.glob("*.dcm") if replace else ():
        if _slice(path) in here and not (folder / path.name).exists():
            path.unlink()
    for path in folder.glob("*.dcm"):
        if replace or _slice(path) not in there:
            os.replace(path, other / path.name)
    if (folder / NOTE).exists() and (replace or not (other / NOTE).exists()):
        os.replace(folder / NOTE, other / NOTE)
    shutil.rmtree(folder, ignore_errors=True)
