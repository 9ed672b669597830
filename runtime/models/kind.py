"""What kind of file a model is, told by its suffix, whatever the case of its letters."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Kind = Literal["onnx", "plan", "checkpoint"]

CHECKPOINTS = (".pt", ".pth", ".ckpt")
SUFFIXES: dict[str, Kind] = {".onnx": "onnx", ".plan": "plan", **dict.fromkeys(CHECKPOINTS, "checkpoint")}


def model_kind(path: Path | None) -> Kind | None:
    """The kind of a model's file; None for other files. Without path it is the embedded model's."""
    return "onnx" if path is None else SUFFIXES.get(path.suffix.lower())
