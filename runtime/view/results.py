"""The results in an output folder, found by their sidecars.

The page asks for results by opaque keys, never by path. A file that a sidecar names is only shown if the run
has really made or read it: a result must lie inside the folder, and its scan must have the hash in the
sidecar.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..dicom.frame import is_dicom
from ..dicom.series import find_series
from ..errors import RunError
from ..job import Job
from ..run import manifest
from ..run.bids import source_path
from ..run.find import find_scans
from ..run.sidecar import Sidecar
from ..scan.scan import Scan, open_scan
from ..system.files import printable, real_path

KINDS = (".nii.gz", ".nii", "")  # of results; the last is a folder, a DICOM series


@dataclass(frozen=True)
class Result:
    """One SR scan of an output folder. name: its path in the folder, printable."""

    root: Path
    sidecar: Sidecar
    target: Path
    name: str
    source: Path

    @property
    def key(self) -> str:
        """The key by which the page requests it."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]

    def open(self) -> Scan:
        """The SR scan, read. Raises RunError if it is damaged or not in the folder."""
        parts = sorted(self.target.iterdir()) if self.target.is_dir() else [self.target]
        if not all(_within(part, self.root) for part in parts):
            raise RunError(f"{self.target} is a link out of {self.root}: copy the scan into the folder.")
        if not self.target.is_dir():
            return open_scan(self.target, self.sidecar.is_series).loaded()
        series = find_series(parts, self.target, ours=True)
        if not series:
            raise RunError(f"{self.target} contains no MR series.")
        return series[0].scan().loaded()

    def open_error_map(self) -> Scan | None:
        """The map of expected errors beside it, read, if there is one. Raises RunError if it is damaged."""
        path = self.sidecar.error_map(self.target)
        if not path or not path.is_file() or not _within(path, self.root):
            return None
        return open_scan(path, self.sidecar.is_series).loaded()

    def open_source(self) -> Scan:
        """The scan it was made from, read. Raises RunError if that is gone or has changed."""
        job = self._job()
        if job.digest() != self.sidecar.input_sha256:
            raise RunError(f"{job.source} has changed since it was restored: run udean-run again.")
        return job.open(self.sidecar.is_series).loaded()

    def _job(self) -> Job:
        if self.source.is_file() and not is_dicom(self.source):
            return Job(self.source, self.target, self.root)
        if not self.source.exists():
            raise RunError(f"The scan {self.source} is gone: there is nothing to compare with.")
        form = "dicom" if self.target.is_dir() else "nifti"
        for job in find_scans([str(self.source)], self.root, form):
            if job.target == self.target:
                return job
        raise RunError(f"{self.source} no longer holds the scan of {self.name}.")


def find_results(root: Path) -> Iterator[Result]:
    """The results below an output folder, by name. Links to other folders are not followed."""
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(files):
            if name.endswith(".json") and not name.startswith("."):
                result = read_result(root, Path(folder, name))
                if result:
                    yield result


def read_result(root: Path, path: Path) -> Result | None:
    """The result that a sidecar belongs to; None if it belongs to none in this folder."""
    if not _within(path, root):
        return None
    sidecar = Sidecar.read(path)
    if not sidecar.is_ours or sidecar.source is None:
        return None
    targets = (path.with_name(path.name.removesuffix(".json") + kind) for kind in KINDS)
    target = next((path for path in targets if path.exists()), None)
    if target is None:
        return None
    source = source_path(sidecar.source, target, root)
    return Result(root, sidecar, target, printable_path(target.relative_to(root)), source)


def find_failures(root: Path) -> dict[str, str]:
    """The reasons of scans whose last attempt failed, by the run's name of the scan."""
    failed = (line for line in manifest.read(root).values() if line.get("status") == "failed")
    return {printable_path(Path(str(line.get("source")))): str(line.get("message")) for line in failed}


def printable_path(path: Path) -> str:
    """A path as one line of valid UTF-8; other bytes and control characters are escaped."""
    return printable(os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace"))


def _within(path: Path, root: Path) -> bool:
    return real_path(path).is_relative_to(real_path(root))
