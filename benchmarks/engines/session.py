"""A row of the benchmark, and its side in a process of its own, which resolves the volume turn by turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...runtime.pipeline.tiling import OVERLAP
from ..child import forget_peak, memory_now


@dataclass(frozen=True)
class Contender:
    """A way to resolve the volume: the runtime, or the network in PyTorch behind MONAI's windows.

    model: file. library: of the runtime, for .onnx. compiled: by `torch.compile`. batch: windows per call;
    None: the fastest; the runtime chooses its own. window: rows and columns; None: those that the network was
    trained on. as_run: for the runtime: with the windows and the measured band that `udean-run` uses by
    default; else with `window` and no later stages, like its peer.
    """

    name: str
    kind: Literal["udean", "monai"]
    model: str
    device: str
    precision: str
    library: str = "auto"
    compiled: bool = False
    threads: int | None = None
    overlap: float = OVERLAP
    batch: int | None = None
    as_run: bool = False
    window: tuple[int, int] | None = None


class ContenderSession:
    """A contender with the volume (.npy) loaded, its network ready and its first run behind it."""

    def __init__(self, who: Contender, volume: str) -> None:
        self._resolve: Callable[[NDArray[Any]], NDArray[Any]]
        self._report: Callable[[], dict[str, float]]
        self._volume = np.asfortranarray(np.load(volume))
        self._about = self._open_runtime(who) if who.kind == "udean" else self._open_monai(who)
        self._resolve(self._volume)  # warm up: compile, choose kernels, fill caches
        forget_peak()
        self._ready = memory_now("VmRSS")

    def about(self) -> dict[str, Any]:
        """What runs, its batch and its window."""
        return self._about

    def run(self) -> dict[str, float]:
        """Resolve the volume: seconds "total" and in the "network", "windows" of the network."""
        start = time.perf_counter()
        self._sr = self._resolve(self._volume)
        return {"total": time.perf_counter() - start, **self._report()}

    def save(self, path: str) -> None:
        """Write the last SR volume, float32, in the units of the volume, as .npy."""
        np.save(path, self._sr)

    def memory(self) -> dict[str, int]:
        """Bytes of host memory: "ready": in use once it was ready; "peak": since then."""
        return {"peak": memory_now("VmHWM"), "ready": self._ready}

    def _open_runtime(self, who: Contender) -> dict[str, Any]:
        from ...runtime.cuda import pipeline
        from ...runtime.engines.choose import choose_engine
        from ...runtime.pipeline import host
        from ...runtime.resolver import SuperResolver

        options: Any = who.precision, who.threads, who.library
        engine = choose_engine(Path(who.model), who.device, *options)
        equal: Any = {"window": who.window or engine.card.window, "consistency": "off"}
        resolver = SuperResolver(engine, overlap=who.overlap, **({} if who.as_run else equal))
        tiling = resolver.stages.tiling(self._volume.shape)
        self._resolve = lambda volume: resolver(volume, dtype="float32")

        def report() -> dict[str, float]:
            timings = resolver.timings
            assert timings
            return {"network": timings.network, "windows": timings.computed}

        self._report = report
        window = tiling.rows.window, tiling.columns.window
        voxels = host.BATCH_VOXELS if who.device == "cpu" else pipeline.BATCH_VOXELS
        batch = max(1, voxels // (window[0] * window[1]))
        return {"what": str(resolver.engine.info), "batch": batch, "window": window}

    def _open_monai(self, who: Contender) -> dict[str, Any]:
        from ...runtime.pipeline.tiling import tile_windows
        from .pytorch import MonaiPath, TorchNetwork

        network = TorchNetwork(Path(who.model), who.device, who.precision, who.compiled)
        if who.threads:
            network.torch.set_num_threads(who.threads)
        tiling = tile_windows(self._volume.shape, network.card, who.overlap, who.window)
        path = self._resolve = MonaiPath(network, tiling, who.batch)
        self._report = lambda: {"network": network.seconds, "windows": sum(network.batches)}
        what = f"torch {network.torch.__version__} on {who.device}, {who.precision}"
        return {"what": what, "batch": path.batch, "window": path.window[:2]}
