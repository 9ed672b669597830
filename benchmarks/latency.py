"""How long does a scanner wait: from the last LR slice sent to `udean-serve` to the last SR slice received?

    python -m udean.benchmarks.latency [--shape 256,256,192] [--preset paper] [--device auto]

As a share of the network's own time, in the same run. Target: 1.10 or less.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

from ..runtime.mrd import messages as mrd
from . import common


def main(
    shape: str = "256,256,192",
    preset: str = "paper",
    device: str = "auto",
    precision: str = "auto",
    times: int = 5,
) -> None:
    rows, columns, slices = map(int, shape.split(","))
    messages = _messages(common.head((slices, rows, columns), "uint16"))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        _, full, half = common.model(Path(folder), preset)
        command = [sys.executable, "-m", "udean.runtime.mrd.serve", "--port", "0", "--metrics-port", "0"]
        command += ["--engine", str(half if device.startswith("cuda") else full)]
        command += ["--device", device, "--precision", precision]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout
            said = [server.stdout.readline().strip() for _ in range(3)]
            metrics, port = (int(re.findall(r":(\d+)", line)[-1]) for line in said[1:])
            run = common.alternate({"serve": lambda: _measure(messages, slices, port, metrics)}, times)
        finally:
            server.terminate()
            server.wait()
    figures = {"shape": [rows, columns, slices], "preset": preset, "engine": said[0], "runs": run}
    medians = common.medians(run)
    common.record(f"latency-{preset}-{device}-{rows}x{columns}x{slices}", {**figures, "medians": medians})


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
