"""Options that every command has which opens a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..pipeline import engine

Model = Annotated[
    Path | None, typer.Option(help="Model: .plan, .onnx or a checkpoint. (default: the embedded model)")
]
Library = Annotated[engine.Library, typer.Option(help="What runs an .onnx.")]
Device = Annotated[str, typer.Option(help="Where the network runs: auto, cpu, cuda or cuda:N.")]
Precision = Annotated[engine.Precision, typer.Option(help="Of the network's arithmetic.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Of the network. (default: all cores)")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
