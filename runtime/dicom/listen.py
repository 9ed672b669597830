"""The node's listening side: who may connect, how many, in which transfer syntaxes, and how much is read.

pynetdicom serves the protocol. This file adds what it lacks: a length is believed only within the announced
size, a handshake or a pause inside a message blocks nobody else, and a connection that has not associated
takes nobody's place.

Source: DICOM PS3.8, 9.3 (protocol data units), PS3.8, 9.3.4 (reasons of rejection).
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from socket import SHUT_RDWR, socket
from typing import Any
from weakref import WeakKeyDictionary

from ..system.extras import require
from ..system.log import log
from .commitment import COMMITMENT
from .frame import CLASSIC, ENHANCED, require_pydicom
from .send import TIMEOUT, Peer
from .tls import why

VERIFICATION = "1.2.840.10008.1.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
REQUEST_LIMIT = 1 << 20  # bytes of a message before there is an association: a request has kilobytes
MESSAGE_LIMIT = 4 << 30  # bytes of one C-STORE: pixel data of defined length end there
INFLATED = 1 << 30  # bytes of a deflated data set: a thousandth of them is enough to announce them
CHUNK = 1 << 20
STRANGERS = 256  # connections without association at once
PERMANENT, TRANSIENT = 1, 2
NOT_CALLED, NOT_KNOWN, TOO_MANY = (PERMANENT, 1, 7), (PERMANENT, 1, 3), (TRANSIENT, 3, 2)


@dataclass(frozen=True)
class Admission:
    """Who may associate. associations: at once; share: of them by one address. idle: seconds without a byte.

    destination: its reports on storage commitment are taken. Verification is answered to everybody, always.
    """

    me: Peer
    callers: tuple[str, ...]
    destination: Peer
    associations: int
    share: int
    idle: float


def listen(
    admission: Admission,
    tls: ssl.SSLContext | None,
    store: Callable[[Any], int],
    released: Callable[[Any], None],
    report: Callable[[Any], tuple[int, None]],
) -> Any:
    """A server that runs in a thread, and is shut down by `shutdown`. Raises OSError if it cannot listen."""
    net, transport = require("pynetdicom", "dicom"), require("pynetdicom.transport", "dicom")
    here: set[Any] = set()
    strangers: WeakKeyDictionary[Any, None] = WeakKeyDictionary()  # their sockets, in order
    turn = threading.Lock()

    def enter(stranger: Any) -> None:
        """Count a connection without association; beyond the limit the oldest is closed."""
        with turn:
            strangers[stranger] = None
            while len(strangers) > STRANGERS:
                oldest = next(iter(strangers))
                del strangers[oldest]
                with contextlib.suppress(OSError):
                    socket.shutdown(oldest, SHUT_RDWR)  # its thread may be in a handshake

    def admit(event: Any) -> None:
        link = event.assoc
        asked = link.requestor.primitive
        kinds = {str(context.abstract_syntax) for context in asked.presentation_context_definition_list}
        caller = asked.calling_ae_title.strip()
        reason = None
        if asked.called_ae_title.strip() != admission.me.title:
            reason = NOT_CALLED
        elif kinds <= {VERIFICATION}:
            return
        elif caller not in admission.callers and not (
            caller == admission.destination.title and kinds <= {VERIFICATION, COMMITMENT}
        ):
            reason = NOT_KNOWN
        with turn:
            here.difference_update([other for other in here if not other.is_alive()])
            address = link.requestor.address
            crowd = sum(other.requestor.address == address for other in here)
            if reason is None and (len(here) >= admission.associations or crowd >= admission.share):
                reason = TOO_MANY
            if reason is None:
                here.add(link)
                if line := link.dul.socket.socket:
                    strangers.pop(line, None)
                return
        link.acse.send_reject(*reason)
        link.kill()

    class Handler(transport.RequestHandler):  # type: ignore[name-defined, misc]
        def handle(self) -> None:
            self.request.settimeout(TIMEOUT)  # of a peer that stops in the middle
            if tls is not None:
                self.request = tls.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
            enter(self.request)
            try:
                if tls is not None:
                    self.request.do_handshake()  # in this thread alone
            except OSError as error:
                log("handshake", reason=f"A sender's TLS failed: {why(error)}.")
                raise
            super().handle()

        def _create_association(self) -> Any:
            link = super()._create_association()
            link.dul.daemon = True  # or a connection that says nothing would keep an ended node alive
            link.unread = 0  # bytes since the last message
            read = link.dul.socket.recv

            def bounded(size: int) -> bytearray:
                most = self.ae.maximum_pdu_size + 6 if link.is_established else REQUEST_LIMIT
                link.unread += size
                if size > most or link.unread > MESSAGE_LIMIT:
                    raise OSError("longer than announced")
                return read(size)

            link.dul.socket.recv = bounded
            return link

    class Server(transport.ThreadedAssociationServer):  # type: ignore[name-defined, misc]
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None:
            pass  # of a handshake

    def kept(event: Any) -> int:
        event.assoc.unread = 0
        return store(event)

    entity = net.AE(ae_title=admission.me.title)
    entity.maximum_associations = admission.associations + 2 * STRANGERS  # `admit` counts
    entity.network_timeout = admission.idle
    entity.dimse_timeout = entity.acse_timeout = TIMEOUT
    for kind in (CLASSIC, *ENHANCED):
        entity.add_supported_context(kind, decodable())
    entity.add_supported_context(VERIFICATION)
    entity.add_supported_context(COMMITMENT, scu_role=True, scp_role=True)
    server = entity.make_server(
        (admission.me.host, admission.me.port),
        evt_handlers=[
            (net.evt.EVT_REQUESTED, admit),
            (net.evt.EVT_C_STORE, kept),
            (net.evt.EVT_RELEASED, released),
            (net.evt.EVT_N_EVENT_REPORT, report),
        ],
        server_class=Server,
        request_handler=Handler,
    )
    entity._servers.append(server)  # `shutdown` takes it out again
    threading.Thread(target=server.serve_forever, daemon=True, name="dicom-accept").start()
    return server


def is_bomb(event: Any) -> bool:
    """Whether a data set is deflated and would take too much memory, which is found out in little."""
    if event.context.transfer_syntax != DEFLATED:
        return False
    inflate, size, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, event.request.DataSet.getvalue()
    while rest and not inflate.eof and size <= INFLATED:
        size += len(inflate.decompress(rest, CHUNK))
        rest = inflate.unconsumed_tail
    return size > INFLATED


def decodable() -> list[str]:
    """Transfer syntaxes that can be decoded here: of what is not offered, the peer sends another."""
    require_pydicom()
    pixels, net = require("pydicom.pixels", "dicom"), require("pynetdicom", "dicom")
    found = []
    for syntax in map(require("pydicom.uid", "dicom").UID, net.ALL_TRANSFER_SYNTAXES):
        try:
            if pixels.get_decoder(syntax).is_available:
                found.append(str(syntax))
        except NotImplementedError:  # of video and the like
            continue
    return found
