"""The command `udean-export`, and `udean-export inspect`."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np
import typer

from ..runtime.commands.common import command, sentence
from ..runtime.errors import RunError
from ..runtime.system.interruption import INTERRUPTED
from .errors import ExportError
from .trt_build import BuildOptions

if TYPE_CHECKING:
    from .artefacts import Artefact
    from .parity import Deviation

PLAN = "TensorRT plan"
T = TypeVar("T", int, tuple[int, int])


def export(
    checkpoint: Annotated[Path | None, typer.Argument(help="A checkpoint of udean-train.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; default: the input's.")] = None,
    int8: Annotated[
        list[Path] | None, typer.Option(help="Also an int8 model, calibrated on this LR scan or folder.")
    ] = None,
    allow_untrusted: Annotated[
        bool,
        typer.Option(
            "--allow-untrusted",
            help="Export a 2x2x2 model even if it loses small lesions or draws detail that is not there.",
        ),
    ] = False,
    trt: Annotated[bool, typer.Option("--trt", help="Also a TensorRT plan for this machine's GPU.")] = False,
    rtx: Annotated[
        bool,
        typer.Option(
            "--rtx", help="NAME.rtx.plan for every RTX card, built on any machine. Experimental: not yet run."
        ),
    ] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="Build the plan from this .onnx, without a checkpoint.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(help="Compare this .onnx or .plan with its float32 model on this machine.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="The float32 model, .onnx or checkpoint; default: the one beside.")
    ] = None,
    batches: Annotated[
        str, typer.Option(help="Least, usual and largest batch.", rich_help_panel=PLAN)
    ] = "1:8:16",
    windows: Annotated[
        str,
        typer.Option(
            help="Least, usual and largest window: 32x32:64x64:128x128; default: the training window.",
            rich_help_panel=PLAN,
        ),
    ] = "",
    streams: Annotated[
        int, typer.Option(min=1, help="Batches in flight, with one profile each.", rich_help_panel=PLAN)
    ] = 2,
    optimization_level: Annotated[
        int, typer.Option(min=0, max=5, help="0: built soonest, 5: searched longest.", rich_help_panel=PLAN)
    ] = 3,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="For later versions too.", rich_help_panel=PLAN)
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="For all of Ampere and newer.", rich_help_panel=PLAN)
    ] = False,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="Make weights exchangeable; if such a plan exists already, only exchange them.",
            rich_help_panel=PLAN,
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and TensorRT's log.")] = False,
) -> None:
    """Turn a checkpoint into models that run without PyTorch: NAME.onnx, NAME.fp16.onnx, NAME.plan."""
    if sum(given is not None for given in (checkpoint, source, verify)) != 1:
        raise ExportError("Name one of CHECKPOINT, --from MODEL.onnx and --verify MODEL; see --help.")
    if verify is not None:
        _verify(verify, against)
        return
    if rtx and (refit or version_compatible or hardware_compatible):
        raise ExportError(
            "--rtx cannot be combined with other kinds of plan: build those on a GPU, without --rtx."
        )
    batch_sizes = _three(batches, "--batches", int)
    window_sizes = _three(windows, "--windows", _window) if windows else None
    options = BuildOptions(
        level=optimization_level,
        version_compatible=version_compatible,
        hardware="ampere" if hardware_compatible else "same",
        weights="refittable" if refit else "fixed",
    )
    plans = [options] if trt or (source and not rtx) else []
    plans += [dataclasses.replace(options, hardware="rtx")] if rtx else []
    if plans:  # check their requirements before the export, which takes a minute
        from . import trt_plan

        for kind in plans:
            trt_plan.check_host(kind.hardware == "rtx")
    written = 0
    failures = 0

    def tell(result: Artefact | Exception) -> None:
        nonlocal written, failures
        if isinstance(result, Exception):
            failures += 1
            typer.echo(sentence(result, "export"), err=True)
        else:
            written += 1
            _show(result)

    if checkpoint is not None:
        from .artefacts import export_onnx
        from .trust import examined, examined_again

        figures, remark = examined(checkpoint, allow_untrusted)
        print(f"{checkpoint}: {remark}")
        judge = functools.partial(examined_again, allow_untrusted=allow_untrusted)
        models = export_onnx(checkpoint, out or checkpoint.parent, int8 or [], tell, figures, judge)
        source = next((a.path for a in models if a.card.precision == "fp16"), None) if plans else None
        if plans and source is None:
            tell(ExportError("No plan is built, because it would be made from the fp16 model."))
    for kind in plans if source is not None else ():
        from . import trt_plan

        assert source is not None
        sizes = trt_plan.Sizes(batch_sizes, window_sizes, streams)
        try:
            tell(trt_plan.build_plan(source, out or source.parent, sizes, kind, against, debug))
        except RunError as error:
            if not written or debug:
                raise
            tell(error)
        except KeyboardInterrupt:
            typer.echo("Interrupted: no plan is written.", err=True)
            raise SystemExit(INTERRUPTED) from None
    if failures:
        raise typer.Exit(1 if written else 2)


def inspect(
    file: Annotated[Path, typer.Argument(help="A checkpoint, an .onnx or a .plan.")],
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Show what a model is: its card, inputs, profiles, sizes and operators."""
    from .inspect import model_lines

    lines = list(model_lines(file))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")


EXPORT = command(
    export,
    "udean-export",
    "udean-export runs/mine/checkpoint.pt  # writes two .onnx",
    "udean-export runs/mine/checkpoint.pt --int8 lr/",
    "udean-export --from NAME.fp16.onnx  # a plan for this GPU",
    "udean-export --verify NAME.onnx",
    note="udean-export inspect FILE shows what a checkpoint, an .onnx or a .plan is.",
    extra="export",
)
INSPECT = command(inspect, "udean-export inspect", "udean-export inspect NAME.onnx", extra="export")


def main() -> None:
    """Turn a checkpoint into models that run without PyTorch."""
    if sys.argv[1:2] == ["inspect"]:
        INSPECT(sys.argv[2:])
    else:
        EXPORT()


def _verify(path: Path, against: Path | None) -> None:
    from .verify import verify

    for index, (engine, found) in enumerate(verify(path, against)):
        if index == 0:  # not above an error
            print(path)
        _show_deviations(engine, found)


def _show(artefact: Artefact) -> None:
    size = artefact.path.stat().st_size / 1e6
    remark = f", {artefact.remark}" if artefact.remark else ""
    print(f"{artefact.path}  {size:.1f} MB, {artefact.card.precision}{remark}")
    for engine, found in artefact.found.items():
        _show_deviations(engine, found)


def _show_deviations(engine: str, found: dict[str, Deviation]) -> None:
    for windows, d in found.items():
        print(
            f"  {engine} on {windows} windows: max error {d.max_error:.1e}, relative {d.relative:.1e}, "
            f"PSNR {d.psnr:.1f} dB"
        )


def _three(text: str, option: str, read: Callable[[str], T]) -> tuple[T, T, T]:
    """Three increasing sizes, "least:usual:largest"; a single one is used for all three."""
    parts = text.split(":")
    try:
        least, usual, largest = map(read, parts * 3 if len(parts) == 1 else parts)
        low, middle, high = (np.atleast_1d(np.array(size)) for size in (least, usual, largest))
        if (low < 1).any() or (low > middle).any() or (middle > high).any():
            raise ValueError
    except ValueError:
        raise ExportError(f"{option} takes three increasing sizes, or one for all; not '{text}'.") from None
    return least, usual, largest


def _window(text: str) -> tuple[int, int]:
    rows, columns = map(int, text.lower().split("x"))
    if min(rows, columns) < 1:
        raise ValueError(text)
    return rows, columns
