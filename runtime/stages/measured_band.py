"""Whether the measured band of a volume is taken from its scan, and how much of it.

The band itself is `pipeline.measured_band`'s, and on a GPU `cuda.measured_band`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..cuda.measured_band import WHOLE, Held
from ..models.card import ModelCard
from ..pipeline import measured_band
from ..pipeline.content import Content
from ..pipeline.stream import Band
from ..scan.intensity import Intensities
from ..scan.noise import Noise
from ..scan.scan import Scan
from ..task import Consistency, HeldBand, Look, Task


@dataclass(frozen=True)
class Holding:
    """Holds the measured band of a model's results to their scans. asked: see `Options`."""

    card: ModelCard
    asked: Consistency

    @property
    def wanted(self) -> bool:
        """Whether the measured band is taken from scans at all."""
        return self.asked != "off" and (self.asked != "auto" or self.card.consistency != "off")

    @property
    def of_slices(self) -> float:
        """How far a result of thick slices is held to them, 0 to 1; beyond their noise it never is."""
        return {"auto": 1.0, "off": 0.0}[self.asked] if isinstance(self.asked, str) else float(self.asked)

    @property
    def why_not(self) -> str:
        """Why the measured band of a scan is left to the network."""
        if self.asked == "off":
            return "left to the network, as asked for"
        if not self.wanted:
            return "left to the network: the model's card does not say what the scan measures"
        return "nothing to hold: the volume is constant"

    def weight(self, look: Look, slope: float = 1.0, inter: float = 0.0) -> measured_band.Weight | None:
        """How much of a volume's measured band is taken from it; None if it is left to the network."""
        if look.noise is None or not self.wanted:
            return None
        share = None if self.asked == "auto" else float(self.asked)
        low = min(look.content.low * slope, look.content.high * slope) + inter
        return measured_band.weight(look.noise.sigma / look.unit, low >= 0, share)

    def weight_of(self, task: Task) -> measured_band.Weight | None:
        weight = self.weight(task.look, task.slope, task.inter)
        return weight and dataclasses.replace(weight, detail=task.detail)

    def record(self, scan: Scan, looks: Sequence[Look]) -> list[HeldBand]:
        """How it is held for a scan that was looked through, by volume; empty if it is not."""
        held = []
        for look in looks:
            weight = self.weight(look, scan.slope, scan.inter)
            if look.noise and weight:
                noise = round(look.noise.sigma / look.unit, 5)
                held.append(HeldBand(round(weight.share, 4), noise, look.noise.source, look.rings))
        return held

    def on_device(self, task: Task) -> Held | None:
        """How a GPU takes it from the scan; None if it is left, or the host's to take."""
        weight = self.weight_of(task)
        if weight is None:
            return None
        rows, columns, slices = task.lr.shape
        card, shape = self.card, (rows, columns, slices)
        found = measured_band.operators(shape, card.scale, card.grid, task.look.rings, card.transfer, WHOLE)
        return found and Held(found, weight)

    def of_slabs(
        self,
        slabs: Iterable[tuple[int, NDArray[np.float32]]],
        lr_plane: Callable[[int], NDArray[np.float32]],
        shape: tuple[int, int, int],
        weight: measured_band.Weight,
        rings: measured_band.Rings,
    ) -> Generator[tuple[int, NDArray[np.float32]]]:
        """Slabs with the band of their LR planes; see `hold_measured`."""
        card = self.card
        return measured_band.hold_measured(
            slabs, lr_plane, shape, card.scale, card.grid, weight, rings, card.transfer
        )

    def of_stream(self, known: Intensities) -> Band | None:
        """The measured band of a stream. Its slices are not a ring: the first cannot wait for the last."""
        if not self.wanted:
            return None
        one = slice(0, 1)
        look = Look(
            Content(known.low, known.high, 0, (one, one, one)),
            known.unit,
            noise=Noise(known.noise, "air"),
        )
        weight, rings = self.weight(look), (known.rings[0], known.rings[1], False)
        assert weight is not None
        return lambda slabs, lr_plane, shape: self.of_slabs(slabs, lr_plane, shape, weight, rings)
