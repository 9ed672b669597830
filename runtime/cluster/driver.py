"""The driver: who works, which scans are in flight, what is tried again, and when."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import heapq
import importlib.util
import itertools
import os
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ..card import ModelCard
from ..errors import RunError
from ..folder import Settings, is_final
from ..job import Job
from ..manifest import Manifest, Outcome, Shard, Trace
from . import workers
from .connection import connect, first_line, root_cause
from .workers import About, Make

CORES = 4  # of a worker without a GPU, unless --threads says so: more give little to one scan
DEPTH = 3  # scans in flight a worker: one being read, one with the network, one being written
DEATHS = 2  # of workers, before their scan is set aside
TRIES = 4  # of a scan whose files cannot be reached, and of starting a worker
PATIENCE = 30.0  # seconds that scans being written get when a worker dies or a run is stopped
TRANSIENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EHOSTDOWN)  # of file servers


@dataclass
class Chain:
    """A scan in flight, as Ray's references: what says that it has been resolved, and its outcome."""

    job: Job
    resolved: Any
    outcome: Any


@dataclass
class Seat:
    """A worker's place. opening: what it tells of itself, as Ray's reference. tasks: read and write scans.
    chains: in order."""

    actor: Any = None
    opening: Any = None
    about: About | None = None
    tasks: tuple[Any, Any] | None = None
    chains: list[Chain] = field(default_factory=list)
    failures: int = 0
    empty_until: float = 0.0


class Cluster:
    """Workers, ready for a cohort; leaving the `with` block ends them.

    make: opens a worker's engine. address: see `connect`. Raises RunError with what the user can do.
    """

    def __init__(self, make: Make, address: str | None = None) -> None:
        engine = make.keywords.get("engine")
        # Workers may have another working folder.
        self._make: Make = functools.partial(make, engine=engine and Path(os.path.abspath(engine)))
        self._address = address
        self._seats: list[Seat] = []
        self._ray: Any = None

    def __enter__(self) -> Self:
        self._ray = connect(self._address)
        try:
            self._seats, self._needs = self._places()
            self._hire(self._seats[0])
            about = self._ray.get(self._seats[0].opening)
            if isinstance(about, str):
                raise RunError(about)
        except BaseException:
            self._leave()
            raise
        self.about = self._seats[0].about = about
        # The other workers shall run the same model at the same precision.
        self._make = functools.partial(self._make, precision=about.info.precision)
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    @property
    def card(self) -> ModelCard:
        return self.about.card

    def describe(self) -> str:
        """The model, what runs it, and how many workers do, in one line."""
        scale = "x".join(map(str, self.card.scale))
        return f"{self.card.name} ({self.card.method}, {scale}): {self.about.info}, {len(self._seats)} by Ray"

    def run_all(
        self, jobs: Sequence[Job], settings: Settings | None = None, shard: Shard | None = None
    ) -> Generator[Outcome]:
        """Resolve every job of the shard, as `folder.run_all` does; outcomes come as scans are finished.

        Closing the generator, or an interruption, gives the scans being written half a minute.
        """
        with Manifest(jobs, shard) as manifest:
            self._manifest, self._settings = manifest, settings or Settings()
            self._todo, self._later = deque(manifest.jobs), []
            self._order, self._deaths, self._tries = itertools.count(), Counter[Job](), Counter[Job]()
            for seat in self._seats:
                seat.tasks = None  # another run's
            try:
                for outcome in self._outcomes():
                    yield outcome
                    if is_final(outcome):
                        return
            finally:
                self._stop()

    def _places(self) -> tuple[list[Seat], dict[str, Any]]:
        """A seat for each GPU, or for every few cores; and what an actor asks Ray for."""
        device, engine = str(self._make.keywords["device"]), self._make.keywords["engine"]
        if device.startswith("cuda:"):
            raise RunError("Ray hands out the GPUs: give --device cuda, without a number.")
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if device == "cuda" and not gpus:
            raise RunError("The Ray cluster has no GPU: leave out --device.")
        plan = engine is not None and engine.suffix.lower() == ".plan"
        able = device == "cuda" or plan or importlib.util.find_spec("pycuda") is not None
        if gpus and able and device != "cpu":
            return [Seat() for _ in range(gpus)], {"num_gpus": 1, "num_cpus": 1}
        cores = [int(node.get("CPU", 0)) for node in nodes]
        each = self._make.keywords["threads"] or min(CORES, max(1, *cores))
        seats = sum(count // each for count in cores)
        if not seats:
            raise RunError(f"No machine of the Ray cluster has {each} cores: give fewer --threads.")
        self._make = functools.partial(self._make, threads=each, device="cpu")
        return [Seat() for _ in range(seats)], {"num_cpus": each}

    def _outcomes(self) -> Generator[Outcome]:
        while self._todo or self._later or any(seat.chains for seat in self._seats):
            self._fill()
            opening = [seat.opening for seat in self._seats if seat.opening and not seat.about]
            outcomes = [chain.outcome for seat in self._seats for chain in seat.chains]
            if not (opening or outcomes):
                time.sleep(0.1)  # whatever is to be tried again has to wait
                continue
            ready, _ = self._ray.wait([*opening, *outcomes], num_returns=1, timeout=1.0)
            for seat in self._seats:
                if seat.opening in ready and not seat.about:
                    self._opened(seat)
                while chain := next((c for c in seat.chains if c.outcome in ready), None):
                    yield from self._finished(seat, chain)

    def _fill(self) -> None:
        """Give every seat a worker, and every worker its scans."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._todo.append(heapq.heappop(self._later)[2])
        for seat in self._seats[: max(1, len(self._todo) + len(self._later))]:
            if seat.actor is None and seat.empty_until <= now:
                self._hire(seat)
        # Round by round, so that the last scans do not queue for one worker while others are idle.
        for depth in range(DEPTH):
            for seat in self._seats:
                if self._todo and seat.about and len(seat.chains) == depth:
                    self._submit(seat, seat.about, self._todo.popleft())

    def _hire(self, seat: Seat) -> None:
        actor = self._ray.remote(**self._needs, max_restarts=0)(workers.Worker)
        seat.actor, seat.about = actor.remote(self._make), None
        seat.opening = seat.actor.open.remote()

    def _fire(self, seat: Seat) -> None:
        if seat.actor is not None:
            self._ray.kill(seat.actor)
        seat.actor = seat.opening = seat.about = seat.tasks = None

    def _submit(self, seat: Seat, about: About, job: Job) -> None:
        """Send a scan through a seat's worker, with reading before it and writing after."""
        read, write = seat.tasks = seat.tasks or self._tasks(about)
        loaded = read.remote(job.absolute(), self._manifest.known(job))
        resolved, restored = seat.actor.restore.options(num_returns=2).remote(loaded, self._settings)
        seat.chains.append(Chain(job, resolved, write.remote(restored)))

    def _tasks(self, about: About) -> tuple[Any, Any]:
        """Reading and writing on a worker's machine."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(about.node, soft=False)
        # Without a core of their own: they are short, and no more than DEPTH allows.
        task = self._ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)
        read, write = workers.files(self._make, about, self._settings)
        return task(read), task(write)

    def _opened(self, seat: Seat) -> None:
        """A worker says that it is ready, or not."""
        try:
            about = self._ray.get(seat.opening)
        except self._ray.exceptions.RayError as error:
            about = first_line(error)
        wanted = self.about.info
        if isinstance(about, About):
            info = about.info
            same = (info.sha256, info.precision) == (wanted.sha256, wanted.precision)
            if same and about.udean == self.about.udean:
                seat.about, seat.failures = about, 0
                return
            about = (
                f"one runs {info.model} by udean {about.udean} and {info}, another {wanted.model} by udean "
                f"{self.about.udean} and {wanted}."
            )
        self._vacate(seat)
        if all(other.failures >= TRIES for other in self._seats):
            raise RunError(f"No worker can be started any more: {about}")

    def _vacate(self, seat: Seat) -> None:
        """Leave a seat empty for a while, longer each time."""
        self._fire(seat)
        seat.failures += 1
        seat.empty_until = time.monotonic() + _delay(seat.failures)

    def _finished(self, seat: Seat, chain: Chain) -> Generator[Outcome]:
        exceptions = self._ray.exceptions
        try:
            outcome = self._outcome(chain)
        except exceptions.RayError as error:
            cause = root_cause(error)
            if isinstance(cause, exceptions.RayActorError):
                yield from self._died(seat)
                return
            seat.chains.remove(chain)
            if not isinstance(cause, exceptions.RayError):
                raise cause from None  # with --debug, or a fault of ours
            if isinstance(cause, exceptions.RaySystemError):
                raise RunError(f"Ray cannot go on: {first_line(cause)}") from cause
            yield from self._blame(chain.job)  # it has killed who was reading or writing it
            return
        seat.chains.remove(chain)
        self._tries[chain.job] += 1
        if outcome.error in TRANSIENT and self._tries[chain.job] < TRIES:
            self._try_later(chain.job, self._tries[chain.job])
        else:
            yield self._manifest.note(outcome)

    def _died(self, seat: Seat) -> Generator[Outcome]:
        """Who was with the network has killed the worker; the others begin again without blame."""
        node, chains = seat.about.node if seat.about else "", seat.chains
        seat.chains = []
        suspect = None
        for chain in chains:
            resolved = self._is_resolved(chain)
            with contextlib.suppress(self._ray.exceptions.RayError):
                if resolved:
                    yield self._manifest.note(self._outcome(chain, PATIENCE))
                    continue
            if resolved or suspect:
                self._todo.append(chain.job)
            else:
                suspect = chain.job
        self._vacate(seat)
        if suspect and any(n["NodeID"] == node and not n["Alive"] for n in self._ray.nodes()):
            self._todo.append(suspect)  # the machine has gone: no scan's fault
        elif suspect:
            yield from self._blame(suspect)

    def _blame(self, job: Job) -> Generator[Outcome]:
        """A process has died over a scan: once may be bad luck."""
        self._deaths[job] += 1
        if self._deaths[job] < DEATHS:
            self._try_later(job, self._deaths[job])
            return
        message = (
            f"{job.source} has killed its worker {DEATHS} times and is set aside: see what is wrong with it, "
            f"and try again with --overwrite {job.source} -o {job.root}"
        )
        seen = Trace(job.stamps()[0], "")
        yield self._manifest.note(Outcome(job, "failed", message, input=seen, aside=True))

    def _try_later(self, job: Job, tries: int) -> None:
        heapq.heappush(self._later, (time.monotonic() + _delay(tries), next(self._order), job))

    def _is_resolved(self, chain: Chain) -> bool:
        try:
            return bool(self._ray.get(chain.resolved, timeout=0))
        except self._ray.exceptions.RayError:
            return False

    def _outcome(self, chain: Chain, timeout: float | None = None) -> Outcome:
        """A chain's outcome, with the job as the user has named it."""
        return dataclasses.replace(self._ray.get(chain.outcome, timeout=timeout), job=chain.job)

    def _stop(self) -> None:
        """Start nothing more; what is being written gets its time, and is noted."""
        chains = [chain for seat in self._seats for chain in seat.chains]
        if not chains:
            return
        for seat in self._seats:
            seat.chains = []
            self._fire(seat)
        self._ray.wait([chain.outcome for chain in chains], num_returns=len(chains), timeout=PATIENCE)
        for chain in chains:
            with contextlib.suppress(Exception):  # it was with the network, and is left to another run
                self._manifest.note(self._outcome(chain, 0))

    def _leave(self) -> None:
        for seat in self._seats:
            self._fire(seat)
        self._ray.shutdown()


def _delay(tries: int) -> float:
    """Seconds to wait before trying again: twice as long each time."""
    return float(min(60, 2 ** (tries - 1)))
