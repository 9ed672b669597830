"""A model under examination, beside sinc and tricubic interpolation: one restored phantom after the other.

Each figure is of the whole way from LR to SR voxels as `udean-run` goes it, the measured band included.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.card import Grid
from ..scan.geometry import Factors
from . import phantoms, scanner
from .lesions import put_lesions, transfer

Volume = NDArray[Any]
Restore = Callable[[Volume], Volume]
Figures = dict[str, dict[str, Any]]  # by method
NOISE = 0.02  # of what is bright
ALLOWED = 0.02  # of lesion transfer below sinc's
SIDE, WHOLE_SIDE = 48, 72  # LR voxels along an axis of a phantom, and along one that stays as it is


def examine(resolve: Restore, factors: Factors, grid: Grid, hr: Volume | None = None) -> dict[str, Figures]:
    """All figures by test and method. resolve: LR to SR volume. hr: the user's volume for lesions and
    sensitivity, its shape a multiple of the factors; by default a phantom."""
    methods: dict[str, Restore] = {
        "sr": resolve,
        "sinc": partial(scanner.sinc, factors=factors, grid=grid),
        "tricubic": partial(scanner.tricubic, factors=factors, grid=grid),
    }
    scan = partial(scanner.acquire, factors=factors, grid=grid)
    shape = tuple((SIDE if f > 1 else WHOLE_SIDE) * f for f in factors)
    hr = phantoms.head(shape) if hr is None else hr
    added, found = put_lesions(hr)
    ill, well, noisy = scan(hr + added), scan(hr), scan(hr, noise=NOISE * float(np.percentile(hr, 99.9)))
    edge, depth = phantoms.edge(shape)
    tests: dict[str, Figures] = {"lesions": {}, "edge": {}, "noise": {}, "nothing": {}, "sensitivity": {}}
    for name, method in methods.items():
        restored = method(well)
        kept = transfer(added, found, method(ill), restored)
        tests["lesions"][name] = {f"{radius:g}": shares for radius, shares in kept.items()}
        tests["edge"][name] = edge_spread(method(scan(edge)), depth)
        tests["noise"][name] = {"gain": noise_gain(method(noisy), restored, noisy, well, hr)}
        tests["nothing"][name] = out_of_nothing(method, methods["sinc"], scan, shape)
        tests["sensitivity"][name] = sensitivity(method, scan, hr, restored, factors, grid)
    return tests


def lost_lesions(tests: dict[str, Figures]) -> list[str]:
    """A sentence for each radius at which SR keeps less of a lesion than sinc does."""
    sr, sinc = tests["lesions"]["sr"], tests["lesions"]["sinc"]
    return [
        f"Lesions of radius {radius} voxels keep {shares['all']:.2f} of their contrast, where sinc "
        f"interpolation keeps {sinc[radius]['all']:.2f}."
        for radius, shares in sr.items()
        if shares["all"] < sinc[radius]["all"] - ALLOWED
    ]


def edge_spread(sr: Volume, depth: Volume) -> dict[str, float]:
    """Of a slanted edge (as in ISO 12233): the distance from 10 to 90 %, in HR voxels, overshoot and
    undershoot as shares of the step, and the frequency at which the MTF is one half, in cycles a voxel."""
    middle = tuple(slice(n // 3, n - n // 3) for n in sr.shape[1:])
    bins = np.arange(-10, 10, 0.25)
    near = depth[(slice(None), *middle)]
    place = np.digitize(near, bins)
    profile = np.array(
        [sr[(slice(None), *middle)][place == n].mean(dtype=np.float64) for n in range(1, len(bins))]
    )
    dark, bright = profile[:8].mean(), profile[-8:].mean()
    step = (profile - dark) / (bright - dark)
    rise = [float(np.interp(level, np.maximum.accumulate(step), bins[:-1])) for level in (0.1, 0.9)]
    line = np.diff(step) * np.hanning(len(step) - 1)
    response = np.abs(np.fft.rfft(line, 1024))
    half = int(np.argmax(response < response[0] / 2))
    return {
        "10 to 90 %, voxels": rise[1] - rise[0],
        "overshoot": float(step.max() - 1),
        "undershoot": float(-step.min()),
        "MTF 50 %, cycles a voxel": half / 1024 / 0.25,
    }


def noise_gain(noisy: Volume, clean: Volume, noisy_lr: Volume, clean_lr: Volume, hr: Volume) -> float:
    """Standard deviation of the noise that comes out over that which goes in, where the volume is bright."""
    out = (noisy - clean)[hr > 0.5 * np.percentile(hr, 99)]
    went_in = (noisy_lr - clean_lr)[clean_lr > 0.5 * np.percentile(clean_lr, 99)]
    return float(out.std() / went_in.std())


def out_of_nothing(
    method: Restore, sinc: Restore, scan: Callable[..., Volume], shape: tuple[int, ...]
) -> dict[str, float]:
    """What is drawn where nothing is. noise: RMS of what the scan of pure noise cannot hold, over the RMS of
    that scan; empty: the largest voxel of an empty scan; ramp: RMS error of a smooth ramp, as a share of it.
    """
    noise = scan(np.zeros(shape, np.float32), noise=NOISE * phantoms.BRIGHT)
    drawn, held = method(noise), sinc(noise)
    smooth = phantoms.ramp(shape)
    inner = tuple(slice(n // 8, n - n // 8) for n in shape)
    error = (method(scan(smooth)) - smooth)[inner]
    return {
        "noise": float(np.sqrt(np.mean((drawn - held) ** 2)) / np.sqrt(np.mean((noise - noise.mean()) ** 2))),
        "empty": float(np.abs(method(scan(np.zeros(shape, np.float32)))).max()),
        "ramp": float(np.sqrt(np.mean(error**2)) / (0.8 * phantoms.BRIGHT)),
    }


def sensitivity(
    method: Restore, scan: Callable[..., Volume], hr: Volume, restored: Volume, factors: Factors, grid: Grid
) -> dict[str, float]:
    """What should change nothing: RMS difference in tissue, as a share of the peak, after the LR scan is
    flipped along an axis and its SR volume flipped back, and after the truth is moved by one HR voxel."""
    peak = float(np.percentile(hr, 99.9))
    tissue = hr > 0.05 * peak
    lr = scan(hr)

    def difference(other: Volume, here: tuple[slice, ...]) -> float:
        apart = (other - restored[here])[tissue[here]].astype(np.float64)
        return float(np.sqrt(np.mean(apart**2)) / peak)

    found = {}
    for axis, name in enumerate(("rows", "columns", "slices")):
        # On the FFT grid the last voxels have no LR voxel beyond them: flipped, they are others.
        last = hr.shape[axis] - (factors[axis] - 1 if grid == "fft" else 0)
        here = tuple(slice(0, last) if a == axis else slice(None) for a in range(3))
        flipped = method(np.ascontiguousarray(np.flip(lr, axis)))
        found[f"{name} flipped"] = difference(np.flip(flipped[here], axis), here)
    moved = method(scan(np.roll(hr, 1, 0)))
    found["moved by a voxel"] = difference(np.roll(moved, -1, 0), (slice(None),) * 3)
    return found
