"""The command `udean-export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..runtime.card import CardError
from ..runtime.errors import RunError
from .errors import ExportError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def _export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of udean-train.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; default: the input's.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Turn a checkpoint into models that run without PyTorch."""
    from .artefacts import Artefact, export_onnx

    refused = False

    def tell(result: Artefact | ExportError) -> None:
        nonlocal refused
        if isinstance(result, ExportError):
            refused = True
            typer.echo(f"Not written: {result}", err=True)
            return
        print(f"{result.path}  {result.path.stat().st_size / 1e6:.1f} MB, {result.card.precision}")
        for engine, sets in result.found.items():
            for windows, d in sets.items():
                print(
                    f"  {engine} on {windows} windows: max error {d.max_error:.1e}, "
                    f"relative {d.relative:.1e}, PSNR {d.psnr:.1f} dB"
                )

    written = export_onnx(checkpoint, out or checkpoint.parent, tell=tell)
    if refused:
        raise typer.Exit(1 if written else 2)


def main() -> None:
    """Run the command; what the user can mend is one sentence and exit code 2."""
    try:
        app()
    except (ExportError, CardError, RunError, ValueError) as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
