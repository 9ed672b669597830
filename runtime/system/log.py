"""The journal of a server: one line of JSON an event."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def log(event: str, **fields: Any) -> None:
    """A line of JSON on stderr: numbers and our own words, never what a client has sent."""
    line = {"time": round(time.time(), 3), "event": event, **fields}
    print(json.dumps(line), file=sys.stderr, flush=True)
