"""Find where a stream continues after a message of unknown length: at the next certain image message."""

from __future__ import annotations

import struct

import numpy as np

from . import messages as mrd

MARK = struct.pack("<H", mrd.IMAGE)
HEAD = 2 + mrd.HEADER_DTYPE.itemsize + 8  # bytes up to an image's attributes


def find_message(data: bytearray, start: int = 0) -> int | None:
    """The first place from `start` on where an image message begins, None if none does so far."""
    place = data.find(MARK, start)
    while place >= 0 and place + HEAD <= len(data):
        if _is_image(bytes(data[place : place + HEAD])):
            return place
        place = data.find(MARK, place + 1)
    return None


def _is_image(head: bytes) -> bool:
    """Whether all fields of a header are plausible."""
    header = np.frombuffer(head[2:-8], mrd.HEADER_DTYPE)[0]
    size = header["matrix_size"].astype(np.int64)
    (length,) = struct.unpack("<Q", head[-8:])
    real = np.concatenate([np.atleast_1d(header[n]) for n in ("field_of_view", "position", "read_dir")])
    return bool(
        header["version"] <= 2
        and int(header["data_type"]) in mrd.DTYPES
        and int(header["image_type"]) <= 6
        and (size > 0).all()
        and header["channels"] > 0
        and length <= mrd.TEXT_LIMIT
        and int(header["attribute_string_len"]) in (0, length)
        and np.isfinite(real).all()
    )
