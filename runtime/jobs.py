"""Many scans: which ones, and under which names their results go.

Results of a folder `scans/` go to `scans-sr/` beside it, of single files to a folder `sr/` beside them,
with the folders below kept; nothing is ever written over an input.
"""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from .bids import DATASET, NOT_RAW, Selection, dataset_of, result_name
from .dicom.jobs import Format, dicom_jobs
from .dicom.series import is_dicom
from .errors import RunError
from .files import real_path
from .job import Job
from .volume import SUFFIXES, stem

log = logging.getLogger("udean")


def find_scans(
    inputs: Sequence[str],
    out: Path | None = None,
    form: Format = "dicom",
    select: Selection | None = None,
) -> list[Job]:
    """The scans that files, folders and glob patterns name, in order, each once.

    Folders are searched to any depth, for DICOM series too, whose results are of the form asked for; hidden
    files and results of earlier runs are left out, and of a BIDS dataset what is not asked for. Links are
    followed, each folder once. Raises RunError where an input names no scan, a folder cannot be read, a DICOM
    file is damaged, or a result would replace an input or another result.
    """
    select = select or Selection()
    jobs: dict[Path, Job] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            named = path if path.name.strip(".") else path.resolve()  # "." and ".." have no name
            root = out or named.with_name(named.name + "-sr")
            found = _folder_jobs(path, root, form, select)
        else:
            matches = sorted(map(Path, glob.glob(text, recursive=True))) if glob.has_magic(text) else [path]
            matches = [path] if path.exists() else [p for p in matches if not p.is_dir()]
            dicom = [source for source in matches if source.is_file() and is_dicom(source)]
            chosen = [m for m in matches if m not in dicom and select(m, False)]
            found = [_job(m, out or m.parent / "sr", m.parent) for m in chosen]
            found += dicom_jobs(dicom if select(path, False) else [], path, out or path.parent / "sr", form)
        if not found:
            raise RunError(
                f"{text} holds no scan{'' if select == Selection() else ' that is asked for'}: give .nii, "
                ".nii.gz, .mgz or MR DICOM, or a folder of them."
            )
        for job in found:
            jobs.setdefault(job.identity, job)
    select.check(job.source for job in jobs.values())

    claimed: dict[Path, Path] = {}
    for source, job in jobs.items():
        # Sidecars stand for their scans: a.nii and a.nii.gz would have one sidecar.
        other = claimed.setdefault(real_path(job.sidecar), source)
        if other != source or real_path(job.target) in jobs:
            other = job.target if other == source else other
            raise RunError(f"The results of {job.source} and {other} would collide: run them apart with -o.")
    return list(jobs.values())


def _folder_jobs(folder: Path, root: Path, form: Format, select: Selection) -> list[Job]:
    files = sorted(_walk(folder))
    in_dataset = (folder / DATASET).is_file()
    scans = [path for path in files if _is_scan(path, folder)]
    chosen = [path for path in scans if select(path, in_dataset)]
    if in_dataset and not select.suffixes:
        left = (path for path in set(scans) - set(chosen) if select(path, False))
        kinds = Counter(stem(path).split("_")[-1] for path in left)
        if kinds:
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            log.warning("%s: no anatomical images, so left out: %s. --suffix takes them.", folder, counts)
    found = [_job(path, root / path.relative_to(folder).parent, folder, root) for path in chosen]
    others = [] if select != Selection() else [path for path in files if _is_dicom(path, folder)]
    return found + dicom_jobs(others, folder, root, form)


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, through links, each real folder once: links may go round in circles."""
    seen = set()

    def refuse(error: OSError) -> None:
        raise RunError(f"Cannot read {error.filename}: {error.strerror}.") from error

    for path, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        below.sort()
        if (real := real_path(path)) in seen:
            below.clear()
            continue
        seen.add(real)
        yield from (Path(path, name) for name in names)


def _job(source: Path, below: Path, folder: Path, root: Path | None = None) -> Job:
    target = below / result_name(source.name)
    return Job(source, target, root or below, dataset=dataset_of(source, folder))


def _is_scan(path: Path, folder: Path) -> bool:
    """Whether a file found in a folder is an input: named as a scan, not hidden, no earlier result."""
    parts = path.relative_to(folder).parts
    hidden = any(part.startswith(".") for part in parts)
    processed = parts[0] in NOT_RAW and (folder / DATASET).is_file()
    result = stem(path).endswith("_sr") or "_desc-sr_" in path.name
    return path.name.endswith(SUFFIXES) and not (hidden or processed or result)


def _is_dicom(path: Path, folder: Path) -> bool:
    """Whether a file found in a folder is a DICOM file, not hidden."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and not path.name.endswith(SUFFIXES) and path.is_file() and is_dicom(path)
