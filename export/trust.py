"""Whether a model may be exported: how much it keeps of lesions and how much detail it invents."""

from __future__ import annotations

from pathlib import Path

from ..runtime.engines.checkpoint import load_network
from ..runtime.resolver import SuperResolver
from ..runtime.trust.examine import against
from ..runtime.trust.proof import figures, prove
from .errors import ExportError

EXAMINED = (2, 2, 2)  # the factors for which results of good and bad models are known


def examined(checkpoint: Path, allow_untrusted: bool = False) -> tuple[dict[str, float], str]:
    """Figures for the card of a checkpoint's model, and a remark.

    Raises ExportError with the objections to the model, unless it is allowed, and RunError or CheckpointError
    if the checkpoint cannot be opened.
    """
    _, _, card = load_network(checkpoint)
    if card.kind != "slab" or card.scale != EXAMINED:
        return {}, "not examined for trust: only 2x2x2 models are"
    with SuperResolver(checkpoint, "cpu", "fp32") as resolve:
        tests = prove(resolve, card.scale, card.grid)
    worse = " ".join(against(tests))
    if worse and not allow_untrusted:
        raise ExportError(
            f"{checkpoint} is not exported: {worse} udean-trust shows more; --allow-untrusted exports it "
            "all the same."
        )
    return figures(tests), f"untrusted: {worse}" if worse else "examined for trust: see its card"
