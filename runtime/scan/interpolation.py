"""Baselines for an SR volume: interpolation of the scan, and the volume as the scanner would see it.

NumPy only. Volumes are (i, j, k); factors are HR voxels per LR voxel along each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.card import GridKind, Transfer
from .geometry import AS_STORED, Factors, Flips, lead, lr_coordinate


def keys_cubic(distance: NDArray[np.floating]) -> NDArray[np.floating]:
    """Keys' cubic convolution kernel with a = -1/2, of distances in samples (IEEE ASSP 29, 1981, eq. 15)."""
    t = np.abs(distance)
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t <= 1, near, np.where(t < 2, far, np.zeros_like(t)))


def cubic_weights(size: int, factor: int, grid: GridKind, flipped: bool = False) -> NDArray[np.float32]:
    """Keys' cubic interpolation along one axis as a matrix (size·factor, size).

    Beyond its ends the volume repeats its last voxels.
    """
    fine = np.arange(size * factor)
    position = lr_coordinate(fine, factor, grid, flipped)
    base = np.floor(position).astype(int)
    weights = np.zeros((len(fine), size), np.float32)
    for tap in range(-1, 3):
        np.add.at(weights, (fine, np.clip(base + tap, 0, size - 1)), keys_cubic(position - base - tap))
    return weights


def interpolated_plane(
    volume: NDArray[Any], weights: Sequence[NDArray[np.float32]], axis: int, index: int
) -> NDArray[np.float32]:
    """The plane with number `index` across `axis` of what matrices (fine, coarse) make of a volume, float32.

    weights: one for each axis, such as `cubic_weights` or `regrid.spline_weights`.
    """
    across = weights[axis][index]
    taps = np.flatnonzero(np.abs(across) > 1e-6)  # a spline's prefilter reaches far, but faintly
    near = np.take(volume, taps, axis).astype(np.float32)
    plane = np.tensordot(near, across[taps], (axis, 0))
    first, second = (weights[n] for n in range(3) if n != axis)
    return first @ plane @ second.T


def linear(windows: NDArray[np.float32], scale: int, grid: GridKind, axis: int) -> NDArray[np.float32]:
    """Linear interpolation along one axis, `scale` HR voxels per LR voxel; end voxels are repeated."""
    if scale == 1:
        return windows
    lr = np.moveaxis(windows, axis, -1)
    hr = np.empty(
        (*windows.shape[:axis], windows.shape[axis] * scale, *windows.shape[axis + 1 :]), np.float32
    )
    out = np.moveaxis(hr, axis, -1)
    for phase in range(scale):
        at = phase / scale if grid == "fft" else (phase + 0.5) / scale - 0.5
        share = np.float32(abs(at))
        out[..., phase::scale] = lr
        if share and lr.shape[-1] > 1:  # towards the next LR voxel, or towards the one before
            here, there = (slice(0, -1), slice(1, None)) if at > 0 else (slice(1, None), slice(0, -1))
            out[..., phase::scale][..., here] += share * (lr[..., there] - lr[..., here])
    return hr


def band_weights(size: int, places: NDArray[np.float64], step: float) -> NDArray[np.float32]:
    """Values at places (n,) of `size` samples limited to the lowest 1/step of their frequencies: a matrix (n,
    size).

    For truncation to a grid without a whole-number factor: a Fourier series must end where the samples do, so
    they are continued by their mirror image, and cosines replace the exponentials. step: distance between the
    places in samples, at least 1.
    """
    waves = np.arange(math.ceil(size / step - 1e-3)) * np.pi / size
    share = np.where(waves == 0, 1.0, 2.0) / size
    seen = np.cos((places[:, None] + 0.5) * waves) * share
    return (seen @ np.cos(waves[:, None] * (np.arange(size) + 0.5))).astype(np.float32)


def passed(transfer: tuple[float, ...], frequency: NDArray[np.floating]) -> NDArray[np.floating]:
    """A line of the card's transfer at frequencies from 0 to 0.5 cycles per LR voxel."""
    return np.interp(frequency, np.linspace(0, 0.5, len(transfer)), transfer)


def acquired_again(
    sr: NDArray[Any], factors: Factors, grid: GridKind, transfer: Transfer = (), flipped: Flips = AS_STORED
) -> NDArray[np.float32]:
    """The LR volume from the centre of the SR volume's k-space: what the scanner would have seen.

    transfer: of its point spread, as in the card, but along (i, j, k). Read plane by plane, so that a mapped
    file is not copied; float32.
    """
    first, second, third = transfer or ((), (), ())
    shape = [n // f for n, f in zip(sr.shape, factors, strict=True)]
    leads = [lead(f, grid, flip) for f, flip in zip(factors, flipped, strict=True)]
    thin = np.empty((shape[0], shape[1], sr.shape[2]), np.float32)
    for k in range(sr.shape[2]):
        plane = _truncate(sr[:, :, k].astype(np.float32), 0, factors[0], leads[0], first)
        thin[:, :, k] = _truncate(plane, 1, factors[1], leads[1], second)
    out = np.empty(shape, np.float32)
    for i in range(shape[0]):
        out[i] = _truncate(thin[i], 1, factors[2], leads[2], third)
    return out


def _truncate(
    volume: NDArray[np.float32], axis: int, factor: int, ahead: float, transfer: tuple[float, ...] = ()
) -> NDArray[np.float32]:
    """Keep the lowest 1/factor of the frequencies along one axis, weighted by the transfer.

    LR voxel i lies on HR coordinate factor·i + ahead.
    """
    if factor == 1 and not transfer:
        return volume
    fine = volume.shape[axis]
    size = fine // factor
    space = np.moveaxis(np.fft.rfft(volume, axis=axis), axis, -1)[..., : size // 2 + 1]
    if ahead:
        space = space * np.exp(2j * np.pi * np.arange(size // 2 + 1) * ahead / fine)
    if transfer:
        space = space * passed(transfer, np.arange(size // 2 + 1) / size)
    return np.moveaxis(np.fft.irfft(space, size, axis=-1) / factor, -1, axis).astype(np.float32)
