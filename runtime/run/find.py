"""Finds the scans of a run, and names their results.

Results of a folder `scans/` go to `scans-sr/` beside it, of single files to a folder `sr/` beside them, of
parts of a BIDS dataset to its `derivatives/udean/`, with the folders below kept; nothing is ever written over
an input.
"""

from __future__ import annotations

import dataclasses
import glob
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..dicom.frame import is_dicom
from ..dicom.jobs import Format, dicom_jobs
from ..errors import DiskError, RunError
from ..job import Job, is_error_map
from ..scan.nifti import PAIRS
from ..scan.scan import SUFFIXES, stem
from ..system.files import real_path, walk
from .bids import (
    DATASET,
    NOT_RAW,
    Selection,
    check_place,
    dataset_above,
    dataset_of,
    derivatives,
    is_bids,
    raw_dataset,
    result_name,
)
from .manifest import manifests
from .sidecar import Sidecar

SAID = 10  # names of files in one sentence

log = logging.getLogger("udean")


def find_scans(
    inputs: Sequence[str],
    out: Path | None = None,
    form: Format = "dicom",
    select: Selection | None = None,
) -> list[Job]:
    """The scans that files, folders and glob patterns name, in order, each once.

    Folders are searched to any depth, also for DICOM series. Hidden files and results of earlier runs are
    left out, even if a pattern matches them, and so are files of a BIDS dataset that were not selected. Links
    are followed, each folder once.

    Parameters
    ----------
    inputs
        Files, folders and patterns.
    out
        Folder for the results; by default beside each input.
    form
        Of DICOM series' results: "dicom", "enhanced" or "nifti".
    select
        Which scans of a BIDS dataset; default: its anatomical images.

    Returns
    -------
    list of Job
        One for each scan.

    Raises
    ------
    RunError
        If an input names no scan, a folder cannot be read, a DICOM file is damaged, or a result would replace
        an input or another result.
    """
    select = select or Selection()
    jobs: dict[Path, Job] = {}
    roots: dict[Path, Path] = {}
    for text in inputs:
        for job in _named(text, out, form, select):
            root = roots.setdefault(real_path(job.root), job.root)  # one spelling for each output folder
            target = root / job.target.relative_to(job.root)
            jobs.setdefault(job.identity, dataclasses.replace(job, target=target, root=root))
    for root in roots.values():
        check_place(root)
    targets = {real_path(job.target) for job in jobs.values()}
    # A pattern, the shell's too, may match what the same command has made before.
    jobs = {place: job for place, job in jobs.items() if not (place in targets and _is_made(job.source))}
    if not jobs:
        raise RunError(f"{', '.join(inputs)}: all that is found are results of earlier runs.")
    select.check(job.source for job in jobs.values())

    read = set(jobs).union(*(job.inputs for job in jobs.values()))
    claimed: dict[Path, Path] = {}
    for source, job in jobs.items():
        # Sidecars stand for their scans: a.nii and a.nii.gz would have one sidecar.
        other = claimed.setdefault(real_path(job.sidecar), source)
        if other != source or real_path(job.target) in read:
            other = job.target if other == source else other
            raise RunError(f"The results of {job.source} and {other} would collide: run them apart with -o.")
    return list(jobs.values())


def _named(text: str, out: Path | None, form: Format, select: Selection) -> list[Job]:
    """The jobs of one input; none for a folder that holds nothing but results."""
    path = Path(text)
    pattern = glob.has_magic(text) and not path.exists()
    if not pattern and not os.path.lexists(path):
        raise RunError(f"{text} does not exist.")
    matches = sorted(map(Path, glob.glob(text, recursive=True))) if pattern else [path]
    above = {folder for match in matches for folder in match.parents}  # by ** what they hold is matched too
    folders = [match for match in matches if match.is_dir() and match not in above]
    files = [match for match in matches if not match.is_dir()]
    dicom = [file for file in files if file.is_file() and _begins_as_dicom(file)]
    scans = [file for file in files if file not in dicom and (not pattern or _is_scan(file, file.parent))]
    found = [_file_job(scan, out) for scan in scans if select(scan, False)]
    beside = out or derivatives(path) or path.parent / "sr"
    found += dicom_jobs(dicom if select(path, False) else [], path, beside, form)
    for folder in folders:
        found += _folder_jobs(folder, out or derivatives(folder) or _beside(folder), form, select)
    if not found and not any(map(manifests, folders)):
        raise RunError(
            f"{text} holds no scan{'' if select == Selection() else ' that is asked for'}: give .nii, "
            ".nii.gz, .mgz or MR DICOM, or a folder of them."
        )
    return found


def _file_job(scan: Path, out: Path | None) -> Job:
    """The job of a scan that was named by itself."""
    root = None if out else derivatives(scan)
    base = dataset_above(scan)
    if root is None or base is None:
        return _job(scan, out or scan.parent / "sr", scan.parent)
    return _job(scan, root / os.path.relpath(scan.parent, base), scan.parent, root)


def _beside(folder: Path) -> Path:
    """The folder for a folder's results. Raises RunError if it cannot have a neighbour."""
    named = folder if folder.name.strip(".") else folder.resolve()  # "." and ".." have no name
    if not named.name:
        raise RunError(f"There is no folder beside {folder} for the results: choose one with -o.")
    return named.with_name(named.name + "-sr")


def _folder_jobs(folder: Path, root: Path, form: Format, select: Selection) -> list[Job]:
    """The jobs of a folder; in a part of a BIDS dataset that dataset's rules and layout hold."""
    files = sorted(walk(folder))
    base = raw_dataset(folder) or folder
    in_dataset = (base / DATASET).is_file()
    scans = [path for path in files if _is_scan(path, folder)]
    chosen = [path for path in scans if select(path, in_dataset and (base == folder or is_bids(path)))]
    if in_dataset and not select.suffixes:
        _tell_left(folder, [path for path in sorted(set(scans) - set(chosen)) if select(path, False)])
    if pairs := [path for path in files if path.name.lower().endswith(PAIRS)]:
        log.warning("Left out, because a NIfTI pair must be joined into one .nii first: %s.", _listed(pairs))
    found = [_job(path, root / os.path.relpath(path.parent, base), folder, root) for path in chosen]
    others = [] if select != Selection() else [path for path in files if _is_dicom(path)]
    return found + dicom_jobs(others, folder, root, form)


def _job(source: Path, below: Path, folder: Path, root: Path | None = None) -> Job:
    target = below / result_name(source.name)
    return Job(source, target, root or below, dataset=dataset_of(source, folder))


def _tell_left(folder: Path, left: list[Path]) -> None:
    """Say which scans of a dataset are left out, and what takes them."""
    kinds = Counter(stem(path).split("_")[-1] for path in left if is_bids(path))
    if kinds:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        log.warning("%s: no anatomical images, so left out: %s. --suffix takes them.", folder, counts)
    if odd := [path for path in left if not is_bids(path)]:
        log.warning("Left out, because their names are not BIDS: %s. Name them individually.", _listed(odd))


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - SAID} more" if len(paths) > SAID else ""
    return ", ".join(map(str, paths[:SAID])) + more


def _is_scan(path: Path, folder: Path) -> bool:
    """Whether a file found in a folder is an input: named as a scan, no earlier result."""
    processed = path.relative_to(folder).parts[0] in NOT_RAW and (folder / DATASET).is_file()
    if not path.name.lower().endswith(SUFFIXES) or processed:
        return False
    if not (stem(path).endswith("_sr") or "_desc-sr_" in path.name or is_error_map(path)):
        return True
    if not _is_made(path):
        log.warning(
            "%s is named like a result, though no sidecar says that udean made it: left out. "
            "Give it by itself.",
            path,
        )
    return False


def _is_made(path: Path) -> bool:
    """Whether a file is the result of an earlier run: its sidecar says so."""
    return Sidecar.read(path.with_name(stem(path) + ".json")).is_ours


def _is_dicom(path: Path) -> bool:
    """Whether a file found in a folder is a DICOM file."""
    return not path.name.lower().endswith(SUFFIXES) and path.is_file() and _begins_as_dicom(path)


def _begins_as_dicom(path: Path) -> bool:
    """Whether a file is DICOM; the user is told of one that cannot be read, and that may be a slice."""
    try:
        return is_dicom(path)
    except DiskError as error:
        if not path.name.lower().endswith(SUFFIXES):
            log.warning("%s It is left out: if it is a slice, its series is not whole.", error)
        return False
