"""Checkpoints of small networks with random weights, written as the trainer writes them."""

from __future__ import annotations

import functools
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from udean.export.artefacts import Artefact, export_onnx
from udean.runtime.models.card import ModelCard
from udean.runtime.scan.intensity import RULE
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


@pytest.fixture(scope="session")
def of_scale(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Artefact]]]:
    """A checkpoint by its scale, such as "2x2x1", and its ONNX files by precision; 3x3x1 with the skip."""

    @functools.cache
    def make(scale: str) -> tuple[Path, dict[str, Artefact]]:
        factors: Any = tuple(map(int, scale.split("x")))
        skip = "cubic" if scale == "3x3x1" else "none"
        arch = Architecture(channels=8, groups=1, blocks=1, scale=factors, skip=skip)
        folder = tmp_path_factory.mktemp(scale)
        checkpoint = write_checkpoint(folder / "m.pt", arch)
        return checkpoint, {a.card.precision: a for a in export_onnx(checkpoint, folder)}

    return make


SCALES = ("2x2x1", "3x3x1", "4x4x2", "1x1x3")


@dataclass(frozen=True)
class Exported:
    """The output of `udean-export` for a network of the paper's size, with its time and memory."""

    folder: Path
    done: subprocess.CompletedProcess[str]
    seconds: float  # of the processor
    kilobytes: int  # of memory, at most


@pytest.fixture(scope="session")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("paper")
    write_checkpoint(folder / "paper.pt", Architecture(), window=(64, 64))
    command = [Path(sys.executable).with_name("udean-export"), folder / "paper.pt", "--allow-untrusted"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Exported(folder, done, seconds, after.ru_maxrss)
