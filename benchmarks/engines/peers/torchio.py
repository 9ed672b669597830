"""TorchIO's `GridSampler` and `GridAggregator` around the same network and windows.

As documented they are meant for outputs of the input's size and for even overlaps: "documented" calls them
unmodified. "doubled" gives them what they need: a second sampler on the HR grid, whose locations, divided by
the scale, are those of the LR windows.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ....runtime.pipeline.tiling import Tiling
from ....runtime.scan import intensity
from ....runtime.system.extras import require
from .network import TorchNetwork, batch_sizes, steps

Variant = Literal["documented", "doubled"]


class TorchioPath:
    """A network behind TorchIO's grid; blended by its Hann window. batch: windows a call."""

    def __init__(
        self, network: TorchNetwork, tiling: Tiling, batch: int | None = None, variant: Variant = "doubled"
    ) -> None:
        self._tio: Any = require("torchio", "bench")
        self.network, self._variant = network, variant
        self.window = tiling.rows.window, tiling.columns.window, tiling.slices.window
        self._overlap = tuple(w - s for w, s in zip(self.window, steps(tiling), strict=True))
        self.batch = batch or network.best_batch(self.window, batch_sizes(tiling, network.device))

    def __call__(self, volume: NDArray[Any]) -> NDArray[np.float32]:
        """An LR volume (rows, columns, slices) to the SR volume, in its units."""
        torch, tio, network = self.network.torch, self._tio, self.network
        network.reset()
        unit = intensity.unit(volume, network.card.intensity)
        lr = torch.from_numpy(volume.astype(np.float32)).div_(unit)[None]
        subject = tio.Subject(lr=tio.ScalarImage(tensor=lr))
        if self._variant == "documented":
            sampler = tio.GridSampler(subject, self.window, self._overlap)
            aggregator = tio.GridAggregator(sampler, overlap_mode="hann")
            scale = np.ones(6, int)
        else:
            scale = np.array([*network.card.scale] * 2)
            fine = torch.empty(1).expand(1, *(np.array(volume.shape) * scale[:3]).tolist())  # needs no memory
            hr = tio.GridSampler(
                tio.Subject(sr=tio.ScalarImage(tensor=fine)),
                tuple(np.array(self.window) * scale[:3]),
                tuple(np.array(self._overlap) * scale[:3]),
            )
            aggregator = tio.GridAggregator(hr, overlap_mode="hann")
            sampler = tio.GridSampler(subject, self.window)
            sampler.locations = hr.locations // scale
        loader = tio.SubjectsLoader(sampler, batch_size=self.batch)
        with torch.inference_mode():
            for windows in loader:
                sr = network(windows["lr"][tio.DATA].to(network.device))
                aggregator.add_batch(sr.float(), windows[tio.LOCATION] * torch.from_numpy(scale))
            return aggregator.get_output_tensor()[0].mul_(unit).numpy()
