"""Estimate a scanner's degradation from its LR scans alone: point spread and noise level, from spectra.

No LR scan has a partner here. HR scans of other people show what anatomy looks like on average: the power of
their k-space, at the LR scans' frequencies. The LR scans' power is then

    P_lr(f) = gain · P_hr(f) · |T(f)|² + noise

T is the transfer of the point spread besides truncation: a Gaussian along each axis, and a half at points
whose conjugate partial Fourier left out; if that step is not visible, it is estimated as a width. The model
is fitted to the logarithms, robustly, in seconds. An elliptical k-space shows in its empty corners. The noise
is the scan's own in air (`runtime.scan.noise`).

A scanner that blurs cannot be distinguished from people who look blurred: widths are relative to the HR
scans' own sharpness, and for heads uncertain by ± 0.4 LR voxels if HR scans vary as those of
`simulation.heads` do.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import fft, optimize

from ...runtime.scan.noise import estimate_noise
from ...runtime.scan.voxels import Volume
from .kspace import PEAK, Acquisition, Degradation, Scale, gaussian_transfer, sampling_mask

Zooms = tuple[float, float, float]
BINS = 12  # of frequency along each axis, up to the LR scan's Nyquist frequency
TAPER = 0.1  # share of each side that is faded out: a head cut at the neck has no edge there
SPREAD = 0.3  # natural logarithm of power by which heads differ: larger residuals count only linearly
SHARES = (0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)  # partial Fourier shares to try
# Partial Fourier is assumed if its misfit is less than this many times that of widths alone. On heads
# without it, its step made the misfit 1.07 times as large at least; on heads with it, 1.0 times at most.
STEP = 1.03
EMPTY = 0.35  # power in k-space's corners over what is expected there, below which they were not acquired
WIDEST, SHARPEST = 4.0, 1.5  # FWHM in LR voxels, and by how much people may be sharper than the HR scans
USUAL = 0.45  # standard deviation of people's squared widths, if there are fewer than three HR scans


@dataclass(frozen=True)
class Estimate:
    """degradation: as (row, column, slice). misfit: RMS, dB, by which spectra differ after the fit; heads of
    one kind differ by 1 to 2."""

    degradation: Degradation
    misfit: float


@dataclass(frozen=True)
class Seen:
    """A scan to estimate from. volume: (rows, columns, slices), any unit. zooms: mm."""

    volume: Volume
    zooms: Zooms


def estimate(lr: Sequence[Seen], hr: Sequence[Seen], scale: Scale) -> Estimate:
    """Estimate what turned scans like the HR ones into the LR scans, besides truncation by `scale`.

    All are in one orientation, and show the same part of the body; one LR scan is enough.
    """
    zooms = cast(Zooms, tuple(np.median([scan.zooms for scan in lr], axis=0)))
    found = _mean([spectrum(scan.volume, scan.zooms, zooms) for scan in lr])
    natural_ones = [spectrum(scan.volume, scan.zooms, zooms) for scan in hr]
    natural = _mean(natural_ones)
    fits = [_fitted(found, natural, None, 1.0)]
    for axis, share in itertools.product(range(3), SHARES):
        fits.append(_fitted(found, natural, axis, share))
    plain, best = fits[0], min(fits, key=lambda fit: fit.cost)
    chosen = best if best.cost < STEP * plain.cost else plain
    squares = _beyond_chance(chosen.squares, natural_ones, len(lr))
    corners = (RADIUS > 0.5) & (RADIUS < 0.62)
    expected = chosen.power(natural)[corners]
    degradation = Degradation(
        width=tuple(round(float(w), 2) for w in np.sqrt(squares)),  # type: ignore[arg-type]
        partial_fourier=chosen.share,
        phase_axis=1 if chosen.axis is None else chosen.axis,  # type: ignore[arg-type]
        elliptical=bool(np.median(found[corners] / expected) < EMPTY),
    )
    levels = [_noise(scan.volume, degradation, scale) for scan in lr]
    noise = round(float(np.median(levels)), 4)
    return Estimate(dataclasses.replace(degradation, noise=noise), chosen.misfit)


def spectrum(volume: Volume, zooms: Zooms, lr: Zooms) -> NDArray[np.float64]:
    """The power of a volume's k-space by frequency along each axis, (BINS, BINS, BINS), of sum 1.

    lr: voxel sizes, mm, whose Nyquist frequencies are the ends of the bins; if they are finer than `zooms`,
    the last bins have no data and repeat the last one that does.
    """
    tapered = volume.astype(np.float32)
    for axis, n in enumerate(tapered.shape):
        ends = np.clip(np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) / (TAPER * n), 0, 1)
        fade = ((1 - np.cos(np.pi * ends)) / 2).astype(np.float32)
        tapered *= np.expand_dims(fade, [a for a in range(3) if a != axis])
    power = np.abs(fft.fftn(tapered)) ** 2
    place, whole = np.zeros((1, 1, 1), np.intp), np.ones((1, 1, 1), bool)
    for axis, n in enumerate(tapered.shape):
        bins = (np.abs(fft.fftfreq(n)) / zooms[axis] * lr[axis] * 2 * BINS).astype(np.intp)
        bins, inside = np.minimum(bins, BINS - 1), bins <= BINS - (lr[axis] > 1.01 * zooms[axis])
        others = [a for a in range(3) if a != axis]
        place = place * BINS + np.expand_dims(bins, others)
        whole = whole & np.expand_dims(inside, others)
    place, whole = np.broadcast_arrays(place, whole)
    total = np.bincount(place[whole], power[whole], BINS**3)
    count = np.bincount(place[whole], minlength=BINS**3)
    mean = (total / np.maximum(count, 1)).reshape(BINS, BINS, BINS)
    return np.maximum(mean / mean.sum(), 1e-12)


FREQUENCY = (np.arange(BINS) + 0.5) / (2 * BINS)  # cycles per LR voxel
RADIUS = np.sqrt(sum(np.square(np.meshgrid(FREQUENCY, FREQUENCY, FREQUENCY, indexing="ij"))))


@dataclass(frozen=True)
class _Fit:
    """parameters: log gain, squared widths (negative: sharper than the HR scans), log noise power."""

    parameters: NDArray[np.float64]
    axis: int | None
    share: float
    cost: float = 0.0
    misfit: float = 0.0

    @property
    def squares(self) -> NDArray[np.float64]:
        return self.parameters[1:4]

    def power(self, natural: NDArray[np.float64]) -> NDArray[np.float64]:
        """The LR spectrum that these parameters predict."""
        power, noise = np.exp(self.parameters[0]) * natural, np.exp(self.parameters[4])
        for axis, square in enumerate(self.squares):
            line = np.exp(square * np.log(gaussian_transfer(1.0, FREQUENCY) ** 2))
            power = power * np.expand_dims(line, [a for a in range(3) if a != axis])
        if self.axis is not None:  # the real part keeps half of a point that has no partner
            lost = np.expand_dims(self.share - 0.5 < FREQUENCY, [a for a in range(3) if a != self.axis])
            power, noise = np.where(lost, power / 4, power), np.where(lost, noise / 2, noise)
        return power + noise


def _fitted(found: NDArray[Any], natural: NDArray[Any], axis: int | None, share: float) -> _Fit:
    inside = RADIUS <= 0.5  # what an elliptical k-space holds as well

    def residuals(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        return (np.log(found) - np.log(_Fit(parameters, axis, share).power(natural)))[inside]

    start = np.array([0.0, 0.4, 0.4, 0.4, np.log(found[RADIUS > 0.7].mean())])
    bounds = [np.full(5, -np.inf), np.full(5, np.inf)]
    bounds[0][1:4], bounds[1][1:4] = -(SHARPEST**2), WIDEST**2
    solved = optimize.least_squares(residuals, start, bounds=tuple(bounds), loss="soft_l1", f_scale=SPREAD)
    rms = float(np.sqrt(np.mean(residuals(solved.x) ** 2)))
    return _Fit(solved.x, axis, share, float(solved.cost), float(10 / np.log(10) * rms))


def _beyond_chance(
    squares: NDArray[np.float64], natural: Sequence[NDArray[np.float64]], count: int
) -> NDArray[np.float64]:
    """Squared widths, shrunk towards 0 the less they exceed the variation between people (a Wiener filter).

    natural: the HR scans' spectra, each compared with the others. count: number of LR scans. Sharpening what
    is naturally soft costs more than leaving a blur.
    """
    spread = np.full(3, USUAL)
    if len(natural) > 2:
        apart = [
            _fitted(one, _mean([*natural[:i], *natural[i + 1 :]]), None, 1.0).squares
            for i, one in enumerate(natural)
        ]
        spread = np.maximum(np.std(apart, axis=0), USUAL / 2)
    error = spread**2 * (1 / count + 1 / len(natural))
    kept = np.maximum(squares, 0.0)
    return kept * kept**2 / (kept**2 + error)


def _mean(spectra: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.exp(np.mean([np.log(s) for s in spectra], axis=0))


def _noise(volume: Volume, degradation: Degradation, scale: Scale) -> float:
    """The noise if all of k-space were acquired, as a share of the volume's 99.9th percentile."""
    unit = float(np.percentile(volume, PEAK)) or 1.0
    shape = cast(Scale, volume.shape)
    acquired = sampling_mask(shape, Acquisition(**{**vars(degradation), "scale": scale})).mean()
    return estimate_noise(volume, unit).sigma / unit / float(np.sqrt(acquired))
