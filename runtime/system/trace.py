"""Timing: how long each stage was busy and, if requested, when.

A `Stopwatch` adds up each stage's seconds, always. A `Trace` keeps every stretch of work with the thread or
CUDA stream that did it, and writes them as Chrome trace JSON, which Perfetto and chrome://tracing show.
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .files import write_json


@dataclass(frozen=True)
class Span:
    """Work on one stage without a break. lane: thread or stream. start, stop: seconds of `perf_counter`."""

    stage: str
    scan: str
    lane: str
    start: float
    stop: float


class Trace:
    """Spans of a process, from any thread, since the trace was made."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._start = time.perf_counter()

    def add(self, stage: str, scan: str, start: float, stop: float, lane: str | None = None) -> None:
        """Keep a span; without lane it was the calling thread's."""
        self.spans.append(Span(stage, scan, lane or threading.current_thread().name, start, stop))

    def shares(self) -> str:
        """Seconds of each stage, and their share of the time since the trace was made, in one line.

        Stages overlap, and a GPU's streams run in parallel, so shares may add up to more than the whole.
        """
        total = time.perf_counter() - self._start
        seconds: dict[str, float] = collections.defaultdict(float)
        for span in self.spans:
            seconds[span.stage] += span.stop - span.start
        parts = [f"{stage} {s:.2f} s ({s / total:.0%})" for stage, s in seconds.items()]
        return f"{', '.join(parts)} of {total:.2f} s"

    def write(self, path: Path) -> None:
        """Write the trace atomically. Raises RunError if the system refuses.

        Source: the Trace Event Format's complete events (X) and metadata (M); times in microseconds.
        """
        lanes = {lane: n for n, lane in enumerate(dict.fromkeys(span.lane for span in self.spans))}
        common = {"pid": os.getpid()}
        events: list[dict[str, object]] = [
            {"ph": "M", "name": "thread_name", **common, "tid": n, "args": {"name": lane}}
            for lane, n in lanes.items()
        ]
        for span in sorted(self.spans, key=lambda span: span.start):
            begun, took = span.start - self._start, span.stop - span.start
            events.append(
                {"ph": "X", "name": span.stage, **common, "tid": lanes[span.lane]}
                | {"ts": round(begun * 1e6, 1), "dur": round(took * 1e6, 1), "args": {"scan": span.scan}}
            )
        write_json(path, {"displayTimeUnit": "ms", "traceEvents": events}, indent=None)


@contextlib.contextmanager
def span(trace: Trace | None, stage: str, scan: str = "") -> Iterator[None]:
    """Record the block as a span of the calling thread, if there is a trace."""
    start = time.perf_counter()
    try:
        yield
    finally:
        if trace:
            trace.add(stage, scan, start, time.perf_counter())


@dataclass
class Stopwatch:
    """Seconds that each stage was busy on a scan, and how many windows went through.

    trace: also gets the times, if given. scan: its name in the trace.
    """

    trace: Trace | None = None
    scan: str = ""
    seconds: dict[str, float] = field(default_factory=lambda: collections.defaultdict(float))
    windows: int = 0
    computed: int = 0

    @contextlib.contextmanager
    def time(self, stage: str, label: str = "") -> Iterator[None]:
        """Add the block's duration to the stage; a stage belongs to one thread. label: for the trace."""
        start = time.perf_counter()
        try:
            yield
        finally:
            stop = time.perf_counter()
            self.seconds[stage] += stop - start
            if self.trace:
                self.trace.add(label or stage, self.scan, start, stop)
