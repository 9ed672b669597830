"""Volumes as training sees them: read, prepared step by step, brought to 0..1, cached as memory maps.

A recipe is a scan and the steps that it goes through. Its result is cached once, as float16 in the user's
cache folder; the key is the file's path, size and time of change, the steps, the intensity rule and this
package's version. The folder holds at most UDEAN_CACHE_GB gigabytes (100): the least recently used volumes
are deleted first.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ... import __version__
from ...runtime.errors import RunError
from ...runtime.scan import intensity
from ...runtime.scan.geometry import voxel_factors
from ...runtime.scan.voxels import Volume
from ...runtime.system.files import atomic, cache_folder, sweep
from ..simulation import kspace
from ..simulation.kspace import Acquisition
from .orientation import AlongWorld, open_along_world
from .scans import CohortError

HIGHEST = 65504  # in float16
BOUND_GB = 100


class PreparationStep(Protocol):
    """A step on a volume (i, j, k), float32 in the scan's units. Its repr is part of the cache key."""

    def __call__(self, volume: Volume, scan: AlongWorld) -> Volume: ...


@dataclass(frozen=True)
class Acquire:
    """Simulate the LR scan of this acquisition, with slices stacked along `axis`."""

    acquisition: Acquisition
    axis: int = 2
    seed: int = 0

    def __call__(self, volume: Volume, scan: AlongWorld) -> Volume:
        try:
            hr = kspace.crop(np.moveaxis(volume, self.axis, 2), self.acquisition.scale)
        except kspace.DegradationError as error:
            raise CohortError(f"{scan.name}: {error}") from None
        return np.moveaxis(kspace.acquire(hr, self.acquisition, self.seed), 2, self.axis)

    @property
    def factors(self) -> tuple[int, int, int]:
        """HR voxels per LR voxel along (i, j, k)."""
        return voxel_factors(self.acquisition.scale, self.axis)


@dataclass(frozen=True)
class Prepared:
    """voxels: memory map along the world's axes, float16, in units of `unit`, itself in the scan's."""

    voxels: Volume
    unit: float


@dataclass(frozen=True)
class Recipe:
    """A scan and the steps to take."""

    path: Path
    steps: tuple[PreparationStep, ...] = ()

    def then(self, *steps: PreparationStep) -> Recipe:
        return Recipe(self.path, (*self.steps, *steps))

    def prepared(self, unit: float | None = None) -> Prepared:
        """The volume in units of `unit`, by default its own `intensity.unit`.

        Raises RunError for a scan that cannot be read, is constant, or has voxels that are not finite or much
        too bright.
        """
        name = hashlib.sha256(os.fsencode(f"{self.key()} {unit}")).hexdigest()[:24]
        file = cache_folder() / "volumes" / f"{name}.npy"
        note = file.with_suffix(".unit")
        if not file.exists():
            volume = self._volume()
            own = _unit(self.path, volume)
            unit = unit or own
            with np.errstate(over="ignore"):
                stored = (volume / np.float32(unit)).astype(np.float16)
            if stored.min() == stored.max():
                raise CohortError(f"{self.path} is constant: there is nothing to learn from.")
            if not np.isfinite(stored).all():
                raise CohortError(
                    f"{self.path} has voxels over {HIGHEST} times as bright as its tissue: clip or mask them."
                )
            make_room(stored.nbytes)
            sweep(file.parent, {file.name, note.name})
            with atomic(note) as stream:
                stream.write(float(unit).hex().encode())
            with atomic(file) as stream:
                np.save(stream, stored)
        os.utime(file)  # the cache's order of use
        return Prepared(np.load(file, mmap_mode="r"), float.fromhex(note.read_text()))

    def key(self) -> str:
        """Everything that the prepared volume depends on, as text."""
        stat = self.path.stat()
        file = f"{self.path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        return f"{file} {intensity.RULE} RAS {self.steps} {__version__}"

    def _volume(self) -> Volume:
        """float32 in the scan's units, from the cached result of the step before."""
        scan = open_along_world(self.path)
        if not self.steps:
            return scan.voxels_in_units()
        before = Recipe(self.path, self.steps[:-1]).prepared()
        return self.steps[-1](before.voxels.astype(np.float32) * np.float32(before.unit), scan)


def make_room(size: int) -> None:
    """Delete the least recently used volumes until `size` more bytes fit within the cache's limit.

    A volume that a training has open stays readable to it: only the file's name is removed. Raises RunError
    if UDEAN_CACHE_GB is not a number.
    """
    bound = os.environ.get("UDEAN_CACHE_GB", str(BOUND_GB))
    try:
        left = float(bound) * 1e9 - size
    except ValueError:
        left = math.nan
    if math.isnan(left):
        raise RunError(f"UDEAN_CACHE_GB is the cache's limit in gigabytes, not '{bound}'.")
    kept: list[tuple[float, int, Path]] = []
    for file in (cache_folder() / "volumes").glob("*.npy"):
        with contextlib.suppress(FileNotFoundError):  # another training made room meanwhile
            stat = file.stat()
            kept.append((stat.st_mtime, stat.st_size, file))
    for _, used, file in sorted(kept, reverse=True):
        left -= used
        if left < 0:
            file.unlink(missing_ok=True)
            file.with_suffix(".unit").unlink(missing_ok=True)


def _unit(path: Path, volume: Volume) -> float:
    try:
        return intensity.unit(volume)
    except intensity.IntensityError as error:
        raise CohortError(f"{path}: {error}") from None
