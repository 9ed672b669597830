"""The MRD stream as bytes: messages in, messages out, nothing believed before it is checked.

Source: ISMRMRD 1.x, "MR Data Streaming" and the C headers `ismrmrd.h`, `waveform.h`: little-endian,
packed; every message begins with a uint16 identifier. Only lengths that the header itself fixes, or
that pass the limits, are ever read. The XML of a scan's header is measured and not parsed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias
from xml.parsers import expat
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError

CONFIG_NAME, CONFIG_TEXT, HEADER, CLOSE, TEXT = 1, 2, 3, 4, 5
ACQUISITION, IMAGE, WAVEFORM = 1008, 1022, 1026

MAGNITUDE = 1  # of a header's image_type; 0 is not set
NAVIGATION = 1 << 0  # of a header's flags
FLOAT = 5  # of a header's data_type
DTYPES = {
    number: np.dtype(name)
    for number, name in enumerate(("<u2", "<i2", "<u4", "<i4", "<f4", "<f8", "<c8", "<c16"), 1)
}
HEADER_DTYPE = np.dtype(
    [
        ("version", "<u2"),
        ("data_type", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("matrix_size", "<u2", 3),
        ("field_of_view", "<f4", 3),
        ("channels", "<u2"),
        ("position", "<f4", 3),
        ("read_dir", "<f4", 3),
        ("phase_dir", "<f4", 3),
        ("slice_dir", "<f4", 3),
        ("patient_table_position", "<f4", 3),
        ("average", "<u2"),
        ("slice", "<u2"),
        ("contrast", "<u2"),
        ("phase", "<u2"),
        ("repetition", "<u2"),
        ("set", "<u2"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", 3),
        ("image_type", "<u2"),
        ("image_index", "<u2"),
        ("image_series_index", "<u2"),
        ("user_int", "<i4", 8),
        ("user_float", "<f4", 8),
        ("attribute_string_len", "<u4"),
    ]
)
WAVEFORM_HEADER = struct.Struct("<H6xQIIIHHfH2x")  # 40 bytes; samples and channels are its fields 6 and 7

TEXT_LIMIT = 16 << 20  # bytes of a text, header or attributes: real ones are kilobytes
OVERHEAD = 4096  # bytes that a kept message takes besides its content, so that many small ones count

Bytes: TypeAlias = bytes | bytearray | memoryview
Read: TypeAlias = Callable[[int], bytearray]  # exactly so many bytes, or EndOfStream
Claim: TypeAlias = Callable[[int], None]  # memory for a message that will be kept, or RunError


class EndOfStream(RunError):
    """The client sends no more."""


@dataclass(frozen=True)
class Text:
    """A message of one of the kinds that are text: identifier and content."""

    kind: int
    content: str


@dataclass(frozen=True)
class Close:
    """The sender has sent all that it has."""


@dataclass(frozen=True)
class Waveform:
    """Physiology and the like; its bytes are passed on."""

    content: bytearray

    def parts(self) -> list[Bytes]:
        """The message's bytes, in order."""
        return [struct.pack("<H", WAVEFORM), self.content]


@dataclass(frozen=True)
class Image:
    """One image message.

    header: a record of HEADER_DTYPE. attributes: the XML of the meta attributes. pixels: (channels, z, y,
    x), of the header's data_type.
    """

    header: Any
    attributes: bytes
    pixels: NDArray[Any]

    def parts(self) -> list[Bytes]:
        """The message's bytes, in order."""
        head = struct.pack("<H", IMAGE) + self.header.tobytes() + struct.pack("<Q", len(self.attributes))
        pixels = np.ascontiguousarray(self.pixels)
        return [head + self.attributes, pixels.reshape(-1).view(np.uint8).data]


Message: TypeAlias = Text | Close | Waveform | Image


def read_message(read: Read, limit: int, claim: Claim) -> Message:
    """The next message. limit: bytes of an image's pixels or a waveform.

    Raises EndOfStream where the stream ends before a message, RunError if it ends inside one or holds
    something else.
    """
    kind = _unpack("<H", read(2))
    try:
        if kind == IMAGE:
            return _image(read, limit, claim)
        if kind == CLOSE:
            return Close()
        if kind == CONFIG_NAME:
            return Text(kind, _decode(read(1024).split(b"\0", 1)[0]))
        if kind in (CONFIG_TEXT, HEADER, TEXT):
            length = _unpack("<I", read(4))
            _check(length, TEXT_LIMIT, "text")
            return Text(kind, _decode(read(length).rstrip(b"\0")))
        if kind == WAVEFORM:
            return _waveform(read, limit, claim)
    except EndOfStream:
        raise RunError("The stream ended inside a message.") from None
    if kind == ACQUISITION:
        raise RunError("This server restores images, not raw data: send it what a reconstruction yields.")
    raise RunError(f"Message {kind} is not one that this server knows (MRD 1.x, image to image).")


def text(content: str) -> bytes:
    """A text message, such as a line of the log."""
    data = content.encode()
    return struct.pack("<HI", TEXT, len(data)) + data


def close() -> bytes:
    """The message that ends a stream."""
    return struct.pack("<H", CLOSE)


def read_attributes(xml: bytes) -> dict[str, list[str]]:
    """Names and values of meta attributes; none is an empty text.

    Raises RunError for XML that is damaged, is something else, or declares a document type: entities
    could blow it up.
    """
    attributes: dict[str, list[str]] = {}
    path: list[str] = []
    content: list[str] = []
    name = ""

    def start(tag: str, _: dict[str, str]) -> None:
        path.append(tag)
        content.clear()

    def end(tag: str) -> None:
        nonlocal name
        value = "".join(content)
        if path == ["ismrmrdMeta", "meta", "name"]:
            name = value
        elif path == ["ismrmrdMeta", "meta", "value"]:
            attributes.setdefault(name, []).append(value)
        path.pop()

    def refuse(*_: Any) -> None:
        raise RunError("An image's attributes declare a document type, which this server refuses.")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = content.append
    parser.StartDoctypeDeclHandler = refuse
    if xml.strip(b"\0 \r\n\t"):
        try:
            parser.Parse(bytes(xml).rstrip(b"\0"), True)
        except (expat.ExpatError, ValueError, LookupError):
            raise RunError("An image's attributes are no XML that can be read.") from None
    return attributes


def write_attributes(attributes: dict[str, list[str]]) -> bytes:
    """The XML of meta attributes. Inverse of `read_attributes`."""
    metas = (
        f"<meta><name>{escape(name)}</name>"
        + "".join(f"<value>{escape(value)}</value>" for value in values)
        + "</meta>"
        for name, values in attributes.items()
    )
    return f'<?xml version="1.0" encoding="UTF-8"?><ismrmrdMeta>{"".join(metas)}</ismrmrdMeta>'.encode()


def _image(read: Read, limit: int, claim: Claim) -> Image:
    header = np.frombuffer(read(HEADER_DTYPE.itemsize), HEADER_DTYPE)[0]
    dtype = DTYPES.get(int(header["data_type"]))
    if dtype is None:
        raise RunError(f"An image has data type {header['data_type']}, which MRD does not know.")
    x, y, z = map(int, header["matrix_size"])
    shape = int(header["channels"]), z, y, x
    if min(shape) < 1:
        raise RunError(f"An image of {x} x {y} x {z} voxels and {shape[0]} channels holds nothing.")
    size = x * y * z * shape[0] * dtype.itemsize
    _check(size, limit, "image", "--max-message")
    length = _unpack("<Q", read(8))
    _check(length, TEXT_LIMIT, "image's attributes")
    claim(size + length + OVERHEAD)
    attributes = bytes(read(length))
    read_attributes(attributes)
    return Image(header, attributes, np.frombuffer(read(size), dtype).reshape(shape))


def _waveform(read: Read, limit: int, claim: Claim) -> Waveform:
    head = read(WAVEFORM_HEADER.size)
    *_, samples, channels, _, _ = WAVEFORM_HEADER.unpack(head)
    _check(4 * samples * channels, limit, "waveform", "--max-message")
    claim(4 * samples * channels + OVERHEAD)
    return Waveform(head + read(4 * samples * channels))


def _check(size: int, limit: int, what: str, option: str = "") -> None:
    if size > limit:
        remedy = f": raise {option}" if option else ""
        raise RunError(f"The {what} has {size} bytes, more than the {limit} allowed{remedy}.")


def _decode(data: bytearray) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise RunError("A text message is not UTF-8.") from None


def _unpack(form: str, data: bytearray) -> int:
    return struct.unpack(form, data)[0]
