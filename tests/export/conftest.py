"""Checkpoints of small networks with random weights, written as the trainer writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from udean.export.artefacts import Artefact, export_onnx
from udean.runtime.models.card import ModelCard
from udean.runtime.scans.intensity import RULE
from udean.trainer.checkpoint import save
from udean.trainer.nets.generators import Architecture, parameter_count, super_resolution

TINY = Architecture(channels=8, groups=1, blocks=1, skip="cubic")


def write_checkpoint(
    path: Path,
    arch: Architecture = TINY,
    gain: float = 1.0,
    window: tuple[int, int] = (16, 16),
    cleaned: bool = False,
) -> Path:
    """A checkpoint of random weights from seed 0.

    gain: multiplies the activations of the first layer. cleaned: with PseudoSR's network before the encoder.
    """
    torch.manual_seed(0)
    network = super_resolution(arch, cleaned)
    with torch.no_grad():
        for value in network.decoder.tail.parameters():  # zero in a fresh network with the skip
            value.normal_(0, 0.05)
        network.encoder.body[0].weight.mul_(gain)
    card = ModelCard(
        name=path.stem,
        method="udean",
        scale=arch.scale,
        slab=arch.slab,
        window=window,
        grid="fft",
        intensity=RULE,
        skip=arch.skip,
        precision="fp32",
        parameters=parameter_count(network),
        toolkit="0",
        trained_on="nothing: random weights",
    )
    save(path, card, arch, network, training={"extractor": {"unused": torch.zeros(1000)}})
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.pt; read it, write nothing beside it."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.pt")


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artefact]:
    """tiny.onnx and tiny.fp16.onnx by precision; read them, write nothing beside them."""
    written = export_onnx(checkpoint, tmp_path_factory.mktemp("exported"))
    return {a.card.precision: a for a in written}
