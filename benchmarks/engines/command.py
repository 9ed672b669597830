"""`udean-bench`: how fast is each engine on this machine, against PyTorch as a careful user runs it?

The baseline is the same network in eager float32 PyTorch behind MONAI's sliding window (pytorch.py), with as
many windows as ours, and by default in the same places. contest.py defines the contenders and the figures,
roofline.py how close each comes to the machine's limits.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import onnx
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ...export.graph import to_onnx
from ...runtime.commands.common import command
from ...runtime.commands.tables import show_table
from ...runtime.cuda.device import Gpu, GpuError
from ...runtime.errors import RunError
from ...runtime.pipeline.tiling import OVERLAP, tile_windows
from ...runtime.system.files import refuse_foreign, write_json
from ...trainer import checkpoint
from .. import common
from ..child import in_child
from . import table
from .contest import PATH, WIDE, Contest, Entrant, SpeedUp, agree, contenders, fitting, whole_command
from .pytorch import monai_starts
from .roofline import Roofs, convolutions, measure_roofs

QUICK, FULL = (112, 112, 9), (160, 160, 129)  # LR voxels, before they are fitted to the windows
COMMAND = "udean-bench"  # which its JSON names
BUSY = 0.25  # waiting processes per core, before anything is measured, from which the machine counts as busy
ENOUGH = 5  # turns: with four, the median lies outside their range with a probability of one in eight


def bench(
    model: Annotated[
        str,
        typer.Option(help="embedded; paper or compact: that size, untrained; or a checkpoint."),
    ] = "embedded",
    shape: Annotated[
        str | None,
        typer.Option(help="LR rows,columns,slices. (default: such that both sides' windows coincide)"),
    ] = None,
    overlap: Annotated[
        float, typer.Option(min=0.0, max=0.95, help="Least overlap, as a share of a window.")
    ] = OVERLAP,
    window: Annotated[
        str | None, typer.Option(help="64x64, for both sides. (default: as the network was trained)")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="(default: all cores)")] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Turns after the warm-up; at least 5 for a conclusion.")
    ] = 5,
    engine: Annotated[
        list[str] | None, typer.Option(help="Only rows whose name contains this; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small volume, nothing compiled.")] = False,
    compile_limit: Annotated[float, typer.Option(help="Seconds that torch.compile may take.")] = 300,
    commands: Annotated[
        int | None, typer.Option(min=0, help="Whole commands a row, file to file. (default: 3; quick: 1)")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the result as JSON; a file or a folder.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Measure every installed engine against the PyTorch path, on this machine, in alternation."""
    if json_path and json_path.suffix:
        refuse_foreign(json_path, COMMAND)
    load, cores = os.getloadavg()[0], common.cores()
    gpu, asked = _gpu(device), common.numbers(shape) if shape else None
    where, threads = f"cuda:{gpu.index}" if gpu else "cpu", threads or cores
    times = (1 if quick else 3) if commands is None else commands
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory() as name,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        folder, task = Path(name), bar.add_task("Exporting the model", total=None)
        models = _models(model, folder, gpu)
        given = {} if window is None else {"window": common.numbers(window, "64x64")}
        card = models.card.replace(**given)
        size = asked or fitting(QUICK if quick else FULL, card, overlap)
        tiling, volume = tile_windows(size, card, overlap, card.window), common.textured(size)
        equal: dict[str, Any] = {"device": where, "threads": threads, "overlap": overlap}
        who = contenders(models, bool(gpu), not quick, **equal, window=card.window)
        rows = [Entrant(c) for c in who if c.name == PATH or _wanted(c.name, engine)]

        bar.update(task, description="Measuring the roofs of this machine")
        roofs: Roofs = in_child(f"{measure_roofs.__module__}:{measure_roofs.__name__}", where, threads)
        contest = Contest(rows, volume, folder, gpu, compile_limit)
        bar.update(task, total=len(rows) * (repeats + 1))
        contest.run(repeats, lambda text: bar.update(task, advance=1, description=text))
        bar.update(task, total=None, description="Comparing with MONAI in the same windows")
        agreement = agree(models, where, overlap)
        measured = [row for row in rows if not row.failed]
        bar.update(task, total=max(1, len(measured) * times), completed=0)
        for row in measured if times else ():
            bar.update(task, description=f"Whole command: {row.name}")
            row.figures |= whole_command(row, volume, folder, times)
            bar.update(task, advance=times)
        graphs = _graphs(models)

    for row in measured:
        _compare_with_roofs(row, graphs[row.ours], roofs)
    flop = {ours: sum(a.flop for a in convolutions(g, *card.window)) / 1e9 for ours, g in graphs.items()}
    theirs, ours = monai_starts(tiling), [a.starts for a in (tiling.rows, tiling.columns, tiling.slices)]
    windows = {
        "ours": len(tiling),
        "computed": {row.name: row.windows for row in measured},
        "monai": math.prod(map(len, theirs)),
        "same_places": theirs == ours,
    }
    document: dict[str, Any] = {
        **common.circumstances([COMMAND, *sys.argv[1:]]),
        "device": gpu.name if gpu else "cpu",
        "threads": threads,
        "load_before": round(load, 2),
        "model": {
            "name": models.card.name,
            "parameters": models.card.parameters,
            "window": list(card.window),
            "gflop_a_window": round(flop[False], 4),
            "gflop_a_window_deployed": round(flop[True], 4),
        },
        "shape": list(size),
        "overlap": overlap,
        "repeats": repeats,
        "windows": windows,
        "roofs": {
            "gflops": {p: round(f / 1e9, 1) for p, f in roofs.flops.items()},
            "copy_gb_per_s": round(roofs.copy / 1e9, 2),
        },
        "agreement": agreement,
        "rows": [row.as_dict() for row in rows],
        "warnings": warnings(rows, windows, load / cores, repeats),
    }
    try:
        if json_path:  # before anything else can fail
            write_json(_into(json_path, document), document)
    finally:
        print(table.title(document))
        show_table(table.HEADS, [table.cells(row) for row in document["rows"]])
        print(table.caption(document))
        for text in [*table.failures(document), *(f"Warning: {text}" for text in document["warnings"])]:
            print(text)


def warnings(rows: Sequence[Entrant], windows: dict[str, Any], load: float, repeats: int) -> list[str]:
    """Warnings to read before drawing conclusions. load: waiting processes per core beforehand."""
    found = []
    if load > BUSY:
        found.append(f"The machine was busy before anything was measured ({load:.1f} processes a core).")
    if repeats < ENOUGH:
        found.append(f"{repeats} turns are too few for a conclusion: use --repeats {ENOUGH} or more.")
    if not windows["same_places"]:
        found.append(
            "MONAI places its windows elsewhere in this shape, so voxels average other windows: compare "
            "path_psnr in a shape in which they coincide (leave out --shape)."
        )
    alike = {row.name for row in rows if not row.contender.as_run}
    unequal = {
        name for name, count in windows["computed"].items() if name in alike and count != windows["monai"]
    }
    if unequal:
        found.append(f"Not as many windows as MONAI: {', '.join(sorted(unequal))}; speed-ups are per window.")
    for row in rows[1:]:
        if not row.failed and (doubt := SpeedUp(**row.figures["speed_up"]).doubt):
            found.append(f"{row.name}: {doubt}")
    found += [f"{r.name}: {r.figures['command_failed']}" for r in rows if "command_failed" in r.figures]
    path = rows[0].totals
    if (max(path) - min(path)) / statistics.median(path) > WIDE:
        found.append(
            f"The PyTorch path itself took {min(path):.2f} to {max(path):.2f} s: the machine is busy."
        )
    return found


def _wanted(name: str, engine: list[str] | None) -> bool:
    return not engine or any(part.lower() in name.lower() for part in engine)


def _gpu(device: str) -> Gpu | None:
    """The requested GPU or, for "auto", the one that is present, if any."""
    if device == "cpu":
        return None
    name, _, number = device.partition(":")
    if name not in ("auto", "cuda") or (number and not number.isdecimal()):
        raise RunError(f"Device '{device}' is not one of auto, cpu, cuda, cuda:N.")
    try:
        return Gpu(int(number or 0))
    except GpuError:
        if name == "auto":
            return None
        raise


def _models(model: str, folder: Path, gpu: Gpu | None) -> common.ModelFiles:
    if model == "embedded":
        files = common.embedded(folder)
    elif model in common.ARCHITECTURES:
        files = common.untrained(folder, model)
    elif Path(model).is_file():
        files = common.trained(Path(model), folder)
    else:
        raise RunError(f"The model '{model}' is not embedded, paper, compact, or a checkpoint file.")
    if gpu:
        from ...export.trt_build import BuildOptions
        from ...export.trt_plan import Sizes, build_plan, check_host

        try:
            check_host()
            window = files.card.window
            build_plan(files.half, folder, Sizes((1, 16, 64), (window, window, window)), BuildOptions())
        except RunError as error:  # without the plan its row fails
            typer.echo(f"No TensorRT: {error}", err=True)
    return files


def _graphs(models: common.ModelFiles) -> dict[bool, onnx.ModelProto]:
    """The graph that the runtime runs (True), and the network as it was trained (False)."""
    network, card = checkpoint.load_generator(models.checkpoint)
    return {True: onnx.load(models.full), False: to_onnx(network, card.slab[0], half=False)}


def _compare_with_roofs(row: Entrant, graph: onnx.ModelProto, roofs: Roofs) -> None:
    """Operations per second in the network, and as a share of the machine's limit."""
    precision, layers = row.contender.precision, convolutions(graph, *row.window)
    network, total = statistics.median(row.networks), statistics.median(row.totals)
    rate = sum(layer.flop for layer in layers) * row.windows / network
    row.figures |= {
        "gflops": round(rate / 1e9, 1),
        "share_of_peak": round(rate / roofs.flops[precision], 3),
        "share_of_attainable": round(rate / roofs.attainable(layers, precision, row.batch or 1), 3),
        "outside_network": round(1 - network / total, 4),
    }


def _into(path: Path, document: dict[str, Any]) -> Path:
    """The file or, for a folder, a file in it named after model, shape and device."""
    if path.suffix:
        return path
    device = document["device"]
    if device == "cpu":  # "Intel(R) Xeon(R) Processor (avx2, avx512f)" is an Intel Xeon
        processor = re.sub(r"\((R|TM)\)|\bProcessor\b|\bCPU\b|@.*| \(.*", "", document["processor"])
        device = f"{processor} {document['threads']} threads"
    shape = "x".join(map(str, document["shape"]))
    return path / (common.slug(f"bench {document['model']['name']} {shape} {device}") + ".json")


main = command(
    bench,
    COMMAND,
    "udean-bench --quick",
    "udean-bench --model runs/mine/checkpoint.pt --json bench/",
    extra="bench",
)

if __name__ == "__main__":
    main()
