"""Where does the time of a scan go, and of a folder? From the product's own timers, as a Gantt picture.

    python -m udean.benchmarks.timeline TRACE.json      draws what `udean-run --profile TRACE.json` wrote
    python -m udean.benchmarks.timeline [--shape 64,64,24] [--scans 4] [--device cuda]

Without a trace it profiles one scan and a folder of .nii.gz files, by `udean-run` in processes of their own.
"""

from __future__ import annotations

import collections
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import nibabel as nib
import numpy as np
import typer

from ..runtime.commands.common import sentences
from ..runtime.errors import RunError
from ..runtime.system.files import atomic
from . import common
from .curves import small_png

STARTING = ("load", "warm-up")  # once per process, not once per scan
COLOURS = {
    "load": "tab:gray",
    "warm-up": "tab:brown",
    "decode": "tab:purple",
    "read": "tab:pink",
    "upload": "tab:cyan",
    "gather": "tab:green",
    "network": "tab:blue",
    "blend": "tab:orange",
    "measured band": "gold",
    "download": "tab:olive",
    "encode": "tab:red",
    "wait": "lightgray",
}


@dataclass(frozen=True)
class Event:
    """Work on a stage of a scan: its thread or stream, and seconds from the trace's beginning."""

    stage: str
    scan: str
    lane: str
    start: float
    seconds: float


def main(
    trace: Annotated[Path | None, typer.Argument(help="What `udean-run --profile` wrote.")] = None,
    shape: Annotated[str, typer.Option(help="LR voxels of the scans.")] = "64,64,24",
    scans: Annotated[int, typer.Option(min=2, help="In the folder.")] = 4,
    engine: Annotated[Path | None, typer.Option(help="Model; the embedded one by default.")] = None,
    device: str = "cpu",
) -> None:
    """Draw a trace beside its JSON; or profile, and write benchmarks/results/timeline-….json and pictures."""
    if trace:
        draw(trace.with_suffix(".png"), {trace.name: read(trace)})
        print(f"Look at {trace.with_suffix('.png')}")
        return
    rows, columns, slices = map(int, shape.split(","))
    volume = common.head((rows, columns, slices))
    events: dict[str, list[Event]] = {}
    with tempfile.TemporaryDirectory() as name:
        for title, count in (("one scan", 1), (f"folder of {scans}", scans)):
            source = Path(name) / str(count)
            source.mkdir()
            for n in range(count):
                nib.save(nib.Nifti1Image(volume, np.diag([1, 1, 2, 1])), source / f"{n:03}.nii.gz")
            file = Path(name) / f"{count}.json"
            command = ["-m", "udean.runtime.commands.run", source, "--profile", file, "--device", device]
            command += ["--engine", engine] if engine else []
            subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
            events[title] = read(file)
    result = {"shape": shape.replace(",", "x"), "seconds": {t: stages(found) for t, found in events.items()}}
    label = f"timeline-{device}-{shape.replace(',', 'x')}"
    common.record(label, result)
    draw(common.RESULTS / f"{label}.png", events)


def read(path: Path) -> list[Event]:
    """The complete events of a Chrome trace. Raises RunError if it is not one of ours."""
    try:
        found = json.loads(path.read_bytes())["traceEvents"]
        lanes = {e["tid"]: e["args"]["name"] for e in found if e["name"] == "thread_name"}
        return [
            Event(e["name"], e["args"]["scan"], lanes[e["tid"]], e["ts"] / 1e6, e["dur"] / 1e6)
            for e in found
            if e["ph"] == "X"
        ]
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path} is not a trace of udean-run: write one with --profile.") from None


def stages(events: list[Event]) -> dict[str, float]:
    """Seconds of each stage once the engine was ready, and the time from their start to their end."""
    found: dict[str, float] = collections.defaultdict(float)
    after = [e for e in events if e.stage not in STARTING]
    for event in after:
        found[event.stage] += event.seconds
    whole = max(e.start + e.seconds for e in after) - min(e.start for e in after)
    return {stage: round(seconds, 3) for stage, seconds in {**found, "whole": whole}.items()}


def draw(path: Path, traces: dict[str, list[Event]]) -> None:
    """A Gantt picture for each trace: threads and streams over time, stages by colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    lanes = {title: list(dict.fromkeys(e.lane for e in events)) for title, events in traces.items()}
    heights = [len(names) for names in lanes.values()]
    figure = Figure(figsize=(11, 1.3 * len(traces) + 0.42 * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(len(traces), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, events) in zip(every, traces.items(), strict=True):
        for row, lane in enumerate(lanes[title]):
            mine = [e for e in events if e.lane == lane]
            axes.broken_barh(
                [(e.start, e.seconds) for e in mine],
                (row - 0.4, 0.8),
                facecolors=[COLOURS.get(e.stage, "black") for e in mine],
            )
        axes.set_yticks(range(len(lanes[title])), lanes[title])
        axes.invert_yaxis()
        axes.set(title=title, xlabel="seconds")
    used: dict[str, Any] = {e.stage: None for events in traces.values() for e in events}
    patches = [Patch(color=COLOURS.get(stage, "black"), label=stage) for stage in used]
    figure.legend(handles=patches, loc="outside right upper", fontsize=8)
    with atomic(path) as file:
        file.write(small_png(figure))


if __name__ == "__main__":
    with sentences("bench"):
        typer.run(main)
