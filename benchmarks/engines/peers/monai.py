"""The PyTorch path, our baseline: `monai.inferers.sliding_window_inference`, nibabel for files.

    python -m udean.benchmarks.engines.peers.monai CHECKPOINT LR.nii.gz SR.nii.gz [--precision bf16]

As MONAI's documentation advises: gaussian weights, windows batched, overlap · window · scale an integer.
`buffer_steps` is meant for outputs of the input's size; "buffered" calls it unmodified, and "folded" gives it
what it needs: the network's output folded into channels on the LR grid, unfolded at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import nibabel as nib
import numpy as np
import typer
from numpy.typing import NDArray

from ....runtime.commands.common import sentences
from ....runtime.pipeline.tiling import OVERLAP, Tiling, tile_windows
from ....runtime.scan import intensity
from ....runtime.system.extras import require
from .network import TorchNetwork, batch_sizes, steps

Variant = Literal["", "buffered", "folded"]
BUFFER_STEPS = 4  # rows of windows held before they go to the output


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
        variant: Variant = "",
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        self._sliding_window: Any = require("monai.inferers.utils", "bench").sliding_window_inference
        self.network, self.tiling, self._variant = network, tiling, variant
        self.window = tiling.rows.window, tiling.columns.window, tiling.slices.window
        self.batch = batch or network.best_batch(self.window, batch_sizes(tiling, network.device))
        self._weights = None if weights is None else network.torch.from_numpy(weights).to(network.device)

    def __call__(self, volume: NDArray[Any]) -> NDArray[np.float32]:
        """An LR volume (rows, columns, slices) to the SR volume, in its units."""
        torch, network = self.network.torch, self.network
        network.reset()
        unit = intensity.unit(volume, network.card.intensity)
        options: dict[str, Any] = {"buffer_steps": BUFFER_STEPS} if self._variant else {}
        if self._weights is not None:
            options["process_fn"] = lambda outputs, windows, weights: (outputs, self._weights)
        with torch.inference_mode():
            lr = torch.from_numpy(volume.astype(np.float32)).to(network.device)[None, None]
            sr = self._sliding_window(
                lr.div_(unit),
                self.window,
                self.batch,
                self._folded if self._variant == "folded" else network,
                # The half makes int(window · (1 - overlap)) equal the step, however it is rounded.
                overlap=[
                    max(0.0, 1 - (s + 0.5) / w) for s, w in zip(steps(self.tiling), self.window, strict=True)
                ],
                mode="gaussian",
                padding_mode="reflect",
                **options,
            )
            if self._variant == "folded":
                sr = _unfold(sr, network.card.scale)
            return sr[0, 0].mul_(unit).cpu().numpy()

    def _folded(self, windows: Any) -> Any:
        r, c, s = self.network.card.scale
        sr = self.network(windows)
        n, _, rows, columns, slices = sr.shape
        sr = sr.reshape(n, rows // r, r, columns // c, c, slices // s, s)
        return sr.permute(0, 2, 4, 6, 1, 3, 5).reshape(n, -1, rows // r, columns // c, slices // s)


def _unfold(sr: Any, scale: tuple[int, int, int]) -> Any:
    r, c, s = scale
    n, _, rows, columns, slices = sr.shape
    sr = sr.reshape(n, r, c, s, rows, columns, slices).permute(0, 4, 1, 5, 2, 6, 3)
    return sr.reshape(n, 1, rows * r, columns * c, slices * s)


def starts(tiling: Tiling) -> list[tuple[int, ...]]:
    """Positions of MONAI's windows along rows, columns and slices, from its own functions."""
    slices = require("monai.data.utils", "bench").dense_patch_slices
    size = tuple(max(a.size, a.window) for a in (tiling.rows, tiling.columns, tiling.slices))
    window = tiling.rows.window, tiling.columns.window, tiling.slices.window
    interval = tuple(s if n > w else w for s, n, w in zip(steps(tiling), size, window, strict=True))
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
    with sentences():
        typer.run(main)
