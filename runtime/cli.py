"""The command `udean-run`: super-resolution of scans, folders and patterns."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from . import folder
from .engines import Library, Precision
from .errors import RunError
from .resolver import Output, SuperResolver
from .volume import open_scan
from .windows import OVERLAP, Weighting

INTERRUPTED = 130  # the shells' code for SIGINT
AXES = {"auto": None, "i": 0, "j": 1, "k": 2}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    scans: Annotated[list[str], typer.Argument(metavar="SCANS...", help="NIfTI files, folders or patterns.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Output folder. (default: FOLDER-sr beside a folder, sr/ beside files)"
        ),
    ] = None,
    engine: Annotated[
        Path | None, typer.Option(help="Model: .onnx or a checkpoint. (default: the embedded model)")
    ] = None,
    library: Annotated[Library, typer.Option(help="What runs an .onnx.")] = "auto",
    device: Annotated[Literal["auto", "cpu"], typer.Option(help="Where the network runs.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Of the network's arithmetic.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Of the network. (default: all cores)")] = None,
    overlap: Annotated[float, typer.Option(help="Least fraction that neighbouring windows share.")] = OVERLAP,
    window: Annotated[
        str | None, typer.Option(help="LR rows x columns, as 64x64. (default: the model's training window)")
    ] = None,
    weighting: Annotated[Weighting, typer.Option(help="Of overlapping windows.")] = "gaussian",
    slab_axis: Annotated[
        Literal["auto", "i", "j", "k"], typer.Option(help="Voxel axis across the slices; auto: the coarsest.")
    ] = "auto",
    dtype: Annotated[Output, typer.Option(help="Of the SR scan's voxels.")] = "input",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Resolve again what is up to date.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Restore high-resolution scans from low-resolution ones. Research only, not for diagnosis."""
    jobs = folder.find_scans(scans, out)
    resolve = SuperResolver(engine, device, precision, overlap, _window(window), weighting, threads, library)
    print(f"Model {resolve.describe()}", flush=True)
    if dry_run:
        raise typer.Exit(_describe(jobs, resolve, AXES[slab_axis]))
    folder.prepare(jobs)

    counts: Counter[str] = Counter()
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        overall = bar.add_task("scans", total=len(jobs))
        current = bar.add_task("windows", total=None)
        outcomes = folder.run_all(
            jobs,
            debug=debug,
            resolve=resolve,
            dtype=dtype,
            axis=AXES[slab_axis],
            overwrite=overwrite,
            progress=lambda done, total: bar.update(current, completed=done, total=total),
        )
        try:
            for outcome in outcomes:
                counts[outcome.status] += 1
                _tell(outcome)
                bar.update(overall, advance=1)
        except KeyboardInterrupt:
            typer.echo(f"Interrupted: {_summary(counts)}. The same command goes on from here.", err=True)
            raise typer.Exit(INTERRUPTED) from None
    print(_summary(counts))
    raise typer.Exit(1 if counts["failed"] else 0)


def main() -> None:
    """Run the command: what the user can mend is one sentence; exit code 2 where nothing could start."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is as clean as Ctrl-C
    try:
        app()
    except RunError as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
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


def _describe(jobs: list[folder.Job], resolve: SuperResolver, axis: int | None) -> int:
    """Print each scan's plan; returns the exit code."""
    failed = False
    for job in jobs:
        try:
            scan = open_scan(job.source)
        except RunError as error:
            failed = True
            typer.echo(f"Would fail: {error}", err=True)
            continue
        across, factors, plan = resolve.layout(scan, axis)
        coarse = " x ".join(map(str, scan.shape))
        fine = " x ".join(str(n * f) for n, f in zip(scan.shape, factors, strict=True))
        print(
            f"{job.source} -> {job.target}: {coarse} to {fine}, "
            f"slices along {'ijk'[across]}, {len(plan)} windows"
        )
    return 1 if failed else 0


def _window(text: str | None) -> tuple[int, int] | None:
    """ "64x48" as (64, 48)."""
    if text is None:
        return None
    try:
        rows, columns = map(int, text.lower().split("x"))
    except ValueError:
        raise RunError(f"The window '{text}' is not of the form 64x64.") from None
    return rows, columns


def _summary(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[status]} {status}" for status in ("written", "kept", "failed"))


if __name__ == "__main__":
    main()
