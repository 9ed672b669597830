"""Many scans, one warm engine: decoding, network and encoding overlap; each scan is whole or named as failed.

While the network resolves a scan, the next one is read in a thread of its own and the one before it is
written in another. Each SR scan has a sidecar that says how it was made; a scan whose sidecar asks for the
same again is kept, whatever else happened to the run.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..cuda.engine import CudaEngine
from ..errors import RunError, first_line
from ..job import Job, Stamp
from ..pipeline.engine import Engine
from ..pipeline.through_plane import Findings
from ..resolver import Look, Output, Progress, SuperResolver, Timings
from ..scan.model_choice import Choice
from ..scan.nifti import Header
from ..scan.output import Draft, FileDraft, check_memory
from ..scan.profile import FWHM
from ..scan.scan import Scan, tell_remarks
from ..system import interruption
from ..system.files import make_folder, sweep
from ..system.memory import lacks_memory, limit
from ..system.threads import ahead
from ..system.trace import span
from . import bids
from .manifest import Fingerprint, Known, Manifest, Noted, Outcome, Shard, failure
from .sidecar import (
    Request,
    Sidecar,
    error_map_sidecar,
    remove_sidecar,
    write_error_map_sidecar,
    write_sidecar,
)

__all__ = ["Outcome", "Settings", "prepare", "run_all"]

LARGE = 1 << 30  # bytes of an SR volume, of which only one is held at a time
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors that will affect the next scan too
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How scans are treated. axis: voxel axis across the slices, None for the coarsest.

    series: resolve 4-D scans volume by volume. overwrite: resolve again what is up to date. debug: re-raise
    unexpected exceptions instead of reporting them as failures.
    """

    dtype: Output = "input"
    axis: int | None = None
    series: bool = False
    overwrite: bool = False
    debug: bool = False


@dataclass(frozen=True)
class Loaded:
    """A scan that has been read and examined, and waits for the network.

    engine: that restores it. stamp: of the file that was read. start: when reading began; seconds: it took.
    """

    job: Job
    request: Request
    stamp: Stamp
    scan: Scan
    header: Header
    looks: list[Look]
    choice: Choice
    engine: Engine | CudaEngine
    start: float
    seconds: float


@dataclass(frozen=True)
class Resolved:
    """A scan that waits to be written. errors: the map of its expected errors. estimates: what thick slices
    have told, volume by volume."""

    loaded: Loaded
    draft: Draft
    errors: FileDraft | None
    timings: Timings
    estimates: list[Findings]


def run_all(
    jobs: Sequence[Job],
    resolve: SuperResolver,
    settings: Settings | None = None,
    progress: Progress | None = None,
    shard: Shard | None = None,
    noted: Noted | None = None,
) -> Generator[Outcome]:
    """Resolve every job of the shard in order and note each outcome; one failure does not stop the others.

    Parameters
    ----------
    jobs
        The scans, see `find.find_scans`; `prepare` has made their output folders.
    resolve
        The network.
    settings
        How scans are treated.
    progress
        progress(done, all) counts windows of the current scan.
    shard
        The share of the jobs to do; default: all.
    noted
        Called with each outcome once it is in the manifest.

    Yields
    ------
    Outcome
        In order. An output folder that accepts no more files ends the run: that failure is the last outcome.
        Closing the generator, or an interruption, finishes the scan being written and drops the one in the
        network; only `noted` hears of the former.

    Raises
    ------
    RunError
        If another run works on these scans.
    """
    settings = settings or Settings()

    def ahead_of_network(manifest: Manifest) -> Iterator[Loaded | Outcome]:
        for job in manifest.jobs:
            yield decode(job, resolve, settings, manifest.known(job))

    with (
        Manifest(jobs, shard, noted) as manifest,
        ThreadPoolExecutor(1, "encode") as encoder,
        contextlib.closing(ahead(ahead_of_network(manifest), "decode")) as decoded,
    ):

        def finish(step: Resolved | Outcome) -> Outcome:
            return manifest.note(encode(step, resolve, settings))

        behind: Future[Outcome] | None = None
        for item in decoded:
            if behind and is_large(item):
                yield (outcome := behind.result())
                behind = None
                if is_final(outcome):
                    return
            future = encoder.submit(finish, restore(item, resolve, settings, progress))
            if behind:
                yield (outcome := behind.result())
                if is_final(outcome):
                    yield future.result()
                    return
            behind = future
        if behind:
            yield behind.result()


def decode(
    job: Job, resolve: SuperResolver, settings: Settings, known: Known | None = None
) -> Loaded | Outcome:
    """Read a scan and look through it, unless its result is up to date."""
    return guarded(job, settings, lambda: _load(job, resolve, settings, known or Known()))


def restore(
    item: Loaded | Outcome, resolve: SuperResolver, settings: Settings, progress: Progress | None = None
) -> Resolved | Outcome:
    """Send a scan through the network. A BaseException that progress raises, but no Exception, ends it."""
    interruption.check()
    if isinstance(item, Outcome):
        return item
    step = guarded(item.job, settings, lambda: _resolve(item, resolve, settings, progress))
    if isinstance(step, Outcome):
        interruption.check()  # a library may have made the failure of one
    return step


def encode(step: Resolved | Outcome, resolve: SuperResolver, settings: Settings) -> Outcome:
    """Write an SR scan and its sidecar."""
    if isinstance(step, Outcome):
        return step
    try:
        return guarded(step.loaded.job, settings, lambda: _write(step, resolve))
    finally:
        step.draft.discard()
        if step.errors:
            step.errors.discard()


def is_large(item: Loaded | Outcome) -> bool:
    """Whether its SR volume must be the only one in memory."""
    return isinstance(item, Loaded) and _nbytes(item.header) > LARGE


def is_final(outcome: Outcome) -> bool:
    """Whether no further scan can be written either, for the same reason."""
    return outcome.error in NO_ROOM


def _load(job: Job, resolve: SuperResolver, settings: Settings, known: Known) -> Loaded | Outcome:
    start = time.perf_counter()
    with span(resolve.trace, "decode", job.source.name):
        before, after = job.stamps()
        if known.aside and not settings.overwrite and known.input == Fingerprint(before, ""):
            return Outcome(job, "failed", known.aside, input=known.input, aside=True)
        scan = tell_remarks(job.open(settings.series))
        digest = _digest(before, known.input) or job.digest()
        stages = resolve.scans
        choice, engine = stages.choice(scan, settings.axis), stages.model(scan, settings.axis)
        request = Request.of(digest, resolve, engine.info, settings.dtype, settings.axis, settings.series)
        there = Sidecar.read(job.sidecar)
        made = None if settings.overwrite or there.lacks_error_map(job.target) else there.output_of(request)
        if made and made == (_digest(after, known.output) or job.result_digest()):
            there.renew(job)
            return Outcome(
                job, "kept", "up to date", None, Fingerprint(before, digest), Fingerprint(after, made)
            )
        if known.foreign:
            place = job.target if os.path.lexists(job.target) else job.sidecar
            raise RunError(
                f"{place} already exists and is not a result of udean: move it, or choose another folder "
                "with -o."
            )
        if resolve.options.error_map and choice.best:
            _check_error_map(job)
        if not settings.overwrite and (other := there.other_source(job)):
            raise RunError(
                f"{job.target} would replace the result of {other}, for {job.source}: choose another folder "
                "with -o, or --overwrite."
            )
        scan = stages.prepared(scan)
        choice = stages.choice(scan, settings.axis)
        header = stages.header(scan, settings.dtype, settings.axis)
        if not job.draft(resolve.card, resolve.engine.info.sha256).mapped:
            check_memory(scan.name, header)
        scan = scan.loaded()
        looks = stages.look(scan, settings.axis)
    return Loaded(
        job, request, before, scan, header, looks, choice, engine, start, time.perf_counter() - start
    )


def _check_error_map(job: Job) -> None:
    """Raise RunError if the map of a result's expected errors cannot be written beside it."""
    if job.error_map is None:
        raise RunError(
            f"{job.source} becomes a DICOM series, which gets no map of expected errors: add --format nifti, "
            "or leave out --error-map."
        )
    beside = error_map_sidecar(job.error_map)
    foreign = [place for place in (job.error_map, beside.path) if os.path.lexists(place)]
    if foreign and not beside.is_ours:
        raise RunError(
            f"{foreign[0]} already exists and is not a result of udean: move it, or choose another "
            "folder with -o."
        )


def _resolve(
    loaded: Loaded, resolve: SuperResolver, settings: Settings, progress: Progress | None
) -> Resolved:
    draft = loaded.job.draft(loaded.engine.card, loaded.engine.info.sha256)
    place = loaded.job.error_map if resolve.options.error_map and loaded.choice.best else None
    errors = FileDraft(place) if place else None
    try:
        resolve.scan(
            loaded.scan,
            settings.dtype,
            settings.axis,
            progress,
            draft.room,
            loaded.looks,
            errors.room if errors else None,
        )
    except BaseException:
        draft.discard()
        if errors:
            errors.discard()
        raise
    assert resolve.timings is not None
    timings = dataclasses.replace(resolve.timings, read=loaded.seconds)
    return Resolved(loaded, draft, errors, timings, resolve.slice_estimates)


def _write(resolved: Resolved, resolve: SuperResolver) -> Outcome:
    loaded, job = resolved.loaded, resolved.loaded.job
    start = time.perf_counter()
    now = job.stamps()[0]
    if now and loaded.stamp and now[:2] != loaded.stamp[:2]:
        raise RunError(
            f"{job.source} changed while it was restored, so it may not have been whole: run again once it "
            "is written."
        )
    with span(resolve.trace, "encode", job.source.name):
        remove_sidecar(job)
        if resolved.errors:
            resolved.errors.commit()
        resolved.draft.commit()
        end = time.perf_counter()
        timings = dataclasses.replace(resolved.timings, write=end - start, total=end - loaded.start)
        stamp = job.stamps()[1]
        digest = job.result_digest()
        choice, scan = loaded.choice, loaded.scan
        held = [] if resolved.estimates else resolve.stages.holding.record(scan, loaded.looks)
        told: dict[str, Any] = {
            "measured_band": [dataclasses.asdict(band) for band in held] or resolve.stages.holding.why_not
        }
        if scan.labels:
            told = {"labels": f"{scan.labels}, resampled by nearest neighbours"}
        if choice.best:
            told["mean"] = "over slabs along each of three axes"
        if resolved.errors:
            told |= write_error_map_sidecar(resolved.errors.path, job, loaded.engine.card)
        if choice.warnings:
            told["warnings"] = list(choice.warnings)
        if resolved.estimates:
            if resolve.options.consistency != "off":
                told["measured_band"] = "of thick slices: see slices"
            told["slices"] = [_slices(found, choice, scan) for found in resolved.estimates]
        write_sidecar(job, loaded.request, digest, loaded.engine, timings, choice.asked, told)
    coarse, fine = loaded.scan.shape, loaded.header.get_data_shape()
    size = " x ".join(map(str, coarse)) + " to " + " x ".join(map(str, fine))
    if scan.labels:
        size += f", {told['labels']}"
    if choice.best:
        size += ", mean over three slab axes"
    if resolved.errors:
        size += f", expected errors in {resolved.errors.path.name}"
    if held:
        size += f", {held[0]}"
    if choice.warnings:
        size += f" (warning: {'; '.join(choice.warnings)})"
    traces = Fingerprint(loaded.stamp, loaded.request.input_sha256), Fingerprint(stamp, str(digest))
    return Outcome(job, "written", size, timings, *traces)


def _digest(stamp: Stamp, known: Fingerprint | None) -> str | None:
    """The digest of a file if it has not changed since it was last read, else None."""
    return known.sha256 if known and stamp and known.stamp == stamp else None


def guarded(job: Job, settings: Settings, step: Callable[[], T]) -> T | Outcome:
    """A step's result, or its failure as an outcome."""
    try:
        return step()
    except RunError as error:
        return failure(job, error)
    except Exception as error:
        if lacks_memory(error):
            said = f"{job.source} does not fit into this machine's memory{limit()}: crop the scan."
            return Outcome(job, "failed", said)
        if settings.debug:
            raise
        text = first_line(error)
        what = type(error).__name__ if text == type(error).__name__ else f"{type(error).__name__}: {text}"
        return Outcome(job, "failed", f"{job.source} failed unexpectedly ({what}): --debug shows where.")


def prepare(jobs: Sequence[Job]) -> None:
    """Make the output folders, and remove unfinished files of killed runs.

    Parameters
    ----------
    jobs
        All scans of the run.

    Raises
    ------
    RunError
        If a folder cannot be made or written to.
    """
    for root in {job.root for job in jobs}:
        make_folder(root)
        datasets = {job.dataset for job in jobs if job.root == root and job.dataset}
        if datasets:
            bids.describe_dataset(root, datasets)
    names: dict[Path, set[str]] = collections.defaultdict(set)
    for job in jobs:
        names[job.target.parent] |= job.written
    for folder, mine in names.items():
        sweep(folder, mine)


def _nbytes(header: Header) -> int:
    return math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize


def _slices(found: Findings, choice: Choice, scan: Scan) -> dict[str, Any]:
    """The estimates for a thick-slice volume, in millimetres."""
    spacing = scan.zooms[choice.axis]
    told = {"across": "ijk"[choice.axis], "spacing_mm": round(spacing, 6)}
    told |= {"gain": round(found.gain, 4), "texture": round(found.texture, 4)}
    told |= {name: list(n) for name, n in (("empty", found.empty), ("odd", found.odd)) if n}
    if found.continuity < 1:
        told["continuity"] = round(found.continuity, 4)
    if found.deviation is None:
        return told | {"profile": "not told by the scan: taken for a box with gaps"}
    return told | {
        "profile_fwhm_mm": round(found.deviation * spacing * float(FWHM), 3),
        "profile": "estimated",
    }
