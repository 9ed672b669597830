"""The MRD image-to-image server: one resident network, many connections, one volume at a time.

A connection is read by a thread of its own. When the client has sent its close message, its volumes go to the
one worker that owns the network, a volume at a time, so that connections take turns. A text message names
what cannot be restored, and its originals are delivered all the same: every image that a scanner has sent
comes back, whatever else is wrong.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ..errors import RunError, first_line
from ..resolver import SuperResolver
from ..scan.kinds import check_sign, check_voxels
from ..system.log import log
from ..system.metrics import Metrics
from . import messages as mrd
from . import stacks
from .connection import Connection, Gone, Parameters
from .limits import Budget, Limits
from .messages import Image
from .stacks import FineGrid, Place, SeriesNumbers, Stack

COUNTERS = {
    "connections": "Clients served.",
    "ended": "Connections ended, by outcome.",
    "images": "Images received, and SR images sent.",
    "volumes": "Volumes restored or refused.",
    "network_seconds": "Seconds that the network was busy.",
    "received_bytes": "Bytes received.",
    "sent_bytes": "Bytes sent.",
}
OTHERS = 4  # times the connections: how many get their images back though the server is full; more are closed


class Server:
    """An MRD image server: listens at once, and serves each client in a thread after `serve` is called.

    Parameters
    ----------
    resolve
        The resident network; volumes are restored one at a time.
    host, port
        Address to listen on; port 0 takes a free one, see `address`.
    limits
        Bytes, connections and seconds of clients.
    parameters
        Defaults of what a client may set.

    Raises
    ------
    RunError
        If the address is not available.
    """

    def __init__(
        self,
        resolve: SuperResolver,
        host: str = "127.0.0.1",
        port: int = 9002,
        limits: Limits | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._resolve, self._parameters = resolve, parameters or Parameters()
        self._budget = Budget(self.limits.memory)
        self.metrics = Metrics(COUNTERS, {"held_bytes": ("Bytes held for clients.", lambda: self.held)})
        self._worker = ThreadPoolExecutor(1, "mrd-network")
        self._open: dict[int, Connection | None] = {}  # None: it is about to begin
        self._change = threading.Condition()
        self._stopping = False
        try:
            self._socket = socket.create_server((host, port), backlog=128)
        except OSError as error:
            raise RunError(f"Cannot listen on {host}, port {port}: {error.strerror or error}.") from error
        self.address: tuple[str, int] = self._socket.getsockname()[:2]

    @property
    def held(self) -> int:
        """Bytes of memory that clients hold."""
        return self._budget.used

    @property
    def ready(self) -> bool:
        """Whether new clients are accepted."""
        return not self._stopping

    def serve(self) -> None:
        """Accept clients until `stop`."""
        number = 0
        while not self._stopping:
            try:
                client, _ = self._socket.accept()
            except OSError:
                time.sleep(0.05)  # too many files, or a client gone before it was served
                continue
            number += 1
            with self._change:
                crowd = len(self._open)
                if self._stopping or crowd >= self.limits.connections * (1 + OTHERS):
                    client.close()
                    continue
                self._open[number] = None
            full = crowd >= self.limits.connections
            try:
                threading.Thread(
                    target=self._serve, args=(number, client, full), daemon=True, name="mrd-reader"
                ).start()
            except RuntimeError as error:  # there is no memory for another thread
                self._turn_away(number, client, error)

    def stop(self, grace: float = 30.0) -> None:
        """Accept no new clients, and return once the present ones are served.

        Parameters
        ----------
        grace
            Seconds until the remaining clients are told that time is up.
        """
        self._stopping = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._socket.close()
        with self._change:
            if not self._change.wait_for(lambda: not self._open, grace):
                for connection in filter(None, self._open.values()):
                    connection.end("The server stops.")
                self._change.wait_for(lambda: not self._open, grace)
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _turn_away(self, number: int, client: socket.socket, error: Exception) -> None:
        client.close()
        self.metrics.add("ended", outcome="failed")
        log("unexpected", connection=number, error=first_line(error))
        self._forget(number)

    def _forget(self, number: int) -> None:
        with self._change:
            del self._open[number]
            self._change.notify_all()

    def _serve(self, number: int, client: socket.socket, full: bool) -> None:
        start = time.monotonic()
        try:
            self._open[number] = connection = Connection(client, self.limits, self._budget)
        except (OSError, RuntimeError) as error:  # it has left, or there is no memory for another thread
            self._turn_away(number, client, error)
            return
        session = Session(connection, self._resolve, self._worker, self.metrics, self._parameters)
        outcome = "done"
        try:
            if full:
                outcome = "full"
                session.pass_on("The server has as many clients as it takes")
            else:
                self.metrics.add("connections")
                session.run()
        except RunError as error:
            outcome = "refused" if outcome == "done" else outcome
            connection.say("ERROR", str(error))
        except Gone:
            outcome = "gone"
        except Exception as error:
            outcome = "failed"
            log("unexpected", connection=number, error=type(error).__name__)
            connection.say("ERROR", "The server failed unexpectedly: nothing more is restored.")
        connection.close()
        self.metrics.add("ended", outcome=outcome)
        self.metrics.add("received_bytes", connection.received)
        self.metrics.add("sent_bytes", connection.sent)
        log(
            "connection",
            connection=number,
            outcome=outcome,
            seconds=round(time.monotonic() - start, 3),
            images=session.images,
            volumes=session.volumes,
            received=connection.received,
            sent=connection.sent,
        )
        if connection.unread:
            log(
                "unread", connection=number, bytes=connection.unread, reason="The connection had been closed."
            )
        self._forget(number)


class Session:
    """The exchange with one client."""

    def __init__(
        self,
        connection: Connection,
        resolve: SuperResolver,
        worker: ThreadPoolExecutor,
        metrics: Metrics,
        parameters: Parameters,
    ) -> None:
        self.images = self.volumes = 0
        self._connection, self._resolve, self._worker = connection, resolve, worker
        self._metrics, self._parameters = metrics, parameters
        self._limits: dict[str, int] = {}  # of the scan, as its header announces them
        self._unread = 0  # images that were passed on because they cannot be read, or kept
        self._doubted = False  # whether the message that came last may have been longer or shorter
        self._owed: list[Image] = []  # what came and has neither gone back nor been restored

    def run(self) -> None:
        """Serve the client to the end. Raises RunError if it is refused, Gone if it disconnected."""
        card = self._resolve.card
        self._say("INFO", f"udean {__version__}, model {card.name}: {card.intended_use}.")
        try:
            kept, others = self._receive()
            if self._parameters.to:
                self._resolve = self._resolve.to(self._parameters.to)
            model = (
                f"{self._resolve.engine.info.sha256} {__version__} {self._parameters} {self._resolve.options}"
            )
            numbers = SeriesNumbers([*kept, *others], model)
            groups = stacks.group(kept)
            for images in groups:
                try:
                    stacks.check_whole(images, groups)
                    source = stacks.stack(images, self._parameters.position)
                    grid = self._grid(source)
                    doubt = stacks.doubt(images, groups, self._limits)
                    if not doubt and self._unread:
                        doubt = f"Images that could not be read ({self._unread}): slices may be missing."
                    self._restore(source, grid, numbers.of(source, grid), doubt)
                    restored = set(map(id, images))
                    self._owed = [image for image in self._owed if id(image) not in restored]
                except RunError as error:
                    self._metrics.add("volumes", outcome="refused")
                    self._say("ERROR", f"{error} Only its originals are delivered.")
                self._connection.check()
        finally:
            for image in self._owed:
                self._connection.send(image.parts())
        self._pass_on_rest()

    def pass_on(self, reason: str) -> None:
        """Send back all that comes, and restore nothing."""
        self._say("ERROR", f"{reason}: nothing is restored, and all images come back. Try again later.")
        self._connection.patience = 0.0
        while not isinstance(message := self._next(), mrd.Close):
            self._pass_on(message)
        self._pass_on_rest()

    def _pass_on(self, message: mrd.Message | None) -> bool:
        """Send back a message, if it is one that goes back; returns whether it is."""
        if not isinstance(message, mrd.Passed | Image):
            return False
        self.images += isinstance(message, Image)
        self._connection.pass_on(message.parts())
        return True

    def _pass_on_rest(self) -> None:
        """Send back what came after the close message, as far as it is here."""
        self._connection.patience = 0.0
        count = 0
        while self._connection.has_more():
            count += self._pass_on(self._next())
        if count:
            self._say("ERROR", f"{count} messages after the close message are passed on, and not restored.")

    def _receive(self) -> tuple[list[Image], list[Image]]:
        """Images to restore and others, all of them sent back as they came, until the close message."""
        kept: list[Image] = []
        others: list[Image] = []
        faults: Counter[str] = Counter()
        while not isinstance(message := self._next(), mrd.Close):
            if isinstance(message, mrd.Text):
                if message.kind == mrd.HEADER:
                    self._limits |= mrd.encoding_limits(message.content)
                if message.kind in (mrd.TEXT, mrd.CONFIG_TEXT):
                    self._parameters, ignored = self._parameters.updated(message.content)
                    for sentence in ignored:
                        self._say("ERROR", sentence)
            elif isinstance(message, mrd.Passed):
                self._connection.send(message.parts())
            elif isinstance(message, Image):
                self.images += 1
                self._metrics.add("images", direction="received")
                resolvable = stacks.is_resolvable(message)
                (kept if resolvable else others).append(message)
                if message.fault and not faults[message.fault]:
                    self._say("ERROR", f"{message.fault} It is passed on unchanged and not restored.")
                faults[message.fault] += 1
                self._unread += bool(message.fault)
                if self._parameters.originals or not resolvable:
                    self._connection.send(message.parts())
                else:
                    self._owed.append(message)
        whole = faults.pop("", 0)
        if faults.total():
            self._say("ERROR", f"{faults.total()} of {faults.total() + whole} images are not restored.")
        if sound := [image for image in others if not image.fault]:
            self._say("INFO", f"{len(sound)} images are not magnitude images and were passed on as they are.")
        return kept, others

    def _next(self) -> mrd.Message | None:
        """The next message that can be kept; None after one that was skipped or passed on directly."""
        try:
            message = self._connection.receive()
            self._doubted = isinstance(message, Image) and bool(message.fault)
            return message
        except mrd.LeftOut as error:
            self._say("ERROR", str(error))
        except mrd.Unknown as error:
            rest_of_image = self._doubted and not error.passed
            if rest_of_image:  # nothing comes between it and its image
                self._connection.resynchronize(error.ahead, b"")
            else:
                self._unread += bool(error.passed)
                self._say("ERROR", f"{error}: it is {'passed on' if error.passed else 'left out'}.")
                self._connection.resynchronize(error.passed, error.ahead)
        except mrd.TooLarge as error:
            self._unread += 1
            self._say("ERROR", f"{error} It is passed on unchanged and not restored.")
            self._connection.relay(error.head, error.size)
        return None

    def _grid(self, source: Stack) -> FineGrid:
        """The grid of a volume's SR voxels. Raises RunError for an impossible spacing."""
        if not self._parameters.to:
            return source.fine_grid(self._resolve.card)
        for warning in self._resolve.scans.choice(source.scan).warnings:
            self._say("WARN", f"{warning[0].upper()}{warning[1:]}.")
        return source.grid_of(self._resolve.scans.header(source.scan, self._parameters.dtype))

    def _restore(self, source: Stack, grid: FineGrid, place: Place, doubt: str) -> None:
        """Restore one volume, in its turn, and send its SR images. doubt: a sentence that goes with them."""
        if doubt:
            self._say("WARN", doubt)
        parameters = self._parameters
        dtype = source.images[0].pixels.dtype
        itemsize = 4 if parameters.dtype == "float32" else dtype.itemsize
        size = math.prod(grid.shape) * itemsize
        self._connection.claim(size)
        try:
            start = time.perf_counter()
            sr, network = self._worker.submit(self._network, source).result()
            card = self._resolve.scans.model(source.scan).card if parameters.to else self._resolve.card
            images = stacks.fine_images(
                source, sr, grid, card, parameters.position, place, __version__, doubt
            )
            for image in images:
                self._connection.send(image.parts())
            seconds = time.perf_counter() - start
            shape, given = " x ".join(map(str, grid.shape)), source.images[0].header
            self._say(
                "INFO",
                f"Series {place.series} is series {given['image_series_index']} restored to {shape} voxels "
                f"in {seconds:.2f} s{self._slabs(source)}: {card.intended_use}.",
            )
            self._connection.flush()
        finally:
            self._connection.release(size)
        self.volumes += 1
        self._metrics.add("network_seconds", network)
        self._metrics.add("volumes", outcome="restored")
        self._metrics.add("images", len(images), direction="sent")

    def _slabs(self, source: Stack) -> str:
        """Whether the mean over three slab axes was taken, if it was requested."""
        if not self._resolve.options.best or self._parameters.to:
            return ""
        why = self._resolve.why_one_axis(source.zooms)
        return f", along one slab axis, not three ({why})" if why else ", mean over three slab axes"

    def _network(self, source: Stack) -> tuple[NDArray[Any], float]:
        """In the worker: the SR voxels (x, y, z), and the seconds that the network took."""

        def progress(*_: int) -> None:
            self._connection.check()

        self._connection.check()
        resolve, dtype = self._resolve, self._parameters.dtype
        check_voxels(source.scan, source.voxels)
        check_sign(source.scan.name, source.voxels)
        if self._parameters.to:
            _, sr = resolve.scan(source.scan, dtype, progress=progress)
        else:
            lr = source.volume()
            if not np.isfinite(lr).all():
                raise RunError("A volume has NaN or infinite voxels.")
            sr = source.turn.stored(resolve(lr, dtype, progress, source.zooms))
            if resolve.card.grid == "fft":
                source.turn.settle(sr, source.factors(resolve.card))
        timings = resolve.timings
        return sr, timings.network if timings else 0.0

    def _say(self, level: str, content: str) -> None:
        self._connection.say(level, content)
