"""Threads: an iterator that runs ahead of its consumer, and how many cores there are."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def cores() -> int:
    """The processor's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ahead(items: Iterable[T], name: str | None = None) -> Generator[T, None, None]:
    """Run an iterator in a thread of its own, of this name, one item ahead of the consumer.

    Its exception is raised here; closing this generator stops the thread and closes the iterator.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(1)
    stop = threading.Event()

    def work() -> None:
        end: tuple[str, Any] = ("end", None)
        try:
            for item in items:
                ready.put(("item", item))
                if stop.is_set():
                    break
        except BaseException as error:  # carried to the consumer, whatever it is
            end = ("error", error)
        finally:
            if isinstance(items, Generator):
                items.close()
        ready.put(end)

    thread = threading.Thread(target=work, daemon=True, name=name)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                ready.get(timeout=0.01)
        thread.join()
