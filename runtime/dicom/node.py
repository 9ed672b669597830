"""A DICOM node between scanner and archive: takes MR series, restores each finished one, sends it on.

A series is finished when each association that brought slices of it has been released and nothing has come
for a while, or long after a sender broke off. It is forgotten when the archive has every SR slice and, if it
offers storage commitment, has committed them. After transient failures (a full disk, an archive that is
unreachable or out of resources, a failing GPU) it is retried for ever; otherwise it is set aside with the
reason. A slice is on disk before its sender gets "success", and new UIDs are derived from the old ones: a
restarted node continues, and never sends the same image under two UIDs.

Source: DICOM PS3.4, B (storage service class), PS3.7, 9.1.1 (C-STORE) and C (status codes).
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cuda.device import GpuError
from ..errors import DiskError, RunError
from ..resolver import SuperResolver
from ..system.log import log
from ..system.memory import lacks_memory, limit
from ..system.metrics import Metrics
from .commitment import FOR_A_WHILE, SUCCESS, Commitments
from .frame import Frame, require_pydicom
from .jobs import dicom_jobs
from .listen import Admission, is_bomb, listen
from .send import TIMEOUT, Peer, Refused, Undelivered, instances, send
from .series import find_series
from .spool import NOTE, SENDING, Journal, Spool, folders, series_name
from .tls import tls_context

OUT_OF_RESOURCES, NO_MATCH = 0xA700, 0xA900
FREE = 1 << 30  # bytes that stay free on the spool's disk
POLL = 0.25  # seconds between looks at the spool
FAREWELL = 5.0  # seconds for senders to be told, at the end, that they are aborted
ATTEMPTS = 5  # permanent refusals of a slice before its series is set aside
BACKOFF, LONGEST = 1.5, 600.0  # growth of the time between attempts; its maximum, seconds
GROWTH = 50  # attempts until it is certainly reached: what grows for ever overflows after twelve days
PATIENCE = 3600.0  # seconds for an archive to commit a series, before it is asked again
COUNTERS = {
    "slices": "Slices received, and SR slices sent.",
    "refused": "Slices refused, by status.",
    "series": "Series, by outcome of an attempt.",
    "network_seconds": "Seconds that the network was busy.",
}


@dataclass(frozen=True)
class NodeSettings:
    """The configuration of a node.

    Parameters
    ----------
    me, destination
        Title and address of this node, and of the archive that gets the SR series.
    callers
        The titles that may send.
    spool
        Folder for series in transit.
    quiet
        Seconds without a slice after which a series is finished, once the associations that it came by were
        released.
    retry
        Seconds to the second attempt; later ones wait longer.
    abandoned
        As `quiet`, after a sender that broke off.
    idle
        Seconds without a byte after which an association is cut.
    associations, share
        Served at once, in all and from one address.
    certificate, key, authority
        PEM files: this node's certificate and key, and the authority of the peers' certificates.
    tls_in, tls_out
        Whether senders, and the destination, are spoken to by TLS.
    aside
        Bytes of what is set aside beyond which the oldest series there is removed; None for no limit.
    """

    me: Peer
    destination: Peer
    callers: tuple[str, ...]
    spool: Path
    quiet: float = 15.0
    retry: float = 30.0
    abandoned: float = 3600.0
    idle: float = 600.0
    associations: int = 64
    share: int = 32
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None
    tls_in: bool = False
    tls_out: bool = False
    aside: int | None = None


@dataclass
class _Link:
    """An association: its token on disk, who it is, when it began and last brought a slice, and of what."""

    token: str
    caller: str
    thread: threading.Thread
    began: float
    last: float
    series: set[str] = field(default_factory=set)


@dataclass
class Attempts:
    """The attempts made at a series. later: when it may be tried again.

    asked: when the destination was last asked for storage commitment; awaited: of which instances.
    """

    count: int = 0
    refused: int = 0
    later: float = 0.0
    asked: float | None = None
    awaited: set[str] = field(default_factory=set)


class Node:
    """A DICOM node: listens from the start; `run` restores and sends, until `stop`.

    Parameters
    ----------
    resolve
        The network.
    settings
        The node's configuration.

    Raises
    ------
    RunError
        If pydicom is missing, the port is not available, or another node uses the spool; DiskError, a kind of
        it, if the spool cannot be made.
    """

    def __init__(self, resolve: SuperResolver, settings: NodeSettings) -> None:
        require_pydicom()
        self._resolve, self._settings = resolve, settings
        self._stop, self._turn = threading.Event(), threading.Lock()
        self._start = time.monotonic()
        self._links: dict[Any, _Link] = {}
        self._touched: dict[str, float] = {}  # when an incoming series last changed
        self._releases: dict[str, list[tuple[str, float]]] = defaultdict(list)  # caller, begin; by series
        self._attempts: dict[str, Attempts] = {}
        self._commitments = Commitments()
        self.spool = Spool(settings.spool)
        self.spool.hold()
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            f"{place}_series": (f"Series in {place}.", lambda place=place: float(self.spool.waiting()[place]))
            for place in self.spool.waiting()
        }
        gauges["quarantine_bytes"] = (
            "Bytes of the series in quarantine.",
            lambda: float(sum(entry.size for entry in self.spool.aside())),
        )
        self.metrics = Metrics(COUNTERS, gauges)
        admission = Admission(
            settings.me,
            settings.callers,
            settings.destination,
            settings.associations,
            settings.share,
            settings.idle,
        )
        try:
            tls = self._tls(ssl.Purpose.CLIENT_AUTH) if settings.tls_in else None
            self._tls_out = self._tls(ssl.Purpose.SERVER_AUTH) if settings.tls_out else None
            self._server = listen(admission, tls, self._store, self._released, self._commitments.report)
        except OSError as error:
            raise RunError(f"The node cannot start: {error.strerror or error}.") from error
        self.address: tuple[str, int] = self._server.server_address[:2]

    @property
    def ready(self) -> bool:
        """Whether slices are accepted."""
        return not self._stop.is_set()

    def run(self) -> None:
        """Restore and send the spool's series, present and future, until `stop`."""
        with contextlib.suppress(OSError):
            self._bound()
        while not self._stop.is_set():
            wait = POLL
            try:
                self._collect()
                heard = self._commitments.heard()
                for folder in folders(self.spool.work):
                    attempts = self._attempts.setdefault(folder.name, Attempts())
                    due = time.monotonic() >= attempts.later or not heard.isdisjoint(attempts.awaited)
                    if due and not self._stop.is_set():
                        self._handle(folder, attempts)
            except OSError as error:  # the spool's disk, for a while
                wait = self._settings.retry
                log("failed", reason=f"The spool cannot be read: {error.strerror or error}.")
            self._stop.wait(wait)
        self._server.shutdown()
        self._break_off()
        self.spool.let_go()

    def stop(self) -> None:
        """Finish the series in hand, break off with who still sends, and end."""
        self._stop.set()

    def _break_off(self) -> None:
        """Abort all open associations at once: one that does not answer delays neither them nor the end."""
        aborts = [
            threading.Thread(target=link.abort, daemon=True) for link in self._server.active_associations
        ]
        for abort in aborts:
            abort.start()
        end = time.monotonic() + FAREWELL
        for abort in aborts:
            abort.join(max(0.0, end - time.monotonic()))

    def _tls(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        settings = self._settings
        return tls_context(purpose, settings.certificate, settings.key, settings.authority)

    # --- slices arrive, in the associations' threads ------------------------------------------------------

    def _store(self, event: Any) -> int:
        """Keep a slice."""
        status = self._keep(event)
        if status == SUCCESS:
            self.metrics.add("slices", direction="received")
        else:
            self.metrics.add("refused", status=f"{status:04X}")
        return status

    def _keep(self, event: Any) -> int:
        try:
            if is_bomb(event):
                return NO_MATCH
            series = series_name(event.dataset)
            place = event.dataset.get_item("ImagePositionPatient")  # poor anonymisers give one UID to many
            instance = f"{event.request.AffectedSOPInstanceUID} {place.value if place else ''}"
            data = event.encoded_dataset()
        except Exception:  # a damaged data set may raise anything
            return NO_MATCH
        try:
            if self.spool.free() < FREE + len(data):
                self.spool.refuse(series, instance)
                return OUT_OF_RESOURCES
            now = time.monotonic()
            with self._turn:
                link = self._links.get(event.assoc)
                if link is None:
                    caller = str(event.assoc.requestor.ae_title).strip()
                    link = _Link(secrets.token_hex(8), caller, event.assoc, now, now)
                    self._links[event.assoc] = link
                link.last = self._touched[series] = now
                link.series.add(series)
            self.spool.store(series, instance, data, link.token, link.caller)
        except (OSError, RunError):
            self.spool.refuse(series, instance)
            return OUT_OF_RESOURCES
        return SUCCESS

    def _released(self, event: Any) -> None:
        """A sender has released an association."""
        with self._turn:
            link = self._links.pop(event.assoc, None)
            if link is None:
                return
            for series in link.series:
                self._touched[series] = time.monotonic()
                self._releases[series].append((link.caller, link.began))
        for series in link.series:
            self.spool.released(series, {link.token})

    # --- series are finished, restored, sent, in the node's thread ----------------------------------------

    def _collect(self) -> None:
        """Move finished series to work, out of reach of late slices."""
        for folder in folders(self.spool.incoming):
            series, now = folder.name, time.monotonic()
            try:
                unsaid, live = self._unsaid(series)
                unsaid = unsaid or self.spool.lacks(series)
                with self._turn:
                    still = now - self._touched.setdefault(series, now)
                if live or still < (self._settings.abandoned if unsaid else self._settings.quiet):
                    continue
                reason = self.spool.finish(series, unsaid)
            except (OSError, RunError) as error:
                with self._turn:
                    self._touched[series] = now  # once more after a while
                log("failed", series=series, reason=str(error))
                continue
            if reason:
                self.metrics.add("series", outcome="late")
                log("late", series=series)
                self._bound()
            if not folder.exists():
                with self._turn:
                    self._touched.pop(series, None)
                    self._releases.pop(series, None)
                self._attempts.pop(series, None)
        with self._turn:
            for event, link in list(self._links.items()):
                if not link.thread.is_alive() and not link.series & self._touched.keys():
                    del self._links[event]

    def _unsaid(self, series: str) -> tuple[bool, bool]:
        """Whether a sender has broken off that did not come back, and whether one is still at it.

        It has come back if an association begun after what it last said in the other was released.
        """
        markers = self.spool.markers(series)
        now = time.monotonic()
        with self._turn:
            links = {link.token: link for link in self._links.values()}
            releases = list(self._releases[series])
        superseded, live = set(), False
        for token, caller in markers.items():
            link = links.get(token)  # None: of an earlier process
            last = link.last if link else self._start
            open_still = link is not None and link.thread.is_alive()
            back = any(name == caller and began >= last for name, began in releases)
            if back and not (open_still and now - last < TIMEOUT):
                superseded.add(token)
            else:
                live = live or open_still
        self.spool.released(series, superseded)
        return superseded != markers.keys(), live

    def _handle(self, folder: Path, attempts: Attempts) -> None:
        """Restore a series, send it, and forget it; or set it aside, with the reasons."""
        start = time.monotonic()
        attempts.count += 1
        try:
            volumes, slices, reasons = self._restore(folder)
            if volumes:
                self._deliver(folder, slices, attempts)
                seconds = round(time.monotonic() - start, 3)
                self.metrics.add("series", outcome="sent")
                log("sent", series=folder.name, volumes=volumes, slices=len(slices), seconds=seconds)
            if reasons:
                raise RunError("\n".join(reasons))
            self.spool.done(folder)
            self._forget(folder)
        except Undelivered as error:
            self._wait(folder, attempts, "undelivered", str(error))
        except (DiskError, GpuError, OSError) as error:  # the series stays where it is
            self._wait(folder, attempts, "failed", str(error))
        except Refused as error:
            attempts.refused += 1
            if attempts.refused < ATTEMPTS:
                self._wait(folder, attempts, "undelivered", str(error))
            else:
                self._set_aside(folder, attempts, f"{error} It did so {ATTEMPTS} times.")
        except RunError as error:
            self._set_aside(folder, attempts, str(error))
        except Exception as error:
            if lacks_memory(error):  # for a while
                self._wait(folder, attempts, "failed", f"There is not enough memory{limit()}.")
            else:
                self._set_aside(folder, attempts, f"Unexpected: {type(error).__name__}.")

    def _wait(self, folder: Path, attempts: Attempts, event: str, reason: str) -> None:
        """Try again later, after longer and longer times."""
        growth = BACKOFF ** min(attempts.count - 1, GROWTH)
        wait = min(self._settings.retry * growth, max(LONGEST, self._settings.retry))
        attempts.later = time.monotonic() + wait
        self.metrics.add("series", outcome=event)
        log(event, series=folder.name, reason=reason, attempts=attempts.count, again=round(wait, 1))

    def _set_aside(self, folder: Path, attempts: Attempts, reason: str) -> None:
        try:
            if (folder / SENDING).exists():
                self.spool.remember(folder)  # some of it may be at the destination
            self.spool.set_aside(folder, folder.name, reason)
        except (OSError, RunError) as error:
            self._wait(folder, attempts, "failed", str(error))
            return
        self._forget(folder)
        self.metrics.add("series", outcome="quarantined")
        log("quarantined", series=folder.name)
        self._bound()

    def _forget(self, folder: Path) -> None:
        attempts = self._attempts.pop(folder.name, None)
        if attempts:
            self._commitments.forget(attempts.awaited)

    def _bound(self) -> None:
        """Remove the oldest series set aside, if the operator has set a limit, and tell each."""
        for entry in self.spool.bound(self._settings.aside):
            self.metrics.add("series", outcome="dropped")
            log("dropped", series=entry.name, slices=entry.slices, size=entry.size)

    def _restore(self, folder: Path) -> tuple[int, list[Path], list[str]]:
        """Write the SR slices below a series' folder; those of an earlier attempt are kept.

        Returns how many volumes there are, their slices, and why others cannot be restored. Raises DiskError.
        """
        files = sorted(folder.glob("*.dcm"))
        note = (folder / NOTE).read_text() if (folder / NOTE).exists() else ""
        jobs = dicom_jobs(files, folder, folder / "sr", "dicom", self._numbers(files, folder), note)
        if not jobs:
            raise RunError(
                "It contains no MR volume, or only results of udean, which are not restored again."
            )
        torn = self._torn(folder.name, files)
        targets, reasons = [], []
        for job in jobs:
            try:
                if reason := torn.get(job.series.frames):
                    raise RunError(reason)
                if not job.target.is_dir():
                    draft = job.draft(self._resolve.card, self._resolve.engine.info.sha256)
                    self._resolve.scan(job.open(), room=draft.room)
                    draft.commit()
                    timings = self._resolve.timings
                    self.metrics.add("network_seconds", timings.network if timings else 0.0)
                targets.append(job.target)
            except (DiskError, GpuError):
                raise
            except RunError as error:
                reasons.append(str(error))
        for study, group in itertools.groupby(jobs, lambda job: str(job.series.head.get("StudyInstanceUID"))):
            numbers = {n for job in group for n in (job.series.number, job.series.result.number)}
            self.spool.number(study, folder.name, numbers)
        return len(targets), [file for target in targets for file in sorted(target.iterdir())], reasons

    def _torn(self, series: str, files: list[Path]) -> dict[tuple[Frame, ...], str]:
        """The faults of a series' volumes beside slices of its UID that tell less, or more, of whose they
        are: half of one volume would pass for a whole one."""
        relatives = self.spool.relatives(series)
        found = find_series([*files, *relatives], self.spool.work) if relatives else []
        return {volume.frames: volume.fault for volume in found}

    def _numbers(self, files: list[Path], folder: Path) -> set[int]:
        """Series numbers of the same study that passed here before."""
        pydicom = require_pydicom()
        if not files:
            return set()
        head = pydicom.dcmread(files[0], specific_tags=["StudyInstanceUID"], force=True)
        return self.spool.taken(str(head.get("StudyInstanceUID")), folder.name)

    def _deliver(self, folder: Path, slices: list[Path], attempts: Attempts) -> None:
        """Send what the destination does not have, and wait for storage commitment if it offers that.

        What it fails to commit is sent again. After a long silence, or a restart, it is only asked again.
        Raises Undelivered until everything is committed, Refused if it will not be.
        """
        images, there = instances(slices), self._settings.destination
        journal = Journal(folder, str(there))
        lacking, failed = self._commitments.take(set(images))
        if attempts.asked is None or (not failed and time.monotonic() - attempts.asked > PATIENCE):
            attempts.awaited = set(images)
            missing = images.keys() - journal.stored()
            me = self._settings.me.title
            offered = send(images, lacking, me, there, self._tls_out, self._commitments, journal)
            self.metrics.add("slices", len(missing), direction="sent")
            if not offered:
                return
            attempts.asked = time.monotonic()
            lacking, failed = self._commitments.take(set(images))
        reason = f"The destination has not committed {len(lacking)} of {len(images)} images"
        if failed:
            attempts.asked = None
            journal.remove(set(failed))
            reason += (
                f": {len(failed)} failed ({', '.join(f'{why:04X}' for why in sorted({*failed.values()}))})."
            )
            raise Undelivered(reason) if {*failed.values()} <= {*FOR_A_WHILE} else Refused(reason)
        if lacking:
            raise Undelivered(f"{reason} yet.")
