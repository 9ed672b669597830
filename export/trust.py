"""Whether a model may be exported: how much it keeps of lesions and how much detail it invents."""

from __future__ import annotations

from pathlib import Path

from ..runtime.engines.checkpoint import load_network
from ..runtime.models.card import ModelCard
from ..runtime.pipeline.engine import Library, Precision
from ..runtime.resolver import SuperResolver
from ..runtime.trust.examine import against
from ..runtime.trust.summary import card_figures, prove
from ..trainer.precision import processor_has_bf16
from .errors import ExportError

EXAMINED = (2, 2, 2)  # the factors for which results of good and bad models are known


def examined(checkpoint: Path, allow_untrusted: bool = False) -> tuple[dict[str, float], str]:
    """Figures for the card of a checkpoint's model, and a remark.

    Raises ExportError with the objections to the model, unless it is allowed, and RunError or CheckpointError
    if the checkpoint cannot be opened.
    """
    _, _, card = load_network(checkpoint)
    if not is_examined(card):
        return {}, "not examined for trust: only 2x2x2 models are"
    found, worse = _judged(checkpoint, card)
    if not worse and processor_has_bf16():  # in which the runtime then computes, unless told otherwise
        rounded = _judged(checkpoint, card, "bf16")[1]
        worse = rounded and f"in bf16, {rounded}"
    if worse and not allow_untrusted:
        raise ExportError(
            f"{checkpoint} is not exported: {worse} udean-trust shows more; --allow-untrusted exports it "
            "all the same."
        )
    return found, f"untrusted: {worse}" if worse else "examined for trust: see its card"


def examined_again(model: Path, card: ModelCard, allow_untrusted: bool = False) -> dict[str, float]:
    """Figures of an ONNX model that computes otherwise than its checkpoint, in int8; ExportError as above."""
    if not is_examined(card):
        return {}
    found, worse = _judged(model, card, "auto", "onnxruntime")
    if worse and not allow_untrusted:
        raise ExportError(f"in {card.precision}, {worse} --allow-untrusted writes it all the same.")
    return found


def is_examined(card: ModelCard) -> bool:
    return card.kind == "slab" and card.scale == EXAMINED


def _judged(
    model: Path, card: ModelCard, precision: Precision = "fp32", library: Library = "auto"
) -> tuple[dict[str, float], str]:
    """Figures, and objections."""
    with SuperResolver(model, "cpu", precision, library=library) as resolve:
        tests = prove(resolve, card.scale, card.grid)
    return card_figures(tests), " ".join(against(tests))
