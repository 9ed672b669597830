"""SR slices to the archive: each stored once, and committed if the archive offers storage commitment.

Source: DICOM PS3.4, B.2.3 (status codes of storage), PS3.7, C (status codes), PS3.5, 10.1 (implicit VR is
what every archive has to take).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..system.extras import require
from .commitment import COMMITMENT, NOT_OFFERED, SUCCESS, Commitments
from .frame import CLASSIC, require_pydicom
from .spool import Journal
from .tls import why

WARNINGS = 0x0001, 0x0107, 0x0116  # and Bxxx: it is stored
FINAL = 0xA900, 0xC000  # A9xx: it does not match its SOP class; Cxxx: it cannot be understood
TIMEOUT = 30  # seconds for a peer to answer
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
    code = commitments.request(link, names)
    if code in NOT_OFFERED:
        return False
    if code != SUCCESS:
        said = "no answer" if code is None else f"status {code:04X}"
        raise Undelivered(f"The destination did not accept the request for storage commitment ({said}).")
    commitments.wait(names, SAME_LINK)
    return True
