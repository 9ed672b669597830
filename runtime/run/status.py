"""`udean-status OUT`: the progress of an output folder's runs, from its manifests.

Nothing is written and nothing locked for longer than a look, so it may be asked at any time, from any machine
that sees the folder.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..system.files import is_locked
from .manifest import NAME, Shard, lines, manifests, read, run_of, time_of

DONE = ("written", "kept")


@dataclass(frozen=True)
class Standing:
    """The progress of an output folder. failed: (scan, reason). waiting: shards that have not started.

    per_hour: scans written, over the running or else the last runs; 0 if unknown.
    """

    done: int
    failed: list[tuple[str, str]]
    left: int
    per_hour: float
    running: int
    waiting: list[int]

    def __str__(self) -> str:
        parts = [f"{self.done} done, {len(self.failed)} failed, {self.left} left"]
        if self.per_hour:
            parts.append(f"{self.per_hour:.0f} scans an hour")
        if self.running and self.per_hour and self.left:
            parts.append(f"{self.left / self.per_hour:.1f} hours to go")
        parts.append(f"{self.running} at work" if self.running else "nobody at work")
        if self.waiting:
            parts.append(
                "not begun: " + ("shard " if len(self.waiting) == 1 else "shards ") + _join(self.waiting)
            )
        return ", ".join(parts)


def standing(root: Path) -> Standing:
    """Read the progress from the manifests. Raises RunError if there are none."""
    found = manifests(root)
    if not found:
        raise RunError(f"{root} contains no manifest of a run: give udean-run's output folder.")
    scans = read(root).values()
    done = sum(line.get("status") in DONE for line in scans)
    failed = [(_text(s, "source"), _text(s, "message")) for s in scans if s.get("status") == "failed"]
    queued = sum(line.get("status") == "queued" for line in scans)

    last = [run for path in found if (run := _last_run(lines(path), is_locked(path)))]
    running = [run for run in last if run.running]
    per_hour = sum(run.written / run.seconds * 3600 for run in running or last if run.seconds)

    # Shards that have not started have no manifest; the others record the total.
    newest = NAME.fullmatch(max(found, key=lambda path: max(map(run_of, lines(path)), default=0)).name)
    count = int(newest["count"] or 1) if newest else 1
    names = {path.name for path in found}
    waiting = [n for n in range(count) if count > 1 and Shard(n, count).manifest not in names]
    every = max((run.of for run in last), default=0) if waiting else 0
    left = queued + max(0, every - len(scans))
    return Standing(done, sorted(failed), left, per_hour, len(running), waiting)


@dataclass(frozen=True)
class _Run:
    """The last run of a manifest: scans written, in how many seconds, and scans of all its shards."""

    written: int
    seconds: float
    of: int
    running: bool


def _last_run(found: list[dict[str, Any]], running: bool) -> _Run | None:
    begun = next((n for n in reversed(range(len(found))) if found[n].get("status") == "run"), None)
    if begun is None:
        return None
    since = [line for line in found[begun + 1 :] if line.get("status") != "queued"]
    start = time_of(found[begun])
    end = time.time() if running else max(map(time_of, since), default=start)
    of = found[begun].get("of")
    written = sum(line.get("status") == "written" for line in since)
    return _Run(written, max(0.0, end - start), of if isinstance(of, int) else 0, running)


def _text(line: dict[str, Any], name: str) -> str:
    return str(line.get(name, ""))


def _join(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
