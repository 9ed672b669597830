"""Times when streams were busy, from the device's events, on the host's clock; only if traced."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from ..system.trace import Stopwatch


class StreamClock:
    """Times the work on streams while one volume is resolved. stream: an idle one, to set the clock."""

    def __init__(self, cuda: Any, watch: Stopwatch, stream: Any) -> None:
        self._cuda, self._watch = cuda, watch
        self._spans: list[tuple[str, str, Any, Any]] = []
        if watch.trace:
            self._zero = cuda.Event()
            self._zero.record(stream)
            self._zero.synchronize()
            self._host = time.perf_counter()  # when the event passed, to within microseconds

    @contextlib.contextmanager
    def time(self, stage: str, lane: str, stream: Any) -> Iterator[None]:
        """Time the work that the block puts on a stream."""
        if not self._watch.trace:
            yield
            return
        start, stop = self._cuda.Event(), self._cuda.Event()
        start.record(stream)
        yield
        stop.record(stream)
        self._spans.append((stage, lane, start, stop))

    def tell(self) -> None:
        """Hand all spans to the trace, once the streams have finished."""
        if trace := self._watch.trace:
            for stage, lane, *events in self._spans:
                start, stop = (self._host + event.time_since(self._zero) / 1000 for event in events)
                trace.add(stage, self._watch.scan, start, stop, lane)
