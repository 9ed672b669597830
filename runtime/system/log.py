"""A server's structured log: one line of JSON per event."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def log(event: str, **fields: Any) -> None:
    """Write a line of JSON to stderr: numbers and our own words, never anything that a client sent."""
    line = {"time": round(time.time(), 3), "event": event, **fields}
    print(json.dumps(line), file=sys.stderr, flush=True)
