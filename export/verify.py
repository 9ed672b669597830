"""Check an exported model against its float32 source on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..runtime.engines.choose import open_engine
from ..runtime.models.card import CardError, ModelCard
from ..runtime.models.kind import CHECKPOINTS, model_kind
from ..runtime.models.trt_plan import Profile, read_card
from ..runtime.pipeline.engine import Inference
from ..runtime.system.files import sha256
from . import graph, parity
from .errors import ExportError


@dataclass(frozen=True)
class Reference:
    """The model that an artefact is compared with. file: the model's file."""

    file: Path
    network: Inference


ENDINGS = (".rtx.plan", ".plan", ".fp16.onnx", ".int8.onnx", ".onnx", *CHECKPOINTS)


def base_name(path: Path) -> str:
    """NAME of NAME.plan, NAME.rtx.plan, NAME.fp16.onnx, NAME.onnx, NAME.pt."""
    ending = next((e for e in ENDINGS if path.name.lower().endswith(e)), path.suffix)
    return path.name[: len(path.name) - len(ending)]


def verify(path: Path, against: Path | None = None) -> Iterator[tuple[str, dict[str, parity.Deviation]]]:
    """Compare an exported model with its float32 source, in every engine of this machine that runs it.

    Parameters
    ----------
    path
        An `.onnx` file or a TensorRT plan.
    against
        A float32 `.onnx` or the checkpoint; by default NAME.onnx or NAME.pt beside `path`.

    Yields
    ------
    engine : str
        Such as "openvino-cpu".
    found : dict
        Its `Deviation` on each set of windows, by name.

    Raises
    ------
    ExportError
        If a deviation is beyond the limit of the precision, after it has been yielded; or if no source is
        found.
    """
    card, probed, last = _contract(path)
    windows = parity.probe_windows(card, probed)
    expected = parity.run(float32_source(path, card, against, last).network, windows)
    for engine, network in parity.engines(path):
        found = parity.deviations(network, windows, expected)
        yield engine, found
        parity.enforce(found, card.precision, engine)


def _contract(path: Path) -> tuple[ModelCard, list[parity.Size], Path | None]:
    """An artefact's card, the sizes to measure, and a file to compare with if no better one is found."""
    kind = model_kind(path)
    if kind == "plan":
        plan = read_card(path)
        return plan.card, sizes(plan.profiles[0]), path.with_name(plan.onnx)
    if kind != "onnx":
        raise ExportError(f"{path} is neither an .onnx nor a .plan file: name an artefact to verify.")
    return graph.read(path)[1], [], None


def sizes(profile: Profile) -> list[parity.Size]:
    """The sizes at which a plan is measured: the one it is tuned for and the largest."""
    return list(dict.fromkeys((profile.opt, profile.max)))


def float32_source(
    path: Path, card: ModelCard, against: Path | None = None, last: Path | None = None
) -> Reference:
    """The float32 model of the same checkpoint, on the CPU.

    Parameters
    ----------
    path
        The artefact to compare with it.
    card
        The artefact's card.
    against
        The file to use; by default found beside the artefact.
    last
        A file to fall back on, though it is not float32.

    Raises
    ------
    ExportError
        If there is none.
    """
    if against is not None:
        if not _same_source(against, card):
            raise ExportError(f"{against} is not the float32 model of the checkpoint that {path} came from.")
        return Reference(against, _open(against))
    base = base_name(path)
    named = [file for file in sorted(path.parent.iterdir()) if file.name.startswith(base)]
    endings = (".onnx", *CHECKPOINTS)
    beside = (file for ending in endings for file in named if file.name[len(base) :].lower() == ending)
    for file in beside:
        if file != path and file.is_file() and _same_source(file, card):
            return Reference(file, _open(file))
    if last is not None and last.is_file():
        return Reference(last, _open(last))
    raise ExportError(
        f"{path} has no float32 model beside it: put the {base}.onnx or {base}.pt of the same "
        "checkpoint there, or name one with --against."
    )


def _same_source(file: Path, card: ModelCard) -> bool:
    if model_kind(file) == "checkpoint":
        return sha256(file) == card.checkpoint
    try:
        _, other = graph.read(file)
    except (ExportError, CardError):
        return False
    return other.precision == "fp32" and other.checkpoint == card.checkpoint


def _open(file: Path) -> Inference:
    return open_engine(file, library="onnxruntime")
