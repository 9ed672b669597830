"""Options shared by all commands that open a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import resolver
from ..errors import RunError
from ..pipeline import engine

ModelOption = Annotated[
    Path | None, typer.Option(help="Model: .plan, .onnx or a checkpoint. (default: the embedded model)")
]
LibraryOption = Annotated[engine.Library, typer.Option(help="Library that runs an .onnx.")]
Device = Annotated[
    str,
    typer.Option(
        help="Device of the network: auto, cpu, cuda or cuda:N; an .onnx also on gpu or npu (Intel's, by "
        "OpenVINO), coreml or dml (by ONNX Runtime)."
    ),
]
PrecisionOption = Annotated[engine.Precision, typer.Option(help="Numerical precision of inference.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads for inference. (default: all cores)")]
ConsistencyOption = Annotated[
    str,
    typer.Option(
        metavar="auto|off|W",
        help="Weight of the scan's own measured band: chosen by its noise, none, or W from 0 to 1.",
    ),
]
Best = Annotated[
    bool,
    typer.Option(
        "--best",
        help="Mean of three results, with slabs along each axis: better, at three times the cost.",
    ),
]
ErrorMap = Annotated[
    bool,
    typer.Option(
        "--error-map",
        help="Write each voxel's expected error beside the result, as *_desc-error*; needs --best.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def consistency(text: str) -> resolver.Consistency:
    """ "auto", "off" or a number, as `SuperResolver` takes it."""
    if text == "auto" or text == "off":
        return text
    try:
        return float(text)
    except ValueError:
        raise RunError(f"--consistency takes auto, off or a number from 0 to 1, not '{text}'.") from None
