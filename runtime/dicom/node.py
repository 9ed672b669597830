"""A DICOM node between scanner and archive: takes MR series, restores each finished one, sends it on.

What a series has come to is where its folder lies in the spool: `incoming` while slices arrive, `work` from
then until the destination has every SR slice, `quarantine` with the reason in words if it cannot be
restored. A slice is on disk before its sender hears "success", and new UIDs follow from the old ones, so a
restart goes on where it was and sends nothing that is new to the archive twice under another name.

Source: DICOM PS3.4, B (storage service class), PS3.7, 9.1.1 (C-STORE) and C (status codes).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import ssl
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..resolver import SuperResolver
from ..system.extras import require
from ..system.files import atomic
from ..system.log import log
from .derived import write_derived
from .frame import CLASSIC, ENHANCED, require_pydicom
from .jobs import dicom_jobs

SUCCESS, OUT_OF_RESOURCES, NO_MATCH = 0x0000, 0xA700, 0xA900
FREE = 1 << 30  # bytes that stay free on the spool's disk
POLL = 0.25  # seconds between looks at the spool
TIMEOUT = 30  # seconds for a peer to answer
ATTEMPTS = 5  # times that a destination may refuse a slice
DONE = ".done-"  # begins the name of what was sent and only needs to be removed


@dataclass(frozen=True)
class Peer:
    """Where a node listens."""

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Peer:
        """ "AET@host:port". Raises RunError for something else."""
        title, at, address = text.partition("@")
        host, colon, port = address.rpartition(":")
        if not (at and colon and host and 1 <= len(title) <= 16 and port.isdecimal() and int(port) < 65536):
            raise RunError(f"'{text}' is not of the form AET@host:port.")
        return cls(title, host, int(port))


@dataclass(frozen=True)
class Settings:
    """What a node is. quiet: seconds without a slice after which a series is finished, once the associations
    that it came by have ended; retry: between sends.

    callers: the titles that may send. certificate, key: PEM files, for TLS in both directions; authority:
    of the peers' certificates.
    """

    me: Peer
    destination: Peer
    callers: tuple[str, ...]
    spool: Path
    quiet: float = 15.0
    retry: float = 30.0
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None


class Undelivered(Exception):
    """The destination cannot be reached, or refuses."""


class Node:
    """Listens from the start; `run` does the work. Raises RunError if it cannot listen or spool."""

    def __init__(self, resolve: SuperResolver, settings: Settings) -> None:
        require_pydicom()
        self._net = require("pynetdicom", "dicom")
        self._resolve, self._settings = resolve, settings
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._later: dict[str, float] = {}
        self._refused: dict[str, int] = {}
        self._senders: dict[str, set[threading.Thread]] = defaultdict(set)  # associations by series
        self._incoming, self._work, self._quarantine = (
            settings.spool / name for name in ("incoming", "work", "quarantine")
        )
        try:
            for folder in (self._incoming, self._work, self._quarantine):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for sent in self._work.glob(f"{DONE}*"):  # by a node that was killed
                shutil.rmtree(sent)
            self._server = self._listen()
        except (OSError, ssl.SSLError) as error:
            raise RunError(f"The node cannot start: {error.strerror or error}.") from error
        self.address: tuple[str, int] = self._server.server_address[:2]

    def run(self) -> None:
        """Restore and send what the spool holds and gets, until `stop`."""
        while not self._stop.is_set():
            self._collect()
            for folder in _series(self._work):
                if not self._stop.is_set() and time.monotonic() >= self._later.get(folder.name, 0.0):
                    try:
                        self._handle(folder)
                    except OSError as error:  # of the spool's disk: the series waits where it is
                        self._later[folder.name] = time.monotonic() + self._settings.retry
                        log("failed", series=folder.name, reason=error.strerror or type(error).__name__)
            self._stop.wait(POLL)
        self._server.shutdown()

    def stop(self) -> None:
        """Finish the series in hand, and end."""
        self._stop.set()

    def _listen(self) -> Any:
        entity = self._net.AE(ae_title=self._settings.me.title)
        entity.require_called_aet = True
        entity.require_calling_aet = list(self._settings.callers)
        entity.network_timeout = entity.dimse_timeout = entity.acse_timeout = TIMEOUT
        for kind in (CLASSIC, *ENHANCED):
            entity.add_supported_context(kind, self._net.ALL_TRANSFER_SYNTAXES)
        entity.add_supported_context("1.2.840.10008.1.1")  # verification
        return entity.start_server(
            (self._settings.me.host, self._settings.me.port),
            block=False,
            ssl_context=self._tls(ssl.Purpose.CLIENT_AUTH),
            evt_handlers=[(self._net.evt.EVT_C_STORE, self._store)],
        )

    def _tls(self, purpose: ssl.Purpose) -> ssl.SSLContext | None:
        settings = self._settings
        if settings.certificate is None:
            return None
        context = ssl.create_default_context(purpose, cafile=settings.authority)
        context.load_cert_chain(settings.certificate, settings.key)
        if settings.authority:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _store(self, event: Any) -> int:
        """Keep a slice. Its folder and file are named by hashes: nothing that a peer says is a path."""
        try:
            dataset = event.dataset
            study, series = str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID)
            data = event.encoded_dataset()
        except Exception:  # a damaged data set may raise anything
            return NO_MATCH
        folder = self._incoming / _name(study, series)
        try:
            if shutil.disk_usage(self._incoming).free < FREE + len(data):
                return OUT_OF_RESOURCES
            with (
                self._lock,
                atomic(folder / f"{_name(str(event.request.AffectedSOPInstanceUID))}.dcm") as file,
            ):
                self._senders[folder.name].add(event.assoc)
                file.write(data)
        except (OSError, RunError):
            return OUT_OF_RESOURCES
        return SUCCESS

    def _collect(self) -> None:
        """Move finished series to work, where late slices cannot change them."""
        for folder in _series(self._incoming):
            with self._lock:
                finished = time.time() - folder.stat().st_mtime >= self._settings.quiet
                busy = any(sender.is_alive() for sender in self._senders.get(folder.name, ()))
                if finished and not busy and not (self._work / folder.name).exists():
                    os.replace(folder, self._work / folder.name)
                    self._senders.pop(folder.name, None)

    def _handle(self, folder: Path) -> None:
        """Restore a series, send it, and forget it; or set it aside, with what of it cannot be restored.

        Raises OSError if the spool's disk fails.
        """
        start = time.monotonic()
        try:
            volumes, slices, reasons = self._restore(folder)
            if volumes:
                self._send(slices)
                seconds = round(time.monotonic() - start, 3)
                log("sent", series=folder.name, volumes=volumes, slices=len(slices), seconds=seconds)
            if reasons:
                raise RunError("\n".join(reasons))
        except Undelivered as error:
            self._later[folder.name] = time.monotonic() + self._settings.retry
            log("undelivered", series=folder.name, reason=str(error))
        except RunError as error:
            self._set_aside(folder, str(error))
        except Exception as error:
            self._set_aside(folder, f"Unexpected: {type(error).__name__}.")
        else:
            done = self._work / f"{DONE}{folder.name}-{time.time_ns()}"
            os.replace(folder, done)  # in one step: a part of a series would be restored as a whole one
            shutil.rmtree(done, ignore_errors=True)
            self._refused.pop(folder.name, None)

    def _restore(self, folder: Path) -> tuple[int, list[Path], list[str]]:
        """Write the SR slices below a series' folder; those of an earlier attempt are kept.

        Returns how many volumes there are, their slices, and why others cannot be restored.
        """
        files = [path for path in sorted(folder.iterdir()) if path.suffix == ".dcm"]
        jobs = dicom_jobs(files, folder, folder / "sr", "dicom")
        if not jobs:
            raise RunError("There is no MR volume in it.")
        targets, reasons = [], []
        for job in jobs:
            try:
                if not job.target.is_dir():
                    header, voxels = self._resolve.scan(job.open())
                    model = self._resolve.engine.info.sha256
                    write_derived(job.series, header, voxels, self._resolve.card, model, job.target)
                targets.append(job.target)
            except RunError as error:
                reasons.append(str(error))
        return len(targets), [file for target in targets for file in sorted(target.iterdir())], reasons

    def _send(self, files: list[Path]) -> None:
        """Store all files at the destination. Raises Undelivered, or RunError if it keeps refusing.

        Implicit VR is what every archive has to take (PS3.5, 10.1).
        """
        pydicom, there = require_pydicom(), self._settings.destination
        entity = self._net.AE(ae_title=self._settings.me.title)
        entity.network_timeout = entity.dimse_timeout = entity.acse_timeout = TIMEOUT
        entity.connection_timeout = TIMEOUT
        for syntax in (pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian):
            entity.add_requested_context(CLASSIC, syntax)  # one each, for it to choose
        tls = self._tls(ssl.Purpose.SERVER_AUTH)
        link = entity.associate(
            there.host, there.port, ae_title=there.title, tls_args=(tls, there.host) if tls else None
        )
        if not link.is_established:
            if link.rejected_contexts:
                raise RunError("The destination takes no MR images of explicit or implicit VR little endian.")
            raise Undelivered("The destination does not answer, or takes no association.")
        try:
            for file in files:
                status = link.send_c_store(pydicom.dcmread(file))
                code = status.Status if "Status" in status else None
                if code is None:
                    raise Undelivered("The destination broke off.")
                if code != SUCCESS and code & 0xF000 != 0xB000:  # Bxxx are warnings: it is stored
                    name = file.parents[1].parent.name
                    self._refused[name] = self._refused.get(name, 0) + 1
                    if self._refused[name] >= ATTEMPTS:
                        raise RunError(f"The destination refused it {ATTEMPTS} times (status {code:04X}).")
                    raise Undelivered(f"The destination refused a slice (status {code:04X}).")
        finally:
            with contextlib.suppress(Exception):
                link.release()

    def _set_aside(self, folder: Path, reason: str) -> None:
        """To quarantine, with the reason beside the slices. Raises OSError if the disk fails."""
        (folder / "reason.txt").write_text(reason + "\n", "utf-8", "backslashreplace")
        os.replace(folder, self._quarantine / f"{folder.name}-{time.time_ns()}")
        self._refused.pop(folder.name, None)
        log("quarantined", series=folder.name)


def _series(place: Path) -> list[Path]:
    """The folders of series in a part of the spool; whatever else lies there is not ours to touch."""
    return sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(DONE))


def _name(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]
