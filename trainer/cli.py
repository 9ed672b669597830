"""The commands `udean-train` and `udean-simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Entries = Annotated[list[str] | None, typer.Option(help="Scans: a file, a folder or a glob; repeatable.")]


def _train(
    source: Entries = None,
    target: Entries = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("run"),
    preset: Annotated[str, typer.Option(help="paper or compact.")] = "paper",
    config: Annotated[Path | None, typer.Option(help="TOML file over the preset.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the schedule.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initialisation and patches.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT/checkpoint.pt.")] = False,
) -> None:
    """Learn super-resolution from HR scans (--source) and unpaired LR scans (--target)."""
    from .config import load
    from .fit import fit

    options: dict[str, Any] = {
        "data": {"source": source, "target": target},
        "schedule": {"steps": steps, "seed": seed},
    }
    resolved = load(preset, config, options)
    out.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[losses]}"), console=Console(stderr=True)) as progress:
        task = progress.add_task("Training", total=resolved.schedule.steps, losses="")
        shown = ""

        def report(step: int, values: dict[str, float]) -> None:
            nonlocal shown
            if "validation_psnr" in values:
                shown = f"PSNR {values['validation_psnr']:.2f} dB"
            progress.update(task, completed=step, losses=f"cycle {values['image_cycle']:.4f} {shown}")

        final = fit(resolved, out, resume, report)
    print(f"Deploy with: udean-export {final}")


def train() -> None:
    typer.run(_train)
