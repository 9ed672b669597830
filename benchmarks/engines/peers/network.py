"""A checkpoint's network, run as PyTorch's performance guide advises, with its timings.

Channels last, inference mode, autocast below float32, `torch.compile` on request, no TF32 (the comparison is
with float32). pytorch.org/tutorials/recipes/recipes/tuning_guide.html
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from ....runtime.pipeline.tiling import Tiling
from ....trainer import checkpoint


class TorchNetwork:
    """Maps windows in the layout of 3-D libraries, (N, 1, rows, columns, slab), to their HR windows.

    precision: "fp32", or "bf16" (processor) and "fp16" (GPU) by autocast. batches: windows of each call
    since `reset`.
    """

    def __init__(self, path: Path, device: str = "cpu", precision: str = "fp32", compiled: bool = False):
        import torch

        self.torch: Any = torch
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        network: Any
        network, self.card = checkpoint.load_generator(path)
        network = network.eval().to(device, memory_format=torch.channels_last)
        self._network = torch.compile(network) if compiled else network
        self.device, self.precision = device, precision
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
        self.reset()

    def reset(self) -> None:
        self.batches: list[int] = []
        self._seconds = 0.0
        self._events: list[Any] = []

    @property
    def seconds(self) -> float:
        """Inside the network since `reset`. On a GPU measured by events, which do not block the host."""
        if self._events:
            self.torch.cuda.synchronize(self.device)
        return self._seconds + sum(start.elapsed_time(end) for start, end in self._events) / 1e3

    def __call__(self, windows: Any) -> Any:
        torch = self.torch
        self.batches.append(len(windows))
        # (N, rows, columns, slab) in memory is (N, slab, rows, columns) channels last: views, no copies.
        lr = windows[:, 0].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        kind = torch.device(self.device).type
        with torch.autocast(kind, self._dtype, enabled=self.precision != "fp32"):
            sr = self._timed(lr)
        return sr.permute(0, 2, 3, 1)[:, None]

    def _timed(self, lr: Any) -> Any:
        if self.device == "cpu":
            start = time.perf_counter()
            sr = self._network(lr)
            self._seconds += time.perf_counter() - start
            return sr
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        sr = self._network(lr)
        end.record()
        self._events.append((begin, end))
        return sr

    def best_batch(self, window: tuple[int, int, int], sizes: tuple[int, ...]) -> int:
        """The number of windows per call that minimises the time per window."""
        seconds = {}
        with self.torch.inference_mode():
            for size in sizes:
                windows = self.torch.rand(size, 1, *window, device=self.device)
                self(windows)
                self.reset()
                for _ in range(max(1, sizes[-1] // size // 4)):
                    self(windows)
                seconds[size] = self.seconds / sum(self.batches)
        self.reset()
        return min(seconds, key=lambda size: seconds[size])


def batch_sizes(tiling: Tiling, device: str) -> tuple[int, ...]:
    """Sizes worth trying: 1, 4, 16, … windows, up to 16 (processor) or 64 (GPU) of 64×64 voxels."""
    most = (16 if device == "cpu" else 64) * 64 * 64 // (tiling.rows.window * tiling.columns.window)
    return tuple(size for size in (1, 4, 16, 64, 256) if size <= max(1, most))


def steps(tiling: Tiling) -> tuple[int, int, int]:
    """LR voxels from a window to the next along rows, columns and slices: the tiling's largest."""

    def step(starts: tuple[int, ...], window: int) -> int:
        return max((b - a for a, b in itertools.pairwise(starts)), default=window)

    rows, columns, slices = ((a.starts, a.window) for a in (tiling.rows, tiling.columns, tiling.slices))
    return step(*rows), step(*columns), step(*slices)
