"""Shared by all commands: start, errors and exit codes.

Exit codes: 0 all done; 1 some scans failed and the others are written; 2 nothing could start; 130
interrupted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import typer
from typer.core import TyperCommand

from ... import __version__
from ..errors import RunError, first_line
from ..system import interruption
from ..system.interruption import INTERRUPTED, STOPS
from ..system.memory import lacks_memory, limit
from .streams import guard_streams, say

WIDE = 120  # columns of a terminal that holds the panels of --help, whatever an option is called
TAKEN = {str: "TEXT", Path: "PATH", int: "NUMBER", float: "NUMBER"}


class Sections(TyperCommand):
    """A command whose --help has sections for its panels in a narrow terminal, too."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if record := parameter.get_help_record(ctx):
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)


def command(
    function: Callable[..., None], name: str, *examples: str, extra: str = "cpu", note: str = ""
) -> Callable[..., None]:
    """A function with typer's annotations as a command; what is returned runs it, on sys.argv by default.

    examples: whole command lines, shown by --help after the options, as is the note. extra: of this package,
    that brings a library which is not installed.
    """
    lines = [*([note] if note else []), *(f"Example: {example}" for example in examples)]

    def main(arguments: Sequence[str] | None = None) -> None:
        with sentences(extra):
            given = sys.argv[1:] if arguments is None else list(arguments)
            refuse_empty(given)
            # Panels cut off what does not fit; plain text goes on in the next line.
            plain: dict[str, Any] = {"rich_markup_mode": None} if get_terminal_size().columns < WIDE else {}
            app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, **plain)
            settings = {"token_normalize_func": _dashed}
            app.command(name, cls=Sections, epilog="\n\n".join(lines), context_settings=settings)(function)
            built = typer.main.get_command(app)
            built.params.append(_version_option(name))
            for parameter in built.params:
                _name_types(parameter)
            if any(variable.endswith("_COMPLETE") for variable in os.environ):
                from typer.completion import completion_init  # pyright: ignore[reportPrivateImportUsage]

                completion_init()
            try:  # what is not understood is a sentence too, and no box that a narrow terminal breaks
                code = built(given, prog_name=called(name), standalone_mode=False)
            except typer.TyperException as error:
                raise RunError(f"{_told(error)} {called(name)} --help shows how.") from None
            if code == INTERRUPTED:  # of which typer makes an exit code, without a word
                raise KeyboardInterrupt
            raise SystemExit(code)

    main.__doc__ = (function.__doc__ or "").strip().partition("\n")[0]
    return main


def counted(count: int, thing: str) -> str:
    """A number of things, as 1 scan or 2 scans."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _name_types(parameter: Any) -> None:
    """Have --help say what a parameter takes, without Python's names of types: PATH, not list[Path]."""
    if parameter.param_type_name == "argument":
        parameter.metavar = parameter.metavar or parameter.name.upper()
        parameter.display_type_rich = lambda ctx: None  # the name says it
    elif parameter.is_flag:
        parameter.display_type_rich = lambda ctx: None
    elif not (parameter.metavar or parameter.type_descriptor.is_choice):
        kind = parameter.type_descriptor.annotation
        parameter.metavar = TAKEN.get((*typing.get_args(kind), kind)[0])


def _told(error: Any) -> str:
    """Typer's message about options and arguments, in one line."""
    text = " ".join(error.format_message().split())
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _dashed(name: str) -> str:
    """--participant_label, as BIDS-Apps write it, is --participant-label."""
    return name.replace("_", "-")


def _version_option(name: str) -> Any:
    """The option --version, as typer makes it of a function's argument."""

    def tell(asked: bool) -> None:
        if asked:
            print(f"{name} {__version__}")
            raise typer.Exit

    def nothing(
        version: bool = typer.Option(
            False, "--version", help="Show the version.", is_eager=True, expose_value=False, callback=tell
        ),
    ) -> None: ...

    app = typer.Typer(add_completion=False)
    app.command()(nothing)
    return typer.main.get_command(app).params[0]


def called(name: str) -> str:
    """How the user calls a command: `udean run` or udean-run."""
    return sys.argv[0] if sys.argv[0] == name.replace("-", " ", 1) else name


def refuse_empty(arguments: Sequence[str]) -> None:
    """Raise RunError for an empty argument: an empty path would mean the working folder."""
    for argument in arguments:
        if not argument.strip() or (argument.startswith("--") and argument.endswith("=")):
            where = f" ({argument})" if argument.strip() else ""
            raise RunError(f"An argument is empty{where}, as that of a shell variable which is not set.")


@contextlib.contextmanager
def sentences(extra: str = "cpu") -> Iterator[None]:
    """Turn errors of a command into one sentence on stderr and an exit code; with --debug, a traceback as
    well.

    extra: of this package, that brings a library which is not installed; PyTorch comes with "train".
    """
    guard_streams()
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        # A library in which it came has made an error of its own of it.
        if isinstance(error, KeyboardInterrupt) or interruption.came():
            typer.echo("Interrupted.", err=True)
            raise SystemExit(INTERRUPTED) from None
        if "--debug" in sys.argv:
            raise
        say(f"Error: {sentence(error, extra)}", error=True)
        raise SystemExit(2) from None


def sentence(error: Exception, extra: str) -> str:
    """A command's message for an error."""
    if isinstance(error, RunError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        extra = "train" if error.name == "torch" else extra
        return f"This needs {error.name}, which is not installed: pip install 'udean[{extra}]'"
    if lacks_memory(error):
        return f"There is not enough memory{limit()}: close other programs, or crop the scan."
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return f"{where}{error.strerror}."
    text = first_line(error)
    if isinstance(error, OSError):
        return text
    return f"An unexpected error occurred ({type(error).__name__}: {text}). --debug shows where."


def on_stop(action: Callable[[], object]) -> None:
    """Have a thread call `action` once a signal to stop comes. Call this from the main thread.

    A handler in Python waits until the main thread wakes up, and a signal that the system hands to another
    thread wakes it not: the main thread of a server might sleep on for ever.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)  # written to at once, whichever thread gets the signal
    for number in STOPS:
        if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # all but SIGHUP under nohup

    def listen() -> None:
        while os.read(reader, 1)[0] not in STOPS:
            pass
        action()

    threading.Thread(target=listen, daemon=True, name="stop").start()
