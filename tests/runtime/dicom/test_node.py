"""udean-dicom-node between a sender and an archive: real processes, real associations."""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pydicom
import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import EnhancedMRImageStorage, MRImageStorage
from udean.runtime import SuperResolver
from udean.runtime.dicom.node import Node, Peer, Settings

from ...support.fakes import card, onnx_model
from .test_series import classic

COMMAND = [sys.executable, "-m", "udean.runtime.commands.dicom_node", "--precision", "fp32", "--threads", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return onnx_model(tmp_path_factory.mktemp("model") / "sr.onnx", card((2, 2, 2), 3, (16, 16)))


@contextlib.contextmanager
def archive(port=0, status=0x0000, tls=None, kind=MRImageStorage, syntax=None):
    """A storage node that keeps what it gets in a list."""
    got = []

    def store(event):
        dataset = event.dataset
        got.append(dataset)
        return status

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


@contextlib.contextmanager
def running(model, spool, port, *options):
    """The node as a process; yields it and the port that it listens on."""
    command = [*COMMAND, "--engine", str(model), "--spool", str(spool), "--to", f"ARCHIVE@127.0.0.1:{port}"]
    command += ["--allow", "SCANNER", "--port", "0", "--quiet", "0.5", "--retry", "0.3", *map(str, options)]
    node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    node.stdout.readline()
    yield_port = int(re.search(r":(\d+) as UDEAN", node.stdout.readline())[1])
    try:
        yield node, yield_port
    finally:
        node.kill()
        node.communicate()


def send(port, files, caller="SCANNER", called="UDEAN"):
    """Send files; returns their status codes, or None where the association is refused."""
    entity = AE(caller)
    entity.add_requested_context(MRImageStorage, pydicom.uid.ExplicitVRLittleEndian)
    link = entity.associate("127.0.0.1", port, ae_title=called)
    if not link.is_established:
        return None
    codes = [link.send_c_store(pydicom.dcmread(file)).Status for file in files]
    link.release()
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
    with archive() as (port, got), running(model, tmp_path / "spool", port) as (_, mine):
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
    with archive(port) as (_, got), running(model, tmp_path / "spool", port):
        wait(lambda: len(got) == 6 and not list((tmp_path / "spool" / "work").iterdir()))


def test_a_destination_that_keeps_refusing_ends_in_quarantine(model, tmp_path):
    files = classic(tmp_path / "in", shape=(3, 12, 10))
    with archive(status=0xA700) as (port, got), running(model, tmp_path / "spool", port) as (_, mine):
        assert send(mine, files) == [0] * 3
        wait(lambda: list((tmp_path / "spool" / "quarantine").glob("*/reason.txt")))
        assert len(got) == 5


def test_attempts_while_the_archive_is_away_are_no_refusals(model, tmp_path):
    files = classic(tmp_path / "in", shape=(3, 12, 10))
    with archive() as (port, _):
        pass
    with running(model, tmp_path / "spool", port) as (node, mine):
        assert send(mine, files) == [0] * 3
        for _ in range(6):
            assert '"undelivered"' in node.stderr.readline()
        with archive(port, status=0xA700) as (_, got):
            wait(lambda: list((tmp_path / "spool" / "quarantine").glob("*/reason.txt")))
    assert len(got) == 5


def test_an_archive_of_implicit_vr_alone_is_served(model, tmp_path):
    files = classic(tmp_path / "in", shape=(3, 12, 10))
    syntax = pydicom.uid.ImplicitVRLittleEndian
    with archive(syntax=syntax) as (port, got), running(model, tmp_path / "spool", port) as (_, mine):
        assert send(mine, files) == [0] * 3
        wait(lambda: len(got) == 6)
    assert {d.pixel_array.shape for d in map(with_meta, got)} == {(24, 20)}


def test_an_archive_that_takes_no_mr_images_ends_in_quarantine(model, tmp_path):
    files = classic(tmp_path / "in", shape=(3, 12, 10))
    kind, quarantine = EnhancedMRImageStorage, tmp_path / "spool" / "quarantine"
    with archive(kind=kind) as (port, _), running(model, tmp_path / "spool", port) as (_, mine):
        assert send(mine, files) == [0] * 3
        wait(lambda: list(quarantine.glob("*/reason.txt")))
        assert "takes no MR images" in next(quarantine.glob("*/reason.txt")).read_text()


def test_a_series_is_not_finished_while_its_association_is_open(model, tmp_path):
    files = classic(tmp_path / "in", shape=(4, 12, 10))
    with archive() as (port, got), running(model, tmp_path / "spool", port) as (_, mine):
        entity = AE("SCANNER")
        entity.add_requested_context(MRImageStorage, pydicom.uid.ExplicitVRLittleEndian)
        link = entity.associate("127.0.0.1", mine, ae_title="UDEAN")
        for number, file in enumerate(files):
            if number == 2:
                time.sleep(2)  # four times the node's --quiet
            assert link.send_c_store(pydicom.dcmread(file)).Status == 0
        time.sleep(1)
        assert not got
        link.abort()
        wait(lambda: len(got) == 8 and not list((tmp_path / "spool" / "work").iterdir()))


def test_stray_files_and_a_failing_disk_do_not_end_the_node(model, tmp_path):
    bad = classic(tmp_path / "bad", shape=(5, 12, 10))
    good = classic(tmp_path / "good", shape=(3, 12, 10), SeriesInstanceUID="1.2.8")
    spool = tmp_path / "spool"
    with archive() as (port, got), running(model, spool, port) as (node, mine):
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
        assert node.poll() is None and (spool / "incoming" / "stray").exists()


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
        settings = Settings(
            Peer("UDEAN", "127.0.0.1", 0), Peer("ARCHIVE", "127.0.0.1", port), ("SCANNER",), spool, 0.5, 0.3
        )
        with SuperResolver(model, "cpu", "fp32", threads=1) as resolve, monkeypatch.context() as patch:
            node = Node(resolve, settings)
            patch.setattr("udean.runtime.dicom.node.shutil", names)
            assert send(node.address[1], files) == [0] * 3
            with pytest.raises(Killed):
                node.run()
            node.stop()
            node.run()
        assert len(got) == 6 and list((spool / "work").iterdir())
        with running(model, spool, port):
            wait(lambda: not list((spool / "work").iterdir()))
            time.sleep(1)
    assert len(got) == 6


def test_good_volumes_of_a_series_are_sent_though_another_is_refused(model, tmp_path):
    good = classic(tmp_path / "good", shape=(4, 12, 10), EchoTime=10)
    bad = classic(tmp_path / "bad", shape=(5, 12, 10), EchoTime=20)
    bad = sorted(bad, key=lambda file: pydicom.dcmread(file).ImagePositionPatient[2])
    with archive() as (port, got), running(model, tmp_path / "spool", port) as (_, mine):
        assert send(mine, [*good, *bad[:2], *bad[3:]]) == [0] * 8
        quarantine = tmp_path / "spool" / "quarantine"
        wait(lambda: list(quarantine.glob("*/reason.txt")))
        (reason,) = quarantine.glob("*/reason.txt")
        assert "missing" in reason.read_text() and len(list(reason.parent.glob("*.dcm"))) == 8
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
    with archive(tls=theirs) as (port, got), running(model, tmp_path / "spool", port, *options) as (_, node):
        assert send(node, files) is None  # in the clear
        entity = AE("SCANNER")
        entity.add_requested_context(MRImageStorage, pydicom.uid.ExplicitVRLittleEndian)
        link = entity.associate("127.0.0.1", node, ae_title="UDEAN", tls_args=(mine, "127.0.0.1"))
        assert [link.send_c_store(pydicom.dcmread(file)).Status for file in files] == [0] * 3
        link.release()
        wait(lambda: len(got) == 6)


def test_where_nothing_can_start_the_code_is_two(model, tmp_path):
    for to, word in (("ARCHIVE", "AET@host:port"), ("A@127.0.0.1:104", "cannot start")):
        (tmp_path / "file").touch()
        command = [*COMMAND, "--engine", str(model), "--to", to, "--allow", "X", "--spool"]
        done = subprocess.run([*command, str(tmp_path / "file")], capture_output=True, text=True)
        assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr
    assert np.array_equal(sorted(p.name for p in tmp_path.iterdir()), ["file"])
