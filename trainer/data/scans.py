"""Finding scans: files, folders, globs, CSV lists and the trees of public data sets; who is on them.

An entry is one of
    scans/, scans/*.nii.gz, one.nii     searched through or matched
    list.csv                            a column `path` (relative to the list), if wanted `participant`
    bids:ROOT, bids-T2w:ROOT            sub-*/[ses-*/]anat/*_T1w.nii*
    hcp:ROOT, hcp-raw:ROOT              Human Connectome Project, T1w restored (0.7 mm) or as acquired
    brats2020:ROOT                      BraTS 2020 training set, contrast-enhanced T1w
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from ...runtime.errors import RunError
from ...runtime.scans.scan import stem

LAYOUTS = {
    "hcp": ("*/T1w/T1w_acpc_dc_restore.nii.gz",),
    "hcp-raw": ("*/unprocessed/3T/T1w_MPR1/*_T1w_MPR1.nii.gz",),
    "brats2020": ("BraTS20_Training_*/*_t1ce.nii.gz", "BraTS20_Training_*/*_t1ce.nii"),
}
# Whose a file is, of any contrast: a part of its path that begins so, or the first folder of such a tree.
SUBJECTS = (re.compile(r"sub-[A-Za-z0-9]+"), re.compile(r"BraTS\w*?_\d+(?![A-Za-z0-9])"))
TREES = ("*/T1w/T[12]w_*.nii*", "*/unprocessed/*/*/*.nii*")  # HCP
MARKS = ("_sr", "_lr", "_hr", "_res-hi", "_desc-sr")  # what commands and people add to a scan's name


class CohortError(RunError):
    """A group of scans that cannot be trained on."""


@dataclass(frozen=True, order=True)
class Entry:
    """A scan's file and whose it is."""

    path: Path
    participant: str


def find(entries: Sequence[str | Path]) -> list[Entry]:
    """The scans that the entries name (see above), sorted by path, each once.

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
            paths = _nifti(path.rglob("*"))
        else:
            paths = [path] if path.is_file() else _nifti(map(Path, glob(str(path), recursive=True)))
        if not paths:
            raise CohortError(f"{entry} holds no .nii or .nii.gz scan.")
        found |= {Path(os.path.abspath(path)): participant(path) for path in paths}
    return sorted(Entry(path, who) for path, who in found.items())


def find_scans(entries: Sequence[str | Path]) -> list[Path]:
    """The files of `find`."""
    return [entry.path for entry in find(entries)]


def participant(path: Path) -> str:
    """Whose scan a file is: the subject of BIDS or BraTS, in the file's name or the nearest folder's, the
    subject folder of HCP, else its bare name."""
    for part in reversed(path.parts):
        for subject in SUBJECTS:
            if found := subject.match(part):
                return found.group()
    for tree in TREES:
        if path.match(tree):
            return path.parts[-len(Path(tree).parts)]
    return bare_name(path)


def bare_name(path: Path) -> str:
    """A scan's name without suffix and marks: sub-01_res-hi_desc-sr_T1w.nii.gz gives sub-01_T1w."""
    name = stem(path)
    for mark in MARKS:
        name = name.replace(mark, "")
    return name


def keep_apart(groups: Mapping[str, Sequence[Entry]], may_share: frozenset[str] = frozenset()) -> None:
    """Raise CohortError if a participant is in two groups, the pair of groups in `may_share` aside."""
    names = list(groups)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if {first, second} <= may_share:
                continue
            shared = {e.participant for e in groups[first]} & {e.participant for e in groups[second]}
            if shared:
                raise CohortError(
                    f"Participant {min(shared)} is in the {first} and in the {second} group: groups must "
                    "not share participants."
                    + (
                        " Where they are meant to, set data.pairing to 'misaligned' or 'aligned'."
                        if {first, second} == {"source", "target"}
                        else ""
                    )
                )


def _nifti(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.name.lower().endswith((".nii", ".nii.gz"))]


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
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{path} cannot be read as a list: {error}.") from None
    if not rows or not all(row.get("path") for row in rows):
        raise CohortError(f"{path} is no list of scans: it needs a column 'path' and a row for each scan.")
    found = {}
    for row in rows:
        scan = Path(os.path.abspath(path.parent / Path(row["path"]).expanduser()))
        found[scan] = row.get("participant") or participant(scan)
    return found
