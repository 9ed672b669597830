"""A scan beside its SR scan: both at the same place, and reasons to distrust the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..models.card import ModelCard
from ..pipeline.through_plane import UNKNOWN, seen_through
from ..scan import intensity
from ..scan.geometry import Factors, Flips, fine_affine, flips_between
from ..scan.interpolation import acquired_again, band_weights, cubic_weights, interpolated_plane
from ..scan.orientation import Orientation
from ..scan.profile import FWHM
from ..scan.regrid import Grid, along
from ..scan.scan import Scan

ERROR_SHARE = 0.1  # of the intensity unit: the end of the scale in difference pictures
BRIGHT = 4.0  # times the intensity unit: brighter than any training scan
LOW_SNR = 10.0
SATURATED = 1e-3  # share of voxels at the largest value
OFF = 0.01  # voxels by which headers may round
Matrices = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Comparison:
    """A scan (i, j, k) and its SR scan, planes of both in the scan's units, float32.

    lr, sr: stored voxels. grid: of the SR scan in the scan's voxels. interpolation, weights: name of the
    scan's interpolation, and its matrix (fine, coarse) for each axis. unit: of the model's intensity rule.
    difference: the SR scan, seen as the scanner would see it, minus the measurement. measurement: what was
    measured: the scan's k-space or, for thick slices, its slices. coarse: the difference's grid in the scan's
    voxels: the scan's own, but for axes that the SR scan samples more coarsely. consistency: the difference's
    norm over that of the scan; 0 if the SR scan explains everything that was measured. snr: of the scan.
    """

    scan: Scan
    fine_scan: Scan
    lr: NDArray[Any]
    sr: NDArray[Any]
    grid: Grid
    interpolation: Literal["tricubic", "cubic B-spline"]
    weights: Matrices
    unit: float
    measurement: Literal["k-space", "slices"]
    coarse: Grid
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

    def interpolated(self, axis: int, index: int) -> NDArray[np.float32]:
        """The same plane of the scan's interpolation."""
        return self.scan.in_units(interpolated_plane(self.lr, self.weights, axis, index))


def compare(
    scan: Scan, sr: Scan, card: ModelCard, volume: int = 0, profile_mm: float | None = None
) -> Comparison:
    """Compare one volume (of a series) with its SR volume; both are read.

    profile_mm: width at half maximum of thick slices' profile, None if the scan could not tell.
    Raises RunError if the SR volume was not made from this scan.
    """
    lr, fine = _volume(scan, volume), _volume(sr, volume)
    grid = _grid(scan, sr)
    unit = intensity.unit(lr, card.intensity, scan.slope, scan.inter)
    measured = scan.in_units(lr)
    own, turn = _factors(scan, sr, grid, card), Orientation.of(scan.affine)
    # Fourier transform and interpolation are linear: they can run on stored voxels, units are applied
    # afterwards.
    if own:
        factors, flips = own
        interpolation, coarse, there = "tricubic", _own(scan), measured
        axes = zip(lr.shape, factors, flips, strict=True)
        weights = [cubic_weights(n, f, card.grid, flip) for n, f, flip in axes]
        lines = turn.by_stored(card.transfer) if card.transfer else ()
        again = acquired_again(fine, factors, card.grid, lines, flips)
    else:
        interpolation = "cubic B-spline"
        weights = [grid.weights(axis, size) for axis, size in enumerate(lr.shape)]
        coarse = _coarse(scan, grid)
        there, again = measured, fine
        for axis, seen in enumerate(_seen(scan, grid, card, profile_mm)):
            if seen is not None:
                again = along(seen, again, axis)
            else:
                there = along(weights[axis], there, axis)
    difference = sr.in_units(again) - there
    consistency = float(np.linalg.norm(difference) / max(float(np.linalg.norm(there)), 1e-12))
    snr = signal_to_noise(turn.turned(measured), unit)
    warnings = [*scan.remarks, *_warnings(lr, measured, unit, snr, card)]
    return Comparison(
        scan,
        sr,
        lr,
        fine,
        grid,
        interpolation,
        weights,
        unit,
        "slices" if card.kind == "through-plane" else "k-space",
        coarse,
        difference,
        consistency,
        snr,
        warnings,
    )


def _grid(scan: Scan, sr: Scan) -> Grid:
    """Positions of the SR scan's voxels in the scan's, from both headers."""
    matrix = np.linalg.inv(scan.affine) @ sr.affine
    steps, starts = np.diag(matrix)[:3], matrix[:3, 3]
    counts, sizes = np.array(scan.shape), np.array(sr.shape)
    # The ends of both may lie half a voxel apart: one of the scan's on its k-space grid, one of the SR scan's
    # if its voxel size does not divide the field of view.
    slack = np.maximum(steps, 1) / 2 + OFF
    aligned = np.abs(matrix[:3, :3] - np.diag(steps)).max(0) * sizes < OFF + 0.5
    within = (np.abs(starts - steps / 2 + 0.5) < slack) & (
        np.abs(starts + steps * (sizes - 0.5) + 0.5 - counts) < slack
    )
    if not (aligned & within & (steps > 0)).all():
        raise RunError(f"{sr.name} does not lie where {scan.name} does: it was made from another scan.")
    return Grid(sr.shape, _triple(steps), _triple(starts))


def _factors(scan: Scan, sr: Scan, grid: Grid, card: ModelCard) -> tuple[Factors, Flips] | None:
    """HR voxels per LR voxel, if these are whole numbers on the model's own grid, and the axes that the
    network saw reversed; else None."""
    i, j, k = (b // a for a, b in zip(scan.shape, grid.shape, strict=True))
    whole = grid.shape == tuple(n * f for n, f in zip(scan.shape, (i, j, k), strict=True))
    if card.kind != "slab" or not whole:
        return None
    flips = flips_between(scan.affine, sr.affine, (i, j, k))
    own = fine_affine(np.eye(4), (i, j, k), card.grid, flips)
    return ((i, j, k), flips) if np.abs(own - grid.matrix).max() < OFF * 10 else None


def _own(scan: Scan) -> Grid:
    return Grid(scan.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


def _coarse(scan: Scan, grid: Grid) -> Grid:
    """Along each axis, the coarser of the scan's grid and the SR scan's."""
    parts = [
        (grid.shape[n], grid.step[n], grid.start[n]) if _is_coarser(grid, n) else (scan.shape[n], 1.0, 0.0)
        for n in range(3)
    ]
    (i, j, k), steps, starts = zip(*parts, strict=True)
    return Grid((i, j, k), _triple(steps), _triple(starts))


def _is_coarser(grid: Grid, axis: int) -> bool:
    return grid.step[axis] > 1 - OFF


def _seen(
    scan: Scan, grid: Grid, card: ModelCard, profile_mm: float | None
) -> Iterator[NDArray[np.float32] | None]:
    """What the scanner would see of the SR scan, as a matrix per axis; None for axes on which the scan is
    finer."""
    across = max(range(3), key=lambda axis: scan.zooms[axis])
    for axis, (step, start, size) in enumerate(zip(grid.step, grid.start, grid.shape, strict=True)):
        centers = (np.arange(scan.shape[axis], dtype=np.float64) - start) / step
        if _is_coarser(grid, axis):
            yield None
        elif card.kind == "through-plane" and axis == across:
            deviation = profile_mm / scan.zooms[axis] / float(FWHM) if profile_mm else UNKNOWN
            yield seen_through(deviation / step, centers, size)
        else:
            yield band_weights(size, centers, 1 / step)


def _triple(values: Sequence[float] | NDArray[np.floating]) -> tuple[float, float, float]:
    i, j, k = map(float, values)
    return i, j, k


def signal_to_noise(volume: NDArray[np.float32], unit: float) -> float:
    """Median of the foreground of a volume (rows, columns, slices) over the noise's standard deviation.

    The noise is that of the diagonal Haar detail in plane, whose median magnitude is hardly affected by edges
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
            f"Some voxels are {measured.max() / unit:.1f} times brighter than the 99.9th percentile, unlike "
            "in any training scan: look for spikes."
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
