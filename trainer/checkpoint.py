"""Checkpoints: one file with the deployed network, its card, and everything that training needs to continue.

A checkpoint is a dict of tensors, numbers and text, read only ever with `weights_only=True`:
code in a pickle is refused, not run.
"""

from __future__ import annotations

import dataclasses
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from ..runtime.errors import RunError, first_line
from ..runtime.models.card import CardError, ModelCard
from ..runtime.system.files import atomic
from .nets.generators import Architecture, SuperResolution, super_resolution

FORMAT = 1


class CheckpointError(RunError):
    """The file is not a checkpoint that this version can use."""


def save(
    path: Path,
    card: ModelCard,
    arch: Architecture,
    deployed: SuperResolution,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint atomically; an existing checkpoint survives any failure, including a full disk.

    Parameters
    ----------
    deployed
        LR encoder and SR decoder: the part that is exported.
    training
        What only `udean-train --resume` reads: all networks, optimisers, step.

    Raises
    ------
    CheckpointError, RunError
        If it cannot be written.
    """
    contents = {
        "format": FORMAT,
        "card": card.to_json(),
        # "cleaned": PseudoSR's network before the LR encoder; checkpoints without the key have none.
        "architecture": dataclasses.asdict(arch) | {"cleaned": deployed.cleaner is not None},
        "deployed": deployed.state_dict(),
        "training": training or {},
    }
    try:
        with atomic(path) as file:
            torch.save(contents, file)
    except RuntimeError as error:  # how PyTorch's writer reports a full disk
        raise CheckpointError(f"Cannot write {path}: {first_line(error)}.") from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; no Python code in it is run.

    Returns
    -------
    dict
        The contents, tensors on the CPU.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, foreign or of another format, in one sentence.
    """
    try:
        with warnings.catch_warnings():  # torch's remarks on foreign files; the sentence below says it all
            warnings.simplefilter("ignore")
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"There is no checkpoint {path}.") from None
    except (PermissionError, IsADirectoryError) as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds Python code or objects besides tensors; udean does not run it. "
            "It is damaged or not a udean checkpoint."
        ) from None
    except Exception:  # what damage makes the reader stumble over is any of a dozen kinds
        raise CheckpointError(f"{path} is not a checkpoint, or damaged: make or copy it again.") from None
    if not isinstance(contents, dict) or "format" not in contents or "deployed" not in contents:
        raise CheckpointError(f"{path} is not a udean checkpoint: train one with `udean-train`.")
    if contents["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {contents['format']}, this version of udean reads {FORMAT}: "
            "use the version that wrote it."
        )
    return contents


def load_generator(path: Path) -> tuple[SuperResolution, ModelCard]:
    """Open the deployed network of a checkpoint.

    Returns
    -------
    network : SuperResolution
        In float32 and eval mode; it maps (N, slab in, H, W) to (N, slab out, s·H, s·W).
    card : ModelCard

    Raises
    ------
    CheckpointError
        As `load`, and if the file does not hold the network that it names.
    """
    contents = load(path)
    try:
        card = ModelCard.from_json(contents["card"], str(path))
        network = super_resolution(architecture(contents), contents["architecture"].get("cleaned", False))
        network.load_state_dict(contents["deployed"])
    except CardError as error:
        raise CheckpointError(str(error)) from None
    except (KeyError, TypeError, ValueError, RuntimeError, RunError) as error:
        raise CheckpointError(f"{path} does not hold the network it names: {first_line(error)}.") from None
    return network.float().eval(), card


def architecture(contents: dict[str, Any]) -> Architecture:
    """The architecture of a checkpoint's networks. Raises KeyError or TypeError if it names none."""
    fields: dict[str, Any] = dict(contents["architecture"])
    fields.pop("cleaned", None)
    fields["scale"] = tuple(fields["scale"])
    return Architecture(**fields)
