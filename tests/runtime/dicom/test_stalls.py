"""An archive that stops without hanging up: before an answer, in the middle of one, or reading no more."""

import contextlib
import socket
import struct
import threading

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage
from udean.runtime.dicom.send import Commitments, Peer, Undelivered
from udean.runtime.dicom.send import send as deliver
from udean.runtime.dicom.spool import Journal

from .test_node import archive, send, serving, wait
from .test_series import classic

ACCEPTANCE, DATA = 2, 4  # types of PDUs


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr("udean.runtime.dicom.send.TIMEOUT", 0.5)


def silent():
    """A port at which nobody answers."""
    return contextlib.closing(socket.create_server(("127.0.0.1", 0)))


@contextlib.contextmanager
def stopping(event, kind=None, after=0):
    """An archive that stops for good, after so many events: in half a PDU of a kind, if it is given."""
    over, seen = threading.Event(), []

    def stop(happened):
        seen.append(happened)
        if len(seen) > after:
            if kind:
                half = struct.pack(">BxI", kind, 100) + bytes(50)
                happened.assoc.dul.socket.socket.sendall(half)
            over.wait()
        return 0

    entity = AE("ARCHIVE")
    entity.add_supported_context(MRImageStorage)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(event, stop)])
    try:
        yield server.socket
    finally:
        over.set()
        server.shutdown()


@pytest.mark.parametrize(
    ("stalled", "size"),
    [
        (silent, 12),
        (lambda: stopping(evt.EVT_REQUESTED, ACCEPTANCE), 12),
        (lambda: stopping(evt.EVT_C_STORE, DATA), 12),
        (lambda: stopping(evt.EVT_DATA_RECV, after=1), 3000),  # more than the system's buffers hold
    ],
    ids=["no answer", "half an acceptance", "half a response", "reads no more"],
)
def test_a_delivery_to_an_archive_that_stops_ends(tmp_path, stalled, size):
    (file,) = classic(tmp_path / "in", shape=(1, size, size))
    ended = []

    def attempt():
        there = Peer("ARCHIVE", *door.getsockname())
        journal = Journal(tmp_path, str(there))
        with pytest.raises(Undelivered):
            deliver({"1": file}, {"1"}, "UDEAN", there, None, Commitments(), journal)
        ended.append(journal.stored())

    with stalled() as door:
        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(60)
        assert ended == [set()]


def test_an_archive_that_stops_in_a_message_gets_all_when_it_is_back(model, tmp_path):
    files = classic(tmp_path / "in", shape=(4, 12, 10))
    with stopping(evt.EVT_C_STORE, DATA, after=3) as door:
        port = door.getsockname()[1]
        with serving(model, tmp_path / "spool", port) as (node, mine):
            assert send(mine, files) == [0] * 4
            assert '"undelivered"' in node.stderr.readline()
    with archive(port) as (_, got), serving(model, tmp_path / "spool", port):
        wait(lambda: len(got) == 5 and not list((tmp_path / "spool" / "work").iterdir()))
    assert len({d.SOPInstanceUID for d in got}) == 5  # it has three already
