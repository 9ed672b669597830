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
import io
import random
import socket
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from udean.benchmarks.scanners import image, received, serving
from udean.runtime.errors import RunError
from udean.runtime.mrd import messages as mrd

IMAGES = 40  # per stream, about
SHAPE = 12, 10  # rows, columns
SOUND = 0.02  # share of streams that are intact, and are compared
PAUSE = 600.0  # seconds that a client waits for the server, which is busy with others on a busy machine
LIMITS = ["--max-connections", "100", "--max-memory", "512", "--max-message", "8", "--idle-timeout", "300"]
FRAMED = struct.pack("<H", mrd.IMAGE)  # an image message's first bytes
LENGTHS, MATRIX, ATTRIBUTES = 200, 18, 208  # of its attributes' length, its matrix size, its attributes
BAD = (
    "images that did not come back",
    "streams without an end",
    "sound streams with another result",
    "bytes held in the end",
)
Address = tuple[str, int]


def soak(messages: int, clients: int, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Send this many messages, or for this long. Returns the figures; those of `BAD` are 0 if all is well."""
    start = time.monotonic()
    with serving("--precision", "fp32", "--threads", "1", *LIMITS, quiet=True) as server:
        counts = Counts(messages, start + seconds)
        whole = stream(random.Random(seed), 0)
        wanted = _sr_images(answer(server.address, whole))
        if len(wanted) != 2 * len(whole.images):
            raise RunError("The server did not restore an intact stream.")
        stop, peak = threading.Event(), 0
        with ThreadPoolExecutor(clients) as pool:
            others = [
                pool.submit(_dead, server.address, whole, stop),
                pool.submit(_slow, server.address, whole, stop, counts),
            ]
            senders = [
                pool.submit(_client, server.address, counts, seed + n, whole, wanted)
                for n in range(1, clients - 1)
            ]
            while not all(sender.done() for sender in senders):
                peak = max(peak, server.memory())
                time.sleep(0.5)
            stop.set()
        for client in (*senders, *others):
            client.result()
        deadline = time.monotonic() + PAUSE
        while (held := int(server.metric("held_bytes", PAUSE))) and time.monotonic() < deadline:
            time.sleep(0.3)
        again = _sr_images(answer(server.address, whole))
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
class Messages:
    """A stream's messages in order. images: those that must come back. framed: whether every message has the
    length that it declares, so that all must come back."""

    parts: list[bytes]
    images: list[bytes]
    framed: bool = True
    damaged: int = 0


def stream(rng: random.Random, series: int) -> Messages:
    """An intact stream: configuration, header, slices, physiology, raw data, close."""
    images = []
    for place in range(IMAGES):
        plane = np.frombuffer(rng.randbytes(SHAPE[0] * SHAPE[1]), np.uint8).reshape(SHAPE).astype("<u2")
        images.append(b"".join(image(plane, place, series + 1).parts()))
    parts = [struct.pack("<H1024s", mrd.CONFIG_NAME, b"udean"), _text(mrd.HEADER, b"<ismrmrdHeader/>")]
    for number, one in enumerate(images):
        parts.append(one)
        if number % 16 == 7:
            parts.append(_waveform(rng))
        if number % 16 == 11:
            parts.append(_acquisition(rng))
        if number % 16 == 15:
            parts.append(_text(mrd.TEXT, b'{"parameters": {"other": 1}}'))
    return Messages([*parts, mrd.close()], images)


def damaged(rng: random.Random, series: int) -> Messages:
    """A stream with some damaged messages, most of them damaged in their contents."""
    sound = stream(rng, series)
    parts, images, count, framed = [], [], 0, True
    unframed = rng.random() < 0.1
    for part in sound.parts[:-1]:
        made = [part]
        if rng.random() < 0.5:
            made = rng.choice(([part, part], [], [_changed(rng, part)], [_changed(rng, part)]))
            count += 1
        parts += made
        if framed:
            images += [one for one in made if one[:2] == FRAMED]
        if unframed and framed and rng.random() < 0.1:
            parts.append(_without_framing(rng, images[-1] if images else sound.images[0]))
            framed, count = False, count + 1
    return Messages([*parts, mrd.close()], images, framed, count)


def _packed(header: Any, attributes: bytes, pixels: bytes) -> bytes:
    return FRAMED + header.tobytes() + struct.pack("<Q", len(attributes)) + attributes + pixels


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


def _changed(rng: random.Random, message: bytes) -> bytes:
    """A message with changed contents, whose lengths agree."""
    if message[:2] != FRAMED:
        return _text(rng.choice((mrd.CONFIG_TEXT, mrd.HEADER, mrd.TEXT)), rng.choice(TEXTS))
    header = np.frombuffer(message[2:LENGTHS], mrd.HEADER_DTYPE)[0].copy()
    pixels, kind = message[ATTRIBUTES:], rng.choice(("header", "attributes", "pixels", "series"))
    if kind == "series":
        header["image_series_index"] = rng.randint(0, 65535)
        return _packed(header, b"", pixels)
    if kind == "pixels":
        header["data_type"] = number = rng.choice(list(mrd.DTYPES))
        shape = [rng.choice((0, 1, 1, 2, 5, 17)) for _ in range(3)]
        channels = rng.choice((0, 1, 1, 1, 4))
        header["matrix_size"], header["channels"] = shape, channels
        size = int(np.prod([*shape, channels])) * mrd.DTYPES[number].itemsize
        return _packed(header, b"", rng.randbytes(size))
    if kind == "attributes":
        xml = bytearray(rng.choice(XML))
        for _ in range(min(3, len(xml)) if rng.random() < 0.3 else 0):
            xml[rng.randrange(len(xml))] = rng.randrange(256)
        return _packed(header, bytes(xml), pixels)
    data = bytearray(message)
    for _ in range(rng.randint(1, 6)):  # any bit that does not change the length
        at = rng.choice([2, 3, *range(6, 18), *range(24, 36), *range(38, 196)])
        data[at] ^= 1 << rng.randrange(8)
    if rng.random() < 0.3:
        for at in range(24, 36, 4):  # the field of view
            struct.pack_into("<f", data, at, rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf"))))
    return bytes(data)


def _without_framing(rng: random.Random, message: bytes) -> bytes:
    """Something that breaks the framing: random bytes, a truncated message, or one with wrong lengths."""
    kind, data = rng.choice(("unknown", "cut", "matrix", "attributes", "text")), bytearray(message)
    if kind == "unknown":
        return struct.pack("<H", rng.choice([0, 2, *range(6, 1000), 1009, 1023, 65535])) + rng.randbytes(200)
    if kind == "text":
        return struct.pack("<HI", mrd.TEXT, rng.randint(2000, 2**32 - 1)) + b"{}"
    if kind == "cut":
        return message[: rng.randint(1, len(message) - 1)]
    if kind == "matrix":
        struct.pack_into("<3H", data, MATRIX, *(rng.randint(50, 65535) for _ in range(3)))
    else:
        struct.pack_into("<Q", data, LENGTHS, rng.getrandbits(rng.randint(12, 64)))
    return bytes(data)


XML = (
    b"",
    b"undefined",
    b"<ismrmrdMeta",
    b"<ismrmrdMeta><meta><name>WindowCenter</name><value>x</value></meta></ismrmrdMeta>",
    b"<ismrmrdMeta><meta><name>IceMiniHead</name><value>Zm9v</value></meta></ismrmrdMeta>",
    b"<ismrmrdMeta><meta><name>DicomJson</name><value>!!</value><value>W10=</value></meta></ismrmrdMeta>",
    b"<ismrmrdMeta><meta><name>ImageType</name><value>ORIGINAL</value></meta></ismrmrdMeta>\0",
    b"<ismrmrdMeta><meta><name>ImageComments</name><value>\xfc</value></meta></ismrmrdMeta>",  # Latin-1
    b'<!DOCTYPE a [<!ENTITY b "c">]><ismrmrdMeta/>',
    b"<a>" * 2000,
    b"<ismrmrdMeta><meta><value>no name</value></meta><meta/></ismrmrdMeta>",
    b"\xff\xfe\x00",
)
TEXTS = (b"", b"{", b"[1, 2]", b"null", b'{"dtype": 7}', b'{"position": "here"}', b'{"parameters": null}')
TEXTS += (b"\xfc\xff", b"[" * 3000, b'{"parameters": {"originals": "perhaps"}}')


# Clients


def _client(address: Address, counts: Counts, seed: int, whole: Messages, wanted: list[bytes]) -> None:
    rng = random.Random(seed)
    while counts.left():
        sound = rng.random() < SOUND
        sent = whole if sound else damaged(rng, 0)
        back = answer(address, sent)
        missing = lost(sent.images, back)
        counts.add(streams=1, messages=len(sent.parts), damaged=sent.damaged, unframed=not sent.framed)
        counts.add(lost=missing, back=len(sent.images) - missing, unended=not back.endswith(mrd.close()))
        if sound:
            counts.add(sound=1, wrong=_sr_images(back) != wanted)


def lost(images: list[bytes], back: bytes) -> int:
    """How many images did not come back byte for byte, as often as sent and in order."""
    place, missing = 0, 0
    for one in images:
        found = back.find(one, place)
        missing += found < 0
        place = found + len(one) if found >= 0 else place
    return missing


def _sr_images(back: bytes) -> list[bytes]:
    """The images of an intact stream's answer that belong to the SR series."""
    found = []
    with contextlib.suppress(RunError):  # what is lost, others count
        for message in received(io.BytesIO(back)):
            if isinstance(message, mrd.Image) and message.header["image_series_index"] != 1:
                found.append(b"".join(message.parts()))
    return found


def answer(address: Address, sent: Messages) -> bytes:
    """What comes back while everything is sent."""
    back = bytearray()
    with contextlib.suppress(OSError), socket.create_connection(address, PAUSE) as link:
        sender = threading.Thread(target=_send, args=(link, b"".join(sent.parts), not sent.framed))
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


def _dead(address: Address, whole: Messages, stop: threading.Event) -> None:
    """Connects, sends half an image and then nothing; another one then takes its place."""
    while not stop.is_set():
        with contextlib.suppress(OSError), socket.create_connection(address, PAUSE) as link:
            link.sendall(b"".join(whole.parts[:5]) + whole.images[0][:100])
            stop.wait(30)


def _slow(address: Address, whole: Messages, stop: threading.Event, counts: Counts) -> None:
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
