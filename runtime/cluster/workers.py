"""The code on the cluster's machines: an actor with the engine, which reads, resolves and writes scans."""

from __future__ import annotations

import functools
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeAlias

from ... import __version__
from ..errors import RunError
from ..job import Job
from ..models.card import ModelCard
from ..pipeline.engine import EngineInfo
from ..resolver import SuperResolver
from ..run.manifest import Known, Outcome
from ..run.run import Loaded, Settings, decode, encode, is_large, restore

Make: TypeAlias = "functools.partial[SuperResolver]"  # opens an engine: SuperResolver's arguments by name


@dataclass(frozen=True)
class About:
    """A worker's description of itself. node: Ray's name of the machine. udean: the version there."""

    card: ModelCard
    info: EngineInfo
    node: str
    udean: str


class Stopped(BaseException):
    """The run has been stopped. Not an Exception, so that it does not count as a scan's failure."""


class Worker:
    """The actor: one engine, loaded once, and one thread each for reading, the network and writing.

    Ray calls `resolve` for several scans at once, in threads of its own: while the network processes one, the
    next is read and the previous one is written.
    """

    def __init__(self, make: Make) -> None:
        self._make = make
        self._decoder, self._network, self._encoder = (
            ThreadPoolExecutor(1, name) for name in ("decode", "network", "encode")
        )
        self._behind: Future[Outcome] | None = None  # the scan that left the network last
        self._stopped = False

    def open(self) -> About | str:
        """Load the engine; returns a sentence if that fails."""
        import ray

        try:
            # In the thread that will run it: a CUDA context belongs to a thread.
            self._resolve = resolve = self._network.submit(self._make).result()
        except RunError as error:
            return str(error)
        return About(resolve.card, resolve.engine.info, ray.get_runtime_context().get_node_id(), __version__)

    def resolve(self, job: Job, settings: Settings, known: Known) -> Outcome | None:
        """Read a scan, resolve it and write it; None if the run was stopped before it was written."""
        item = self._decoder.submit(decode, job, self._resolve, settings, known).result()
        try:
            written = self._network.submit(self._restore, item, settings).result()
        except Stopped:
            return None
        return written.result()

    def stop(self) -> None:
        """Finish what is being written and drop everything else."""
        self._stopped = True

    def _restore(self, item: Loaded | Outcome, settings: Settings) -> Future[Outcome]:
        """In the network's thread: resolve a scan and hand it on to be written before the next one starts."""
        if self._behind and is_large(item):
            wait([self._behind])
        self._check()
        step = restore(item, self._resolve, settings, self._check)
        self._behind = self._encoder.submit(encode, step, self._resolve, settings)
        return self._behind

    def _check(self, *_: int) -> None:
        if self._stopped:
            raise Stopped
