"""TLS of the node, each way on its own: contexts from PEM files, and why a handshake fails, in words.

Source: DICOM PS3.15, B (secure transport connection profiles).
"""

from __future__ import annotations

import ssl
from pathlib import Path

from ..errors import RunError


def tls_context(
    purpose: ssl.Purpose, certificate: Path | None, key: Path | None, authority: Path | None
) -> ssl.SSLContext:
    """A context that shows the certificate, if any, and requires the authority's of the peer, if any.

    Raises RunError for files that cannot be used.
    """

    def ask() -> str:
        raise RunError(f"{key or certificate} has a passphrase, which nobody is asked for: store it without.")

    try:
        context = ssl.create_default_context(purpose, cafile=authority)
    except OSError as error:
        raise RunError(f"Cannot use {authority} as the authority of certificates: {why(error)}.") from error
    try:
        if certificate is not None:
            context.load_cert_chain(certificate, key, ask)
    except OSError as error:
        files = " and ".join(map(str, filter(None, (certificate, key))))
        raise RunError(f"Cannot use {files} as certificate and key: {why(error)}.") from error
    if authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def why(error: OSError) -> str:
    """The reason of a failure, in the words of OpenSSL or the system."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.rstrip(".")
    if isinstance(error, ssl.SSLError):
        return error.reason.replace("_", " ").lower() if error.reason else "not there in PEM format"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror or str(error) or type(error).__name__
