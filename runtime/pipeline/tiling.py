"""Overlapped windows over (row, column, slice): where they lie and how their outputs are blended.

Blending is a *running weighted mean*, one axis after the other. When window n arrives, the mean so far
moves toward it by the share of n in the weight gathered up to and including n:

    mean += share · (new - mean),    share = w_n / (w_0 + … + w_n)

This equals dividing a weighted sum by the sum of weights, needs no second buffer for that sum, and is
exact by construction: if windows agree, `new - mean` is 0, so an identity (or nearest-neighbour)
network gives the volume back bit for bit. Weights are separable, hence so is the mean: columns are
blended into a band, bands into a slab, slabs into the volume, each with shares along one axis only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..models.card import GridKind, ModelCard
from ..scan.geometry import lr_coordinate

Weighting = Literal["gaussian", "hann", "constant"]
# (rows, columns) in LR voxels; "plane": the volume's; "auto": planes as far as memory allows; None: the
# card's.
Window = tuple[int, int] | Literal["plane", "auto"] | None
Box = tuple[slice, slice, slice]
OVERLAP = 0.25  # at least: 16 of 64 voxels in plane, 1 of 3 slices
# Of "auto": LR voxels of a window, whose activations of 64 channels then take 26 MB a layer, and rows that
# two windows of a larger plane share.
LARGEST, SHARED = 320 * 320, 16
SIGMA = 0.125  # of the Gaussian, in window lengths: the usual choice in sliding-window inference


@dataclass(frozen=True)
class Axis:
    """The windows along one axis.

    size, window: LR voxels of the volume and of one window. scale: HR voxels per LR voxel.
    starts: first LR voxel of each window, ascending. Negative if the volume is smaller than a window: voxels
        outside the volume are its reflection and are cropped after the network.
    shares: for each window, float32, of those HR voxels that an earlier window covers already.
    grid: where HR voxels lie between LR ones; see `profile`.
    """

    size: int
    window: int
    scale: int
    starts: tuple[int, ...]
    shares: tuple[NDArray[np.float32], ...]
    grid: GridKind = "fft"

    def source(self, n: int) -> NDArray[np.intp]:
        """The LR voxels (window,) that window n reads, reflected at the volume's ends."""
        return reflect(np.arange(self.starts[n], self.starts[n] + self.window), self.size)

    @property
    def margins(self) -> tuple[int, int]:
        """LR voxels of reflection before and after the volume, 0 unless it is smaller than a window."""
        return -min(0, self.starts[0]), max(0, self.starts[-1] + self.window - self.size)

    @property
    def alone(self) -> Axis:
        """An axis that one window covers by itself."""
        return Axis(self.window, self.window, self.scale, (0,), (np.empty(0, np.float32),), self.grid)

    def span(self, n: int) -> tuple[int, int]:
        """First and past-the-end HR voxel that window n contributes to."""
        return _span(self.starts[n], self.window, self.size, self.scale)

    def blend(
        self, n: int, new: NDArray[np.float32], mean: NDArray[np.float32], dim: int, first: int = 0
    ) -> None:
        """Take window n into the running mean along dimension `dim`; windows come in ascending order.

        new: the window's HR output, window·scale long along dim. mean: changed in place; its voxel 0
        along dim is the volume's HR voxel `first`. Other dimensions agree.
        """
        new, mean = np.moveaxis(new, dim, -1), np.moveaxis(mean, dim, -1)
        low, high = self.span(n)
        seen = low + self.shares[n].size
        skip = self.starts[n] * self.scale
        mean[..., seen - first : high - first] = new[..., seen - skip : high - skip]
        if seen > low:
            before = mean[..., low - first : seen - first]
            step = new[..., low - skip : seen - skip] - before
            step *= self.shares[n]
            before += step

    def around(self, part: slice) -> slice:
        """These LR voxels, extended to the size of a window if they are fewer, as far as the axis allows."""
        length = max(part.stop - part.start, min(self.window, self.size))
        start = min(max(0, (part.start + part.stop - length) // 2), self.size - length)
        return slice(start, start + length)


@dataclass(frozen=True)
class Tiling:
    """All windows of a volume, computed and blended in one order: by slice, then row, column fastest."""

    rows: Axis
    columns: Axis
    slices: Axis

    def around(self, box: Box) -> Box:
        """A box of LR voxels, extended to at least the size of a window if the volume is large enough."""
        rows, columns, slices = box
        return self.rows.around(rows), self.columns.around(columns), self.slices.around(slices)

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts) * len(self.slices.starts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The LR volume's (rows, columns, slices)."""
        return self.rows.size, self.columns.size, self.slices.size

    @property
    def fine_shape(self) -> tuple[int, int, int]:
        """The HR volume's (rows, columns, slices)."""
        rows, columns, slices = (a.size * a.scale for a in (self.rows, self.columns, self.slices))
        return rows, columns, slices


def tile_windows(
    shape: tuple[int, int, int],
    card: ModelCard,
    overlap: float | tuple[float, float, float] | None = None,
    window: Window = None,
    weighting: Weighting | tuple[Weighting, Weighting, Weighting] = "gaussian",
) -> Tiling:
    """Cover an LR volume (rows, columns, slices) by windows of the card's slab.

    overlap: least fraction of a window that it shares with the next, 0 <= overlap < 1, by default the card's.
        weighting: of overlapping windows. Both for all axes, or one value per axis.
    window: LR (rows, columns), by default the card's training window: a network with channel attention is a
        different function at a different window size. "plane": one window over rows and columns; "auto": the
        same, except that large planes are cut across their rows.
    There are as few windows as this overlap allows, so that as little as possible is computed twice. Raises
    RunError for values out of range.
    """
    overlap = card.overlap if overlap is None else overlap
    overlaps = overlap if isinstance(overlap, tuple) else (overlap,) * 3
    weightings = weighting if isinstance(weighting, tuple) else (weighting,) * 3
    for value in overlaps:
        if not 0 <= value < 1:
            raise RunError(f"The overlap must be at least 0 and less than 1, not {value}.")
    for value in weightings:
        if value not in get_args(Weighting):
            raise RunError(f"The weighting must be one of {', '.join(get_args(Weighting))}, not '{value}'.")
    if window == "auto":
        count = math.ceil(shape[0] * shape[1] / LARGEST)
        window = math.ceil((shape[0] + (count - 1) * SHARED) / count), shape[1]
        overlaps = min(SHARED / window[0], 0.5), 0.0, overlaps[2]
    rows, columns = shape[:2] if window == "plane" else window or card.window
    if min(rows, columns) < 1:
        raise RunError(f"A window must have at least one row and one column, not {rows}x{columns}.")
    sizes = (rows, columns, card.slab[0])
    axes = zip(shape, sizes, card.scale, overlaps, weightings, strict=True)
    return Tiling(*(tile_axis(size, length, s, card.grid, o, w) for size, length, s, o, w in axes))


def tile_axis(
    size: int, window: int, scale: int, grid: GridKind, overlap: float, weighting: Weighting
) -> Axis:
    """The fewest windows with at least this overlap, evenly spaced to within one voxel."""
    if size <= window:
        starts = ((size - window) // 2,)
    else:
        step = max(1, math.floor(window * (1 - overlap) + 1e-9))
        count = math.ceil((size - window) / step) + 1
        starts = tuple(round(n * (size - window) / (count - 1)) for n in range(count))
    weight = window_profile(window, scale, grid, weighting)
    total = np.zeros(size * scale)
    shares, seen = [], 0
    for start in starts:
        low, high = _span(start, window, size, scale)
        seen = max(seen, low)
        total[low:high] += weight[low - start * scale : high - start * scale]
        shares.append(
            (weight[low - start * scale : seen - start * scale] / total[low:seen]).astype(np.float32)
        )
        seen = high
    return Axis(size, window, scale, starts, tuple(shares), grid)


def window_profile(window: int, scale: int, grid: GridKind, weighting: Weighting) -> NDArray[np.float64]:
    """The weight (window·scale,) > 0 of a window's HR voxels along one axis, 1 at the window's centre.

    The centre is that of the LR voxels, so on the "fft" grid the last HR voxels, which lie beyond the last
    LR voxel and are extrapolated by the network, weigh least.
    """
    distance = lr_coordinate(np.arange(window * scale), scale, grid) - (window - 1) / 2
    if weighting == "gaussian":
        return np.exp(-0.5 * (distance / (SIGMA * window)) ** 2)
    if weighting == "hann":
        return np.cos(np.pi / 2 * distance / ((window + 1) / 2)) ** 2
    return np.ones_like(distance)


def reflect(index: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    """Voxel numbers outside 0..size-1 replaced by their mirror image about the end voxels' centres."""
    if size == 1:
        return np.zeros_like(index)
    folded = np.abs(index) % (2 * size - 2)
    return np.minimum(folded, 2 * size - 2 - folded)


def _span(start: int, window: int, size: int, scale: int) -> tuple[int, int]:
    return max(start, 0) * scale, min(start + window, size) * scale
