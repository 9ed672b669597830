"""The embedded through-plane model's last step: from a training's checkpoint to the file that is shipped.

    python -m udean.recipes.through_plane_model RUN [--out runtime/models/through-plane.onnx]

`make through-plane-model` draws the heads and trains before; docs/thick-slices.md has the recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from .. import __version__
from ..benchmarks.common import run_script
from ..export.graph import serialize, to_onnx, write
from ..runtime.models.card import ModelCard
from ..runtime.pipeline.through_plane import CHANNELS
from ..runtime.scan.intensity import RULE
from ..trainer.nets.through_plane import ThroughPlane
from ..trainer.through_plane import NAME

MODEL = Path(__file__).parents[1] / "runtime" / "models" / "through-plane.onnx"


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the training.")],
    out: Annotated[Path, typer.Option(help="The ONNX model.")] = MODEL,
    trained_on: Annotated[str, typer.Option(help="The scans in words, for the card.")] = "",
) -> None:
    """Export the averaged weights of RUN with their card."""
    kept = torch.load(run / NAME, weights_only=True)
    network = ThroughPlane()
    network.load_state_dict(kept["average"])
    scans = trained_on or f"{kept['scans']} isotropic scans"
    card = ModelCard(
        name="udean-through-plane",
        method="simulated slices",
        scale=(1, 1, 1),
        slab=(CHANNELS, 1),
        window=(64, 64),
        grid="center",
        intensity=RULE,
        skip="none",
        precision="fp32",
        parameters=sum(p.numel() for p in network.parameters()),
        toolkit=__version__,
        trained_on=f"planes across simulated thick slices of {scans}, {kept['step']} steps",
        kind="through-plane",
    )
    write(serialize(to_onnx(network, CHANNELS, half=False), card), out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_script(main, "train")
