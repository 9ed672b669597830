"""What every command does with errors."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import typer

from ..errors import RunError


@contextlib.contextmanager
def sentences(extra: str = "cpu") -> Iterator[None]:
    """What the user can mend ends as one sentence on stderr and exit code 2, with --debug as a traceback.

    extra: of this package, that brings a library which is not installed; PyTorch comes with "train".
    """
    try:
        yield
    except (RunError, OSError, ModuleNotFoundError) as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"Error: {sentence(error, extra)}", err=True)
        raise SystemExit(2) from None


def sentence(error: Exception, extra: str) -> str:
    """An error in the words of a command."""
    if isinstance(error, ModuleNotFoundError):
        extra = "train" if error.name == "torch" else extra
        return f"This needs {error.name}, which is not installed: pip install 'udean[{extra}]'"
    return str(error)
