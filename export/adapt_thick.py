"""`udean-adapt --to`: the through-plane model, trained further on the planes of one thick scan."""

from __future__ import annotations

import dataclasses
import math
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import typer
from onnx import numpy_helper

from .. import __version__
from ..runtime.commands.streams import say
from ..runtime.errors import RunError
from ..runtime.models.card import ModelCard
from ..runtime.pipeline.through_plane import CHANNELS
from ..runtime.resolver import SuperResolver
from ..runtime.scan.orientation import Orientation
from ..runtime.scan.scan import Scan, open_scan
from ..runtime.stages.to_spacing import stack_of
from ..trainer.cli import Lines
from ..trainer.data.scans import find
from ..trainer.nets.through_plane import ThroughPlane
from ..trainer.own_planes import Tell, error, own_planes, tune
from .graph import read, serialize, to_onnx, write

EMBEDDED = Path(str(files("udean.runtime") / "models" / "through-plane.onnx"))
STEPS = 150  # two to four minutes of a processor; other numbers were not tried
# dB on held-out planes from which a model counts as better: a choice, not a measurement.
LEAST = 0.1


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A network tuned to a scan, its card, and its gain over the embedded one, in dB on held-out planes."""

    network: ThroughPlane
    card: ModelCard
    gain: float

    def write(self, path: Path) -> None:
        """Write it in ONNX. Raises ExportError if the folder cannot be written to."""
        write(serialize(to_onnx(self.network, CHANNELS, half=False), self.card), path)


def tune_to(
    scan: Scan, resolve: SuperResolver, minutes: float, seed: int = 0, tell: Tell = lambda *_: None
) -> Tuned:
    """Tune the embedded through-plane model to a scan. resolve: with the embedded model, and its spacing.

    Raises RunError for scans without thick slices, or with too few.
    """
    choice = resolve.scans.choice(scan)
    if choice.kind != "through-plane" or choice.grid is None:
        raise RunError(f"{scan.name} has no thick slices: leave out --to.")
    unit, turn = resolve.scans.look(scan)[0].unit, Orientation.of(scan.affine, choice.axis)
    voxels = turn.turned(scan.voxels_in_units())
    planes, held_out = own_planes(stack_of(voxels / np.float32(unit), choice.grid.turned(turn.axes)))
    model, card = read(EMBEDDED)
    network = ThroughPlane()
    weights = {part.name: torch.tensor(numpy_helper.to_array(part)) for part in model.graph.initializer}
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    tuned = tune(network, planes, STEPS, 60 * minutes, seed, tell)
    card = dataclasses.replace(
        card,
        name="udean-through-plane-adapted",
        method="self-training",
        toolkit=__version__,
        trained_on=f"{card.trained_on}; then planes of the scan itself",
    )
    return Tuned(tuned, card, 10 * math.log10(error(network, held_out) / error(tuned, held_out)))


def adapt_thick(scans: list[str], to: str, out: Path, minutes: float, seed: int) -> None:
    """Write OUT, the embedded through-plane model tuned to a scan, if it restores held-out planes better.

    Raises RunError for what is not one scan of thick slices; exits with 1 if it is not better.
    """
    (path, *others) = (entry.path for entry in find(scans))
    if others:
        raise RunError("A through-plane model is tuned to one scan: give one.")
    scan, lines = open_scan(path).loaded(), Lines("Adapting", every=30)
    tuned = tune_to(
        scan, SuperResolver(device="cpu", to=to), minutes, seed,
        lambda step, steps, loss: lines.tell(step, steps, f"loss {loss:.5f}"),
    )  # fmt: skip
    if tuned.gain < LEAST:
        say(f"Not written: planes of {scan.name} held out are restored no better ({tuned.gain:+.2f} dB).")
        raise typer.Exit(1)
    tuned.write(out)
    print(f"{out}: {tuned.gain:+.2f} dB in planes of {scan.name} that were held out")
    print(f"Use it with: udean-run --to {to} --engine {out}")
