"""What is self-training (`udean-adapt --to`) worth, beside the embedded through-plane model?

    python -m udean.benchmarks.self_training [SCANS] [--minutes 60]

Heads and figures are those of `benchmarks.through_plane`, with 1 % of noise. The gain on held-out
planes, by which the command decides, is shown beside the true gain. If --minutes is short, a slow machine
takes fewer steps; otherwise no figure depends on its speed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import nibabel as nib
import numpy as np
import typer

from ..export.adapt_thick import tune_to
from ..runtime.commands.common import sentences
from ..runtime.resolver import SuperResolver
from ..runtime.scan.scan import image_scan
from ..trainer.simulation.thick import Thick, slices_of
from . import common, tissue
from .through_plane import case, middle

CASES = Thick(4.0, "gaussian", noise=0.01), Thick(5.0, "box", noise=0.01)
SHOWN = ("gain dB", "sr dB", "sr lesions", "sr edges", "sr steps")


def main(
    scans: Annotated[Path | None, typer.Argument(help="More isotropic scans: a file or a folder.")] = None,
    size: Annotated[int, typer.Option(min=48, help="Voxels along each edge of the part in the middle.")] = 96,
    minutes: Annotated[float, typer.Option(help="Time limit of each training.")] = 60.0,
) -> None:
    """Measure both models; writes benchmarks/results/self-training.json."""
    embedded = SuperResolver(None, "cpu", to=1.0)
    table: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, read in tissue.heads(scans):
            head = middle(read(), 2, size)
            for thick in CASES:
                image = nib.Nifti1Image(slices_of(head[0], thick)[0], np.diag([1.0, 1, thick.step, 1]))
                tuned = tune_to(image_scan(image), embedded, minutes)
                tuned.write(file := Path(folder) / "tuned.onnx")
                before, after = (case(head, thick, r) for r in (embedded, SuperResolver(file, to=1.0)))
                row = {"held out dB": tuned.gain, "b-spline lesions": before["b-spline lesions"]}
                for key in SHOWN:
                    row[f"embedded {key}"], row[f"tuned {key}"] = before[key], after[key]
                told = f"1 x 1 x {thick.step:.3g}, {thick.shape}"
                table.setdefault(name, {})[told] = row
                print(f"{name}, {told}: {row}", flush=True)
    common.record("self-training", {"voxels": size, "by head": table})


if __name__ == "__main__":
    with sentences("train"):
        typer.run(main)
