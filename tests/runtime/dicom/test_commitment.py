"""Storage commitment: sources stay until the archive has committed the results; nothing is stored twice."""

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request

import pydicom
import pytest
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import MRImageStorage
from udean.runtime.dicom.commitment import COMMITMENT
from udean.runtime.dicom.node import ATTEMPTS

from .test_node import archive, running, send, serving, wait
from .test_series import classic

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")


class Archive:
    """An archive that commits itself as a test says.

    stored: the instances that it was sent. asked: the requests for commitment, in order. answers: statuses of
    the next requests, or functions that are called with the request's event and return one.
    """

    def __init__(self, *answers, status=lambda: 0):
        self.stored, self.asked, self.answers, self.status = [], [], list(answers), status

    @contextlib.contextmanager
    def running(self, port=0):
        entity = AE("ARCHIVE")
        for kind in (MRImageStorage, COMMITMENT):
            entity.add_supported_context(kind)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._act)]
        server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()

    def _store(self, event):
        code = self.status()
        if code == 0:
            self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return code

    def _act(self, event):
        self.asked.append(event.action_information)
        answer = self.answers.pop(0) if self.answers else 0
        return (answer(event) if callable(answer) else answer), None

    def names(self, number=-1):
        """The instances that a request is about."""
        return [str(item.ReferencedSOPInstanceUID) for item in self.asked[number].ReferencedSOPSequence]

    def report(self, port, committed, failed=(), number=-1, why=0x0112, role=True, transaction=None):
        """An N-EVENT-REPORT about a request, on an association of its own."""
        entity = AE("ARCHIVE")
        entity.add_requested_context(COMMITMENT)
        roles = [build_role(COMMITMENT, scp_role=True)] if role else []
        link = entity.associate("127.0.0.1", port, ae_title="UDEAN", ext_neg=roles)
        said = self.said(committed, failed, number, why, transaction)
        code = link.send_n_event_report(said, 2 if failed else 1, COMMITMENT, f"{COMMITMENT}.1")[0].Status
        link.release()
        assert code == 0

    def said(self, committed, failed=(), number=-1, why=0x0112, transaction=None):
        said = pydicom.Dataset()
        said.TransactionUID = transaction or self.asked[number].TransactionUID
        for keyword, names in (("ReferencedSOPSequence", committed), ("FailedSOPSequence", failed)):
            items = []
            for name in names:
                item = pydicom.Dataset()
                item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = MRImageStorage, name
                if keyword == "FailedSOPSequence":
                    item.FailureReason = why
                items.append(item)
            if items:
                setattr(said, keyword, items)
        return said


@contextlib.contextmanager
def asked(model, tmp_path, there, *options, run=serving):
    """A node that has sent a series to an archive and asked it; yields the node, its port, and whether its
    spool is empty."""
    files, spool = classic(tmp_path / "in", shape=(3, 12, 10)), tmp_path / "spool"
    with there.running() as port, run(model, spool, port, *options) as (node, mine):
        assert send(mine, files) == [0] * 3
        wait(lambda: there.asked)
        yield node, mine, lambda: not list((spool / "work").iterdir())


def test_all_is_asked_for_and_kept_until_it_is_committed_in_however_many_parts(model, tmp_path):
    there = Archive()
    with asked(model, tmp_path, there) as (node, mine, forgotten):
        names = there.names()
        assert sorted(names) == sorted(there.stored) and len(names) == 6
        said = json.loads(node.stderr.readline())
        assert said["event"] == "undelivered" and "6 of 6" in said["reason"]
        there.report(mine, names, transaction="1.2.3")  # not a transaction of ours
        there.report(mine, ["1.2.3.4"])  # not an image that was asked for
        there.report(mine, names[:4])
        there.report(mine, names[:4])
        wait(lambda: "2 of 6" in node.stderr.readline())
        assert not forgotten()
        there.report(mine, names[4:], role=False)
        wait(forgotten)
        there.report(mine, names[4:])  # once more
    assert len(there.asked) == 1 and len(there.stored) == 6


def test_a_report_that_lists_nothing_is_about_all(model, tmp_path):
    there = Archive()
    with asked(model, tmp_path, there) as (_, mine, forgotten):
        there.report(mine, [])
        wait(forgotten)


@pytest.mark.parametrize("before", [True, False])
def test_a_report_on_the_association_that_asked(model, tmp_path, before):
    there = Archive()

    def act(event):
        link, said = event.assoc, there.said(there.names())
        later = 0.0 if before else 0.3

        def report():
            time.sleep(later)
            link.send_n_event_report(said, 1, COMMITMENT, f"{COMMITMENT}.1")

        threading.Thread(target=report, daemon=True).start()
        return 0

    there.answers = [act]
    with asked(model, tmp_path, there) as (_, _, forgotten):
        wait(forgotten)
    assert len(there.stored) == 6


def test_what_failed_alone_is_sent_again(model, tmp_path):
    there = Archive()
    with asked(model, tmp_path, there) as (node, mine, forgotten):
        names = there.names()
        there.report(mine, names[2:], names[:2])
        wait(lambda: len(there.asked) == 2)
        assert sorted(there.stored[6:]) == sorted(there.names()) == sorted(names[:2]) and not forgotten()
        there.report(mine, there.names())
        wait(forgotten)
        wait(lambda: "2 failed (0112)" in node.stderr.readline())


@pytest.mark.parametrize(("why", "ends"), [(0x0119, True), (0x0213, False)])
def test_what_will_never_be_committed_is_set_aside_but_an_archive_out_of_resources_is_waited_for(
    model, tmp_path, steady, why, ends
):
    there, quarantine = Archive(), tmp_path / "spool" / "quarantine"
    with asked(model, tmp_path, there) as (_, mine, _):
        for number in range(ATTEMPTS + (not ends)):
            wait(lambda number=number: len(there.asked) == number + 1)
            there.report(mine, [], there.names()[:1], why=why)
        if ends:
            wait(lambda: list(quarantine.glob("*/reason.txt")))
            assert f"{why:04X}" in next(quarantine.glob("*/reason.txt")).read_text()
        else:
            wait(lambda: len(there.asked) == ATTEMPTS + 2)
            assert not list(quarantine.iterdir())
    assert len(there.stored) == 6 + ATTEMPTS - ends + (not ends)


def test_a_silent_archive_is_asked_again_but_sent_nothing_again_and_may_answer_any_request(
    model, tmp_path, monkeypatch
):
    monkeypatch.setattr("udean.runtime.dicom.node.PATIENCE", 0.5)
    there = Archive()
    with asked(model, tmp_path, there) as (_, mine, forgotten):
        wait(lambda: len(there.asked) >= 3)
        there.report(mine, there.names(0), number=0)
        wait(forgotten)
    assert len(there.stored) == 6


def test_a_killed_node_sends_nothing_twice_and_asks_again(model, tmp_path):
    there, spool = Archive(), tmp_path / "spool"
    with asked(model, tmp_path, there, run=running) as (node, _, forgotten):
        port = node.args[node.args.index("--to") + 1].rpartition(":")[2]
        node.kill()
        node.wait()
        with serving(model, spool, port) as (_, mine):
            wait(lambda: len(there.asked) == 2)
            assert not forgotten()
            there.report(mine, there.names())
            wait(forgotten)
    assert len(there.stored) == 6


def test_another_destination_is_sent_everything(model, tmp_path):
    there, spool = Archive(), tmp_path / "spool"
    with asked(model, tmp_path, there):
        pass
    with archive() as (port, got), serving(model, spool, port):
        wait(lambda: len(got) == 6)


def abort(event):
    event.assoc.abort()
    return 0


@pytest.mark.parametrize("answer", [abort, 0x0110, 0x0112])
def test_a_request_that_is_not_accepted_is_repeated_alone(model, tmp_path, answer):
    there = Archive(answer, answer)
    with asked(model, tmp_path, there) as (node, mine, forgotten):
        wait(lambda: len(there.asked) == 3)
        assert not forgotten()
        there.report(mine, there.names())
        wait(forgotten)
        assert "did not accept the request" in node.stderr.readline()
    assert len(there.stored) == 6


def test_an_archive_that_cannot_be_asked_after_all_does_not_offer_it(model, tmp_path):
    there = Archive(0x0211)
    with asked(model, tmp_path, there) as (_, _, forgotten):
        wait(forgotten)
    assert len(there.stored) == 6


def test_slices_that_an_archive_has_are_not_sent_again_after_another_was_refused(model, tmp_path):
    codes = iter([0, 0, 0xA700, 0, 0xA700])
    there = Archive(status=lambda: next(codes, 0))
    with asked(model, tmp_path, there) as (_, mine, forgotten):
        there.report(mine, there.names())
        wait(forgotten)
    assert len(there.stored) == len(set(there.stored)) == 6


@contextlib.contextmanager
def orthanc(folder, port, web, **settings):
    """The archive of that name; yields a function that asks its REST interface."""
    folder.mkdir(exist_ok=True)
    given = {"Name": "test", "StorageDirectory": str(folder), "IndexDirectory": str(folder), "Plugins": []}
    given |= {"DicomAet": "ARCHIVE", "DicomPort": port, "HttpPort": web, "DicomAlwaysAllowStore": True}
    (folder / "orthanc.json").write_text(json.dumps(given | settings))
    with open(folder / "log", "ab") as told:
        process = subprocess.Popen([ORTHANC, folder / "orthanc.json"], stdout=told, stderr=told)

    def ask(path, method="GET"):
        request = urllib.request.Request(f"http://127.0.0.1:{web}{path}", method=method)
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())

    def up():
        with contextlib.suppress(OSError):
            return ask("/system")

    try:
        wait(up)
        yield ask
    finally:
        process.terminate()
        process.wait()


def free_ports(count):
    with contextlib.ExitStack() as opened:
        found = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in found]


@pytest.mark.skipif(ORTHANC is None, reason="Orthanc is not installed")
def test_orthanc_commits_itself_as_soon_as_it_knows_the_node_and_has_all(model, tmp_path, monkeypatch):
    monkeypatch.setattr("udean.runtime.dicom.node.PATIENCE", 3)
    files, spool = classic(tmp_path / "in", shape=(3, 12, 10)), tmp_path / "spool"
    port, web, mine = free_ports(3)
    with serving(model, spool, port, "--port", mine):
        with orthanc(
            tmp_path / "orthanc", port, web
        ) as ask:  # it cannot report to a node that it does not know
            assert send(mine, files) == [0] * 3
            wait(lambda: len(ask("/instances")) == 6)
            time.sleep(1)
            assert list((spool / "work").iterdir())
            ask(f"/instances/{ask('/instances')[0]}", "DELETE")
        known = {"node": ["UDEAN", "127.0.0.1", mine]}
        with orthanc(tmp_path / "orthanc", port, web, DicomModalities=known) as ask:
            assert len(ask("/instances")) == 5
            wait(lambda: not list((spool / "work").iterdir()))
            assert len(ask("/instances")) == 6
