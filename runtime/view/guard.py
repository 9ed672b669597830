"""Access control of the server behind the page.

It listens on loopback, which every user of the machine and every page in a browser can reach. So every
address begins with a token that only the command prints, requests must name this machine as their host (DNS
rebinding), and posts must come from the page itself.
"""

from __future__ import annotations

import hmac
import json
import re
from email.message import Message
from http import HTTPStatus
from io import BufferedIOBase
from typing import Any
from urllib.parse import urlsplit

HOSTS = ("127.0.0.1", "localhost", "::1")
BODY = 16 << 10  # bytes of a request's body
POLICY = (  # NiiVue carries its font and textures as data: addresses
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Refusal(Exception):
    """A refused request: HTTP status and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def admit(method: str, path: str, headers: Message, token: str) -> str:
    """The address behind the token. Raises Refusal for strangers."""
    hosts = headers.get_all("Host", [])
    if len(hosts) != 1 or _hostname(hosts[0]) not in HOSTS:
        raise Refusal(HTTPStatus.MISDIRECTED_REQUEST, "This server is for this machine only.")
    given, slash, address = path.removeprefix("/").partition("/")
    if not slash or not hmac.compare_digest(given.encode(), token.encode()):
        raise Refusal(HTTPStatus.FORBIDDEN, "Open the address that udean-view printed.")
    origin = headers.get("Origin")
    site = headers.get("Sec-Fetch-Site", "same-origin")
    navigating = method == "GET" and headers.get("Sec-Fetch-Mode") == "navigate"
    if (origin and origin != f"http://{hosts[0]}") or (
        site not in ("same-origin", "none") and not (navigating and address == "")
    ):
        raise Refusal(HTTPStatus.FORBIDDEN, "Requests from other sites are refused.")
    return address


def body(headers: Message, stream: BufferedIOBase) -> dict[str, Any]:
    """A request's JSON object. Raises Refusal if there is none, or it is too long."""
    length = headers.get("Content-Length", "")
    if "Transfer-Encoding" in headers or not re.fullmatch("[0-9]{1,9}", length):
        raise Refusal(HTTPStatus.LENGTH_REQUIRED, "The request must say how long its body is.")
    if int(length) > BODY:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A body has at most {BODY} bytes.")
    if headers.get_content_type() != "application/json":
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body must be application/json.")
    try:
        value = json.loads(stream.read(int(length)))
    except (ValueError, RecursionError):
        raise Refusal(HTTPStatus.BAD_REQUEST, "The body is not JSON.") from None
    if not isinstance(value, dict):
        raise Refusal(HTTPStatus.BAD_REQUEST, "The body is not a JSON object.")
    return value


def _hostname(host: str) -> str | None:
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname if not (parts.username or parts.path) else None
    except ValueError:
        return None
