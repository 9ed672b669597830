"""One client of the MRD server: its socket, time limits, memory and parameters.

A reader that takes all the client sends and a writer with a queue of its own, so that a client may send
everything before it reads anything. What waits in the queue is bounded by the memory that was claimed
when it was received.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import select
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from ..errors import RunError
from ..resolver import Output
from ..scan.regrid import Asked
from . import messages as mrd
from .limits import Budget, Limits
from .recovery import HEAD, find_message
from .stacks import Position

CHUNK = 1 << 20  # bytes of one read: memory is claimed as data arrive, not as announced
QUIET = 2.0  # seconds without a byte after which what came last may be the end of a message
LINGER = 5.0  # seconds for a client to hang up after all is said
AHEAD = 16 << 20  # bytes that are searched for the next message before what is searched is let go


class Gone(Exception):
    """The client has disconnected."""


@dataclass(frozen=True)
class Parameters:
    """The parameters that a client may set, in the JSON of a text message; not the engine.

    originals: send back what came, before the SR series. position: what positions mean, received and
    sent. dtype: of SR voxels. to: the spacing asked for, as `Asked` reads it; "" for the model's factors.
    """

    originals: bool = True
    position: Position = "spec"
    dtype: Output = "input"
    to: str = ""

    def updated(self, content: str) -> tuple[Parameters, list[str]]:
        """These, changed by a text message: a JSON object, or one under "parameters" as OpenRecon sends.

        Other names in it, and texts that are not JSON objects, are for others and ignored. So is a value that
        a parameter of ours cannot have: another program of the chain may have one of that name. Also
        returns a sentence for each of these.
        """
        try:
            chosen = json.loads(content)
        except (ValueError, RecursionError):
            return self, []
        if isinstance(chosen, dict) and isinstance(chosen.get("parameters"), dict):
            chosen = chosen["parameters"]
        if not isinstance(chosen, dict):
            return self, []
        choices = {
            "originals": {True: True, False: False, "true": True, "false": False},
            "position": {value: value for value in get_args(Position)},
            "dtype": {value: value for value in get_args(Output)},
        }
        changes, ignored = {}, []
        for name, values in choices.items():
            if name in chosen:
                value = chosen[name]
                if isinstance(value, str | bool) and value in values:
                    changes[name] = values[value]
                else:
                    known = ", ".join(map(str, values))
                    ignored.append(f"A parameter '{name}' is ignored: here it is one of {known}.")
        if "to" in chosen:
            asked = chosen["to"]
            try:
                spacing = Asked.parse(asked if not isinstance(asked, bool) else "") if asked else ""
                changes["to"] = asked if isinstance(asked, str) else str(spacing)
            except RunError as error:
                ignored.append(f"A parameter 'to' is ignored: {error}")
        return dataclasses.replace(self, **changes), ignored


class Connection:
    """A client's socket, read in the calling thread and written in one of its own."""

    def __init__(self, sock: socket.socket, limits: Limits, budget: Budget) -> None:
        self.received = self.sent = self.unread = 0  # bytes; unread: while it was being closed
        self.patience = limits.idle  # seconds to wait for memory that others hold
        self._socket, self._limits, self._budget = sock, limits, budget
        self._end = time.monotonic() + limits.total
        self._taken = 0  # bytes of memory, for the message that came last
        self._whole = False  # whether the client has sent all that it has
        self._heard = time.monotonic()  # when something came last
        self._ahead = bytearray()  # received and not yet read
        self._queue: queue.Queue[tuple[list[mrd.Bytes], int] | None] = queue.Queue()
        self._broken = threading.Event()
        self._ended: str | None = None
        sock.setblocking(False)  # reader and writer wait for it by themselves
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._writer = threading.Thread(target=self._write, daemon=True, name="mrd-writer")
        self._writer.start()

    def receive(self) -> mrd.Message:
        """The client's next message. Raises RunError for a refused message, Gone if the client has left."""
        self._taken = 0
        message = mrd.read_message(self._read, self._limits.message, self._take)
        self._whole = self._whole or isinstance(message, mrd.Close)
        return message

    def has_more(self) -> bool:
        """Whether anything is here to be received. Waits for nothing."""
        with contextlib.suppress(OSError):  # BlockingIOError, if nothing is
            return bool(self._ahead or self._socket.recv(1, socket.MSG_PEEK))
        return False

    def resynchronize(self, passed: bytes, ahead: bytes) -> None:
        """Read on to the next image or the close message, however long it takes to come.

        passed: what was read of a message that goes back, and with it all that lies before the next one; of
        other messages that is left out. ahead: what was read beyond it. Raises RunError if neither comes.
        """
        self.release(self._taken)
        self._taken = 0
        data = bytearray(ahead) + self._ahead
        self._ahead.clear()
        searched = 0
        if passed:
            self.send([passed])
        while (place := find_message(data, searched)) is None:
            searched = max(0, len(data) - HEAD)
            if searched > AHEAD:
                self.send([bytes(data[:searched])] if passed else [])
                self.flush()
                del data[:searched]
                searched = 0
            self.check()
            try:
                chunk = self._receive(CHUNK, QUIET)
            except TimeoutError:
                chunk = None
            except OSError:
                raise Gone from None
            if not chunk and data.endswith(mrd.close()):
                place = len(data) - len(mrd.close())
                break
            if chunk == b"":
                raise RunError("No readable message follows one that this server cannot read.")
            if chunk:
                self.received += len(chunk)
                data += chunk
            elif time.monotonic() - self._heard > self._idle:
                raise RunError(f"Nothing was received for {self._idle:g} s.")
        self._ahead[:] = data[place:]
        if passed:
            self.send([bytes(data[:place])])

    def relay(self, head: bytes, size: int) -> None:
        """Pass on a message that is not kept: the part that was read, and up to `size` more bytes."""
        self.send([head])
        while size:
            try:
                chunk = self._read(min(size, CHUNK))
            except RunError:  # it ends earlier
                self.send([bytes(self._ahead)])
                self._ahead.clear()
                raise
            self.send([chunk])
            self.flush()  # so that no more than a chunk is ever held
            size -= len(chunk)

    def send(self, parts: Iterable[mrd.Bytes]) -> None:
        """Queue a message."""
        self._queue.put((list(parts), 0))

    def pass_on(self, parts: Iterable[mrd.Bytes]) -> None:
        """Queue the message that came last; its memory is given back when it is sent."""
        self._queue.put((list(parts), self._taken))
        self._taken = 0

    def say(self, level: str, content: str) -> None:
        """Queue a line of the log, with its level as clients show it."""
        self.send([mrd.text(f"{level:<7} {content}")])

    def flush(self) -> None:
        """Wait until all is sent. Raises Gone if it cannot be."""
        self._queue.join()
        if self._broken.is_set():
            raise Gone

    def claim(self, size: int) -> None:
        """Claim memory until `release` or the end of the connection."""
        patience = min(self.patience, max(0.0, self._end - time.monotonic()))
        self._budget.claim(self, size, patience)

    def release(self, size: int) -> None:
        """Release memory before the connection ends."""
        self._budget.release(self, size)

    def _take(self, size: int) -> None:
        self.claim(size)
        self._taken = size

    def check(self) -> None:
        """Raise Gone or RunError if there is no point in continuing for this client."""
        if self._broken.is_set() or self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise Gone
        if self._ended:
            raise RunError(self._ended)
        if time.monotonic() > self._end:
            raise RunError(f"The connection has lasted {self._limits.total:g} s, the longest allowed.")

    def end(self, reason: str) -> None:
        """From another thread: refuse all further messages."""
        self._ended = reason
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Send the queue and the close message, and release everything."""
        self.send([mrd.close()])
        self._queue.put(None)
        with contextlib.suppress(OSError):
            self._drain()
        self._writer.join()
        self._socket.close()
        self._budget.forget(self)

    @property
    def _idle(self) -> float:
        """Seconds to wait for the client's next byte; fewer if it has said that none comes."""
        return min(LINGER, self._limits.idle) if self._whole else self._limits.idle

    def _read(self, size: int) -> bytearray:
        """Exactly so many bytes. What came before a RunError is read again."""
        data = bytearray()
        while len(data) < size:
            self.check()
            try:
                chunk = self._receive(size - len(data))
            except TimeoutError:
                self.check()
                self._ahead += data
                raise RunError(f"Nothing was received for {self._idle:g} s.") from None
            except OSError:
                raise Gone from None
            if not chunk:
                self.check()
                self._ahead += data
                raise mrd.EndOfStream("The stream ended without a close message: nothing was restored.")
            data += chunk
        self.received += size
        return data

    def _receive(self, size: int, patience: float | None = None) -> bytes:
        if self._ahead:
            chunk = bytes(self._ahead[:size])
            del self._ahead[:size]
            return chunk
        self._wait(select.POLLIN, self._idle if patience is None else patience)
        self._heard = time.monotonic()
        return self._socket.recv(min(size, CHUNK))

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            parts, size = item
            try:
                if not self._broken.is_set():
                    for part in parts:
                        self._send(memoryview(part))
            except OSError:
                self._broken.set()
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)  # wakes the reader
            finally:
                if size:
                    self.release(size)
                self._queue.task_done()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def _send(self, data: memoryview) -> None:
        while data:
            self._wait(select.POLLOUT, self._limits.idle)
            count = self._socket.send(data[:CHUNK])
            self.sent += count
            data = data[count:]

    def _wait(self, event: int, patience: float) -> None:
        """Until the socket is ready. Raises TimeoutError after so many seconds, or at the limit of all."""
        patience = min(patience, max(LINGER, self._end - time.monotonic()))
        poll = select.poll()
        poll.register(self._socket, event)
        if not poll.poll(patience * 1000):
            raise TimeoutError

    def _drain(self) -> None:
        """Read on until the client hangs up: a socket closed on unread bytes takes our last words with it.

        A client that was broken off may still be sending, and reads nothing before it has sent all.
        """
        silent = self._whole or time.monotonic() - self._heard > LINGER
        patience = LINGER if silent else self._limits.idle
        while time.monotonic() < self._end + LINGER:
            try:
                if not (chunk := self._receive(CHUNK, patience)):
                    break
                self.unread += len(chunk)
            except TimeoutError:
                if not self._writer.is_alive():
                    break
