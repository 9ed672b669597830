"""The embedded model: check its training data; train on in wider windows; measure a run and ship it.

`make default-model` makes the cohort and trains the first part with the product's own commands. The ICBM152
figures go into the model's card, the checkpoint and its exports into `runtime/models/`, and the training
curve and the demo's picture into `docs/`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import tomllib
from pathlib import Path
from typing import Annotated

import nibabel as nib
import numpy as np
import typer
from numpy.typing import NDArray
from scipy import fft

from ..benchmarks.common import run_script
from ..export.artefacts import export_onnx
from ..export.trust import examined
from ..runtime.errors import RunError
from ..runtime.scan.scan import open_scan
from ..trainer import checkpoint
from ..trainer.cli import Lines
from ..trainer.config import load
from ..trainer.evaluation import demo
from ..trainer.fit import fit

RECIPES = Path(__file__).parent
ROOT = RECIPES.parent
MODELS = ROOT / "runtime" / "models"
DOCS = ROOT / "docs"


app = typer.Typer(help=__doc__)


@app.command()
def prepare(
    labels: Annotated[Path, typer.Argument(help="Folder of the 20 label maps.")],
    head: Annotated[Path, typer.Argument(help="The real T1 at 0.67 mm.")],
    out: Annotated[Path, typer.Argument(help="Folder for HR scans.")],
) -> None:
    """Check LABELS and HEAD by their SHA-256, and put the head into OUT, unchanged and at 1 mm."""
    for line in (RECIPES / "default_model.sha256").read_text().splitlines():
        digest, name = line.split()
        file = head if name.startswith("t1w") else labels / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise RunError(
                f"{file} is not {name} with SHA-256 {digest}: docs/default-model.md says where to get it."
            )
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(head, out / "real-0.67mm.nii.gz")
    scan = open_scan(head)
    image = millimetre(scan.voxels_in_units(), scan.zooms)
    nib.save(nib.Nifti1Image((image * 1000).round().astype(np.int16), np.eye(4)), out / "real-1mm.nii.gz")


def millimetre(image: NDArray[np.float32], zooms: tuple[float, ...]) -> NDArray[np.float32]:
    """The scan as it would be at 1 mm, from the middle of its k-space, the outer fifth tapered by a cosine;
    its 99.9th percentile is 1."""
    space = fft.fftshift(fft.fftn(image))
    for axis, zoom in enumerate(zooms):
        full = image.shape[axis]
        n = round(full * zoom / 2) * 2
        start = full // 2 - n // 2
        space = np.take(space, np.arange(start, start + n), axis)
        outer = np.clip(np.abs(np.arange(n) - n // 2) / (n / 2) - 0.8, 0, None) / 0.2
        taper = (1 + np.cos(np.pi * outer)) / 2
        space = space * np.expand_dims(taper, [a for a in range(3) if a != axis])
    small = np.abs(fft.ifftn(fft.ifftshift(space)))
    return (small / np.percentile(small, 99.9)).astype(np.float32)


@app.command()
def widen(
    run: Annotated[Path, typer.Argument(help="Folder of this part of the training.")],
) -> None:
    """Train on from the first part, in wider windows and on more heads, or go on where that was cut off.

    Folders are the recipe's, in the working folder: hr, dense, val and run.
    """
    options = tomllib.loads((RECIPES / "default_model_wide.toml").read_text())
    lines = Lines("Training in wider windows")

    def report(step: int, total: int, losses: dict[str, float]) -> None:
        lines.tell(step, total, f"high_band {losses['high_band']:.5f}")

    config = load("compact", RECIPES / "default_model.toml", options)
    fit(config, run, (run / "checkpoint.pt").exists(), report)


@app.command()
def ship(
    run: Annotated[Path, typer.Argument(help="Folder of the training's last part.")],
    first: Annotated[Path, typer.Argument(help="Folder of its first part, whose curve is drawn.")],
) -> None:
    """Measure RUN's last checkpoint; ship it with its figures to runtime/models/, the pictures to docs/."""
    contents = checkpoint.load(run / "checkpoint.pt")
    network, card = checkpoint.load_generator(run / "checkpoint.pt")
    (measured, *_) = export_onnx(run / "checkpoint.pt", run)
    out = run / "demo"
    demo.demo(out, str(measured.path))
    report = json.loads((out / "report.json").read_text())
    quality = {
        f"icbm152.{name}.{figure}": round(report[name][figure], 4)
        for name in ("tricubic", "sinc", "sr")
        for figure in ("psnr", "ssim")
    }
    MODELS.mkdir(exist_ok=True)
    kept = MODELS / "default.pt"
    architecture = checkpoint.architecture(contents)
    checkpoint.save(kept, card.replace(quality=card.quality | quality), architecture, network)
    figures, _ = examined(kept)
    (model, *_) = export_onnx(kept, run, quality=figures)
    shutil.copy(model.path, MODELS)
    DOCS.mkdir(exist_ok=True)
    shutil.copy(out / "report.png", DOCS / "demo.png")
    draw_curve(first / "metrics.csv", DOCS / "default-model.png")
    print(f"{MODELS.relative_to(ROOT)}/{model.path.name}: {model.path.stat().st_size / 1e6:.1f} MB")


def draw_curve(metrics: Path, picture: Path) -> None:
    """Validation PSNR and SSIM of single slabs, and the loss beyond the LR scan's band, against steps."""
    from matplotlib.figure import Figure

    with open(metrics) as file:
        rows = list(csv.DictReader(file))
    watched = [row for row in rows if row["validation_psnr"]]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    steps = [int(row["step"]) for row in watched]
    for ax, column, label in (
        (axes[0], "validation_psnr", "validation PSNR, dB"),
        (axes[1], "validation_ssim", "validation SSIM"),
    ):
        ax.plot(steps, [float(row[column]) for row in watched], marker=".")
        ax.set_ylabel(label)
    window = 100
    loss = [float(row["high_band"]) for row in rows]
    smooth = [sum(loss[i : i + window]) / window for i in range(0, len(loss) - window, window)]
    axes[2].plot(range(window, window * (len(smooth) + 1), window), smooth)
    axes[2].set_ylabel(f"loss in the high band, mean of {window} steps")
    for ax in axes:
        ax.set_xlabel("step")
        ax.grid(alpha=0.3)
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    run_script(app, "train")
