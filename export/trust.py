"""Whether a model may be exported: what it leaves of lesions, and how much detail it draws, on phantoms."""

from __future__ import annotations

from pathlib import Path

from ..runtime.engines.checkpoint import load_network
from ..runtime.resolver import SuperResolver
from ..runtime.trust.examine import against
from ..runtime.trust.proof import figures, prove
from .errors import ExportError

EXAMINED = (2, 2, 2)  # the factors whose lesions and detail are known of good and of bad models


def examined(checkpoint: Path, allow_untrusted: bool = False) -> tuple[dict[str, float], str]:
    """Figures for the card of a checkpoint's model, and a remark.

    Raises ExportError with what speaks against the model, unless it is allowed, and RunError or
    CheckpointError as opening the checkpoint does.
    """
    _, _, card = load_network(checkpoint)
    if card.kind != "slab" or card.scale != EXAMINED:
        return {}, "not examined for trust: only models of 2x2x2 are"
    with SuperResolver(checkpoint, "cpu", "fp32") as resolve:
        tests = prove(resolve, card.scale, card.grid)
    worse = " ".join(against(tests))
    if worse and not allow_untrusted:
        raise ExportError(
            f"{checkpoint} is not exported: {worse} udean-trust shows more; --allow-untrusted exports it "
            "all the same."
        )
    return figures(tests), f"untrusted: {worse}" if worse else "examined for trust: see its card"
