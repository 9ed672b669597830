"""The PyTorch path, our baseline: `monai.inferers.sliding_window_inference`, nibabel for files.

    python -m udean.benchmarks.engines.pytorch CHECKPOINT LR.nii.gz SR.nii.gz [--precision bf16]

As MONAI's documentation advises: gaussian weights, windows batched, overlap · window · scale an integer; and
as PyTorch's performance guide does: channels last, inference mode, autocast below float32, `torch.compile` on
request. No TF32: the comparison is with float32.
pytorch.org/tutorials/recipes/recipes/tuning_guide.html
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Annotated, Any

import nibabel as nib
import numpy as np
import typer
from numpy.typing import NDArray

from ...runtime.pipeline.tiling import OVERLAP, Tiling, tile_windows
from ...runtime.scan import intensity
from ...runtime.system.extras import require
from ...trainer import checkpoint
from ..common import run_script


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


class MonaiPath:
    """A network behind MONAI's sliding window.

    batch: windows per call; None: the fastest on this device. weights: HR weights of a window (rows,
    columns, slices) in place of MONAI's own gaussian, which is made on the LR grid, cut off from below and
    repeated.
    """

    def __init__(
        self,
        network: TorchNetwork,
        tiling: Tiling,
        batch: int | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        self._sliding_window: Any = require("monai.inferers.utils", "bench").sliding_window_inference
        self.network, self.tiling = network, tiling
        self.window = tiling.rows.window, tiling.columns.window, tiling.slices.window
        self.batch = batch or network.best_batch(self.window, batch_sizes(tiling, network.device))
        self._options: dict[str, Any] = {}
        if weights is not None:
            given = network.torch.from_numpy(weights).to(network.device)
            self._options["process_fn"] = lambda outputs, windows, own: (outputs, given)

    def __call__(self, volume: NDArray[Any]) -> NDArray[np.float32]:
        """An LR volume (rows, columns, slices) to the SR volume, in its units."""
        torch, network = self.network.torch, self.network
        network.reset()
        unit = intensity.unit(volume, network.card.intensity)
        # The half makes int(window · (1 - overlap)) equal the step, however it is rounded.
        pairs = zip(strides(self.tiling), self.window, strict=True)
        overlap = [max(0.0, 1 - (stride + 0.5) / window) for stride, window in pairs]
        with torch.inference_mode():
            lr = torch.from_numpy(volume.astype(np.float32)).to(network.device)[None, None]
            sr = self._sliding_window(
                lr.div_(unit),
                self.window,
                self.batch,
                network,
                overlap=overlap,
                mode="gaussian",
                padding_mode="reflect",
                **self._options,
            )
            return sr[0, 0].mul_(unit).cpu().numpy()


def batch_sizes(tiling: Tiling, device: str) -> tuple[int, ...]:
    """Sizes worth trying: 1, 4, 16, … windows, up to 16 (processor) or 64 (GPU) of 64×64 voxels."""
    most = (16 if device == "cpu" else 64) * 64 * 64 // (tiling.rows.window * tiling.columns.window)
    return tuple(size for size in (1, 4, 16, 64, 256) if size <= max(1, most))


def strides(tiling: Tiling) -> tuple[int, int, int]:
    """LR voxels from a window to the next along rows, columns and slices: the tiling's largest."""
    rows, columns, slices = (
        max((b - a for a, b in itertools.pairwise(axis.starts)), default=axis.window)
        for axis in (tiling.rows, tiling.columns, tiling.slices)
    )
    return rows, columns, slices


def monai_starts(tiling: Tiling) -> list[tuple[int, ...]]:
    """Positions of MONAI's windows along rows, columns and slices, from its own functions."""
    slices = require("monai.data.utils", "bench").dense_patch_slices
    size = tuple(max(a.size, a.window) for a in (tiling.rows, tiling.columns, tiling.slices))
    window = tiling.rows.window, tiling.columns.window, tiling.slices.window
    interval = tuple(s if n > w else w for s, n, w in zip(strides(tiling), size, window, strict=True))
    found = slices(size, window, interval)
    return [tuple(sorted({part[axis].start for part in found})) for axis in range(3)]


def main(
    checkpoint: Path,
    source: Path,
    target: Path,
    precision: str = "fp32",
    device: str = "cpu",
    batch: int | None = None,
    threads: Annotated[int | None, typer.Option(help="(default: all cores)")] = None,
    overlap: float = OVERLAP,
    window: Annotated[tuple[int, int] | None, typer.Option(help="(default: the network's own)")] = None,
) -> None:
    """Restore one scan, from file to file, as a user's script would."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    image: Any = nib.load(source)
    volume = np.asarray(image.dataobj)
    network = TorchNetwork(checkpoint, device, precision)
    tiling = tile_windows(volume.shape, network.card, overlap, window)
    sr = MonaiPath(network, tiling, batch or min(4, max(batch_sizes(tiling, device))))(volume)
    affine = image.affine @ np.diag([*(1 / np.array(network.card.scale)), 1])
    result = nib.Nifti1Image(np.clip(np.rint(sr), volume.min(), volume.max()).astype(volume.dtype), affine)
    nib.save(result, target)


if __name__ == "__main__":
    run_script(main)
