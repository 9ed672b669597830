"""TensorRT's real Python bindings without TensorRT: wheels without their libraries, and empty libraries.

The bindings import where `libnvinfer`, `libnvinfer_plugin` and `libnvonnxparser` exist and export the few C
symbols they link to. The classes and enums are then the real ones of that version.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

VERSIONS = ("10.16.1.11", "11.4.0.106")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)


def install(version: str, folder: Path) -> dict[str, str]:
    """Put bindings and empty libraries into the folder; the environment in which `tensorrt_bindings` imports.

    Skips the test, saying why, where pip finds no wheel or there is no C compiler.
    """
    packages, libraries = folder / "packages", folder / "libraries"
    if not (packages / "tensorrt_bindings").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--retries", "1"]
        command += ["--target", str(packages), f"tensorrt-cu13-bindings=={version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"pip cannot get tensorrt-cu13-bindings {version}: {done.stderr.strip()[-300:]}")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the empty TensorRT libraries with")
    libraries.mkdir(exist_ok=True)
    source = libraries / "empty.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for library in LIBRARIES:
        name = f"lib{library}.so.{version.split('.')[0]}"
        command = [
            compiler,
            "-shared",
            "-fPIC",
            f"-Wl,-soname,{name}",
            "-o",
            str(libraries / name),
            str(source),
        ]
        subprocess.run(command, check=True)
    return os.environ | {"PYTHONPATH": str(packages), "LD_LIBRARY_PATH": str(libraries)}
