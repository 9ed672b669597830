"""The network of a resolver: the engine that runs it, whose turn it is, and what replaces a lost GPU."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..cuda import CudaEngine, CudaPipeline
from ..cuda.device import GpuError
from ..engines.choose import choose_engine, cpu_model, open_engine
from ..errors import RunError
from ..pipeline.engine import Engine
from ..pipeline.host import HostPipeline
from ..pipeline.tiling import Window
from ..system.trace import span
from ..task import Setup

log = logging.getLogger("udean")
T = TypeVar("T")


class Network:
    """One engine for any number of threads, which take turns at it.

    Raises RunError if the engine cannot be opened.
    """

    def __init__(self, setup: Setup) -> None:
        engine, threads, library = setup.engine, setup.threads, setup.library
        self._trace, self._turn = setup.trace, threading.Lock()
        self._fallback: Callable[[], Engine] | None = None
        if setup.is_file:
            path = None if engine is None else Path(engine)
            if setup.fallback == "cpu":
                self._fallback = lambda: open_engine(cpu_model(path), "cpu", "auto", threads, library)
            try:
                with span(setup.trace, "load"):
                    engine = choose_engine(path, setup.device, setup.precision, threads, library)
            except GpuError as error:
                engine = self._without_gpu(error)
        self.card = engine.card
        self._engine: Engine | CudaEngine | None = engine
        self._pipeline: HostPipeline | CudaPipeline | None = _pipeline(engine)
        self._open_through_plane = lambda: open_engine(None, "cpu", "auto", threads, library, "through-plane")
        self._through_plane: Engine | None = None
        self._opening = threading.Lock()

    @property
    def engine(self) -> Engine | CudaEngine:
        """The open engine. Raises RunError once it is closed."""
        if self._engine is None:
            raise RunError("This SuperResolver is closed: open another.")
        return self._engine

    @property
    def pipeline(self) -> HostPipeline | CudaPipeline:
        """The pipeline that runs windows through the engine. Raises RunError once it is closed."""
        if self._pipeline is None:
            raise RunError("This SuperResolver is closed: open another.")
        return self._pipeline

    @property
    def closed(self) -> bool:
        return self._engine is None

    @property
    def on_host(self) -> bool:
        """Whether the processor runs the network."""
        return not isinstance(self._pipeline, CudaPipeline)

    @property
    def window(self) -> Window:
        """The windows of "auto": whole planes, unless the engine was made for windows of one size."""
        return getattr(self._engine, "window", None) or "auto"

    @property
    def through_plane(self) -> Engine | CudaEngine:
        """The model for thick slices: this one if it is of that kind, else the embedded one.

        The embedded one is opened, for the processor, when it is first needed.
        """
        if self.card.kind == "through-plane":
            return self.engine
        with self._opening:
            if self._through_plane is None:
                with span(self._trace, "load"):
                    self._through_plane = self._open_through_plane()
            return self._through_plane

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do what needs the engine when it is this thread's turn, and return its result.

        If the GPU fails and a fallback was asked for, the work is done again, by the processor.
        """
        with self._turn:
            try:
                return work()
            except GpuError as error:
                self._engine = engine = self._without_gpu(error)
                self._pipeline = HostPipeline(engine)
                return work()

    def close(self) -> None:
        """Let go of the engine, once the volume in hand is done."""
        with self._turn:
            if isinstance(self._pipeline, CudaPipeline):
                self._pipeline.close()
            self._engine = self._pipeline = self._through_plane = None

    def _without_gpu(self, error: GpuError) -> Engine:
        """The fallback engine for the processor. Raises the error if none was asked for."""
        if self._fallback is None:
            raise error
        engine = self._fallback()
        log.warning("%s Going on with %s.", error, engine.info)
        return engine


def _pipeline(engine: Engine | CudaEngine) -> HostPipeline | CudaPipeline:
    return HostPipeline(engine) if callable(engine) else CudaPipeline(engine)
