"""The command `udean-serve`: a real process, its words, its exit codes, its end."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from ...support.commands import here
from ...support.fakes import card, onnx_model
from ...support.mrd_client import Client, images, pack_close, pack_image, talk, texts

COMMAND = [sys.executable, "-m", "udean.runtime.commands.serve"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return onnx_model(tmp_path_factory.mktemp("model") / "sr.onnx", card((2, 2, 2), 3, (16, 16)))


@pytest.fixture
def process(model):
    """A running server, its address and that of its metrics."""
    command = [*COMMAND, "--engine", str(model), "--port", "0", "--metrics-port", "0"]
    command += ["--threads", "1", "--precision", "fp32"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = "".join(server.stdout.readline() for _ in range(3))
    ports = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", said)]
    yield server, ("127.0.0.1", ports[1]), ports[0]
    server.kill()
    server.communicate()


def brain(n):
    return np.random.default_rng(n).integers(0, 1000, (1, 20, 18)).astype(np.uint16)


def test_a_stack_is_restored_health_is_told_and_the_end_is_graceful(process):
    server, address, metrics = process
    secret = "<ismrmrdMeta><meta><name>PatientName</name><value>Jane Roe</value></meta></ismrmrdMeta>"
    messages = [
        pack_image(brain(n), secret, field_of_view=(18, 20, 2), position=(0, 0, 2 * n)) for n in range(5)
    ]
    got = talk(address, *messages, pack_close())
    back, sr = images(got)[:5], images(got)[5:]
    assert [m.raw for m in back] == messages and len(sr) == 10
    volume = np.stack([m.pixels[0, 0] for m in sr])
    # Where LR voxels lie, whichever way the network saw them.
    np.testing.assert_array_equal(volume[::2, ::2, ::2], np.concatenate([brain(n) for n in range(5)]))
    assert urllib.request.urlopen(f"http://127.0.0.1:{metrics}/health").read().startswith(b"ok test")

    with Client(address) as late:
        assert "research only" in late.receive().text
        server.send_signal(signal.SIGTERM)
        late.send(*messages, pack_close())
        assert len(images(late.receive_all())) == 15
    _, errors = server.communicate(timeout=60)
    assert server.returncode == 0 and "Jane" not in errors and "Patient" not in errors
    events = [json.loads(line) for line in errors.splitlines()]
    assert [e["event"] for e in events] == ["connection", "stopping", "connection", "stopped"]
    assert events[0]["outcome"] == "done" and events[0]["volumes"] == 1
    with pytest.raises(OSError):
        socket.create_connection(address, 1)


def test_malformed_streams_leave_the_process_serving(process):
    _, address, _ = process
    random = np.random.default_rng(1)
    for _ in range(50):
        with Client(address) as client:
            client.send(random.bytes(random.integers(1, 400)))
            client.socket.shutdown(socket.SHUT_WR)
            said = []
            while (message := client.receive()).kind != 4:
                said.append(message)
            assert texts(said)[-1].startswith("ERROR")
    messages = [pack_image(brain(n), field_of_view=(18, 20, 2), position=(0, 0, 2 * n)) for n in range(2)]
    assert len(images(talk(address, *messages, pack_close()))) == 6


def test_where_nothing_can_start_the_code_is_two(model, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, word in (
            (["--engine", str(tmp_path / "none.onnx")], "does not exist"),
            (["--engine", str(model), "--port", port], "Cannot listen"),
            (["--engine", str(model), "--port", "0", "--metrics-port", port], "metrics"),
            (["--engine", str(model), "--host", "999.0.0.1"], "Cannot listen"),
            (["--engine", str(model), "--position", "x"], "spec"),
        ):
            done = here("udean-serve", *arguments)
            assert done.returncode == 2 and word in done.stderr, (arguments, done.stderr)
            assert "Traceback" not in done.stderr
