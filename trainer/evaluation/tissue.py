"""How good an SR volume is in tissue, in air and in either band: a measure that air cannot flatter.

Most of a scan is air, and air is easy: removing ringing and noise from it raises the PSNR of the whole
volume, whatever happens to the anatomy. So tissue and air are measured separately, against the same peak, and
so are the band that the LR scan has measured (low) and the band that the network has added (high).

Volumes are (i, j, k), on the grid and in the units of the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from ...runtime.scan.voxels import Volume

Mask = NDArray[np.bool_]
PEAK = 99.9  # percentile of the truth, so that hot voxels do not set the scale
ADDED = 0.01  # share of the truth's power in the high band; with less there is nothing to judge
SMOOTHING = 2.0  # voxels: σ of the smoothing of the truth before tissue is detected
SHARE = 0.05  # of the peak, above which a voxel is tissue


@dataclass(frozen=True)
class TissueFigures:
    """PSNR in dB of tissue, of air, and in tissue of the low and the high band, all over the truth's peak.

    high_factor: the factor by which the added high band comes closest to the truth's, in tissue: 1 is right,
    less than 1 means that too much was drawn. high_correlation: its correlation with the truth's. Both are
    computed from sums of products, without subtracting means. None if there is no such voxel or band.
    """

    psnr_tissue: float | None = None
    psnr_air: float | None = None
    psnr_low: float | None = None
    psnr_high: float | None = None
    high_factor: float | None = None
    high_correlation: float | None = None


def tissue_mask(hr: Volume) -> Mask:
    """The truth, smoothed by a Gaussian of 2 voxels, above 5 % of its 99.9th percentile."""
    smooth = ndimage.gaussian_filter(hr.astype(np.float32), SMOOTHING)
    return smooth > SHARE * np.percentile(hr, PEAK)


def low_band(volume: Volume, shape: tuple[int, ...]) -> Volume:
    """The part of a volume that an LR scan of this shape can hold: its truncated k-space; float32."""
    space = fft.fftn(volume.astype(np.float32), workers=-1)
    for axis, (n, m) in enumerate(zip(volume.shape, shape, strict=True)):
        frequency = np.rint(fft.fftfreq(n, 1 / n))
        inside = (frequency >= -(m // 2)) & (frequency < m - m // 2)
        space *= np.expand_dims(inside, [a for a in range(volume.ndim) if a != axis])
    return np.real(fft.ifftn(space, workers=-1)).astype(np.float32)


def in_tissue(
    sr: Volume, hr: Volume, lr: tuple[int, ...] | None = None, mask: Mask | None = None
) -> TissueFigures:
    """Compare an SR volume with the truth in tissue, in air, and by bands.

    Parameters
    ----------
    sr, hr
        The SR volume and the truth, of one shape, in the same units.
    lr
        Shape of the LR scan, which separates the low band from the high one; None: no bands.
    mask
        Where tissue is, on the truth's grid; by default `tissue_mask` of the truth.

    Returns
    -------
    TissueFigures
        In dB, the peak being the truth's 99.9th percentile.

    Raises
    ------
    ValueError
        If shapes differ.
    """
    if not sr.shape == hr.shape == (hr if mask is None else mask).shape:
        raise ValueError(
            f"The SR volume has {sr.shape} voxels, the truth {hr.shape}"
            + ("." if mask is None else f" and the mask {mask.shape}.")
        )
    peak = float(np.percentile(hr, PEAK))
    mask = tissue_mask(hr) if mask is None else mask
    if peak <= 0:
        return TissueFigures()
    tissue, air = (_psnr(sr[where] - hr[where].astype(np.float64), peak) for where in (mask, ~mask))
    if lr is None or not mask.any():
        return TissueFigures(tissue, air)
    low_hr, low_sr = low_band(hr, lr), low_band(sr, lr)
    truth, added = (
        (whole[mask] - low[mask]).astype(np.float64) for whole, low in ((hr, low_hr), (sr, low_sr))
    )
    low = _psnr(low_sr[mask] - low_hr[mask].astype(np.float64), peak)
    together, power, true_power = truth @ added, added @ added, truth @ truth
    if power <= ADDED * true_power:
        return TissueFigures(tissue, air, low, _psnr(added - truth, peak))
    factor, correlation = float(together / power), float(together / math.sqrt(power * true_power))
    return TissueFigures(tissue, air, low, _psnr(added - truth, peak), factor, correlation)


def _psnr(error: NDArray[np.float64], peak: float) -> float | None:
    if not error.size:
        return None
    square = float(np.mean(error**2))
    return float(10 * np.log10(peak**2 / square)) if square else float("inf")
