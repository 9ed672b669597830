"""Slice profiles of thick slices, and their estimation from a scan.

A slice's intensity is the object along the slice normal weighted by its profile. Along that axis all is a
matrix (slices, fine voxels). Positions are in fine voxels from the first one's centre.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError

ProfileShape = Literal["gaussian", "box", "slr"]

FWHM = 2 * np.sqrt(2 * np.log(2))  # of a Gaussian, in standard deviations
PARTS = 9  # of a fine voxel, in which a profile is integrated
TIME_BANDWIDTH = 4  # of the Hamming-windowed sinc pulse: a usual choice in spin-echo sequences
SAMPLES, FEWEST = 16, 8  # slices of one line whose spectrum is compared: at most, at least
TISSUE = 0.05  # of the brightest: above it is tissue
RANGE = 0.1, 0.8  # deviations of profiles in slice spacings: thin slices with wide gaps to overlapping ones


@functools.cache
def _slr() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A 90° excitation's profile: positions in widths at half maximum, 0 to 1.6, and magnetization.

    The Shinnar-Le Roux transform of a Hamming-windowed sinc: its B polynomial is the filter, |Mxy| is
    2·|B|·sqrt(1 - |B|²) (Pauly et al., IEEE TMI 10, 1991, eq. 11).
    """
    taps = np.arange(256) - 127.5
    b = np.sinc(taps * TIME_BANDWIDTH / 256) * (0.54 + 0.46 * np.cos(2 * np.pi * taps / 256))
    place = np.linspace(0, 2, 2001)
    beta = np.cos(2 * np.pi * np.outer(place * TIME_BANDWIDTH / 256, taps)) @ b / b.sum() * np.sin(np.pi / 4)
    mxy = 2 * np.abs(beta) * np.sqrt(1 - beta**2)
    width = 2 * place[np.argmax(mxy < mxy[0] / 2)]
    return place / width, mxy


def profile(shape: ProfileShape, distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """A profile of width 1 at half maximum, at distances from the slice's centre."""
    if shape not in get_args(ProfileShape):
        raise RunError(f"The slice profile is one of {', '.join(get_args(ProfileShape))}, not '{shape}'.")
    if shape == "gaussian":
        return np.exp(-((FWHM * distance) ** 2) / 2)
    if shape == "box":
        return (np.abs(distance) <= 0.5).astype(float)
    place, mxy = _slr()
    return np.interp(np.abs(distance), place, mxy, right=0.0)


def profile_matrix(
    shape: ProfileShape, width: float, centers: NDArray[np.float64], size: int
) -> NDArray[np.float32]:
    """The matrix (slices, size) from `size` fine voxels to slices at these centres; rows sum to 1.

    width: at half maximum, in fine voxels.
    """
    parts = (np.arange(size * PARTS) + 0.5) / PARTS - 0.5
    away = parts - np.asarray(centers)[:, None]
    # If the edge of a box cuts a part, the part counts by its share.
    if shape == "box":
        weights = np.clip((width / 2 - np.abs(away)) * PARTS + 0.5, 0, 1)
    else:
        weights = profile(shape, away / width)
    weights = weights.reshape(len(weights), size, PARTS).sum(2)
    return (weights / np.maximum(weights.sum(1, keepdims=True), 1e-12)).astype(np.float32)


def deviation(shape: ProfileShape, width: float) -> float:
    """The standard deviation of a profile with this width at half maximum, in the width's unit."""
    place = np.linspace(-1.6, 1.6, 6401)
    weights = profile(shape, place)
    return float(width * np.sqrt((weights * place**2).sum() / weights.sum()))


def blur_matrix(size: int, sd: float) -> NDArray[np.float32]:
    """A Gaussian blur of this standard deviation in voxels, (size, size); rows sum up to 1."""
    return sampled_gaussian(np.arange(size), size, max(sd, 0.05))


def sampled_gaussian(centers: NDArray[Any], size: int, sd: float) -> NDArray[np.float32]:
    """The matrix (slices, size) of a Gaussian read at the voxels; rows sum to 1.

    Its standard deviation over voxels is `sd`, as `estimate_deviation` means it: a Gaussian integrated over
    voxels (`profile_matrix`) has a variance that is a twelfth of a voxel larger.
    """
    away = centers[:, None] - np.arange(size)
    weights = np.exp(-0.5 * (away / sd) ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def noise_level(slices: NDArray[np.float32], tissue: NDArray[np.bool_]) -> float:
    """The standard deviation of the noise in tissue, from differences of neighbours in plane."""
    mixed = slices[1:, 1:] - slices[1:, :-1] - slices[:-1, 1:] + slices[:-1, :-1]
    inside = mixed[tissue[1:, 1:]]
    return float(np.median(np.abs(inside)) / 0.6745 / 2) if inside.size else 0.0


def tissue_of(slices: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The mask of tissue in slices (rows, columns, slices), in the network's range."""
    rows, columns = (blur_matrix(size, 2.0) for size in slices.shape[:2])
    smooth = np.tensordot(columns, np.tensordot(rows, slices, (1, 0)), (1, 1)).transpose(1, 0, 2)
    return smooth > TISSUE


def estimate_deviation(slices: NDArray[np.float32], step: float) -> float | None:
    """The standard deviation of a scan's slice profile, in slice spacings, estimated from the scan itself.

    slices: (rows, columns, slices) in the network's range. step: slice spacing in voxels of a plane.
    Tissue has much the same spectrum along all axes, but for a factor. If lines in plane are blurred by a
    Gaussian and sampled as far apart as slices are, the shape of their spectrum, aliasing included, is that
    of lines across the slices just when the Gaussian is as wide as the slice profile. (Lines across the
    slices are taken from the blurred volume too, so that both have been blurred along both axes.)
    None if there is too little to estimate it from.
    """
    tissue = tissue_of(slices)
    found = []
    for axis in (0, 1):
        lines, inside = np.moveaxis(slices, axis, 0)[:, ::2], np.moveaxis(tissue, axis, 0)[:, ::2]
        if (sd := _match(lines, inside, step, noise_level(slices, tissue))) is not None:
            found.append(sd)
    return float(np.mean(found)) if found else None


def _match(volume: NDArray[np.float32], tissue: NDArray[np.bool_], step: float, noise: float) -> float | None:
    """The deviation at which lines along axis 0, made thick, have the spectrum of those along axis 2."""
    count = min(SAMPLES, volume.shape[2], int((volume.shape[0] - 1) / step) + 1)
    if count < FEWEST:
        return None
    span = (count - 1) * step

    def tilt(sd: float) -> float | None:
        blur = blur_matrix(len(volume), sd * step)
        # At the rim there is less to blur with.
        rim = min(math.ceil(2 * sd * step), int(len(volume) - 1 - span) // 2)
        inner = slice(rim, len(volume) - rim)
        blurred, inside = np.tensordot(blur, volume, (1, 0))[inner], tissue[inner]
        firsts = range(0, volume.shape[2] - count + 1, max(1, count // 4))
        across = _spectrum(blurred, inside, [o + np.arange(count, dtype=float) for o in firsts])
        starts = np.arange(0, len(blurred) - 1 - span + 1e-9, max(1.0, span // 8))
        in_plane = _spectrum(
            np.moveaxis(blurred, 0, 2),
            np.moveaxis(inside, 0, 2),
            [o + step * np.arange(count) for o in starts],
        )
        if across is None or in_plane is None:
            return None
        white, coloured = _noise_spectra(blur[len(blur) // 2], count, step)
        across = np.maximum(across - noise**2 * white, 0.1 * across)
        in_plane = np.maximum(in_plane - noise**2 * coloured, 0.1 * in_plane)
        ratio = np.log(np.maximum(in_plane, 1e-30) / np.maximum(across, 1e-30))[
            2:
        ]  # the lowest are the head's shape
        return float(np.polyfit(np.linspace(-1, 1, len(ratio)), ratio, 1)[0])

    low, high = RANGE
    for _ in range(8):
        middle = (low + high) / 2
        slope = tilt(middle)
        if slope is None:
            return None
        low, high = (middle, high) if slope > 0 else (low, middle)
    return (low + high) / 2


def _window(count: int) -> NDArray[np.float64]:
    return np.hanning(count + 2)[1:-1]


def _spectrum(
    volume: NDArray[np.float32], tissue: NDArray[np.bool_], lines: list[NDArray[np.float64]]
) -> NDArray[np.float64] | None:
    """Mean power of lines along axis 2 in tissue, read at these places (linear: they are blurred)."""
    total, number = 0.0, 0
    for places in lines:
        left = np.minimum(places.astype(int), volume.shape[2] - 2)
        share = (places - left).astype(np.float32)
        kept = tissue[..., left].mean(2) > 0.75
        if kept.any():
            values = volume[kept]
            values = values[:, left] * (1 - share) + values[:, left + 1] * share
            values = (values - values.mean(1, keepdims=True)) * _window(len(places))
            total = total + (np.abs(np.fft.rfft(values, axis=1)) ** 2).sum(0)
            number += len(values)
    return np.asarray(total / number) if number >= 200 else None


def _noise_spectra(
    kernel: NDArray[np.float32], count: int, step: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Power of white noise of variance 1 in lines across the slices and in thick lines in plane."""
    window = _window(count)
    covariance = np.correlate(kernel, kernel, "full")[len(kernel) - 1 :].astype(float)
    lags = np.interp(np.arange(count) * step, np.arange(len(covariance)), covariance)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(count // 2 + 1), np.arange(count)) / count) * window
    apart = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    coloured = np.einsum("fi,ij,fj->f", waves, lags[apart], waves.conj()).real
    return np.full(count // 2 + 1, covariance[0] * (window**2).sum()), coloured
