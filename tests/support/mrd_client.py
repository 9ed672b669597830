"""A client of the MRD stream written from the specification, with no code of the server's.

Source: ISMRMRD 1.x, "MR Data Streaming" and `ismrmrd.h`. Little-endian throughout.
"""

import contextlib
import socket
import struct
import types

import numpy as np

HEADER = struct.Struct("<2HQI3H3fH3f3f3f3f3f6HI3I3H8i8fI")
FIELDS = (
    ("version", 1), ("data_type", 1), ("flags", 1), ("measurement_uid", 1), ("matrix_size", 3),
    ("field_of_view", 3), ("channels", 1), ("position", 3), ("read_dir", 3), ("phase_dir", 3),
    ("slice_dir", 3), ("patient_table_position", 3), ("average", 1), ("slice", 1), ("contrast", 1),
    ("phase", 1), ("repetition", 1), ("set", 1), ("acquisition_time_stamp", 1),
    ("physiology_time_stamp", 3), ("image_type", 1), ("image_index", 1), ("image_series_index", 1),
    ("user_int", 8), ("user_float", 8), ("attribute_string_len", 1),
)  # fmt: skip
TYPES = {1: "<u2", 2: "<i2", 3: "<u4", 4: "<i4", 5: "<f4", 6: "<f8", 7: "<c8", 8: "<c16"}
assert HEADER.size == 198


def pack_image(pixels, attributes="", **fields):
    """The bytes of an image message; pixels (z, y, x) or (channels, z, y, x)."""
    pixels = pixels if pixels.ndim == 4 else pixels[None]
    xml = attributes.encode()
    number = next(n for n, name in TYPES.items() if np.dtype(name) == pixels.dtype)
    known = {
        "version": 1,
        "data_type": number,
        "matrix_size": pixels.shape[:0:-1],
        "channels": pixels.shape[0],
        "read_dir": (1, 0, 0),
        "phase_dir": (0, 1, 0),
        "slice_dir": (0, 0, 1),
        "image_type": 1,
        "image_series_index": 1,
        "attribute_string_len": len(xml),
    } | fields
    flat = []
    for name, count in FIELDS:
        value = known.get(name, 0 if count == 1 else (0,) * count)
        flat += [value] if count == 1 else list(value)
    return struct.pack("<H", 1022) + HEADER.pack(*flat) + struct.pack("<Q", len(xml)) + xml + pixels.tobytes()


def pack_text(kind, content):
    """The bytes of a configuration, header or text message."""
    return struct.pack("<HI", kind, len(content.encode())) + content.encode()


def pack_config(name):
    return struct.pack("<H1024s", 1, name.encode())


def pack_close():
    return struct.pack("<H", 4)


def pack_waveform(samples):
    """The bytes of a waveform message; samples (channels, n), uint32."""
    channels, count = samples.shape
    head = struct.pack("<H6xQIIIHHfH2x", 1, 0, 7, 8, 9, count, channels, 2.5, 1)
    return struct.pack("<H", 1026) + head + samples.astype("<u4").tobytes()


class Client:
    def __init__(self, address, timeout=60):
        self.socket = socket.create_connection(address, timeout)
        self.raw = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *messages):
        for message in messages:
            self.socket.sendall(message)

    def _read(self, size):
        data = bytearray()
        while len(data) < size:
            chunk = self.socket.recv(size - len(data))
            if not chunk:
                raise EOFError(f"{len(data)} of {size} bytes")
            data += chunk
        self.raw += data
        return bytes(data)

    def receive(self):
        """The next message: kind and what it holds, with its bytes in `raw`."""
        self.raw = b""
        (kind,) = struct.unpack("<H", self._read(2))
        message = types.SimpleNamespace(kind=kind)
        if kind == 5:
            (length,) = struct.unpack("<I", self._read(4))
            message.text = self._read(length).decode()
        elif kind == 1022:
            values, flat = iter(HEADER.unpack(self._read(HEADER.size))), {}
            for name, count in FIELDS:
                flat[name] = next(values) if count == 1 else np.array([next(values) for _ in range(count)])
            message.header = types.SimpleNamespace(**flat)
            (length,) = struct.unpack("<Q", self._read(8))
            message.attributes = self._read(length).decode()
            shape = (flat["channels"], *flat["matrix_size"][::-1])
            dtype = np.dtype(TYPES[flat["data_type"]])
            size = int(np.prod(shape)) * dtype.itemsize
            message.pixels = np.frombuffer(self._read(size), dtype).reshape(shape)
        elif kind == 1026:
            head = self._read(40)
            count, channels = struct.unpack_from("<HH", head, 28)
            message.samples = np.frombuffer(self._read(4 * count * channels), "<u4").reshape(channels, count)
        elif kind != 4:
            raise ValueError(f"message {kind}")
        message.raw = self.raw
        return message

    def receive_all(self):
        """All messages up to the close message, after which nothing may come."""
        messages = []
        while (message := self.receive()).kind != 4:
            messages.append(message)
        with contextlib.suppress(OSError):  # the server may have ended already
            self.socket.shutdown(socket.SHUT_WR)
        assert self.socket.recv(1) == b""
        return messages


def images(messages):
    return [m for m in messages if m.kind == 1022]


def texts(messages):
    return [m.text for m in messages if m.kind == 5]


def talk(address, *messages):
    """Send messages and return all that comes back."""
    with Client(address) as client:
        client.send(*messages)
        return client.receive_all()
