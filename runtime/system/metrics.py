"""Health and metrics of a server over HTTP, for monitoring: `/health` and `/metrics`.

Source of the format: Prometheus, "Exposition formats", text format 0.0.4.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ..errors import RunError

PREFIX = "udean_"


class Metrics:
    """Counters and gauges, safe from any thread.

    counters: descriptions by name. gauges: by name, a description and a function that reads the value.
    """

    def __init__(self, counters: dict[str, str], gauges: dict[str, tuple[str, Callable[[], float]]]) -> None:
        self._counters, self._gauges = counters, gauges
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], float] = defaultdict(float)

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Increase a counter; `name` is one of the counters."""
        inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
        with self._lock:
            self._counts[name, f"{{{inside}}}" if inside else ""] += amount

    def render(self) -> str:
        """All metrics in Prometheus' text format."""
        with self._lock:
            counts = sorted(self._counts.items())
        lines = []
        for name, about in self._counters.items():
            lines += [f"# HELP {PREFIX}{name}_total {about}", f"# TYPE {PREFIX}{name}_total counter"]
            own = [(labels, value) for (key, labels), value in counts if key == name]
            lines += [f"{PREFIX}{name}_total{labels} {value:.12g}" for labels, value in own or [("", 0)]]
        for name, (about, read) in self._gauges.items():
            lines += [f"# HELP {PREFIX}{name} {about}", f"# TYPE {PREFIX}{name} gauge"]
            lines.append(f"{PREFIX}{name} {read():.12g}")
        return "\n".join([*lines, ""])


def serve_metrics(port: int, metrics: Metrics, ready: Callable[[], bool], info: str) -> ThreadingHTTPServer:
    """Serve on loopback, in a thread, until `shutdown`. Port 0 takes a free one.

    `/health` answers 200 with `info` while the server takes clients, else 503. Raises RunError if the port is
    not available.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds for a request to arrive

        def do_GET(self) -> None:
            status, body = 404, "not here: /health or /metrics\n"
            if self.path == "/metrics":
                status, body = 200, metrics.render()
            elif self.path == "/health":
                status, body = (200, f"ok {info}\n") if ready() else (503, "stopping\n")
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise RunError(f"Cannot serve metrics on port {port}: {error.strerror or error}.") from error
    threading.Thread(target=server.serve_forever, daemon=True, name="metrics").start()
    return server
