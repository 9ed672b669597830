"""The embedded model's last step: measure a trained run on a brain it has never seen, and ship it.

`make default-model` makes the cohort and trains with the product's own commands and then calls this: the
ICBM152 figures go into the model's card, the checkpoint and what is exported from it into `runtime/models/`,
and the curve of the training and the demo's picture into `docs/`.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from ..export.artefacts import export_onnx
from ..trainer import checkpoint
from . import demo

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "runtime" / "models"
DOCS = ROOT / "docs"


def main(run: Annotated[Path, typer.Argument(help="Folder of the training: best.pt, metrics.csv.")]) -> None:
    """Measure RUN's best checkpoint and ship it, with its figures, to runtime/models/, its curve to docs/."""
    contents = checkpoint.load(run / "best.pt")
    network, card = checkpoint.load_generator(run / "best.pt")
    (measured, *_) = export_onnx(run / "best.pt", run)
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
    (model, *_) = export_onnx(kept, run)
    shutil.copy(model.path, MODELS)
    DOCS.mkdir(exist_ok=True)
    shutil.copy(out / "report.png", DOCS / "demo.png")
    draw_curve(run / "metrics.csv", DOCS / "default-model.png")
    print(f"{MODELS.relative_to(ROOT)}/{model.path.name}: {model.path.stat().st_size / 1e6:.1f} MB")


def draw_curve(metrics: Path, picture: Path) -> None:
    """Validation PSNR and SSIM of the deployed path, and the cycle loss, against steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with open(metrics) as file:
        rows = list(csv.DictReader(file))
    watched = [row for row in rows if row["validation_psnr"]]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    steps = [int(row["step"]) for row in watched]
    for ax, column, label in (
        (axes[0], "validation_psnr", "validation PSNR, dB"),
        (axes[1], "validation_ssim", "validation SSIM"),
    ):
        ax.plot(steps, [float(row[column]) for row in watched], marker=".")
        ax.set_ylabel(label)
    window = 100
    cycle = [float(row["image_cycle"]) for row in rows]
    smooth = [sum(cycle[i : i + window]) / window for i in range(0, len(cycle) - window, window)]
    axes[2].plot(range(window, window * (len(smooth) + 1), window), smooth)
    axes[2].set_ylabel(f"image cycle loss (eq. 4), mean of {window}")
    for ax in axes:
        ax.set_xlabel("step")
        ax.grid(alpha=0.3)
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    typer.run(main)
