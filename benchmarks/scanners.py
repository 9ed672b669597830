"""What scanners make and `udean-serve` answers: MRD images, DICOM slices, the server as a process."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..runtime.dicom.frame import CLASSIC, require_pydicom
from ..runtime.errors import RunError
from ..runtime.mrd import messages as mrd


def image(plane: NDArray[np.uint16], place: int, series: int = 1) -> mrd.Image:
    """The message of an LR slice (rows, columns) of 1 mm voxels, 2 mm after the one before."""
    header: Any = np.zeros((), mrd.HEADER_DTYPE)
    rows, columns = plane.shape
    header["version"], header["data_type"], header["channels"] = 1, 1, 1
    header["matrix_size"], header["field_of_view"] = (columns, rows, 1), (columns, rows, 2)
    header["read_dir"], header["phase_dir"], header["slice_dir"] = np.eye(3)
    header["position"], header["slice"] = (0, 0, 2 * place), place
    header["image_type"], header["image_index"] = mrd.MAGNITUDE, place + 1
    header["image_series_index"] = series
    return mrd.Image(header, b"", plane[None, None])


def write_slice(path: Path, voxels: NDArray[np.uint16], tags: Mapping[str, Any]) -> None:
    """Write a classic MR slice of 12 bits. tags: all that does not follow from its voxels (rows, columns)."""
    pydicom = require_pydicom()
    dataset = pydicom.Dataset()
    follows = {
        "SOPClassUID": CLASSIC,
        "Modality": "MR",
        "Rows": voxels.shape[0],
        "Columns": voxels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelRepresentation": 0,
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelData": voxels.astype("<u2").tobytes(),
    }
    for name, value in {**follows, **tags}.items():
        setattr(dataset, name, value)
    meta = dataset.file_meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CLASSIC, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def received(stream: BinaryIO) -> Iterator[object]:
    """The server's messages, to its close message. Raises RunError if one cannot be read."""

    def read(size: int) -> bytearray:
        data = bytearray(stream.read(size))
        if len(data) < size:
            raise mrd.EndOfStream
        return data

    while not isinstance(message := mrd.read_message(read, 1 << 30, lambda _: None), mrd.Close):
        yield message


@dataclass(frozen=True)
class ServerProcess:
    """`udean-serve` as a process. said: the engine that it names."""

    process: subprocess.Popen[str]
    address: tuple[str, int]
    metrics: int
    said: str

    def metric(self, name: str, patience: float = 60) -> float:
        """A figure of its metrics' page."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=patience) as answer:
            found = re.search(rf"^\w*{name} (\S+)", answer.read().decode(), re.MULTILINE)
        if not found:
            raise RunError(f"The server's metrics have no {name}.")
        return float(found[1])

    def memory(self) -> int:
        """Its resident memory, bytes; 0 if it has ended."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) << 10
        return 0


@contextlib.contextmanager
def serving(*options: str, quiet: bool = False) -> Iterator[ServerProcess]:
    """`udean-serve` on free ports. quiet: what it complains of is not shown."""
    command = [sys.executable, "-m", "udean.runtime.commands.serve", "--port", "0", "--metrics-port", "0"]
    errors = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout
        said = [process.stdout.readline().strip() for _ in range(3)]
        ports = [int(port) for line in said[1:] for port in re.findall(r":(\d+)", line)[-1:]]
        if len(ports) != 2:
            raise RunError("The server did not start.")
        yield ServerProcess(process, ("127.0.0.1", ports[1]), ports[0], said[0])
    finally:
        process.kill()
        process.wait()
