"""TLS of the node, each way on its own, with real certificates and other people's programs."""

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import urllib.request

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification
from udean.runtime.commands import dicom_node
from udean.runtime.dicom import listen
from udean.runtime.dicom.tls import tls_context
from udean.runtime.errors import RunError

from .test_node import archive, arguments, send, serving, wait
from .test_series import classic

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """A folder with two authorities, and NAME.pem, NAME.key of peers."""
    folder = tmp_path_factory.mktemp("pki")

    def openssl(*words):
        subprocess.run(["openssl", *map(str, words)], cwd=folder, check=True, capture_output=True)

    def request(name, *more):
        openssl(
            "req", *more, "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-subj", f"/CN={name}"
        )

    for name in ("authority", "other"):
        request(name, "-x509", "-days", 2, "-out", f"{name}.pem")
    (folder / "index").touch()
    (folder / "serial").write_text("77")
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nnew_certs_dir=.\nserial=serial\ndefault_md=sha256\n"
        "policy=p\n[p]\ncommonName=supplied\n"
    )
    past, expired, later = "20200101000000Z", "20210101000000Z", "20491231235959Z"
    for name, authority, extension, start, end in (
        ("good", "authority", "subjectAltName=IP:127.0.0.1,DNS:localhost", past, later),
        ("elsewhere", "authority", "subjectAltName=DNS:archive.example", past, later),
        ("expired", "authority", "subjectAltName=IP:127.0.0.1", past, expired),
        ("early", "authority", "subjectAltName=IP:127.0.0.1", "20480101000000Z", later),
        ("stranger", "other", "subjectAltName=IP:127.0.0.1", past, later),
        ("late", "authority", "basicConstraints=CA:TRUE", past, expired),
    ):
        request(name, "-out", f"{name}.csr")
        (folder / "extension").write_text(extension)
        given = ["-cert", f"{authority}.pem", "-keyfile", f"{authority}.key", "-in", f"{name}.csr"]
        dates = ["-startdate", start, "-enddate", end]
        openssl(
            *["ca", "-batch", "-config", "ca.cnf", "-notext", *given, *dates],
            *["-extfile", "extension", "-out", f"{name}.pem"],
        )
    openssl("rsa", "-in", "good.key", "-aes256", "-passout", "pass:secret", "-out", "secret.key")
    return folder


def shown(pki, name, authority="authority"):
    """What a peer shows, and by which authority it judges, as the command's options."""
    files = {"certificate": f"{name}.pem", "key": f"{name}.key", "authority": f"{authority}.pem"}
    return [word for what, file in files.items() for word in (f"--tls-{what}", pki / file)]


def server(pki, name, mutual=True):
    context = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cafile=pki / "authority.pem" if mutual else None
    )
    context.load_cert_chain(pki / f"{name}.pem", pki / f"{name}.key")
    context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE
    return context


def client(pki, name=None):
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=pki / "authority.pem")
    if name:
        context.load_cert_chain(pki / f"{name}.pem", pki / f"{name}.key")
    return context


def echo(port, tls=None):
    """Whether an association for verification is accepted."""
    entity = AE("ANYBODY")
    entity.add_requested_context(Verification)
    link = entity.associate("127.0.0.1", port, ae_title="UDEAN", tls_args=(tls, "127.0.0.1") if tls else None)
    if link.is_established:
        assert link.send_c_echo().Status == 0
        link.release()
        return True
    return False


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"certificate": "none.pem", "key": "good.key"}, "No such file"),
        ({"certificate": "good.pem"}, "not there in PEM format"),
        ({"certificate": "good.pem", "key": "stranger.key"}, "key values mismatch"),
        ({"certificate": "good.pem", "key": "secret.key"}, "passphrase"),
        ({"certificate": "good.pem", "key": "good.key", "authority": "good.key"}, "authority"),
        ({"certificate": "expired.pem", "key": "expired.key"}, "certificate has expired"),
        ({"certificate": "good.pem", "key": "good.key", "authority": "late.pem"}, "not valid today"),
        ({"authority": "authority.pem"}, "off in both directions"),
        ({"key": "good.key"}, "off in both directions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_cannot_be_used_are_named(model, tmp_path, pki, capsys, files, word):
    options = [part for what, file in files.items() for part in (f"--tls-{what}", pki / file)]
    with pytest.raises(SystemExit) as end:
        dicom_node.main(arguments(model, tmp_path / "spool", 1, *options))
    said = capsys.readouterr().err
    assert end.value.code == 2 and word in said and "Traceback" not in said
    assert any(file in said for file in files.values()) or "off" in word


@pytest.mark.parametrize("purpose", [ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH])
def test_a_certificate_is_usable_in_its_time_whichever_side_shows_it(pki, purpose):
    for name, reason in (("early", "certificate is not yet valid"), ("expired", "certificate has expired")):
        with pytest.raises(RunError, match=reason):
            tls_context(purpose, pki / f"{name}.pem", pki / f"{name}.key", None)
    for name in ("good", "elsewhere", "stranger"):
        tls_context(purpose, pki / f"{name}.pem", pki / f"{name}.key", pki / "authority.pem")


def test_only_senders_with_a_certificate_of_the_authority_are_let_in(model, tmp_path, pki):
    options = [*shown(pki, "good"), "--no-tls-send"]
    with serving(model, tmp_path / "spool", 1, *options) as (node, mine):
        assert echo(mine, client(pki, "good"))
        for name, reason in (
            (None, "peer did not return a certificate"),
            ("stranger", "unable to get local issuer certificate"),
            ("expired", "certificate has expired"),
        ):
            assert not echo(mine, client(pki, name))
            assert reason in node.stderr.readline()
        assert not echo(mine) and "TLS failed" in node.stderr.readline()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_connections_without_association_make_way_for_newer_ones(model, tmp_path, pki, monkeypatch, tls):
    monkeypatch.setattr(listen, "STRANGERS", 20)
    options = [*shown(pki, "good"), "--no-tls-send"] if tls else []
    with serving(model, tmp_path / "spool", 1, *options) as (_, mine), contextlib.ExitStack() as opened:
        for _ in range(50):
            opened.enter_context(socket.create_connection(("127.0.0.1", mine), timeout=20))
        assert echo(mine, client(pki, "good") if tls else None)


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        ("stranger", "by TLS: unable to get local issuer certificate"),
        ("expired", "by TLS: certificate has expired"),
        ("elsewhere", "by TLS: IP address mismatch"),
        (None, "by TLS: wrong version number"),
    ],
)
def test_a_destination_that_is_not_trusted_gets_nothing_and_is_told(model, tmp_path, pki, theirs, reason):
    files = classic(tmp_path / "in", shape=(3, 12, 10))
    options = ["--tls-send", "--tls-authority", pki / "authority.pem"]
    with (
        archive(tls=server(pki, theirs, mutual=False) if theirs else None) as (port, got),
        serving(model, tmp_path / "spool", port, *options) as (node, mine),
    ):
        assert send(mine, files) == [0] * 3  # senders are spoken to in the clear
        assert reason in json.loads(node.stderr.readline())["reason"] and not got
    with (
        archive(port, tls=server(pki, "good", mutual=False)) as (_, got),
        serving(model, tmp_path / "spool", port, *options),
    ):
        wait(lambda: len(got) == 6)


def test_a_destination_that_wants_a_certificate_says_so(model, tmp_path, pki):
    files = classic(tmp_path / "in", shape=(3, 12, 10))
    options = ["--tls-send", "--tls-authority", pki / "authority.pem"]
    with (
        archive(tls=server(pki, "good")) as (port, got),
        serving(model, tmp_path / "spool", port, *options) as (node, mine),
    ):
        assert send(mine, files) == [0] * 3
        assert "certificate required" in json.loads(node.stderr.readline())["reason"] and not got


@pytest.mark.skipif(not (ORTHANC and shutil.which("storescu")), reason="Orthanc and dcmtk are the peers")
def test_dcmtk_to_orthanc_by_tls_with_storage_commitment(model, tmp_path, pki):
    files = classic(tmp_path / "in", shape=(3, 12, 10))
    dicom, http, mine = (free_port() for _ in range(3))
    settings = {
        "StorageDirectory": str(tmp_path / "archive"),
        "IndexDirectory": str(tmp_path / "archive"),
        "DicomAet": "ARCHIVE",
        "DicomPort": dicom,
        "HttpPort": http,
        "AuthenticationEnabled": False,
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(pki / "good.pem"),
        "DicomTlsPrivateKey": str(pki / "good.key"),
        "DicomTlsTrustedCertificates": str(pki / "authority.pem"),
        "DicomModalities": {"node": {"AET": "UDEAN", "Host": "127.0.0.1", "Port": mine, "UseDicomTls": True}},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with subprocess.Popen(
        [ORTHANC, tmp_path / "orthanc.json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as orthanc:
        try:
            wait(lambda: listens(http) and listens(dicom))
            options = [*shown(pki, "good"), "--port", mine]
            with serving(model, tmp_path / "spool", dicom, *options) as (node, _):
                tls = ["+tls", pki / "good.key", pki / "good.pem", "+cf", pki / "authority.pem"]
                command = ["storescu", *tls, "-aet", "SCANNER", "-aec", "UDEAN", "127.0.0.1", str(mine)]
                subprocess.run([*command, *files], check=True, capture_output=True)
                assert '"sent"' in node.stderr.readline()
            assert not list((tmp_path / "spool" / "work").iterdir())
            found = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{http}/instances").read())
        finally:
            orthanc.kill()
    assert len(found) == 6


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
        return True
    return False
