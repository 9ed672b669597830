"""How like the truth: PSNR and SSIM of SR volumes, by scikit-image. Volumes (rows, columns, slices)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

Volume = NDArray[Any]  # float32
# Wang et al. 2004: 11×11 (or 11×11×11) Gaussian of σ 1.5, population covariance.
GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


@dataclass(frozen=True)
class Quality:
    """psnr: dB over the truth's range. ssim: of the whole volume, 3-D window. ssim_2d: mean over slices
    that are not constant in the truth, 2-D window, as in the paper."""

    psnr: float
    ssim: float
    ssim_2d: float


def quality(sr: Volume, hr: Volume, slice_axis: int = 2) -> Quality:
    """Compare an SR volume with the truth on the same grid and in the same units.

    Raises ValueError where shapes differ or the truth is constant.
    """
    if sr.shape != hr.shape:
        raise ValueError(f"The SR volume has {sr.shape} voxels and the truth {hr.shape}.")
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
