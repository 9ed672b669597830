"""What every command does with errors."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import typer

from .errors import RunError


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """What the user can mend ends as one sentence on stderr and exit code 2, with --debug as a traceback."""
    try:
        yield
    except RunError as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
