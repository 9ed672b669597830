"""SR slices to the archive: each stored once, and committed if the archive offers storage commitment.

Source: DICOM PS3.4, B.2.3 (status codes of storage), J (storage commitment, push model), PS3.3, C.14 (failure
reasons), PS3.7, C (status codes), PS3.5, 10.1 (implicit VR is what every archive has to take).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..system.extras import require
from .frame import CLASSIC, require_pydicom
from .spool import Journal
from .tls import why

SUCCESS = 0x0000
WARNINGS = 0x0001, 0x0107, 0x0116  # and Bxxx: it is stored
FINAL = 0xA900, 0xC000  # A9xx: it does not match its SOP class; Cxxx: it cannot be understood
TIMEOUT = 30  # seconds for a peer to answer
COMMITMENT = "1.2.840.10008.1.20.1"  # storage commitment push model, and below it its one instance
COMMITMENT_INSTANCE = f"{COMMITMENT}.1"
REQUEST, ALL_COMMITTED = 1, 1  # N-ACTION type, N-EVENT-REPORT type
NOT_OFFERED = 0x0118, 0x0123, 0x0211  # no such class, action, operation: from some that accept the context
FOR_A_WHILE = 0x0110, 0x0213  # failure reasons: processing failure, lack of resources
NO_MR = "The destination accepts no MR images in explicit or implicit VR little endian."
SECOND_LOOK = 2.0  # seconds for a destination to refuse a certificate
SAME_LINK = 3.0  # seconds for a report on the association that asked for it


class Undelivered(Exception):
    """The destination cannot be reached, or cannot accept the slices at the moment."""


class Refused(Exception):
    """The destination permanently refuses a slice."""


@dataclass(frozen=True)
class Peer:
    """A DICOM application: title and address."""

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
        return cls(title, host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


class Commitments:
    """The archive's answers to storage commitment requests, by SOP instance.

    They may come late, in parts, in any order, on any association. Those to unknown requests do not count.
    """

    def __init__(self) -> None:
        self._asked: dict[str, set[str]] = {}  # instances by transaction
        self._answers: dict[str, int] = {}  # failure reason, or 0, by instance
        self._heard: set[str] = set()  # instances with news
        self._change = threading.Condition()

    def ask(self, instances: set[str]) -> str:
        """A new transaction, whose reports are expected from now on."""
        transaction = f"2.25.{uuid.uuid4().int}"
        with self._change:
            self._asked[transaction] = instances
        return transaction

    def report(self, event: Any) -> tuple[int, None]:
        """Take an N-EVENT-REPORT, on whichever association it comes."""
        with contextlib.suppress(Exception), self._change:  # an unreadable report is ignored
            said = event.event_information
            asked = self._asked[str(said.TransactionUID)]
            committed, failed = (
                {str(item.ReferencedSOPInstanceUID): item.get("FailureReason") for item in sequence or ()}
                for sequence in (said.get("ReferencedSOPSequence"), said.get("FailedSOPSequence"))
            )
            if event.event_type == ALL_COMMITTED and not committed and not failed:
                committed = dict.fromkeys(asked)
            answers = dict.fromkeys(committed, 0) | {
                name: why or FOR_A_WHILE[0] for name, why in failed.items()
            }
            self._answers |= {name: answers[name] for name in answers.keys() & asked}
            self._heard |= asked
            self._change.notify_all()
        return SUCCESS, None

    def heard(self) -> set[str]:
        """The instances of transactions on which reports came since the last call."""
        with self._change:
            heard, self._heard = self._heard, set()
        return heard

    def wait(self, instances: set[str], seconds: float) -> None:
        """Until a report comes on any of these instances, at most so long."""
        with self._change:
            self._change.wait_for(lambda: instances & self._heard, seconds)

    def take(self, instances: set[str]) -> tuple[set[str], dict[str, int]]:
        """Which of these instances are not committed; which of them failed, why, as is said once."""
        with self._change:
            lacking = {name for name in instances if self._answers.get(name) != 0}
            return lacking, {name: self._answers.pop(name) for name in lacking & self._answers.keys()}

    def forget(self, instances: set[str]) -> None:
        """Expect no more reports on these instances."""
        with self._change:
            self._asked = {name: asked for name, asked in self._asked.items() if not asked & instances}
            self._answers = {name: why for name, why in self._answers.items() if name not in instances}


def instances(files: list[Path]) -> dict[str, Path]:
    """Files by their SOP instance UIDs."""
    pydicom = require_pydicom()
    return {
        str(pydicom.dcmread(file, specific_tags=["SOPInstanceUID"]).SOPInstanceUID): file for file in files
    }


def send(
    images: dict[str, Path],
    uncommitted: set[str],
    me: str,
    there: Peer,
    tls: ssl.SSLContext | None,
    commitments: Commitments,
    journal: Journal,
) -> bool:
    """Store all images at the destination, in order, except those that the journal knows to be there.

    Returns whether the destination offers storage commitment and was asked for it, for the uncommitted ones.
    Raises Undelivered or Refused.
    """
    pydicom, net = require_pydicom(), require("pynetdicom", "dicom")
    entity = net.AE(ae_title=me)
    entity.network_timeout = entity.dimse_timeout = entity.acse_timeout = TIMEOUT
    entity.connection_timeout = TIMEOUT
    for syntax in (pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian):
        entity.add_requested_context(CLASSIC, syntax)  # one each, for it to choose
    entity.add_requested_context(COMMITMENT)
    link = entity.associate(
        there.host,
        there.port,
        ae_title=there.title,
        tls_args=(tls, there.host) if tls else None,
        evt_handlers=[
            (net.evt.EVT_CONN_OPEN, _limit),
            (net.evt.EVT_N_EVENT_REPORT, commitments.report),
        ],
    )
    if not link.is_established:
        raise Undelivered(NO_MR if link.rejected_contexts else _obstacle(link, there, tls))
    try:
        taken = {str(context.abstract_syntax) for context in link.accepted_contexts}
        if CLASSIC not in taken:
            raise Undelivered(NO_MR)
        journal.begin()
        stored = journal.stored()
        for name in (name for name in images if name not in stored):
            _store(link, images[name])
            journal.add(name)
        return COMMITMENT in taken and _ask(link, uncommitted, commitments)
    except RuntimeError as error:  # pynetdicom's, of an association that is gone
        if link.is_established:
            raise
        raise Undelivered("The destination broke off.") from error
    finally:
        with contextlib.suppress(Exception):
            link.release()


def _limit(event: Any) -> None:
    """Or a destination that stops in the middle of a message would stop the node."""
    event.assoc.dul.socket.socket.settimeout(TIMEOUT)


def _obstacle(link: Any, there: Peer, tls: ssl.SSLContext | None) -> str:
    """Why there is no association, as far as another connection shows it."""
    if link.is_rejected:
        return f"The destination rejects the association: {link.acceptor.primitive.reason_str}."
    try:
        with socket.create_connection((there.host, there.port), TIMEOUT) as line:
            if tls:
                with tls.wrap_socket(line, server_hostname=there.host) as safe:
                    safe.settimeout(SECOND_LOOK)  # it refuses our certificate after its own is accepted
                    with contextlib.suppress(TimeoutError):
                        safe.recv(1)
    except OSError as error:
        return f"The destination cannot be reached{' by TLS' if tls else ''}: {why(error)}."
    return "The destination does not answer, or accepts no association."


def _store(link: Any, file: Path) -> None:
    """Store one file."""
    status = link.send_c_store(require_pydicom().dcmread(file))
    code = status.Status if "Status" in status else None
    if code is None:
        raise Undelivered("The destination broke off.")
    if code & 0xFF00 == FINAL[0] or code & 0xF000 == FINAL[1]:
        raise Refused(f"The destination refused a slice (status {code:04X}).")
    if code != SUCCESS and code not in WARNINGS and code & 0xF000 != 0xB000:
        raise Undelivered(f"The destination cannot accept a slice at the moment (status {code:04X}).")


def _ask(link: Any, names: set[str], commitments: Commitments) -> bool:
    """Request storage commitment for instances; returns whether it is offered. Raises Undelivered."""
    pydicom = require_pydicom()
    request = pydicom.Dataset()
    request.TransactionUID = commitments.ask(names)
    request.ReferencedSOPSequence = []
    for name in sorted(names):
        reference = pydicom.Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CLASSIC, name
        request.ReferencedSOPSequence.append(reference)
    status, _ = link.send_n_action(request, REQUEST, COMMITMENT, COMMITMENT_INSTANCE)
    code = status.Status if "Status" in status else None
    if code in NOT_OFFERED:
        return False
    if code != SUCCESS:
        said = "no answer" if code is None else f"status {code:04X}"
        raise Undelivered(f"The destination did not accept the request for storage commitment ({said}).")
    commitments.wait(names, SAME_LINK)
    return True
