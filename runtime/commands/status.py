"""The command `udean-status`: how far the runs of an output folder are."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..runs.status import standing
from . import options
from .common import sentences

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def status(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of udean-run.")],
    debug: options.Debug = False,
) -> None:
    """Say how far the runs of an output folder are: done, failed and why, left, scans an hour.

    The exit code is 1 if scans have failed, else 0.
    """
    found = standing(out)
    print(found)
    for source, why in found.failed:
        print(f"Failed: {source}: {why}")
    raise typer.Exit(1 if found.failed else 0)


def main() -> None:
    """Run the command: what the user can mend is one sentence and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be no text at all
    with sentences():
        app()


if __name__ == "__main__":
    main()
