"""Groups of scans: found, brought to 0..1, cached as memory maps, and sampled as slabs.

A volume is cached once, as float16 in the user's cache folder; the key is path, size, time of change and
intensity rule. Patches are drawn by foreground and depend on the random generator alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime import intensity
from ..runtime.errors import RunError
from ..runtime.files import atomic
from ..runtime.volume import open_scan

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
    """A scan as a memory map (rows, columns, slices), float16, in units of its own `intensity.unit`."""
    stat = path.stat()
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {intensity.RULE}"
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "udean" / "volumes"
    file = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"
    if not file.exists():
        volume = _voxels(path)
        with atomic(file) as stream:
            np.save(stream, (volume / _unit(path, volume)).astype(np.float16))
    return np.load(file, mmap_mode="r")


@dataclass(frozen=True)
class Group:
    """The volumes of the source or the target group."""

    volumes: tuple[Volume, ...]

    @classmethod
    def load(cls, entries: Sequence[str | Path], slab: tuple[int, int, int]) -> Group:
        """Open a group; every volume must hold a slab (rows, columns, slices) along any axis."""
        volumes = []
        for path in find_scans(entries):
            volume = cached(path)
            if min(volume.shape) < max(slab):
                raise CohortError(f"{path} has {volume.shape} voxels; a training patch needs {max(slab)}.")
            volumes.append(volume)
        return cls(tuple(volumes))

    def draw(
        self,
        rng: np.random.Generator,
        count: int,
        slab: tuple[int, int, int],
        axes: Sequence[int] = (2,),
        augment: bool = True,
    ) -> NDArray[Any]:
        """Slabs (count, slices, rows, columns) centred on tissue; slab is (rows, columns, slices)."""
        rows, columns, slices = slab
        batch = np.empty((count, slices, rows, columns), np.float32)
        for item in batch:
            volume = np.moveaxis(self.volumes[rng.integers(len(self.volumes))], rng.choice(axes), 2)
            start = self._corner(rng, volume, slab)
            patch = volume[tuple(slice(a, a + n) for a, n in zip(start, slab, strict=True))]
            patch = np.moveaxis(patch, 2, 0)
            if augment:
                flip_rows, flip_columns, transpose = rng.random(3) < 0.5
                patch = patch[:, :: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
                if transpose and rows == columns:
                    patch = patch.swapaxes(1, 2)
            item[...] = patch
        return batch

    @staticmethod
    def _corner(rng: np.random.Generator, volume: Volume, slab: tuple[int, int, int]) -> NDArray[Any]:
        """Corner of a slab whose centre shows tissue; of any slab after 100 vain tries (an empty scan)."""
        room = np.asarray(volume.shape) - np.asarray(slab)
        corner = rng.integers(0, room + 1)
        for _ in range(100):
            if volume[tuple(corner + np.asarray(slab) // 2)] > FOREGROUND:
                break
            corner = rng.integers(0, room + 1)
        return corner


def validation_windows(
    hr: Sequence[str],
    lr: Sequence[str],
    scale: tuple[int, int, int],
    slab: tuple[int, int, int],
    count: int = 64,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Aligned windows of held-out pairs: LR (count, slices, rows, columns) and HR on the FFT grid.

    slab: of the LR window. Both sides in units of the LR scan. Pairs go by sorted file name.
    """
    rng = np.random.default_rng(0)
    pairs = []
    for hr_path, lr_path in zip(find_scans(hr), find_scans(lr), strict=True):
        volumes = cached(lr_path), cached(hr_path)
        if any(h // s != n for n, h, s in zip(volumes[0].shape, volumes[1].shape, scale, strict=True)):
            raise CohortError(
                f"{lr_path} {volumes[0].shape} is not {hr_path} {volumes[1].shape} at scale {scale}."
            )
        ratio = _unit(hr_path, _voxels(hr_path)) / _unit(lr_path, _voxels(lr_path))
        pairs.append((*volumes, np.float32(ratio)))
    lr_windows, hr_windows = [], []
    for i in range(count):
        lr_volume, hr_volume, ratio = pairs[i % len(pairs)]
        corner = Group._corner(rng, lr_volume, slab)
        coarse = tuple(slice(a, a + n) for a, n in zip(corner, slab, strict=True))
        fine = tuple(slice(a * s, (a + n) * s) for a, s, n in zip(corner, scale, slab, strict=True))
        lr_windows.append(np.moveaxis(lr_volume[coarse], 2, 0).astype(np.float32))
        hr_windows.append(np.moveaxis(hr_volume[fine], 2, 0).astype(np.float32) * ratio)
    return np.stack(lr_windows), np.stack(hr_windows)


def _voxels(path: Path) -> NDArray[Any]:
    """A scan's voxels (rows, columns, slices), float32, in its units."""
    scan = open_scan(path)
    return scan.voxels() * np.float32(scan.slope) + np.float32(scan.inter)


def _unit(path: Path, volume: NDArray[Any]) -> float:
    try:
        return intensity.unit(volume)
    except intensity.IntensityError as error:
        raise CohortError(f"{path}: {error}") from None
