"""The command `udean-run`: super-resolution of scans, folders and patterns."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from ..cluster import ADDRESS, Cluster
from ..dicom.jobs import Format
from ..errors import RunError
from ..job import Job
from ..pipeline.engine import Library, Precision
from ..pipeline.tiling import Window
from ..resolver import Fallback, Labels, Output, SuperResolver
from ..run.bids import Selection
from ..run.cost import Cost, Estimator
from ..run.find import find_scans
from ..run.manifest import Outcome, Shard
from ..run.run import Settings, guarded, prepare, run_all
from ..system import interruption
from ..system.files import read_json, real_path, refuse_foreign
from ..system.trace import Trace
from ..view.report import MARK, write_report
from . import options
from .common import INTERRUPTED, command, counted, sentences
from .progress import Board
from .streams import say

T = TypeVar("T")
AXES = {"auto": None, "i": 0, "j": 1, "k": 2}

NETWORK, WINDOWS, SCANS, BIDS, COHORT = "Network", "Windows", "Scans", "BIDS", "Cohort"  # panels of --help


def run(
    scans: Annotated[
        list[str],
        typer.Argument(help="Files (.nii, .nii.gz, .mgz, DICOM), folders, patterns."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Output folder. (default: FOLDER-sr beside a folder, sr/ beside files)"
        ),
    ] = None,
    engine: options.ModelOption = None,
    device: options.Device = "auto",
    best: options.Best = False,
    error_map: options.ErrorMap = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also resolve scans whose results are up to date.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write udean-report.html, with pictures, into the output folder.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    debug: options.Debug = False,
    library: Annotated[
        Library, typer.Option(help="Library that runs an .onnx.", rich_help_panel=NETWORK)
    ] = "auto",
    precision: Annotated[
        Precision, typer.Option(help="Numerical precision of inference.", rich_help_panel=NETWORK)
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads for inference. (default: all cores)", rich_help_panel=NETWORK),
    ] = None,
    fallback: Annotated[
        Fallback, typer.Option(help="What continues if a GPU fails.", rich_help_panel=NETWORK)
    ] = "none",
    window: Annotated[
        str,
        typer.Option(
            help="LR rows x columns, as 64x64, or plane; auto: planes, as far as memory allows.",
            rich_help_panel=WINDOWS,
        ),
    ] = "auto",
    overlap: Annotated[
        str | None,
        typer.Option(
            help="Least overlap, as a share of a window; or for rows, columns, slices: 0.25,0.25,0.5. "
            "(default: the model's)",
            rich_help_panel=WINDOWS,
        ),
    ] = None,
    weighting: Annotated[
        str,
        typer.Option(
            help="Weighting of overlapping windows: gaussian, hann, constant; or three, by commas.",
            rich_help_panel=WINDOWS,
        ),
    ] = "gaussian",
    crop: Annotated[
        bool,
        typer.Option(
            "--crop/--no-crop",
            help="Leave out constant background around the content.",
            rich_help_panel=WINDOWS,
        ),
    ] = True,
    consistency: options.ConsistencyOption = "auto",
    slab_axis: Annotated[
        Literal["auto", "i", "j", "k"],
        typer.Option(
            help="Voxel axis across the slices; auto: the odd one out, else the coarsest, else foot to head.",
            rich_help_panel=SCANS,
        ),
    ] = "auto",
    to: Annotated[
        str | None,
        typer.Option(
            metavar="SPACING",
            help="Voxel size wanted: 1mm, 1x1x2mm, or iso for the scan's smallest. Thick slices then "
            "go through the through-plane model. (default: the model's own factors)",
            rich_help_panel=SCANS,
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Refuse scans outside the model's range instead of only warning.",
            rich_help_panel=SCANS,
        ),
    ] = False,
    labels: Annotated[
        Labels,
        typer.Option(
            help="What becomes of label maps and masks: left, or brought to the grid of a scan of their size "
            "by nearest neighbours.",
            rich_help_panel=SCANS,
        ),
    ] = "leave",
    series: Annotated[
        bool,
        typer.Option(
            "--series", help="Resolve 4-D time series too, volume by volume.", rich_help_panel=SCANS
        ),
    ] = False,
    dtype: Annotated[Output, typer.Option(help="Data type of the SR scan.", rich_help_panel=SCANS)] = "input",
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="Format of DICOM series' results; enhanced: one multi-frame file for each multi-frame scan.",
            rich_help_panel=SCANS,
        ),
    ] = "dicom",
    participants: Annotated[
        list[str] | None,
        typer.Option(
            "--participant-label",
            help="Only these participants, 01 or sub-01, separated by commas.",
            rich_help_panel=BIDS,
        ),
    ] = None,
    sessions: Annotated[
        list[str] | None,
        typer.Option(
            "--session-label", help="Only these sessions, separated by commas.", rich_help_panel=BIDS
        ),
    ] = None,
    suffixes: Annotated[
        list[str] | None,
        typer.Option(
            "--suffix",
            help="Only these suffixes, such as T1w. (default: anatomical images)",
            rich_help_panel=BIDS,
        ),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Use Ray, over this machine: a worker for each GPU, or for --threads cores.",
            rich_help_panel=COHORT,
        ),
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Use Ray, over a cluster: HOST:PORT, or auto for the one that runs here.",
            rich_help_panel=COHORT,
        ),
    ] = None,
    num_shards: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of runs that share the scans; this is one of them.", rich_help_panel=COHORT
        ),
    ] = None,
    shard: Annotated[
        int | None,
        typer.Option(
            min=0, help="Number of this run, from 0; all share the output folder.", rich_help_panel=COHORT
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Record when each stage was active, for ui.perfetto.dev.",
            rich_help_panel=COHORT,
        ),
    ] = None,
) -> None:
    """Restore high-resolution scans from low-resolution ones. Research only, not for diagnosis."""
    if (shard is None) != (num_shards is None):
        raise RunError("A share of the scans needs both --num-shards and --shard, which counts from 0.")
    ray = ray or ray_address is not None
    if ray_address is not None and not ADDRESS.fullmatch(ray_address):
        raise RunError(f"--ray-address takes HOST:PORT or auto, not '{ray_address}'.")
    for text in scans if ray else ():
        if ADDRESS.fullmatch(text) and not os.path.lexists(text):
            raise RunError(f"--ray takes no address, and there is no scan {text}: give --ray-address {text}.")
    if ray and profile:
        raise RunError("--profile records only one process: leave out --ray.")
    share = Shard(shard or 0, num_shards or 1)
    select = Selection(_labels(participants), _labels(sessions), _labels(suffixes))
    every = find_scans(scans, out, form, select)
    found = share.of(every)
    weightings: Any = _per_axis(weighting, str, "weighting")  # judged with the plan
    trace = Trace() if profile else None
    if trace and profile:
        _check_profile(profile, every)
        if not dry_run:
            trace.write(profile)  # a place that cannot be written to is refused now, not after the last scan
    pages = {root: root / f"udean-report{share.suffix}.html" for root in {job.root: None for job in found}}
    for page in pages.values() if report else ():
        refuse_foreign(page, MARK)  # now, not after the last scan
    make = functools.partial(
        SuperResolver,
        engine=engine,
        device=device,
        precision=precision,
        overlap=None if overlap is None else _per_axis(overlap, float, "overlap"),
        window=_window(window),
        weighting=weightings,
        threads=threads,
        library=library,
        crop=crop,
        fallback=fallback,
        trace=trace,
        consistency=options.consistency(consistency),
        to=to,
        strict=strict,
        best=best,
        error_map=error_map,
        labels=labels,
    )
    settings = Settings(dtype, AXES[slab_axis], series, overwrite, debug)
    if dry_run:
        resolve = make()
        print(f"Model {resolve.describe()}", flush=True)
        raise typer.Exit(_describe(found, resolve, settings, Estimator(resolve, engine)))
    board = Board(len(found))
    with contextlib.ExitStack() as opened:
        if ray:
            resolve = opened.enter_context(Cluster(make, ray_address))
            work = resolve.run_all
        else:
            resolve = make()
            work = functools.partial(run_all, resolve=resolve, progress=board.advance)
        print(f"Model {resolve.describe()}", flush=True)
        prepare(every)
        outcomes = work(every, settings=settings, shard=share, noted=board.count)
        opened.enter_context(contextlib.closing(outcomes))
        try:
            with board:
                for outcome in outcomes:
                    board.add(outcome)
        except KeyboardInterrupt:
            outcomes.close()
            typer.echo(f"Interrupted: {board.summary()}. The same command continues from here.", err=True)
            raise SystemExit(INTERRUPTED) from None
        finally:
            if trace and profile:
                trace.write(profile)
    if trace:
        say(f"Profile: {profile}: {trace.shares()}")
    if report:
        for root, page in pages.items():
            write_report(page, [o for o in board.done if o.job.root == root], resolve.card, series)
            say(f"Report: {page}")
    if len(board.done) < len(found):
        left = counted(len(found) - len(board.done), "scan")
        typer.echo(f"Stopped, {left} left: make room; the same command continues from here.", err=True)
    print(board.summary())
    raise typer.Exit(1 if board.counts["failed"] else 0)


COMMAND = command(
    run,
    "udean-run",
    "udean-run scans/  # results in scans-sr/",
    "udean-run scan.nii.gz -o results/ --report",
    "udean-run bids/ --participant-label 01,02 --engine sr.onnx",
    "udean-run scans/ --dry-run  # what it would do and take",
    note="udean-status OUT shows the progress of an output folder's runs.",
)


def main() -> None:
    """Restore high-resolution scans from low-resolution ones."""
    with interruption.ending(), sentences():
        prepare_process()
        COMMAND()


def prepare_process() -> None:
    """Prepare a process that runs `run`."""
    interruption.remember()
    warnings.filterwarnings("ignore", module="pydicom")  # they quote values, which may be a patient's


def _labels(values: list[str] | None) -> tuple[str, ...]:
    """ "01,02" and "03" as three."""
    return tuple(label for value in values or [] for label in value.replace(",", " ").split())


def _check_profile(path: Path, every: list[Job]) -> None:
    """Raise RunError if a profile would replace anything but a profile, now or later."""
    other = os.path.lexists(path) and "traceEvents" not in read_json(path)
    if path.suffix.lower() != ".json" or other or real_path(path) in {real_path(j.sidecar) for j in every}:
        raise RunError(f"--profile takes a file of its own that ends in .json, not {path}.")


def _describe(found: list[Job], resolve: SuperResolver, settings: Settings, estimate: Estimator) -> int:
    """Print what each scan would become and cost; returns the exit code."""
    failed = False
    seconds = 0.0
    for job in found:
        told = guarded(job, settings, functools.partial(_told, job, resolve, settings, estimate))
        if isinstance(told, Outcome):
            failed = True
            say(f"Would fail: {told.message}", error=True)
            continue
        text, cost = told
        seconds += cost.seconds
        say(f"{job.source} -> {job.target}: {text}, {cost}")
    print(f"{counted(len(found), 'scan')}, at most {seconds:.0f} s")
    return 1 if failed else 0


def _told(job: Job, resolve: SuperResolver, settings: Settings, estimate: Estimator) -> tuple[str, Cost]:
    """Describe the result that a scan would have, and its cost."""
    stages = resolve.scans
    scan = stages.prepared(job.open(settings.series))
    header = stages.header(scan, settings.dtype, settings.axis)
    turn, _, plan = stages.layout(scan, settings.axis)
    shape = header.get_data_shape()
    coarse = math.prod(scan.shape) * scan.volumes * scan.dtype.itemsize
    plans = resolve.stages.tilings(plan.shape) if stages.choice(scan, settings.axis).best else [plan]
    cost = estimate(plans, scan.volumes, coarse, math.prod(shape) * header.get_data_dtype().itemsize)
    sizes = " x ".join(map(str, scan.shape)) + " to " + " x ".join(map(str, shape))
    if scan.labels:
        return f"{sizes}, {scan.labels}, by nearest neighbours", Cost(0, 0, cost.nbytes, 0.0)
    return f"{sizes}, slices along {'ijk'[turn.axis]}", cost


def _per_axis(text: str, kind: Callable[[str], T], what: str) -> T | tuple[T, T, T]:
    """ "0.25" as 0.25, "0.25,0.25,0.5" as a triple of (rows, columns, slices)."""
    try:
        values = [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) == 3:
        return values[0], values[1], values[2]
    if len(values) != 1:
        raise RunError(f"The {what} '{text}' is neither one value nor three, separated by commas.")
    return values[0]


def _window(text: str) -> Window:
    """ "64x48" as (64, 48)."""
    if text == "plane" or text == "auto":
        return text
    try:
        rows, columns = map(int, text.lower().split("x"))
    except ValueError:
        raise RunError(f"The window '{text}' is not of the form 64x64, nor plane or auto.") from None
    return rows, columns


if __name__ == "__main__":
    main()
