"""From a checkpoint to its ONNX files: export each precision, hold it to the float32 network, write it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
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
    import onnx

    from ..trainer.networks import SuperResolution

SUFFIXES: dict[Precision, str] = {"fp32": ".onnx", "fp16": ".fp16.onnx", "int8": ".int8.onnx"}

# Activations grow with the scan's brightest voxels, which lie above the percentile that becomes 1.
HEADROOM = 2.0


@dataclass(frozen=True)
class Artefact:
    """A written model: its file, its card, what parity found by engine and windows, and a remark."""

    path: Path
    card: ModelCard
    found: dict[str, dict[str, parity.Deviation]]
    remark: str = ""


Tell = Callable[[Artefact | ExportError], None]


def export_onnx(
    checkpoint: Path,
    folder: Path,
    shape: graph.Shape | None = None,
    scans: Sequence[Path] = (),
    tell: Tell = lambda _: None,
) -> list[Artefact]:
    """Write NAME.onnx, NAME.fp16.onnx and, with scans to calibrate on, NAME.int8.onnx into the folder.

    shape: fixed input sizes. tell: hears of each file, or of why it was refused, as it happens. A refused
    precision is not written and not in the result. Raises ExportError, RunError or CheckpointError where
    nothing can start.
    """
    from ..trainer.checkpoint import load_generator

    network, card = load_generator(checkpoint)
    card = card.replace(checkpoint=sha256(checkpoint))
    if shape:
        card = card.replace(window=(shape.rows, shape.columns))
    windows = parity.probe_windows(card, [(shape.batch, shape.rows, shape.columns)] if shape else ())
    reference = parity.remembered(torch_network(network))
    written: list[Artefact] = []

    def finish(precision: Precision, make: Callable[[], tuple[onnx.ModelProto, str]]) -> None:
        path = folder / (checkpoint.stem + SUFFIXES[precision])
        try:
            model, remark = make()
            own = card.replace(precision=precision)
            found = _measure(graph.serialize(model, own), precision, windows, reference)
        except ExportError as refusal:
            tell(ExportError(f"{path} is not written: {refusal}"))
            return
        own = own.replace(parity=parity.figures(found))
        graph.write(graph.serialize(model, own), path)
        written.append(Artefact(path, own, found, remark))
        tell(written[-1])

    def fp32() -> tuple[onnx.ModelProto, str]:
        return graph.to_onnx(network, card.slab[0], half=False, shape=shape), ""

    def fp16() -> tuple[onnx.ModelProto, str]:
        refuse_overflow(network, windows)
        return graph.to_onnx(network, card.slab[0], half=True, shape=shape), ""

    finish("fp32", fp32)
    finish("fp16", fp16)
    if scans:
        from . import quantize

        calibration = quantize.scan_windows(scans, card)  # scans that cannot be read end the command

        def int8() -> tuple[onnx.ModelProto, str]:
            model = graph.to_onnx(network, card.slab[0], half=False, shape=shape)
            small = quantize.quantize(model, calibration)
            return small, quantize.speed(model, small, card, windows["brain"][0])

        finish("int8", int8)
    return written


def _measure(
    contents: bytes, precision: Precision, windows: dict[str, list[parity.Windows]], reference: parity.Network
) -> dict[str, dict[str, parity.Deviation]]:
    """Deviations by engine and windows, of a model that is not yet anywhere; ExportError beyond the limit."""
    found: dict[str, dict[str, parity.Deviation]] = {}
    with tempfile.TemporaryDirectory(prefix="udean-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(contents)
        for engine, network in parity.engines(path):
            found[engine] = parity.measure(network, windows, reference)
            parity.enforce(found[engine], precision, engine)
    return found


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
            f"half precision overflows, activations of {name} reach {largest[name]:.3g} and its largest "
            "number is 65504; use the fp32 model."
        )
