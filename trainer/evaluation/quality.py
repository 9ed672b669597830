"""How good an SR volume is: PSNR and SSIM by scikit-image, raw and registered, and two checks of honesty.

These cover the whole volume; `tissue` has the measures that air cannot flatter.

Volumes are (rows, columns, slices), float32, on the grid and in the units of the truth.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import fft, ndimage
from skimage.metrics import structural_similarity
from skimage.registration import phase_cross_correlation

from ...runtime.scan.voxels import Volume
from ..simulation import kspace
from .tissue import Mask, TissueFigures, in_tissue

# Wang et al. 2004: 11×11 (or 11×11×11) Gaussian of σ 1.5, population covariance.
WINDOW = 11
GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


@dataclass(frozen=True)
class Quality:
    """psnr: dB over the truth's range. ssim: of the whole volume, 3-D window. ssim_2d: mean over slices
    that are not constant in the truth, 2-D window, as in the paper."""

    psnr: float
    ssim: float
    ssim_2d: float


def quality(sr: Volume, hr: Volume, slice_axis: int = 2) -> Quality:
    """Compare an SR volume with the truth.

    Parameters
    ----------
    sr, hr
        The SR volume and the truth, on the same grid and in the same units.
    slice_axis
        The axis across the slices, for the 2-D SSIM.

    Returns
    -------
    Quality
        PSNR in dB over the truth's range, SSIM in 3-D and as the mean over slices.

    Raises
    ------
    ValueError
        If shapes differ, a side has fewer than 11 voxels or the truth is constant.
    """
    if sr.shape != hr.shape:
        raise ValueError(f"The SR volume has {sr.shape} voxels and the truth {hr.shape}.")
    if min(hr.shape) < WINDOW:
        raise ValueError(f"SSIM needs {WINDOW} voxels along every axis; the volume has {hr.shape}.")
    data_range = float(hr.max()) - float(hr.min())
    if data_range == 0:
        raise ValueError("The truth is constant: there is nothing to compare with.")
    pairs = zip(np.moveaxis(sr, slice_axis, 0), np.moveaxis(hr, slice_axis, 0), strict=True)
    slices = [ssim(s, h, data_range) for s, h in pairs if h.min() < h.max()]
    return Quality(psnr(sr, hr, data_range), ssim(sr, hr, data_range), float(np.mean(slices)))


def psnr(sr: Volume, hr: Volume, data_range: float) -> float:
    """Peak signal to noise ratio in dB; infinite for equal images."""
    error = float(np.mean((sr.astype(np.float64) - hr) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(data_range**2 / error))


def ssim(sr: Volume, hr: Volume, data_range: float) -> float:
    """Structural similarity of two images or volumes."""
    index: Any = structural_similarity(sr, hr, data_range=data_range, **GAUSSIAN)
    return float(index)


@dataclass(frozen=True)
class _Whole:
    """psnr, ssim, ssim_2d: as in `Quality`; *_registered: after the SR volume is shifted rigidly, by a
    fraction of a voxel, to fit the truth best. shift: length of that shift, in HR voxels. slab_step: the mean
    step between slices at slab edges over that within slabs, relative to the truth: 1 if slabs cannot be
    seen. consistency: ‖truncation(SR) − LR‖ / ‖LR‖; None if the LR scan is unknown.
    """

    psnr: float
    ssim: float
    ssim_2d: float
    psnr_registered: float
    ssim_registered: float
    ssim_2d_registered: float
    shift: float
    slab_step: float
    consistency: float | None = None


@dataclass(frozen=True)
class Figures(TissueFigures, _Whole):
    """Figures of the whole volume, and separately of tissue, air and bands."""


def measure(
    sr: Volume,
    hr: Volume,
    lr: Volume | None = None,
    slice_axis: int = 2,
    slab: int = 6,
    mask: Mask | None = None,
) -> Figures:
    """All figures of one volume, before and after registration, whole and in tissue.

    Parameters
    ----------
    sr, hr
        The SR volume and the truth, on the same grid and in the same units.
    lr
        The LR scan in the same units, for data consistency and bands.
    slice_axis
        The axis across the slices.
    slab
        HR slices of a network call, for the steps at slab edges.
    mask
        Where tissue is, on the truth's grid; by default `tissue_mask` of the truth.

    Raises
    ------
    ValueError
        If shapes do not fit or the truth is constant.
    """
    raw = quality(sr, hr, slice_axis)
    moved, shift = registered(sr, hr)
    after = quality(moved, hr, slice_axis) if shift else raw
    consistency = None
    if lr is not None:
        consistency = kspace.data_consistency(sr, lr, factors(sr.shape, lr.shape))
    step = slab_step(sr, hr, slab, slice_axis)
    tissue = in_tissue(sr, hr, None if lr is None else lr.shape, mask)
    return Figures(*_of(raw), *_of(after), shift, step, consistency, **dataclasses.asdict(tissue))


def registered(sr: Volume, hr: Volume) -> tuple[Volume, float]:
    """The SR volume shifted onto the truth (by its Fourier phase), and the shift's length in voxels.

    Nothing in UDEAN's losses fixes a shift between the down-sampling and the SR path; this shows how much of
    an error is such a shift. Resolved to 1/50 voxel.
    """
    plain: Any = None  # no whitening: else noise and missing detail would decide
    found, *_ = phase_cross_correlation(hr, sr, upsample_factor=50, normalization=plain)
    length = float(np.linalg.norm(found))
    if length == 0:
        return sr, 0.0
    moved = fft.ifftn(ndimage.fourier_shift(fft.fftn(sr, workers=-1), found), workers=-1)
    return np.real(moved).astype(np.float32), length


def slab_step(sr: Volume, hr: Volume, slab: int, axis: int = 2) -> float:
    """How much larger steps between slices are at slab edges than elsewhere, relative to the truth."""

    def ratio(volume: Volume) -> float:
        others = tuple(a for a in range(3) if a != axis)
        steps = np.abs(np.diff(volume, axis=axis)).mean(others)
        edge = (np.arange(len(steps)) + 1) % slab == 0
        return float(steps[edge].mean() / steps[~edge].mean()) if edge.any() and steps[~edge].any() else 1.0

    return ratio(sr) / (ratio(hr) or 1.0)


def factors(hr: tuple[int, ...], lr: tuple[int, ...]) -> kspace.Scale:
    """HR voxels per LR voxel along each axis. Raises ValueError if a factor is not a whole number."""
    found = tuple(h // n for h, n in zip(hr, lr, strict=True))
    if min(found) < 1 or any(h != f * n for h, f, n in zip(hr, found, lr, strict=True)):
        raise ValueError(f"A volume of {hr} voxels is not a whole multiple of its LR scan of {lr}.")
    return found[0], found[1], found[2]


def _of(q: Quality) -> tuple[float, float, float]:
    return q.psnr, q.ssim, q.ssim_2d
