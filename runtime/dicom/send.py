"""SR slices to the archive: stored, and committed if the archive offers storage commitment.

Source: DICOM PS3.4, B.2.3 (status codes of storage), J (storage commitment, push model), PS3.7, C (status
codes), PS3.5, 10.1 (implicit VR is what every archive has to take).
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..system.extras import require
from .frame import CLASSIC, require_pydicom

SUCCESS = 0x0000
WARNINGS = 0x0001, 0x0107, 0x0116  # and Bxxx: it is stored
FINAL = 0xA900, 0xC000  # A9xx: it does not match its SOP class; Cxxx: it cannot be understood
TIMEOUT = 30  # seconds for a peer to answer
COMMITMENT = "1.2.840.10008.1.20.1"  # storage commitment push model, and below it its one instance
COMMITMENT_INSTANCE = f"{COMMITMENT}.1"
REQUEST, ALL_COMMITTED = 1, 1  # N-ACTION type, N-EVENT-REPORT type
NO_MR = "The destination accepts no MR images in explicit or implicit VR little endian."
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


class Commitments:
    """The archive's answers to storage commitment requests, by transaction."""

    def __init__(self) -> None:
        self._reports: dict[str, bool] = {}
        self._change = threading.Condition()

    def report(self, event: Any) -> tuple[int, None]:
        """Take an N-EVENT-REPORT, on whichever association it comes."""
        with contextlib.suppress(Exception):  # an unreadable report is ignored
            transaction = str(event.event_information.TransactionUID)
            with self._change:
                self._reports[transaction] = event.event_type == ALL_COMMITTED
                self._change.notify_all()
        return SUCCESS, None

    def of(self, transaction: str, patience: float = 0.0) -> bool | None:
        """Whether a transaction is completely committed; None while unknown."""
        with self._change:
            self._change.wait_for(lambda: transaction in self._reports, patience)
            return self._reports.get(transaction)


def send(
    files: list[Path],
    me: str,
    there: Peer,
    tls: ssl.SSLContext | None,
    commitments: Commitments,
    begin: Callable[[], None],
) -> str | None:
    """Store all files at the destination, in order. begin: called before the first of them goes out.

    Returns the storage commitment transaction; None if the destination does not offer commitment.
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
        evt_handlers=[(net.evt.EVT_N_EVENT_REPORT, commitments.report)],
    )
    if not link.is_established:
        if link.rejected_contexts:
            raise Undelivered(NO_MR)
        raise Undelivered("The destination does not answer, or accepts no association.")
    try:
        taken = {str(context.abstract_syntax) for context in link.accepted_contexts}
        if CLASSIC not in taken:
            raise Undelivered(NO_MR)
        begin()
        references = [_store(link, file) for file in files]
        return _ask(link, references, commitments) if COMMITMENT in taken else None
    except RuntimeError as error:  # pynetdicom's, of an association that is gone
        if link.is_established:
            raise
        raise Undelivered("The destination broke off.") from error
    finally:
        with contextlib.suppress(Exception):
            link.release()


def _store(link: Any, file: Path) -> Any:
    """Store one file; returns the reference to it."""
    pydicom = require_pydicom()
    dataset = pydicom.dcmread(file)
    status = link.send_c_store(dataset)
    code = status.Status if "Status" in status else None
    if code is None:
        raise Undelivered("The destination broke off.")
    if code & 0xFF00 == FINAL[0] or code & 0xF000 == FINAL[1]:
        raise Refused(f"The destination refused a slice (status {code:04X}).")
    if code != SUCCESS and code not in WARNINGS and code & 0xF000 != 0xB000:
        raise Undelivered(f"The destination cannot accept a slice at the moment (status {code:04X}).")
    reference = pydicom.Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CLASSIC, dataset.SOPInstanceUID
    return reference


def _ask(link: Any, references: list[Any], commitments: Commitments) -> str:
    """Request storage commitment for what was stored; returns the transaction."""
    pydicom = require_pydicom()
    request = pydicom.Dataset()
    request.TransactionUID = f"2.25.{uuid.uuid4().int}"
    request.ReferencedSOPSequence = references
    status, _ = link.send_n_action(request, REQUEST, COMMITMENT, COMMITMENT_INSTANCE)
    if "Status" not in status or status.Status != SUCCESS:
        raise Undelivered("The destination did not accept the request for storage commitment.")
    commitments.of(str(request.TransactionUID), SAME_LINK)
    return str(request.TransactionUID)
