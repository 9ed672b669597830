"""From a checkpoint to its ONNX files: export each precision, compare with the float32 network, write."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..runtime.models.card import METADATA_KEY, ModelCard, ModelPrecision
from ..runtime.pipeline.engine import Windows
from ..runtime.system.files import refuse_foreign, sha256
from . import graph, parity, quantize
from .errors import ExportError

if TYPE_CHECKING:
    import onnx

    from ..trainer.nets.generators import SuperResolution

SUFFIXES: dict[ModelPrecision, str] = {"fp32": ".onnx", "fp16": ".fp16.onnx", "int8": ".int8.onnx"}

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
Judge = Callable[[Path, ModelCard], Mapping[str, float]]


def export_onnx(
    checkpoint: Path,
    folder: Path,
    scans: Sequence[Path] = (),
    tell: Tell = lambda _: None,
    quality: Mapping[str, float] | None = None,
    judge: Judge = lambda _path, _card: {},
) -> list[Artefact]:
    """Write NAME.onnx, NAME.fp16.onnx and, with scans to calibrate on, NAME.int8.onnx into the folder.

    Parameters
    ----------
    checkpoint
        NAME.pt; its LR encoder and SR decoder are exported.
    scans
        LR scans (NIfTI) to calibrate int8 on; if empty, no int8 model is written.
    tell
        Called with each Artefact, or with the ExportError that rejected it, as it happens.
    quality
        Figures for the cards by name, beside the checkpoint's own.
    judge
        Figures of the int8 model itself, in place of these; raises ExportError to reject it.

    Returns
    -------
    list of Artefact
        Those that were written; a precision that was rejected is not among them.

    Raises
    ------
    ExportError, RunError, CheckpointError
        If nothing can start.
    """
    from ..trainer.checkpoint import load_generator
    from ..trainer.nets.generators import flop_per_voxel
    from ..trainer.nets.merging import merged

    for precision, suffix in SUFFIXES.items():  # now, not after the minutes of an export
        if precision != "int8" or scans:
            refuse_foreign(folder / (checkpoint.stem + suffix), METADATA_KEY)
    network, card = load_generator(checkpoint)
    deployed = merged(network)
    card = card.replace(
        checkpoint=sha256(checkpoint),
        flop=flop_per_voxel(deployed, card.slab[0]),
        quality={**card.quality, **(quality or {})},
    )
    calibration = quantize.scan_windows(scans, card) if scans else None
    windows = parity.probe_windows(card)
    expected, largest = float32_outputs(network, windows)
    written: list[Artefact] = []

    def finish(precision: ModelPrecision, make: Callable[[], tuple[onnx.ModelProto, str]]) -> None:
        path = folder / (checkpoint.stem + SUFFIXES[precision])
        try:
            model, remark = make()
            own = card.replace(precision=precision)
            found, figures = _measure(model, own, windows, expected, judge)
        except ExportError as refusal:
            tell(ExportError(f"{path} is not written: {refusal}"))
            return
        own = own.replace(parity=parity.card_entries(found), quality={**own.quality, **figures})
        graph.write(graph.serialize(model, own), path)
        written.append(Artefact(path, own, found, remark))
        tell(written[-1])

    full = graph.to_onnx(deployed, card.slab[0], half=False)

    def fp16() -> tuple[onnx.ModelProto, str]:
        refuse_overflow(largest)
        return graph.to_onnx(deployed, card.slab[0], half=True), ""

    def int8(calibration: Windows) -> tuple[onnx.ModelProto, str]:
        small = quantize.quantize(full, calibration)
        return small, quantize.speed(full, small, card, windows["brain"][0])

    finish("fp32", lambda: (full, ""))
    finish("fp16", fp16)
    if calibration is not None:
        finish("int8", lambda: int8(calibration))
    return written


def _measure(
    model: onnx.ModelProto, card: ModelCard, windows: parity.Probes, expected: parity.Probes, judge: Judge
) -> tuple[dict[str, dict[str, parity.Deviation]], Mapping[str, float]]:
    """Deviations of a not yet written model, and figures of its own; ExportError if any is beyond limits."""
    found: dict[str, dict[str, parity.Deviation]] = {}
    with tempfile.TemporaryDirectory(prefix="udean-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(graph.serialize(model, card))
        for engine, network in parity.engines(path):
            found[engine] = parity.deviations(network, windows, expected)
            parity.enforce(found[engine], card.precision, engine)
        return found, judge(path, card) if card.precision == "int8" else {}


def float32_outputs(
    network: SuperResolution, windows: parity.Probes
) -> tuple[parity.Probes, dict[str, float]]:
    """Outputs of the float32 PyTorch network for the windows, and each layer's largest activation."""
    import torch

    largest: dict[str, float] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: object, _inputs: object, output: torch.Tensor) -> None:
            largest[name] = max(largest.get(name, 0.0), float(output.abs().max()))

        return hook

    def run(lr: Windows) -> Windows:
        with torch.inference_mode():
            return network(torch.from_numpy(lr)).numpy()

    handles = [m.register_forward_hook(note(name)) for name, m in network.named_modules() if name]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fixed order of sums, so that equal checkpoints give equal files
    try:
        return parity.run(run, windows), largest
    finally:
        torch.set_num_threads(threads)
        for handle in handles:
            handle.remove()


def refuse_overflow(largest: dict[str, float]) -> None:
    """Raise ExportError if activations, by layer, come near half precision's largest number, 65504."""
    name = max(largest, key=lambda n: largest[n])
    if not largest[name] * HEADROOM < float(np.finfo(np.float16).max):
        raise ExportError(
            f"half precision overflows, activations of {name} reach {largest[name]:.3g} and its largest "
            "number is 65504; use the fp32 model."
        )
