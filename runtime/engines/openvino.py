"""OpenVINO: on the CPU, the fastest path there, in float32 or bfloat16; on Intel's GPUs and NPUs if
requested.

OpenVINO chooses bfloat16 by itself if the processor supports it, so its precision hint is always set, and
`info` names it. Half-precision graphs run too: their weights are half, the arithmetic is the hint's.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..models.card import METADATA_KEY, ModelCard
from ..pipeline.engine import EngineInfo, EngineRequest
from ..system.extras import require
from ..system.threads import cores, quota
from .input_size import InputSize


class OpenVinoEngine:
    """An ONNX model compiled for this processor, or another device of OpenVINO's, "GPU" or "NPU".

    fixed: for single windows of the training's size only, as an NPU wants it.
    """

    card: ModelCard
    info: EngineInfo

    def __init__(self, request: EngineRequest, device: str = "CPU", fixed: bool = False) -> None:
        ov: Any = require("openvino", "cpu")
        file, precision = request.file, request.precision
        core = _core()
        if device not in {found.partition(".")[0] for found in core.available_devices}:
            raise RunError(f"OpenVINO finds no {device} here, only {', '.join(core.available_devices)}.")
        half = "bf16" if device == "CPU" else "fp16"
        if precision == "auto":
            # BF16 stands for avx512_bf16 or amx: without them a CPU emulates it, slowly.
            able = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
            precision = half if half.upper() in able else "fp32"
        if precision not in ("fp32", half):
            raise RunError(
                f"OpenVINO computes in fp32 or {half} on a {device}: use --precision fp32, {half} or auto."
            )
        hint = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}[precision]
        try:
            model = core.read_model(file)
        except RuntimeError as error:
            raise RunError(f"OpenVINO cannot read {file}: it is damaged or not an ONNX model.") from error
        self.card = ModelCard.from_json(_metadata(model), str(file))
        if fixed:
            model.reshape([1, self.card.slab[0], *self.card.window])
        shape = model.input().partial_shape
        self._size = InputSize.of([n.get_length() if n.is_static else None for n in shape])
        self.window = self._size.window
        # Half-precision inputs and outputs are converted inside the compiled graph.
        edges = ov.preprocess.PrePostProcessor(model)
        edges.input().tensor().set_element_type(ov.Type.f32)
        edges.output().tensor().set_element_type(ov.Type.f32)
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if device == "CPU":
            # OpenVINO would bind its threads to the first cores, in every shard or worker to the same ones.
            settings["ENABLE_CPU_PINNING"] = False
            if request.threads or quota():  # it counts cores but not a container's share of their time
                settings["INFERENCE_NUM_THREADS"] = str(request.threads or cores())
        try:
            compiled = core.compile_model(edges.build(), device, settings)
        except RuntimeError as error:
            raise RunError(f"OpenVINO cannot compile {file}: use --library onnxruntime.") from error
        self._request = compiled.create_infer_request()
        version = ov.__version__.partition("-")[0]
        self.info = request.info("openvino", version, device.lower(), precision)

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._size.run(self._run, windows)

    def _run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._request.infer([windows], share_inputs=True)[0]


@cache
def _core() -> Any:
    """OpenVINO's core, one for the whole process, kept to its end.

    Each core gives the thread that first compiles with it a stack for signal handlers, and removes it at its
    end. If two cores are released in the order of their creation, that thread is left with an unmapped stack:
    the next signal, even a child process's end, would then kill the process.
    """
    return require("openvino", "cpu").Core()


def _metadata(model: Any) -> str:
    """The card's text among the ONNX metadata, which OpenVINO keeps under "framework"."""
    try:
        return model.get_rt_info(["framework", METADATA_KEY]).astype(str)
    except RuntimeError:
        return ""
