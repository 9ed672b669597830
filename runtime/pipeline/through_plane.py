"""Thick slices: the detail between them, restored in planes across the slices.

The slices are interpolated onto the target grid. One small 2-D network adds detail to planes across the
slices, twice: in those along the rows and in those along the columns; the two are averaged. The network is
given each voxel's distance from the nearest slice's centre and the width of the slice profile, which is
estimated from the scan itself (`scan.profile`). The best linear estimate by the scan's own texture
(`texture`) adds what it has more than the interpolation. How much of either is right is tried on the scan:
its own planes are made as thick as its slices, restored, and compared with the originals. Finally the result
is made consistent with the measurement: seen through the slice profile, it reproduces the slices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..scan.noise import estimate_noise
from ..scan.profile import (
    TISSUE,
    blur_matrix,
    estimate_deviation,
    noise_level,
    sampled_gaussian,
    tissue_of,
)
from ..scan.regrid import along, spline_weights
from ..scan.voxels import Volume
from ..system.progress import Progress
from ..system.trace import Stopwatch
from . import texture
from .engine import Inference

CHANNELS = 5  # three neighbouring planes, distance to the nearest slice's centre, deviation of the profile
DISTANCE, DEVIATION = 4.0, 3.0  # fine voxels that equal 1 in the network's maps
USUAL = 0.32  # deviation of a profile in slice spacings: a Shinnar-Le Roux pulse's
BELIEVED = 0.6  # share of an estimated variance's distance from USUAL² that is used: small scans mislead
UNKNOWN = 0.25  # without an estimate: a box with gaps, as too wide a profile costs more than too thin
BATCH_VOXELS = 1 << 17  # of planes in one call of the network
AIR = 0.02  # of the intensity unit: planes and margins below it are not computed
MARGIN = 8  # fine voxels around the content that are also computed
THINNEST = 0.5  # fine voxels, deviation: a thinner profile's centre could not be located
TRIALS = 12  # planes of the scan on which the estimates are tried
SWEEPS = 50  # over two shares that depend on each other, until they no longer change
RIDGE = 0.1  # least weight of the result against the slices, as the profile is not known exactly
# How close the result comes to the slices, as a share of their noise: closer, it would sharpen the noise.
NEAR = 0.5
COARSE = 1.5  # voxels in plane: standard deviation of the blur between coarse detail and fine
ODD = 4.0  # times the misfit of the slices around it: less in heads; a slice of noise has 9 times or more
ENOUGH = 0.2  # share of the most tissue in a slice that an odd one must have: where a head begins, all is odd
# Square difference of every other slice over that of neighbours: in heads it is 1.4 to 2.8 (spacings up to
# 7.3 voxels); if every other slice is 1.5 voxels off, 0.6 to 1.3 in most.
CONTINUOUS = 1.1, 1.3
# Noise, of the intensity unit, above which less of the texture's estimate is kept: averaging as many slices
# as noise asks for gains the most dB, and takes contrast from lesions.
FAINT = 0.03


@dataclass(frozen=True)
class ThickSlices:
    """Slices from which a volume is restored.

    slices: (rows, columns, slices), network's range, in plane on the target grid already. centers: of the
    slices, in fine voxels from the first target plane. step: between them. size: number of target planes.
    noise: their standard deviation, None to estimate it from these slices, which is wrong for interpolated
    ones.
    """

    slices: Volume
    centers: NDArray[np.float64]
    step: float
    size: int
    noise: float | None = None

    @property
    def places(self) -> NDArray[np.float64]:
        """Positions of the target planes, in slices."""
        return (np.arange(self.size) - self.centers[0]) / self.step

    def interpolated(self) -> Volume:
        """The volume by a cubic B-spline, (rows, columns, size)."""
        return along(spline_weights(self.slices.shape[2], self.places), self.slices, 2)


@dataclass(frozen=True)
class Findings:
    """Estimates from the scan. deviation: of its slice profile, in spacings, as it is used; None if it could
    not be estimated.

    gain: share of the network's detail that is kept. texture: of the texture's. noise: standard deviation, in
    intensity units. empty: numbers of slices without data between others; what lies nearest to them stays so.
    odd: of slices that do not fit their neighbours, such as noise alone; around them nothing is restored.
    continuity: share that is kept of whatever was restored; see `_continuity`. It is in both shares above.
    """

    deviation: float | None
    gain: float
    texture: float
    noise: float
    empty: tuple[int, ...] = ()
    odd: tuple[int, ...] = ()
    continuity: float = 1.0


def restore(
    stack: ThickSlices,
    network: Inference,
    watch: Stopwatch | None = None,
    progress: Progress | None = None,
    consistency: float = 1.0,
) -> tuple[Volume, Findings]:
    """Restore the volume (rows, columns, size) that the slices were cut from; also returns the estimates.

    network: planes (N, 5, H, W) to the detail to be added to the middle one, (N, 1, H, W). consistency: share
    of what the slices miss in the result that it is given, 0 to 1.
    """
    watch = watch or Stopwatch()
    with watch.time("gather"):
        measured = stack.slices
        stack, empty, odd = sound(stack)
        plain = None
        if odd:
            plain = dataclasses.replace(stack, slices=_without(measured, empty)).interpolated()
        told, deviation = profile_of(stack)
        tissue = tissue_of(stack.slices)
        noise = noise_of(stack.slices) if stack.noise is None else stack.noise
        longest = max(*stack.slices.shape[:2], stack.size) + 2 * math.ceil(stack.step)
        alike = texture.covariance(stack.slices, tissue, noise, longest)
        kept = _continuity(stack.slices, tissue, noise)
        gain, linear = (kept * n for n in trusted(stack, deviation, noise, tissue, alike, network))
        linear *= min(1.0, FAINT / max(noise, FAINT))
        volume = stack.interpolated()
    detail = np.zeros_like(volume)
    if gain > 0:
        detail = _detail(volume, stack.places, stack.step, deviation, network, watch, progress)
        detail *= gain
    with watch.time("blend"):
        if alike is not None and linear > 0:
            added = _added(alike, deviation, stack.centers, stack.step, stack.size, noise)
            volume += along(np.float32(linear) * added, stack.slices, 2)
        volume += detail
        if consistency * kept > 0:
            held_to(volume, stack, deviation, noise, consistency * kept)
        if plain is not None:
            away = np.abs(stack.places[:, None] - odd).min(1)
            volume += np.clip(2 - away, 0, 1).astype(np.float32) * (plain - volume)
        nearest = np.floor(stack.places + 0.5)
        for number in empty:
            volume[:, :, nearest == number] = measured[0, 0, number]
    return volume, Findings(told, gain, linear, noise, empty, odd, kept)


def sound(stack: ThickSlices) -> tuple[ThickSlices, tuple[int, ...], tuple[int, ...]]:
    """The stack with empty and odd slices (see `Findings`) interpolated, and their numbers."""
    empty = _empty(stack.slices)
    whole = _without(stack.slices, empty)
    odd = _odd(whole)
    return dataclasses.replace(stack, slices=_without(whole, odd)), empty, odd


def profile_of(stack: ThickSlices) -> tuple[float | None, float]:
    """The deviation of the slice profile: in spacings, None if the scan does not tell, and in fine voxels."""
    told = estimate_deviation(stack.slices, stack.step)
    if told is None:
        return None, UNKNOWN * stack.step
    # Spectra go with a profile's variance, so the thinner it is, the less they tell its deviation.
    believed = math.sqrt(USUAL**2 + BELIEVED * (told**2 - USUAL**2))
    return believed, believed * stack.step


def _empty(slices: Volume) -> tuple[int, ...]:
    """Numbers of the slices of one value between others that show something."""
    shows = np.flatnonzero(np.ptp(slices, axis=(0, 1)) > 0)
    inside = range(shows[0], shows[-1]) if shows.size else range(0)
    return tuple(sorted(set(inside) - set(shows.tolist())))


def _odd(slices: Volume) -> tuple[int, ...]:
    """Numbers of the slices that are unlike both neighbours, much more than the slices around them are."""
    slices = slices[::2, ::2]
    tissue = tissue_of(slices)
    shared = tissue[:, :, :-2] & tissue[:, :, 1:-1] & tissue[:, :, 2:]
    misfit = (slices[:, :, 1:-1] - (slices[:, :, :-2] + slices[:, :, 2:]) / 2) ** 2
    amount = shared.sum((0, 1))
    found = np.where(shared, misfit, 0).sum((0, 1)) / np.maximum(amount, 1)
    # An odd slice also spoils the fit of both neighbours: those beyond them tell what is usual there.
    around = np.pad(np.where(amount > 0, found, 0), 2)
    usual = np.maximum(around[:-4], around[4:])
    clear = (amount > ENOUGH * amount.max(initial=0)) & (usual > 0) & (found > ODD * usual)
    return tuple(int(n) + 1 for n in np.flatnonzero(clear))


def _continuity(slices: Volume, tissue: NDArray[np.bool_], noise: float) -> float:
    """The share, 0 to 1, of what may be restored as far as slices follow each other as one object's do.

    A slice is more like the next than like the one after that. If it is not, as in an interleaved
    acquisition whose object has moved, what is taken for detail between slices is their disagreement.
    """

    def unlike(distance: int) -> float:
        both = tissue[:, :, distance:] & tissue[:, :, :-distance]
        apart = (slices[:, :, distance:] - slices[:, :, :-distance])[both]
        return float(np.square(apart).mean()) - 2 * noise**2 if apart.size else 0.0

    next_, second = unlike(1), unlike(2)
    if next_ <= 0 or second <= 0:
        return 1.0
    low, high = CONTINUOUS
    return min(max((second / next_ - low) / (high - low), 0.0), 1.0)


def _without(slices: Volume, lost: tuple[int, ...]) -> Volume:
    """Slices of which these are interpolated from their neighbours, which they would distort otherwise."""
    if not lost:
        return slices
    full = np.setdiff1d(np.arange(slices.shape[2]), lost)
    filled = slices.copy()
    for number in lost:
        after = int(np.searchsorted(full, number))
        low, high = full[after - 1], full[after]
        share = np.float32((number - low) / (high - low))
        filled[:, :, number] = slices[:, :, low] * (1 - share) + slices[:, :, high] * share
    return filled


def noise_of(slices: Volume) -> float:
    """The standard deviation of the noise of slices (rows, columns, slices) in the network's range."""
    # In differences of neighbours, texture looks like noise, and so does a repaired background in air.
    return float(min(noise_level(slices, tissue_of(slices)), estimate_noise(slices, 1.0).sigma))


def held_to(volume: Volume, stack: ThickSlices, deviation: float, noise: float, share: float = 1.0) -> None:
    """Change a volume, in place, so that its slices equal the measured ones, up to half of their noise.

    Noise has little of what is coarse in plane, to which lesions belong: all of that is taken. share: of this
    change, 0 to 1.
    """
    seen = seen_through(deviation, stack.centers, stack.size)
    missed = stack.slices - along(seen, volume, 2)
    rows, columns = (blur_matrix(size, COARSE) for size in missed.shape[:2])
    coarse = along(columns, along(rows, missed, 0), 1)
    missed -= coarse
    shown = stack.slices.max(2) > TISSUE
    for part, level in ((coarse, 0.0), (missed, noise)):
        back = share * _least_change(seen, part[shown], level)
        volume += along(back.astype(np.float32), part, 2)


def _least_change(
    seen: NDArray[np.float32], missed: NDArray[np.float32], noise: float
) -> NDArray[np.float64]:
    """The matrix (size, slices) from what slices miss (N, slices) to the least change that gives it.

    Aᵀ(A Aᵀ + r)⁻¹, A the slice profile's matrix; r is as large as what is missed then may be (Morozov's
    discrepancy principle): half of its noise.
    """
    values, vectors = np.linalg.eigh((seen @ seen.T).astype(np.float64))
    power = ((missed @ vectors) ** 2).mean(0) if len(missed) else np.zeros(len(values))

    def left(exponent: float) -> float:
        ridge = values.mean() * 10**exponent
        return float(np.sqrt((power * (ridge / (values + ridge)) ** 2).mean()))

    low, high = math.log10(RIDGE), 4.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) < NEAR * noise else (low, middle)
    return seen.T @ (vectors / (values + values.mean() * 10**low)) @ vectors.T


def trusted(
    stack: ThickSlices,
    deviation: float,
    noise: float,
    tissue: NDArray[np.bool_],
    alike: texture.Matrix | None,
    network: Inference,
) -> tuple[float, float]:
    """The shares, 0 to 1, of the network's detail and of the texture's that are right on this scan.

    Its own planes are made as thick and as noisy as its slices and restored; the shares are those that
    together come nearest to the originals. alike: covariance of its texture, None if it has none. 0 and 0 if
    the planes are too small to try.
    """
    products, right = np.zeros((2, 2)), np.zeros(2)
    random = np.random.default_rng(0)
    amount = tissue.mean((0, 1))
    chosen = np.argsort(-amount, kind="stable")[: max(len(amount) * 3 // 4, 1)]
    chosen = np.sort(chosen)[np.linspace(0, len(chosen) - 1, min(TRIALS // 2, len(chosen))).astype(int)]
    # The planes on both sides of one are interpolated: the network sees what lies a fine voxel away.
    near = chosen + np.array([[-1], [0], [1]]) / stack.step
    planes = along(spline_weights(len(amount), near.ravel()), stack.slices, 2)
    planes = planes.reshape(*planes.shape[:2], *near.shape)
    for axis in (0, 1):
        length = stack.slices.shape[axis]
        count = int(length / stack.step)
        if count < 4:
            continue
        centers = (length - count * stack.step) / 2 + (np.arange(count) + 0.5) * stack.step - 0.5
        places = (np.arange(length) - centers[0]) / stack.step
        seen = seen_through(deviation, centers, length)
        thick = along(seen, np.moveaxis(planes, (3, 2, axis), (0, 1, 2)), 2)  # (N, 3, slices, W)
        less = math.sqrt(max(1 - float((seen[count // 2] ** 2).sum()), 0))  # of a slice's noise
        thick += np.float32(noise * less) * random.standard_normal(thick.shape, np.float32)
        coarse = along(spline_weights(count, places), thick, 2)
        missing = np.moveaxis(planes[:, :, 1], (2, axis), (0, 1)) - coarse[:, 1]
        added = [_call(coarse, places, stack.step, deviation, network), np.zeros_like(missing)]
        if alike is not None:
            weights = _added(alike, deviation, centers, stack.step, length, noise)
            added[1] = along(weights, thick[:, 1], 1)
        inside = np.moveaxis(tissue[:, :, chosen], (2, axis), (0, 1))
        both = np.stack([detail[inside] for detail in added]).astype(np.float64)
        products += both @ both.T
        right += both @ missing[inside]
    shares = [0.0, 0.0]
    for _ in range(SWEEPS):
        for n in (0, 1):
            rest = right[n] - products[n, 1 - n] * shares[1 - n]
            shares[n] = min(max(float(rest / products[n, n]), 0.0), 1.0) if products[n, n] > 0 else 0.0
    return shares[0], shares[1]


def seen_through(deviation: float, centers: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    """The matrix (slices, size) of a Gaussian profile of this standard deviation, in fine voxels."""
    return sampled_gaussian(centers, size, max(deviation, THINNEST))


def _added(
    alike: texture.Matrix,
    deviation: float,
    centers: NDArray[np.float64],
    step: float,
    size: int,
    noise: float,
) -> NDArray[np.float32]:
    """The matrix (size, slices) of what the texture's estimate has more than a cubic B-spline."""
    beyond = math.ceil(step)  # fine voxels outside the field of view that the outer slices see too
    seen = seen_through(deviation, centers + beyond, size + 2 * beyond)
    weights = texture.between(alike, seen, noise)[beyond : beyond + size]
    return weights - spline_weights(len(centers), (np.arange(size) - centers[0]) / step)


def _detail(
    volume: Volume,
    places: NDArray[np.float64],
    step: float,
    deviation: float,
    network: Inference,
    watch: Stopwatch,
    progress: Progress | None,
) -> Volume:
    """The mean of the network's detail in planes along the rows and along the columns."""
    box = content(volume)
    inner = volume[box]
    detail = np.zeros_like(volume)
    target = detail[box]
    done, every = 0, inner.shape[0] + inner.shape[1]
    for axis in (0, 1):  # planes across the slices and this axis, one for each voxel of the other
        stacked = np.moveaxis(inner, (1 - axis, 2, axis), (0, 1, 2))
        into = np.moveaxis(target, (1 - axis, 2, axis), (0, 1, 2))
        for first, planes in _neighbours(stacked):
            with watch.time("network"):
                added = _call(planes, places, step, deviation, network)
            watch.windows += len(planes)
            watch.computed += len(planes)
            into[first : first + len(planes)] += added / 2
            done += len(planes)
            if progress:
                progress(done, every)
    return detail


def content(volume: Volume) -> tuple[slice, slice, slice]:
    """The rows and columns that show anything, and all target planes."""
    shown = volume.max(2) > AIR
    box = []
    for axis in (0, 1):
        found = np.flatnonzero(shown.any(1 - axis))
        first, last = (found[0], found[-1] + 1) if found.size else (0, 1)
        box.append(slice(max(first - MARGIN, 0), min(last + MARGIN, volume.shape[axis])))
    return box[0], box[1], slice(None)


def _neighbours(stacked: Volume) -> Iterator[tuple[int, Volume]]:
    """Batches (N, 3, H, W) of each plane between its neighbours, with the number of their first."""
    count = max(1, BATCH_VOXELS // (stacked.shape[1] * stacked.shape[2]))
    for first in range(0, len(stacked), count):
        middle = np.arange(first, min(first + count, len(stacked)))
        near = np.clip(middle[:, None] + (-1, 0, 1), 0, len(stacked) - 1)
        yield first, np.ascontiguousarray(stacked[near])


def _call(
    planes: Volume, places: NDArray[np.float64], step: float, deviation: float, network: Inference
) -> Volume:
    """The network's detail for the middle of three planes (N, 3, H, W), H across the slices."""
    height, width = planes.shape[2:]
    return network(planes_across(planes, places, step, deviation))[:, 0, :height, :width]


def planes_across(
    planes: Volume, places: NDArray[np.float64], step: float, deviation: float
) -> NDArray[np.float32]:
    """The network's input (N, 5, H, W) for three neighbouring planes (N, 3, H, W), H and W made even.

    places: of the H voxels, in slices. step and deviation of the slice profile in fine voxels.
    """
    number, _, height, width = planes.shape
    even = height + height % 2, width + width % 2  # the network halves its planes
    windows = np.empty((number, CHANNELS, *even), np.float32)
    ends = ((0, 0), (0, 0), (0, even[0] - height), (0, even[1] - width))
    windows[:, :3] = np.pad(planes, ends, mode="edge")
    distance = np.abs(places - np.rint(places)) * step / DISTANCE
    windows[:, 3] = np.pad(distance, (0, even[0] - height), mode="edge")[:, None]
    windows[:, 4] = deviation / DEVIATION
    return windows
