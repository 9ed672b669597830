"""The manifest: the outcome of every scan of an output folder, one line of JSON per event, one writer.

A run appends a line that it has begun, one for each scan that is new to the folder ("queued"), and one for
each outcome. The last line about a scan counts, whichever run or shard has written it: runs of a folder are
counted, since clocks of several machines differ. A resumed run relies on it: files that are unchanged since
their line are not read again, and a scan that was set aside stays so.

Each shard has a manifest of its own and locks it while it runs, so that two runs never work on one scan.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, TypeAlias

from ..errors import RunError
from ..job import Job, Stamp
from ..resolver import Timings
from ..system.files import is_locked, lock, read_json

NAME = re.compile(r"udean-manifest(-(?P<number>\d+)-of-(?P<count>\d+))?\.jsonl")

log = logging.getLogger("udean")


@dataclass(frozen=True)
class Fingerprint:
    """A file's stamp and its SHA-256 at that time; if the stamp still matches, so does the hash."""

    stamp: Stamp
    sha256: str


@dataclass(frozen=True)
class Known:
    """A scan's entry in the manifest: its files when it was done; why it was set aside, else None.

    foreign: whether a file lay in the result's place before any run had the scan.
    """

    input: Fingerprint | None = None
    output: Fingerprint | None = None
    aside: str | None = None
    foreign: bool = False


@dataclass(frozen=True)
class Outcome:
    """The outcome of a scan. `message` says why it failed, or what was done.

    error: number of the system's error that made it fail. aside: whether resumed runs shall leave it out.
    """

    job: Job
    status: Literal["written", "kept", "failed"]
    message: str
    timings: Timings | None = None
    input: Fingerprint | None = None
    output: Fingerprint | None = None
    error: int | None = None
    aside: bool = False


Noted: TypeAlias = "Callable[[Outcome], None]"


@dataclass(frozen=True)
class Shard:
    """Share `number` (from 0) of `count` in which scans are divided.

    By a hash of the result's name: a scan stays in its shard when others come or go, also while the shards
    start one after the other. Shards of n scans then differ by about √n.
    """

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise RunError(f"There is no shard {self.number} of {self.count}: they count from 0.")

    def of(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs of this share."""
        return [job for job in jobs if self._share(job) == self.number]

    def _share(self, job: Job) -> int:
        name = os.fsencode(os.path.relpath(job.target, job.root))
        return int.from_bytes(hashlib.sha256(name).digest()[:8]) % self.count

    @property
    def suffix(self) -> str:
        """The suffix of its own files: "-2-of-8"; empty if there is only one share."""
        return "" if self.count == 1 else f"-{self.number}-of-{self.count}"

    @property
    def manifest(self) -> str:
        """The file's name."""
        return f"udean-manifest{self.suffix}.jsonl"


class Manifest:
    """The manifests of a run, one in each of its output folders, locked until `close`.

    noted: told of each outcome once it stands there. Raises RunError if one cannot be written, or another
    run works on the same scans.
    """

    def __init__(self, jobs: Sequence[Job], shard: Shard | None = None, noted: Noted | None = None) -> None:
        shard = shard or Shard()
        self.jobs = shard.of(jobs)
        self._noted = noted
        self._files: dict[Path, BinaryIO] = {}
        self._known: dict[Path, Known] = {}
        self._run: dict[Path, int] = {}
        try:
            for root in sorted({job.root for job in jobs}):
                self._files[root] = _open(root, shard)
                self._begin(root, shard, jobs)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the locks."""
        while self._files:
            _, file = self._files.popitem()
            with contextlib.suppress(OSError):
                file.close()

    def known(self, job: Job) -> Known:
        """The entry of a scan."""
        return self._known.get(job.target, Known())

    def note(self, outcome: Outcome) -> Outcome:
        """Add an outcome; if that fails, return a failure instead."""
        line = {
            **_names(outcome.job),
            "status": outcome.status,
            "message": outcome.message,
            "input": outcome.input and dataclasses.astuple(outcome.input),
            "output": outcome.output and dataclasses.astuple(outcome.output),
            "seconds": outcome.timings and round(outcome.timings.total, 3),
            "aside": outcome.aside,
            "foreign": outcome.status == "failed" and self.known(outcome.job).foreign,
        }
        try:
            self._write(outcome.job.root, [{name: value for name, value in line.items() if value}])
        except RunError as error:
            if outcome.status != "failed":
                outcome = failure(outcome.job, error)
        if self._noted:
            self._noted(outcome)
        return outcome

    def _begin(self, root: Path, shard: Shard, jobs: Sequence[Job]) -> None:
        mine = [job for job in self.jobs if job.root == root]
        every = sum(job.root == root for job in jobs)
        found = read(root)
        self._run[root] = 1 + max(
            (run_of(line) for path in manifests(root) for line in lines(path)), default=0
        )
        self._write(root, [{"status": "run", "scans": len(mine), "of": every}])  # a full disk shows here
        new = []
        for job in mine:
            names = _names(job)
            line = found.get(names["target"])
            foreign = (line is None or bool(line.get("foreign"))) and _is_foreign(job)
            self._known[job.target] = dataclasses.replace(_known(line or {}), foreign=foreign)
            if line is None:
                new.append(
                    {**names, "status": "queued", "message": "", **({"foreign": True} if foreign else {})}
                )
        if new:
            self._write(root, new)

    def _write(self, root: Path, lines: Iterable[dict[str, Any]]) -> None:
        mark = {"time": round(time.time(), 3), "run": self._run[root]}
        file = self._files[root]
        try:
            data = "".join(json.dumps({**mark, **line}) + "\n" for line in lines).encode()
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RunError(f"Cannot write {file.name}: {error.strerror or error}.") from error


def failure(job: Job, error: RunError) -> Outcome:
    """The outcome of a scan that failed for a reason that the user can fix."""
    cause = error.__cause__
    return Outcome(job, "failed", str(error), error=cause.errno if isinstance(cause, OSError) else None)


def read(root: Path) -> dict[str, dict[str, Any]]:
    """The last line about each scan of an output folder, by its result's name, of all its manifests."""
    found: dict[str, dict[str, Any]] = {}
    for path in manifests(root):
        own = {line["target"]: line for line in lines(path) if isinstance(line.get("target"), str)}
        for target, line in own.items():
            other = found.get(target, {})
            if (run_of(line), time_of(line)) >= (run_of(other), time_of(other)):
                found[target] = line
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    """A manifest's lines, without unfinished ones of a killed run."""
    found = []
    with contextlib.suppress(OSError):
        for text in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict):
                    found.append(line)
    return found


def manifests(root: Path) -> list[Path]:
    """The manifests of an output folder."""
    found = root.glob("udean-manifest*.jsonl")
    return sorted(path for path in found if NAME.fullmatch(path.name) and path.is_file())


def _open(root: Path, shard: Shard) -> BinaryIO:
    path = root / shard.manifest
    if path.is_file() and path.stat().st_size and not lines(path):
        raise RunError(f"{path} already exists and was not made by udean: choose another folder with -o.")
    try:
        file = path.open("a+b", buffering=0)  # and so locked, for the whole run
        if file.seek(0, os.SEEK_END) and not _ends_a_line(file):
            file.write(b"\n")
    except OSError as error:
        raise RunError(
            f"Cannot write {path}: {error.strerror or error}. Choose another folder with -o."
        ) from (error)
    try:
        lock(file)
        for other in manifests(root):
            match = NAME.fullmatch(other.name)
            if match and int(match["count"] or 1) != shard.count and is_locked(other):
                raise BlockingIOError
    except BlockingIOError:
        file.close()
        raise RunError(
            f"Another run writes into {root}: wait for it or stop it. Several runs share a folder as shards: "
            "the same --num-shards, each its own --shard."
        ) from None
    except OSError:
        log.warning("%s lies on a file system without locks: let no other run write there.", root)
    return file


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _names(job: Job) -> dict[str, str]:
    return {
        "source": os.path.relpath(job.source, job.root),
        "target": os.path.relpath(job.target, job.root),
    }


def _known(line: dict[str, Any]) -> Known:
    return Known(
        _trace(line.get("input")), _trace(line.get("output")), line["message"] if line.get("aside") else None
    )


def _trace(value: Any) -> Fingerprint | None:
    """A fingerprint from JSON; None if it is not one."""
    try:
        stamp, digest = value
        size, modified, changed = stamp
        return Fingerprint((int(size), int(modified), int(changed)), str(digest))
    except (TypeError, ValueError):
        return None


def _is_foreign(job: Job) -> bool:
    """Whether a file lies in a result's place that no run has made, by its sidecar."""
    there = os.path.lexists(job.target) or os.path.lexists(job.sidecar)
    return there and "udean" not in read_json(job.sidecar)


def run_of(line: dict[str, Any]) -> int:
    """The number of the run that wrote a line, among those of its folder; 0 if unknown."""
    value = line.get("run")
    return value if isinstance(value, int) else 0


def time_of(line: dict[str, Any]) -> float:
    """When a line was written, seconds since 1970; 0 if unknown."""
    value = line.get("time")
    return float(value) if isinstance(value, int | float) else 0.0
