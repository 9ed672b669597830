"""Thick slices: what lies between them, restored in the planes across each axis in plane.

The slices are interpolated onto the target grid. One small 2-D network adds detail to planes across the
slices, twice: in those along the rows and in those along the columns; the two are averaged. The network is
told how far each voxel lies from the nearest slice's centre and how wide the slice profile is, which the
scan itself tells (`scan.profile`). How much of the detail to trust the scan tells as well: its own planes
are made as thick as its slices are, restored, and compared with what they were. Last, the result is held
to the measurement: seen through the slice profile it gives back the slices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..scan.noise import estimate_noise
from ..scan.profile import FWHM, TISSUE, estimate_deviation, noise_level, profile_matrix, tissue_of
from ..scan.regrid import along, spline_weights
from ..system.trace import Stopwatch

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Volume = NDArray[np.float32]

CHANNELS = 5  # three neighbouring planes, distance to the nearest slice's centre, deviation of the profile
DISTANCE, DEVIATION = 4.0, 3.0  # fine voxels that are 1 in the network's maps
USUAL = 0.35  # deviation of a profile in slice spacings: between a box (0.29) and a Gaussian (0.42)
BELIEVED = 0.6  # share of its distance from USUAL that a scan is believed: small and noisy ones tell badly
UNKNOWN = 0.25  # if it cannot tell: a box with gaps, as a profile costs more taken for wider than for thinner
BATCH_VOXELS = 1 << 17  # of planes in one call of the network
AIR = 0.02  # of the intensity unit: planes and margins below it are not computed
MARGIN = 8  # fine voxels around the content that are computed too
THINNEST = 1.2  # fine voxels: of a thinner profile they would not tell where its centre lies
TRIALS = 12  # planes of the scan on which the network is tried
RIDGE = 0.1  # least weight of the result against the slices, for what the profile is not known exactly
# How near the result comes to the slices, as a share of their noise: nearer, it sharpens the noise.
NEAR = 0.5


@dataclass(frozen=True)
class Stack:
    """Slices that are to become a volume.

    slices: (rows, columns, slices), network's range, in plane on the target grid already. centers: of the
    slices, in fine voxels from the first target plane. step: between them. size: number of target planes.
    """

    slices: Volume
    centers: NDArray[np.float64]
    step: float
    size: int

    @property
    def places(self) -> NDArray[np.float64]:
        """Where in the slices the target planes lie."""
        return (np.arange(self.size) - self.centers[0]) / self.step

    def interpolated(self) -> Volume:
        """By a cubic B-spline, (rows, columns, size)."""
        return along(spline_weights(self.slices.shape[2], self.places), self.slices, 2)


@dataclass(frozen=True)
class Findings:
    """What the scan has told. deviation: of its slice profile, in spacings, as it is believed; None where it
    could not tell.

    gain: share of the network's detail that is kept. noise: standard deviation, in intensity units.
    """

    deviation: float | None
    gain: float
    noise: float


def restore(
    stack: Stack,
    network: Network,
    watch: Stopwatch | None = None,
    progress: Callable[[int, int], None] | None = None,
    consistency: bool = True,
) -> tuple[Volume, Findings]:
    """The volume (rows, columns, size) that the slices were cut from, and what they said about themselves.

    network: planes (N, 5, H, W) to the detail to be added to the middle one, (N, 1, H, W).
    """
    watch = watch or Stopwatch()
    with watch.time("gather"):
        told = estimate_deviation(stack.slices, stack.step)
        believed = UNKNOWN if told is None else USUAL + BELIEVED * (told - USUAL)
        deviation = believed * stack.step
        tissue = tissue_of(stack.slices)
        # Texture passes for noise in differences of neighbours, and a mended background in air.
        noise = min(noise_level(stack.slices, tissue), estimate_noise(stack.slices, 1.0).sigma)
        gain = trusted(stack, deviation, tissue, network)
        volume = stack.interpolated()
    detail = np.zeros_like(volume)
    if gain > 0:
        detail = _detail(volume, stack.places, stack.step, deviation, network, watch, progress)
        detail *= gain
    with watch.time("blend"):
        volume += detail
        if consistency:
            held_to(volume, stack, deviation, noise)
    return volume, Findings(None if told is None else believed, gain, noise)


def held_to(volume: Volume, stack: Stack, deviation: float, noise: float) -> None:
    """Move a volume, in place, to where its slices are those measured, up to half of their noise.

    The least change that does so: x += Aᵀ(A Aᵀ + r)⁻¹ (y - A x), A the slice profile's matrix. r is as large
    as what is left of y - A x allows (Morozov's discrepancy principle).
    """
    seen = profile_matrix("gaussian", max(deviation * FWHM, THINNEST), stack.centers, stack.size)
    values, vectors = np.linalg.eigh((seen @ seen.T).astype(np.float64))
    missed = stack.slices - along(seen, volume, 2)
    shown = stack.slices.max(2) > TISSUE
    power = ((missed[shown] @ vectors) ** 2).mean(0) if shown.any() else np.zeros(len(values))

    def left(exponent: float) -> float:
        ridge = values.mean() * 10**exponent
        return float(np.sqrt((power * (ridge / (values + ridge)) ** 2).mean()))

    low, high = math.log10(RIDGE), 4.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) < NEAR * noise else (low, middle)
    back = seen.T @ (vectors / (values + values.mean() * 10**low)) @ vectors.T
    volume += along(back.astype(np.float32), missed, 2)


def trusted(stack: Stack, deviation: float, tissue: NDArray[np.bool_], network: Network) -> float:
    """The share of the network's detail, 0 to 1, that is right on this scan's own planes made thick."""
    right = square = 0.0
    for axis in (0, 1):
        length = stack.slices.shape[axis]
        count = int(length / stack.step)
        if count < 4:
            continue
        centers = (length - count * stack.step) / 2 + (np.arange(count) + 0.5) * stack.step - 0.5
        thick = profile_matrix("gaussian", max(deviation * FWHM, THINNEST), centers, length)
        places = (np.arange(length) - centers[0]) / stack.step
        again = spline_weights(count, places) @ thick
        amount = tissue.mean((0, 1))
        chosen = np.argsort(-amount, kind="stable")[: max(len(amount) * 3 // 4, 1)]
        chosen = np.sort(chosen)[np.linspace(0, len(chosen) - 1, min(TRIALS // 2, len(chosen))).astype(int)]
        truth = np.moveaxis(stack.slices[:, :, chosen], (2, axis), (0, 1))
        inside = np.moveaxis(tissue[:, :, chosen], (2, axis), (0, 1))
        blurred = np.einsum("ij,njk->nik", again, truth, optimize=True)
        planes = np.repeat(blurred[:, None], 3, 1)
        detail = _call(planes, places, stack.step, deviation, network)
        missing = (truth - blurred)[inside]
        right += float((missing * detail[inside]).sum())
        square += float((detail[inside] ** 2).sum())
    return min(max(right / square, 0.0), 1.0) if square > 0 else 0.0


def _detail(
    volume: Volume,
    places: NDArray[np.float64],
    step: float,
    deviation: float,
    network: Network,
    watch: Stopwatch,
    progress: Callable[[int, int], None] | None,
) -> Volume:
    """The mean of what the network adds in the planes along the rows and along the columns."""
    box = _content(volume)
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


def _content(volume: Volume) -> tuple[slice, slice, slice]:
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
    planes: Volume, places: NDArray[np.float64], step: float, deviation: float, network: Network
) -> Volume:
    """What the network adds to the middle of three planes (N, 3, H, W), H across the slices."""
    height, width = planes.shape[2:]
    return network(planes_across(planes, places, step, deviation))[:, 0, :height, :width]


def planes_across(
    planes: Volume, places: NDArray[np.float64], step: float, deviation: float
) -> NDArray[np.float32]:
    """What the network sees of three neighbouring planes (N, 3, H, W): (N, 5, H, W), H and W made even.

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
