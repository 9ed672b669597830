"""Examines a model beside sinc and tricubic interpolation, one restored phantom after another.

Each figure covers the whole path from LR to SR voxels as in `udean-run`, including the measured band.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..models.card import GridKind
from ..scan.geometry import Factors
from ..scan.interpolation import acquired_again
from ..scan.voxels import Restore, Volume
from . import phantoms, scanner
from .lesions import contrast_kept, put_lesions
from .low_contrast import spokes_seen
from .resolution import edge_spread, two_points

ByMethod = dict[str, dict[str, Any]]  # by method
NOISE, MUCH = 0.02, 0.05  # share of bright tissue; the second is beyond what models are trained for
ALLOWED = 0.02  # how far lesion transfer may be below sinc's
OVERDRAWN = 0.8  # best factor for the added detail, below which too much of it is drawn
SIDE, WHOLE_SIDE = 48, 72  # LR voxels along an axis of a phantom, and along an axis that is not restored


def examine(
    resolve: Restore, factors: Factors, grid: GridKind, hr: Volume | None = None
) -> dict[str, ByMethod]:
    """All figures by test and method. resolve: LR to SR volume. hr: the user's volume in place of the head
    phantom, its shape a multiple of the factors."""
    methods: dict[str, Restore] = {
        "sr": resolve,
        "sinc": partial(scanner.sinc, factors=factors, grid=grid),
        "tricubic": partial(scanner.tricubic, factors=factors, grid=grid),
    }
    scan = partial(scanner.acquire, factors=factors, grid=grid)
    shape = phantom_shape(factors)
    hr = phantoms.head_phantom(shape) if hr is None else hr
    peak = float(np.percentile(hr, 99.9))
    added, found = put_lesions(hr)
    cortical, placed = put_lesions(hr, "boundary")
    well, noisy = scan(hr), scan(hr, noise=NOISE * peak)
    edge, depth = phantoms.edge(shape)
    points, pairs = phantoms.pairs(shape)
    faint, plain, disks = phantoms.low_contrast(shape)
    faint, plain = (scan(v, noise=NOISE * phantoms.BRIGHT, seed=n) for n, v in enumerate((faint, plain)))
    tests: dict[str, ByMethod] = {}

    def note(test: str, method: str, figures: dict[str, Any]) -> None:
        tests.setdefault(test, {})[method] = figures

    for name, method in methods.items():
        restored, dim = method(well), method(noisy)
        ill, spotted = method(scan(hr + added)), method(scan(hr + added, noise=NOISE * peak))
        note("lesions", name, contrast_kept(added, found, ill, restored))
        note("lesions in noise", name, contrast_kept(added, found, spotted, dim))
        rim = method(scan(hr + cortical))
        note("lesions at boundaries", name, contrast_kept(cortical, placed, rim, restored))
        note("high band", name, high_band(restored, hr, factors, grid))
        note("edge", name, edge_spread(method(scan(edge)), depth))
        note("two points", name, two_points(method(scan(points)), pairs))
        note("low contrast", name, {"spokes of 40": spokes_seen(method(faint), method(plain), disks)})
        note("noise", name, {"gain": noise_gain(dim, restored, noisy, well, hr)})
        note("nothing", name, out_of_nothing(method, scan, factors, grid))
        note("sensitivity", name, sensitivity(method, scan, hr, restored, factors, grid))
        note("range", name, out_of_range(method, scan, hr, restored))
    return tests


def phantom_shape(factors: Factors) -> tuple[int, ...]:
    """HR voxels of the phantoms for a model of these factors."""
    return tuple((SIDE if f > 1 else WHOLE_SIDE) * f for f in factors)


def against(tests: dict[str, ByMethod]) -> list[str]:
    """One sentence for each objection to a model: lesions that lose more of their contrast than by sinc
    interpolation, and detail that is drawn too strongly."""
    sr, sinc = tests["lesions"]["sr"], tests["lesions"]["sinc"]
    said, told = [], set()
    for kind, name in (("all", "Lesions"), ("bright", "Bright lesions"), ("dark", "Dark lesions")):
        # The median over both kinds may be that of one of them.
        lost = [r for r in sr.keys() - told if kind in sr[r] and sr[r][kind] < sinc[r][kind] - ALLOWED]
        told.update(lost)
        if lost:
            lost.sort(key=float)
            here, there = (", ".join(f"{kept[r][kind]:.2f}" for r in lost) for kept in (sr, sinc))
            said.append(
                f"{name} of radius {', '.join(lost)} voxels keep {here} of their contrast; sinc "
                f"interpolation keeps {there}."
            )
    factor = tests["high band"]["sr"].get("factor", 1.0)
    if factor < OVERDRAWN:
        said.append(f"Too much detail is drawn: {factor:.2f} times as much would be closest to the truth.")
    return said


def high_band(sr: Volume, hr: Volume, factors: Factors, grid: GridKind) -> dict[str, float]:
    """For the detail that the LR scan cannot hold, in tissue: the factor by which it would be closest to the
    truth (1 is right, less: too much was drawn), and its correlation with the truth. Empty for a method that
    adds none."""
    tissue = hr > 0.05 * np.percentile(hr, 99.9)
    drawn, true = (detail(v, factors, grid)[tissue].astype(np.float64) for v in (sr, hr))
    power, common = float(drawn @ drawn), float(drawn @ true)
    if power < 0.03 * float(true @ true):
        return {}
    return {"factor": common / power, "correlation": common / float(np.sqrt(power * (true @ true)))}


def noise_gain(noisy: Volume, clean: Volume, noisy_lr: Volume, clean_lr: Volume, hr: Volume) -> float:
    """Standard deviation of the output noise over that of the input noise, in bright voxels."""
    out = (noisy - clean)[hr > 0.5 * np.percentile(hr, 99)]
    went_in = (noisy_lr - clean_lr)[clean_lr > 0.5 * np.percentile(clean_lr, 99)]
    return float(out.std() / went_in.std())


def out_of_nothing(
    method: Restore, scan: Callable[..., Volume], factors: Factors, grid: GridKind
) -> dict[str, float]:
    """Structure drawn although nothing is there. noise: see `drawn_in_noise`; empty: the largest voxel of an
    empty scan; ramp: RMS error of a smooth ramp, as a share of it.
    """
    shape = phantom_shape(factors)
    smooth = phantoms.ramp(shape)
    inner = tuple(slice(n // 8, n - n // 8) for n in shape)
    error = (method(scan(smooth)) - smooth)[inner]
    return {
        "noise": drawn_in_noise(method, scan, factors, grid),
        "empty": float(np.abs(method(scan(np.zeros(shape, np.float32)))).max()),
        "ramp": float(np.sqrt(np.mean(error**2)) / (0.8 * phantoms.BRIGHT)),
    }


def drawn_in_noise(method: Restore, scan: Callable[..., Volume], factors: Factors, grid: GridKind) -> float:
    """RMS of the detail that is drawn beyond what the scan of pure noise can hold, over the noise's own."""
    noise = scan(np.zeros(phantom_shape(factors), np.float32), noise=NOISE * phantoms.BRIGHT)
    drawn = detail(method(noise), factors, grid)
    return float(np.sqrt(np.mean(drawn**2)) / noise.std())


def detail(volume: Volume, factors: Factors, grid: GridKind) -> Volume:
    """The part of an HR volume beyond the band that its LR scan holds."""
    return volume - scanner.sinc(acquired_again(volume, factors, grid), factors, grid)


def sensitivity(
    method: Restore,
    scan: Callable[..., Volume],
    hr: Volume,
    restored: Volume,
    factors: Factors,
    grid: GridKind,
) -> dict[str, float]:
    """Effects of changes that should have none: RMS difference in tissue, as a share of the peak, after the
    LR scan is flipped along an axis and its SR volume flipped back, after the truth is moved by one HR voxel,
    and after the scan is given in other units."""
    peak = float(np.percentile(hr, 99.9))
    tissue = hr > 0.05 * peak
    lr = scan(hr)

    def difference(other: Volume, here: tuple[slice, ...]) -> float:
        apart = (other - restored[here])[tissue[here]].astype(np.float64)
        return float(np.sqrt(np.mean(apart**2)) / peak)

    found, whole = {}, (slice(None),) * 3
    for axis, name in enumerate(("rows", "columns", "slices")):
        # On the FFT grid the last voxels have no LR voxel beyond them, so they differ after a flip.
        last = hr.shape[axis] - (factors[axis] - 1 if grid == "fft" else 0)
        here = tuple(slice(0, last) if a == axis else slice(None) for a in range(3))
        flipped = method(np.ascontiguousarray(np.flip(lr, axis)))
        found[f"{name} flipped"] = difference(np.flip(flipped[here], axis), here)
    moved = method(scan(np.roll(hr, 1, 0)))
    found["moved by a voxel"] = difference(np.roll(moved, -1, 0), whole)
    for name, unit in (("a quarter as bright", 0.25), ("four times as bright", 4.0)):
        found[name] = difference(method(lr * np.float32(unit)) / np.float32(unit), whole)
    return found


def out_of_range(
    method: Restore, scan: Callable[..., Volume], hr: Volume, restored: Volume
) -> dict[str, float]:
    """PSNR in tissue, dB, peak the 99.9th percentile: of the unchanged scan, with more noise than models are
    trained for, and under a coil's sensitivity that falls to a fifth along the rows."""
    peak = float(np.percentile(hr, 99.9))
    tissue = hr > 0.05 * peak
    fall = (hr * np.linspace(1, 0.2, hr.shape[0])[:, None, None]).astype(np.float32)

    def psnr(sr: Volume, truth: Volume) -> float:
        return float(10 * np.log10(peak**2 / np.mean(np.square((sr - truth)[tissue], dtype=np.float64))))

    return {
        "as it is, dB": psnr(restored, hr),
        f"noise {MUCH:.0%}, dB": psnr(method(scan(hr, noise=MUCH * peak)), hr),
        "falling sensitivity, dB": psnr(method(scan(fall)), fall),
    }
