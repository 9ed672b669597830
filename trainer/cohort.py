"""Groups of scans: found, brought to 0..1, cached as memory maps, and sampled as slabs.

A volume is cached once, as float16 in the user's cache folder; the key is path, size, time of change and
intensity rule. Patches are drawn by foreground and depend on the random generator alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime import intensity
from ..runtime.errors import RunError
from ..runtime.files import atomic
from ..runtime.geometry import voxel_factors
from ..runtime.volume import open_scan
from . import kspace
from .kspace import Scale

FOREGROUND = 0.1  # share of the network's range above which a voxel shows tissue
Volume = NDArray[Any]  # float16


class CohortError(RunError):
    """A group of scans that cannot be trained on."""


def find_scans(entries: Sequence[str | Path]) -> list[Path]:
    """NIfTI files of a list of files, folders (searched through) and globs, sorted, each once."""
    found: set[Path] = set()
    for entry in map(str, entries):
        path = Path(entry).expanduser()
        if path.is_dir():
            matches = [p for p in path.rglob("*.nii*") if p.name.endswith((".nii", ".nii.gz"))]
        else:
            matches = [Path(m) for m in glob(str(path), recursive=True)]
        if not matches:
            raise CohortError(f"{entry} holds no .nii or .nii.gz scan.")
        found.update(matches)
    return sorted(found)


def cached(path: Path) -> Volume:
    """A scan as a memory map (i, j, k), float16, in units of its own `intensity.unit`."""

    def make() -> NDArray[Any]:
        volume = _voxels(path)
        return volume / _unit(path, volume)

    return _cache(path, "", make)


def truncated(path: Path, factors: Scale) -> Volume:
    """The k-space truncation of `cached(path)`, noise-free, by factors along (i, j, k)."""

    def make() -> NDArray[Any]:
        return kspace.acquire(
            kspace.crop(cached(path).astype(np.float32), factors), kspace.Acquisition(factors)
        )

    return _cache(path, f"truncated {factors}", make)


def _cache(path: Path, what: str, make: Callable[[], NDArray[Any]]) -> Volume:
    stat = path.stat()
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {intensity.RULE} {what}"
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "udean" / "volumes"
    file = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"
    if not file.exists():
        with atomic(file) as stream:
            np.save(stream, make().astype(np.float16))
    return np.load(file, mmap_mode="r")


@dataclass(frozen=True)
class Aligned:
    """One scan on one or more grids of a common origin, slices last.

    factors: voxels of each volume per LR voxel along (row, column, slice); the first are (1, 1, 1).
    """

    volumes: tuple[Volume, ...]
    factors: tuple[Scale, ...]


@dataclass(frozen=True)
class Group:
    """Scans to draw slabs from. Each slab axis of a scan counts as a member."""

    members: tuple[Aligned, ...]

    @classmethod
    def target(cls, entries: Sequence[str | Path], axes: Sequence[int] = (2,)) -> Group:
        """LR scans."""
        return cls(
            tuple(
                Aligned((np.moveaxis(cached(path), axis, 2),), ((1, 1, 1),))
                for path in find_scans(entries)
                for axis in axes
            )
        )

    @classmethod
    def source(cls, entries: Sequence[str | Path], scale: Scale, axes: Sequence[int] = (2,)) -> Group:
        """HR scans, each with its k-space truncation on the LR grid: (truncated, hr)."""
        members = []
        for path in find_scans(entries):
            for axis in axes:
                pair = (truncated(path, voxel_factors(scale, axis)), cached(path))
                members.append(Aligned(tuple(np.moveaxis(v, axis, 2) for v in pair), ((1, 1, 1), scale)))
        return cls(tuple(members))

    @classmethod
    def pairs(cls, hr: Sequence[str | Path], lr: Sequence[str | Path], scale: Scale) -> Group:
        """(lr, hr) of the same heads, matched by sorted file name, in units of the LR scan."""
        members = []
        for hr_path, lr_path in zip(find_scans(hr), find_scans(lr), strict=True):
            low, high = cached(lr_path), cached(hr_path)
            if any(h // s != n for n, h, s in zip(low.shape, high.shape, scale, strict=True)):
                raise CohortError(f"{lr_path} {low.shape} is not {hr_path} {high.shape} at scale {scale}.")
            ratio = _unit(hr_path, _voxels(hr_path)) / _unit(lr_path, _voxels(lr_path))
            members.append(Aligned((low, high * np.float16(ratio)), ((1, 1, 1), scale)))
        return cls(tuple(members))

    def draw(
        self, rng: np.random.Generator, count: int, slab: tuple[int, int, int], augment: bool = False
    ) -> tuple[NDArray[Any], ...]:
        """Slabs centred on tissue, float32 (count, slices, rows, columns), one array for each grid.

        slab: (rows, columns, slices) on the LR grid. augment: random flips and transposition in plane.
        Raises CohortError where a scan is smaller than a slab.
        """
        drawn = [self._one(rng, slab, augment) for _ in range(count)]
        return tuple(np.stack(arrays) for arrays in zip(*drawn, strict=True))

    def _one(self, rng: np.random.Generator, slab: tuple[int, int, int], augment: bool) -> list[NDArray[Any]]:
        member = self.members[rng.integers(len(self.members))]
        # A flip about an LR voxel keeps the grids aligned: it takes one voxel more on the far side.
        need = np.add(slab, (1, 1, 0))
        corner = _tissue_corner(rng, member.volumes[0], need)
        flips = (rng.random(2) < 0.5) & augment
        transpose = augment and slab[0] == slab[1] and rng.random() < 0.5
        patches = []
        for volume, factors in zip(member.volumes, member.factors, strict=True):
            index = []
            for a, n, s, flip in zip(corner, slab, factors, (*flips, False), strict=True):
                index.append(slice((a + n) * s, a * s, -1) if flip else slice(a * s, (a + n) * s))
            patch = np.moveaxis(volume[tuple(index)], 2, 0)
            patches.append((patch.swapaxes(1, 2) if transpose else patch).astype(np.float32))
        return patches


def _tissue_corner(rng: np.random.Generator, volume: Volume, need: NDArray[Any]) -> NDArray[Any]:
    """Corner of a box whose centre shows tissue; of any box after 1000 vain tries (an empty scan)."""
    room = np.asarray(volume.shape) - need
    if room.min() < 0:
        raise CohortError(
            f"A scan of {volume.shape} LR voxels is smaller than a training patch of {tuple(need.tolist())}."
        )
    corner = rng.integers(0, room + 1)
    for _ in range(1000):
        if volume[tuple(corner + need // 2)] > FOREGROUND:
            break
        corner = rng.integers(0, room + 1)
    return corner


def _voxels(path: Path) -> NDArray[Any]:
    """A scan's voxels (rows, columns, slices), float32, in its units."""
    scan = open_scan(path)
    return scan.voxels() * np.float32(scan.slope) + np.float32(scan.inter)


def _unit(path: Path, volume: NDArray[Any]) -> float:
    try:
        return intensity.unit(volume)
    except intensity.IntensityError as error:
        raise CohortError(f"{path}: {error}") from None
