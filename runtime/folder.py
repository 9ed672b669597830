"""Many scans: which ones, under which names, one after the other, each whole or named as failed.

Results of a folder `scans/` go to `scans-sr/` beside it, of single files to a folder `sr/` beside them,
with the folders below kept; nothing is ever written over an input. Each SR scan has a sidecar that says
how it was made; a scan whose sidecar asks for the same again is kept, whatever else happened to the run.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

from .. import __version__
from .errors import RunError
from .files import read_json, sha256, write_json
from .resolver import Output, Progress, SuperResolver, Timings
from .volume import SUFFIXES, open_scan, write_scan

MANIFEST = "udean-manifest.jsonl"  # a line a scan and run, so that processes can share it; the last counts
BIDS = re.compile(r"(?P<entities>sub-[A-Za-z0-9]+(_[a-z]+-[A-Za-z0-9+]+)*)_(?P<suffix>[A-Za-z0-9]+)")


@dataclass(frozen=True)
class Job:
    """One scan: the file to read, the file to write, and the output folder that it belongs to."""

    source: Path
    target: Path
    root: Path

    @property
    def sidecar(self) -> Path:
        return self.target.with_name(_stem(self.target) + ".json")


@dataclass(frozen=True)
class Request:
    """All that decides what an SR scan's voxels are. Resuming compares it, field by field."""

    input_sha256: str
    model_sha256: str
    precision: str
    overlap: float
    window: tuple[int, int]
    weighting: str
    slab_axis: int | None
    dtype: str
    udean: str = __version__


@dataclass(frozen=True)
class Outcome:
    """What became of a scan. `message` says why it failed, or what was done."""

    job: Job
    status: Literal["written", "kept", "failed"]
    message: str
    timings: Timings | None = None


def find_scans(inputs: Sequence[str], out: Path | None = None) -> list[Job]:
    """The scans that files, folders and glob patterns name, in order, each once.

    Folders are searched to any depth; hidden files and results of earlier runs are left out. Raises
    RunError where an input names no scan, or a result would replace an input or another result.
    """
    jobs: dict[Path, Job] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            named = path if path.name.strip(".") else path.resolve()  # "." and ".." have no name
            root = out or named.with_name(named.name + "-sr")
            sources = sorted(p for p in path.rglob("*") if _is_scan(p, path))
            found = [_job(source, root, source.relative_to(path).parent) for source in sources]
        else:
            matches = sorted(map(Path, glob.glob(text, recursive=True))) if glob.has_magic(text) else [path]
            matches = [path] if path.exists() else [p for p in matches if not p.is_dir()]
            found = [_job(source, out or source.parent / "sr", Path()) for source in matches]
        if not found:
            raise RunError(f"{text} holds no scan: give NIfTI files (.nii, .nii.gz) or a folder of them.")
        for job in found:
            jobs.setdefault(job.source.resolve(), job)

    claimed: dict[Path, Path] = {}
    for source, job in jobs.items():
        # Sidecars stand for their scans: a.nii and a.nii.gz would have one sidecar.
        other = claimed.setdefault(job.sidecar.resolve(), source)
        if other != source or job.target.resolve() in jobs:
            other = job.target if other == source else other
            raise RunError(f"The results of {job.source} and {other} would collide: run them apart with -o.")
    return list(jobs.values())


def run_job(
    job: Job,
    resolve: SuperResolver,
    dtype: Output = "input",
    axis: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Resolve one scan and write it with its sidecar, unless that is done already.

    Raises RunError for what the user can mend; the job's old results then stay, or are gone, but whole.
    """
    scan = open_scan(job.source)
    request = _request(job, resolve, dtype, axis)
    if not overwrite and is_current(job, request):
        return Outcome(job, "kept", "up to date")
    header, voxels = resolve.scan(scan, dtype, axis, progress)
    job.sidecar.unlink(missing_ok=True)  # it must not vouch for the new file before that is whole
    write_scan(job.target, header, voxels)
    write_json(job.sidecar, _sidecar(job, request, resolve))
    size = " x ".join(map(str, scan.shape)) + " to " + " x ".join(map(str, voxels.shape))
    return Outcome(job, "written", size, resolve.timings)


def is_current(job: Job, request: Request) -> bool:
    """Whether the result is there, whole, and made just as requested."""
    made = read_json(job.sidecar).get("udean", {})
    wanted = json.loads(json.dumps(dataclasses.asdict(request)))
    return (
        isinstance(made, dict)
        and made.get("request") == wanted
        and job.target.is_file()
        and made.get("output_sha256") == sha256(job.target)
    )


def attempt(job: Job, debug: bool = False, **options: Any) -> Outcome:
    """`run_job`, with its failure as an outcome. debug: what nobody foresaw is raised as it is."""
    try:
        return run_job(job, **options)
    except RunError as error:
        return Outcome(job, "failed", str(error))
    except MemoryError:
        return Outcome(job, "failed", f"{job.source} does not fit into this machine's memory: crop the scan.")
    except Exception as error:
        if debug:
            raise
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return Outcome(job, "failed", f"{job.source} failed unexpectedly ({text}): --debug shows where.")


def run_all(jobs: Sequence[Job], **options: Any) -> Iterator[Outcome]:
    """Attempt every job in order and note each outcome; one failure does not stop the others."""
    for job in jobs:
        outcome = attempt(job, **options)
        try:
            note(outcome)
        except RunError as error:
            if outcome.status != "failed":
                outcome = dataclasses.replace(outcome, status="failed", message=str(error))
        yield outcome


def note(outcome: Outcome) -> None:
    """Add an outcome to its output folder's manifest. Raises RunError where that cannot be written."""
    job = outcome.job
    line = {
        "source": os.path.relpath(job.source, job.root),
        "target": os.path.relpath(job.target, job.root),
        "status": outcome.status,
        "message": outcome.message,
    }
    path = job.root / MANIFEST
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error.strerror or error}.") from error


def prepare(jobs: Sequence[Job]) -> None:
    """Make the output folders. Raises RunError where one cannot be made or written to."""
    for root in {job.root for job in jobs}:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"Cannot make the output folder {root}: {error.strerror}. Choose another with -o."
            ) from error
        if not os.access(root, os.W_OK | os.X_OK):
            raise RunError(f"The output folder {root} is not writable: choose another with -o.")


def result_name(name: str) -> str:
    """The SR scan's file name: a BIDS derivative's for BIDS names, else NAME_sr, with the same suffix.

    Source: BIDS 1.10, derivatives: `res-hi` names the resampled grid, `desc-sr` the processing.
    """
    stem = _stem(Path(name))
    suffix = name[len(stem) :]
    if match := BIDS.fullmatch(stem):
        entities = [e for e in match["entities"].split("_") if not e.startswith(("res-", "desc-"))]
        return "_".join([*entities, "res-hi", "desc-sr", match["suffix"]]) + suffix
    return f"{stem}_sr{suffix}"


def _job(source: Path, root: Path, below: Path) -> Job:
    return Job(source, root / below / result_name(source.name), root)


def _is_scan(path: Path, folder: Path) -> bool:
    """Whether a file found in a folder is an input: a NIfTI file, not hidden, no earlier result."""
    stem = _stem(path)
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    result = stem.endswith("_sr") or "_desc-sr_" in stem
    return path.name.endswith(SUFFIXES) and not hidden and not result and path.is_file()


def _stem(path: Path) -> str:
    """The name without .nii or .nii.gz, or without its last suffix."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


def _request(job: Job, resolve: SuperResolver, dtype: Output, axis: int | None) -> Request:
    return Request(
        input_sha256=sha256(job.source),
        model_sha256=resolve.engine.info.sha256,
        precision=resolve.engine.info.precision,
        overlap=resolve.overlap,
        window=resolve.window or resolve.card.window,
        weighting=resolve.weighting,
        slab_axis=axis,
        dtype=dtype,
    )


def _sidecar(job: Job, request: Request, resolve: SuperResolver) -> dict[str, Any]:
    """What a BIDS derivative's sidecar holds, and all that is needed to make the scan again."""
    assert resolve.timings is not None
    return {
        "Description": "Super-resolution by a trained network: " + resolve.card.intended_use,
        "Sources": [os.path.relpath(job.source, job.target.parent)],
        "SpatialReference": "orig",
        "udean": {
            "request": dataclasses.asdict(request),
            "output_sha256": sha256(job.target),
            "engine": dataclasses.asdict(resolve.engine.info),
            "model_card": dataclasses.asdict(resolve.card),
            "versions": {
                "udean": __version__,
                "python": platform.python_version(),
                "numpy": np.__version__,
                "nibabel": nib.__version__,
            },
            "timings": dataclasses.asdict(resolve.timings),
        },
    }
