"""From an ONNX graph to a TensorRT plan, on TensorRT 10 and 11.

The network is strongly typed: precision comes from the graph, which says it for every tensor. Nothing here
reads or writes files; `plans` does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..runtime.models.trt_plan import Hardware, Profile, Weights
from .errors import ExportError


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    workspace: bytes that one layer may use for scratch. level: builder optimization level, 0 (quick build)
    to 5 (all tactics). layers: keep what the layer report needs.
    """

    workspace: int = 4 << 30
    level: int = 3
    version_compatible: bool = False
    hardware: Hardware = "same"
    weights: Weights = "fixed"
    layers: bool = False


@dataclass(frozen=True)
class Built:
    """A serialized plan, and the timing cache with what this build has learned."""

    plan: bytes
    timings: bytes


def build(
    trt: Any,
    log: Any,
    onnx: bytes,
    slab: int,
    profiles: Sequence[Profile],
    options: BuildOptions,
    timings: bytes = b"",
) -> Built:
    """Build a plan on the current CUDA context.

    trt: the tensorrt module. log: `runtime.plan.logger(trt)`. onnx: the graph, whose input is
    `lr` (N, slab, H, W). profiles: one for each execution context that may be in flight, none where the
    graph's sizes are fixed. timings: an earlier timing cache of this GPU and version, or nothing.
    Raises ExportError with TensorRT's first error.
    """
    try:
        builder = trt.Builder(log)
    except TypeError:  # the binding's way to say that the library gave no builder
        raise ExportError(f"TensorRT cannot start: {log.reason()}") from None
    # Version 11 knows no other networks; version 10 wants to be told.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)] or [log.reason()]
        raise ExportError(f"TensorRT {trt.__version__} cannot read the graph: {reasons[0]}")

    with Monitor(trt) as monitor:
        config = _configure(trt, builder, options, monitor.binding)
        for profile in profiles:
            _add_profile(builder, config, slab, profile)
        cache = config.create_timing_cache(timings)
        if cache is None or not config.set_timing_cache(cache, False):  # of another GPU, or damaged
            log.reason()  # said of the cache, not of the build
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        plan = builder.build_serialized_network(network, config)
    if monitor.cancelled:
        raise KeyboardInterrupt
    if plan is None:
        raise ExportError(f"TensorRT {trt.__version__} cannot build the plan: {log.reason()}")
    return Built(bytes(plan), bytes(cache.serialize()))


def _configure(trt: Any, builder: Any, options: BuildOptions, monitor: Any) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    config.builder_optimization_level = options.level
    config.progress_monitor = monitor
    # The graph's float32 islands are there for precision: no 10-bit mantissas behind its back.
    config.clear_flag(trt.BuilderFlag.TF32)
    # The network is one chain, and several contexts fill the device: helper streams only add events.
    config.max_aux_streams = 0
    if options.layers:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware == "ampere":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.weights == "refittable":
        config.set_flag(trt.BuilderFlag.REFIT)
    elif options.weights == "stripped":
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    return config


def _add_profile(builder: Any, config: Any, slab: int, sizes: Profile) -> None:
    profile = builder.create_optimization_profile()
    profile.set_shape("lr", *((n, slab, h, w) for n, h, w in (sizes.min, sizes.opt, sizes.max)))
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(f"TensorRT does not take the sizes {sizes.min}, {sizes.opt}, {sizes.max}.")


def layer_report(trt: Any, engine: Any) -> str:
    """What the engine's layers are, as JSON text; detailed if built with `layers`."""
    return engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)


class Monitor:
    """A progress bar for each phase of a build; `binding` is what TensorRT is given.

    TensorRT calls it from its own threads. Ctrl-C cancels the build; `cancelled` then says so.
    """

    def __init__(self, trt: Any) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self.cancelled = False
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        self.binding = _binding(trt, self)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        def change() -> None:
            depth = "  " if parent in self._tasks else ""
            self._tasks[phase] = self.progress.add_task(depth + phase, total=steps)

        self._update(change)

    def step(self, phase: str, done: int) -> bool:
        """Whether to go on."""
        self._update(lambda: self.progress.update(self._tasks[phase], completed=done + 1))
        return not self.cancelled

    def finish(self, phase: str) -> None:
        self._update(lambda: self.progress.remove_task(self._tasks.pop(phase)))

    def _update(self, change: Callable[[], None]) -> None:
        try:
            with self._lock:
                change()
        except KeyboardInterrupt:  # Python looks for signals here, in the middle of TensorRT's build
            self.cancelled = True


def _binding(trt: Any, monitor: Monitor) -> Any:
    class Binding(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            monitor.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return monitor.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            monitor.finish(phase_name)

    return Binding()
