"""The command `udean-status`: the progress of an output folder's runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..run.status import standing
from . import options
from .common import command
from .streams import say


def status(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of udean-run.")],
    debug: options.Debug = False,
) -> None:
    """Show the progress of an output folder's runs: done, failed and why, left, scans per hour.

    The exit code is 1 if scans have failed, else 0.
    """
    found = standing(out)
    print(found)
    for source, why in found.failed:
        say(f"Failed: {source}: {why}")
    raise typer.Exit(1 if found.failed else 0)


main = command(status, "udean-status", "udean-status scans-sr/")

if __name__ == "__main__":
    main()
