"""The MRD stream as bytes: messages in, messages out; everything is checked before it is believed.

Source: ISMRMRD 1.x, "MR Data Streaming" and the C headers `ismrmrd.h`, `waveform.h`: little-endian,
packed; every message begins with a uint16 identifier. Only lengths that the header itself fixes, or
that pass the limits, are ever read. Of the XML of a scan's header only its encoding limits are looked for.
"""

from __future__ import annotations

import re
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
ACQUISITION_HEADER = 340  # bytes; samples, active channels and trajectory dimensions lie in it at:
SAMPLES, CHANNELS, DIMENSIONS = 34, 38, 176
RELAY_LIMIT = 16 << 30  # bytes of a message that is passed on unkept: more is not an image
WAVEFORM_HEADER = struct.Struct("<H6xQIIIHHfH2x")  # 40 bytes; samples and channels are its fields 6 and 7

TEXT_LIMIT = 16 << 20  # bytes of a text, header or attributes that are kept: real ones are kilobytes
SKIP_LIMIT = 1 << 30  # bytes of a text that is skipped: anything longer is a wrong length
CHUNK = 1 << 20  # bytes of it at a time
OVERHEAD = 4096  # bytes that a kept message takes besides its content, so that many small ones count

LIMITED = re.compile(  # the largest index of a counter, in a scan's header
    r"<(?:\w+:)?(slice|repetition)>\s*<(?:\w+:)?minimum>\s*\d{1,5}\s*</(?:\w+:)?minimum>\s*"
    r"<(?:\w+:)?maximum>\s*(\d{1,5})\s*<"
)

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
    """The sender has sent everything."""


class Unknown(RunError):
    """A message of unknown length. passed: the part that was read, if it is an image and is sent back.

    ahead: what was read after it, in which other messages may lie.
    """

    def __init__(self, reason: str, passed: bytes = b"", ahead: bytes = b"") -> None:
        super().__init__(reason)
        self.passed, self.ahead = passed, ahead


class LeftOut(RunError):
    """A message that was skipped because there is no use for it; the stream continues after it."""


class TooLarge(RunError):
    """A message too large to keep. head: the part that was read. size: bytes still to come."""

    def __init__(self, reason: str, head: bytes, size: int) -> None:
        super().__init__(reason)
        self.head, self.size = head, size


@dataclass(frozen=True)
class Passed:
    """Physiology or raw data, passed on as bytes. kind: the identifier."""

    kind: int
    content: bytes | bytearray

    def parts(self) -> list[Bytes]:
        """The message's bytes, in order."""
        return [struct.pack("<H", self.kind), self.content]


@dataclass(frozen=True)
class Image:
    """One image message.

    header: a record of HEADER_DTYPE. attributes: the XML of the meta attributes. pixels: (channels, z, y,
    x), of the header's data_type. fault: why it is passed on and not restored; "" if it may be restored.
    """

    header: Any
    attributes: bytes
    pixels: NDArray[Any]
    fault: str = ""

    def parts(self) -> list[Bytes]:
        """The message's bytes, in order."""
        head = struct.pack("<H", IMAGE) + self.header.tobytes() + struct.pack("<Q", len(self.attributes))
        pixels = np.ascontiguousarray(self.pixels)
        return [head + self.attributes, pixels.reshape(-1).view(np.uint8).data]


Message: TypeAlias = Text | Close | Passed | Image


def read_message(read: Read, limit: int, claim: Claim) -> Message:
    """The next message. limit: bytes of an image's pixels, a waveform, an acquisition.

    Raises EndOfStream if the stream ends before a message, LeftOut, Unknown and TooLarge for one that can be
    left out, RunError if the stream ends inside one or is not a stream of messages.
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
            _check(length, SKIP_LIMIT, "text")
            if length > TEXT_LIMIT:
                for done in range(0, length, CHUNK):
                    read(min(CHUNK, length - done))
                raise LeftOut(f"A text of {length} bytes is left out: at most {TEXT_LIMIT} are read.")
            return Text(kind, _decode(read(length).rstrip(b"\0")))
        if kind == WAVEFORM:
            return _waveform(read, limit, claim)
        if kind == ACQUISITION:
            return _acquisition(read, limit, claim)
    except EndOfStream:
        raise RunError("The stream ended inside a message.") from None
    raise Unknown(
        f"Message {kind} is not one that this server knows (MRD 1.x)", ahead=struct.pack("<H", kind)
    )


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
            raise RunError("An image's attributes are not XML that can be read.") from None
    return attributes


def write_attributes(attributes: dict[str, list[str]]) -> bytes:
    """The XML of meta attributes. Inverse of `read_attributes`."""
    metas = (
        f"<meta><name>{escape(name)}</name>"
        + "".join(f"<value>{escape(value)}</value>" for value in values)
        + "</meta>"
        for name, values in attributes.items()
        if values
    )
    return f'<?xml version="1.0" encoding="UTF-8"?><ismrmrdMeta>{"".join(metas)}</ismrmrdMeta>'.encode()


def encoding_limits(xml: str) -> dict[str, int]:
    """The largest slice and repetition index that a scan's header announces, as far as it does."""
    found: dict[str, int] = {}
    for name, largest in LIMITED.findall(xml):
        found[name] = max(found.get(name, 0), int(largest))
    return found


def _image(read: Read, limit: int, claim: Claim) -> Image:
    data = read(HEADER_DTYPE.itemsize)
    header = np.frombuffer(data, HEADER_DTYPE)[0]
    dtype = DTYPES.get(int(header["data_type"]))
    if dtype is None:
        raise Unknown(
            f"An image has data type {header['data_type']}, which MRD does not know",
            struct.pack("<H", IMAGE) + data,
        )
    x, y, z = map(int, header["matrix_size"])
    shape = int(header["channels"]), z, y, x
    size = x * y * z * shape[0] * dtype.itemsize
    lengths = read(8)
    length = _unpack("<Q", lengths)
    head = struct.pack("<H", IMAGE) + data + lengths
    announced = int(header["attribute_string_len"])  # some writers leave it 0, some count characters
    odd = f"The attributes of an image have {length} bytes, or {announced}"
    if announced and not announced <= length <= 4 * announced:
        raise Unknown(odd, head)
    _keep("image", size, length, limit, claim, head)
    try:
        attributes = bytes(read(length))
    except RunError as error:  # as long as the length says they are not
        raise Unknown(f"{error} The attributes of an image lack bytes", head) from None
    fault = ""
    try:
        read_attributes(attributes)
    except RunError as error:
        if announced != length:  # whichever is wrong of the two, pixels may not be what follows
            raise Unknown(f"{odd}, and cannot be read", head, attributes) from None
        fault = str(error)
    try:
        pixels = np.frombuffer(read(size), dtype).reshape(shape)
    except RunError as error:
        if not fault:
            raise
        raise Unknown(f"{error} {fault[:-1]}", head, attributes) from None
    if min(shape) < 1:
        fault = f"An image of {x} x {y} x {z} voxels and {shape[0]} channels holds nothing."
    return Image(header, attributes, pixels, fault)


def _waveform(read: Read, limit: int, claim: Claim) -> Passed:
    head = read(WAVEFORM_HEADER.size)
    *_, samples, channels, _, _ = WAVEFORM_HEADER.unpack(head)
    return _passed(WAVEFORM, head, 4 * samples * channels, read, limit, claim)


def _acquisition(read: Read, limit: int, claim: Claim) -> Passed:
    head = read(ACQUISITION_HEADER)
    samples, channels, dimensions = (
        struct.unpack_from("<H", head, place)[0] for place in (SAMPLES, CHANNELS, DIMENSIONS)
    )
    return _passed(ACQUISITION, head, 4 * samples * (dimensions + 2 * channels), read, limit, claim)


def _passed(kind: int, head: bytearray, size: int, read: Read, limit: int, claim: Claim) -> Passed:
    _keep("message of raw data", size, 0, limit, claim, struct.pack("<H", kind) + head)
    return Passed(kind, head + read(size))


def _keep(what: str, size: int, length: int, limit: int, claim: Claim, head: bytes) -> None:
    """Take memory for a message. Raises TooLarge if there is none, RunError if it cannot be one at all."""
    _check(size, RELAY_LIMIT, what, "--max-message")
    _check(length, RELAY_LIMIT, f"attribute text of an {what}")
    try:
        _check(length, TEXT_LIMIT, f"attribute text of an {what}")
        _check(size, limit, what, "--max-message")
        claim(size + length + OVERHEAD)
    except RunError as error:
        raise TooLarge(str(error), head, size + length) from None


def _check(size: int, limit: int, what: str, option: str = "") -> None:
    if size > limit:
        remedy = f": raise {option}" if option else ""
        raise RunError(f"The {what} has {size} bytes, more than the {limit} allowed{remedy}.")


def _decode(data: bytearray) -> str:
    """A text as UTF-8, or as Latin-1, which every text is: it may be a comment for people."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _unpack(form: str, data: bytearray) -> int:
    return struct.unpack(form, data)[0]
