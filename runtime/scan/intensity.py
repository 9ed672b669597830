"""The intensity rule: how a volume is brought to the network's range, and back.

One rule is in use, "percentile-P": divide by the P-th percentile of the finite absolute values. It only
scales, so zero stays zero and a volume's units come back by one multiplication; values above the
percentile exceed 1 and are not clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError

RULE = "percentile-99.9"
SLIGHT = 0.01  # share of the unit by which a magnitude image may be negative
PIECE = 1 << 18  # voxels processed at once
NOT_FINITE = "NaN or infinite voxels: mask or repair them first."
LOST = (
    "The network returned NaN or infinite values: look for voxels far brighter than the others, or try "
    "--precision fp32."
)


class IntensityError(RunError, ValueError):
    """The volume cannot be brought to the network's range, or back."""


def check_finite(voxels: NDArray[np.generic], name: str) -> None:
    """Raise IntensityError, naming the volume or slice, if any of its voxels is NaN or infinite."""
    if not np.isfinite(voxels).all():
        raise IntensityError(f"{name} has {NOT_FINITE}")


@dataclass(frozen=True)
class Storage:
    """How intensities inside the network become stored voxels: · gain + offset, then clipped to low..high.

    Integers are rounded (half to even); float32 holds those of 16 bits exactly, float64 all up to 2^53.
    """

    dtype: np.dtype[Any]
    gain: float
    offset: float
    low: float
    high: float

    @property
    def wide(self) -> type[np.floating]:
        """The type to compute in."""
        return np.float32 if self.dtype.kind == "f" or self.dtype.itemsize <= 2 else np.float64

    def restore(self, planes: NDArray[np.float32]) -> NDArray[Any]:
        """Stored voxels of float32 ones in the network's range, in a type that converts to `dtype`."""
        values = planes.astype(self.wide)
        values *= self.wide(self.gain)
        values += self.wide(self.offset)
        np.clip(values, self.wide(self.low), self.wide(self.high), out=values)
        return np.rint(values, out=values) if self.dtype.kind in "iu" else values


IN_THE_NETWORKS_RANGE = Storage(np.dtype(np.float32), 1.0, 0.0, -np.inf, np.inf)


@dataclass(frozen=True)
class Intensities:
    """A whole volume's intensity parameters, which a stream needs before its first slice.

    Parameters
    ----------
    unit
        The intensity, in the scan's units, that becomes 1 inside the network; see `unit`.
    low, high
        Smallest and largest voxel, in the scan's units; by default those of any magnitude image.
    noise
        Standard deviation of a real channel, in the scan's units; see `scan.noise`.
    rings
        (row, column, slice) axes whose ends meet; see `scan.rings`.

    Raises
    ------
    IntensityError
        For impossible values.
    """

    unit: float
    low: float = 0.0
    high: float = np.inf
    noise: float = 0.0
    rings: tuple[bool, bool, bool] = (False, False, False)

    def __post_init__(self) -> None:
        given = self.unit, self.low, self.high, self.noise
        real = all(isinstance(value, Real) for value in given)
        if not (real and 0 < self.unit < np.inf and self.low <= self.high and 0 <= self.noise < np.inf):
            raise IntensityError(
                "Intensities need a unit above 0, low <= high and a noise of 0 or more, not "
                f"{', '.join(map(repr, given))}."
            )
        if not (
            isinstance(self.rings, tuple)
            and len(self.rings) == 3
            and all(isinstance(ring, bool | np.bool_) for ring in self.rings)
        ):
            raise IntensityError(
                f"Intensities' rings are three of True and False: (row, column, slice), not {self.rings!r}."
            )

    def storage(self, dtype: np.dtype[Any], seen: NDArray[Any]) -> Storage:
        """How SR voxels of such a volume are stored; `seen`, voxels of it, may go beyond low and high."""
        low, high = min(self.low, seen.min()), max(self.high, seen.max())
        if dtype.kind in "iu":
            low, high = max(low, np.iinfo(dtype).min), min(high, np.iinfo(dtype).max)
        return storage(dtype, self.unit, 1.0, 0.0, low, high)


def storage(dtype: np.dtype[Any], unit: float, slope: float, inter: float, low: Any, high: Any) -> Storage:
    """How an SR volume is stored whose scan has voxels low..high, in units of voxel · slope + inter.

    Integers keep the scan's slope and range. Others are in the scan's units, and those of a magnitude image
    go no further below 0 than the scan does, which resampling may have made slightly negative.
    """
    if dtype.kind == "f":
        lowest = float(min(low * slope, high * slope)) + inter
        top = float(min(np.finfo(dtype).max, np.finfo(np.float32).max))  # beyond which there is infinity
        return Storage(dtype, unit, 0.0, min(0.0, lowest) if lowest >= -SLIGHT * unit else -top, top)
    wide = np.float32 if dtype.itemsize <= 2 else np.float64
    top = wide(high)
    if int(top) > int(high):  # a large integer that rounds up would wrap around
        top = np.nextafter(top, wide(0))
    return Storage(dtype, unit / slope, -inter / slope, float(low), float(top))


def unit(volume: NDArray[np.generic], rule: str = RULE, slope: float = 1.0, inter: float = 0.0) -> float:
    """The intensity, in units of volume · slope + inter, that becomes 1 inside the network.

    volume: any real dtype and shape; it is read in pieces and not copied. Raises IntensityError for an
    unknown rule, non-finite voxels, or intensities that float32 does not hold. A volume whose percentile is 0
    (empty, or a few bright voxels) uses its maximum, an empty one 1.
    """
    name, _, percent = rule.partition("-")
    if name != "percentile" or not percent:
        raise IntensityError(f"The model's intensity rule '{rule}' is unknown to this version of udean.")
    rank = min(volume.size - 1, int(float(percent) / 100 * volume.size))
    with np.errstate(over="ignore"):
        largest = _largest(volume, volume.size - rank, np.float32(slope), np.float32(inter))
    found = float(largest.min()) or float(largest.max())
    if not found and volume.min() == volume.max():
        return 1.0
    # The gain to the network's range must be a float32 number too.
    if not found or abs(slope) / found > float(np.finfo(np.float32).max):
        raise IntensityError("The intensities are too small for float32: scale them up first.")
    return found


def _largest(
    volume: NDArray[np.generic], count: int, slope: np.float32, inter: np.float32
) -> NDArray[np.float32]:
    """The `count` largest magnitudes, about a thousandth of the voxels."""
    slowest = int(np.argmax(np.abs(volume.strides)))
    layers = np.moveaxis(volume, slowest, 0)
    step = max(1, PIECE * len(layers) // layers.size)
    kept = np.empty(0, np.float32)
    for start in range(0, len(layers), step):
        piece = np.asarray(layers[start : start + step], np.float32)
        if (slope, inter) != (1, 0):
            piece = piece * slope + inter
        magnitude = np.abs(piece).ravel()
        if not np.isfinite(magnitude.max()):
            if np.isfinite(layers[start : start + step]).all():
                raise IntensityError("The intensities are too large for float32: scale them down first.")
            raise IntensityError(f"There are {NOT_FINITE}")
        if kept.size == count:
            magnitude = magnitude[magnitude > kept.min()]
        kept = np.concatenate((kept, magnitude))
        if kept.size > count:
            kept = np.partition(kept, kept.size - count)[kept.size - count :]
    return kept
