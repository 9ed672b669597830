"""The sidecar of an SR scan: which fields it has, written and read here and nowhere else.

A sidecar holds what BIDS requires of a derivative's JSON and, under "udean", everything needed to repeat the
result. It is written last, so a result that has one is whole. Others may have edited the file: a field that
is missing or of another kind reads as absent.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ... import __version__
from ..cuda.engine import CudaEngine
from ..errors import RunError
from ..job import Job
from ..models.card import ModelCard
from ..pipeline import error_map
from ..pipeline.engine import Engine, EngineInfo
from ..resolver import Output, SuperResolver, Timings
from ..scan.scan import stem
from ..system.files import read_json, write_json
from . import bids

LIMIT = 1 << 20  # bytes; a sidecar has some thousand


@dataclass(frozen=True)
class Request:
    """Everything that determines an SR scan's voxels. Resuming compares it, field by field."""

    input_sha256: str
    model_sha256: str
    precision: str
    options: dict[str, Any]
    slab_axis: int | None
    dtype: str
    udean: str = __version__

    @classmethod
    def of(
        cls,
        input_sha256: str,
        resolve: SuperResolver,
        model: EngineInfo,
        dtype: Output,
        axis: int | None,
        series: bool,
    ) -> Request:
        """The request for a scan of this digest. axis: across the slices; None: the coarsest."""
        options = dataclasses.asdict(resolve.options)
        return cls(
            input_sha256=input_sha256,
            model_sha256=model.sha256,
            precision=model.precision,
            options=options | {"series": series},
            slab_axis=axis,
            dtype=dtype,
        )


@dataclass(frozen=True)
class Sidecar:
    """The sidecar at `path`; content: its JSON, empty if there is none."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """The sidecar at a path; one that is missing, damaged or far too large is empty."""
        try:
            small = path.stat().st_size <= LIMIT
        except OSError:
            small = False
        return cls(path, read_json(path) if small else {})

    @property
    def is_ours(self) -> bool:
        """Whether it is about a result of udean."""
        return isinstance(self.content.get("udean"), dict)

    @property
    def made(self) -> dict[str, Any]:
        """How the result was made, in udean's own fields."""
        return _table(self.content.get("udean"))

    def table(self, name: str) -> dict[str, Any]:
        """One of udean's fields that hold several values: "engine", "timings", "model_card", "request"."""
        return _table(self.made.get(name))

    @property
    def source(self) -> str | None:
        """The scan, as `bids.source_uri` wrote it."""
        sources = self.content.get("Sources")
        return sources[0] if isinstance(sources, list) and sources and type(sources[0]) is str else None

    @property
    def card(self) -> ModelCard:
        """The model that made the result. Raises CardError if there is no readable card."""
        return ModelCard.from_json(json.dumps(self.made.get("model_card")), str(self.path))

    @property
    def input_sha256(self) -> str | None:
        """The digest of the scan that was read."""
        return _text(self.table("request").get("input_sha256"))

    @property
    def warnings(self) -> list[str]:
        """The run's warnings about the result."""
        said = self.made.get("warnings")
        return [text for text in said if isinstance(text, str)] if isinstance(said, list) else []

    @property
    def labels(self) -> str | None:
        """The sidecar of a result that was resampled without a network."""
        return _text(self.made.get("labels"))

    def profile_mm(self, volume: int) -> float | None:
        """Width at half maximum of thick slices' profile; None if it was not estimated."""
        told = self.made.get("slices")
        told = _table(told[volume]) if isinstance(told, list) and volume < len(told) else {}
        width = told.get("profile_fwhm_mm")
        return float(width) if isinstance(width, int | float) and width > 0 else None

    @property
    def is_series(self) -> bool:
        """Whether a 4-D scan was resolved volume by volume."""
        return bool(_table(self.table("request").get("options")).get("series"))

    def error_map(self, target: Path) -> Path | None:
        """The map of expected errors that was written beside the result, whether it is still there or not."""
        name = _text(self.made.get("error_map"))
        path = name and target.with_name(Path(name).name)
        return path if path and path != target else None

    def lacks_error_map(self, target: Path) -> bool:
        """Whether a map of expected errors that was written is gone."""
        path = self.error_map(target)
        return path is not None and not path.is_file()

    def output_of(self, request: Request) -> str | None:
        """The digest of the result if it was made just as requested, else None."""
        asked = json.loads(json.dumps(dataclasses.asdict(request)))
        return _text(self.made.get("output_sha256")) if self.made.get("request") == asked else None

    def other_source(self, job: Job) -> Path | str | None:
        """The scan that the sidecar is about if it is not the job's; one that has moved is the same.

        Sidecars stand for their scans, as a.nii and a.nii.gz would have one.
        """
        if self.source is None:
            return None
        series = self.made.get("series_sha256")
        if series and job.series_sha256 and series != job.series_sha256:
            return "another series"
        made_from = bids.source_path(self.source, job.target, job.root)
        both = os.path.exists(made_from) and os.path.exists(job.source)
        return made_from if both and not os.path.samefile(made_from, job.source) else None

    def renew(self, job: Job) -> None:
        """Copy the metadata beside the scan again, which may have changed since."""
        there = {name: value for name, value in self.content.items() if name != "udean"}
        wanted = {name: value for name, value in there.items() if name not in bids.INHERITED}
        wanted |= bids.metadata(job.source, job.dataset)
        if wanted != there:
            write_json(self.path, {**wanted, "udean": self.made})


def remove_sidecar(job: Job) -> None:
    """Remove a sidecar, and the map of expected errors that it names, before its result is replaced.

    It must not vouch for a file that is not whole yet.
    """
    old = Sidecar.read(job.sidecar).error_map(job.target)
    maps = [old, _beside(old)] if old and error_map_sidecar(old).is_ours else []
    for path in (*maps, job.sidecar):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"Cannot replace {path}: {error.strerror or error}.") from error


def write_sidecar(
    job: Job,
    request: Request,
    digest: str | None,
    engine: Engine | CudaEngine,
    timings: Timings,
    spacing: Sequence[float] | None,
    told: Mapping[str, Any],
) -> None:
    """Write the sidecar of a result that is whole.

    digest: SHA-256 of the result. spacing: mm, if it was asked for. told: udean's further fields about the
    scan, such as its measured band.
    """
    scale = " x ".join(map(str, engine.card.scale))
    resolution = f"{scale} times as many voxels along rows, columns and slices as the scan"
    if spacing:
        resolution = " x ".join(f"{size:g}" for size in spacing) + " mm"
    description = "Super-resolution by a trained network: " + engine.card.intended_use
    content = {
        "Description": "No network: " + told["labels"] if "labels" in told else description,
        "Sources": [bids.source_uri(job.source, job.dataset, job.target, job.root)],
        "SpatialReference": "orig",
        "Resolution": resolution,
        **bids.metadata(job.source, job.dataset),
        "udean": {
            "request": dataclasses.asdict(request),
            "output_sha256": digest,
            **({"series_sha256": job.series_sha256} if job.series_sha256 else {}),
            **told,
            "engine": dataclasses.asdict(engine.info),
            "model_card": dataclasses.asdict(engine.card),
            "versions": {
                "udean": __version__,
                "python": platform.python_version(),
                "numpy": np.__version__,
                "nibabel": nib.__version__,
            },
            "timings": dataclasses.asdict(timings),
        },
    }
    write_json(job.sidecar, content)


def error_map_sidecar(path: Path) -> Sidecar:
    """The sidecar beside a map of expected errors, which names its result."""
    return Sidecar.read(_beside(path))


def write_error_map_sidecar(path: Path, job: Job, card: ModelCard) -> dict[str, Any]:
    """Write the sidecar of a map of expected errors; returns its entry for the result's sidecar.

    It names no source, so that it vouches for no result.
    """
    figures = error_map.calibration(card)
    interval = {"share": error_map.SHARE, "times": figures["interval"]}
    content = {
        "Description": error_map.described(card),
        "SpatialReference": "orig",
        "Resolution": f"the grid of {job.target.name}",
        "udean": {"errors_of": job.target.name, "interval": interval},
    }
    write_json(_beside(path), content)
    return {"error_map": path.name, "expected_error": {**interval, "figures": figures}}


def _beside(path: Path) -> Path:
    return path.with_name(stem(path) + ".json")


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
