"""The MRD server under damaged messages: do the scanner's own images come back, and is every client served?

Many clients at once send streams of small images whose messages are damaged at random: bits flipped, lengths
that lie, messages cut, doubled, left out, attributes that are not XML. One client is dead (it sends half an
image and nothing more), one is slow (it takes a few bytes at a time), and some send intact streams, whose SR
images must equal those of the first one bit for bit. The server is a process of its own.

Every image whose message kept its framing must come back byte for byte, and every stream must end with the
close message. After the soak the server must hold no memory for any client.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import RunError
from ..runtime.mrd import messages as mrd

IMAGES = 40  # per stream, about
SHAPE = 12, 10  # rows, columns
SOUND = 0.02  # share of streams that are intact, and are compared
PAUSE = 600.0  # seconds that a client waits for the server, which is busy with others on a busy machine
SERIES = 900  # of an image that follows damage to the framing
LIMITS = ["--max-connections", "100", "--max-memory", "512", "--max-message", "8", "--idle-timeout", "300"]


def soak(messages: int, clients: int, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Send this many messages, or for this long. Returns the figures; those of `BAD` are 0 if all is well."""
    start = time.monotonic()
    with serving() as server:
        counts = Counts(messages, start + seconds)
        whole = stream(random.Random(seed), 0)
        wanted = _sr_images(talk(server.address, b"".join(whole.parts)))
        if len(wanted) != 2 * len(whole.images):
            raise RunError("The server did not restore an intact stream.")
        stop, peak = threading.Event(), 0
        with ThreadPoolExecutor(clients) as pool:
            others = [
                pool.submit(_dead, server.address, whole, stop),
                pool.submit(_slow, server.address, whole, stop, counts),
            ]
            workers = [
                pool.submit(_client, server.address, counts, seed + n, whole, wanted)
                for n in range(1, clients - 1)
            ]
            while not all(worker.done() for worker in workers):
                peak = max(peak, server.memory())
                time.sleep(0.5)
            stop.set()
        for client in (*workers, *others):
            client.result()
        held = server.held()
        again = _sr_images(talk(server.address, b"".join(whole.parts)))
        alive = server.process.poll() is None
    figures = counts.figures
    return {
        "messages": figures["messages"],
        "damaged": figures["damaged"],
        "streams": figures["streams"],
        "clients": clients,
        "images that came back": figures["back"],
        "streams refused for their framing": figures["unframed"],
        "sound streams beside them": figures["sound"],
        "streams of the slow client": figures["slow"],
        BAD[0]: figures["lost"],
        BAD[1]: figures["unended"],
        BAD[2]: figures["wrong"] + (again != wanted) + (not alive),
        BAD[3]: held,
        "server's memory at most, MB": round(peak / 1e6),
        "seconds": round(time.monotonic() - start),
    }


BAD = (
    "images that did not come back",
    "streams without an end",
    "sound streams with another result",
    "bytes held in the end",
)


@dataclass
class Counts:
    """Counts what has been sent and what is left."""

    messages: int
    deadline: float
    figures: Counter[str] = field(default_factory=Counter)
    turn: threading.Lock = field(default_factory=threading.Lock)

    def left(self) -> bool:
        return self.figures["messages"] < self.messages and time.monotonic() < self.deadline

    def add(self, **figures: int) -> None:
        with self.turn:
            self.figures.update({name: int(value) for name, value in figures.items()})


# Streams


@dataclass(frozen=True)
class Stream:
    """Messages in order. images: the image messages that must come back. framed: whether every message has
    the length that it declares, so that all must come back."""

    parts: list[bytes]
    images: list[bytes]
    framed: bool = True
    damaged: int = 0


def stream(rng: random.Random, series: int) -> Stream:
    """An intact stream: configuration, header, slices, physiology, raw data, close."""
    images = [_image(rng, place, series + 1) for place in range(IMAGES)]
    parts = [struct.pack("<H1024s", mrd.CONFIG_NAME, b"udean"), _text(mrd.HEADER, b"<ismrmrdHeader/>")]
    for number, image in enumerate(images):
        parts.append(image)
        if number % 16 == 7:
            parts.append(_waveform(rng))
        if number % 16 == 11:
            parts.append(_acquisition(rng))
        if number % 16 == 15:
            parts.append(_text(mrd.TEXT, b'{"parameters": {"other": 1}}'))
    return Stream([*parts, mrd.close()], images)


def damaged(rng: random.Random, series: int) -> Stream:
    """A stream with some damaged messages, most of them damaged in their contents."""
    sound = stream(rng, series)
    parts, images, count, framed = [], [], 0, True
    unframed = rng.random() < 0.1
    for part in sound.parts[:-1]:
        image = part[:2] == struct.pack("<H", mrd.IMAGE)
        if rng.random() < 0.5:
            kind = rng.choice(("header", "attributes", "pixels", "again", "left out", "text", "series"))
            made = _changed(rng, part, kind) if image else _changed_other(rng, part, kind)
            count += 1
        else:
            made = [part]
        parts += made
        if framed:
            images += [one for one in made if one[:2] == struct.pack("<H", mrd.IMAGE)]
        if unframed and framed and rng.random() < 0.1:
            parts.append(_noise(rng, images[-1] if images else sound.images[0]))
            framed, count = False, count + 1
    return Stream([*parts, mrd.close()], images, framed, count)


def _image(rng: random.Random, place: int, series: int, attributes: bytes = b"") -> bytes:
    header = np.zeros((), mrd.HEADER_DTYPE)
    rows, columns = SHAPE
    header["version"], header["data_type"], header["matrix_size"] = 1, 1, (columns, rows, 1)
    header["field_of_view"], header["channels"] = (columns, rows, 2), 1
    header["position"], header["slice"] = (0, 0, 2 * place), place
    header["read_dir"], header["phase_dir"], header["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    header["image_type"], header["image_index"] = mrd.MAGNITUDE, place + 1
    header["image_series_index"] = series
    pixels = np.frombuffer(rng.randbytes(rows * columns), np.uint8).astype("<u2")
    return _packed(header, attributes, pixels.tobytes())


def _packed(header: Any, attributes: bytes, pixels: bytes) -> bytes:
    head = struct.pack("<H", mrd.IMAGE) + header.tobytes()
    return head + struct.pack("<Q", len(attributes)) + attributes + pixels


def _text(kind: int, content: bytes) -> bytes:
    return struct.pack("<HI", kind, len(content)) + content


def _waveform(rng: random.Random) -> bytes:
    samples, channels = rng.randint(0, 8), rng.randint(0, 3)
    head = mrd.WAVEFORM_HEADER.pack(1, 0, 7, 8, 9, samples, channels, 2.5, 1)
    return struct.pack("<H", mrd.WAVEFORM) + head + rng.randbytes(4 * samples * channels)


def _acquisition(rng: random.Random) -> bytes:
    head = bytearray(rng.randbytes(mrd.ACQUISITION_HEADER))
    samples, channels, dimensions = rng.randint(0, 8), rng.randint(0, 3), rng.randint(0, 2)
    for at, value in ((mrd.SAMPLES, samples), (mrd.CHANNELS, channels), (mrd.DIMENSIONS, dimensions)):
        struct.pack_into("<H", head, at, value)
    size = 4 * samples * (dimensions + 2 * channels)
    return struct.pack("<H", mrd.ACQUISITION) + head + rng.randbytes(size)


def _changed(rng: random.Random, message: bytes, kind: str) -> list[bytes]:
    """An image with changed contents and matching lengths; or twice, or not at all."""
    header = np.frombuffer(message[2:200], mrd.HEADER_DTYPE)[0].copy()
    pixels = message[208:]
    if kind == "again":
        return [message, message]
    if kind == "left out":
        return []
    if kind == "series":
        header["image_series_index"] = rng.randint(0, 65535)
        return [_packed(header, b"", pixels)]
    if kind == "pixels":
        header["data_type"] = number = rng.choice(list(mrd.DTYPES))
        shape = [rng.choice((0, 1, 1, 2, 5, 17)) for _ in range(3)]
        channels = rng.choice((0, 1, 1, 1, 4))
        header["matrix_size"], header["channels"] = shape, channels
        size = int(np.prod([*shape, channels])) * mrd.DTYPES[number].itemsize
        return [_packed(header, b"", rng.randbytes(size))]
    if kind in ("attributes", "text"):
        xml = rng.choice(ATTRIBUTES)
        if rng.random() < 0.3:
            spoilt = bytearray(xml)
            for _ in range(min(3, len(xml))):
                spoilt[rng.randrange(len(xml))] = rng.randrange(256)
            xml = bytes(spoilt)
        return [_packed(header, xml, pixels)]
    data = bytearray(message)
    for _ in range(rng.randint(1, 6)):  # any bit that does not change the length
        at = rng.choice([2, 3, *range(6, 18), *range(24, 36), *range(38, 196)])
        data[at] ^= 1 << rng.randrange(8)
    if rng.random() < 0.3:
        for at in range(24, 36, 4):
            struct.pack_into("<f", data, at, rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf"))))
    return [bytes(data)]


def _changed_other(rng: random.Random, message: bytes, kind: str) -> list[bytes]:
    """A message that is not an image, changed without changing its length."""
    if kind == "again":
        return [message, message]
    if kind == "left out":
        return []
    if kind in ("text", "attributes"):
        return [_text(rng.choice((mrd.CONFIG_TEXT, mrd.HEADER, mrd.TEXT)), rng.choice(TEXTS))]
    return [message]


def _noise(rng: random.Random, image: bytes) -> bytes:
    """Something that breaks the framing: random bytes, a truncated message, or one with wrong lengths."""
    kind = rng.choice(("unknown", "cut", "matrix", "attributes", "text"))
    if kind == "unknown":
        return struct.pack("<H", rng.choice([0, 2, *range(6, 1000), 1009, 1023, 65535])) + rng.randbytes(200)
    if kind == "cut":
        return image[: rng.randint(1, len(image) - 1)]
    if kind == "text":
        return struct.pack("<HI", mrd.TEXT, rng.randint(2000, 2**32 - 1)) + b"{}"
    data = bytearray(image)
    if kind == "matrix":
        struct.pack_into("<3H", data, 18, *(rng.randint(50, 65535) for _ in range(3)))
    else:
        struct.pack_into("<Q", data, 200, rng.getrandbits(rng.randint(12, 64)))
    return bytes(data)


ATTRIBUTES = (
    b"",
    b"undefined",
    b"<ismrmrdMeta",
    b"<ismrmrdMeta><meta><name>WindowCenter</name><value>x</value></meta></ismrmrdMeta>",
    b"<ismrmrdMeta><meta><name>IceMiniHead</name><value>Zm9v</value></meta></ismrmrdMeta>",
    b"<ismrmrdMeta><meta><name>DicomJson</name><value>!!</value><value>W10=</value></meta></ismrmrdMeta>",
    b"<ismrmrdMeta><meta><name>ImageType</name><value>ORIGINAL</value></meta></ismrmrdMeta>\0",
    "<ismrmrdMeta><meta><name>ImageComments</name><value>\u00fc</value></meta></ismrmrdMeta>".encode(
        "latin-1"
    ),
    b'<!DOCTYPE a [<!ENTITY b "c">]><ismrmrdMeta/>',
    b"<a>" * 2000,
    b"<ismrmrdMeta><meta><value>no name</value></meta><meta/></ismrmrdMeta>",
    b"\xff\xfe\x00",
)
TEXTS = (
    b"",
    b"{",
    b"[1, 2]",
    b"null",
    b'{"dtype": 7}',
    b'{"position": "here"}',
    b'{"parameters": null}',
    b"\xfc\xff",
    b"[" * 3000,
    b'{"parameters": {"originals": "perhaps"}}',
)


# Clients


def _client(address: tuple[str, int], counts: Counts, seed: int, whole: Stream, wanted: list[bytes]) -> None:
    rng = random.Random(seed)
    while counts.left():
        if rng.random() < SOUND:
            back, ended = answer(address, whole)
            counts.add(sound=1, wrong=_sr_images(back) != wanted, streams=1, messages=len(whole.parts))
            counts.add(unended=not ended, lost=lost(whole.images, back), back=len(whole.images))
            continue
        sent = damaged(rng, 0)
        back, ended = answer(address, sent)
        missing = lost(sent.images, back)
        counts.add(streams=1, messages=len(sent.parts), damaged=sent.damaged, unframed=not sent.framed)
        counts.add(lost=missing, back=len(sent.images) - missing, unended=not ended)


def lost(images: list[bytes], back: bytes) -> int:
    """How many images did not come back byte for byte, as often as sent and in order."""
    place, missing = 0, 0
    for image in images:
        found = back.find(image, place)
        missing += found < 0
        place = found + len(image) if found >= 0 else place
    return missing


def _sr_images(back: bytes) -> list[bytes]:
    """The images of an intact stream's answer that belong to the SR series."""
    found, place = [], 0
    while place + 2 <= len(back):
        (kind,) = struct.unpack_from("<H", back, place)
        if kind == mrd.IMAGE:
            header = np.frombuffer(back[place + 2 : place + 200], mrd.HEADER_DTYPE)[0]
            (length,) = struct.unpack_from("<Q", back, place + 200)
            size = int(np.prod(header["matrix_size"].astype(int))) * int(header["channels"])
            end = place + 208 + length + size * mrd.DTYPES[int(header["data_type"])].itemsize
            if header["image_series_index"] != 1:
                found.append(back[place:end])
        elif kind == mrd.TEXT:
            end = place + 6 + struct.unpack_from("<I", back, place + 2)[0]
        elif kind == mrd.WAVEFORM:
            *_, samples, channels, _, _ = mrd.WAVEFORM_HEADER.unpack_from(back, place + 2)
            end = place + 42 + 4 * samples * channels
        elif kind == mrd.ACQUISITION:
            head = back[place + 2 : place + 342]
            samples, channels, dimensions = (
                struct.unpack_from("<H", head, at)[0] for at in (mrd.SAMPLES, mrd.CHANNELS, mrd.DIMENSIONS)
            )
            end = place + 342 + 4 * samples * (dimensions + 2 * channels)
        else:
            break
        place = end
    return found


def answer(address: tuple[str, int], sent: Stream) -> tuple[bytes, bool]:
    """The messages that come back, and whether they end with the close message."""
    back = talk(address, b"".join(sent.parts), not sent.framed)
    return back, back.endswith(mrd.close())


def talk(address: tuple[str, int], data: bytes, finish: bool = False) -> bytes:
    """Send everything while reading; returns what came back. finish: close the sending side."""
    back = bytearray()
    with contextlib.suppress(OSError), socket.create_connection(address, PAUSE) as link:
        sender = threading.Thread(target=_send, args=(link, data, finish))
        sender.start()
        while chunk := link.recv(1 << 16):
            back += chunk
        sender.join()
    return bytes(back)


def _send(link: socket.socket, data: bytes, finish: bool) -> None:
    with contextlib.suppress(OSError):
        link.sendall(data)
        if finish:
            link.shutdown(socket.SHUT_WR)


def _dead(address: tuple[str, int], whole: Stream, stop: threading.Event) -> None:
    """Connects, sends half an image and then nothing; another one then takes its place."""
    while not stop.is_set():
        with contextlib.suppress(OSError), socket.create_connection(address, PAUSE) as link:
            link.sendall(b"".join(whole.parts[:5]) + whole.images[0][:100])
            stop.wait(30)


def _slow(address: tuple[str, int], whole: Stream, stop: threading.Event, counts: Counts) -> None:
    """Sends and reads a little at a time, and must still get the same as everybody."""
    data = b"".join(whole.parts)
    while not stop.is_set():
        back = bytearray()
        with contextlib.suppress(OSError), socket.create_connection(address, PAUSE) as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for place in range(0, len(data), 1000):
                link.sendall(data[place : place + 1000])
                time.sleep(0.05)
            while chunk := link.recv(1000):
                back += chunk
                time.sleep(0.005)
        counts.add(slow=1, unended=not back.endswith(mrd.close()), lost=lost(whole.images, bytes(back)))


# The server


@dataclass(frozen=True)
class Running:
    """The server as a process. watch: port of its metrics."""

    process: subprocess.Popen[str]
    address: tuple[str, int]
    watch: int

    def held(self) -> int:
        """Bytes held for clients after all have disconnected."""
        url, deadline = f"http://127.0.0.1:{self.watch}/metrics", time.monotonic() + PAUSE
        while True:
            with urllib.request.urlopen(url, timeout=PAUSE) as answer:
                found = re.search(r"^\w*held_bytes (\S+)$", answer.read().decode(), re.MULTILINE)
            held = int(float(found[1])) if found else -1
            if not held or time.monotonic() > deadline:
                return held
            time.sleep(0.3)

    def memory(self) -> int:
        """Its resident memory, bytes; 0 if it has ended."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) << 10
        return 0


@contextlib.contextmanager
def serving() -> Iterator[Running]:
    """udean-serve with the embedded model, on free ports."""
    command = [str(Path(sys.executable).with_name("udean-serve")), "--port", "0", "--metrics-port", "0"]
    command += ["--precision", "fp32", "--threads", "1", *LIMITS]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout
        said = "".join(server.stdout.readline() for _ in range(3))
        ports = re.findall(r"127\.0\.0\.1:(\d+)", said)
        if len(ports) != 2:
            raise RunError("The server did not start.")
        yield Running(server, ("127.0.0.1", int(ports[1])), int(ports[0]))
    finally:
        server.kill()
        server.wait()
