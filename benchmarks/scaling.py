"""What does skipping the background save, and what memory does a volume take?

    python -m udean.benchmarks.scaling background      # what leaving out a constant background saves
    python -m udean.benchmarks.scaling air [HEAD]      # what leaving noise in air to interpolation saves
    python -m udean.benchmarks.scaling memory [--shape 160,160,128] [--suffix .nii.gz]

What size, overlap, windows and threads cost, `udean-bench --shape --overlap --window --threads` measures.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import nibabel as nib
import numpy as np
import typer

from ..runtime.engines.choose import choose_engine
from ..runtime.resolver import SuperResolver
from ..runtime.run.find import find_scans
from ..runtime.run.run import prepare, run_all
from ..runtime.scan.voxels import Volume
from ..trainer.evaluation.tissue import in_tissue
from ..trainer.simulation import icbm152, kspace
from . import child, common, tissue
from .common import run_script

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def background(
    engine: Annotated[Path | None, typer.Option(help="Model; the embedded one by default.")] = None,
    device: str = "cpu",
    times: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 5,
) -> None:
    """The saving from skipping the background of the ICBM152 T1 (78 % zero), and its effect in the head.

    "every window": a background that differs everywhere by a millionth, so that nothing can be skipped;
    "twins": byte-identical windows are computed once; "content": windows cover the content only, so they lie
    elsewhere, and the channel attention sees a different mean in each. Writes
    benchmarks/results/background.json.
    """
    volume, _ = icbm152.cropped_t1()
    inside = np.repeat(np.repeat(np.repeat(volume > 0, 2, 0), 2, 1), 2, 2)
    noise = np.random.default_rng(0).uniform(1e-6, 2e-6, volume.shape).astype(np.float32) * volume.max()
    noisy = np.where(volume == 0, noise, volume)
    scans = {"every window": (noisy, False), "twins": (volume, False), "content": (volume, True)}
    opened = choose_engine(engine, device, "auto", None, "auto")
    found = {}
    for size in (32, 64):
        kept: dict[str, Volume] = {}

        def run(way: str, size: int = size, kept: dict[str, Volume] = kept) -> dict[str, float]:
            scan, crop = scans[way]
            kept[way], times = common.timed(SuperResolver(opened, window=(size, size), crop=crop), scan)
            return times

        figures = common.alternate({way: lambda way=way, run=run: run(way) for way in scans}, times)
        rows = found[f"{size}x{size}"] = common.medians(figures)
        for way, kinds in figures.items():
            rows[way]["spread %"] = round(100 * (max(kinds["seconds"]) / min(kinds["seconds"]) - 1), 1)
        for way in ("twins", "content"):
            faster = round(rows["every window"]["seconds"] / rows[way]["seconds"], 3)
            error = common.deviation(kept[way][inside], kept["every window"][inside])
            rows[way] |= {"times faster": faster, **error}
    about = {"zero": round(float(np.mean(volume == 0)), 4), "model": opened.card.name}
    common.record("background", about | {"engine": str(opened.info), "by window": found})


@app.command()
def air(
    head: Annotated[Path | None, typer.Argument(help="HR scan of a whole head. (default: Colin27)")] = None,
    field: Annotated[
        str, typer.Option(help="HR voxels that the scan covers; beyond the head is air.")
    ] = "256,256,192",
    noise: Annotated[float, typer.Option(help="Rician, of the 99.9th percentile.")] = 0.02,
    device: str = "cpu",
    times: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 5,
    out: Path = common.RESULTS,
) -> None:
    """The saving from leaving noisy air to interpolation, and its effect in tissue. Writes air.json."""
    hr = tissue.padded(tissue.read_head(head) if head else next(tissue.heads())[1](), common.numbers(field))
    lr = np.rint(kspace.acquire(hr, kspace.Acquisition(tissue.SCALE, noise=noise))).astype(np.int16)
    opened, decibels = choose_engine(None, device, "auto", None, "auto"), {}

    def run(way: str) -> dict[str, float]:
        sr, taken = common.timed(SuperResolver(opened, crop=way == "air interpolated"), lr)
        decibels[way] = round(in_tissue(sr, hr).psnr_tissue or 0.0, 3)
        return taken

    ways = "every voxel", "air interpolated"
    figures = common.alternate({way: lambda way=way: run(way) for way in ways}, times)
    rows = {way: {**kinds, "tissue dB": decibels[way]} for way, kinds in common.medians(figures).items()}
    ratios = [a / b for a, b in zip(*(figures[way]["seconds"] for way in ways), strict=True)]
    faster = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    about = {"shape": list(lr.shape), "noise": noise, "head": round(float(np.mean(hr > 0)), 3)}
    about["engine"] = str(opened.info)
    common.record("air", about | {"ways": rows, "times faster": faster}, out)


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
        here = f"{__package__}.scaling:peak_of_scan"  # a process of its own: a peak never falls
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


if __name__ == "__main__":
    run_script(app)
