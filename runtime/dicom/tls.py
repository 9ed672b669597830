"""TLS of the node, each way on its own: contexts from PEM files, and why a handshake fails, in words.

Source: DICOM PS3.15, B (secure transport connection profiles).
"""

from __future__ import annotations

import contextlib
import ssl
import time
from pathlib import Path
from typing import Any

from ..errors import RunError

OUT_OF_DATE = 9, 10  # OpenSSL's codes: not yet valid, has expired


def tls_context(
    purpose: ssl.Purpose, certificate: Path | None, key: Path | None, authority: Path | None
) -> ssl.SSLContext:
    """A context that shows the certificate, if any, and requires the authority's of the peer, if any.

    Raises RunError for files that cannot be used, and for certificates that are not valid today.
    """

    def ask() -> str:
        raise RunError(f"{key or certificate} has a passphrase, which nobody is asked for: store it without.")

    try:
        context = ssl.create_default_context(purpose, cafile=authority)
    except OSError as error:
        raise RunError(f"Cannot use {authority} as the authority of certificates: {why(error)}.") from error
    known = context.get_ca_certs() if authority is not None else []
    if known and not any(map(_is_valid_now, known)):
        raise RunError(f"Cannot use {authority} as the authority of certificates: it is not valid today.")
    try:
        if certificate is not None:
            context.load_cert_chain(certificate, key, ask)
            _check_dates(purpose, certificate, key)
    except OSError as error:
        files = " and ".join(map(str, filter(None, (certificate, key))))
        raise RunError(f"Cannot use {files} as certificate and key: {why(error)}.") from error
    if authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _is_valid_now(certificate: dict[str, Any]) -> bool:
    begin, end = (ssl.cert_time_to_seconds(certificate[name]) for name in ("notBefore", "notAfter"))
    return begin <= time.time() <= end


def _check_dates(purpose: ssl.Purpose, certificate: Path, key: Path | None) -> None:
    """Raise SSLError for a certificate that is not valid today, whoever issued it.

    By a handshake with ourselves: no function of Python's tells the dates of a certificate.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    for context in (server, client):
        context.load_cert_chain(certificate, key)
    peer = client if purpose is ssl.Purpose.CLIENT_AUTH else server
    peer.verify_mode = ssl.CERT_REQUIRED
    peer.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    peer.load_verify_locations(certificate)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    try:
        for end in ends * 2:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in OUT_OF_DATE:
            raise


def why(error: OSError) -> str:
    """The reason of a failure, in the words of OpenSSL or the system."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.rstrip(".")
    if isinstance(error, ssl.SSLError):
        return error.reason.replace("_", " ").lower() if error.reason else "not there in PEM format"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror or str(error) or type(error).__name__
