"""The server behind the page: one folder's results, for local users who know the token.

`guard` controls access. No address is a path: the page's files are a fixed list, results have keys, and a
key is looked up among those found in the folder.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import secrets
import socket
import threading
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

from ..errors import RunError
from .details import details
from .guard import HEADERS, Refusal, admit, body
from .marks import Marks
from .on_demand import KINDS, Shelf, VolumeKind, still, volume
from .pictures import NAMES, PlaneName
from .results import Result, find_failures, find_results, printable_path, read_result

STATIC = Path(__file__).with_name("static")
PATIENCE = 30  # seconds for a request to arrive, or for a client to read some bytes
SCRIPTS = ("view", "page", "server", "list", "panes", "still", "layout", "window", "marks")
PAGE = {  # address: file, type
    "": ("index.html", "text/html; charset=utf-8"),
    **{name: (name, "text/css; charset=utf-8") for name in ("colours.css", "view.css")},
    **{name: (name, "text/javascript; charset=utf-8") for name in (f"{part}.js" for part in SCRIPTS)},
    "niivue.js": ("niivue.js.gz", "text/javascript; charset=utf-8"),
}
SCAN = re.compile(r"scans/(?P<key>[0-9a-f]{16})/(?P<number>[0-9]{1,6})")
STILL = re.compile(rf"/(?P<kind>{'|'.join(KINDS)})-(?P<name>{'|'.join(NAMES)})-(?P<index>[0-9]{{1,6}})\.png")


class Viewer(ThreadingHTTPServer):
    """Serves one output folder on loopback until `shutdown`. Port 0 takes a free one.

    Raises RunError if `root` is not a folder, or the port is not available.
    """

    daemon_threads = True

    def __init__(self, root: Path, port: int = 0) -> None:
        if not root.is_dir():
            raise RunError(f"{root} is not a folder: give the output folder of udean-run.")
        self.root = root
        self.token = secrets.token_urlsafe(24)
        self.marks = Marks(root)
        self.shelf = Shelf()
        self._sidecars: dict[str, Path] = {}
        self._turn = threading.Lock()
        if not self.results():
            raise RunError(f"{root} contains no results: give the output folder of udean-run.")
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise RunError(f"Cannot listen on port {port}: {error.strerror or error}.") from error

    @property
    def address(self) -> str:
        """The page's address."""
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"

    def results(self) -> list[Result]:
        """The results that the folder contains now."""
        found = list(find_results(self.root))
        with self._turn:
            self._sidecars = {result.key: result.sidecar.path for result in found}
        return found

    def result(self, key: str) -> Result:
        """The result with this key. Raises Refusal if there is none, or it is gone."""
        sidecar = self._sidecars.get(key)
        result = read_result(self.root, sidecar) if sidecar else None
        if result is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "There is no such result in the folder.")
        return result


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Viewer  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = PATIENCE
    server_version = "udean"
    sys_version = ""

    def do_GET(self) -> None:
        self._guarded(self._get)

    def do_POST(self) -> None:
        self._guarded(self._post)

    def _guarded(self, answer: Any) -> None:
        """Answer, or refuse in a sentence."""
        with contextlib.suppress(OSError):  # the reader has moved on to another scan
            try:
                answer(admit(self.command, self.path, self.headers, self.server.token))
            except Refusal as refusal:
                self._send_json({"error": str(refusal)}, refusal.status)
                self._drain()
            except RunError as error:
                self._send_json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)

    def _get(self, address: str) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise Refusal(HTTPStatus.BAD_REQUEST, "This request must not have a body.")
        if address in PAGE:
            self._send_page(*PAGE[address])
        elif address == "scans":
            self._send_json(self._list())
        elif match := SCAN.match(address):
            self._get_scan(self.server.result(match["key"]), int(match["number"]), address[match.end() :])
        else:
            raise Refusal(HTTPStatus.NOT_FOUND, "There is nothing here.")

    def _get_scan(self, result: Result, number: int, what: str) -> None:
        picture = STILL.fullmatch(what)
        if what and not picture and what not in [f"/{kind}.nii" for kind in KINDS]:
            raise Refusal(HTTPStatus.NOT_FOUND, "There is nothing here.")
        opened = self.server.shelf.open(result, number)
        if not what:
            self._send_json(details(result, opened, number))
            return
        if picture:
            kind, name = cast(VolumeKind, picture["kind"]), cast(PlaneName, picture["name"])
            data = still(opened, kind, name, int(picture["index"]), number)
            self._start("image/png", len(data))
            self.wfile.write(data)
            return
        kind = cast(VolumeKind, what.removeprefix("/").removesuffix(".nii"))
        found = volume(opened, kind, number)
        self._start("application/octet-stream", found.size)
        for piece in found.pieces:
            self.wfile.write(piece)

    def _list(self) -> dict[str, Any]:
        marks, problem, scans = {}, "", []
        try:
            marks = self.server.marks.read()
        except RunError as error:  # the scans can be viewed all the same
            problem = str(error)
        for result in self.server.results():
            mark = marks.get(result.name)
            scans.append({"key": result.key, "name": result.name, "mark": asdict(mark) if mark else None})
        failed = find_failures(self.server.root)
        return {
            "folder": printable_path(self.server.root),
            "scans": scans,
            "failed": failed,
            "problem": problem,
        }

    def _post(self, address: str) -> None:
        match = SCAN.fullmatch(address.removesuffix("/mark"))
        if not match or not address.endswith("/mark"):
            raise Refusal(HTTPStatus.NOT_FOUND, "There is nothing here.")
        if "Origin" not in self.headers:  # browsers send it with every post
            raise Refusal(HTTPStatus.FORBIDDEN, "Posts must come from the page itself.")
        result = self.server.result(match["key"])
        asked = body(self.headers, self.rfile)
        if set(asked) != {"rating", "note"} or not all(type(value) is str for value in asked.values()):
            raise Refusal(HTTPStatus.BAD_REQUEST, "A mark needs a rating and a note, both texts.")
        mark = self.server.marks.write(result.name, asked["rating"], asked["note"])
        self._send_json({"mark": asdict(mark) if mark else None})

    def _drain(self) -> None:
        """Read the rest of the request: closing before it would cut off the answer."""
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(1)
        for _ in range(64):
            if not self.connection.recv(1 << 16):
                break

    def _send_page(self, name: str, kind: str) -> None:
        data = (STATIC / name).read_bytes()
        packed = name.endswith(".gz")
        if packed and "gzip" not in self.headers.get("Accept-Encoding", ""):
            data, packed = gzip.decompress(data), False
        self._start(kind, len(data), {"Content-Encoding": "gzip"} if packed else {})
        self.wfile.write(data)

    def _send_json(self, value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        data = json.dumps(value).encode()
        self._start("application/json", len(data), {}, status)
        self.wfile.write(data)

    def _start(
        self,
        kind: str,
        size: int,
        more: dict[str, str] | None = None,
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
        self.send_response(status)
        for name, value in {
            **HEADERS,
            "Content-Type": kind,
            "Content-Length": str(size),
            **(more or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer requests that the library itself refuses: other methods, broken requests."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.close_connection = True
        self._send_json({"error": f"{status.phrase}."}, status)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: addresses contain the token."""
