"""How long does a scanner wait, from the last LR slice to the last SR slice?

    python -m udean.benchmarks.latency [--shape 256,256,192] [--preset paper|compact|embedded] [--device auto]

`serve`: from the last slice sent to `udean-serve` to the last one received, as a share of the network's time
inside the server. Target: 1.10 or less.

`stream`: the same for `resolve.stream`, as a share of the network's time for the whole volume, which `volume`
measures in the same turn. Target: 0.15 or less. Slices arrive evenly, over exactly the time that the network
needs for all of them: a faster scan would have to wait for the network in any case, a slower one leaves it
idle.

`greedy`: all slices are available at once, so the latency is that of the last slab. `overhead` is the cost of
streaming if nobody waits: its time over that of the whole volume.
"""

from __future__ import annotations

import queue
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import RunError
from ..runtime.mrd import messages as mrd
from ..runtime.pipeline.engine import Precision
from ..runtime.resolver import SuperResolver
from . import common
from .common import run_script
from .scanners import ServerProcess, image, received, serving


def main(
    shape: str = "256,256,192",
    preset: str = "paper",
    device: str = "auto",
    precision: str = "auto",
    times: int = 5,
    out: Path = common.RESULTS,
) -> None:
    rows, columns, slices = common.numbers(shape)
    stack = common.textured((slices, rows, columns), "uint16")
    messages = [part for place, plane in enumerate(stack) for part in image(plane, place).parts()]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        model = common.EMBEDDED
        if preset != "embedded":
            files = common.untrained(Path(folder), preset)
            model = files.half if device.startswith("cuda") else files.full
        options = ["--engine", str(model), "--device", device, "--precision", precision]
        with (
            serving(*options) as server,
            SuperResolver(model, device, cast(Precision, precision), crop=False) as resolve,
        ):
            streams = Streams(resolve, stack)
            ways = {
                "serve": lambda: served(messages, slices, server),
                "volume": streams.volume,
                "stream": streams.paced,
                "greedy": streams.greedy,
            }
            runs = common.alternate(ways, times)
    result = {"shape": [rows, columns, slices], "preset": preset, "engine": server.said, "runs": runs}
    name = f"latency-{preset}-{device}-{rows}x{columns}x{slices}"
    common.record(name, {**result, "medians": common.medians(runs)}, out)


class Streams:
    """A stack (slices, rows, columns) resolved as one volume, and as a stream in two ways."""

    def __init__(self, resolve: SuperResolver, stack: NDArray[Any]) -> None:
        self._resolve, self._stack = resolve, stack
        self._whole = np.moveaxis(stack, 0, 2)
        self._known = resolve.intensities(self._whole)
        self._network = self._total = 0.0

    def volume(self) -> dict[str, float]:
        _, found = common.timed(self._resolve, self._whole)
        self._network, self._total = found["network"], found["seconds"]
        return {"network": self._network, "total": self._total}

    def paced(self) -> dict[str, float]:
        """Slices from another thread, evenly over the network's time for the volume."""
        arrived: queue.Queue[NDArray[Any]] = queue.Queue()
        last, start = [0.0], time.perf_counter()

        def scan() -> None:
            for number, lr in enumerate(self._stack, 1):
                due = start + number * self._network / len(self._stack)
                time.sleep(max(0.0, due - time.perf_counter()))
                last[0] = time.perf_counter()
                arrived.put(lr)

        scanner = threading.Thread(target=scan)
        scanner.start()
        end = self._drain(arrived.get() for _ in self._stack)
        scanner.join()
        return {"latency": end - last[0], "share": (end - last[0]) / self._network}

    def greedy(self) -> dict[str, float]:
        last = [0.0]

        def slices() -> Iterator[NDArray[Any]]:
            for lr in self._stack:
                last[0] = time.perf_counter()
                yield lr

        start = time.perf_counter()
        end = self._drain(slices())
        latency = end - last[0]
        overhead = (end - start) / self._total
        return {"latency": latency, "share": latency / self._network, "overhead": overhead}

    def _drain(self, slices: Iterator[NDArray[Any]]) -> float:
        """The time at which the last SR slice arrived."""
        end, count = 0.0, 0
        for _ in self._resolve.stream(slices, len(self._stack), self._known):
            end, count = time.perf_counter(), count + 1
        if count != len(self._stack) * self._resolve.card.scale[2]:
            raise RunError(f"The stream has yielded only {count} slices.")
        return end


def served(messages: list[mrd.Bytes], slices: int, server: ServerProcess) -> dict[str, float]:
    """From the last slice sent to the last one received."""
    before = server.metric("network_seconds_total")
    with socket.create_connection(server.address) as client, client.makefile("rb") as stream:
        arrived: list[float] = []

        def receive() -> None:
            arrived.extend(time.perf_counter() for m in received(stream) if isinstance(m, mrd.Image))

        receiver = threading.Thread(target=receive)
        receiver.start()
        for part in messages:
            client.sendall(part)
        sent = time.perf_counter()
        client.sendall(mrd.close())
        receiver.join()
    if len(arrived) <= slices:
        raise RunError("The server has restored nothing.")
    network, latency = server.metric("network_seconds_total") - before, arrived[-1] - sent
    return {"latency": latency, "network": network, "share": latency / network}


if __name__ == "__main__":
    run_script(main)
