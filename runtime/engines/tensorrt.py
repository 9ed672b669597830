"""TensorRT: runs a `.plan` on the GPU it was built for, one execution context and profile for each slot."""

from __future__ import annotations

from typing import Any

from ..cuda import Slot
from ..cuda.device import Gpu, GpuError, OutOfMemory, is_full
from ..errors import RunError
from ..models.card import ModelCard
from ..models.trt_plan import deserialize, logger, read_plan
from ..pipeline.engine import EngineInfo, EngineRequest
from ..system.extras import require


class TensorRtEngine:
    """A plan, deserialized on the current context."""

    card: ModelCard
    info: EngineInfo

    def __init__(self, request: EngineRequest, gpu: Gpu) -> None:
        file, precision = request.file, request.precision
        contents, plan = read_plan(file)
        trt: Any = require(*plan.library)
        self.card, self.gpu, self._profiles = plan.card, gpu, plan.profiles
        if precision not in ("auto", self.card.precision):
            raise RunError(
                f"{file} computes in {self.card.precision}: build a plan from a model in {precision}, or use "
                "--precision auto."
            )
        self._log = logger(trt)
        engine = deserialize(trt, self._log, contents, plan, file, gpu.capability)
        self.window = plan.profiles[0].opt[1:]
        self.half = engine.get_tensor_dtype("lr") == trt.DataType.HALF
        self.slots = len(self._profiles)
        self._contexts = [engine.create_execution_context() for _ in range(self.slots)]
        if None in self._contexts:
            raise GpuError(f"{file} needs more memory than is free on {gpu.name}: {self._log.reason()}")
        # Contexts do not keep the engine alive; both end in the GPU's context, also when Python ends.
        gpu.closes(self, _Loaded(self._contexts, engine))
        self._ready: set[int] = set()
        self.info = request.info("tensorrt", trt.__version__, gpu.name, self.card.precision)

    def batches(self, window: tuple[int, int]) -> tuple[int, int]:
        profile = self._profiles[0]
        for size, least, most in zip(window, profile.min[1:], profile.max[1:], strict=True):
            if not least <= size <= most:
                raise RunError(
                    f"The plan takes windows of {profile.min[1]}x{profile.min[2]} to {profile.max[1]}x"
                    f"{profile.max[2]} voxels, not {window[0]}x{window[1]}: build it with these sizes."
                )
        return profile.min[0], profile.max[0]

    def enqueue(self, slot: Slot) -> None:
        context = self._contexts[slot.index]
        if slot.index not in self._ready:  # contexts in flight need one profile each
            if slot.index:
                self._check(context.set_optimization_profile_async(slot.index, slot.stream))
            self._ready.add(slot.index)
        self._check(context.set_input_shape("lr", slot.shape))
        self._check(context.set_tensor_address("lr", slot.lr))
        self._check(context.set_tensor_address("sr", slot.sr))
        self._check(context.execute_async_v3(slot.stream))

    def _check(self, done: bool) -> None:
        if not done:
            reason = self._log.reason()
            raise OutOfMemory(reason) if is_full(reason) else GpuError(f"TensorRT failed: {reason}")


class _Loaded:
    """Bytes that TensorRT holds on the device."""

    def __init__(self, contexts: list[Any], engine: Any) -> None:
        self._contexts, self._engine = contexts, engine

    def close(self) -> None:
        self._contexts.clear()
        self._engine = None
