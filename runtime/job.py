"""A job: one scan to restore, and where its result goes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeAlias

from .models.card import ModelCard
from .scan.output import Draft, FileDraft
from .scan.scan import Scan, open_scan, stem
from .system.files import real_path, sha256

Stamp: TypeAlias = "tuple[int, int, int] | None"  # size, times of modification and of status change


def is_error_map(path: Path) -> bool:
    """Whether a file is named like a result's expected errors, see `Job.error_map`."""
    return stem(path).endswith("_desc-error") or "_desc-error_" in path.name


@dataclass(frozen=True)
class Job:
    """One scan: the file to read, the file to write, and the output folder that it belongs to.

    dataset: the BIDS dataset of a scan with a BIDS name.
    """

    source: Path
    target: Path
    root: Path
    dataset: Path | None = field(default=None, kw_only=True)

    @property
    def sidecar(self) -> Path:
        """The sidecar beside the result; its presence means that the result is complete."""
        return self.target.with_name(stem(self.target) + ".json")

    @property
    def error_map(self) -> Path | None:
        """The path of the map of the result's expected errors: desc-sr becomes desc-error, and NAME_sr
        NAME_desc-error. None for a result that cannot have one."""
        base = stem(self.target)
        suffix = self.target.name[len(base) :]
        if "_desc-sr_" in base:
            return self.target.with_name(base.replace("_desc-sr_", "_desc-error_") + suffix)
        return self.target.with_name(base.removesuffix("_sr") + "_desc-error" + suffix)

    @property
    def written(self) -> set[str]:
        """Names of the files that a run may write for this job, in one folder."""
        names = {self.target.name, self.sidecar.name}
        return names | {self.error_map.name, stem(self.error_map) + ".json"} if self.error_map else names

    @property
    def identity(self) -> Path:
        """The path that identifies the scan. Two links to one file are two scans."""
        return real_path(self.source.parent) / self.source.name

    @property
    def inputs(self) -> set[Path]:
        """The files that a result must not replace."""
        return {real_path(self.source)}

    @property
    def series_sha256(self) -> str | None:
        """SHA-256 of the DICOM series' UID, which distinguishes a folder's scan from an earlier one there."""
        return None

    def open(self, series: bool = False) -> Scan:
        """The scan, checked; see `open_scan`."""
        return open_scan(self.source, series)

    def open_result(self, series: bool = False) -> Scan:
        """The SR scan that was written."""
        return open_scan(self.target, series)

    def digest(self) -> str:
        """SHA-256 of the input."""
        return sha256(self.source)

    def result_digest(self) -> str | None:
        """SHA-256 of the result; None if there is none."""
        return sha256(self.target) if self.target.is_file() else None

    def stamps(self) -> tuple[Stamp, Stamp]:
        """Stamps of scan and result that change when they do, cheap to read; None if unknown."""
        return _stamp(self.source), _stamp(self.target)

    def absolute(self) -> Self:
        """The same job for a process with another working folder."""
        dataset = self.dataset and self.dataset.absolute()
        source, target, root = (path.absolute() for path in (self.source, self.target, self.root))
        return dataclasses.replace(self, source=source, target=target, root=root, dataset=dataset)

    def draft(self, card: ModelCard, model_sha256: str) -> Draft:
        """A draft for the result of the model with this card and file hash."""
        return FileDraft(self.target)


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
