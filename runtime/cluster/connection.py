"""Ray itself: an existing cluster, or one that this process starts."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
from typing import Any

from ..errors import RunError, first_line
from ..system.extras import require
from ..system.offline import OFFLINE
from ..system.threads import cores

ADDRESS = re.compile(r"auto|local|[^/\s]+:\d+|ray://\S+")  # accepted by --ray-address
ALONE = {  # keeps a Ray of our own, with all its processes, on this machine
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to Ray's makers
    # Listen on loopback, as Ray does on systems other than Linux, and open no socket to 8.8.8.8 to learn the
    # machine's address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Its dashboard, which always runs, asks cloud metadata services which cloud it is in, even if nothing is
    # reported.
    **OFFLINE,
}


def connect(address: str | None) -> Any:
    """Connect to a Ray cluster.

    Parameters
    ----------
    address
        HOST:PORT; "auto": the cluster that runs on this machine; "local": one of this process's own, which
        ends with it; None: RAY_ADDRESS if set, else "local".

    Returns
    -------
    module
        `ray`, connected.

    Raises
    ------
    RunError
        If Ray is not installed, does not start or does not answer.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise RunError("Run the command on a machine of the cluster, with --ray-address auto or HOST:PORT.")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of scans in flight when a run is stopped
    options: dict[str, Any] = {}
    if address == "local":
        os.environ |= ALONE
        # Other users of this machine can reach Ray too, and it runs what it is sent: keep the token secret.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine starts slowly
        for watched in ("enable_metrics_collection", "task_events_report_interval_ms", "event_stats"):
            os.environ.setdefault(f"RAY_{watched}", "0")  # not needed: there is no dashboard
        options = {"num_cpus": cores(), "include_dashboard": False}
    ray: Any = require("ray", "cluster")
    stop = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:  # a bare Exception if a busy machine does not start it in time
        if address == "local":
            raise RunError(
                f"Ray does not start here ({first_line(error)}): leave out --ray, or name a running cluster."
            ) from error
        raise RunError(
            f"No Ray cluster answers at {address} ({first_line(error)}): start one with 'ray start --head', "
            "or leave out the address."
        ) from error
    finally:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, stop)  # Ray's own handler would leave no time to finish writing
    return ray


def root_cause(error: BaseException) -> BaseException:
    """The original error, which Ray wraps in the errors of dependent tasks."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error
