"""The kind of a model file, by its suffix, in upper or lower case."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

FileKind = Literal["onnx", "plan", "checkpoint"]

CHECKPOINTS = (".pt", ".pth", ".ckpt")
SUFFIXES: dict[str, FileKind] = {".onnx": "onnx", ".plan": "plan", **dict.fromkeys(CHECKPOINTS, "checkpoint")}


def model_kind(path: Path | None) -> FileKind | None:
    """The kind of a model's file; None for other files. Without a path: the embedded model's."""
    return "onnx" if path is None else SUFFIXES.get(path.suffix.lower())
