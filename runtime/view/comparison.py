"""A scan beside its SR scan: what both say of the same place, and what should make one wary of the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..models.card import Grid, ModelCard
from ..scans import intensity
from ..scans.geometry import Factors, slab_axis
from ..scans.interpolation import acquired_again, tricubic_plane
from ..scans.scan import Scan

ERROR_SHARE = 0.1  # of the intensity unit, at the end of the scale in difference pictures
BRIGHT = 4.0  # times the intensity unit: training scans do not reach that far
LOW_SNR = 10.0
SATURATED = 1e-3  # share of voxels at the largest value


@dataclass(frozen=True)
class Comparison:
    """A scan (i, j, k) and its SR scan, planes of both in the scan's units, float32.

    lr, sr: stored voxels. factors: HR voxels per LR voxel along each axis. unit: of the model's intensity
    rule. difference: acquired again - measured. consistency: its norm over that of the scan; 0 where the SR
    volume explains all that was measured. snr: of the scan.
    """

    scan: Scan
    fine_scan: Scan
    grid: Grid
    lr: NDArray[Any]
    sr: NDArray[Any]
    factors: Factors
    unit: float
    difference: NDArray[np.float32]
    consistency: float
    snr: float
    warnings: list[str]

    @property
    def measured(self) -> NDArray[np.float32]:
        """The scan."""
        return self.scan.in_units(self.lr)

    def fine(self, axis: int, index: int) -> NDArray[np.float32]:
        """A plane of the SR scan."""
        return self.fine_scan.in_units(np.take(self.sr, index, axis))

    def tricubic(self, axis: int, index: int) -> NDArray[np.float32]:
        """The same plane of the scan's tricubic interpolation."""
        return self.scan.in_units(tricubic_plane(self.lr, self.factors, self.grid, axis, index))


def compare(scan: Scan, sr: Scan, card: ModelCard, volume: int = 0) -> Comparison:
    """Compare one volume (of a series) with its SR volume; both are read.

    Raises RunError if the SR volume is none of this scan.
    """
    lr, fine = _volume(scan, volume), _volume(sr, volume)
    i, j, k = (b // a for a, b in zip(lr.shape, fine.shape, strict=True))
    factors = i, j, k
    if fine.shape != tuple(n * f for n, f in zip(lr.shape, factors, strict=True)):
        raise RunError(f"{sr.name} is no multiple of {scan.name} in size: it was made from another scan.")
    unit = intensity.unit(lr, card.intensity, scan.slope, scan.inter)
    # Fourier and interpolation are linear: they may run on stored voxels, units come after.
    again = sr.in_units(acquired_again(fine, factors, card.grid))
    measured = scan.in_units(lr)
    difference = again - measured
    consistency = float(np.linalg.norm(difference) / max(float(np.linalg.norm(measured)), 1e-12))
    snr = signal_to_noise(np.moveaxis(measured, slab_axis(scan.zooms), 2), unit)
    warnings = [*scan.remarks, *_warnings(lr, measured, unit, snr, card)]
    return Comparison(scan, sr, card.grid, lr, fine, factors, unit, difference, consistency, snr, warnings)


def signal_to_noise(volume: NDArray[np.float32], unit: float) -> float:
    """Median of the foreground of a volume (rows, columns, slices) over the noise's standard deviation.

    The noise is that of the diagonal Haar detail in plane, whose median magnitude hardly knows edges
    (Donoho and Johnstone, Biometrika 81, 1994).
    """
    even = volume[: volume.shape[0] // 2 * 2, : volume.shape[1] // 2 * 2]
    quads = (even[::2, ::2], even[1::2, ::2], even[::2, 1::2], even[1::2, 1::2])
    detail = (quads[0] - quads[1] - quads[2] + quads[3]) / 2
    bright = np.minimum.reduce(quads) > 0.1 * unit
    if not bright.any():
        return 0.0
    noise = float(np.median(np.abs(detail[bright]))) / 0.6745
    return float(np.median(quads[0][bright])) / noise if noise else np.inf


def _warnings(
    lr: NDArray[Any], measured: NDArray[np.float32], unit: float, snr: float, card: ModelCard
) -> Iterator[str]:
    if measured.min() < 0:
        yield "The scan has negative voxels; the model was trained on magnitude images."
    if measured.max() > BRIGHT * unit:
        yield (
            f"Some voxels are {measured.max() / unit:.1f} times brighter than the 99.9th percentile, which "
            "no training scan is: look for spikes."
        )
    if max(lr.shape) < max(card.window):
        yield f"The scan is smaller than the windows of {card.window[0]}x{card.window[1]} voxels in training."
    if snr < LOW_SNR:
        yield f"The scan's signal-to-noise ratio is low ({snr:.1f}): noise may be restored as structure."
    if lr.dtype.kind in "iu" and float(np.mean(lr == lr.max())) > SATURATED:
        yield f"{np.mean(lr == lr.max()):.1%} of the voxels have the largest value: the scan is saturated."


def _volume(scan: Scan, volume: int) -> NDArray[Any]:
    voxels = scan.voxels()
    return voxels if scan.volumes == 1 else voxels[..., volume]
