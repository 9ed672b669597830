"""Many scans: which ones, and under which names their results go.

Results of a folder `scans/` go to `scans-sr/` beside it, of single files to a folder `sr/` beside them,
with the folders below kept; nothing is ever written over an input.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .dicom.series import is_dicom
from .draft import Draft
from .errors import RunError
from .files import sha256
from .volume import FREESURFER, SUFFIXES, Scan, open_scan

if TYPE_CHECKING:
    from .dicom.jobs import DicomDraft, Format
    from .resolver import SuperResolver

BIDS = re.compile(r"(?P<entities>sub-[A-Za-z0-9]+(_[a-z]+-[A-Za-z0-9+]+)*)_(?P<suffix>[A-Za-z0-9]+)")
DATASET = "dataset_description.json"  # marks the root of a BIDS dataset
NOT_RAW = ("derivatives", "sourcedata", "code")  # folders at its root that hold no raw scans


@dataclass(frozen=True)
class Job:
    """One scan: the file to read, the file to write, and the output folder that it belongs to."""

    source: Path
    target: Path
    root: Path

    @property
    def sidecar(self) -> Path:
        """Beside the result; its presence says that the result is whole."""
        return self.target.with_name(stem(self.target) + ".json")

    @property
    def identity(self) -> Path:
        """What tells the scan from others."""
        return self.source.resolve()

    def open(self, series: bool = False) -> Scan:
        """The scan, checked; see `open_scan`."""
        return open_scan(self.source, series)

    def open_result(self, series: bool = False) -> Scan:
        """The SR scan that was written."""
        return open_scan(self.target, series)

    def digest(self) -> str:
        """SHA-256 of what is read."""
        return sha256(self.source)

    def result_digest(self) -> str | None:
        """SHA-256 of what was written, None where nothing is."""
        return sha256(self.target) if self.target.is_file() else None

    def draft(self, resolve: SuperResolver) -> Draft | DicomDraft:
        """Room for the result; `resolve` makes it."""
        return Draft(self.target)


def find_scans(inputs: Sequence[str], out: Path | None = None, form: Format = "dicom") -> list[Job]:
    """The scans that files, folders and glob patterns name, in order, each once.

    Folders are searched to any depth, for DICOM series too, whose results are of the form asked for; hidden
    files and results of earlier runs are left out. Raises RunError where an input names no scan, a DICOM
    file is damaged, or a result would replace an input or another result.
    """
    jobs: dict[Path, Job] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            named = path if path.name.strip(".") else path.resolve()  # "." and ".." have no name
            root = out or named.with_name(named.name + "-sr")
            sources = sorted(p for p in path.rglob("*") if _is_scan(p, path))
            found = [_job(source, root, source.relative_to(path).parent) for source in sources]
            found += _dicom_jobs([p for p in sorted(path.rglob("*")) if _is_dicom(p, path)], path, root, form)
        else:
            matches = sorted(map(Path, glob.glob(text, recursive=True))) if glob.has_magic(text) else [path]
            matches = [path] if path.exists() else [p for p in matches if not p.is_dir()]
            dicom = [source for source in matches if source.is_file() and is_dicom(source)]
            found = [_job(m, out or m.parent / "sr", Path()) for m in matches if m not in dicom]
            found += _dicom_jobs(dicom, path, out or path.parent / "sr", form)
        if not found:
            raise RunError(
                f"{text} holds no scan: give .nii, .nii.gz, .mgz or MR DICOM, or a folder of them."
            )
        for job in found:
            jobs.setdefault(job.identity, job)

    claimed: dict[Path, Path] = {}
    for source, job in jobs.items():
        # Sidecars stand for their scans: a.nii and a.nii.gz would have one sidecar.
        other = claimed.setdefault(job.sidecar.resolve(), source)
        if other != source or job.target.resolve() in jobs:
            other = job.target if other == source else other
            raise RunError(f"The results of {job.source} and {other} would collide: run them apart with -o.")
    return list(jobs.values())


def result_name(name: str) -> str:
    """The SR scan's file name: a BIDS derivative's for BIDS names, else NAME_sr.

    The suffix is the scan's; FreeSurfer's scans become .nii.gz. Source: BIDS 1.10, derivatives: `res-hi`
    names the resampled grid, `desc-sr` the processing.
    """
    base = stem(Path(name))
    suffix = ".nii.gz" if name.endswith(FREESURFER) else name[len(base) :]
    if match := BIDS.fullmatch(base):
        entities = [e for e in match["entities"].split("_") if not e.startswith(("res-", "desc-"))]
        return "_".join([*entities, "res-hi", "desc-sr", match["suffix"]]) + suffix
    return f"{base}_sr{suffix}"


def _job(source: Path, root: Path, below: Path) -> Job:
    return Job(source, root / below / result_name(source.name), root)


def _is_scan(path: Path, folder: Path) -> bool:
    """Whether a file found in a folder is an input: a NIfTI file, not hidden, no earlier result."""
    parts = path.relative_to(folder).parts
    hidden = any(part.startswith(".") for part in parts)
    processed = parts[0] in NOT_RAW and (folder / DATASET).is_file()
    result = stem(path).endswith("_sr") or "_desc-sr_" in path.name
    return path.name.endswith(SUFFIXES) and not (hidden or processed or result) and path.is_file()


def _dicom_jobs(files: list[Path], source: Path, root: Path, form: Format) -> list[Job]:
    if not files:
        return []
    from .dicom.jobs import dicom_jobs

    return [*dicom_jobs(files, source, root, form)]


def _is_dicom(path: Path, folder: Path) -> bool:
    """Whether a file found in a folder is a DICOM file, not hidden."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and not path.name.endswith(SUFFIXES) and path.is_file() and is_dicom(path)


def is_bids(path: Path) -> bool:
    """Whether a file is named as BIDS asks."""
    return BIDS.fullmatch(stem(path)) is not None


def stem(path: Path) -> str:
    """The name without a scan's suffix, or without its last suffix."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem
