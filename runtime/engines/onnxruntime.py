"""ONNX Runtime on the CPU, or another provider if requested: runs the graph in its own precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError, first_line
from ..models.card import METADATA_KEY, ModelCard
from ..pipeline.engine import EngineInfo, EngineRequest
from ..system.extras import require
from ..system.threads import cores
from .input_size import InputSize

CPU = "CPUExecutionProvider"


class OnnxRuntimeEngine:
    """An ONNX model in an inference session of its own."""

    card: ModelCard
    info: EngineInfo

    def __init__(self, request: EngineRequest, provider: str = CPU) -> None:
        ort: Any = require("onnxruntime", "cpu")
        if provider not in (there := ort.get_available_providers()):
            raise RunError(f"The installed ONNX Runtime has no {provider}, only {', '.join(there)}.")
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only: warnings are about graph details that no user can fix
        options.enable_mem_pattern = provider == CPU  # DirectML takes none
        # Without a number ONNX Runtime binds its threads to cores, in every process to the same ones.
        options.intra_op_num_threads = request.threads or cores()
        providers = list(dict.fromkeys((provider, CPU)))
        try:
            model = request.file.read_bytes()  # not its name, which may be no text
            self._session = ort.InferenceSession(model, options, providers=providers)
        except Exception as error:  # the library's own exceptions share no base class
            raise RunError(f"ONNX Runtime cannot load {request.file}: {first_line(error)}") from error
        self.card = card_of(self._session, request)
        self._input = self._session.get_inputs()[0]
        self._size = InputSize.of(self._input.shape)
        self.window = self._size.window
        self._dtype = np.float16 if self._input.type == "tensor(float16)" else np.float32
        where = provider.removesuffix("ExecutionProvider").lower()
        self.info = request.info("onnxruntime", ort.__version__, where, self.card.precision)

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._size.run(self._run, windows)

    def _run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        (output,) = self._session.run(None, {self._input.name: windows.astype(self._dtype, copy=False)})
        return output.astype(np.float32, copy=False)


def card_of(session: Any, request: EngineRequest) -> ModelCard:
    """The card of the model in a session. Raises RunError if the model is of another precision."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")
    card = ModelCard.from_json(text, str(request.file))
    if request.precision not in ("auto", card.precision):
        raise RunError(
            f"ONNX Runtime computes in the model's own precision and {request.file} is {card.precision}: "
            f"give a model exported in {request.precision}, or --precision auto."
        )
    return card
