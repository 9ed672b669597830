"""The progress of a run: a line for each outcome and, on a terminal, a progress bar."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..run.manifest import Outcome
from .streams import say


class Board:
    """Counts and prints the outcomes of `total` scans; draws a bar inside a `with` block."""

    def __init__(self, total: int) -> None:
        self.done: list[Outcome] = []
        self.counts: Counter[str] = Counter()
        self._total, self._started = total, 0
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._overall = self._bar.add_task("scans", total=total)
        self._current = self._bar.add_task("windows", total=None, visible=False)

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, done: int, every: int) -> None:
        """Report finished windows of the current scan, if this process has one."""
        if not self._started or done <= self._bar.tasks[self._current].completed:
            self._started += 1  # a new scan, with its own remaining time
            self._bar.reset(self._current, total=every, visible=True)
        self._bar.update(self._current, completed=done, total=every)
        before = self._started - 1 + self.counts["kept"] + self.counts["failed"]
        self._bar.update(self._overall, completed=min(before + done / every, self._total))

    def count(self, outcome: Outcome) -> None:
        """Count an outcome that the manifest already holds."""
        self.counts[outcome.status] += 1

    def add(self, outcome: Outcome) -> None:
        """Count and print the outcome of a scan."""
        self.done.append(outcome)
        if not self._started:
            self._bar.update(self._overall, completed=len(self.done))
        tell(outcome)

    def summary(self) -> str:
        return ", ".join(f"{self.counts[status]} {status}" for status in ("written", "kept", "failed"))


def tell(outcome: Outcome) -> None:
    """Print a line about a scan, on stderr if it has failed."""
    job, times = outcome.job, outcome.timings
    if outcome.status == "failed":
        say(f"Failed: {outcome.message}", error=True)
        return
    took = ""
    if times:
        took = (
            f", {times.total:.1f} s (network {times.network:.1f} s, "
            f"{times.computed} of {times.windows} windows computed)"
        )
    say(f"{job.source} -> {job.target}: {outcome.message}{took}")
