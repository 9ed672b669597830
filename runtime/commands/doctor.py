"""The command `udean doctor`: what is installed, what this machine can do, which engine would run."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ... import __version__
from ..engines.choose import why_no_gpu
from ..errors import RunError
from ..resolver import SuperResolver
from ..system.files import cache_folder
from ..system.threads import cores
from .common import command, sentence
from .launch import commands

FEATURES = {  # Linux's names of features that make a network fast on a processor
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "VNNI": "avx512_vnni",
    "bfloat16": "avx512_bf16",
    "AMX": "amx_tile",
    "Neon": "asimd",
}
EXTRAS = {  # distribution: the extra that brings it, and what for
    "openvino": ("cpu", "runs models on processors"),
    "onnxruntime": ("cpu", "runs models on processors"),
    "onnxruntime-gpu": ("gpu", "runs models on NVIDIA GPUs"),
    "pycuda": ("gpu", "reaches the GPU"),
    "tensorrt": ("trt", "runs plans on NVIDIA GPUs"),
    "tensorrt-rtx-cu13-libs": ("trt-rtx", "builds and runs plans for RTX cards"),
    "torch": ("train", "trains, and runs checkpoints"),
    "onnx": ("export", "writes models"),
    "scikit-image": ("eval", "measures quality"),
    "pydicom": ("dicom", "reads and writes DICOM"),
    "pynetdicom": ("dicom", "the DICOM node"),
    "ray": ("cluster", "many machines"),
}


def doctor(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Say what is installed, what this machine can do, and which engine would run and why."""
    print(f"udean {__version__} in {Path(__file__).parents[2]}")
    print(f"Python {platform.python_version()} on {platform.platform()}")
    name, features = processor()
    has = ", ".join(shown for shown, flag in FEATURES.items() if flag in features) or "none that we look for"
    print(f"Processor: {name}, {cores()} cores for this process; {has}")
    print(f"Memory: {memory()}")
    print(f"Cache: {_cache()}")
    print("\nLibraries")
    width = max(map(len, EXTRAS))
    for package, (extra, use) in EXTRAS.items():
        found = installed(package)
        lacking = f"not installed: pip install 'udean[{extra}]'"
        print(f"  {package:<{width}}  {found or '-':<12} {use if found else f'{use} ({lacking})'}")
    print("\nCommands: " + ", ".join(sorted(commands())))
    problems = []
    if installed("onnxruntime") and installed("onnxruntime-gpu"):
        problems.append(
            "onnxruntime and onnxruntime-gpu share one folder: keep only one of them and reinstall it."
        )
    print("\nEngine")
    print(f"  GPU: {why_no_gpu(None) or 'ready'}")
    try:
        with SuperResolver() as resolve:
            print(f"  udean-run would use {resolve.describe()}")
            print(f"  because {_why(resolve.engine.info.library)}")
    except (RunError, ImportError, MemoryError) as error:
        problems.append(f"udean-run cannot run: {sentence(error, 'cpu')}")
    for problem in problems:
        print(f"Problem: {problem}")
    raise typer.Exit(1 if problems else 0)


def _cache() -> str:
    try:
        folder = cache_folder()
    except RunError as error:  # a container's user, who does without
        return f"none. {error}"
    return f"{folder}{'' if _writable(folder) else ' (cannot be written to)'}"


def processor() -> tuple[str, set[str]]:
    """The processor's name, and its features as far as the system reports them."""
    name, features = platform.processor() or platform.machine(), set[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return name, features
    for line in lines:
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = value
        elif key in ("flags", "Features"):
            return name, set(value.split())
    return name, features


def memory() -> str:
    """Total and free memory, as far as the system reports it."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[key].split()[0]) / 1e6 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return "not reported by this system"
    return f"{total:.1f} GB, {free:.1f} GB of them free"


def installed(package: str) -> str | None:
    """A distribution's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _why(library: str) -> str:
    reason = why_no_gpu(None)
    where = f"no GPU is used ({reason})" if reason else "a GPU and its libraries are present"
    if library == "openvino":
        return f"{where}, and OpenVINO is the fastest library on processors"
    if library == "onnxruntime" and reason:
        missing = "" if find_spec("openvino") else ", as OpenVINO is not installed"
        return f"{where}, and ONNX Runtime is installed{missing}"
    return where


def _writable(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


main = command(
    doctor, "udean doctor", "udean doctor  # exit code 1 if something that is needed does not work"
)

if __name__ == "__main__":
    main()
