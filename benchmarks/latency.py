"""How long does a scanner wait, from the last LR slice to the last SR slice?

    python -m udean.benchmarks.latency [--shape 256,256,192] [--preset paper|compact|embedded] [--device auto]

`serve`: from the last slice sent to `udean-serve` to the last one received, as a share of the network's time
inside the server. Target: 1.10 or less.

`stream`: the same for `resolve.stream`, as a share of the network's time for the whole volume, which `volume`
measures in the same turn. Target: 0.15 or less. Slices arrive evenly, over exactly the time that the network
needs for all of them: a faster scan would have to wait for the network in any case, a slower one leaves it
idle.

`greedy`: all slices are available at once, so the latency is that of the last slab. `overhead` is the cost of
streaming if nobody waits: its time as a multiple of the whole volume's.
"""

from __future__ import annotations

import queue
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import typer
from numpy.typing import NDArray

from ..runtime.mrd import messages as mrd
from ..runtime.pipeline.engine import Precision
from ..runtime.resolver import SuperResolver
from . import common


def main(
    shape: str = "256,256,192",
    preset: str = "paper",
    device: str = "auto",
    precision: str = "auto",
    times: int = 5,
    out: Path = common.RESULTS,
) -> None:
    rows, columns, slices = map(int, shape.split(","))
    stack = common.head((slices, rows, columns), "uint16")
    messages = _messages(stack)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        full = half = common.EMBEDDED
        if preset != "embedded":
            _, full, half = common.model(Path(folder), preset)
        model = half if device.startswith("cuda") else full
        command = [sys.executable, "-m", "udean.runtime.commands.serve", "--port", "0", "--metrics-port", "0"]
        command += ["--engine", str(model), "--device", device, "--precision", precision]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout
            said = [server.stdout.readline().strip() for _ in range(3)]
            metrics, port = (int(re.findall(r":(\d+)", line)[-1]) for line in said[1:])
            with SuperResolver(model, device, cast(Precision, precision), crop=False) as resolve:
                streams = Streams(resolve, stack)
                run = common.alternate(
                    {
                        "serve": lambda: _measure(messages, slices, port, metrics),
                        "volume": streams.volume,
                        "stream": streams.paced,
                        "greedy": streams.greedy,
                    },
                    times,
                )
        finally:
            server.terminate()
            server.wait()
    figures = {"shape": [rows, columns, slices], "preset": preset, "engine": said[0], "runs": run}
    medians = common.medians(run)
    name = f"latency-{preset}-{device}-{rows}x{columns}x{slices}"
    common.record(name, {**figures, "medians": medians}, out)


class Streams:
    """A stack (slices, rows, columns) resolved as one volume, and as a stream in two ways."""

    def __init__(self, resolve: SuperResolver, stack: NDArray[Any]) -> None:
        self._resolve, self._stack = resolve, stack
        self._whole = np.moveaxis(stack, 0, 2)
        self._known = resolve.intensities(self._whole)
        self._network = self._total = 0.0

    def volume(self) -> dict[str, float]:
        self._resolve(self._whole)
        timings = self._resolve.timings
        assert timings
        self._network, self._total = timings.network, timings.total
        return {"network": timings.network, "total": timings.total}

    def paced(self) -> dict[str, float]:
        """Slices from another thread, evenly over the network's time for the volume."""
        arrived: queue.Queue[NDArray[Any]] = queue.Queue()
        last = [0.0]
        start = time.perf_counter()

        def scan() -> None:
            for number, lr in enumerate(self._stack, 1):
                time.sleep(max(0.0, start + number * self._network / len(self._stack) - time.perf_counter()))
                last[0] = time.perf_counter()
                arrived.put(lr)

        def slices() -> Iterator[NDArray[Any]]:
            for _ in self._stack:
                yield arrived.get()

        scanner = threading.Thread(target=scan)
        scanner.start()
        end = self._drain(slices())
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
        return {
            "latency": latency,
            "share": latency / self._network,
            "overhead": (end - start) / self._total,
        }

    def _drain(self, slices: Iterator[NDArray[Any]]) -> float:
        """The time at which the last SR slice arrived."""
        end, count = 0.0, 0
        for _ in self._resolve.stream(slices, len(self._stack), self._known):
            end, count = time.perf_counter(), count + 1
        if count != len(self._stack) * self._resolve.card.scale[2]:
            raise SystemExit(f"The stream has yielded only {count} slices.")
        return end


def _messages(volume: NDArray[Any]) -> list[list[mrd.Bytes]]:
    """An LR stack (slices, rows, columns) as image messages."""
    messages = []
    for number, plane in enumerate(volume):
        header = np.zeros((), mrd.HEADER_DTYPE)
        header["version"], header["data_type"], header["channels"] = 1, 1, 1
        header["matrix_size"], header["field_of_view"] = (*plane.shape[::-1], 1), (*plane.shape[::-1], 2)
        header["read_dir"], header["phase_dir"], header["slice_dir"] = np.eye(3)
        header["position"], header["slice"] = (0, 0, 2 * number), number
        header["image_type"] = header["image_series_index"] = 1
        messages.append(mrd.Image(header, b"", plane[None, None]).parts())
    return messages


def _measure(messages: list[list[mrd.Bytes]], slices: int, port: int, metrics: int) -> dict[str, float]:
    before = _network_seconds(metrics)
    with socket.create_connection(("127.0.0.1", port)) as client, client.makefile("rb") as stream:
        arrived: list[float] = []

        def read(size: int) -> bytearray:
            data = bytearray(stream.read(size))
            if len(data) < size:
                raise mrd.EndOfStream
            return data

        def receive() -> None:
            while not isinstance(message := mrd.read_message(read, 1 << 30, lambda _: None), mrd.Close):
                if isinstance(message, mrd.Image):
                    arrived.append(time.perf_counter())

        receiver = threading.Thread(target=receive)
        receiver.start()
        for message in messages:
            for part in message:
                client.sendall(part)
        sent = time.perf_counter()
        client.sendall(mrd.close())
        receiver.join()
    if len(arrived) <= slices:
        raise SystemExit("The server has restored nothing.")
    network = _network_seconds(metrics) - before
    latency = arrived[-1] - sent
    return {"latency": latency, "network": network, "share": latency / network}


def _network_seconds(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        found = re.search(r"^udean_network_seconds_total (\S+)", answer.read().decode(), re.MULTILINE)
    assert found
    return float(found[1])


if __name__ == "__main__":
    typer.run(main)
