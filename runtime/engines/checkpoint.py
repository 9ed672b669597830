"""Networks of checkpoints: the only place where the runtime uses the trainer.

The trainer's `checkpoint` knows how to rebuild the network, `merging` how to deploy it; both are imported
when a checkpoint is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..models.card import ModelCard
from ..system.extras import require


def load_network(file: Path) -> tuple[Any, Any, ModelCard]:
    """torch, the deployed network (a torch module in float32 and eval mode) and its card.

    Raises RunError if PyTorch is missing or the file is not a checkpoint.
    """
    torch: Any = require("torch", "train")
    from ...trainer.checkpoint import load_generator
    from ...trainer.nets.merging import merged

    network, card = load_generator(file)
    return torch, merged(network), card


def flop_per_voxel(file: Path) -> int:
    """What an exported model's card says: the operations of a checkpoint's network for an LR voxel."""
    _, network, card = load_network(file)
    from ...trainer.nets import generators

    return generators.flop_per_voxel(network, card.slab[0])
