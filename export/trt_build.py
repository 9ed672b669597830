"""From an ONNX graph to a TensorRT plan, on TensorRT 10 and 11 and on TensorRT for RTX.

The network is strongly typed: precision comes from the graph, which says it for every tensor. Nothing here
reads or writes files; `trt_plan` does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..runtime.models.trt_plan import Hardware, Profile, Weights
from .errors import ExportError

GRACE = 0.3  # seconds for TensorRT to end by itself after Ctrl-C


@dataclass(frozen=True)
class BuildOptions:
    """How to build a plan.

    Parameters
    ----------
    level
        Builder optimization level, 0 (quick build) to 5 (all tactics).
    version_compatible
        For later TensorRT versions too.
    hardware
        "same" GPU as at build, "ampere" and newer, or "rtx" for every RTX card.
    weights
        "fixed", or "refittable" by those of another model of the same structure.
    """

    level: int = 3
    version_compatible: bool = False
    hardware: Hardware = "same"
    weights: Weights = "fixed"


@dataclass(frozen=True)
class Built:
    """A serialized plan, and the timing cache including this build's measurements."""

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
    """Build a plan on the first GPU or, with TensorRT for RTX and without a GPU, for all RTX cards.

    Parameters
    ----------
    trt
        The tensorrt module.
    log
        `runtime.models.trt_plan.logger(trt)`.
    onnx
        The serialized graph, whose input is `lr` (N, slab, H, W).
    slab
        LR slices of the input.
    profiles
        One for each execution context that may be in flight.
    options
        How to build.
    timings
        An earlier timing cache of this GPU and version, or empty.

    Returns
    -------
    Built
        The plan's bytes, and the timing cache for the next build.

    Raises
    ------
    ExportError
        In TensorRT's own words.
    KeyboardInterrupt
        Within a second of Ctrl-C; TensorRT may keep working a little longer, in a daemon thread.
    """
    log.forget()
    try:
        builder = trt.Builder(log)
    except TypeError:  # how the binding reports that the library gave no builder
        raise ExportError(f"TensorRT cannot start: {log.reason()}") from None
    monitor = Monitor(trt)

    def work() -> Built | None:
        network, _parser = parse(trt, log, builder, onnx)
        config = _configure(trt, builder, options, monitor.binding)
        for profile in profiles:
            _add_profile(builder, config, slab, profile)
        cache = config.create_timing_cache(timings)
        if cache is None or not config.set_timing_cache(cache, False):  # of another GPU, or damaged
            log.forget()  # what it says of the cache
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        plan = builder.build_serialized_network(network, config)
        return None if plan is None else Built(bytes(plan), bytes(cache.serialize()))

    with monitor.progress:
        built = _interruptibly(work, monitor)
    if built is None:
        raise ExportError(f"TensorRT {trt.__version__} cannot build the plan: {log.reason()}")
    return built


def _interruptibly(work: Callable[[], Built | None], monitor: Monitor) -> Built | None:
    """Run the work in a thread of its own and return its result, so that Ctrl-C takes effect at once.

    Otherwise Python would raise KeyboardInterrupt in the next callback, mostly the logger's, and TensorRT
    drops exceptions of callbacks; and it asks the monitor whether to continue only every ten seconds or so.
    """
    done: Future[Built | None] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # re-raised in the waiting thread
            done.set_exception(error)

    try:
        threading.Thread(target=run, name="TensorRT", daemon=True).start()
        return done.result()
    except KeyboardInterrupt:
        monitor.cancelled = True
        wait([done], GRACE)
        raise


def parse(trt: Any, log: Any, builder: Any, onnx: bytes) -> tuple[Any, Any]:
    """The network of a graph, and its parser, which holds the weights."""
    # Version 11 has only strongly typed networks; version 10 must be told.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        errors = [_parser_error(trt, parser.get_error(i)) for i in range(parser.num_errors)]
        raise ExportError(
            f"TensorRT {trt.__version__} cannot read the graph: {'; '.join(errors) or log.reason()}"
        )
    return network, parser


def _parser_error(trt: Any, error: Any) -> str:
    """A parser's error in one line: operator and node, what is wrong, code, and where in the parser.

    The description is often only a bare condition, or "false"; the rest is what helps.
    """
    names = {value: name for name, value in trt.ErrorCode.__members__.items()}
    code = names.get(error.code(), str(error.code()))
    at = f"{Path(error.file()).name}:{error.line()}"
    node = f"{error.node_operator()} node '{error.node_name()}': " if error.node_operator() else ""
    return f"{node}{' '.join(error.desc().split())} ({code}, {at})"


def _configure(trt: Any, builder: Any, options: BuildOptions, monitor: Any) -> Any:
    config = builder.create_builder_config()
    config.builder_optimization_level = options.level
    config.progress_monitor = monitor
    # The graph's float32 islands exist for precision: no TF32 (10-bit mantissas) behind its back.
    config.clear_flag(trt.BuilderFlag.TF32)
    # The network is one chain, and several contexts fill the device: helper streams only add events.
    config.max_aux_streams = 0
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware == "ampere":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.weights == "refittable":
        config.set_flag(trt.BuilderFlag.REFIT)
    return config


def _add_profile(builder: Any, config: Any, slab: int, sizes: Profile) -> None:
    profile = builder.create_optimization_profile()
    profile.set_shape("lr", *((n, slab, h, w) for n, h, w in (sizes.min, sizes.opt, sizes.max)))
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(f"TensorRT does not take the sizes {sizes.min}, {sizes.opt}, {sizes.max}.")


class Monitor:
    """A progress bar for each phase of a build; `binding` is what TensorRT is given.

    TensorRT calls it from arbitrary threads. `cancelled` ends the build at its next step.
    """

    def __init__(self, trt: Any) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        # Without a terminal, rich would write a bare line feed at the end.
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.cancelled = False
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        self.binding = _binding(trt, self)

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        def change() -> None:
            depth = "  " if parent in self._tasks else ""
            self._tasks[phase] = self.progress.add_task(depth + phase, total=steps)

        self._update(change)

    def step(self, phase: str, done: int) -> bool:
        """Whether to continue."""
        self._update(lambda: self.progress.update(self._tasks[phase], completed=done + 1))
        return not self.cancelled

    def finish(self, phase: str) -> None:
        self._update(lambda: self.progress.remove_task(self._tasks.pop(phase)))

    def _update(self, change: Callable[[], None]) -> None:
        with self._lock:
            change()


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
