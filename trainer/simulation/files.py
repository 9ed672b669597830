"""LR scans from HR ones: files in, files out, on the FFT grid or as thick slices."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import RunError
from ...runtime.scan.intensity import check_finite
from ...runtime.scan.nifti import Header
from ...runtime.scan.orientation import Orientation
from ...runtime.scan.scan import FREESURFER, Scan, open_scan, stem, tell_remarks, write_scan
from ...runtime.system.files import make_folder, read_json, real_path, write_json
from .kspace import Acquisition, DegradationError, acquire, crop
from .thick import Slices, lr_grid, slices_of

OURS = {"source", "slab_axis", "seed", "noise"}  # keys that identify a sidecar as one of ours


def simulate_all(
    paths: Sequence[Path],
    out: Path,
    acquisition: Acquisition | Slices,
    seed: int = 0,
    axis: int | None = None,
) -> Iterator[Path | RunError]:
    """Simulate LR scans of HR scans, into the same folders below `out`.

    Parameters
    ----------
    paths
        HR scans.
    out
        Folder for the LR scans; it must not contain the HR scans.
    acquisition
        Of k-space, or thick slices.
    seed
        Of noise and bias field, with each scan's name.
    axis
        The stored axis across the slices, 0 to 2; by default that of `Orientation.of`.

    Yields
    ------
    Path or RunError
        The LR scan, or the reason why there is none.

    Raises
    ------
    RunError
        If an LR scan would replace an HR scan.
    """
    folders = {path: real_path(path.parent) for path in paths}  # a link's own name counts, not its target's
    root = Path(os.path.commonpath([*folders.values()]))
    names = {path: (folder / path.name).relative_to(root) for path, folder in folders.items()}
    sources = {real_path(path) for path in paths}
    targets = {path: out / target_name(name) for path, name in names.items()}
    if real_path(out) in folders.values() or sources & {*map(real_path, targets.values())}:
        raise RunError(f"{out} contains HR scans: give another folder with --out.")
    make_folder(out)
    claimed: dict[Path, Path] = {}
    for path, name in names.items():
        other = claimed.setdefault(_sidecar(targets[path]), path)
        try:
            if other != path:
                raise RunError(
                    f"The LR scans of {path} and {other} would have the same name: simulate them separately."
                )
            yield simulate(path, out, acquisition, seed, axis, name)
        except RunError as error:
            yield error


def target_name(name: Path) -> Path:
    """The LR scan's name for an HR scan of this name: NIfTI, even if the HR scan is FreeSurfer's."""
    return name.with_name(stem(name) + ".nii.gz") if name.name.lower().endswith(FREESURFER) else name


def _sidecar(target: Path) -> Path:
    return target.with_name(stem(target) + ".json")


def simulate(
    path: Path,
    out: Path,
    acquisition: Acquisition | Slices,
    seed: int = 0,
    axis: int | None = None,
    name: Path | None = None,
) -> Path:
    """Simulate the LR scan of an HR scan; writes OUT/NAME and its sidecar.

    Parameters
    ----------
    path
        The HR scan.
    out
        Folder for the LR scan.
    acquisition
        Of k-space, or thick slices.
    seed
        Of noise and bias field, with the name, so that every scan has its own.
    axis
        The stored axis across the slices, 0 to 2; by default that of `Orientation.of`.
    name
        Of the result, below `out`; by default the scan's own.

    Returns
    -------
    Path
        The LR scan, in the HR scan's dtype and units; integers are rounded.

    Raises
    ------
    RunError
        For a scan that cannot be read or is too small, for noise or bias so large that voxels overflow, and
        for a file that cannot be written or exists already and was not made by this command.
    """
    name = name or Path(path.name)
    target = out / target_name(name)
    sidecar = _sidecar(target)
    for there in (target, sidecar):
        if os.path.lexists(there) and not read_json(sidecar).keys() >= OURS:
            raise RunError(f"{there} already exists and was not made by udean-simulate: give another --out.")
    scan = tell_remarks(open_scan(path))
    turn = Orientation.of(scan.affine, axis)
    voxels = scan.voxels_in_units()
    check_finite(voxels, str(path))
    dtype = scan.dtype.newbyteorder("=")
    own = zlib.crc32(os.fsencode(name.as_posix())) ^ seed
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # judged below
            lr, header = _acquired(scan, voxels, turn, acquisition, own, dtype)
    except (DegradationError, RunError) as error:
        raise RunError(f"{path}: {error}") from None
    if not np.isfinite(lr).all():
        bias = f" and bias {acquisition.bias:g}" if isinstance(acquisition, Acquisition) else ""
        raise RunError(f"{path}: noise {acquisition.noise:g}{bias} give voxels that overflow: take less.")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        lr = np.clip(np.rint((lr - scan.inter) / scan.slope), limits.min, limits.max)
    write_scan(target, header, lr.astype(dtype))
    record = {"source": path.name, "slab_axis": turn.axis, "seed": seed, **dataclasses.asdict(acquisition)}
    write_json(sidecar, record)
    return target


def _acquired(
    scan: Scan,
    voxels: NDArray[np.float32],
    turn: Orientation,
    acquisition: Acquisition | Slices,
    seed: int,
    dtype: np.dtype[Any],
) -> tuple[NDArray[np.float32], Header]:
    """The LR voxels (i, j, k) of HR ones, and the LR scan's header."""
    if isinstance(acquisition, Slices):
        thick = acquisition.of(scan.zooms[turn.axis])
        grid = lr_grid(scan.shape, turn.axis, thick.step)
        slices = slices_of(np.moveaxis(voxels, turn.axis, 2), thick, seed)[0]
        return np.moveaxis(slices, 2, turn.axis), scan.header_on(grid, dtype)
    # In stored order: on the "fft" grid LR voxel i lies on HR voxel s·i, whichever direction an axis runs in.
    hr = crop(voxels.transpose(turn.axes), acquisition.scale)
    lr = acquire(hr.astype(np.float32), acquisition, seed=seed)
    header = scan.coarse_header(turn.by_stored(acquisition.scale), "fft", dtype)
    return np.moveaxis(lr, range(3), turn.axes), header
