"""Compressed files: gzip by isal, and a sentence for whatever goes wrong while reading."""

from __future__ import annotations

import contextlib
import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from isal import igzip, igzip_threaded
from isal.igzip_lib import IsalError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ..errors import RunError
from ..system.threads import cores

INFLATION = 1032  # deflate cannot expand further (RFC 1951: 258 bytes from 2 bits)
CHUNK = 4 << 20
DAMAGE: tuple[type[Exception], ...] = (gzip.BadGzipFile, zlib.error, cast(Any, IsalError))


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed, by its first bytes; its name may say otherwise."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def inflate(path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The voxels of a compressed file, never more bytes than its header claims."""
    voxels = np.empty(math.prod(shape), dtype)
    target, filled = voxels.view(np.uint8).data, 0
    with unpacking(path) as file:
        file.read(offset)
        while filled < len(target):
            chunk = file.read(min(CHUNK, len(target) - filled))
            if not chunk:
                raise EOFError
            target[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        while file.read(CHUNK):  # to the end of the stream, where its checksum is compared
            pass
    return voxels.reshape(shape, order="F")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors while reading into a sentence."""
    try:
        yield
    except EOFError:
        raise RunError(f"{path} is truncated: its compressed data end too early. Copy it again.") from None
    except DAMAGE:
        raise RunError(f"{path} is damaged: its compressed data cannot be unpacked. Copy it again.") from None
    except HeaderDataError as error:
        raise RunError(f"{path} has a damaged header: {error}.") from None
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror or error}.") from error


def unpacking(path: Path) -> BinaryIO:
    """The content of a gzip file, as a file."""
    return cast(BinaryIO, igzip.open(path))


@contextlib.contextmanager
def packing(raw: BinaryIO, compress: bool) -> Iterator[BinaryIO]:
    """Compress what is written (level 1, two threads: a fifth of zlib's time at its own level 1), or not."""
    if not compress:
        yield raw
        return
    with igzip_threaded.open(raw, "wb", compresslevel=1, threads=min(2, cores())) as file:
        yield cast(BinaryIO, file)
