"""BIDS datasets: which scans are asked for, and what makes the results a valid derived dataset.

Source: the Brain Imaging Data Structure 1.10: "Common principles" (entities, inheritance, BIDS URI),
"Derivatives: common data types and metadata". A walk over names is all that is needed of it here.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from ... import __version__
from ..errors import RunError
from ..scan.scan import FREESURFER, stem
from ..system.files import atomic, read_json, real_path, write_json

NAME = re.compile(r"(?P<entities>sub-[A-Za-z0-9]+(_[a-z]+-[A-Za-z0-9+]+)*)_(?P<suffix>[A-Za-z0-9]+)")
DATASET = "dataset_description.json"  # marks the root of a BIDS dataset
NOT_RAW = ("derivatives", "sourcedata", "code")  # folders at its root that hold no raw scans
ANATOMICAL = ("T1w", "T2w", "PDw", "T2starw", "FLAIR", "UNIT1", "inplaneT1", "inplaneT2", "angio")
PARTS = ("part-phase", "part-real", "part-imag")  # of complex images: no magnitudes
DESCRIPTION = {
    "Name": "Super-resolution by udean",
    "BIDSVersion": "1.10.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "udean", "Version": __version__}],
}
# Other files in an output folder, besides the dataset's own.
IGNORED = "udean-*\n*_sr.*\n*_desc-error.*\nqc.tsv\n"
# Of a scan's own metadata, what holds for its SR scan too and derivatives are asked for.
INHERITED = (
    "TaskName",
    "RepetitionTime",
    "EchoTime",
    "FlipAngle",
    "MagneticFieldStrength",
    "Manufacturer",
    "SkullStripped",
)

log = logging.getLogger("udean")


@dataclass(frozen=True)
class Selection:
    """A selection of scans in a BIDS tree: labels with or without `sub-` and `ses-`; none takes all.

    Without suffixes, a dataset gives its anatomical images: maps, phases and series are not for the network.
    """

    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()

    def __call__(self, path: Path, in_dataset: bool) -> bool:
        """Whether a scan is selected."""
        match = NAME.fullmatch(stem(path))
        if not match:
            return not (in_dataset or self.participants or self.sessions or self.suffixes)
        entities = match["entities"].split("_")
        return (
            _asked("sub-", self.participants, entities)
            and _asked("ses-", self.sessions, entities)
            and (match["suffix"] in (self.suffixes or ANATOMICAL) or not (in_dataset or self.suffixes))
            and not (in_dataset and not self.suffixes and any(part in entities for part in PARTS))
        )

    def check(self, found: Iterable[Path]) -> None:
        """Raise RunError for a label that none of the scans has."""
        matches = [match for path in found if (match := NAME.fullmatch(stem(path)))]
        have = {part for match in matches for part in (*match["entities"].split("_"), match["suffix"])}
        for prefix, labels in (("sub-", self.participants), ("ses-", self.sessions), ("", self.suffixes)):
            for label in labels:
                if prefix + label.removeprefix(prefix) not in have:
                    raise RunError(f"No scan of {prefix}{label.removeprefix(prefix)} was found.")


def _asked(prefix: str, labels: Sequence[str], entities: Sequence[str]) -> bool:
    return not labels or any(prefix + label.removeprefix(prefix) in entities for label in labels)


def result_name(name: str) -> str:
    """The SR scan's file name: a BIDS derivative's for BIDS names, else NAME_sr.

    The suffix is the scan's; FreeSurfer's scans become .nii.gz. `res-hi` names the resampled grid, `desc-sr`
    the processing.
    """
    base = stem(Path(name))
    suffix = ".nii.gz" if name.lower().endswith(FREESURFER) else name[len(base) :].lower()
    if match := NAME.fullmatch(base):
        entities = [e for e in match["entities"].split("_") if not e.startswith(("res-", "desc-"))]
        return "_".join([*entities, "res-hi", "desc-sr", match["suffix"]]) + suffix
    return f"{base}_sr{suffix}"


def is_bids(source: Path) -> bool:
    """Whether a scan has a BIDS name."""
    return NAME.fullmatch(stem(source)) is not None


def dataset_of(source: Path, folder: Path) -> Path | None:
    """The dataset that a scan of BIDS name lies in: the nearest folder with a description, else `folder`."""
    return (dataset_above(source) or folder) if is_bids(source) else None


def raw_dataset(folder: Path) -> Path | None:
    """The dataset whose raw scans a folder below it holds; None for the dataset itself and for others."""
    base = dataset_above(folder)
    if base is None or (folder / DATASET).is_file():
        return None
    return None if _is_processed(folder, base) else base


def derivatives(path: Path) -> Path | None:
    """The folder for a dataset's results, so that its raw data stay unchanged; None outside a dataset."""
    base = dataset_above(path)
    if base is None:
        return None
    while (outer := dataset_above(base)) and _is_processed(base, outer):
        base = outer
    return base / "derivatives" / "udean"


def check_place(root: Path) -> None:
    """Raise RunError if results below a folder would lie among a dataset's raw scans."""
    folder = Path(os.path.abspath(root))
    base = dataset_above(folder / DATASET)
    if base is None or read_json(base / DATASET).get("DatasetType") == "derivative":
        return
    outer: Path | None = base
    while outer:
        if folder != outer and _is_processed(folder, outer):
            return
        outer = dataset_above(outer)
    raise RunError(
        f"{root} lies in the raw dataset {base}, which stays as it is: choose "
        f"{base / 'derivatives' / 'udean'}, or a folder outside, with -o."
    )


def dataset_above(path: Path) -> Path | None:
    """The nearest folder above a path that is a dataset."""
    above = Path(os.path.abspath(path)).parents
    return next((folder for folder in above if (folder / DATASET).is_file()), None)


def _is_processed(path: Path, dataset: Path) -> bool:
    return Path(os.path.abspath(path)).relative_to(dataset).parts[0] in NOT_RAW


def describe_dataset(root: Path, datasets: Iterable[Path]) -> None:
    """Make an output folder a derived dataset, or add these datasets to those that it links to.

    A raw dataset, or one that cannot be read, stays as it is. Raises RunError if it cannot be written.
    """
    found = read_json(root / DATASET)
    if (root / DATASET).exists() and found.get("DatasetType") != "derivative":
        return
    links = _links(found)
    for dataset in sorted({real_path(path) for path in datasets} - {_place(root, k) for k in links.values()}):
        name = next(
            name for n in range(1, len(links) + 2) if (name := f"raw{n if n > 1 else ''}") not in links
        )
        links[name] = _quoted(dataset, real_path(root))
    wanted = {**DESCRIPTION, **found, "DatasetLinks": links}
    if wanted != found:
        write_json(root / DATASET, wanted)
    if not (root / ".bidsignore").exists():
        with atomic(root / ".bidsignore") as file:
            file.write(IGNORED.encode())


def source_uri(source: Path, dataset: Path | None, target: Path, root: Path) -> str:
    """The name of a scan in a sidecar: a BIDS URI if the output folder links to the dataset, else a path."""
    for name, link in _links(read_json(root / DATASET)).items():
        if dataset and _place(root, link) == real_path(dataset):
            return f"bids:{name}:{_quoted(Path(os.path.abspath(source)), Path(os.path.abspath(dataset)))}"
    return os.path.relpath(source, real_path(target.parent))


def source_path(uri: str, target: Path, root: Path) -> Path:
    """The path that a sidecar's source means: relative to the result, or a BIDS URI.

    Source: BIDS 1.10, "BIDS URI": bids:DATASET:PATH, DATASET named in DatasetLinks, empty for this one.
    """
    if not uri.startswith("bids:"):
        return Path(os.path.normpath(real_path(target.parent) / uri))
    _, dataset, path = (uri + "::").split(":", 2)
    where = _unquoted(urlsplit(_links(read_json(root / DATASET)).get(dataset, "")).path)
    return Path(os.path.normpath(real_path(root) / where / _unquoted(path.removesuffix("::"))))


def metadata(source: Path, dataset: Path | None) -> dict[str, Any]:
    """Additional metadata for the sidecar of a BIDS result: the scan's own, by the inheritance principle."""
    if not dataset:
        return {}
    base, own = Path(os.path.abspath(dataset)), Path(os.path.abspath(source)).parent
    folders = [path for path in (*reversed(own.parents), own) if path.is_relative_to(base)]
    *entities, suffix = stem(source).split("_")
    found: dict[str, Any] = {"SkullStripped": False}
    for folder in folders:
        for file in _sidecars(folder, folder.stat().st_mtime_ns):
            *given, kind = file.stem.split("_")
            if kind == suffix and set(given) <= set(entities):
                found |= read_json(file)
    return {name: found[name] for name in INHERITED if name in found}


@functools.lru_cache
def _sidecars(folder: Path, changed: int) -> list[Path]:
    """A folder's JSON files, the most general first. Roots are large: listed once until they have changed."""
    return sorted(folder.glob("*.json"), key=lambda file: len(file.name))


def _links(description: dict[str, Any]) -> dict[str, str]:
    """A description's links to other datasets, by name."""
    links = description.get("DatasetLinks")
    return {str(name): str(link) for name, link in links.items()} if isinstance(links, dict) else {}


def _place(root: Path, link: str) -> Path:
    """The folder that a link means: relative, or a file's URI; only folders are of use here."""
    return real_path(root, _unquoted(link.removeprefix("file://")))


def _quoted(path: Path, start: Path) -> str:
    """A path from a folder as a URI; names that are not text keep their bytes."""
    return quote(os.fsencode(os.path.relpath(path, start)))


def _unquoted(text: str) -> str:
    return unquote(text, errors="surrogateescape")
