"""Planes as PNG pictures, in the orientation that radiologists expect."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

PlaneName = Literal["axial", "coronal", "sagittal"]
NAMES: tuple[PlaneName, ...] = ("sagittal", "coronal", "axial")  # by the world axis that runs across


@dataclass(frozen=True)
class Lay:
    """How planes of one name lie in a volume (i, j, k), and how they are displayed.

    Radiological convention: above is the patient's head, in axial planes the front; on the left is the
    patient's right side, in sagittal planes the front. axis: the one across the planes.
    """

    name: PlaneName
    axis: int
    upright: bool
    reversed: tuple[bool, bool]

    def picture(self, plane: NDArray[Any]) -> NDArray[Any]:
        """A plane across `axis` as rows, from the top, and columns."""
        laid = plane.T if self.upright else plane
        return laid[tuple(slice(None, None, -1 if turned else 1) for turned in self.reversed)]

    def aspect(self, shape: tuple[int, ...], zooms: tuple[float, ...]) -> float:
        """Width over height of such a picture of a volume."""
        first, second = (shape[n] * zooms[n] for n in range(3) if n != self.axis)
        return first / second if self.upright else second / first


def lays(affine: NDArray[np.floating]) -> dict[PlaneName, Lay]:
    """The three kinds of planes of a volume with this affine; oblique ones by the nearest axes."""
    worlds, directions = nib.orientations.io_orientation(affine).T
    found: dict[PlaneName, Lay] = {}
    for world, name in reversed(list(enumerate(NAMES))):
        axis = int(np.flatnonzero(worlds == world)[0])
        first, second = (n for n in range(3) if n != axis)
        upright = bool(worlds[first] < worlds[second])  # the first of the two runs along the rows
        down, right = (second, first) if upright else (first, second)
        found[name] = Lay(name, axis, upright, (bool(directions[down] > 0), bool(directions[right] > 0)))
    return found


def png(picture: NDArray[Any]) -> bytes:
    """A picture (rows, columns), 0 black and 1 white, in 8 bits."""
    pixels = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def data_address(picture: bytes) -> str:
    """A PNG as a data: address."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()
