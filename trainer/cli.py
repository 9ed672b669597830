"""The commands `udean-simulate`, `udean-train` and `udean-eval`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, track
from rich.table import Table

from ..runtime.errors import RunError

Entries = Annotated[list[str] | None, typer.Option(help="Scans: a file, a folder or a glob; repeatable.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback for errors.")]
COLUMNS = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
STDERR = Console(stderr=True)


def train() -> None:
    typer.run(_train)


def simulate() -> None:
    typer.run(_simulate)


def evaluate() -> None:
    typer.run(_evaluate)


def _train(
    source: Entries = None,
    target: Entries = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("run"),
    preset: Annotated[str, typer.Option(help="paper or compact.")] = "paper",
    config: Annotated[Path | None, typer.Option(help="TOML file over the preset.")] = None,
    scale: Annotated[str | None, typer.Option(help="Factors by row, column, slice, such as 2x2x2.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the schedule.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initialisation and patches.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT/checkpoint.pt.")] = False,
    debug: Debug = False,
) -> None:
    """Learn super-resolution from HR scans (--source) and unpaired LR scans (--target)."""

    def work() -> None:
        from .config import load
        from .fit import fit

        options: dict[str, Any] = {
            "data": {"source": source, "target": target},
            "network": {"scale": parse_scale(scale) if scale else None},
            "schedule": {"steps": steps, "seed": seed},
        }
        resolved = load(preset, config, options)
        with Progress(*COLUMNS, TextColumn("{task.fields[losses]}"), console=STDERR) as progress:
            task = progress.add_task("Training", total=resolved.schedule.steps, losses="")
            shown = ""

            def report(step: int, values: dict[str, float]) -> None:
                nonlocal shown
                if "validation_psnr" in values:
                    shown = f"PSNR {values['validation_psnr']:.2f} dB"
                progress.update(task, completed=step, losses=f"cycle {values['image_cycle']:.4f} {shown}")

            final = fit(resolved, out, resume, report)
        print(f"Deploy it with: udean-export {final}")

    _guard(work, debug)


def _simulate(
    scans: Annotated[list[str], typer.Argument(help="HR scans: files, folders or globs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the LR scans.")],
    scale: Annotated[str, typer.Option(help="Factors by row, column, slice.")] = "2x2x2",
    noise: Annotated[float, typer.Option(help="Rician noise as a share of the 99.9th percentile.")] = 0.0,
    partial_fourier: Annotated[float, typer.Option(help="Share of k-space along columns.")] = 1.0,
    elliptical: Annotated[bool, typer.Option("--elliptical", help="Leave out k-space's corners.")] = False,
    slab_axis: Annotated[int | None, typer.Option(min=0, max=2, help="Axis across the slices.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    debug: Debug = False,
) -> None:
    """Make LR scans from HR ones by acquiring less of their k-space."""

    def work() -> None:
        from .cohort import find_scans
        from .kspace import Acquisition
        from .simulate import simulate as acquire_scan

        acquisition = Acquisition(parse_scale(scale), partial_fourier, elliptical, noise)
        found = find_scans(scans)
        if out.resolve() in {path.parent.resolve() for path in found}:
            raise RunError(f"{out} holds HR scans: give another folder with --out.")
        for path in track(found, "Acquiring", console=STDERR):
            acquire_scan(path, out, acquisition, seed, slab_axis)
        print(f"{len(found)} LR scans in {out}")

    _guard(work, debug)


def _evaluate(
    sr: Annotated[Path, typer.Option(help="Restored scans: a file or a folder.")],
    hr: Annotated[Path, typer.Option(help="The truth: a file or a folder, scans of the same names.")],
    json: Annotated[Path | None, typer.Option(help="Write the figures here too.")] = None,
    debug: Debug = False,
) -> None:
    """PSNR and SSIM (2-D per slice and 3-D) of restored scans, by scan and mean ± sd."""

    def work() -> None:
        from ..runtime.files import write_json
        from .evaluate import evaluate as measure

        summary = measure(sr, hr)
        table = Table("scan", "PSNR dB", "SSIM 3-D", "SSIM 2-D")
        for name, q in summary.scans.items():
            table.add_row(name, f"{q.psnr:.2f}", f"{q.ssim:.4f}", f"{q.ssim_2d:.4f}")
        m, sd = summary.mean, summary.sd
        table.add_section()
        table.add_row(
            "mean ± sd",
            f"{m.psnr:.2f} ± {sd.psnr:.2f}",
            f"{m.ssim:.4f} ± {sd.ssim:.4f}",
            f"{m.ssim_2d:.4f} ± {sd.ssim_2d:.4f}",
        )
        Console().print(table)
        if json:
            write_json(json, dataclasses.asdict(summary))

    _guard(work, debug)


def parse_scale(text: str) -> tuple[int, int, int]:
    """'2x2x1' as (2, 2, 1)."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise RunError(f"The scale '{text}' is not three factors such as 2x2x2.")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _guard(work: Callable[[], None], debug: bool) -> None:
    """Run a command; what its user can mend is one sentence and exit code 2."""
    try:
        work()
    except ImportError as error:
        if debug:
            raise
        STDERR.print(f"{error.name} is not installed: pip install 'udean[train]'", style="red", markup=False)
        raise typer.Exit(2) from None
    except (RunError, OSError) as error:
        if debug:
            raise
        STDERR.print(str(error), style="red", markup=False)
        raise typer.Exit(2) from None
