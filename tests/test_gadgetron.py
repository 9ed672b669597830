"""The recipe for Gadgetron, started as Gadgetron does it, with udean-serve behind it."""

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import udean

from .support.fakes import card, onnx_model
from .support.mrd_client import Client, images, pack_close, pack_image, pack_text, pack_waveform

pytest.importorskip("gadgetron", reason="gadgetron is not installed: pip install gadgetron")

RECIPE = Path(udean.__file__).parent / "deploy" / "gadgetron"
HEADER = (
    '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions><H1resonanceFrequency_Hz>1'
    "</H1resonanceFrequency_Hz></experimentalConditions>{}</ismrmrdHeader>"
)
SPACE = (
    "<matrixSize><x>10</x><y>12</y><z>1</z></matrixSize>"
    "<fieldOfView_mm><x>10</x><y>12</y><z>2</z></fieldOfView_mm>"
)
EIGHT_SLICES = (
    f"<encoding><encodedSpace>{SPACE}</encodedSpace><reconSpace>{SPACE}</reconSpace><encodingLimits><slice>"
    "<minimum>0</minimum><maximum>7</maximum><center>4</center></slice></encodingLimits>"
    "<trajectory>cartesian</trajectory></encoding>"
)


@contextlib.contextmanager
def server(folder):
    """udean-serve, and where it listens."""
    model = onnx_model(folder / "model.onnx", card((2, 2, 2), 3, (16, 16)))
    command = [Path(sys.executable).with_name("udean-serve"), "--engine", model]
    process = subprocess.Popen(
        [*command, "--port", "0", "--metrics-port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        said = "".join(process.stdout.readline() for _ in range(3))
        yield process, re.search(r"Listening on (\S+)", said)[1]
    finally:
        process.kill()
        process.communicate()


def through_the_gadget(address, *messages, encoding=""):
    """The module's messages if it is started as Gadgetron does it: it connects back to its parent's port."""
    with socket.create_server(("localhost", 0)) as parent:
        port = parent.getsockname()[1]
        environment = os.environ | {"PYTHONPATH": str(RECIPE), "UDEAN_SERVER": address}
        command = [sys.executable, "-m", "gadgetron", str(port), "udean_gadget", "super_resolve"]
        module = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        parent.settimeout(60)
        link, _ = parent.accept()
        client = Client.__new__(Client)
        client.socket, client.raw = link, b""
        with client:
            client.send(
                pack_text(2, "<configuration/>"),
                pack_text(3, HEADER.format(encoding)),
                *messages,
                pack_close(),
            )
            back = client.receive_all()
        return back, module.communicate(timeout=60)[1]


def stack():
    planes = np.random.default_rng(0).integers(1, 1000, (4, 12, 10)).astype(np.uint16)
    return [
        pack_image(plane[None], field_of_view=(10, 12, 2), position=(0, 0, 2 * n), slice=n)
        for n, plane in enumerate(planes)
    ]


def test_originals_and_the_restored_series_reach_gadgetron(tmp_path):
    sent = stack()
    with server(tmp_path) as (_, address):
        back, log = through_the_gadget(address, *sent, pack_waveform(np.zeros((2, 5))))
    found = images(back)
    assert [image.raw for image in found[:4]] == sent
    assert {(i.header.image_series_index, i.pixels.shape) for i in found[4:]} == {(2, (1, 1, 24, 20))}
    assert len(found) == 12 and "restored to 20 x 24 x 8 voxels" in log
    assert [m.kind for m in back].count(1026) == 1


def test_slices_that_the_header_announces_and_that_did_not_come_are_told(tmp_path):
    with server(tmp_path) as (_, address):
        back, log = through_the_gadget(address, *stack(), encoding=EIGHT_SLICES)
    assert len(images(back)) == 12 and "Series 1 has 4 of the 8 slices" in log


@pytest.mark.parametrize("takes_a_client", [False, True], ids=["away", "breaks off"])
def test_the_originals_go_on_without_the_server(takes_a_client):
    def break_off():
        link, _ = other.accept()
        link.recv(10)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        link.close()

    sent = stack()
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        if takes_a_client:
            threading.Thread(target=break_off, daemon=True).start()
        else:
            other.close()
        back, log = through_the_gadget(address, *sent)
    assert [image.raw for image in images(back)] == sent and "only the originals are passed on" in log
