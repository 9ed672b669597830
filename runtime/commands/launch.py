"""`udean`, and what every command starts with: the streams are guarded before anything else is imported.

Commands are the entry points of the group "udean.commands" (pyproject.toml): a new one appears automatically.
"""

from __future__ import annotations

import ast
import difflib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, version
from pathlib import Path

from ... import __version__
from ..errors import RunError
from ..system import interruption, skipped_imports
from .common import refuse_empty, sentences

GROUP = "udean.commands"
LIBRARIES = {  # distributions that may run a model, by their usual names
    "OpenVINO": "openvino",
    "ONNX Runtime": "onnxruntime",
    "ONNX Runtime for GPUs": "onnxruntime-gpu",
    "PyTorch": "torch",
    "TensorRT": "tensorrt",
    "PyCUDA": "pycuda",
}


def main() -> None:
    """Run the command of the program's name, such as udean-run, or the one that its argument names."""
    with interruption.ending(), sentences():
        name = Path(sys.argv[0]).stem.removeprefix("udean-")
        if name not in commands():
            name = _chosen(sys.argv[1:])
        if name == "run" and sys.argv[1:2] == ["status"] and not os.path.lexists("status"):
            name, sys.argv[1:2] = "status", []  # the older spelling: udean-run status OUT
        if name:
            refuse_empty(sys.argv[1:])
            if sys.argv[1:] == ["--version"]:  # shown without loading the command's libraries
                print(f"udean-{name} {__version__}")
                return
            point = commands()[name]
            with sentences(*point.extras):
                skipped_imports.leave_out()
                command = point.load()
                interruption.remember()
                command()


def commands() -> dict[str, EntryPoint]:
    """The commands that are installed, by name. Raises RunError for a copy that is not installed."""
    try:
        found = distribution("udean").entry_points
    except PackageNotFoundError:
        raise RunError("This copy of udean is not installed: pip install . in its folder.") from None
    return {point.name: point for point in found if point.group == GROUP}


def _chosen(arguments: Sequence[str]) -> str | None:
    """The command that `udean NAME ...` runs; None if there is nothing left to do."""
    refuse_empty(arguments)
    name = arguments[0] if arguments else "--help"
    if name == "--version":
        print(versions())
    elif name in ("--help", "-h", "help"):
        print(overview())
    elif name in commands():
        sys.argv = [f"udean {name}", *arguments[1:]]
        return name
    else:
        near = difflib.get_close_matches(name, commands(), 1)
        hint = f": did you mean {near[0]}?" if near else ". udean --help lists them."
        raise RunError(f"udean has no command {name}{hint}")
    return None


def versions() -> str:
    """This package's version, Python's and those of the libraries that may run a model, in one line."""
    here = []
    for name, package in LIBRARIES.items():
        try:
            here.append(f"{name} {version(package)}")
        except PackageNotFoundError:
            continue
    python = ".".join(map(str, sys.version_info[:3]))
    return f"udean {__version__} (Python {python}; {', '.join(here) or 'no library that runs a model'})"


def overview() -> str:
    """The commands, one line each."""
    width = max(map(len, commands()))
    lines = [f"udean {__version__}: MRI super-resolution. Research only, not for diagnosis.", ""]
    lines += ["Usage: udean COMMAND ..., or udean-COMMAND ...", ""]
    lines += [f"  {name:<{width}}  {_about(point)}" for name, point in sorted(commands().items())]
    lines += [
        "",
        "udean COMMAND --help   options and examples",
        "udean --version        with the versions of all engines",
    ]
    return "\n".join(lines)


def _about(point: EntryPoint) -> str:
    """The first line of a command's docstring, read from its source: importing them all takes seconds."""
    source = Path(__file__).parents[2].joinpath(*point.module.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    name = point.attr
    for node in tree.body:  # NAME = command(FUNCTION, ...)
        match node:
            case ast.Assign([ast.Name(id=found)], ast.Call(args=[ast.Name(id=function), *_])) if (
                found == name
            ):
                name = function
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    return (ast.get_docstring(functions[name]) or "").partition("\n")[0] if name in functions else ""
