"""What runs on the cluster's machines: the actor with the engine, the tasks that read and write scans."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from .. import folder
from ..card import ModelCard
from ..engine import EngineInfo
from ..errors import RunError
from ..folder import Loaded, Settings
from ..job import Job
from ..manifest import Known, Outcome
from ..resolver import SuperResolver, Timings

Make: TypeAlias = "functools.partial[SuperResolver]"  # opens an engine: SuperResolver's arguments by name


@dataclass(frozen=True)
class About:
    """What a worker tells of itself. node: the machine, as Ray calls it. udean: the version there."""

    card: ModelCard
    info: EngineInfo
    node: str
    udean: str


@dataclass(frozen=True)
class Restored:
    """An SR scan's voxels, as stored, on their way to its file. loaded: without the scan's voxels."""

    loaded: Loaded
    voxels: NDArray[Any]
    timings: Timings


class Worker:
    """The actor: one engine, loaded once."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._resolve: SuperResolver | None = None

    def open(self) -> About | str:
        """Load the engine; a sentence where that cannot be."""
        import ray

        try:
            self._resolve = resolve = self._make()
        except RunError as error:
            return str(error)
        return About(resolve.card, resolve.engine.info, ray.get_runtime_context().get_node_id(), __version__)

    def restore(self, item: Loaded | Outcome, settings: Settings) -> tuple[bool, Restored | Outcome]:
        """Resolve a scan. The first of the pair says, without the voxels' weight, that it has been done."""
        if isinstance(item, Outcome):
            return True, item

        def run() -> Restored:
            resolve = self._resolve
            assert resolve is not None
            _, voxels = resolve.scan(item.scan, settings.dtype, settings.axis, looks=item.looks)
            assert resolve.timings is not None
            timings = dataclasses.replace(resolve.timings, read=item.seconds)
            scan = dataclasses.replace(item.scan, array=None)
            return Restored(dataclasses.replace(item, scan=scan, looks=[]), voxels, timings)

        return True, folder.guarded(item.job, settings, run)


def files(
    make: Make, about: About, settings: Settings
) -> tuple[Callable[[Job, Known], Loaded | Outcome], Callable[[Restored | Outcome], Outcome]]:
    """The tasks that read and write a worker's scans. Ray sends what they share once, not with every scan."""

    def read(job: Job, known: Known) -> Loaded | Outcome:
        loaded = folder.guarded(
            job, settings, lambda: folder.load(job, _planner(make, about), settings, known)
        )
        if isinstance(loaded, Outcome):
            return loaded
        # A plain array travels without a copy; the file that it came from is not needed any more.
        scan = dataclasses.replace(loaded.scan, array=np.asarray(loaded.scan.array), image=None)
        return dataclasses.replace(loaded, scan=scan)

    def write(step: Restored | Outcome) -> Outcome:
        if isinstance(step, Outcome):
            return step
        resolve, job = _planner(make, about), step.loaded.job
        draft = job.draft(resolve)

        def run() -> Outcome:
            draft.room(step.loaded.header)[...] = step.voxels
            return folder.write(folder.Resolved(step.loaded, draft, step.timings), resolve)

        try:
            return folder.guarded(job, settings, run)
        finally:
            draft.discard()

    return read, write


class _Planner:
    """Stands for a worker's engine where scans are read and written, without loading it."""

    def __init__(self, about: About) -> None:
        self.card, self.info = about.card, about.info

    def __call__(self, windows: NDArray[np.float32]) -> NoReturn:
        raise AssertionError("Only workers run the network.")


def _planner(make: Make, about: About) -> SuperResolver:
    return functools.partial(make, engine=_Planner(about))()
