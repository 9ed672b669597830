"""What does a whole `udean-run` take besides its network: start-up, reading, measured band, writing?

    python -m udean.benchmarks.whole_command [--field 256,256,192] [--times 5]

A head in noisy air (Colin27, as a scan to be restored) as .nii.gz and as a DICOM series, and a small scan,
whose time is mostly start-up. Each command is a process of its own, whose `--profile` says when the network
was busy.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from . import common, tissue
from .common import run_script
from .scanners import write_slice

NOISE = 0.02  # Rician, of the brightest voxels


def main(
    field: str = "256,256,192",
    small: str = "64,64,20",
    engine: Path = common.EMBEDDED,
    threads: int | None = None,
    times: int = 5,
    head: Path | None = None,
    out: Path = common.RESULTS,
) -> None:
    volume = in_air(tissue.read_head(head) if head else next(tissue.heads())[1](), common.numbers(field))
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        little = common.textured(common.numbers(small), "uint16")
        ways: dict[str, Path] = {}
        for way, voxels in (("NIfTI", volume), ("small", little)):
            ways[way] = folder / f"{way}.nii.gz"
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), ways[way])
        ways["DICOM"] = folder / "series"
        write_series(ways["DICOM"], volume)
        options = ["--engine", engine, *(["--threads", threads] if threads else [])]
        runs: dict[str, Callable[[], dict[str, float]]] = {
            way: lambda source=source: one(source, folder, options) for way, source in ways.items()
        }
        figures = common.alternate(runs, times)
    about = {
        "shape": list(volume.shape),
        "small": list(little.shape),
        "model": engine.name,
        "threads": threads,
    }
    common.record("whole-command", about | {"runs": figures, "medians": common.medians(figures)}, out)


def one(source: Path, folder: Path, options: list[Any]) -> dict[str, float]:
    """Seconds of a command and of its network, what is left, and its share."""
    profile = folder / "profile.json"
    command = ["udean", "run", source, "-o", folder / "out", "--overwrite", "--profile", profile]
    seconds = common.command_seconds(*command, *options)
    events = json.loads(profile.read_bytes())["traceEvents"]
    network = sum(event["dur"] for event in events if event["name"] == "network") / 1e6
    outside = seconds - network
    return {"seconds": seconds, "network": network, "outside": outside, "share outside": outside / seconds}


def in_air(head: NDArray[np.float32], field: list[int]) -> NDArray[np.uint16]:
    """A head in the middle of a field of view, with Rician noise everywhere, in 12 bits."""
    whole = tissue.padded(head, field).astype(np.float32)
    rng, sigma = np.random.default_rng(0), np.float32(NOISE * tissue.RANGE)
    real, imaginary = (sigma * rng.standard_normal(whole.shape, np.float32) for _ in range(2))
    return np.rint(np.hypot(whole + real, imaginary)).clip(0, 4095).astype(np.uint16)


def write_series(folder: Path, volume: NDArray[np.uint16]) -> None:
    """A volume (rows, columns, slices) of 1 mm as a DICOM series, one file for each slice."""
    folder.mkdir()
    for place in range(volume.shape[2]):
        tags = {
            "SOPInstanceUID": f"1.2.3.1.{place + 1}",
            "SeriesInstanceUID": "1.2.3.1",
            "StudyInstanceUID": "1.2.3",
            "FrameOfReferenceUID": "1.2.3.9",
            "InstanceNumber": place + 1,
            "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
            "PixelSpacing": [1, 1],
            "SliceThickness": 1,
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [0, 0, place],
        }
        write_slice(folder / f"{place:04}.dcm", volume[:, :, place], tags)


if __name__ == "__main__":
    run_script(main)
