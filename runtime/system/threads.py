"""Threads: an iterator that runs ahead of its consumer, and how many cores there are."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import queue
import threading
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def cores(root: Path = Path("/")) -> int:
    """The number of cores that this process may use: those of its affinity, but no more than a container's
    share of processor time corresponds to. Additional threads would be throttled most of the time, and a
    core's second hyper-thread would wait for its first, since both share the units that multiply."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    here = len({_threads_beside(number, root) for number in os.sched_getaffinity(0)})
    share = quota()
    return here if share is None else max(1, min(here, math.ceil(share)))


def _threads_beside(number: int, root: Path) -> str:
    """Processors that share this one's core, itself included. Source: Linux's documentation, cputopology."""
    try:
        return (root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").read_text()
    except OSError:  # not Linux, or hidden
        return str(number)


@functools.cache  # a share that changes during a run is not followed
def quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that control groups allow this process, the least of all levels; None: no
    limit. Source: Linux's documentation, cgroup-v2 ("cpu.max") and sched-bwc ("cpu.cfs_quota_us")."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return None
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container its own group is the root of the mounted hierarchy, whatever its path outside.
        mount = root / "sys/fs/cgroup" / (controllers and "cpu")
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            found.append(_allowed(folder))
            if folder == mount:
                break
    return min((share for share in found if share), default=None)


def _allowed(folder: Path) -> float | None:
    """The limit of one control group, without its parents."""
    try:
        if (folder / "cpu.max").exists():
            most, period = (folder / "cpu.max").read_text().split()
        else:
            most = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text()
        return None if most in ("max", "-1") else int(most) / int(period)
    except (OSError, ValueError):
        return None


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
        except BaseException as error:  # whatever it is, it is re-raised in the consumer
            end = ("error", error)
        finally:
            if isinstance(items, Generator):
                items.close()
        ready.put(end)

    thread = threading.Thread(target=work, daemon=True, name=name)
    try:
        thread.start()  # waits for the thread, so Ctrl-C may come while it does
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
