"""The driver: its workers, the scans in flight, and what is retried when."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import heapq
import itertools
import os
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from ..cuda.device import is_reachable
from ..errors import RunError, first_line
from ..job import Job
from ..models.card import ModelCard
from ..models.kind import model_kind
from ..run.manifest import Fingerprint, Manifest, Noted, Outcome, Shard
from ..run.run import Settings, is_final
from ..system.files import sweep
from . import workers
from .connection import connect, root_cause
from .workers import About, Make

CORES = 4  # of a worker without a GPU, unless --threads is given: more hardly speed up a single scan
DEPTH = 3  # scans in flight per worker: one being read, one with the network, one being written
DEATHS = 2  # of workers before their scan is set aside: the first may have another cause, the second hardly
TRIES = 4  # for a scan whose files cannot be reached, and for starting a worker
PATIENCE = 30.0  # seconds for scans being written when a run is stopped
TRANSIENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EHOSTDOWN)  # file servers'


@dataclass
class Seat:
    """A worker's place. opening: Ray's reference to the worker's `About`. scans: those in flight, by the
    references to their outcomes, in order."""

    actor: Any = None
    opening: Any = None
    about: About | None = None
    scans: dict[Any, Job] = field(default_factory=dict)
    failures: int = 0
    empty_until: float = 0.0


class Cluster:
    """Ray workers for a cohort; leaving the `with` block ends them.

    Parameters
    ----------
    make
        Opens a worker's engine: `SuperResolver` with its arguments, as a `functools.partial`.
    address
        Of the Ray cluster; see `connection.connect`.

    Raises
    ------
    RunError
        On entering, with what the user can do: no cluster, no GPU, too few cores, no engine.
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
        # The other workers must run the same model at the same precision.
        self._make = functools.partial(self._make, precision=about.info.precision)
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    @property
    def card(self) -> ModelCard:
        return self.about.card

    def describe(self) -> str:
        """The model, its engine and the number of workers, in one line."""
        scale = "x".join(map(str, self.card.scale))
        return f"{self.card.name} ({self.card.method}, {scale}): {self.about.info}, {len(self._seats)} by Ray"

    def run_all(
        self,
        jobs: Sequence[Job],
        settings: Settings | None = None,
        shard: Shard | None = None,
        noted: Noted | None = None,
    ) -> Generator[Outcome]:
        """Resolve every job of the shard, as `run.run_all` does.

        Parameters
        ----------
        jobs
            The scans; paths must mean the same on every machine.
        settings
            How scans are treated.
        shard
            The share of the jobs to do; default: all.
        noted
            Called with each outcome once it is in the manifest.

        Yields
        ------
        Outcome
            As scans are finished. After an interruption, or if the generator is closed, scans being written
            get half a minute to finish.

        Raises
        ------
        RunError
            If another run works on these scans, or no worker can be started any more.
        """
        with Manifest(jobs, shard, noted) as manifest:
            self._manifest, self._settings = manifest, settings or Settings()
            self._todo, self._alone, self._later = deque(manifest.jobs), deque[Job](), []
            self._order, self._deaths, self._tries = itertools.count(), Counter[Job](), Counter[Job]()
            try:
                for outcome in self._outcomes():
                    yield outcome
                    if is_final(outcome):
                        return
            finally:
                self._stop()

    def _places(self) -> tuple[list[Seat], dict[str, Any]]:
        """One seat per GPU, or per few cores; and the resources that an actor requests from Ray."""
        device, engine = str(self._make.keywords["device"]), self._make.keywords["engine"]
        if device.startswith("cuda:"):
            raise RunError("Ray hands out the GPUs: give --device cuda, without a number.")
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if device == "cuda" and not gpus:
            raise RunError("The Ray cluster has no GPU: leave out --device.")
        kind = model_kind(engine)  # ONNX models and the embedded one need PyCUDA's extra on a GPU
        able = find_spec("pycuda") is not None or (kind == "checkpoint" and is_reachable())
        able = able or device == "cuda" or kind == "plan"
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
        while self._todo or self._alone or self._later or any(seat.scans for seat in self._seats):
            self._fill()
            opening = [seat.opening for seat in self._seats if seat.opening and not seat.about]
            outcomes = [reference for seat in self._seats for reference in seat.scans]
            if not (opening or outcomes):
                time.sleep(0.1)  # whatever is to be retried has to wait
                continue
            ready, _ = self._ray.wait([*opening, *outcomes], num_returns=1, timeout=1.0)
            for seat in self._seats:
                if seat.opening in ready and not seat.about:
                    self._opened(seat)
                while reference := next((r for r in seat.scans if r in ready), None):
                    yield from self._finished(seat, reference)

    def _fill(self) -> None:
        """Give every seat a worker, and every worker its scans."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._queue(heapq.heappop(self._later)[2])
        for seat in self._seats[: max(1, len(self._todo) + len(self._alone) + len(self._later))]:
            if seat.actor is None and seat.empty_until <= now:
                self._hire(seat)
        # Round by round, so that the last scans do not queue for one worker while others are idle.
        for depth in range(DEPTH):
            for seat in self._seats:
                if not seat.about or len(seat.scans) != depth:
                    continue
                if self._alone and not seat.scans:
                    self._submit(seat, self._alone.popleft())
                elif self._todo and not any(self._deaths[job] for job in seat.scans.values()):
                    self._submit(seat, self._todo.popleft())

    def _hire(self, seat: Seat) -> None:
        # One call for each scan in flight, and one that stops them.
        actor = self._ray.remote(**self._needs, max_restarts=0, max_concurrency=DEPTH + 1)(workers.Worker)
        seat.actor, seat.about = actor.remote(self._make), None
        seat.opening = seat.actor.open.remote()

    def _fire(self, seat: Seat) -> None:
        if seat.actor is not None:
            self._ray.kill(seat.actor)
        seat.actor = seat.opening = seat.about = None

    def _submit(self, seat: Seat, job: Job) -> None:
        known = self._manifest.known(job)
        seat.scans[seat.actor.resolve.remote(job.absolute(), self._settings, known)] = job

    def _opened(self, seat: Seat) -> None:
        """Handle a worker's report that it is ready, or that it failed."""
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
            raise RunError(f"No further worker can be started: {about}")

    def _vacate(self, seat: Seat) -> None:
        """Leave a seat empty for a while, longer each time."""
        self._fire(seat)
        seat.failures += 1
        seat.empty_until = time.monotonic() + _delay(seat.failures)

    def _finished(self, seat: Seat, reference: Any) -> Generator[Outcome]:
        exceptions, job = self._ray.exceptions, seat.scans[reference]
        try:
            outcome = self._ray.get(reference)
        except exceptions.RayError as error:
            cause = root_cause(error)
            if not isinstance(cause, exceptions.RayError):
                raise cause from None  # with --debug, or a bug of ours
            if isinstance(cause, exceptions.RaySystemError):
                raise RunError(f"Ray cannot continue: {first_line(cause)}") from cause
            yield from self._died(seat)
            return
        del seat.scans[reference]
        self._tries[job] += 1
        if outcome.error in TRANSIENT and self._tries[job] < TRIES:
            self._try_later(job, self._tries[job])
        else:
            yield self._note(outcome, job)

    def _died(self, seat: Seat) -> Generator[Outcome]:
        """After a worker's death, retry each of its scans alone, to find the one that kills workers."""
        node, jobs = seat.about.node if seat.about else "", list(seat.scans.values())
        seat.scans = {}
        self._vacate(seat)
        gone = any(n["NodeID"] == node and not n["Alive"] for n in self._ray.nodes())
        for job in jobs:
            sweep(job.target.parent, job.written)  # its unfinished files
            if gone:
                self._queue(job)  # its machine died: not a scan's fault
            else:
                yield from self._blame(job)

    def _blame(self, job: Job) -> Generator[Outcome]:
        """Count a worker's death against a scan: once may be bad luck."""
        self._deaths[job] += 1
        if self._deaths[job] < DEATHS:
            self._try_later(job, self._deaths[job])
            return
        message = (
            f"{job.source} has killed its worker {DEATHS} times and is set aside: check the scan, "
            f"and try again with --overwrite {job.source} -o {job.root}"
        )
        seen = Fingerprint(job.stamps()[0], "")
        yield self._manifest.note(Outcome(job, "failed", message, input=seen, aside=True))

    def _queue(self, job: Job) -> None:
        """Queue a scan; one that a worker died over gets a worker to itself."""
        (self._alone if self._deaths[job] else self._todo).append(job)

    def _try_later(self, job: Job, tries: int) -> None:
        heapq.heappush(self._later, (time.monotonic() + _delay(tries), next(self._order), job))

    def _note(self, outcome: Outcome, job: Job) -> Outcome:
        """Record an outcome, with the job as the user named it."""
        return self._manifest.note(dataclasses.replace(outcome, job=job))

    def _stop(self) -> None:
        """Start nothing more; let scans being written finish, and record them."""
        scans = {reference: job for seat in self._seats for reference, job in seat.scans.items()}
        if not scans:
            return
        for seat in self._seats:
            if seat.scans:
                seat.actor.stop.remote()
        self._ray.wait(list(scans), num_returns=len(scans), timeout=PATIENCE)
        for reference, job in scans.items():
            with contextlib.suppress(Exception):  # it was in the network for too long, or its worker has died
                if outcome := self._ray.get(reference, timeout=0):
                    self._note(outcome, job)
        for seat in self._seats:
            seat.scans = {}
            self._fire(seat)

    def _leave(self) -> None:
        for seat in self._seats:
            self._fire(seat)
        self._ray.shutdown()


def _delay(tries: int) -> float:
    """Seconds to wait before trying again: twice as long each time."""
    return float(min(60, 2 ** (tries - 1)))
