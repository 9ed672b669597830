"""Accelerators that are not NVIDIA's: Intel's GPU and NPU by OpenVINO, Apple's and DirectX's by ONNX Runtime.

They belong to the libraries; when one is opened, its output is compared with the processor's float32, and the
agreement is reported.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Literal, get_args

import numpy as np

from ..errors import RunError
from ..pipeline.engine import Engine, EngineRequest
from .onnxruntime import OnnxRuntimeEngine
from .openvino import OpenVinoEngine

Accelerator = Literal["gpu", "npu", "coreml", "dml"]
ACCELERATORS = get_args(Accelerator)
OPENVINO = {"gpu": "GPU", "npu": "NPU"}
ONNX_RUNTIME = {"coreml": "CoreMLExecutionProvider", "dml": "DmlExecutionProvider"}
LEAST = 40.0  # dB of agreement: bfloat16 reaches more than 50, a different network less than 30

log = logging.getLogger("udean")


def open_accelerated(request: EngineRequest, device: str) -> Engine:
    """An `.onnx` model on an accelerator. Raises RunError if it is missing or computes something else."""
    if device in OPENVINO:
        engine = OpenVinoEngine(request, OPENVINO[device], fixed=device == "npu")
        exact = OpenVinoEngine(dataclasses.replace(request, precision="fp32"))
    else:
        engine, exact = OnnxRuntimeEngine(request, ONNX_RUNTIME[device]), OnnxRuntimeEngine(request)
    hold(engine, exact)
    return engine


def hold(engine: Engine, exact: Engine) -> None:
    """Report how well an engine agrees with an exact one. Raises RunError if it computes something else."""
    decibels = agreement(engine, exact)
    if not decibels >= LEAST:  # or it is no number
        raise RunError(f"{engine.info} and {exact.info} agree only to {decibels:.0f} dB: leave out --device.")
    log.warning("%s agrees with %s to %.0f dB, on noise.", engine.info, exact.info, decibels)


def agreement(engine: Engine, exact: Engine) -> float:
    """How well two engines agree on a training window of noise: PSNR in dB, of the range 0 to 1."""
    card = engine.card
    noise = np.random.default_rng(0).random((1, card.slab[0], *card.window), np.float32)
    error = float(np.mean(np.square(engine(noise) - exact(noise), dtype=np.float64)))
    return math.inf if error == 0 else -10 * math.log10(error)
