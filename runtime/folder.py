"""Many scans, one warm engine: decoding, network and encoding overlap; each scan is whole or named as failed.

While the network resolves a scan, the next one is read in a thread of its own and the one before it is
written in another. Each SR scan has a sidecar that says how it was made; a scan whose sidecar asks for the
same again is kept, whatever else happened to the run.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import nibabel as nib
import numpy as np

from .. import __version__
from .dicom.jobs import DicomDraft
from .draft import Draft, check_memory
from .errors import RunError
from .files import read_json, sweep, write_json
from .host import ahead
from .jobs import DATASET, Job, is_bids
from .resolver import Look, Output, Progress, SuperResolver, Timings
from .trace import span
from .volume import Header, Scan

MANIFEST = "udean-manifest.jsonl"  # a line a scan and run, so that processes can share it; the last counts
DESCRIPTION = {  # BIDS 1.10, derived dataset
    "Name": "Super-resolution by udean",
    "BIDSVersion": "1.10.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "udean", "Version": __version__}],
}
LARGE = 1 << 30  # bytes of an SR volume, of which only one is held at a time
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How scans are treated. axis: voxel axis across the slices, None for the coarsest.

    series: resolve 4-D scans volume by volume. overwrite: resolve again what is up to date. debug: raise
    what nobody foresaw as it is.
    """

    dtype: Output = "input"
    axis: int | None = None
    series: bool = False
    overwrite: bool = False
    debug: bool = False


@dataclass(frozen=True)
class Request:
    """All that decides what an SR scan's voxels are. Resuming compares it, field by field."""

    input_sha256: str
    model_sha256: str
    precision: str
    options: dict[str, Any]
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


@dataclass(frozen=True)
class Loaded:
    """A scan that has been read and looked through, and waits for the network.

    start: when reading began; seconds: it took.
    """

    job: Job
    request: Request
    scan: Scan
    header: Header
    looks: list[Look]
    start: float
    seconds: float


@dataclass(frozen=True)
class Resolved:
    """A scan that waits to be written."""

    loaded: Loaded
    draft: Draft | DicomDraft
    timings: Timings


def run_all(
    jobs: Sequence[Job],
    resolve: SuperResolver,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Generator[Outcome]:
    """Resolve every job in order and note each outcome; one failure does not stop the others.

    progress(done, all) counts windows of the scan in hand. Closing the generator, or an interruption,
    finishes the scan being written and drops the one with the network.
    """
    settings = settings or Settings()

    def decode() -> Iterator[Loaded | Outcome]:
        for job in jobs:
            yield _guarded(job, settings, lambda job=job: _load(job, resolve, settings))

    with (
        ThreadPoolExecutor(1, "encode") as encoder,
        contextlib.closing(ahead(decode(), "decode")) as decoded,
    ):
        behind: Future[Outcome] | None = None
        for item in decoded:
            if behind and isinstance(item, Loaded) and _nbytes(item.header) > LARGE:
                yield behind.result()
                behind = None
            step: Resolved | Outcome
            if isinstance(item, Loaded):
                step = _guarded(
                    item.job, settings, lambda item=item: _resolve(item, resolve, settings, progress)
                )
            else:
                step = item
            future = encoder.submit(_finish, step, resolve, settings)
            if behind:
                yield behind.result()
            behind = future
        if behind:
            yield behind.result()


def _load(job: Job, resolve: SuperResolver, settings: Settings) -> Loaded | Outcome:
    start = time.perf_counter()
    with span(resolve.trace, "decode", job.source.name):
        scan = job.open(settings.series)
        request = _request(job, resolve, settings)
        if not settings.overwrite and is_current(job, request):
            return Outcome(job, "kept", "up to date")
        header = resolve.header(scan, settings.dtype, settings.axis)
        if not job.draft(resolve).mapped:
            check_memory(scan.name, header)
        scan = scan.loaded()
        looks = resolve.look(scan, settings.axis)
    return Loaded(job, request, scan, header, looks, start, time.perf_counter() - start)


def _resolve(
    loaded: Loaded, resolve: SuperResolver, settings: Settings, progress: Progress | None
) -> Resolved:
    draft = loaded.job.draft(resolve)
    try:
        resolve.scan(loaded.scan, settings.dtype, settings.axis, progress, draft.room, loaded.looks)
    except BaseException:
        draft.discard()
        raise
    assert resolve.timings is not None
    return Resolved(loaded, draft, dataclasses.replace(resolve.timings, read=loaded.seconds))


def _finish(step: Resolved | Outcome, resolve: SuperResolver, settings: Settings) -> Outcome:
    """Write what there is to write, and note what became of the scan."""
    if isinstance(step, Outcome):
        outcome = step
    else:
        outcome = _guarded(step.loaded.job, settings, lambda: _write(step, resolve))
        step.draft.discard()
    try:
        note(outcome)
    except RunError as error:
        if outcome.status != "failed":
            outcome = dataclasses.replace(outcome, status="failed", message=str(error))
    return outcome


def _write(resolved: Resolved, resolve: SuperResolver) -> Outcome:
    loaded, job = resolved.loaded, resolved.loaded.job
    start = time.perf_counter()
    with span(resolve.trace, "encode", job.source.name):
        job.sidecar.unlink(missing_ok=True)  # it must not vouch for the new file before that is whole
        resolved.draft.commit()
        end = time.perf_counter()
        timings = dataclasses.replace(resolved.timings, write=end - start, total=end - loaded.start)
        write_json(job.sidecar, _sidecar(job, loaded.request, resolve, timings))
    coarse, fine = loaded.scan.shape, loaded.header.get_data_shape()
    size = " x ".join(map(str, coarse)) + " to " + " x ".join(map(str, fine))
    return Outcome(job, "written", size, timings)


def is_current(job: Job, request: Request) -> bool:
    """Whether the result is there, whole, and made just as requested."""
    made = read_json(job.sidecar).get("udean", {})
    wanted = json.loads(json.dumps(dataclasses.asdict(request)))
    return (
        isinstance(made, dict)
        and made.get("request") == wanted
        and made.get("output_sha256") is not None
        and made["output_sha256"] == job.result_digest()
    )


def _guarded(job: Job, settings: Settings, step: Callable[[], T]) -> T | Outcome:
    """A step's result, or its failure as an outcome."""
    try:
        return step()
    except RunError as error:
        return Outcome(job, "failed", str(error))
    except MemoryError:
        return Outcome(job, "failed", f"{job.source} does not fit into this machine's memory: crop the scan.")
    except Exception as error:
        if settings.debug:
            raise
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return Outcome(job, "failed", f"{job.source} failed unexpectedly ({text}): --debug shows where.")


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
    """Make the output folders, and remove what a killed run has left half-written there.

    Raises RunError where a folder cannot be made or written to.
    """
    for root in {job.root for job in jobs}:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"Cannot make the output folder {root}: {error.strerror}. Choose another with -o."
            ) from error
        if not os.access(root, os.W_OK | os.X_OK):
            raise RunError(f"The output folder {root} is not writable: choose another with -o.")
        if any(job.root == root and is_bids(job.target) for job in jobs) and not (root / DATASET).exists():
            write_json(root / DATASET, DESCRIPTION)
    names: dict[Path, set[str]] = collections.defaultdict(set)
    for job in jobs:
        names[job.target.parent] |= {job.target.name, job.sidecar.name}
    for folder, mine in names.items():
        sweep(folder, mine)


def _nbytes(header: Header) -> int:
    return math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize


def _request(job: Job, resolve: SuperResolver, settings: Settings) -> Request:
    options = dataclasses.asdict(resolve.options)
    return Request(
        input_sha256=job.digest(),
        model_sha256=resolve.engine.info.sha256,
        precision=resolve.engine.info.precision,
        options=options | {"window": options["window"] or resolve.card.window, "series": settings.series},
        slab_axis=settings.axis,
        dtype=settings.dtype,
    )


def _sidecar(job: Job, request: Request, resolve: SuperResolver, timings: Timings) -> dict[str, Any]:
    """What a BIDS derivative's sidecar holds, and all that is needed to make the scan again."""
    return {
        "Description": "Super-resolution by a trained network: " + resolve.card.intended_use,
        "Sources": [os.path.relpath(job.source, job.target.parent)],
        "SpatialReference": "orig",
        "udean": {
            "request": dataclasses.asdict(request),
            "output_sha256": job.result_digest(),
            "engine": dataclasses.asdict(resolve.engine.info),
            "model_card": dataclasses.asdict(resolve.card),
            "versions": {
                "udean": __version__,
                "python": platform.python_version(),
                "numpy": np.__version__,
                "nibabel": nib.__version__,
            },
            "timings": dataclasses.asdict(timings),
        },
    }
