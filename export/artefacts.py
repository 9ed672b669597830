"""From a checkpoint to its files: export each precision, hold it to the float32 network, write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..runtime.card import ModelCard, Precision
from ..runtime.files import sha256
from . import onnx as graph
from . import parity
from .errors import ExportError

if TYPE_CHECKING:
    from ..trainer.networks import SuperResolution

# Activations grow with the scan's brightest voxels, which lie above the percentile that becomes 1.
HEADROOM = 2.0


@dataclass(frozen=True)
class Artefact:
    """A written model: its file, its card, and what parity found by engine and windows."""

    path: Path
    card: ModelCard
    found: dict[str, dict[str, parity.Deviation]]


def export_onnx(
    checkpoint: Path,
    folder: Path,
    shape: graph.Shape | None = None,
    tell: Callable[[Artefact | ExportError], None] = lambda _: None,
) -> list[Artefact]:
    """Write NAME.onnx and NAME.fp16.onnx, NAME being the checkpoint's, into the folder.

    tell: hears of each file, or of why it was refused, as it happens. A refused precision is not written
    and not in the result. Raises ExportError or CheckpointError where nothing can start.
    """
    from ..trainer.checkpoint import load_generator

    network, card = load_generator(checkpoint)
    card = card.replace(checkpoint=sha256(checkpoint))
    size = (shape.batch, shape.rows, shape.columns) if shape else None
    windows = parity.probe_windows(card, size)
    reference = _remembered(torch_network(network))
    written: list[Artefact] = []
    precisions: tuple[tuple[Precision, str], ...] = (("fp32", ".onnx"), ("fp16", ".fp16.onnx"))
    for precision, suffix in precisions:
        try:
            if precision == "fp16":
                refuse_overflow(network, windows)
            model = graph.to_onnx(network, card.slab[0], half=precision == "fp16", shape=shape)
            run = parity.onnxruntime_network(model.SerializeToString())
            found = {"onnxruntime-cpu": parity.measure(run, windows, reference)}
            parity.enforce(found["onnxruntime-cpu"], precision, "ONNX Runtime")
        except ExportError as refusal:
            tell(refusal)
            continue
        figures = {f"{e}/{w}": d.rounded() for e, sets in found.items() for w, d in sets.items()}
        own = card.replace(precision=precision, parity=figures)
        path = folder / (checkpoint.stem + suffix)
        graph.write(graph.serialize(model, own), path)
        written.append(Artefact(path, own, found))
        tell(written[-1])
    return written


def torch_network(network: SuperResolution) -> parity.Network:
    """The float32 PyTorch network on NumPy windows: the reference."""
    import torch

    def run(lr: parity.Windows) -> parity.Windows:
        with torch.inference_mode():
            return network(torch.from_numpy(lr)).numpy()

    return run


def refuse_overflow(network: SuperResolution, windows: dict[str, list[parity.Windows]]) -> None:
    """Raise ExportError where activations come near half precision's largest number, 65504."""
    import torch

    largest: dict[str, float] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: object, _inputs: object, output: torch.Tensor) -> None:
            largest[name] = max(largest.get(name, 0.0), float(output.abs().max()))

        return hook

    handles = [m.register_forward_hook(note(name)) for name, m in network.named_modules() if name]
    try:
        run = torch_network(network)
        for batches in windows.values():
            for batch in batches:
                run(batch)
    finally:
        for handle in handles:
            handle.remove()
    name = max(largest, key=lambda n: largest[n])
    if not largest[name] * HEADROOM < float(np.finfo(np.float16).max):
        raise ExportError(
            f"Half precision overflows: activations of {name} reach {largest[name]:.3g}, and 65504 is its "
            "largest number. Use the fp32 model."
        )


def _remembered(network: parity.Network) -> parity.Network:
    """The same function, each batch computed once: the reference serves every precision."""
    known: dict[int, parity.Windows] = {}

    def run(lr: parity.Windows) -> parity.Windows:
        if id(lr) not in known:
            known[id(lr)] = network(lr)
        return known[id(lr)]

    return run
