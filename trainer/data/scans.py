"""Finding scans: files, folders, globs, CSV lists and the trees of public data sets; whom they show.

An entry is one of
    scans/, scans/*.nii.gz, one.nii     searched, or matched
    list.csv                            a column `path` (relative to the list), optionally `participant`
    bids:ROOT, bids-T2w:ROOT            sub-*/[ses-*/]anat/*_T1w.nii*
    hcp:ROOT, hcp-raw:ROOT              Human Connectome Project, T1w restored (0.7 mm) or as acquired
    brats2020:ROOT                      BraTS 2020 training set, contrast-enhanced T1w
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from ...runtime.errors import RunError
from ...runtime.scan.nifti import PAIRS
from ...runtime.scan.scan import SUFFIXES, stem
from ...runtime.system.files import walk

log = logging.getLogger("udean")

LAYOUTS = {
    "hcp": ("*/T1w/T1w_acpc_dc_restore.nii.gz",),
    "hcp-raw": ("*/unprocessed/3T/T1w_MPR1/*_T1w_MPR1.nii.gz",),
    "brats2020": ("BraTS20_Training_*/*_t1ce.nii.gz", "BraTS20_Training_*/*_t1ce.nii"),
}
# A file's participant, for any contrast: the path component with this prefix, or a tree's first folder.
SUBJECTS = (re.compile(r"sub-[A-Za-z0-9]+"), re.compile(r"BraTS[\w-]*?[_-]\d+(?![A-Za-z0-9])"))
TREES = ("*/T1w/T[12]w_*.nii*", "*/unprocessed/*/*/*.nii*", "*/mri/orig/*.mg[hz]")  # HCP, FreeSurfer
GENERIC = (  # words that say what a scan shows or is, not whom it shows
    "t1|t1w|t1ce|t1c|t1n|t1gd|t1post|mprage|mpr|spgr|bravo|t2|t2w|t2f|flair|pd|pdw|dwi|adc|swi|gre|tse|fse|ax|axial|"
    "cor|coronal|sag|sagittal|tra|3d|2d|pre|post|gd|brain|head|anat|mri|mr|nifti|nii|dicom|dcm|scans?|images?|img|"
    "volume|vol|orig|norm|nu|data|raw|hr|lr|sr|baseline|low|high"
)
ABOUT = re.compile(rf"(?:{GENERIC})(?:[-_. ]+(?:{GENERIC}))*", re.IGNORECASE)  # a name of such words only
CONTRAST = re.compile(rf"(?:[-_. ]+(?:{GENERIC}))+$", re.IGNORECASE)  # such words behind a name
VISIT = re.compile(  # which visit of a person a folder or a file is of
    r"(?:ses|session|visit|timepoint|tp|followup|day|week|month|series|run)[-_. ]*\d*|ses[-_]\w+|"
    r"(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])",
    re.IGNORECASE,
)
DIGITS = "-_0123456789"  # that number scans and so on
MARKS = ("_sr", "_lr", "_hr", "_res-hi", "_desc-sr")  # what commands and people add to a scan's name


class CohortError(RunError):
    """A group of scans that cannot be trained on."""


@dataclass(frozen=True, order=True)
class Entry:
    """A scan's file and its participant."""

    path: Path
    participant: str


def find(entries: Sequence[str | Path]) -> list[Entry]:
    """The scans that the entries (see above) name, sorted by path, without duplicates.

    Raises CohortError for an entry without scans, an unknown layout or a list that cannot be read.
    """
    found: dict[Path, str] = {}
    for entry in map(str, entries):
        layout, colon, root = entry.partition(":")
        if entry.endswith(".csv"):
            found |= _listed(Path(entry).expanduser())
            continue
        if colon and not Path(entry).exists():
            paths = _laid_out(layout, Path(root).expanduser())
        elif (path := Path(entry).expanduser()).is_dir():
            files = list(walk(path))
            paths = _scans(files)
            if pairs := [str(file) for file in files if file.name.lower().endswith(PAIRS)]:
                log.warning(
                    "Left out, because a NIfTI pair must be joined into one .nii first: %s.", ", ".join(pairs)
                )
        else:
            paths = [path] if path.is_file() else _scans(map(Path, glob(str(path), recursive=True)))
        if not paths and not (colon or has_magic(entry) or os.path.lexists(Path(entry).expanduser())):
            raise CohortError(f"{entry} does not exist.")
        if not paths:
            raise CohortError(f"{entry} contains no .nii, .nii.gz or .mgz scan.")
        found |= {path: participant(path) for path in map(Path, map(os.path.abspath, paths))}
    # A file name that recurs in several folders denotes the kind of scan; the folders denote people.
    often = Counter(who for path, who in found.items() if who == _own_name(path))
    for path, who in found.items():
        folder = next((part for part in _folders(path) if not VISIT.fullmatch(part)), "")
        if often[who] > 1 and folder and not _is_generic(folder.strip(DIGITS)):
            found[path] = folder
    return sorted(Entry(path, who) for path, who in found.items())


def scan_paths(entries: Sequence[str | Path]) -> list[Path]:
    """The files of `find`."""
    return [entry.path for entry in find(entries)]


def participant(path: Path) -> str:
    """The participant that a file belongs to.

    The subject of BIDS or BraTS, in the name of the file or of the nearest folder (a folder such as sub-dcm_a
    counts in full); the subject folder of HCP or FreeSurfer; if the file's name has only words of `GENERIC`,
    such as t1.nii, or names a visit, the nearest folder of which neither is true; else the file's bare name
    without such words behind it: ann_t1.nii and ann_flair.nii show ann.
    """
    subject = _subject(path.name)
    for folder in _folders(path):
        if own := _subject(folder):
            longer = folder.startswith(f"{own}_") and own.startswith("sub-")
            return folder if longer and subject in (None, own) else subject or own
    if subject:
        return subject
    for tree in TREES:
        if path.match(tree):
            return path.parts[-len(Path(tree).parts)]
    if _is_generic(name := _own_name(path)):
        return next((part for part in _folders(path) if not _is_generic(part)), name)
    return name


def _own_name(path: Path) -> str:
    """A file's bare name without what it shows: ann_t1.nii gives ann."""
    return CONTRAST.sub("", bare_name(path))


def _folders(path: Path) -> list[str]:
    """The names of a file's folders, the nearest first, without the root."""
    return [*reversed(path.parts[1:-1])] if path.is_absolute() else [*reversed(path.parts[:-1])]


def _subject(part: str) -> str | None:
    return next((found.group() for subject in SUBJECTS if (found := subject.match(part))), None)


def _is_generic(name: str) -> bool:
    """Whether a name says what a scan shows, or when it was made, not whom it shows."""
    return bool(ABOUT.fullmatch(name) or VISIT.fullmatch(name))


def bare_name(path: Path) -> str:
    """A scan's name without suffix and marks: sub-01_res-hi_desc-sr_T1w.nii.gz gives sub-01_T1w."""
    name = stem(path)
    for mark in MARKS:
        name = name.replace(mark, "")
    return name


def keep_apart(groups: Mapping[str, Sequence[Entry]], may_share: frozenset[str] = frozenset()) -> None:
    """Raise CohortError if a participant is in two groups, except for the pair of groups in `may_share`."""
    names = list(groups)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if {first, second} <= may_share:
                continue
            shared = {e.participant for e in groups[first]} & {e.participant for e in groups[second]}
            if shared:
                raise CohortError(
                    f"Participant {min(shared)} is in the {first} and in the {second} group: groups must "
                    "not share participants. Different people are told apart in a list.csv with columns path "
                    "and participant."
                    + (
                        " If this is intended, set data.pairing to 'misaligned' or 'aligned'."
                        if {first, second} == {"source", "target"}
                        else ""
                    )
                )


def _scans(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.name.lower().endswith(SUFFIXES)]


def _laid_out(layout: str, root: Path) -> list[Path]:
    name, _, suffix = layout.partition("-")
    if name == "bids":
        patterns = [
            f"sub-*/{session}anat/*_{suffix or 'T1w'}.nii{gz}"
            for session in ("", "ses-*/")
            for gz in ("", ".gz")
        ]
    elif layout in LAYOUTS:
        patterns = LAYOUTS[layout]
    else:
        known = ", ".join(("bids", *LAYOUTS))
        raise CohortError(f"{layout}:{root} is neither a file nor a known layout ({known}).")
    return [path for pattern in patterns for path in root.glob(pattern)]


def _listed(path: Path) -> dict[Path, str]:
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, csv.Error) as error:
        raise CohortError(f"{path} cannot be read as a list: {error}.") from None
    if not rows or not all(row.get("path") for row in rows):
        raise CohortError(f"{path} is not a list of scans: it needs a column 'path' and one row per scan.")
    found = {}
    for row in rows:
        scan = Path(os.path.abspath(path.parent / Path(row["path"]).expanduser()))
        found[scan] = row.get("participant") or participant(scan)
    return found
