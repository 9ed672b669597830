"""The command `udean-run`: super-resolution of scans, folders and patterns."""

from __future__ import annotations

import contextlib
import math
import signal
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from . import folder, jobs
from .command import sentences
from .cost import Estimator
from .dicom.jobs import Format
from .engines import Library, Precision
from .errors import RunError
from .report import NAME, write_report
from .resolver import Fallback, Output, SuperResolver
from .trace import Trace
from .windows import OVERLAP, Window

T = TypeVar("T")
INTERRUPTED = 130  # the shells' code for SIGINT
AXES = {"auto": None, "i": 0, "j": 1, "k": 2}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    scans: Annotated[
        list[str],
        typer.Argument(metavar="SCANS...", help="Files (.nii, .nii.gz, .mgz, DICOM), folders, patterns."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Output folder. (default: FOLDER-sr beside a folder, sr/ beside files)"
        ),
    ] = None,
    engine: Annotated[
        Path | None, typer.Option(help="Model: .plan, .onnx or a checkpoint. (default: the embedded model)")
    ] = None,
    library: Annotated[Library, typer.Option(help="What runs an .onnx.")] = "auto",
    device: Annotated[str, typer.Option(help="Where the network runs: auto, cpu, cuda or cuda:N.")] = "auto",
    fallback: Annotated[Fallback, typer.Option(help="What goes on where a GPU fails.")] = "none",
    precision: Annotated[Precision, typer.Option(help="Of the network's arithmetic.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Of the network. (default: all cores)")] = None,
    overlap: Annotated[
        str,
        typer.Option(
            help="Least share of a window in the next; or for rows, columns, slices: 0.25,0.25,0.5."
        ),
    ] = str(OVERLAP),
    window: Annotated[
        str | None,
        typer.Option(help="LR rows x columns, as 64x64, or plane. (default: the model's training window)"),
    ] = None,
    weighting: Annotated[
        str, typer.Option(help="Of overlapping windows: gaussian, hann, constant; or three, by commas.")
    ] = "gaussian",
    crop: Annotated[
        bool, typer.Option("--crop/--no-crop", help="Leave out constant background around the content.")
    ] = True,
    slab_axis: Annotated[
        Literal["auto", "i", "j", "k"], typer.Option(help="Voxel axis across the slices; auto: the coarsest.")
    ] = "auto",
    dtype: Annotated[Output, typer.Option(help="Of the SR scan's voxels.")] = "input",
    form: Annotated[Format, typer.Option("--format", help="Of DICOM series' results.")] = "dicom",
    series: Annotated[
        bool, typer.Option("--series", help="Resolve 4-D time series too, volume by volume.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Resolve again what is up to date.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write udean-report.html, with pictures, into the output folder.")
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Write when each stage was at work, for ui.perfetto.dev."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Restore high-resolution scans from low-resolution ones. Research only, not for diagnosis."""
    found = jobs.find_scans(scans, out, form)
    weightings: Any = _per_axis(weighting, str, "weighting")  # judged with the plan
    trace = Trace() if profile else None
    if trace and profile:
        trace.write(profile)  # a place that cannot be written to is refused now, not after the last scan
    resolve = SuperResolver(
        engine,
        device,
        precision,
        _per_axis(overlap, float, "overlap"),
        _window(window),
        weightings,
        threads,
        library,
        crop,
        fallback,
        trace,
    )
    print(f"Model {resolve.describe()}", flush=True)
    settings = folder.Settings(dtype, AXES[slab_axis], series, overwrite, debug)
    if dry_run:
        raise typer.Exit(_describe(found, resolve, settings, Estimator(resolve, engine)))
    folder.prepare(found)

    counts: Counter[str] = Counter()
    done: list[folder.Outcome] = []
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        overall = bar.add_task("scans", total=len(found))
        current = bar.add_task("windows", total=None)

        started = 0

        def advance(done_windows: int, all_windows: int) -> None:
            nonlocal started
            if not started or done_windows <= bar.tasks[current].completed:
                started += 1  # the next scan, whose time left is its own
                bar.reset(current, total=all_windows)
            bar.update(current, completed=done_windows, total=all_windows)
            before = started - 1 + counts["kept"] + counts["failed"]
            bar.update(overall, completed=min(before + done_windows / all_windows, len(found)))

        outcomes = folder.run_all(found, resolve, settings, advance)
        try:
            with contextlib.closing(outcomes):
                for outcome in outcomes:
                    counts[outcome.status] += 1
                    done.append(outcome)
                    _tell(outcome)
        except KeyboardInterrupt:
            typer.echo(f"Interrupted: {_summary(counts)}. The same command goes on from here.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        finally:
            if trace and profile:
                trace.write(profile)
    if trace:
        print(f"Profile: {profile}: {trace.shares()}")
    if report:
        for root in {job.root: None for job in found}:
            page = root / NAME
            write_report(page, [o for o in done if o.job.root == root], resolve.card, series)
            print(f"Report: {page}")
    print(_summary(counts))
    raise typer.Exit(1 if counts["failed"] else 0)


def main() -> None:
    """Run the command: what the user can mend is one sentence; exit code 2 where nothing could start."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is as clean as Ctrl-C
    warnings.filterwarnings("ignore", module="pydicom")  # they quote values, which may be a patient's
    try:
        with sentences():
            app()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _tell(outcome: folder.Outcome) -> None:
    job, times = outcome.job, outcome.timings
    if outcome.status == "failed":
        typer.echo(f"Failed: {outcome.message}", err=True)
        return
    took = ""
    if times:
        took = (
            f", {times.total:.1f} s (network {times.network:.1f} s, "
            f"{times.computed} of {times.windows} windows computed)"
        )
    print(f"{job.source} -> {job.target}: {outcome.message}{took}", flush=True)


def _describe(
    found: list[jobs.Job], resolve: SuperResolver, settings: folder.Settings, estimate: Estimator
) -> int:
    """Print what each scan would become and cost; returns the exit code."""
    failed = False
    seconds = 0.0
    for job in found:
        try:
            scan = job.open(settings.series)
            header = resolve.header(scan, settings.dtype, settings.axis)
        except RunError as error:
            failed = True
            typer.echo(f"Would fail: {error}", err=True)
            continue
        across, _, plan = resolve.layout(scan, settings.axis)
        shape = header.get_data_shape()
        voxels = math.prod(scan.shape) * scan.volumes
        cost = estimate(
            plan,
            scan.volumes,
            voxels * scan.dtype.itemsize,
            math.prod(shape) * header.get_data_dtype().itemsize,
        )
        seconds += cost.seconds
        sizes = " x ".join(map(str, scan.shape)) + " to " + " x ".join(map(str, shape))
        print(f"{job.source} -> {job.target}: {sizes}, slices along {'ijk'[across]}, {cost}")
    print(f"{len(found)} scans, at most {seconds:.0f} s")
    return 1 if failed else 0


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


def _window(text: str | None) -> Window:
    """ "64x48" as (64, 48)."""
    if text is None or text == "plane":
        return text
    try:
        rows, columns = map(int, text.lower().split("x"))
    except ValueError:
        raise RunError(f"The window '{text}' is not of the form 64x64, nor 'plane'.") from None
    return rows, columns


def _summary(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[status]} {status}" for status in ("written", "kept", "failed"))


if __name__ == "__main__":
    main()
