"""Inputs and outputs of a volume's restoration: options, findings, and the task passed between stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import RunError
from .models.card import ModelCard
from .pipeline import measured_band
from .pipeline.air import Air
from .pipeline.content import Content
from .pipeline.engine import EngineInfo, Library, Precision
from .pipeline.host import LrVolume
from .pipeline.tiling import Tiling, Weighting, Window
from .scan import intensity
from .scan.noise import Noise
from .system.progress import Progress
from .system.trace import Stopwatch, Trace

Output = Literal["input", "float32"]
Fallback = Literal["none", "cpu"]
Labels = Literal["leave", "nearest"]
Consistency = float | Literal["auto", "off"]
Slab = tuple[int, NDArray[Any]]

MEASURES = {  # relation of the scan to the result, by the card's `consistency`
    "truncation": "the truncated k-space",
    "transfer": "the truncated k-space, through the scanner's point spread,",
}


@dataclass(frozen=True)
class Setup:
    """How a SuperResolver opens its network: its parameters of these names."""

    engine: Any  # a path as str or Path, an open engine, or None for the embedded model
    device: str
    precision: Precision
    threads: int | None
    library: Library
    fallback: Fallback
    strict: bool
    trace: Trace | None

    def __post_init__(self) -> None:
        if not (self.is_file or hasattr(self.engine, "card")):
            raise RunError(f"A model is a file's path or an open engine, not {type(self.engine).__name__}.")

    @property
    def is_file(self) -> bool:
        """Whether the engine is opened here, and not given."""
        return self.engine is None or isinstance(self.engine, str | Path)


@dataclass(frozen=True)
class Options:
    """How windows are laid and blended, see `tile_windows`, and what comes after.

    overlap: least share of a window in the next, None for the model's own.

    crop: windows over the content only; constant background around it stays as it is, and noisy air is
    interpolated. consistency: how much of the measured band is taken from the scan, 0 to 1 in tissue; "auto":
    by the scan's noise, if the model's card gives the transfer by which the scan was made; "off": none. to:
    the spacing asked for, as `Asked` reads it, None for the model's own factors. best: the mean over slabs
    along each of the three axes, at three times the cost. error_map: the expected error of each voxel too.
    labels: "leave" label maps, or bring them to the grid of the result by "nearest" neighbours.
    """

    overlap: float | tuple[float, float, float] | None = None
    window: Window = "auto"
    weighting: Weighting | tuple[Weighting, Weighting, Weighting] = "gaussian"
    crop: bool = True
    consistency: Consistency = "auto"
    to: str | None = None
    best: bool = False
    error_map: bool = False
    labels: Labels = "leave"


@dataclass(frozen=True)
class Info:
    """The parts of a SuperResolver, to print or to read one by one.

    card: what the model expects and yields. engine: what runs it. options: how volumes are restored.
    """

    card: ModelCard
    engine: EngineInfo
    options: Options

    def __str__(self) -> str:
        card, options = self.card, self.options
        rows, columns = card.window
        lines = {
            "model": f"{card.name} ({card.method}), {card.parameters:,} parameters, {self.engine.model}",
            "restores": " x ".join(map(str, card.scale)) + " voxels for one, as (row, column, slice)",
            "trained on": card.trained_on,
            "engine": str(self.engine),
            "windows": f"trained {rows} x {columns}, slabs of {card.slab[0]}; overlap "
            f"{'of the model' if options.overlap is None else options.overlap}, "
            f"window {options.window or 'as it fits'}, {options.weighting}",
            "measured band": f"{options.consistency}; the scan is {MEASURES[card.consistency]} of the result"
            if card.consistency != "off"
            else "left to the network",
            "spacing": options.to or "the model's own factors",
            "slabs": "along each of three axes, their mean" if options.best else "along one axis",
            "intended use": card.intended_use,
        }
        return "\n".join(f"{name + ':':<15}{said}" for name, said in lines.items())


@dataclass(frozen=True)
class Timings:
    """Seconds of the last volume. The stages overlap, so they do not add up to the total.

    windows: all of the tiling; computed: those that the network saw, without byte-identical ones. write: into
    a file, if there is one; total then counts from opening the scan to its end.
    """

    read: float
    gather: float
    network: float
    blend: float
    total: float
    windows: int
    computed: int
    write: float = 0.0


@dataclass(frozen=True)
class Look:
    """Properties of an LR volume (rows, columns, slices), found by reading it once.

    unit: the intensity that becomes 1 in the network. air: what need not go through it; see `pipeline.air`.
    noise, rings: if the measured band is to be taken from the scan, else None and no axis; see
    `scan.noise` and `scan.rings`.
    """

    content: Content
    unit: float
    air: Air | None = None
    noise: Noise | None = None
    rings: measured_band.Rings = (False, False, False)


@dataclass(frozen=True)
class HeldBand:
    """How a volume's measured band was taken from the scan, for sidecars.

    weight: in tissue. noise: as a share of the intensity that becomes 1 in the network. read_off: what tells
    the noise. rings: axes (row, column, slice) whose ends meet.
    """

    weight: float
    noise: float
    read_off: str
    rings: measured_band.Rings

    def __str__(self) -> str:
        return f"measured band {self.weight:.0%} from the scan (noise {self.noise:.1%}, {self.read_off})"


@dataclass(frozen=True)
class Task:
    """One LR volume on its way to an SR volume, from stage to stage.

    lr: voxels as stored, (rows, columns, slices); voxel · slope + inter is in the scan's units. sr: room for
        the HR voxels, of the same order and, if they are integers, of the same slope and inter.
    store: how voxels in the network's range become stored ones. tiling: the windows over `lr`.
    slabs: (first HR slice, voxels (rows, columns, slices)), computed as they are asked for: float32 in the
        network's range if `in_range`, else to be stored as they are; `held`: with the measured band of the
        scan.
    best: whether they are to be the mean over three slab axes. detail: times which the mean's detail is to be
        taken, see `pipeline.mean_over_axes`. errors: room for the HR voxels' expected
        errors, float32 in the scan's units, of the same order; None if they are not asked for.
    """

    lr: NDArray[Any]
    sr: NDArray[Any]
    look: Look
    watch: Stopwatch
    slope: float = 1.0
    inter: float = 0.0
    progress: Progress | None = None
    store: intensity.Storage = intensity.IN_THE_NETWORKS_RANGE
    tiling: Tiling | None = None
    slabs: Iterable[Slab] = ()
    in_range: bool = False
    held: bool = False
    best: bool = False
    detail: float = 1.0
    errors: NDArray[np.float32] | None = None

    @property
    def volume(self) -> LrVolume:
        """The LR voxels as the network sees them."""
        unit = self.look.unit
        return LrVolume(self.lr, self.slope / unit, self.inter / unit, self.look.air)

    def replace(self, **changes: Any) -> Task:
        return dataclasses.replace(self, **changes)


def stored_dtype(dtype: np.dtype[Any], output: Output) -> np.dtype[Any]:
    """The dtype of SR voxels for LR voxels of this one. Raises RunError for an unknown output."""
    if not isinstance(output, str) or output not in ("input", "float32"):
        raise RunError(f"The output's dtype is 'input' or 'float32', not '{output}'.")
    return np.dtype(np.float32) if output == "float32" else dtype.newbyteorder("=")
