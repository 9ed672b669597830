"""The measured band stays measured: the part of the SR volume that the LR scan determines is taken from it.

An LR scan is a measurement. If it is the HR volume with its k-space truncated (the card's `consistency` is
"truncation"), then the low band of the SR volume is known up to noise, and the network adds only what was not
measured:

    SR + w·U(LR - D(SR))        D: truncate k-space, to the LR grid; U: sinc interpolation, to the HR grid

U(LR) is the zero-filled scan and U(D(SR)) the low band of SR. Both are separable. In a plane they are FFTs,
axis by axis, each cropped before the next one, so that most of the work is never done. Across the slices they
are windowed sincs of REACH LR slices to either side, so that planes go through as they come, and a volume
never has to be held. If the slices form a ring, whose first one needs the last one, they are FFTs as well, as
far as memory allows.

If the card knows the scanner's point spread as well (its `consistency` is "transfer"), D and U both pass what
the point spread passes: frequencies that the scan has hardly seen hardly correct the network, and their noise
is not amplified.

w falls with the noise of the scan, but later than the least error would require. A network mistakes part of a
small lesion for noise, and only the scan brings it back: at 2 % of noise, one of radius 1 HR voxel keeps
little more than half of what sinc leaves of it if w is 0, and nearly all if w is 1, at a price of 0.5 dB. So
w is 0.99 there, and low only if noise hides small lesions in any case. It is one number for all frequencies
and positions: the missing part of a small lesion is no larger than the noise beside it, so weights that
followed the difference, or the scan's own structure, gained nothing that a higher w does not give as well; a
weight for each frequency gained 0.03 dB.

Without signal, a magnitude image holds rectified noise and ringing, which measure nothing: w falls to 0 in
the air of the scan and of the SR volume, so that the sinc does not carry the tissue's correction into the air
beside it.

A mean over slab axes has lost some of its detail, SR - U(D(SR)); it is given back in the same pass: g times
the detail is SR + (g - 1)·(SR - U(D(SR))).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.card import GridKind, Transfer
from ..scan.interpolation import passed
from ..scan.voxels import Planes
from ..system.threads import cores

Rings = tuple[bool, bool, bool]
Taps = tuple[list[int], list[float]]  # slice numbers and their weights

REACH = 12  # LR slices to either side that a windowed sinc covers
TAPER = 4.0  # of its Kaiser window
MARGIN = 8  # least number of LR voxels over which one end of a plane blends into the other
# Noise, as a share of the unit, at which half of the band is taken from the scan, and the power of w's fall:
# at 1, 2, 3, 5 % of noise w is 1.00, 0.99, 0.92, 0.35.
HALF, POWER = 0.045, 6
AIR, TISSUE = 0.05, 0.1  # shares of the unit below which a magnitude is air, and above which it is tissue
WHOLE = 1 << 28  # largest ring of slices, in HR voxels, that is held in memory for its exact sinc
TOGETHER = 4096  # lines of voxels across a ring of slices whose FFTs are one call
SLAB = 16  # HR slices of such a ring that leave together
NOISE_IN_AIR = 2.0  # a magnitude of pure noise has a mean of 1.25 times the noise


@dataclass(frozen=True)
class Weight:
    """How much to trust the scan. share: w in tissue, 0..1. air, tissue: magnitudes in the network's range
    between which w rises from 0 to the share; both 0 for images that are not magnitudes. detail: g, times
    which tissue gets what the scan does not hold."""

    share: float
    air: float = 0.0
    tissue: float = 0.0
    detail: float = 1.0


def weight(noise: float, magnitude: bool, share: float | None = None) -> Weight:
    """The weight for a scan of this noise (standard deviation of a real channel, as a share of the unit).

    magnitude: whether it has no negative voxels. share: w in tissue; by default it follows from the noise.
    """
    if share is None:
        share = 1 / (1 + (noise / HALF) ** POWER)
    if not magnitude:
        return Weight(share)
    air = max(AIR, NOISE_IN_AIR * noise)
    return Weight(share, air, air * TISSUE / AIR)


def hold_measured(
    slabs: Iterable[tuple[int, Planes]],
    lr_plane: Callable[[int], Planes],
    shape: tuple[int, int, int],
    scale: tuple[int, int, int],
    grid: GridKind,
    weigh: Weight,
    rings: Rings = (False, False, False),
    transfer: Transfer = (),
) -> Generator[tuple[int, Planes]]:
    """Take the measured band of an SR volume from its LR scan, plane by plane.

    slabs: (first HR slice, float32 (slices, rows, columns) in the network's range), in order; restarting at 0
        starts over. lr_plane(k): LR slice k (rows, columns) in the same range, requested in order, and only
        once.
    shape, scale: LR voxels, and HR voxels per LR voxel, along (row, column, slice). rings: the axes along
        which the end joins the beginning, see `scan.rings`; along others the volume continues as its
        reflection. transfer: of the point spread, see the card.
    Yields slabs of the same kind up to 2·REACH LR slices later; memory is that of as many planes. If the
    slices are a ring, those near the ends come last.
    """
    rows, columns, count = shape
    plane = _Plane((rows, columns), scale[:2], grid, rings[:2], transfer[:2])
    if rings[2] and scale[2] > 1 and rows * columns * count * math.prod(scale) <= WHOLE:
        ring = _PlaneAxis(count, scale[2], grid, True, 0, transfer[2] if transfer else ())
        yield from _hold_on_ring(slabs, lr_plane, count * scale[2], plane, ring, weigh)
        return
    across = _Across(count, scale[2], grid, rings[2], False, transfer[2] if transfer else ())
    downs = [across.down(k) for k in range(count)]
    ups = [across.up(z) for z in range(count * scale[2])]
    stage = _Passing(plane, downs, ups, weigh, not rings[2])
    arrived = 0
    with ThreadPoolExecutor(cores(), "measured band") as pool:
        for first, slab in slabs:
            if first < arrived:
                stage = _Passing(plane, downs, ups, weigh, not rings[2])
            numbers = range(first, arrived := first + len(slab))
            for z, seen in zip(numbers, pool.map(plane.down, slab), strict=True):
                stage.arrive(z, slab[z - first], seen)
            for k in range(-(-first // scale[2]), -(-arrived // scale[2])):
                stage.lr[k] = lr_plane(k)
            stage.compare(pool)
            for run in _runs(stage.ready()):
                yield run[0], np.stack(list(pool.map(stage.corrected, run)))
            stage.forget()


def _hold_on_ring(
    slabs: Iterable[tuple[int, Planes]],
    lr_plane: Callable[[int], Planes],
    count: int,
    plane: _Plane,
    ring: _PlaneAxis,
    weigh: Weight,
) -> Generator[tuple[int, Planes]]:
    """The same if the slices are a ring that fits into memory: by FFT across them, once all are there.

    count: HR slices. ring: across the slices, for arrays (slices, voxels).
    """
    sr: list[Planes] = []
    seen: list[Planes] = []  # as the scanner would see them, if it saw the HR slices
    lr: list[Planes] = []

    def across(apply: Callable[[Planes], Planes], planes: list[Planes]) -> list[Planes]:
        shape = planes[0].shape
        stack = np.stack(planes).reshape(len(planes), -1)
        parts = range(0, stack.shape[1], TOGETHER)
        done = pool.map(lambda part: apply(stack[:, part : part + TOGETHER]), parts)
        return list(np.concatenate(list(done), 1).reshape(-1, *shape))

    with ThreadPoolExecutor(cores(), "measured band") as pool:
        for first, slab in slabs:
            if first < len(sr):
                del sr[:], seen[:], lr[:]
            sr.extend(slab.copy())
            seen += pool.map(plane.down, slab)
            scale = count // ring.size
            lr += [lr_plane(k) for k in range(len(lr), -(-len(sr) // scale))]
        compared = functools.partial(_missing, weigh=weigh)
        seen = across(ring.up, list(pool.map(compared, lr, across(ring.down, seen))))

        def corrected(sr: Planes, missing: Planes) -> Planes:
            return _corrected(sr, plane.up(missing), weigh)

        for first in range(0, count, SLAB):
            yield first, np.stack(list(pool.map(corrected, sr[:SLAB], seen[:SLAB])))
            del sr[:SLAB], seen[:SLAB]


@dataclass(frozen=True)
class Operators:
    """`hold_measured` as matrices and weights, for a device that has no FFT.

    down, up: of rows and of columns, float32 (LR, HR) and (HR, LR). downs, ups: across the slices, by LR
    slice and by HR slice. key: tells operators apart.
    """

    down: tuple[Planes, Planes]
    up: tuple[Planes, Planes]
    downs: list[Taps]
    ups: list[Taps]
    key: tuple[object, ...]


@functools.lru_cache(maxsize=4)  # volumes of one size follow each other
def operators(
    shape: tuple[int, int, int],
    scale: tuple[int, int, int],
    grid: GridKind,
    rings: Rings,
    transfer: Transfer = (),
    whole: int = WHOLE,
) -> Operators | None:
    """The operators of a volume, see `hold_measured`; None for a ring of more HR voxels than `whole`."""
    if rings[2] and math.prod(shape) * math.prod(scale) > whole:
        return None
    plane = _Plane(shape[:2], scale[:2], grid, rings[:2], transfer[:2])
    down = [np.eye(n * s, dtype=np.float32) for n, s in zip(shape, scale, strict=True)][:2]
    up = [np.eye(n, dtype=np.float32) for n in shape[:2]]
    for axis in plane.axes:
        for matrices, apply in ((down, axis.down), (up, axis.up)):
            made = apply(matrices[axis.axis])
            matrices[axis.axis] = made if axis.axis == 0 else made.T
    across = _Across(shape[2], scale[2], grid, rings[2], rings[2], transfer[2] if transfer else ())
    return Operators(
        (down[0], down[1]),
        (up[0], up[1]),
        [across.down(k) for k in range(shape[2])],
        [across.up(z) for z in range(shape[2] * scale[2])],
        (shape, scale, grid, rings, transfer),
    )


class _Passing:
    """The planes in transit: each is kept until nothing else needs it."""

    def __init__(
        self, plane: _Plane, downs: list[Taps], ups: list[Taps], weigh: Weight, in_order: bool
    ) -> None:
        self._in_order = in_order
        self.lr: dict[int, Planes] = {}  # slices with HR slices still to come
        self._plane, self._downs, self._ups, self._weigh = plane, downs, ups, weigh
        self._waiting: dict[int, Planes] = {}  # SR planes to be corrected
        self._seen: dict[int, Planes] = {}  # as the scanner would see them
        self._missing: dict[int, Planes] = {}  # present in the scan but not in SR, by LR slice
        self._need_seen = Counter(z for numbers, _ in downs for z in numbers)
        self._need_missing = Counter(k for numbers, _ in ups for k in numbers)

    def arrive(self, z: int, sr: Planes, seen: Planes) -> None:
        self._waiting[z] = sr.copy()
        self._seen[z] = seen

    def compare(self, pool: ThreadPoolExecutor) -> None:
        """Compute what is missing from the SR volume at LR slices whose HR slices are all there."""

        def compared(k: int) -> Planes:
            return _missing(self.lr[k], _sum(self._downs[k], self._seen), self._weigh)

        known = [k for k in self.lr if all(z in self._seen for z in self._downs[k][0])]
        self._missing |= zip(known, pool.map(compared, known), strict=True)
        for k in known:
            del self.lr[k]
            self._need_seen.subtract(self._downs[k][0])

    def ready(self) -> list[int]:
        """HR slices that can be corrected. Those on LR slices could come before the ones between them; for a
        stream, which cannot reorder them, they are returned in order."""
        known = {z: all(k in self._missing for k in self._ups[z][0]) for z in self._waiting}
        if self._in_order:
            return list(itertools.takewhile(known.__getitem__, known))
        return [z for z in known if known[z]]

    def corrected(self, z: int) -> Planes:
        return _corrected(self._waiting[z], self._plane.up(_sum(self._ups[z], self._missing)), self._weigh)

    def forget(self) -> None:
        """Release planes that have been yielded, and those that nothing needs any more."""
        for z in self.ready():
            del self._waiting[z]
            self._need_missing.subtract(self._ups[z][0])
        self._seen = {z: p for z, p in self._seen.items() if self._need_seen[z]}
        self._missing = {k: p for k, p in self._missing.items() if self._need_missing[k]}


def _runs(numbers: list[int]) -> list[list[int]]:
    """Runs of consecutive numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _missing(lr: Planes, seen: Planes, weigh: Weight) -> Planes:
    """The scan minus the SR volume as the scanner would see it; weighted. Without what `corrected` adds of
    the latter with the detail."""
    found = lr - seen
    found *= np.float32(weigh.share)
    found *= _tissue(lr, weigh)
    if weigh.detail != 1:
        found -= np.float32(weigh.detail - 1) * seen
    return found


def _corrected(sr: Planes, added: Planes, weigh: Weight) -> Planes:
    """An SR plane with the HR plane of what is missing from it, which is overwritten."""
    if weigh.detail != 1:
        added += np.float32(weigh.detail - 1) * sr
    added *= _tissue(sr, weigh)
    added += sr
    return added


def _tissue(plane: Planes, weigh: Weight) -> Planes:
    """How much each voxel counts as tissue, 0 to 1."""
    if weigh.tissue <= weigh.air:
        return np.ones((1, 1), np.float32)
    signal = np.abs(plane)
    for axis in (0, 1, 0, 1):  # a binomial filter twice: a Gaussian of one voxel
        signal = binomial(signal, axis)
    return np.clip((signal - weigh.air) / np.float32(weigh.tissue - weigh.air), 0, 1, dtype=np.float32)


def binomial(plane: Planes, axis: int) -> Planes:
    """A binomial filter (1, 2, 1) / 4 along one axis; beyond its ends the plane repeats its end voxels."""
    if plane.shape[axis] == 1:
        return plane
    quarter = np.float32(0.25) * np.moveaxis(plane, axis, 0)
    total = 2 * quarter
    total[1:] += quarter[:-1]
    total[0] += quarter[0]
    total[:-1] += quarter[1:]
    total[-1] += quarter[-1]
    return np.moveaxis(total, 0, axis)


def _sum(taps: tuple[list[int], list[float]], planes: dict[int, Planes]) -> Planes:
    """Σ weight · plane, in the order of the taps."""
    numbers, weights = taps
    total = planes[numbers[0]] * np.float32(weights[0])
    for number, w in zip(numbers[1:], weights[1:], strict=True):
        total += planes[number] * np.float32(w)
    return total


class _Across:
    """Sincs across the slices, with the LR scan's band edge: windowed, or exact over the whole of a ring.

    transfer: of the point spread, which is then part of the sincs.
    """

    def __init__(
        self,
        count: int,
        scale: int,
        grid: GridKind,
        ring: bool,
        exact: bool,
        transfer: tuple[float, ...] = (),
    ) -> None:
        self._count, self._scale, self._exact, self._transfer = count, scale, exact, transfer
        self._lr, self._hr = _Ends(count, 1, grid, ring), _Ends(count, scale, grid, ring)
        self._shift = 0.0 if grid == "fft" else (1 / scale - 1) / 2

    def down(self, k: int) -> Taps:
        """The HR slices that make up LR slice k."""
        if self._scale == 1:
            return [k], [1.0]
        centre = (k - self._shift) * self._scale
        z = np.arange(self._count * self._scale) if self._exact else _around(centre, REACH * self._scale)
        return self._taps(self._hr.inside(z), (z - centre) / self._scale)

    def up(self, z: int) -> Taps:
        """The LR slices that HR slice z is interpolated from."""
        if self._scale == 1:
            return [z], [1.0]
        centre = z / self._scale + self._shift
        k = np.arange(self._count) if self._exact else _around(centre, REACH)
        return self._taps(self._lr.inside(k), k - centre)

    def _taps(self, numbers: NDArray[np.intp], t: NDArray[np.floating]) -> Taps:
        """Weights of slices at LR distances t, which add up to 1; without duplicates and zeros."""
        if self._transfer:
            # A ring has the frequencies k/count; otherwise they are as dense as the window resolves.
            period = self._count if self._exact else 4 * REACH
            frequency = np.arange(1, (period + 1) // 2) / period
            waves = np.cos(2 * np.pi * np.multiply.outer(t, frequency))
            kernel = (1 + 2 * waves @ passed(self._transfer, frequency)) / period
            kernel = kernel if self._exact else kernel * _kaiser(t)
        elif self._exact:  # Dirichlet's kernel, without the Nyquist frequency
            odd, base = self._count - 1 + self._count % 2, self._count * np.sin(np.pi * t / self._count)
            kernel = np.where(
                np.abs(base) < 1e-9,
                odd / self._count,
                np.sin(np.pi * odd * t / self._count) / np.where(base, base, 1),
            )
        else:
            kernel = np.sinc(t) * _kaiser(t)
        every, place = np.unique(numbers, return_inverse=True)
        weights = np.bincount(place, kernel / kernel.sum())
        kept = np.abs(weights) > 1e-9
        return every[kept].tolist(), weights[kept].tolist()


def _kaiser(t: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.i0(TAPER * np.sqrt(np.maximum(0, 1 - (t / REACH) ** 2)))


def _around(centre: float, reach: int) -> NDArray[np.intp]:
    return np.arange(int(np.ceil(centre - reach)), int(np.floor(centre + reach)) + 1)


class _Plane:
    """Truncation and zero-filling of k-space in a plane. LR (rows, columns) and factors along each.

    transfer: of the point spread along each, or none.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        factors: tuple[int, int],
        grid: GridKind,
        rings: tuple[bool, bool],
        transfer: Transfer = (),
    ) -> None:
        axes = zip(shape, factors, rings, transfer or ((), ()), (0, 1), strict=True)
        self.axes = [_PlaneAxis(n, s, grid, ring, axis, line) for n, s, ring, line, axis in axes if s > 1]

    def down(self, hr: Planes) -> Planes:
        """The LR plane from the centre of the HR plane's k-space."""
        for axis in reversed(self.axes):
            hr = axis.down(hr)
        return hr

    def up(self, lr: Planes) -> Planes:
        """The HR plane from the LR plane's zero-filled k-space."""
        for axis in self.axes:
            lr = axis.up(lr)
        return lr


class _PlaneAxis:
    """One axis of a plane: by FFT, over the ring that the axis is or is extended to."""

    def __init__(
        self, size: int, factor: int, grid: GridKind, ring: bool, axis: int, transfer: tuple[float, ...] = ()
    ) -> None:
        length = size if ring else _quick(size + MARGIN)
        self._lr, self._hr = _Ends(size, 1, grid, ring, length), _Ends(size, factor, grid, ring, length)
        self.size, self._length, self._factor, self.axis = size, length, factor, axis
        # The Nyquist frequency of an even size has one coefficient for both its signs: it is left out.
        self._kept = tuple(slice(0, (length + 1) // 2) if a == axis else slice(None) for a in (0, 1))
        shift = 0.0 if grid == "fft" else (factor - 1) / 2 / factor  # of LR voxel 0, in LR voxels
        frequency = np.arange((length + 1) // 2) / length
        phase = np.exp(2j * np.pi * shift * frequency) / factor
        if transfer:
            phase = phase * passed(transfer, frequency)
        self._phase = np.expand_dims(phase.astype(np.complex64), 1 - axis)

    def down(self, hr: Planes) -> Planes:
        space = np.fft.rfft(self._hr.closed(hr, self.axis), axis=self.axis)[self._kept] * self._phase
        return self._lr.open(_real(space, self._length, self.axis), self.axis)

    def up(self, lr: Planes) -> Planes:
        space = np.fft.rfft(self._lr.closed(lr, self.axis), axis=self.axis)[self._kept]
        space *= self._phase.conj() * np.float32(self._factor**2)
        length = self._length * self._factor
        return self._hr.open(_real(space, length, self.axis), self.axis)


def _real(space: NDArray[Any], length: int, axis: int) -> Planes:
    """The voxels of this k-space along an axis; complex64 becomes float32."""
    voxels: Any = np.fft.irfft(space, length, axis=axis)
    return voxels


class _Ends:
    """How an axis continues beyond its ends, on the LR grid (factor 1) or on the HR grid.

    size: LR voxels. ring: whether the end joins the beginning. length: LR voxels of the ring that it is
    extended to; in the additional voxels the reflection at one end blends into that at the other.
    """

    def __init__(self, size: int, factor: int, grid: GridKind, ring: bool, length: int = 0) -> None:
        self._size, self._ring = size * factor, ring
        # Mirrors stand on the first and last LR voxel of the FFT grid, on the outer edges of the other one.
        first, last = (0, factor * (size - 1)) if grid == "fft" else (-0.5, size * factor - 0.5)
        self._mirrors = first, last
        further = np.arange(self._size, length * factor)
        self._after, self._before = self.inside(further), self.inside(further - length * factor)
        share = (further - last) / (length * factor + first - last)
        self._share = ((1 - np.cos(np.pi * share)) / 2).astype(np.float32)

    def inside(self, numbers: NDArray[np.intp]) -> NDArray[np.intp]:
        """Map voxel numbers, which may lie outside, to the voxels that stand for them."""
        if self._ring:
            return numbers % self._size
        first, last = self._mirrors
        inside = np.where(numbers < 0, 2 * first - numbers, numbers)
        inside = np.where(inside >= self._size, 2 * last - inside, inside)
        return np.clip(inside, 0, self._size - 1).astype(np.intp)  # a volume may be smaller than the reach

    def closed(self, plane: Planes, axis: int) -> Planes:
        """A plane with its additional voxels along an axis."""
        if not self._share.size:
            return plane
        share = np.expand_dims(self._share, 1 - axis)
        further = plane.take(self._before, axis) * share
        further += plane.take(self._after, axis) * (1 - share)
        return np.concatenate((plane, further), axis)

    def open(self, plane: Planes, axis: int) -> Planes:
        """A plane without its additional voxels."""
        return plane[: self._size] if axis == 0 else plane[:, : self._size]


def _quick(size: int) -> int:
    """The next size with a fast FFT: without prime factors above 5."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1
