"""udean-dicom-node between a sender and an archive: real processes, real associations."""

import contextlib
import io
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.request
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import EnhancedMRImageStorage, MRImageStorage
from udean.runtime import SuperResolver
from udean.runtime.commands import dicom_node
from udean.runtime.dicom import listen
from udean.runtime.dicom.commitment import Commitments
from udean.runtime.dicom.node import ATTEMPTS, Attempts, Node, NodeSettings
from udean.runtime.dicom.send import Peer, Undelivered
from udean.runtime.dicom.send import send as deliver
from udean.runtime.dicom.spool import Journal, series_name

from .test_series import change, classic, ordered

COMMAND = [Path(sys.executable).with_name("udean-dicom-node")]
QUIET = 0.3  # seconds after which a series is finished


@contextlib.contextmanager
def archive(port=0, status=0x0000, tls=None, kind=MRImageStorage, syntax=None):
    """A storage node that keeps what it gets in a list."""
    got = []

    def store(event):
        dataset = event.dataset
        got.append(dataset)
        return status() if callable(status) else status

    entity = AE("ARCHIVE")
    entity.add_supported_context(kind, syntax)
    entity.require_called_aet = True
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)], ssl_context=tls
    )
    try:
        yield server.server_address[1], got
    finally:
        server.shutdown()


def arguments(model, spool, port, *options):
    """The command's: all waits are short."""
    given = ["--engine", model, "--spool", spool, "--to", f"ARCHIVE@127.0.0.1:{port}", "--allow", "SCANNER"]
    given += ["--port", 0, "--quiet", QUIET, "--retry", 0.1, "--precision", "fp32", "--threads", 1, *options]
    return [*map(str, given)]


@contextlib.contextmanager
def running(model, spool, port, *options):
    """The node as a process; yields it and the port that it listens on."""
    command = [*COMMAND, *arguments(model, spool, port, *options)]
    node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    node.stdout.readline()
    yield_port = int(re.search(r":(\d+) as UDEAN", node.stdout.readline())[1])
    try:
        yield node, yield_port
    finally:
        node.kill()
        node.communicate()


class Lines(io.TextIOBase):
    """What a thread writes, read line by line by another, as from a process."""

    def __init__(self):
        self.lines = queue.SimpleQueue()

    def write(self, text):
        for line in text.splitlines():
            if line:
                self.lines.put(line)
        return len(text)

    def readline(self, size=-1):
        return self.lines.get(timeout=60)


@contextlib.contextmanager
def serving(model, spool, port, *options):
    """As `running`, but in a thread of this process: it is ended by a stop, not killed."""
    said, began = types.SimpleNamespace(stdout=Lines(), stderr=Lines()), queue.SimpleQueue()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", said.stdout)
        patch.setattr(sys, "stderr", said.stderr)
        patch.setattr(dicom_node, "on_stop", lambda stop: began.put(stop.__self__))  # signals are a process's
        thread = threading.Thread(target=dicom_node.main, args=(arguments(model, spool, port, *options),))
        thread.start()
        node = began.get(timeout=60)
        try:
            said.stdout.readline()
            said.stdout.readline()
            yield said, node.address[1]
        finally:
            node.stop()
            thread.join(60)
        assert not thread.is_alive()


def call(
    port, caller="SCANNER", called="UDEAN", kind=MRImageStorage, syntax=pydicom.uid.ExplicitVRLittleEndian
):
    """An association with the node."""
    entity = AE(caller)
    entity.add_requested_context(kind, syntax)
    return entity.associate("127.0.0.1", port, ae_title=called)


def send(port, files, caller="SCANNER", called="UDEAN", end="release"):
    """Send files; returns their status codes, or None where the association is refused."""
    link = call(port, caller, called)
    if not link.is_established:
        return None
    codes = [link.send_c_store(pydicom.dcmread(file)).Status for file in files]
    getattr(link, end)()
    return codes


def wait(done, seconds=60):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_series_is_restored_and_sent_on_and_the_spool_forgets_it(model, tmp_path):
    files = classic(tmp_path / "in", shape=(4, 12, 10))
    with archive() as (port, got), running(model, tmp_path / "spool", port) as (node, mine):
        assert send(mine, files, caller="STRANGER") is None and send(mine, files, called="OTHER") is None
        assert send(mine, files) == [0] * 4
        wait(lambda: len(got) == 8 and not list((tmp_path / "spool" / "work").iterdir()))
        node.send_signal(signal.SIGTERM)
        _, errors = node.communicate(timeout=30)
    assert node.returncode == 0 and "Jane" not in errors and '"sent"' in errors
    assert {d.ImageType[0] for d in got} == {"DERIVED"} and len({d.SOPInstanceUID for d in got}) == 8
    assert {d.pixel_array.shape for d in map(with_meta, got)} == {(24, 20)}
    assert {d.StudyInstanceUID for d in got} == {"1.2"}
    assert not list((tmp_path / "spool" / "incoming").iterdir())


def with_meta(dataset):
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    return dataset


def test_what_cannot_be_restored_goes_to_quarantine_with_the_reason(model, tmp_path):
    files = classic(tmp_path / "in", shape=(5, 12, 10))
    good = classic(tmp_path / "good", shape=(3, 12, 10), SeriesInstanceUID="1.2.8")
    with archive() as (port, got), serving(model, tmp_path / "spool", port) as (_, mine):
        assert send(mine, [*files[:2], *files[3:], *good]) == [0] * 7
        quarantine = tmp_path / "spool" / "quarantine"
        wait(lambda: len(got) == 6 and list(quarantine.glob("*/reason.txt")))
        (reason,) = quarantine.glob("*/reason.txt")
        assert "missing" in reason.read_text() and len(list(reason.parent.glob("*.dcm"))) == 4


def test_nothing_is_lost_while_the_archive_is_away_and_the_node_is_killed(model, tmp_path):
    files = classic(tmp_path / "in", shape=(3, 12, 10))
    with archive() as (port, _):
        pass  # a free port, where nobody listens now
    with running(model, tmp_path / "spool", port) as (node, mine):
        assert send(mine, files) == [0] * 3
        node.kill()
    assert len(list((tmp_path / "spool").rglob("*.dcm"))) == 3
    with running(model, tmp_path / "spool", port) as (node, _):
        wait(lambda: list((tmp_path / "spool" / "work").glob("*/sr/*/00006.dcm")))
        node.kill()
    with archive(port) as (_, got), serving(model, tmp_path / "spool", port):
        wait(lambda: len(got) == 6 and not list((tmp_path / "spool" / "work").iterdir()))


def test_a_destination_that_keeps_refusing_ends_in_quarantine(model, tmp_path, steady):
    files = classic(tmp_path / "in", shape=(3, 12, 10))
    with archive(status=0xC001) as (port, got), serving(model, tmp_path / "spool", port) as (_, mine):
        assert send(mine, files) == [0] * 3
        wait(lambda: list((tmp_path / "spool" / "quarantine").glob("*/reason.txt")))
        assert len(got) == 5


def test_attempts_while_the_archive_is_away_are_no_refusals(model, tmp_path, steady):
    files = classic(tmp_path / "in", shape=(3, 12, 10))
    with archive() as (port, _):
        pass
    with serving(model, tmp_path / "spool", port) as (node, mine):
        assert send(mine, files) == [0] * 3
        for _ in range(6):
            assert '"undelivered"' in node.stderr.readline()
        with archive(port, status=0xA900) as (_, got):
            wait(lambda: list((tmp_path / "spool" / "quarantine").glob("*/reason.txt")))
    assert len(got) == 5


def idle_node(spool, **settings):
    """A node in this process that neither restores nor sends."""
    me, there = Peer("UDEAN", "127.0.0.1", 0), Peer("ARCHIVE", "127.0.0.1", 1)
    return Node(None, NodeSettings(me, there, (), spool, **settings))


def test_attempts_go_on_for_ever(tmp_path, capsys):
    """Twelve days of an archive that is down are 1750 of them."""
    node, attempts = idle_node(tmp_path), Attempts()
    waits = []
    for attempts.count in (1, 2, 20, 2000):
        node._wait(tmp_path, attempts, "undelivered", "The destination does not answer.")
        waits.append(json.loads(capsys.readouterr().err)["again"])
    node.stop()
    node.run()
    assert waits == [30.0, 45.0, 600.0, 600.0]


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (MemoryError(), "failed"),
        (RuntimeError("can't start new thread"), "failed"),
        (RuntimeError("std::bad_alloc"), "failed"),
        (OSError(12, "Cannot allocate memory"), "failed"),
        (RuntimeError("odd"), "quarantined"),
    ],
    ids=str,
)
def test_a_series_waits_for_memory_whoever_lacks_it(tmp_path, monkeypatch, capsys, error, event):
    node, series = idle_node(tmp_path), tmp_path / "work" / "a"
    series.mkdir()

    def restore(folder):
        raise error

    monkeypatch.setattr(node, "_restore", restore)
    node._handle(series, Attempts())
    assert json.loads(capsys.readouterr().err)["event"] == event
    assert series.exists() == (event == "failed")
    node.stop()
    node.run()


@pytest.mark.parametrize("lost", ["PatientID", "PatientName", "FrameOfReferenceUID"])
def test_a_series_that_loses_its_identity_on_the_way_does_not_go_out_in_halves(tmp_path, lost):
    files = ordered(classic(tmp_path / "in", shape=(8, 12, 10)))
    node = idle_node(tmp_path / "spool")
    halves, other = [], {"PatientID": "2", "PatientName": "Doe^John"}
    for said, part in (({}, files[:4]), ({lost: ""}, files[4:]), (other, files[:4])):
        for n, file in enumerate(part):
            change(file, **said)
            series = series_name(pydicom.dcmread(file))
            node.spool.store(series, str(n), file.read_bytes(), "token", "SCANNER")
        node.spool.finish(series, False)
        halves.append(node.spool.work / series)
    for half in halves[:2]:
        assert node._restore(half)[0] == 0 and "not whole" in node._restore(half)[2][0]
        node.spool.set_aside(half, half.name, "not whole")
    node._resolve = types.SimpleNamespace(card=None, engine=types.SimpleNamespace(info=None))
    with pytest.raises(AttributeError):  # it is another patient's, and is restored
        node._restore(halves[2])
    node.stop()
    node.run()


@pytest.mark.parametrize("lost", ["PatientID", "FrameOfReferenceUID"])
def test_the_rest_of_a_series_whose_first_half_went_out_without_identity_is_late(model, tmp_path, lost):
    files, spool = ordered(classic(tmp_path / "in", shape=(8, 12, 10))), tmp_path / "spool"
    anonymous = [shutil.copy(file, tmp_path / f"{n}.dcm") for n, file in enumerate(files[:4])]
    for file in anonymous:
        change(file, **{lost: ""})
    with archive() as (port, got), serving(model, spool, port) as (_, mine):
        assert send(mine, anonymous) == [0] * 4
        wait(lambda: len(got) == 8 and not list((spool / "work").iterdir()))
        assert send(mine, files[4:]) == [0] * 4
        wait(lambda: list((spool / "quarantine").glob("*/reason.txt")))
        assert "had gone out" in next((spool / "quarantine").glob("*/reason.txt")).read_text()
        assert send(mine, files) == [0] * 8  # the whole one, with the identity
        wait(lambda: len(got) == 24)
    assert sizes(got) == [8, 16] and not list((spool / "quarantine").iterdir())


def test_a_slice_that_was_refused_is_waited_for(tmp_path, monkeypatch):
    """Its sender may release the association all the same, and try again later."""
    files = ordered(classic(tmp_path / "in", shape=(4, 12, 10)))
    node = idle_node(tmp_path / "spool", quiet=0.0)

    def sent(files):
        link = threading.Thread()
        link.requestor = types.SimpleNamespace(ae_title="SCANNER")
        codes = []
        for file in files:
            dataset = pydicom.dcmread(file)
            event = types.SimpleNamespace(
                dataset=dataset,
                assoc=link,
                context=types.SimpleNamespace(transfer_syntax=dataset.file_meta.TransferSyntaxUID),
                request=types.SimpleNamespace(AffectedSOPInstanceUID=dataset.SOPInstanceUID),
                encoded_dataset=file.read_bytes,
            )
            codes.append(node._store(event))
        node._released(types.SimpleNamespace(assoc=link))
        node._collect()
        return codes

    with monkeypatch.context() as patch:
        patch.setattr(node.spool, "free", lambda: 0)
        assert sent(files[3:]) == [0xA700]
    assert sent(files[:3]) == [0] * 3 and not list(node.spool.work.iterdir())
    assert sent(files[3:]) == [0]
    (series,) = node.spool.work.iterdir()
    assert len(list(series.glob("*.dcm"))) == 4 and not (series / "note.txt").exists()
    node.stop()
    node.run()


def test_a_spool_that_cannot_be_read_for_a_while_does_not_end_the_node(tmp_path, monkeypatch, capsys):
    node = idle_node(tmp_path / "spool", retry=0.01)
    looks = []

    def folders(place):
        looks.append(place)
        if len(looks) < 3:
            raise OSError(5, "Input/output error")
        node.stop()
        return []

    monkeypatch.setattr("udean.runtime.dicom.node.folders", folders)
    node.run()
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["reason"] for line in told] == ["The spool cannot be read: Input/output error."] * 2


@pytest.mark.parametrize("established", [False, True])
def test_an_archive_that_hangs_up_between_two_slices_is_tried_again(tmp_path, monkeypatch, established):
    """pynetdicom says so by a RuntimeError, when the next slice is to be sent."""
    (file,) = classic(tmp_path / "in", shape=(1, 12, 10))
    link = types.SimpleNamespace(is_established=True, release=lambda: None)
    link.accepted_contexts = [types.SimpleNamespace(abstract_syntax=MRImageStorage)]

    def store(_):
        link.is_established = established
        raise RuntimeError("The association with a peer SCP must be established")

    link.send_c_store = store
    monkeypatch.setattr(AE, "associate", lambda *_, **__: link)
    with pytest.raises(RuntimeError if established else Undelivered):
        there = Peer("ARCHIVE", "127.0.0.1", 1)
        deliver({"1": file}, {"1"}, "UDEAN", there, None, Commitments(), Journal(tmp_path, str(there)))


def test_what_is_set_aside_is_bounded_on_request_and_each_removal_is_told(tmp_path, capsys):
    node = idle_node(tmp_path, aside=1500)
    for name in "abc":
        node.spool.store(name, "1", bytes(1000), "token", "SCANNER")
        node._set_aside(node.spool.incoming / name, Attempts(), "It is a phase image.")
    assert [entry.name[0] for entry in node.spool.aside()] == ["c"]
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line.get("series", "")[0]) for line in told] == [
        *(("quarantined", "a"), ("quarantined", "b"), ("dropped", "a")),
        *(("quarantined", "c"), ("dropped", "b")),
    ]
    metrics = node.metrics.render()
    assert 'series_total{outcome="dropped"} 2' in metrics and "udean_quarantine_bytes 10" in metrics
    node.stop()
    node.run()


def test_thick_slices_reach_the_archive_at_the_spacing_asked_for(model, tmp_path):
    files = classic(tmp_path / "in", shape=(5, 26, 24), spacing=(1.2, 1.0), thickness=4.0)
    with archive() as (port, got), serving(model, tmp_path / "spool", port, "--spacing", "1mm") as (_, mine):
        assert send(mine, files) == [0] * 5
        wait(lambda: len(got) == 20)
    assert {(*map(float, d.PixelSpacing), float(d.SpacingBetweenSlices)) for d in got} == {(1.0, 1.0, 1.0)}
    places = sorted(np.array(d.ImagePositionPatient, float) @ normal(d) for d in got)
    np.testing.assert_allclose(np.diff(places), 1, atol=1e-4)


def test_what_a_model_was_not_made_for_is_set_aside_if_asked(model, tmp_path):
    files = classic(tmp_path / "in", shape=(5, 26, 24), spacing=(1.2, 1.0), thickness=4.0)
    with archive() as (port, _), serving(model, tmp_path / "spool", port, "--strict") as (_, mine):
        assert send(mine, files) == [0] * 5
        wait(lambda: list((tmp_path / "spool" / "quarantine").glob("*/reason.txt")))
    (reason,) = (tmp_path / "spool" / "quarantine").glob("*/reason.txt")
    assert "times as thick" in reason.read_text()


def normal(dataset):
    """The slice normal, in LPS."""
    cosines = np.array(dataset.ImageOrientationPatient, float)
    return np.cross(cosines[:3], cosines[3:])


def test_an_archive_of_implicit_vr_alone_is_served(model, tmp_path):
    files = classic(tmp_path / "in", shape=(3, 12, 10))
    syntax = pydicom.uid.ImplicitVRLittleEndian
    with archive(syntax=syntax) as (port, got), serving(model, tmp_path / "spool", port) as (_, mine):
        assert send(mine, files) == [0] * 3
        wait(lambda: len(got) == 6)
    assert {d.pixel_array.shape for d in map(with_meta, got)} == {(24, 20)}


def test_an_archive_that_takes_no_mr_images_is_waited_for(model, tmp_path, steady):
    """Somebody will set it right: it has said nothing of a single slice."""
    files = classic(tmp_path / "in", shape=(3, 12, 10))
    with archive() as (port, _):
        pass
    with serving(model, tmp_path / "spool", port) as (node, mine):
        with archive(port, kind=EnhancedMRImageStorage):
            assert send(mine, files) == [0] * 3
            for _ in range(ATTEMPTS + 1):
                assert "accepts no MR images" in node.stderr.readline()
        with archive(port) as (_, got):
            wait(lambda: len(got) == 6)


def test_slices_that_a_poor_anonymiser_gave_one_uid_are_all_kept(model, tmp_path):
    files = classic(tmp_path / "in", shape=(4, 12, 10))
    for file in files:
        change(file, SOPInstanceUID="1.2.3.4")
    with archive() as (port, got), serving(model, tmp_path / "spool", port) as (_, mine):
        assert send(mine, [*files, *files[:2]]) == [0] * 6
        wait(lambda: len(got) == 8)
    assert len({tuple(d.ImagePositionPatient) for d in got}) == 8


def test_a_series_is_not_finished_while_its_association_is_open(model, tmp_path):
    files = classic(tmp_path / "in", shape=(4, 12, 10))
    with archive() as (port, got), serving(model, tmp_path / "spool", port) as (_, mine):
        entity = AE("SCANNER")
        entity.add_requested_context(MRImageStorage, pydicom.uid.ExplicitVRLittleEndian)
        link = entity.associate("127.0.0.1", mine, ae_title="UDEAN")
        for number, file in enumerate(files):
            if number == 2:
                time.sleep(4 * QUIET)
            assert link.send_c_store(pydicom.dcmread(file)).Status == 0
        time.sleep(2 * QUIET)
        assert not got
        link.release()
        wait(lambda: len(got) == 8 and not list((tmp_path / "spool" / "work").iterdir()))


def test_stray_files_and_a_failing_disk_do_not_end_the_node(model, tmp_path):
    bad = classic(tmp_path / "bad", shape=(5, 12, 10))
    good = classic(tmp_path / "good", shape=(3, 12, 10), SeriesInstanceUID="1.2.8")
    spool = tmp_path / "spool"
    with archive() as (port, got), serving(model, spool, port) as (node, mine):
        (spool / "incoming" / "stray").touch()
        (spool / "work" / "stray").touch()
        (spool / "quarantine").rmdir()
        (spool / "quarantine").touch()  # where nothing can be moved to
        assert send(mine, [*bad[:2], *bad[3:]]) == [0] * 4
        assert '"failed"' in node.stderr.readline()
        assert send(mine, good) == [0] * 3
        wait(lambda: len(got) == 6)
        (spool / "quarantine").unlink()
        (spool / "quarantine").mkdir()
        wait(lambda: list((spool / "quarantine").glob("*/reason.txt")))
        assert (spool / "incoming" / "stray").exists()


def test_a_kill_while_a_sent_series_is_removed_sends_no_part_of_it(model, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def rmtree(folder, **_):
        next(folder.glob("*.dcm")).unlink()
        shutil.rmtree(folder / "sr")
        raise Killed

    names = types.SimpleNamespace(rmtree=rmtree, disk_usage=shutil.disk_usage)
    files, spool = classic(tmp_path / "in", shape=(3, 12, 10)), tmp_path / "spool"
    with archive() as (port, got):
        settings = NodeSettings(
            Peer("UDEAN", "127.0.0.1", 0), Peer("ARCHIVE", "127.0.0.1", port), ("SCANNER",), spool, 0.5, 0.3
        )
        with SuperResolver(model, "cpu", "fp32", threads=1) as resolve, monkeypatch.context() as patch:
            node = Node(resolve, settings)
            patch.setattr("udean.runtime.dicom.spool.shutil", names)
            assert send(node.address[1], files) == [0] * 3
            with pytest.raises(Killed):
                node.run()
            node.stop()
            node.run()
        assert len(got) == 6 and list((spool / "work").iterdir())
        with serving(model, spool, port):
            wait(lambda: not list((spool / "work").iterdir()))
            time.sleep(2 * QUIET)
    assert len(got) == 6


def test_good_volumes_of_a_series_are_sent_though_another_is_refused(model, tmp_path):
    good = classic(tmp_path / "good", shape=(4, 12, 10), EchoTime=10)
    bad = classic(tmp_path / "bad", shape=(5, 12, 10), EchoTime=20)
    bad = sorted(bad, key=lambda file: pydicom.dcmread(file).ImagePositionPatient[2])
    with archive() as (port, got), serving(model, tmp_path / "spool", port) as (_, mine):
        assert send(mine, [*good, *bad[:2], *bad[3:]]) == [0] * 8
        quarantine = tmp_path / "spool" / "quarantine"
        wait(lambda: list(quarantine.glob("*/reason.txt")))
        (reason,) = quarantine.glob("*/reason.txt")
        assert "lacks slices" in reason.read_text() and len(list(reason.parent.glob("*.dcm"))) == 8
    assert len(got) == 8 and {d.EchoTime for d in got} == {10}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes the certificate, is absent")
def test_tls_both_ways(model, tmp_path):
    import ssl

    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-keyout",
        key,
        "-out",
        pem,
    ]
    subprocess.run([*make, *subject], check=True, capture_output=True)
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pem)
    theirs.load_cert_chain(pem, key)
    mine = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=pem)
    mine.load_cert_chain(pem, key)
    options = ["--tls-certificate", pem, "--tls-key", key, "--tls-authority", pem]
    files = classic(tmp_path / "in", shape=(3, 12, 10))
    with archive(tls=theirs) as (port, got), serving(model, tmp_path / "spool", port, *options) as (_, node):
        assert send(node, files) is None  # in the clear
        entity = AE("SCANNER")
        entity.add_requested_context(MRImageStorage, pydicom.uid.ExplicitVRLittleEndian)
        link = entity.associate("127.0.0.1", node, ae_title="UDEAN", tls_args=(mine, "127.0.0.1"))
        assert [link.send_c_store(pydicom.dcmread(file)).Status for file in files] == [0] * 3
        link.release()
        wait(lambda: len(got) == 6)


def test_where_nothing_can_start_the_code_is_two(model, tmp_path, capsys):
    (tmp_path / "file").touch()
    for to, word in (("ARCHIVE", "AET@host:port"), ("A@127.0.0.1:104", "Cannot use the spool")):
        with pytest.raises(SystemExit) as end:
            dicom_node.main([*arguments(model, tmp_path / "file", 1), "--to", to])
        said = capsys.readouterr().err
        assert end.value.code == 2 and word in said and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def sizes(got):
    """How many slices the archive has of each series."""
    return sorted(Counter(str(d.SeriesInstanceUID) for d in got).values())


@pytest.mark.parametrize("end", ["abort", "kill"])
def test_half_a_series_does_not_go_out_and_the_whole_one_does_once(model, tmp_path, end):
    files, spool = classic(tmp_path / "in", shape=(6, 12, 10)), tmp_path / "spool"
    with archive() as (port, got):
        with (running if end == "kill" else serving)(model, spool, port) as (node, mine):
            if end == "kill":
                link = call(mine)
                assert [link.send_c_store(pydicom.dcmread(f)).Status for f in files[:3]] == [0] * 3
                node.kill()
                node.wait()
                link.abort()
            else:
                assert send(mine, files[:3], end="abort") == [0] * 3
                time.sleep(4 * QUIET)
                assert not got
                assert send(mine, files) == [0] * 6
                wait(lambda: len(got) == 12)
        if end == "kill":
            with serving(model, spool, port) as (_, mine):
                time.sleep(4 * QUIET)
                assert not got
                assert send(mine, files[3:]) == [0] * 3  # it goes on where it was
                wait(lambda: len(got) == 12)
    assert sizes(got) == [12] and not list((spool / "quarantine").iterdir())


def test_what_a_sender_abandons_goes_out_late_and_says_so(model, tmp_path):
    files = classic(tmp_path / "in", shape=(4, 12, 10))
    with archive() as (port, got), serving(model, tmp_path / "spool", port, "--abandoned", 2) as (_, mine):
        assert send(mine, files[:3], end="abort") == [0] * 3
        time.sleep(3 * QUIET)
        assert not got
        wait(lambda: got or list((tmp_path / "spool" / "quarantine").iterdir()))
    assert not got or all("slices may be missing" in d.ImageComments for d in got)


def test_a_stop_waits_for_no_sender_and_nothing_of_a_half_series_goes_out(model, tmp_path):
    files = classic(tmp_path / "in", shape=(4, 12, 10))
    with archive() as (port, got):
        with running(model, tmp_path / "spool", port) as (node, mine), contextlib.ExitStack() as opened:
            link = call(mine)
            assert link.send_c_store(pydicom.dcmread(files[0])).Status == 0
            # Others have not said who they are, or stopped in the middle of a message.
            for said in (b"", *[b"\1\0\0\0"] * 3):
                stranger = opened.enter_context(socket.create_connection(("127.0.0.1", mine)))
                stranger.sendall(said)
            time.sleep(0.5)
            node.send_signal(signal.SIGTERM)
            assert node.wait(25) == 0
            wait(lambda: link.is_aborted)
        with serving(model, tmp_path / "spool", port) as (_, mine):
            time.sleep(4 * QUIET)
            assert not got
            assert send(mine, files) == [0] * 4
            wait(lambda: len(got) == 8)


def test_connections_that_come_as_the_node_ends_do_not_keep_it_alive(model, tmp_path):
    with (
        archive() as (port, _),
        running(model, tmp_path / "spool", port) as (node, mine),
        contextlib.ExitStack() as opened,
    ):
        for number in range(60):
            if number == 30:
                node.send_signal(signal.SIGTERM)
            with contextlib.suppress(OSError):  # it listens no more
                opened.enter_context(socket.create_connection(("127.0.0.1", mine), timeout=5))
        assert node.wait(20) == 0


def test_a_released_sender_beside_one_that_broke_off_does_not_stand_for_it(model, tmp_path):
    files = classic(tmp_path / "in", shape=(6, 12, 10))
    with archive() as (port, got), serving(model, tmp_path / "spool", port) as (_, mine):
        one, other = call(mine), call(mine)
        for n, file in enumerate(files[:5]):
            assert (one, other)[n % 2].send_c_store(pydicom.dcmread(file)).Status == 0
        one.abort()
        other.release()
        time.sleep(4 * QUIET)
        assert not got
        assert send(mine, files[5:]) == [0]
        wait(lambda: len(got) == 12)
    assert sizes(got) == [12]


def test_late_slices_are_set_aside_until_the_whole_series_comes(model, tmp_path):
    files, spool = classic(tmp_path / "in", shape=(4, 12, 10)), tmp_path / "spool"
    ends = sorted(files, key=lambda file: pydicom.dcmread(file).ImagePositionPatient[2])
    with archive() as (port, got), serving(model, spool, port) as (_, mine):
        assert send(mine, ends[:3]) == [0] * 3
        wait(lambda: len(got) == 6 and not list((spool / "work").iterdir()))
        assert send(mine, ends[3:]) == [0]
        wait(lambda: list((spool / "quarantine").glob("*/reason.txt")))
        assert (
            sizes(got) == [6]
            and "came after" in next((spool / "quarantine").glob("*/reason.txt")).read_text()
        )
        assert send(mine, ends) == [0] * 4
        wait(lambda: len(got) == 14)
        assert sizes(got) == [6, 8] and not list((spool / "quarantine").iterdir())


def test_what_has_gone_out_is_known_however_the_clock_jumps(model, tmp_path):
    files, spool = ordered(classic(tmp_path / "in", shape=(5, 12, 10))), tmp_path / "spool"
    with archive() as (port, got):
        with serving(model, spool, port) as (_, mine):
            assert send(mine, files[:3]) == [0] * 3
            wait(lambda: len(got) == 6 and not list((spool / "work").iterdir()))
        for note in (spool / "sent").iterdir():
            os.utime(note, (0, 0))  # as it looks after a jump ahead
        with serving(model, spool, port) as (_, mine):
            assert send(mine, files[3:]) == [0] * 2
            wait(lambda: list((spool / "quarantine").glob("*/reason.txt")))
    assert sizes(got) == [6]


def test_late_slices_join_a_series_that_waits_for_the_archive(model, tmp_path):
    files = classic(tmp_path / "in", shape=(4, 12, 10))
    with archive() as (port, _):
        pass
    with serving(model, tmp_path / "spool", port) as (node, mine):
        assert send(mine, ordered(files)[:3]) == [0] * 3
        assert '"undelivered"' in node.stderr.readline()
        assert send(mine, ordered(files)[3:]) == [0]
        wait(lambda: len(list((tmp_path / "spool" / "work").glob("*/*.dcm"))) == 4)
        with archive(port) as (_, got):
            wait(lambda: len(got) == 8)
        assert not list((tmp_path / "spool" / "quarantine").iterdir())


def test_a_slice_that_was_missing_completes_the_series_that_was_set_aside(model, tmp_path):
    files, spool = classic(tmp_path / "in", shape=(5, 12, 10)), tmp_path / "spool"
    files.sort(key=lambda file: pydicom.dcmread(file).ImagePositionPatient[2])
    with archive() as (port, got), serving(model, spool, port) as (_, mine):
        assert send(mine, [*files[:2], *files[3:]]) == [0] * 4
        wait(lambda: list((spool / "quarantine").glob("*/reason.txt")))
        assert send(mine, files[2:3]) == [0]
        wait(lambda: len(got) == 10)
    assert sizes(got) == [10] and not list((spool / "quarantine").iterdir())


def test_two_patients_of_one_series_never_share_a_folder(model, tmp_path):
    mine_, yours = (classic(tmp_path / who, shape=(3, 12, 10), PatientID=who) for who in ("A", "B"))
    for one, other in zip(mine_, yours, strict=True):  # even with the same instance UIDs
        dataset = pydicom.dcmread(other)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.dcmread(
            one
        ).SOPInstanceUID
        dataset.save_as(other)
    with archive() as (port, got), serving(model, tmp_path / "spool", port) as (_, mine):
        assert send(mine, [file for pair in zip(mine_, yours, strict=True) for file in pair]) == [0] * 6
        wait(lambda: len(got) == 12)
    assert sizes(got) == [6, 6] and len({(d.SeriesInstanceUID, d.PatientID) for d in got}) == 2
    assert len({d.SOPInstanceUID for d in got}) == 12


def test_an_archive_out_of_resources_is_waited_for(model, tmp_path):
    files, answers = classic(tmp_path / "in", shape=(3, 12, 10)), iter([0xA700] * 3 + [0x0110] * 3)
    with (
        archive(status=lambda: next(answers, 0)) as (port, got),
        serving(model, tmp_path / "spool", port) as (node, mine),
    ):
        assert send(mine, files) == [0] * 3
        line = json.loads(node.stderr.readline())
        assert line["event"] == "undelivered" and line["attempts"] == 1 and line["again"] > 0
        wait(lambda: len(got) == 12)
    assert len({d.SOPInstanceUID for d in got}) == 6 and not list(
        (tmp_path / "spool" / "quarantine").iterdir()
    )


def test_what_is_set_aside_is_listed_put_back_and_dropped(model, tmp_path):
    files, status, spool = classic(tmp_path / "in", shape=(3, 12, 10)), [0xC000], tmp_path / "spool"
    gap = classic(tmp_path / "gap", shape=(5, 12, 10), SeriesInstanceUID="1.2.8")
    gap.sort(key=lambda file: pydicom.dcmread(file).ImagePositionPatient[2])

    def udean(*words):
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
            pytest.raises(SystemExit) as end,
        ):
            dicom_node.main([*map(str, words), "--spool", str(spool)])
        return types.SimpleNamespace(
            returncode=end.value.code or 0, stdout=out.getvalue(), stderr=err.getvalue()
        )

    with archive(status=lambda: status[0]) as (port, got), serving(model, spool, port) as (_, mine):
        assert send(mine, files) == [0] * 3 and send(mine, [*gap[:2], *gap[3:]]) == [0] * 4
        wait(lambda: len(list((spool / "quarantine").glob("*/reason.txt"))) == 2)
        listed = udean("queue").stdout
        assert "2 in quarantine" in listed and "C000" in listed and "missing" in listed
        names = {word.split()[0]: word for word in listed.splitlines() if " slices, " in word}
        (refused,) = (name for name, line in names.items() if "C000" in line)
        (missing,) = (name for name, line in names.items() if "missing" in line)
        status[0], before = 0, len(got)
        assert udean("retry", refused).returncode == 0 and udean("drop", missing).returncode == 0
        wait(lambda: len(got) == before + 6)
        wait(lambda: "0 in work" in (text := udean("queue").stdout) and "0 in quarantine" in text)
        done = udean("drop", "../../in")
        assert done.returncode == 2 and "set aside" in done.stderr and files[0].exists()


def test_only_what_can_be_decoded_is_offered(model, tmp_path):
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    with archive() as (port, _), serving(model, tmp_path / "spool", port) as (_, mine):
        for syntax in (
            "1.2.840.10008.1.2.2",
            "1.2.840.10008.1.2.4.201",
            "1.2.840.10008.1.2.4.102",
            "1.2.840.10008.1.2.5",
        ):
            link = call(mine, syntax=syntax)
            try:
                known = get_decoder(UID(syntax)).is_available
            except NotImplementedError:
                known = False
            assert bool(link.is_established and link.accepted_contexts) == known, syntax
            link.release() if link.is_established else None


def test_associations_are_limited_in_all_and_by_peer_but_not_by_connections(model, tmp_path):
    options = "--max-associations", 3, "--max-associations-per-peer", 2
    with archive() as (port, _), serving(model, tmp_path / "spool", port, *options) as (_, mine):
        idle = [socket.create_connection(("127.0.0.1", mine)) for _ in range(20)]  # that never associate
        links = [call(mine) for _ in range(3)]
        assert [link.is_established for link in links] == [True, True, False]
        for caller in ("SCANNER", "ANYBODY"):  # verification is answered always
            link = call(mine, caller, kind="1.2.840.10008.1.1")
            assert link.send_c_echo().Status == 0
            link.release()
        links[0].release()
        wait(lambda: call(mine).is_established)
        for connection in idle:
            connection.close()


@pytest.mark.parametrize(("size", "bomb"), [(1000, False), (100_000, True)])
def test_a_few_deflated_bytes_do_not_fill_the_memory(monkeypatch, size, bomb):
    monkeypatch.setattr(listen, "INFLATED", 50_000)
    monkeypatch.setattr(listen, "CHUNK", 1000)
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    request = types.SimpleNamespace(DataSet=io.BytesIO(deflate.compress(bytes(size)) + deflate.flush()))
    for syntax in (pydicom.uid.DeflatedExplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian):
        context = types.SimpleNamespace(transfer_syntax=syntax)
        event = types.SimpleNamespace(context=context, request=request)
        assert listen.is_bomb(event) == (bomb and syntax.is_deflated)


def test_a_pdu_longer_than_announced_is_refused_before_it_is_read(model, tmp_path):
    with archive() as (port, _), running(model, tmp_path / "spool", port) as (node, mine):
        rss = lambda: int(open(f"/proc/{node.pid}/statm").read().split()[1]) // 256  # noqa: E731, SIM115
        before = rss()
        with socket.create_connection(("127.0.0.1", mine)) as stranger, pytest.raises(OSError):
            stranger.sendall(b"\x01\x00\xff\xff\xff\xf0")
            for _ in range(300):
                stranger.sendall(bytes(1 << 20))
        link = call(mine)
        with pytest.raises(OSError):
            link.dul.socket.socket.sendall(b"\x04\x00\x7f\xff\xff\xf0")
            for _ in range(300):
                link.dul.socket.socket.sendall(bytes(1 << 20))
        assert rss() - before < 100
        assert call(mine).is_established


def test_health_and_metrics(model, tmp_path):
    files = classic(tmp_path / "in", shape=(3, 12, 10))
    with archive() as (port, got), serving(model, tmp_path / "spool", port) as (node, mine):
        where = node.stdout.readline().split()[-1]
        assert urllib.request.urlopen(f"http://{where}/health").read().startswith(b"ok ")
        assert send(mine, files) == [0] * 3
        wait(lambda: len(got) == 6 and not list((tmp_path / "spool" / "work").iterdir()))
        text = urllib.request.urlopen(f"http://{where}/metrics").read().decode()
    assert (
        'udean_slices_total{direction="received"} 3' in text
        and 'udean_series_total{outcome="sent"} 1' in text
    )
    assert "udean_quarantine_series 0" in text


def test_one_spool_has_one_node(model, tmp_path):
    with serving(model, tmp_path / "spool", 1):
        command = [*COMMAND, *arguments(model, tmp_path / "spool", 1)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Another node" in done.stderr


def test_series_numbers_are_free_in_the_study(model, tmp_path):
    one = classic(tmp_path / "a", shape=(3, 12, 10), SeriesInstanceUID="1.2.7", SeriesNumber=1003)
    other = classic(tmp_path / "b", shape=(3, 12, 10), SeriesNumber=3)
    with archive() as (port, got), serving(model, tmp_path / "spool", port) as (_, mine):
        assert send(mine, one) == [0] * 3
        wait(lambda: len(got) == 6)
        assert send(mine, other) == [0] * 3
        wait(lambda: len(got) == 12)
    assert len({d.SeriesNumber for d in got} | {3, 1003}) == 4


def without(files, folder, keyword="PatientID"):
    """Copies of files that do not say whose they are."""
    folder.mkdir()
    copies = [folder / file.name for file in files]
    for file, copy in zip(files, copies, strict=True):
        shutil.copy(file, copy)
        change(copy, **{keyword: ""})
    return copies


def test_a_half_without_identity_is_set_aside_though_the_other_half_has_gone_out(model, tmp_path):
    files, spool = ordered(classic(tmp_path / "in", shape=(8, 12, 10))), tmp_path / "spool"
    with archive() as (port, got):
        with serving(model, spool, port) as (_, mine):
            assert send(mine, files[:4]) == [0] * 4
            wait(lambda: len(got) == 8 and not list((spool / "work").iterdir()))
        with serving(model, spool, port) as (_, mine):
            assert send(mine, without(files[4:], tmp_path / "nobody's")) == [0] * 4
            wait(lambda: list((spool / "quarantine").glob("*/reason.txt")))
            other = classic(tmp_path / "other", shape=(4, 12, 10), PatientID="2", PatientName="Doe^John")
            assert send(mine, other) == [0] * 4  # under the same UID: a poor anonymiser's
            wait(lambda: len(got) == 16)
            assert send(mine, files) == [0] * 8
            wait(lambda: len(got) == 32)
    assert len(list((spool / "quarantine").iterdir())) == 1
    (reason,) = (spool / "quarantine").glob("*/reason.txt")
    assert "had gone out" in reason.read_text()


def test_a_half_that_came_without_identity_is_completed_in_a_later_association(model, tmp_path):
    files, spool = ordered(classic(tmp_path / "in", shape=(8, 12, 10))), tmp_path / "spool"
    with archive() as (port, got), serving(model, spool, port, "--quiet", 2) as (_, mine):
        assert send(mine, files[:4]) == [0] * 4
        assert send(mine, without(files[4:], tmp_path / "nobody's")) == [0] * 4
        wait(lambda: len(list((spool / "quarantine").glob("*/reason.txt"))) == 2)
        assert not got
        assert send(mine, files[4:]) == [0] * 4
        wait(lambda: len(got) == 16)
    assert sizes(got) == [16] and {d.PatientID for d in got} == {str(pydicom.dcmread(files[0]).PatientID)}
