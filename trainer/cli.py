"""The commands `udean-simulate`, `udean-train` and `udean-eval`."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, track

from ..runtime.commands.common import command, counted
from ..runtime.commands.streams import say
from ..runtime.commands.tables import show_table
from ..runtime.errors import RunError
from ..runtime.system.files import real_path

Entries = Annotated[list[str] | None, typer.Option(help="Scans: a file, a folder or a glob; repeatable.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback for errors.")]
COLUMNS = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
STDERR = Console(stderr=True)


def _train(
    source: Entries = None,
    target: Entries = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("run"),
    method: Annotated[
        str | None, typer.Option(help="udean, parametric, supervised, zssr, cyclegan, dasr or pseudosr.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Begin as this checkpoint, with its network; default: the embedded model."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="paper or compact. (default: paper on a GPU, else compact)")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file whose settings override the preset's.")
    ] = None,
    scale: Annotated[str | None, typer.Option(help="Factors by row, column, slice, such as 2x2x2.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the schedule.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random seed of initialisation and patches.")
    ] = None,
    validation_hr: Annotated[list[str] | None, typer.Option(help="HR scans to watch the training.")] = None,
    validation_lr: Annotated[list[str] | None, typer.Option(help="LR scans of the same people.")] = None,
    pairing: Annotated[
        str | None,
        typer.Option(help="Source and target scans: unpaired (other people), misaligned or aligned."),
    ] = None,
    target_simulated: Annotated[
        bool | None, typer.Option("--target-simulated", help="Target scans are HR: degrade them first.")
    ] = None,
    misalign: Annotated[
        bool | None, typer.Option("--misalign", help="Move and shrink the source scans first.")
    ] = None,
    register: Annotated[
        bool | None, typer.Option("--register", help="Register the HR scans of pairs rigidly.")
    ] = None,
    bad_scans: Annotated[
        str | None, typer.Option(help="What to do with unusable scans: stop or skip.")
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            help="How best.pt is chosen: by truth (validation scans) or by consistency with the LR scans, "
            "which needs no truth. (default: truth for methods that learn from pairs, else consistency)"
        ),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, 32-true, bf16-mixed or 16-mixed.")] = None,
    devices: Annotated[int | None, typer.Option(help="GPUs (or CPU processes) on each node.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes, under Slurm.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that draw patches.")] = None,
    channels_last: Annotated[
        bool | None, typer.Option("--channels-last/--contiguous", help="Layout of images in memory.")
    ] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--eager", help="torch.compile the losses.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from OUT/checkpoint.pt, with OUT/config.toml.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Learn super-resolution from HR scans (--source) and unpaired LR scans (--target).

    Scans are files, folders, globs, lists (list.csv) or trees: bids:ROOT, hcp:ROOT, brats2020:ROOT.
    """
    options: dict[str, Any] = {
        "method": method,
        "init": init,
        "data": {
            "source": source,
            "target": target,
            "validation_hr": validation_hr,
            "validation_lr": validation_lr,
            "pairing": pairing,
            "target_simulated": target_simulated,
            "misalign": misalign,
            "register": register,
            "bad_scans": bad_scans,
        },
        "schedule": {"steps": steps, "seed": seed, "select": select, "precision": precision},
        "machine": {
            "devices": devices,
            "nodes": nodes,
            "workers": workers,
            "channels_last": channels_last,
            "compile": compile,
        },
    }

    from . import distributed
    from .config import load
    from .fit import fit, network_of, resolved

    if resume and not (out / "checkpoint.pt").exists():
        raise RunError(f"{out} holds no checkpoint.pt of a training that could be resumed: see --out.")
    options["network"] = network_of(init) if init else {}
    if scale:
        options["network"]["scale"] = parse_scale(scale)
    if resume and config is None and (out / "config.toml").exists():
        config = out / "config.toml"
    chosen = resolved(load(preset or _preset(config), config, options))
    progress = Progress(
        *COLUMNS, TextColumn("{task.fields[losses]}"), console=STDERR, disable=not STDERR.is_terminal
    )
    lines = Lines(f"Training in {chosen.schedule.precision}")
    task = progress.add_task(f"Training in {chosen.schedule.precision}", total=None, losses="")
    shown = ""

    def report(step: int, total: int, values: dict[str, float]) -> None:
        nonlocal shown
        progress.start()  # in the first process only: the others never report
        if "validation_psnr" in values:
            shown = f"PSNR {values['validation_psnr']:.2f} dB"
        name, value = next(iter(values.items()))
        progress.update(task, total=total, completed=step, losses=f"{name} {value:.4f} {shown}")
        if not STDERR.is_terminal:
            lines.tell(step, total, f"{name} {value:.4f} {shown}")

    preparing = Lines("Preparing scans", brief=True)

    def prepared(done: int, total: int) -> None:
        nonlocal preparing
        if done == 1:  # of each group
            preparing = Lines("Preparing scans", brief=True)
        preparing.tell(done, total)

    try:
        final = fit(chosen, out, resume, report, prepared)
    finally:
        progress.stop()
    if distributed.rank() == 0:
        say(f"Deploy it with: udean-export {final}")


def _preset(config: Path | None) -> str:
    """The default preset; the user is told if it is not the paper's."""
    import torch

    if torch.cuda.is_available():
        return "paper"
    if config is None or config.name != "config.toml":
        typer.echo(
            "Without a GPU the paper's network would train for weeks: taking --preset compact.", err=True
        )
    return "compact"


class Lines:
    """Progress without a terminal: a line at the first step, then one a minute.

    brief: no word of what takes less than that.
    """

    def __init__(self, what: str, every: float = 60, brief: bool = False) -> None:
        self._what, self._every, self._brief = what, every, brief
        self._start, self._first = time.monotonic(), 0
        self._said = self._start if brief else -math.inf

    def tell(self, step: int, total: int, losses: str = "") -> None:
        """Called after each step; prints a line if one is due or if the step is the last."""
        now = time.monotonic()
        if now - self._said < self._every and (step < total or self._brief):
            return
        left = ""
        if self._said == -math.inf:
            self._start, self._first = now, step
        elif step < total:
            left = f", {(now - self._start) / (step - self._first) * (total - step) / 60:.0f} minutes left"
        self._said = now
        shown = f", {losses.strip()}" if losses else ""
        typer.echo(f"{self._what}: {'' if self._brief else 'step '}{step} of {total}{shown}{left}", err=True)


def _simulate(
    scans: Annotated[list[str], typer.Argument(help="HR scans: files, folders or globs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the LR scans.")],
    scale: Annotated[str | None, typer.Option(help="Factors by row, column, slice. (default: 2x2x2)")] = None,
    sampling: Annotated[str, typer.Option(help="truncation of k-space, or Gaussian blur.")] = "truncation",
    noise: Annotated[float, typer.Option(help="Rician noise as a share of the 99.9th percentile.")] = 0.0,
    partial_fourier: Annotated[float, typer.Option(help="Share of k-space along columns.")] = 1.0,
    elliptical: Annotated[bool, typer.Option("--elliptical", help="Leave out k-space's corners.")] = False,
    bias: Annotated[float, typer.Option(help="Strength of a smooth receive field, such as 0.2.")] = 0.0,
    slab_axis: Annotated[int | None, typer.Option(min=0, max=2, help="Axis across the slices.")] = None,
    thick: Annotated[
        str | None,
        typer.Option(metavar="MM", help="Simulate thick slices instead, such as 4mm, in the scan's plane."),
    ] = None,
    profile: Annotated[str, typer.Option(help="Profile of thick slices: gaussian, box or slr.")] = "gaussian",
    gap: Annotated[
        str, typer.Option(metavar="MM", help="Gap between thick slices; negative: overlap.")
    ] = "0mm",
    seed: Annotated[int, typer.Option(min=0, help="Random seed of noise and receive field.")] = 0,
    debug: Debug = False,
) -> None:
    """Make LR scans from HR ones, in the same folders below OUT: less of their k-space, or thick slices."""

    from .data.scans import scan_paths
    from .simulation.files import simulate_all
    from .simulation.kspace import Acquisition
    from .simulation.thick import Slices

    if sampling not in ("truncation", "blur"):
        raise RunError(f"The sampling is truncation or blur, not {sampling}.")
    if thick is None and (profile != "gaussian" or parse_millimetres(gap)):
        raise RunError("--profile and --gap describe thick slices: give the thickness with --thick.")
    if thick is not None and (scale or partial_fourier < 1 or elliptical or bias or sampling != "truncation"):
        raise RunError(
            "Thick slices (--thick) take --profile, --gap and --noise; the other options describe k-space."
        )
    acquisition: Acquisition | Slices = Acquisition(
        parse_scale(scale or "2x2x2"),
        sampling=sampling,
        partial_fourier=partial_fourier,
        elliptical=elliptical,
        noise=noise,
        bias=bias,
    )
    found = scan_paths(scans)
    if thick is not None:
        acquisition = Slices(parse_millimetres(thick), parse_millimetres(gap), cast(Any, profile), noise)
    made = simulate_all(found, out, acquisition, seed, slab_axis)
    failed = 0
    for result in track(made, "Acquiring", len(found), console=STDERR):
        if isinstance(result, RunError):
            failed += 1
            say(f"Failed: {result}", error=True)
    say(f"{counted(len(found) - failed, 'LR scan')} in {out}" + (f", {failed} failed" if failed else ""))
    if failed:
        raise typer.Exit(1)


def _evaluate(
    sr: Annotated[
        str, typer.Option(help="Restored scans: a file or folder; or tricubic or sinc, to interpolate --lr.")
    ],
    hr: Annotated[Path, typer.Option(help="The truth: a file or a folder, scans of the same names.")],
    lr: Annotated[Path | None, typer.Option(help="The LR scans, for data consistency and bands.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Tissue mask on the HR grid. (default: found in the HR scan)")
    ] = None,
    slab: Annotated[int, typer.Option(min=2, help="HR slices per network call, for the slab step.")] = 6,
    slab_axis: Annotated[int | None, typer.Option(min=0, max=2, help="Axis across the slices.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures as JSON.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table as CSV.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the table as Markdown.")] = None,
    debug: Debug = False,
) -> None:
    """PSNR and SSIM (2-D per slice and 3-D), raw and after a global sub-voxel shift onto the truth.

    Also tissue and air apart, the band that the LR scan holds and the added one apart, data consistency and
    steps at slab edges; by scan and mean ± sd.
    """

    from .evaluation.evaluate import TITLES, check_table_place
    from .evaluation.evaluate import evaluate as measure
    from .evaluation.tissue import TissueFigures

    tables = [path for path in (json, csv, markdown) if path]
    if len({*map(real_path, tables)}) < len(tables):
        raise RunError("One file cannot be two tables: give --json, --csv and --markdown a name each.")
    for path in tables:
        check_table_place(path)
    problems: list[str] = []
    summary = measure(sr, hr, lr, slab, slab_axis, problems, mask)
    # The files that were asked for come first: whoever reads the table may leave. It comes all the same.
    unwritten = []
    for path, write in ((json, summary.to_json), (csv, summary.to_csv), (markdown, summary.to_markdown)):
        try:
            if path:
                write(path)
        except RunError as error:
            unwritten.append(str(error))
    for problem in problems:
        say(f"Not measured: {problem}", error=True)
    tissue = {f.name for f in dataclasses.fields(TissueFigures)}
    shown = sorted(summary.names, key=lambda name: name not in tissue)  # tissue first
    show_table(["scan", *(TITLES[name] for name in shown)], summary.rows(shown), summed=True)
    if unwritten:
        raise RunError(" ".join(unwritten))
    if problems:
        print(f"{len(summary.scans)} measured, {len(problems)} not")
        raise typer.Exit(1)


train = command(
    _train,
    "udean-train",
    "udean-train --source hr/ --target lr/ --out runs/mine --preset compact",
    "udean-train --source hcp:HCP --target bids:clinic --out runs/mine --scale 2x2x2",
    "udean-train --source hr/ --target lr/ --out runs/mine --resume",
    extra="train",
)
simulate = command(
    _simulate,
    "udean-simulate",
    "udean-simulate hr/ -o lr/ --scale 2x2x2 --noise 0.01",
    "udean-simulate hr/ -o lr/ --scale 1x1x3 --slab-axis 2",
    extra="eval",
)
evaluate = command(
    _evaluate,
    "udean-eval",
    "udean-eval --sr scans-sr/ --hr truth/ --lr scans/",
    "udean-eval --sr tricubic --lr scans/ --hr truth/ --csv tricubic.csv",
    extra="eval",
)


def parse_scale(text: str) -> tuple[int, int, int]:
    """'2x2x1' as (2, 2, 1)."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise RunError(f"The scale '{text}' is not three factors such as 2x2x2.")
    return int(parts[0]), int(parts[1]), int(parts[2])


def parse_millimetres(text: str) -> float:
    """'4mm' or '4' as 4.0."""
    try:
        value = float(text.lower().removesuffix("mm"))
    except ValueError:
        value = float("nan")
    if not math.isfinite(value):
        raise RunError(f"'{text}' is not a length such as 4mm.")
    return value
