"""`udean-demo`: the whole pipeline on a real brain, with a picture and numbers.

The ICBM152 T1 template, which the default model has never seen, is truncated in k-space to half its
resolution along every axis, restored as `udean-run` restores it, and compared with the truth.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import nibabel as nib
import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ...runtime.commands.common import command
from ...runtime.commands.tables import show_table
from ...runtime.errors import RunError
from ...runtime.resolver import SuperResolver
from ...runtime.scan.voxels import Volume
from ...runtime.system.files import atomic, make_folder, read_json, write_json
from ...runtime.system.matplotlib_files import keep_in_cache
from ..simulation import icbm152, kspace
from .quality import Quality, quality

SCALE = (2, 2, 2)
REPORT, PICTURE = "report.json", "report.png"
MIDDLE = 0.45  # position of each cut: off the midline, which shows little
TITLES = {"tricubic": "Tricubic", "sinc": "Sinc (zero-filled)", "sr": "UDEAN"}


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for volumes, picture and numbers.")] = Path(
        "demo"
    ),
    engine: Annotated[str | None, typer.Option(help="Model to show; the embedded one by default.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Restore a real brain and show it: OUT/report.png, OUT/report.json, and the LR, SR and HR volumes."""
    make_folder(out)
    if not read_json(out / REPORT).keys() >= {"sr", "engine", "model"}:  # what an earlier demo leaves
        for name in (REPORT, PICTURE, *(f"{volume}.nii.gz" for volume in ("lr", "sr", "hr"))):
            if os.path.lexists(out / name):
                raise RunError(f"{out / name} already exists and is not of udean-demo: give another folder.")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        progress.add_task("Reading the ICBM152 T1 brain", total=None)
        hr, affine = icbm152.cropped_t1(SCALE)
        progress.add_task("Acquiring half of its k-space along each axis", total=None)
        lr = kspace.acquire(hr, kspace.Acquisition(SCALE))
        coarse = affine @ np.diag([*SCALE, 1])

        progress.add_task("Loading the model", total=None)
        resolver = SuperResolver(engine)
        progress.add_task(f"Restoring with {resolver.describe()}", total=None)
        image = nib.Nifti1Image(lr, coarse)
        start = time.perf_counter()
        restored = resolver.image(image)
        seconds = time.perf_counter() - start

        progress.add_task("Measuring", total=None)
        sr = np.asarray(restored.dataobj, np.float32)
        results = {"tricubic": kspace.tricubic(lr, SCALE), "sinc": kspace.zero_fill(lr, SCALE), "sr": sr}
        measured = {name: quality(volume, hr) for name, volume in results.items()}

        progress.add_task("Drawing", total=None)
        report: dict[str, Any] = {
            **{name: dataclasses.asdict(q) for name, q in measured.items()},
            "seconds": round(seconds, 2),
            "engine": resolver.describe(),
            "model": json.loads(resolver.card.to_json()),
        }
        write_json(out / REPORT, report)
        volumes = {"lr": image, "sr": restored, "hr": nib.Nifti1Image(hr, affine)}
        for name, volume in volumes.items():
            with atomic(out / f"{name}.nii.gz") as file:
                file.write(gzip.compress(volume.to_bytes(), 1))
        with atomic(out / PICTURE) as file:
            draw(file, lr, results, hr, measured)
    _show(measured)
    print(f"{seconds:.1f} s for {' x '.join(map(str, lr.shape))} voxels with {resolver.describe()}")
    print(f"Look at {out / PICTURE}")


def draw(
    path: Path | BinaryIO, lr: Volume, results: dict[str, Volume], hr: Volume, measured: dict[str, Quality]
) -> None:
    """The middle of three orientations: LR as acquired, tricubic, SR, HR, errors on one scale."""
    keep_in_cache()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(21, 11), layout="constrained", facecolor="black")
    axes = figure.subplots(3, 6)
    top = float(np.percentile(hr, 99.9))
    error = {name: np.abs(results[name] - hr) for name in ("tricubic", "sr")}
    limit = float(np.percentile(error["tricubic"][hr > 0], 99))
    box = content(hr)
    for row, (plane, axis) in enumerate((("axial", 2), ("coronal", 1), ("sagittal", 0))):

        def cut(volume: Volume, axis: int = axis) -> Volume:
            ratio = [v / h for v, h in zip(volume.shape, hr.shape, strict=True)]
            inside = [slice(int(b.start * r), int(b.stop * r)) for b, r in zip(box, ratio, strict=True)]
            return np.rot90(
                np.take(
                    volume[tuple(inside)],
                    int(MIDDLE * hr.shape[axis] * ratio[axis]) - inside[axis].start,
                    axis,
                )
            )

        images = [cut(v) for v in (lr, results["tricubic"], results["sr"], hr)]
        for column, image in enumerate(images):
            axes[row, column].imshow(image, cmap="gray", vmin=0, vmax=top, interpolation="nearest")
        for column, name in enumerate(error, start=4):
            axes[row, column].imshow(cut(error[name]), cmap="inferno", vmin=0, vmax=limit)
        axes[row, 0].text(
            -0.04, 0.5, plane, color="white", rotation=90, va="center", ha="right", size=15,
            transform=axes[row, 0].transAxes,
        )  # fmt: skip
    labels = ["LR, as acquired", *(_label(n, measured[n]) for n in ("tricubic", "sr")), "HR (truth)"]
    for column, label in enumerate([*labels, "|Tricubic − HR|", "|UDEAN − HR|"]):
        axes[0, column].set_title(label, color="white", size=15)
    for ax in axes.flat:
        ax.set_axis_off()
    bar = figure.colorbar(axes[0, 4].images[0], ax=axes[:, 4:], shrink=0.5, location="bottom", aspect=50)
    bar.ax.tick_params(colors="white", labelsize=12)
    bar.set_label("absolute error, same scale for both (HR range 0 to 255)", color="white", size=12)
    figure.savefig(path, dpi=80, format="png")


def content(volume: Volume, margin: int = 6) -> tuple[slice, slice, slice]:
    """The bounding box of the non-zero voxels, with a margin."""
    filled = np.argwhere(volume > 0)
    low, high = np.maximum(filled.min(0) - margin, 0), filled.max(0) + margin + 1
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return i, j, k


def _label(name: str, q: Quality) -> str:
    return f"{TITLES[name]}\n{q.psnr:.2f} dB, SSIM {q.ssim:.3f}"


def _show(measured: dict[str, Quality]) -> None:
    rows = [
        [TITLES[name], f"{q.psnr:.2f}", f"{q.ssim:.4f}", f"{q.ssim_2d:.4f}"] for name, q in measured.items()
    ]
    show_table(["ICBM152 T1, 2×2×2", "PSNR dB", "SSIM 3-D", "SSIM 2-D"], rows)


main = command(demo, "udean-demo", "udean-demo -o demo/", extra="demo")
