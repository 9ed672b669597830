"""What does a volume cost, and how does that change with its size, overlap, windows, threads and streams?

    python -m udean.benchmarks.scaling cost [--largest 320,320,256] [--slices 24] [--device cuda]
    python -m udean.benchmarks.scaling background      # what leaving out a constant background saves
    python -m udean.benchmarks.scaling memory [--shape 160,160,128] [--suffix .nii.gz]

In `cost`, sizes are measured on volumes in which every window has to be computed; the rest on the middle
slices of the ICBM152 T1, halved in k-space, so that PSNR and SSIM against the truth can be given beside the
seconds. Threads are the processor's, streams the GPU's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import nibabel as nib
import numpy as np
import typer
from numpy.typing import NDArray

from ..runtime.commands.common import sentences
from ..runtime.engines.choose import choose_engine
from ..runtime.pipeline.tiling import Window
from ..runtime.resolver import SuperResolver
from ..runtime.run.find import find_scans
from ..runtime.run.run import prepare, run_all
from ..trainer.evaluation.quality import psnr, ssim
from ..trainer.simulation import kspace
from . import child, common
from .demo import SCALE, template
from .quality import middle_slices

SHAPES = ((32, 32, 32), (64, 64, 64), (112, 112, 96), (160, 160, 128), (240, 240, 192), (320, 320, 256))
SLOW = SHAPES[3]  # larger ones take more than a minute each, and run once
OVERLAPS = (0.0, 0.125, 0.25, 0.5, 0.75)
WINDOWS: dict[str, Window] = {"32x32": (32, 32), "48x48": (48, 48), "64x64": (64, 64), "plane": "plane"}
THREADS = (1, 2, 4, 8, 16, 32, 64)
Row = dict[str, Any]
Brain = tuple[NDArray[Any], slice, NDArray[Any]]  # LR slices, the HR slices to measure, their truth
Model = Annotated[Path | None, typer.Option(help="Model; the embedded one by default.")]
Times = Annotated[int, typer.Option(min=1, help="Runs of each; large volumes run once.")]

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
    opened: Any = choose_engine(engine, device, "auto", None, "auto")
    info = opened.info
    hr, _ = template()
    brain = middle_slices(kspace.acquire(hr, kspace.Acquisition(SCALE)), hr, slices)
    most = np.prod(common.numbers(largest))

    def by(what: str, ways: Mapping[str, dict[str, Any]]) -> list[Row]:
        resolvers = {name: SuperResolver(opened, **options) for name, options in ways.items()}
        return against_truth(resolvers, what, brain, times)

    result: dict[str, Any] = {
        "model": opened.card.name,
        "engine": str(info),
        "size": by_size(SuperResolver(opened), [s for s in SHAPES if np.prod(s) <= most], times),
        "overlap": by("overlap", {str(o): {"overlap": o} for o in OVERLAPS}),
        "window": by("window", {name: {"window": w} for name, w in WINDOWS.items()}),
    }
    if callable(opened):
        counts = [n for n in THREADS if n <= common.cores()]
        resolvers = {str(n): SuperResolver(engine, "cpu", threads=n) for n in counts}
        result["threads"] = against_truth(resolvers, "threads", brain, times)
    else:  # TensorRT has as many streams as its plan was built for
        rows = result["streams"] = []
        for count in range(1, 1 + (opened.slots if info.library == "tensorrt" else 4)):
            opened.slots = count
            rows += by("streams", {str(count): {}})
    place = f"{common.cores()}-cores" if device == "cpu" else common.slug(info.device)
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
    noisy = np.where(volume == 0, noise, volume)
    scans = {"every window": (noisy, False), "twins": (volume, False), "content": (volume, True)}
    opened = choose_engine(engine, device, "auto", None, "auto")
    found: dict[str, dict[str, Row]] = {}
    for name in ("32x32", "64x64"):
        window = WINDOWS[name]
        ways = {w: (SuperResolver(opened, window=window, crop=c), scan) for w, (scan, c) in scans.items()}
        kept, rows = _in_turn(ways, times)
        for way in ("twins", "content"):
            faster = round(rows["every window"]["seconds"] / rows[way]["seconds"], 3)
            error = common.deviation(kept[way][inside], kept["every window"][inside])
            rows[way] |= {"times faster": faster, **error}
        found[name] = rows
    about = {"zero": round(float(np.mean(volume == 0)), 4), "model": opened.card.name}
    common.record("background", about | {"engine": str(opened.info), "by window": found})


@app.command()
def memory(shape: str = "160,160,128", suffix: str = ".nii.gz", preset: str = "paper") -> None:
    """Memory of a whole scan over the interpreter and the loaded engine.

    Targets: input + output + 400 MB for 160x160x128; for 512x512x400 as .nii, 1 GB plus the output in its
    own dtype. Writes benchmarks/results/memory-….json.
    """
    volume = common.textured(common.numbers(shape))
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        model, source = common.untrained(folder, preset).full, folder / f"lr{suffix}"
        nib.save(nib.Nifti1Image(volume, np.diag([1, 1, 2, 1])), source)
        here = f"{__package__}.scaling:peak_of_scan"  # a process's peak never falls: in one of its own
        before, peak, seconds = child.in_child(here, model, source, folder / "out")
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


def peak_of_scan(model: Path, source: Path, out: Path) -> tuple[int, int, float]:
    """Bytes before and at most, and seconds, of a scan from file to file."""
    resolve = SuperResolver(model, "cpu")
    jobs = find_scans([str(source)], out)
    prepare(jobs)
    child.forget_peak()
    before = child.memory_now("VmRSS")
    (outcome,) = run_all(jobs, resolve)
    assert outcome.status == "written" and outcome.timings, outcome.message
    return before, child.memory_now("VmHWM"), outcome.timings.total


def by_size(resolve: SuperResolver, shapes: list[tuple[int, int, int]], times: int) -> list[Row]:
    """Cost of volumes of growing size: is it linear?"""
    rows = []
    for shape in shapes:
        volume = common.textured(shape)
        turns = times if volume.size <= np.prod(SLOW) else 1
        found = _in_turn({"size": (resolve, volume)}, turns)[1]["size"]
        nanoseconds = round(found["seconds"] / volume.size * 1e9)
        size = {"LR voxels": volume.size, "shape": "x".join(map(str, shape)), "repeats": turns}
        rows.append({**size, **found, "ns a voxel": nanoseconds})
    return rows


def against_truth(resolvers: Mapping[str, SuperResolver], what: str, brain: Brain, times: int) -> list[Row]:
    """Cost and quality of the T1's middle, restored in several ways in alternation."""
    lr, inside, truth = brain
    kept, figures = _in_turn({name: (resolve, lr) for name, resolve in resolvers.items()}, times)
    span, rows = float(np.ptp(truth)), []
    for name, found in figures.items():
        sr = kept[name][:, :, inside]
        quality = {"PSNR dB": round(psnr(sr, truth, span), 2), "SSIM": round(ssim(sr, truth, span), 4)}
        rows.append({what: name, **found, **quality})
    return rows


def _in_turn(
    ways: Mapping[str, tuple[SuperResolver, NDArray[Any]]], times: int
) -> tuple[dict[str, NDArray[Any]], dict[str, Row]]:
    """Each way's SR volume; medians, and how much slower the slowest run was than the fastest."""
    kept: dict[str, NDArray[Any]] = {}

    def run(name: str) -> Callable[[], dict[str, float]]:
        def one() -> dict[str, float]:
            kept[name], found = common.timed(*ways[name])
            return found

        return one

    figures = common.alternate({name: run(name) for name in ways}, times)
    found: dict[str, Row] = dict(common.medians(figures))
    for name, kinds in figures.items():
        found[name]["spread %"] = round(100 * (max(kinds["seconds"]) / min(kinds["seconds"]) - 1), 1)
    return kept, found


if __name__ == "__main__":
    with sentences("bench"):
        app()
