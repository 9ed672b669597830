"""What does a volume cost, and how does that change with its size, overlap, windows, threads and streams?

    python -m udean.benchmarks.scaling cost [--largest 320,320,256] [--slices 24] [--device cuda]
    python -m udean.benchmarks.scaling background      # what leaving out a constant background saves
    python -m udean.benchmarks.scaling memory [--shape 160,160,128] [--suffix .nii.gz]

In `cost`, sizes are measured on volumes in which every window has to be computed; the rest on the middle
slices of the ICBM152 T1, halved in k-space, so that PSNR and SSIM against the truth can be given beside the
seconds. Threads are the processor's, streams the GPU's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import nibabel as nib
import numpy as np
import typer
from numpy.typing import NDArray

from ..runtime.commands.common import sentences
from ..runtime.cuda import CudaEngine
from ..runtime.engines.choose import choose_engine
from ..runtime.pipeline.tiling import Window
from ..runtime.resolver import SuperResolver
from ..trainer.evaluation.quality import psnr, ssim
from ..trainer.simulation import kspace
from . import common
from .curves import Panel
from .demo import SCALE, template
from .quality import middle

SHAPES = ((32, 32, 32), (64, 64, 64), (112, 112, 96), (160, 160, 128), (240, 240, 192), (320, 320, 256))
OVERLAPS = (0.0, 0.125, 0.25, 0.5, 0.75)
WINDOWS: dict[str, Window] = {"32x32": (32, 32), "48x48": (48, 48), "64x64": (64, 64), "plane": "plane"}
Volume = NDArray[Any]
Row = dict[str, Any]
Model = Annotated[Path | None, typer.Option(help="Model; the embedded one by default.")]
Times = Annotated[int, typer.Option(min=1, help="Runs of each; large volumes run once.")]

# In a process of its own, because a process's peak never falls. VmHWM is the kernel's own high-water mark
# and counts pages of mapped files too; writing 5 to clear_refs resets it to the current resident size.
CHILD = """
import sys
from pathlib import Path
from udean.runtime import SuperResolver
from udean.runtime.run.run import prepare, run_all
from udean.runtime.run.find import find_scans
def field(name):
    line = next(l for l in open('/proc/self/status') if l.startswith(name))
    return int(line.split()[1]) * 1024
resolve = SuperResolver(sys.argv[1], 'cpu')
jobs = find_scans([sys.argv[2]], Path(sys.argv[3]))
prepare(jobs)
Path('/proc/self/clear_refs').write_text('5')
before = field('VmRSS')
(outcome,) = run_all(jobs, resolve)
assert outcome.status == 'written', outcome.message
print(before, field('VmHWM'), outcome.timings.total)
"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def cost(
    largest: Annotated[str, typer.Option(help="LR voxels of the largest volume.")] = "112,112,96",
    slices: Annotated[int, typer.Option(min=6, help="LR slices of the T1.")] = 24,
    engine: Model = None,
    device: str = "cpu",
    times: Times = 5,
) -> None:
    """Seconds and quality by size, overlap, windows, threads or streams.

    Writes benchmarks/results/scaling-….json.
    """
    opened = choose_engine(engine, device, "auto", None, "auto")
    hr, _ = template()
    brain = middle(kspace.acquire(hr, kspace.Acquisition(SCALE)), hr, slices)
    most = np.prod([int(n) for n in largest.split(",")])
    result: dict[str, Any] = {
        "model": opened.card.name,
        "engine": str(opened.info),
        "size": sizes(SuperResolver(opened), [s for s in SHAPES if np.prod(s) <= most], times),
        "overlap": against_truth(
            {str(o): SuperResolver(opened, overlap=o) for o in OVERLAPS}, "overlap", brain, times
        ),
        "window": against_truth(
            {name: SuperResolver(opened, window=w) for name, w in WINDOWS.items()}, "window", brain, times
        ),
    }
    if not callable(opened):
        result["streams"] = streams(opened, brain, times)
    else:
        counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= common.cores()]
        resolvers = {str(n): SuperResolver(engine, "cpu", threads=n) for n in counts}
        result["threads"] = against_truth(resolvers, "threads", brain, times)
    place = f"{common.cores()}-cores" if device == "cpu" else common.slug(opened.info.device)
    common.record(f"scaling-{place}", result)


@app.command()
def background(engine: Model = None, device: str = "cpu", times: Times = 5) -> None:
    """The saving from skipping the background of the ICBM152 T1 (78 % zero), and its effect in the head.

    "every window": a background that differs everywhere by a millionth, so that nothing can be skipped;
    "twins": byte-identical windows are computed once; "content": windows cover the content only, so they lie
    elsewhere, and the channel attention sees a different mean in each. Writes
    benchmarks/results/background.json.
    """
    volume, _ = template()
    inside = np.repeat(np.repeat(np.repeat(volume > 0, 2, 0), 2, 1), 2, 2)
    noise = np.random.default_rng(0).uniform(1e-6, 2e-6, volume.shape).astype(np.float32) * volume.max()
    scans = {
        "every window": (np.where(volume == 0, noise, volume), False),
        "twins": (volume, False),
        "content": (volume, True),
    }
    opened = choose_engine(engine, device, "auto", None, "auto")
    found: dict[str, dict[str, Row]] = {}
    for name in ("32x32", "64x64"):
        kept: dict[str, Volume] = {}

        def run(way: str, window: Window = WINDOWS[name], kept: dict[str, Volume] = kept) -> dict[str, float]:
            scan, crop = scans[way]
            kept[way], figures = _timed(SuperResolver(opened, window=window, crop=crop), scan)
            return figures

        rows: dict[str, Row] = dict(_measured({way: lambda w=way, run=run: run(w) for way in scans}, times))
        for way in ("twins", "content"):
            faster = round(rows["every window"]["seconds"] / rows[way]["seconds"], 3)
            error = common.deviation(kept[way][inside], kept["every window"][inside])
            rows[way] = {**rows[way], "times faster": faster, **error}
        found[name] = rows
    about = {"zero": round(float(np.mean(volume == 0)), 4), "model": opened.card.name}
    common.record("background", about | {"engine": str(opened.info), "by window": found})


@app.command()
def memory(shape: str = "160,160,128", suffix: str = ".nii.gz", preset: str = "paper") -> None:
    """Memory of a whole scan over the interpreter and the loaded engine.

    Targets: input + output + 400 MB for 160x160x128; for 512x512x400 as .nii, 1 GB plus the output in its
    own dtype. Writes benchmarks/results/memory-….json.
    """
    volume = common.head([int(n) for n in shape.split(",")])
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        onnx, source = common.model(folder, preset)[1], folder / f"lr{suffix}"
        nib.save(nib.Nifti1Image(volume, np.diag([1, 1, 2, 1])), source)
        command = [sys.executable, "-c", CHILD, onnx, source, folder / "out"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, peak, seconds = map(float, done.stdout.split())
    output = volume.nbytes * 8
    megabytes = {
        "input": volume.nbytes / 1e6,
        "output": output / 1e6,
        "interpreter and engine before": before / 1e6,
        "peak": peak / 1e6,
        "peak over before, input and output": (peak - before - volume.nbytes - output) / 1e6,
        "peak over output": (peak - output) / 1e6,
    }
    about = {"shape": list(volume.shape), "file": suffix, "preset": preset}
    label = f"memory-{preset}-{'x'.join(map(str, volume.shape))}{suffix.replace('.', '-')}"
    common.record(label, {**about, "MB": megabytes, "seconds": seconds})


def sizes(resolve: SuperResolver, shapes: list[tuple[int, int, int]], times: int) -> list[Row]:
    """Cost of volumes of growing size: is it linear?"""
    rows = []
    for shape in shapes:
        volume = common.head(shape)
        turns = times if volume.size <= np.prod(SHAPES[3]) else 1  # these take more than a minute each
        found = _measured({"size": lambda volume=volume: _timed(resolve, volume)[1]}, turns)["size"]
        nanoseconds = round(found["seconds"] / volume.size * 1e9)
        size = {"LR voxels": volume.size, "shape": "x".join(map(str, shape)), "repeats": turns}
        rows.append({**size, **found, "ns a voxel": nanoseconds})
    return rows


def against_truth(
    resolvers: dict[str, SuperResolver], what: str, brain: tuple[Volume, slice, Volume], times: int
) -> list[Row]:
    """Cost and quality of the T1's middle, restored in several ways in alternation."""
    lr, inside, truth = brain
    kept: dict[str, Volume] = {}

    def run(name: str) -> dict[str, float]:
        kept[name], found = _timed(resolvers[name], lr)
        return found

    figures = _measured({name: lambda name=name: run(name) for name in resolvers}, times)
    span = float(np.ptp(truth))
    rows = []
    for name, found in figures.items():
        quality = {
            "PSNR dB": round(psnr(kept[name][:, :, inside], truth, span), 2),
            "SSIM": round(ssim(kept[name][:, :, inside], truth, span), 4),
        }
        rows.append({what: name, **found, **quality})
    return rows


def streams(engine: CudaEngine, brain: tuple[Volume, slice, Volume], times: int) -> list[Row]:
    """Cost with fewer and more batches in flight; TensorRT has as many as its plan was built for."""
    stated: Any = engine
    most = engine.slots if engine.info.library == "tensorrt" else 4
    rows = []
    for count in range(1, most + 1):
        stated.slots = count
        resolve = SuperResolver(engine)  # its workspace has that many streams
        rows += against_truth({str(count): resolve}, "streams", brain, times)
    return rows


def panels(result: dict[str, Any]) -> list[Panel]:
    """Seconds over size beside a line of slope 1, overlap with PSNR, windows, threads or streams."""
    rows = result["size"]
    voxels, seconds = [r["LR voxels"] for r in rows], [r["seconds"] for r in rows]
    linear = [seconds[-1] * v / voxels[-1] for v in voxels]
    drawn = [Panel("Size", "LR voxels", "seconds", voxels, {"measured": seconds, "linear": linear}, True)]
    for name, figure in (
        ("overlap", "seconds"),
        ("overlap", "PSNR dB"),
        ("window", "seconds"),
        ("threads", "seconds"),
        ("streams", "seconds"),
    ):
        if rows := result.get(name):
            x = [float(r[name]) for r in rows] if name != "window" else [r[name] for r in rows]
            drawn.append(
                Panel(f"{name.capitalize()}: {figure}", name, figure, x, {name: [r[figure] for r in rows]})
            )
    return drawn


def _timed(resolve: SuperResolver, volume: Volume) -> tuple[Volume, dict[str, float]]:
    sr, timings = resolve(volume), resolve.timings
    assert timings
    return sr, {"seconds": timings.total, "network": timings.network, "windows": timings.computed}


def _measured(runs: dict[str, Callable[[], dict[str, float]]], times: int) -> dict[str, dict[str, float]]:
    """Medians, and how much slower the slowest run was than the fastest."""
    figures = common.alternate(runs, times)
    found = common.medians(figures)
    for name, kinds in figures.items():
        found[name]["spread %"] = round(100 * (max(kinds["seconds"]) / min(kinds["seconds"]) - 1), 1)
    return found


if __name__ == "__main__":
    with sentences("bench"):
        app()
