"""LR scans from HR ones: files in, files out, on the FFT grid."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...runtime.errors import RunError
from ...runtime.scans.geometry import slab_axis, voxel_factors
from ...runtime.scans.intensity import check_finite
from ...runtime.scans.scan import FREESURFER, open_scan, stem, write_scan
from ...runtime.system.files import write_json
from .kspace import Acquisition, DegradationError, acquire, crop


def simulate_all(
    paths: Sequence[Path], out: Path, acquisition: Acquisition, seed: int = 0, axis: int | None = None
) -> Iterator[Path]:
    """Acquire HR scans anew at low resolution, into the same folders below `out`; yields the scans' paths.

    Raises RunError if an LR scan would replace an HR scan, and as `simulate`.
    """
    root = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    names = {path: path.resolve().relative_to(root) for path in paths}
    sources = {path.resolve() for path in paths}
    targets = {out.resolve() / name for name in names.values()}
    if out.resolve() in {source.parent for source in sources} or targets & sources:
        raise RunError(f"{out} holds HR scans: give another folder with --out.")
    for path, name in names.items():
        yield simulate(path, out, acquisition, seed, axis, name)


def simulate(
    path: Path,
    out: Path,
    acquisition: Acquisition,
    seed: int = 0,
    axis: int | None = None,
    name: Path | None = None,
) -> Path:
    """Acquire an HR scan anew at low resolution; writes OUT/NAME and its sidecar, returns the scan's path.

    axis: that across the slices, by default that of `geometry.slab_axis`. name: by default the scan's own.
    Noise and bias field depend on seed and name, so every scan has its own. Integers are rounded.
    Raises RunError for a scan that cannot be read or is too small, or a file that cannot be written.
    """
    name = name or Path(path.name)
    scan = open_scan(path)
    axis = slab_axis(scan.zooms) if axis is None else axis
    voxels = scan.voxels_in_units()
    check_finite(voxels, str(path))
    try:
        hr = crop(np.moveaxis(voxels, axis, 2), acquisition.scale).astype(np.float32)
    except DegradationError as error:
        raise RunError(f"{path}: {error}") from None
    lr = np.moveaxis(acquire(hr, acquisition, seed=zlib.crc32(name.as_posix().encode()) ^ seed), 2, axis)
    dtype = scan.dtype.newbyteorder("=")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        lr = np.clip(np.rint((lr - scan.inter) / scan.slope), limits.min, limits.max)
    target = out / (name.with_name(stem(name) + ".nii.gz") if name.name.endswith(FREESURFER) else name)
    header = scan.coarse_header(voxel_factors(acquisition.scale, axis), "fft", dtype)
    write_scan(target, header, lr.astype(dtype))
    record = {"source": path.name, "scale": acquisition.scale, "slab_axis": axis, "seed": seed}
    record |= {k: v for k, v in dataclasses.asdict(acquisition).items() if k != "scale"}
    write_json(target.with_name(stem(target) + ".json"), record)
    return target
