"""The physics of degradation: what a shorter acquisition leaves of k-space. NumPy and SciPy only.

Volumes are (rows, columns, slices). The LR volume is the centre of the HR volume's k-space, so LR voxel i
lies exactly on HR voxel scale·i (grid "fft"). Odd sizes are cropped to a multiple of the scale first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from ...runtime.errors import RunError
from ...runtime.scan.interpolation import keys_cubic
from ...runtime.scan.voxels import Volume

PEAK = 99.9  # percentile of a volume: noise is given as a share of it
Scale = tuple[int, int, int]


class DegradationError(RunError):
    """A degradation that is physically impossible or does not suit the volume's size."""


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """How an LR scan loses resolution, and what else it loses.

    Parameters
    ----------
    sampling
        "truncation" of k-space; "blur": a Gaussian as wide (FWHM) as an LR voxel, decimated; "bicubic": as
        image programs shrink pictures, by Keys' kernel, widened by the factor.
    width
        Full widths at half maximum, in LR voxels along (row, column, slice), of a Gaussian that smooths the
        image before it is sampled, as a slice profile or relaxation does; 0: none. Noise is not smoothed.
    partial_fourier
        Acquired share of k-space along `phase_axis`, zero-filled; 0.5 < share <= 1.
    phase_axis
        0 rows, 1 columns, 2 slices.
    elliptical
        Leave out the corners of k-space outside the inscribed ellipsoid.
    filled
        Share of LR k-space along each axis that is acquired at all, 0.5 to 1; scanners fill the rest with
        zeros, to interpolate.
    hamming
        Strength of a Hamming window over k-space, 0 to 1; 1: 0.54 + 0.46 cos.
    tukey
        Share of each half-axis that a Tukey window tapers, 0 to 1.
    noise
        Standard deviation of the complex noise's real and imaginary parts if all of k-space is acquired, as a
        share of the volume's 99.9th percentile; the magnitude is then Rician. Points of k-space that are left
        out contribute no noise.
    bias
        Strength of a smooth receive field: the standard deviation of its logarithm over the volume.
    levels
        Grey levels from 0 to the 99.9th percentile, such as the 255 of an 8-bit image; 0: not quantised.

    Raises
    ------
    DegradationError
        If a value is out of range, or needs k-space and `sampling` is another.
    """

    sampling: Literal["truncation", "blur", "bicubic"] = "truncation"
    width: tuple[float, float, float] = (0.0, 0.0, 0.0)
    partial_fourier: float = 1.0
    phase_axis: Literal[0, 1, 2] = 1
    elliptical: bool = False
    filled: float = 1.0
    hamming: float = 0.0
    tukey: float = 0.0
    noise: float = 0.0
    bias: float = 0.0
    levels: int = 0

    def __post_init__(self) -> None:
        if not 0.5 < self.partial_fourier <= 1:
            raise DegradationError("Partial Fourier must be a share of k-space above 0.5 and at most 1.")
        if not 0.5 <= self.filled <= 1:
            raise DegradationError("The filled share of k-space must be at least 0.5 and at most 1.")
        if not (0 <= self.hamming <= 1 and 0 <= self.tukey <= 1):
            raise DegradationError("The strengths of the windows hamming and tukey must be from 0 to 1.")
        if not all(0 <= width < 100 for width in self.width):
            raise DegradationError("The widths of the point spread must be zero or more LR voxels.")
        shaped = (
            any(self.width)
            or self.elliptical
            or self.hamming
            or self.tukey
            or min(self.partial_fourier, self.filled) < 1
        )
        if self.sampling != "truncation" and shaped:
            raise DegradationError(
                "Widths, partial Fourier, elliptical or zero-filled k-space and its windows need k-space, "
                f"not the sampling '{self.sampling}'."
            )
        if not (0 <= self.noise < math.inf and 0 <= self.bias < math.inf):
            raise DegradationError("Noise level and bias must not be negative.")
        if self.levels < 0:
            raise DegradationError("The number of grey levels must be at least 1, or 0 for no quantisation.")

    def told(self) -> str:
        """The point spread and the noise in words."""
        widths = " x ".join(f"{width:g}" for width in self.width)
        words = [f"Gaussian of {widths} LR voxels (FWHM by row, column, slice)"]
        if self.partial_fourier < 1:
            axis = ("rows", "columns", "slices")[self.phase_axis]
            words.append(f"partial Fourier {self.partial_fourier:g} along {axis}")
        if self.elliptical:
            words.append("elliptical k-space")
        return ", ".join([*words, f"noise {self.noise:.2%} of the 99.9th percentile"])

    @property
    def alike_in_plane(self) -> bool:
        """Whether rows and columns are degraded alike."""
        halved = self.partial_fourier < 1 and self.phase_axis != 2
        return abs(self.width[0] - self.width[1]) < 0.2 and not halved


@dataclass(frozen=True)
class Acquisition(Degradation):
    """How an LR scan is acquired: a degradation with its scale.

    Parameters
    ----------
    scale
        HR voxels per LR voxel along (row, column, slice), 1 to 8 each and not all 1.

    Raises
    ------
    DegradationError
        If a value is out of range.
    """

    scale: Scale = (2, 2, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(1 <= s <= 8 for s in self.scale) or max(self.scale) == 1:
            raise DegradationError("The scale must be three factors of 1 to 8, such as 2x2x2, not all 1.")


def crop(hr: NDArray[Any], scale: Scale) -> NDArray[Any]:
    """Drop the last voxels of each axis, so that its length is a multiple of the scale."""
    if any(n < 2 * s for n, s in zip(hr.shape, scale, strict=True)):
        raise DegradationError(f"A volume of {hr.shape} voxels is too small for scale {scale}.")
    return hr[tuple(slice(n - n % s) for n, s in zip(hr.shape, scale, strict=True))]


def acquire(hr: Volume, acquisition: Acquisition, seed: int = 0) -> Volume:
    """Simulate a low-resolution acquisition: k-space truncated, sampled, weighted, with noise added.

    Parameters
    ----------
    hr
        Magnitude volume (rows, columns, slices), its shape a multiple of the scale.
    acquisition
        Scale, sampling, noise and the rest.
    seed
        Random seed of noise and bias field.

    Returns
    -------
    ndarray
        The magnitude LR volume, float32, in the HR volume's units; LR voxel i lies on HR voxel scale·i.
    """
    rng = np.random.default_rng(seed)
    shape = tuple(n // s for n, s in zip(hr.shape, acquisition.scale, strict=True))
    if acquisition.bias:
        hr = hr * np.exp(acquisition.bias * cosine_field(hr.shape, rng))
    noise: Any = 0.0
    if acquisition.noise:
        level = acquisition.noise * np.percentile(hr, PEAK)
        noise = level * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    if acquisition.sampling != "truncation":
        shrunk = blurred if acquisition.sampling == "blur" else bicubic
        image = shrunk(hr, acquisition.scale) + noise
    else:
        space = _resize_centre(_centred_fft(hr), shape) / math.prod(acquisition.scale)
        for axis, (n, width) in enumerate(zip(shape, acquisition.width, strict=True)):
            transfer = gaussian_transfer(width, (np.arange(n) - n // 2) / n).astype(np.float32)
            space *= np.expand_dims(transfer, [a for a in range(3) if a != axis])
        if acquisition.noise:
            space = space + fft.fftshift(fft.fftn(noise))
        space = space * sampling_mask(shape, acquisition) * window(shape, acquisition)
        image = fft.ifftn(fft.ifftshift(space))
    image = np.abs(image).astype(np.float32)
    if acquisition.levels:
        level = np.float32(np.percentile(image, PEAK) / acquisition.levels) or np.float32(1)
        image = np.rint(image / level) * level
    return image


def gaussian_transfer(width: float, frequency: NDArray[np.floating]) -> NDArray[np.floating]:
    """Transfer of a Gaussian of this FWHM, at frequencies in cycles per unit of the width."""
    sigma = width / (2 * math.sqrt(2 * math.log(2)))
    return np.exp(-2 * (math.pi * sigma * frequency) ** 2)


def transfer(degradation: Degradation, axis: int, frequency: NDArray[np.floating]) -> NDArray[np.floating]:
    """Transfer of width and partial Fourier at frequencies of 0 to 0.5 cycles per LR voxel, along an axis.

    The magnitude keeps about half of a point whose conjugate partner was not acquired.
    """
    line = gaussian_transfer(degradation.width[axis], frequency)
    if degradation.partial_fourier < 1 and axis == degradation.phase_axis:
        line = np.where(frequency > degradation.partial_fourier - 0.5, line / 2, line)
    return line


def window(shape: tuple[int, ...], acquisition: Acquisition) -> NDArray[np.float32]:
    """The weights by which the scanner reduces ringing, on centred LR k-space: Hamming's and Tukey's."""
    weights = np.ones((1,) * len(shape), np.float32)
    if not (acquisition.hamming or acquisition.tukey):
        return weights
    for axis, n in enumerate(shape):
        x = np.abs(np.arange(n) - n // 2) / (n / 2)
        line = 1 - acquisition.hamming * 0.46 * (1 - np.cos(np.pi * x))
        if acquisition.tukey:
            outer = np.clip((x - 1 + acquisition.tukey) / acquisition.tukey, 0, 1)
            line = line * (1 + np.cos(np.pi * outer)) / 2
        weights = weights * np.expand_dims(
            line.astype(np.float32), [a for a in range(len(shape)) if a != axis]
        )
    return weights


def sampling_mask(shape: tuple[int, ...], acquisition: Acquisition) -> NDArray[np.bool_]:
    """The mask of acquired points in centred LR k-space."""
    mask = np.ones(shape, bool)
    if acquisition.elliptical:
        axes = [(np.arange(n) - n // 2) / (n / 2) for n in shape]
        mask &= sum(a**2 for a in np.meshgrid(*axes, indexing="ij", sparse=True)) <= 1
    if acquisition.filled < 1:
        for axis, n in enumerate(shape):
            far = np.abs(np.arange(n) - n // 2) > acquisition.filled * n / 2
            mask[(slice(None),) * axis + (far,)] = False
    if acquisition.partial_fourier < 1:
        axis = acquisition.phase_axis
        left_out = slice(shape[axis] - round(acquisition.partial_fourier * shape[axis]))
        mask[(slice(None),) * axis + (left_out,)] = False
    return mask


def blurred(hr: Volume, scale: Scale) -> Volume:
    """A Gaussian whose full width at half maximum is an LR voxel, sampled at HR voxels scale·i."""
    sigma = [s / (2 * math.sqrt(2 * math.log(2))) if s > 1 else 0.0 for s in scale]
    smooth = ndimage.gaussian_filter(hr.astype(np.float32), sigma, mode="nearest")
    return smooth[tuple(slice(None, None, s) for s in scale)]


def bicubic(hr: Volume, scale: Scale) -> Volume:
    """Keys' cubic kernel (a = -1/2), widened to LR voxels, sampled at HR voxels scale·i."""
    shrunk = hr.astype(np.float32)
    for axis, s in enumerate(scale):
        kernel = keys_cubic(np.arange(1 - 2 * s, 2 * s) / s)
        shrunk = ndimage.correlate1d(shrunk, kernel / kernel.sum(), axis, mode="nearest")
        shrunk = shrunk[(slice(None),) * axis + (slice(None, None, s),)]
    return shrunk


def cosine_field(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """A random field of mean 0 and standard deviation 1: cosines of up to one period along each axis."""
    waves = [[np.cos(np.pi * k * (np.arange(n) + 0.5) / n) for k in range(3)] for n in shape]
    field = np.einsum(
        "abc,ai,bj,ck->ijk", rng.standard_normal((3, 3, 3)), *map(np.asarray, waves), optimize=True
    )
    field -= field.mean()
    return (field / field.std()).astype(np.float32)


def zero_fill(lr: Volume, scale: Scale) -> Volume:
    """Sinc interpolation onto the HR grid: the LR volume's k-space in a frame of zeros.

    Parameters
    ----------
    lr
        (rows, columns, slices).
    scale
        HR voxels per LR voxel along each axis.

    Returns
    -------
    ndarray
        The magnitude, float32, in the LR volume's units; LR voxel i lies on HR voxel scale·i.
    """
    shape = tuple(n * s for n, s in zip(lr.shape, scale, strict=True))
    space = _resize_centre(_centred_fft(lr), shape) * math.prod(scale)
    image = fft.ifftn(fft.ifftshift(space))
    return np.abs(image).astype(np.float32)


def tricubic(lr: Volume, scale: Scale) -> Volume:
    """Cubic spline interpolation onto the HR grid.

    Parameters
    ----------
    lr
        (rows, columns, slices).
    scale
        HR voxels per LR voxel along each axis.

    Returns
    -------
    ndarray
        float32, in the LR volume's units; HR voxel p lies at LR coordinate p/scale.
    """
    out = lr.astype(np.float32)
    for axis, s in enumerate(scale):
        if s == 1:
            continue
        spline = ndimage.spline_filter1d(out, 3, axis, mode="reflect", output=np.float32)
        n = lr.shape[axis]
        pad = [(4, 4) if a == axis else (0, 0) for a in range(3)]
        out = np.empty((*out.shape[:axis], n * s, *out.shape[axis + 1 :]), np.float32)
        spline = np.pad(spline, pad, mode="symmetric")
        for phase in range(s):
            weights = _bspline(np.arange(-1, 3) - phase / s)
            taps = (np.take(spline, range(k + 4, k + 4 + n), axis) for k in range(-1, 3))
            index = [slice(None)] * 3
            index[axis] = slice(phase, None, s)
            out[tuple(index)] = sum(w * tap for w, tap in zip(weights, taps, strict=True))
    return out


def data_consistency(sr: Volume, lr: Volume, scale: Scale) -> float:
    """‖truncation(sr) − lr‖ / ‖lr‖: 0 if the SR volume explains every voxel of the LR one."""
    again = acquire(sr, Acquisition(scale))
    return float(np.linalg.norm(again - lr) / max(float(np.linalg.norm(lr)), 1e-12))


def _bspline(t: NDArray[Any]) -> NDArray[Any]:
    t = np.abs(t)
    return np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6).astype(np.float32)


def _centred_fft(volume: NDArray[Any]) -> NDArray[Any]:
    return fft.fftshift(fft.fftn(volume.astype(np.float32), workers=-1))


def _resize_centre(space: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Crop or zero-pad centred k-space about its zero frequency."""
    out = np.zeros(shape, space.dtype)
    here, there = [], []
    for n, m in zip(space.shape, shape, strict=True):
        keep = min(n, m)
        here.append(slice(n // 2 - keep // 2, n // 2 - keep // 2 + keep))
        there.append(slice(m // 2 - keep // 2, m // 2 - keep // 2 + keep))
    out[tuple(there)] = space[tuple(here)]
    return out
