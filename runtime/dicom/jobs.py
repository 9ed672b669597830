"""DICOM series as jobs beside NIfTI files: one per volume; results are derived series or NIfTI files."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..job import Job, Stamp
from ..models.card import ModelCard
from ..scan.nifti import Header
from ..scan.output import Draft, FileDraft
from ..scan.scan import Scan
from ..system.files import real_path, sha256
from .derived import write_derived
from .series import Series, find_series

Format = Literal["dicom", "enhanced", "nifti"]  # files of a slice each; as multi-frame as the scan


@dataclass(frozen=True)
class DicomJob(Job):
    """One volume of a series. source: the folder or file where it was found. target: a folder, or NIfTI.

    note: a sentence that the result must contain. enhanced: whether it is multi-frame if the scan is.
    """

    series: Series = field(compare=False)
    note: str = field(default="", kw_only=True, compare=False)
    enhanced: bool = field(default=False, kw_only=True, compare=False)

    @property
    def identity(self) -> Path:
        return self.source.resolve() / f"{self.series.uid}-{self.series.part}"

    @property
    def inputs(self) -> set[Path]:
        files = {real_path(frame.path) for frame in self.series.frames}
        # A derived series replaces its whole folder, so none may hold slices.
        return {folder for file in files for folder in (file, *file.parents)}

    @property
    def series_sha256(self) -> str:
        return hashlib.sha256(self.series.uid.encode()).hexdigest()

    @property
    def error_map(self) -> Path | None:
        return None if self.derived else super().error_map

    @property
    def derived(self) -> bool:
        """Whether the result is a DICOM series."""
        return not self.target.name.endswith(".nii.gz")

    def open(self, series: bool = False) -> Scan:
        return self.series.scan()

    def open_result(self, series: bool = False) -> Scan:
        if not self.derived:
            return super().open_result(series)
        return find_series(sorted(self.target.iterdir()), self.target, ours=True)[0].scan()

    def stamps(self) -> tuple[Stamp, Stamp]:
        return None, None if self.derived else super().stamps()[1]

    def absolute(self) -> Self:
        frames = [dataclasses.replace(frame, path=frame.path.absolute()) for frame in self.series.frames]
        series = dataclasses.replace(self.series, frames=tuple(frames))
        return dataclasses.replace(super().absolute(), series=series)

    def digest(self) -> str:
        return _digest({frame.path for frame in self.series.frames})

    def result_digest(self) -> str | None:
        if not self.derived:
            return super().result_digest()
        return _digest(self.target.iterdir()) if self.target.is_dir() else None

    def draft(self, card: ModelCard, model_sha256: str) -> Draft:
        return DicomDraft(self, card, model_sha256) if self.derived else FileDraft(self.target)


class DicomDraft:
    """A derived series' voxels, in memory until they are written; see `Draft`."""

    mapped = False

    def __init__(self, job: DicomJob, card: ModelCard, model_sha256: str) -> None:
        self._job, self._card, self._model = job, card, model_sha256
        self._header: Header | None = None
        self._voxels: NDArray[Any] | None = None

    def room(self, header: Header) -> NDArray[Any]:
        """An array for the voxels of this header. Raises RunError for voxels that DICOM cannot store."""
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        if dtype.kind == "f":
            raise RunError(f"{self._job.series.name}: DICOM takes integers; --format nifti takes float32.")
        voxels = np.empty(shape, dtype, order="F")
        self._header, self._voxels = header, voxels
        return voxels

    def commit(self) -> None:
        """Write the series, whole. Raises RunError if it cannot be written."""
        assert self._voxels is not None
        job = self._job
        write_derived(
            job.series,
            self._header,
            self._voxels,
            self._card,
            self._model,
            job.target,
            job.note,
            job.enhanced,
        )
        self.discard()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._voxels = None


def dicom_jobs(
    files: list[Path], source: Path, root: Path, form: Format, taken: Collection[int] = (), note: str = ""
) -> list[DicomJob]:
    """The jobs of the MR volumes among DICOM files. Raises RunError for a damaged file.

    taken: numbers of other series of the study. note: a sentence that the results must contain.
    A series with a file that is readable but unusable is a job that fails when it is opened.
    """
    if not files:  # an installation without pydicom can restore other scans
        return []
    found = find_series(files, source, taken=taken)
    names = Counter((series.number, series.part) for series in found)
    jobs = []
    for series in found:
        name = f"series-{series.number:03}" + (f"-{series.part}" if series.part else "")
        if names[series.number, series.part] > 1:  # of other studies
            name += "-" + hashlib.sha256(series.uid.encode()).hexdigest()[:8]
        target = root / (f"{name}_sr.nii.gz" if form == "nifti" else name)
        jobs.append(DicomJob(source, target, root, series, note=note, enhanced=form == "enhanced"))
    return jobs


def _digest(files: Iterable[Path]) -> str:
    """SHA-256 over the files' own hashes, in an order that does not depend on names."""
    return hashlib.sha256("".join(sorted(sha256(file) for file in files)).encode()).hexdigest()
