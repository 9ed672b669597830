"""LR scans from HR ones: files in, files out, on the FFT grid."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import numpy as np

from ..runtime.errors import RunError
from ..runtime.files import write_json
from ..runtime.geometry import slab_axis, voxel_factors
from ..runtime.volume import open_scan, write_scan
from .kspace import Acquisition, DegradationError, acquire, crop


def simulate(path: Path, out: Path, acquisition: Acquisition, seed: int = 0, axis: int | None = None) -> Path:
    """Acquire an HR scan anew at low resolution; writes OUT/NAME and its sidecar, returns the scan's path.

    axis: that across the slices, by default the coarsest, else the last. Noise and bias field depend on
    seed and file name, so every scan of a folder has its own. Integers are rounded.
    Raises RunError for a scan that cannot be read or is too small, or a file that cannot be written.
    """
    scan = open_scan(path)
    axis = slab_axis(scan.zooms) if axis is None else axis
    voxels = scan.voxels() * np.float32(scan.slope) + np.float32(scan.inter)
    if not np.isfinite(voxels).all():
        raise RunError(f"{path} has NaN or infinite voxels: mask or repair them first.")
    try:
        hr = crop(np.moveaxis(voxels, axis, 2), acquisition.scale).astype(np.float32)
    except DegradationError as error:
        raise RunError(f"{path}: {error}") from None
    lr = np.moveaxis(acquire(hr, acquisition, seed=zlib.crc32(path.name.encode()) ^ seed), 2, axis)
    dtype = scan.dtype.newbyteorder("=")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        lr = np.clip(np.rint((lr - scan.inter) / scan.slope), limits.min, limits.max)
    target = out / path.name
    header = scan.coarse_header(voxel_factors(acquisition.scale, axis), "fft", dtype)
    write_scan(target, header, lr.astype(dtype))
    record = {"source": path.name, "scale": acquisition.scale, "slab_axis": axis, "seed": seed}
    record |= {k: v for k, v in dataclasses.asdict(acquisition).items() if k != "scale"}
    write_json(target.with_name(target.name.removesuffix(".gz").removesuffix(".nii") + ".json"), record)
    return target
