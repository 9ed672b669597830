"""Limits of clients, each and all together."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

from ..errors import RunError


@dataclass(frozen=True)
class Limits:
    """Limits of clients: bytes, connections, seconds.

    message: bytes of one image. memory: bytes of all that is held at once, for all clients. idle: seconds
    without a byte, in either direction. total: seconds of a connection.
    """

    message: int = 512 << 20
    memory: int = 4 << 30
    connections: int = 16
    idle: float = 600.0
    total: float = 7200.0


class Budget:
    """Bytes that all connections together may hold.

    Clients that wait for each other would wait for ever: one of them is refused.
    """

    def __init__(self, size: int) -> None:
        self.size, self.used = size, 0
        self._held: Counter[object] = Counter()
        self._wanted: dict[object, int] = {}  # by those who wait
        self._change = threading.Condition()

    def claim(self, owner: object, size: int, patience: float) -> None:
        """Claim memory, waiting for others to release theirs. Raises RunError if there is none."""
        with self._change:
            total = self._held[owner] + size
            if total > self.size:
                raise RunError(f"This needs {total} bytes of memory, and the server has {self.size} in all.")
            self._wanted[owner] = size
            self._change.wait_for(lambda: self._fits(size) or self._stuck(owner), patience)
            del self._wanted[owner]
            if not self._fits(size):
                raise RunError("The server has no memory left for this: others hold it, try again later.")
            self._held[owner] = total
            self.used += size

    def release(self, owner: object, size: int) -> None:
        """Release memory."""
        with self._change:
            self.used -= size
            self._held[owner] -= size
            self._held = +self._held  # without those that hold none
            self._change.notify_all()

    def forget(self, owner: object) -> None:
        """Give back all that an owner holds."""
        with self._change:
            self.used -= self._held.pop(owner, 0)
            self._change.notify_all()

    def _fits(self, size: int) -> bool:
        return self.used + size <= self.size

    def _stuck(self, owner: object) -> bool:
        """Whether all clients with memory, including the owner, wait for more that nobody can get."""
        waits = owner in self._held and self._wanted.keys() >= self._held.keys()
        return waits and not any(map(self._fits, self._wanted.values()))
