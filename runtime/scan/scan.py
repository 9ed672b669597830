"""Scans: a checked header first, voxels when asked for, and SR volumes with the right geometry.

NIfTI-1 and -2 and FreeSurfer's MGH are read; what is written is NIfTI.

`open_scan` reads and judges the header only; a file that cannot be resolved is refused before memory is
taken. Voxels stay as stored (memory map or array, unscaled); `slope` and `inter` give their units. An SR
header is made from its scan's by `Scan.fine_header`, so what does not depend on the grid survives.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray

from ..errors import RunError
from ..models.card import GridKind
from ..system.files import atomic, check_file
from .geometry import Factors, coarse_affine, fine_affine, is_singular
from .gzip import CHUNK, INFLATION, inflate, is_gzip, packing, reading, unpacking
from .nifti import Header, little_endian, mended, preamble, read_header, sform
from .regrid import Grid

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
FREESURFER = (".mgz", ".mgh")
MILLIMETRES = {1: 1e3, 3: 1e-3}  # of a header's metre and micron; all else counts as mm
# Bytes of an MGH header that are used, all big-endian: version, four dimensions, type, (degrees of freedom),
# whether what follows is set; voxel sizes, directions. Source: FreeSurfer's wiki, "MghFormat".
MGH_HEADER, MGH_FIELDS = 284, ">6i4xh3f9f"
LARGEST = 32767  # voxels along an axis of NIfTI-1
MGH_TYPES = (0, 1, 3, 4)  # uint8, int32, float32, int16

log = logging.getLogger("udean")


def stem(path: Path) -> str:
    """The name without a scan's suffix, or without its last suffix."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


@dataclass(frozen=True)
class Scan:
    """A 3-D scan, or a series of them, whose header has been checked.

    Parameters
    ----------
    name
        The name used in errors.
    header
        NIfTI, little-endian.
    shape
        Voxels along (i, j, k).
    dtype
        As stored.
    slope, inter
        Stored voxels · slope + inter are in the scan's units.
    path, image
        Where the voxels come from: a file, or a nibabel image.
    volumes
        Number of volumes of a time series, else 1.
    array
        The stored voxels if they have been read already.
    remarks
        Repairs of the header, in sentences.
    labels
        What it holds if it is a label map, "" if it is not, None if nobody has looked; see `kinds`.
    """

    name: str
    header: Header
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    slope: float
    inter: float
    path: Path | None = None
    image: SpatialImage | None = None
    volumes: int = 1
    array: NDArray[Any] | None = None
    remarks: tuple[str, ...] = ()
    labels: str | None = None

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Voxel sizes along (i, j, k) in mm: the affine's, from which the header's own may differ."""
        i, j, k = map(float, np.linalg.norm(self.affine[:3, :3], axis=0))
        return i, j, k

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxels to world in mm, (4, 4): sform, else qform, else nibabel's fallback."""
        unit = MILLIMETRES.get(int(self.header["xyzt_units"]) & 7, 1.0)
        return np.diag([unit, unit, unit, 1.0]) @ self.header.get_best_affine()

    def voxels(self) -> NDArray[Any]:
        """The stored voxels, as they are in the file.

        Returns
        -------
        ndarray
            (i, j, k), or (i, j, k, t) of a series, in the stored dtype; in Fortran order if read from a file,
            as a memory map if that is uncompressed.

        Raises
        ------
        RunError
            If the file is truncated, damaged or unreadable.
        """
        if self.array is not None:
            return self.array
        shape = self.shape if self.volumes == 1 else (*self.shape, self.volumes)
        if self.image is not None:
            proxy: Any = self.image.dataobj
            with reading(Path(self.name)):
                stored = proxy.get_unscaled() if hasattr(proxy, "get_unscaled") else proxy
                return np.asanyarray(stored).reshape(shape)
        assert self.path is not None
        offset = int(self.header["vox_offset"])
        with reading(self.path):
            if is_gzip(self.path):
                return inflate(self.path, offset, shape, self.dtype)
            return np.memmap(self.path, self.dtype, "r", offset, shape, order="F")

    def voxels_in_units(self) -> NDArray[np.float32]:
        """The voxels in the scan's units.

        Returns
        -------
        ndarray
            float32, of the shape of `voxels()`.

        Raises
        ------
        RunError
            If the file is truncated, damaged or unreadable.
        """
        return self.in_units(self.voxels())

    def in_units(self, voxels: NDArray[Any]) -> NDArray[np.float32]:
        """Stored voxels, all or a part of them, in the scan's units."""
        # Integers of 32 bits are computed in float64, as float32 does not hold them.
        scaled = voxels * np.float32(self.slope) + np.float32(self.inter)
        return scaled.astype(np.float32, copy=False)

    def loaded(self) -> Scan:
        """This scan with its voxels read."""
        return dataclasses.replace(self, array=self.voxels())

    def fine_header(self, factors: Factors, grid: GridKind, dtype: np.dtype[Any]) -> Header:
        """The header of the SR volume.

        Parameters
        ----------
        factors
            HR voxels per LR voxel along (i, j, k).
        grid
            "fft" or "center", see `geometry`.
        dtype
            Of the stored SR voxels.

        Raises
        ------
        RunError
            If the file format cannot hold so many voxels along an axis.
        """
        shape = [n * f for n, f in zip(self.shape, factors, strict=True)]
        return self._regridded(shape, partial(fine_affine, factors=factors, grid=grid), dtype)

    def header_on(self, grid: Grid, dtype: np.dtype[Any]) -> Header:
        """The header of a volume on another grid over this scan's field of view; see `_regridded`."""
        return self._regridded(list(grid.shape), grid.affine, dtype)

    def coarse_header(self, factors: Factors, grid: GridKind, dtype: np.dtype[Any]) -> Header:
        """The header of an LR volume made from this scan; see `_regridded`."""
        shape = [n // f for n, f in zip(self.shape, factors, strict=True)]
        return self._regridded(shape, partial(coarse_affine, factors=factors, grid=grid), dtype)

    def _regridded(
        self,
        shape: list[int],
        move: Callable[[NDArray[np.floating]], NDArray[np.float64]],
        dtype: np.dtype[Any],
    ) -> Header:
        """This scan's header for another grid; `move` takes an affine of this grid to the new one.

        qform and sform keep their codes and are moved independently, even if they differ. A scan
        with neither gets its fallback affine as an sform: that fallback depends on the shape, so the new
        volume would not lie on its scan without. Floating-point voxels are stored in the scan's units,
        integers with the scan's own slope and intercept. Slice timing does not hold for other slices.
        """
        header = self.header.copy()
        try:
            header.set_data_shape(shape if self.volumes == 1 else [*shape, self.volumes])
        except HeaderDataError:
            size = " x ".join(map(str, shape))
            raise RunError(
                f"{self.name} would become {size} voxels, and its file format holds {LARGEST} along an axis: "
                "crop the scan, or convert it to NIfTI-2."
            ) from None
        header.set_data_dtype(dtype)
        scaled = np.issubdtype(dtype, np.integer)
        header["scl_slope"], header["scl_inter"] = (self.slope, self.inter) if scaled else (1, 0)
        header["pixdim"][1:4] = self.header["pixdim"][1:4] * np.diag(move(np.eye(4)))[:3]
        if header["qform_code"] > 0:
            origin = move(self.header.get_qform())[:3, 3]
            for name, value in zip(("qoffset_x", "qoffset_y", "qoffset_z"), origin, strict=True):
                header[name] = value
        if header["sform_code"] > 0 or header["qform_code"] <= 0:
            header.set_sform(move(sform(self.header)))
            header["sform_code"] = max(0, int(self.header["sform_code"])) or 2  # any other means "aligned"
        header["slice_start"] = header["slice_end"] = header["slice_duration"] = header["slice_code"] = 0
        header["vox_offset"] = 0  # set when written
        return header


def volumes(voxels: NDArray[Any]) -> list[NDArray[Any]]:
    """The volumes of a series (i, j, k, t), or the one that there is."""
    return [voxels] if voxels.ndim == 3 else [voxels[..., t] for t in range(voxels.shape[3])]


def open_scan(path: Path, series: bool = False) -> Scan:
    """Read and check a file's header; no voxel is read.

    Parameters
    ----------
    path
        A NIfTI-1 or NIfTI-2 file (.nii, .nii.gz) or FreeSurfer's .mgh or .mgz.
    series
        Accept a 4-D time series too.

    Returns
    -------
    Scan

    Raises
    ------
    RunError
        For what cannot be resolved: a missing or foreign file, not 3-D, complex or colour voxels, invalid
        voxel sizes, a singular affine, more voxels than the file can hold.
    """
    if path.name.lower().endswith(FREESURFER):
        return _open_freesurfer(path, series)
    found = read_header(path)
    scan = _checked(str(path), found.header, found.dtype, series, path=path)
    _check_size(scan, path, int(found.header["vox_offset"]), found.packed)
    return scan


def _open_freesurfer(path: Path, series: bool) -> Scan:
    with reading(path):
        check_file(path)
        packed = is_gzip(path)
        with unpacking(path) if packed else open(path, "rb") as file:
            start = file.read(MGH_HEADER)
        remarks = _judge_freesurfer(path, start)
        scan = image_scan(nib.MGHImage.from_filename(path), series)
        scan.header["vox_offset"] = MGH_HEADER
        scan = dataclasses.replace(scan, image=None, path=path, remarks=(*remarks, *scan.remarks))
        _check_size(scan, path, MGH_HEADER, packed)
    return scan


def _judge_freesurfer(path: Path, start: bytes) -> tuple[str, ...]:
    """Remarks on a file, judged by its first bytes. Raises RunError if nibabel would not read it."""
    if len(start) < MGH_HEADER:
        raise RunError(f"{path} is not a FreeSurfer volume, or damaged.")
    version, *dims, kind, oriented = struct.unpack_from(MGH_FIELDS, start)[:7]
    sizes, axes = np.split(np.array(struct.unpack_from(MGH_FIELDS, start)[7:]), [3])
    if version != 1 or kind not in MGH_TYPES or min(dims) < 1:
        raise RunError(f"{path} is not a FreeSurfer volume, or damaged.")
    if oriented <= 0:
        return (f"{path} does not say how it lies in the world: it is taken for FreeSurfer's own, of 1 mm.",)
    affine = np.eye(4)
    affine[:3, :3] = axes.reshape(3, 3).T * sizes
    if is_singular(affine):
        raise RunError(f"{path} has a singular or damaged affine: repair its header first.")
    return ()


def _check_size(scan: Scan, path: Path, offset: int, packed: bool) -> None:
    """Raise RunError if the file cannot hold the voxels that its header claims."""
    claimed, size = math.prod(scan.shape) * scan.volumes * scan.dtype.itemsize, path.stat().st_size
    if claimed > (size * INFLATION if packed else size - offset):
        raise RunError(
            f"{path} is truncated or its header damaged: {' x '.join(map(str, scan.shape))} voxels need "
            f"{claimed} bytes and the file has {size}{' compressed' if packed else ''}."
        )


def image_scan(image: SpatialImage, series: bool = False) -> Scan:
    """A nibabel image as a scan, checked as a file is. Images of other formats take a NIfTI header."""
    proxy: Any = image.dataobj
    name = image.get_filename() or "The image"
    stored = np.dtype(proxy.dtype) if hasattr(proxy, "dtype") else np.asanyarray(proxy).dtype
    if stored == np.bool_ or stored == np.float16:
        raise RunError(f"{name} has {stored} voxels, which NIfTI cannot store: convert it to float32.")
    if isinstance(proxy, np.ma.MaskedArray):
        raise RunError(f"{name} has masked voxels: fill them first, as by array.filled(0).")
    nifti = image
    if not isinstance(image, nib.Nifti1Pair):
        if image.affine is not None and is_singular(image.affine):
            raise RunError(f"{name} has a singular or damaged affine: repair its header first.")
        kind = Nifti1Image if max(image.shape, default=0) <= LARGEST else nib.Nifti2Image  # as of overlays
        nifti = kind.from_image(image)
    header = little_endian(nifti.header)
    if isinstance(image, nib.MGHImage):  # its world is the scanner's, as FreeSurfer's own NIfTI says too
        header.set_xyzt_units("mm", "msec")
        header.set_sform(image.affine, "scanner")
        header.set_qform(image.affine, "scanner")
    header.set_slope_inter(getattr(proxy, "slope", 1.0), getattr(proxy, "inter", 0.0))
    header.set_data_shape(image.shape)
    header.set_data_dtype(stored)
    return _checked(name, header, stored, series, image=image)


def tell_remarks(scan: Scan) -> Scan:
    """Tell the user what was mended in a scan's header; returns the scan."""
    for remark in scan.remarks:
        log.warning("%s", remark)
    return scan


def write_scan(path: Path, header: Header, voxels: NDArray[Any]) -> None:
    """Write a scan atomically; equal content gives equal bytes.

    Parameters
    ----------
    path
        The file; `.gz` in the name compresses.
    header
        NIfTI, with the shape and dtype of the voxels.
    voxels
        As stored, (i, j, k) or (i, j, k, t).

    Raises
    ------
    RunError
        If the file cannot be written.
    """
    data = np.asfortranarray(voxels, header.get_data_dtype())
    with atomic(path) as raw, packing(raw, path.name.lower().endswith(".gz")) as file:
        file.write(preamble(header))
        flat = data.T.reshape(-1).view(np.uint8).data
        for start in range(0, len(flat), CHUNK):
            file.write(flat[start : start + CHUNK])


def fine_image(header: Header, voxels: NDArray[Any]) -> Nifti1Image:
    """An SR volume as a nibabel image; stored integers with a slope become float32 in the scan's units."""
    slope, inter = header.get_slope_inter()
    header = header.copy()
    if (slope or 1, inter or 0) != (1, 0):
        voxels = voxels.astype(np.float32) * np.float32(slope) + np.float32(inter)
        header.set_data_dtype(np.float32)
    header.set_slope_inter(1, 0)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else Nifti1Image
    image = kind(voxels, header.get_best_affine(), header)
    image.header["scl_slope"], image.header["scl_inter"] = 1, 0
    return image


def _checked(
    name: str,
    header: Header,
    dtype: np.dtype[Any],
    series: bool,
    path: Path | None = None,
    image: SpatialImage | None = None,
) -> Scan:
    """A scan, once its header has passed all checks."""
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        what = "complex" if dtype.kind == "c" else "colour" if dtype.names else None
        if what:
            raise RunError(f"{name} has {what} voxels: give a real-valued volume, such as its magnitude.")
        raise RunError(f"{name} has voxels of datatype {header['datatype']}: convert them to float32.")
    raw = [int(n) for n in header["dim"]]
    if not 1 <= raw[0] <= 7 or min(raw[1 : raw[0] + 1]) < 1:
        raise RunError(f"{name} has a damaged header: its dimensions are {raw}.")
    shape = raw[1 : raw[0] + 1]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    volumes = shape.pop() if series and len(shape) == 4 else 1
    if len(shape) != 3:
        size = " x ".join(map(str, shape))
        remedy = "give one 3-D volume at a time"
        if len(shape) == 4:
            remedy = f"udean-run --series resolves it volume by volume, else {remedy}"
        raise RunError(f"{name} is {len(shape)}-D ({size}): {remedy}.")
    header.set_data_shape(shape if volumes == 1 else [*shape, volumes])
    remarks = tuple(mended(name, header))
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError:
        raise RunError(f"{name} has a damaged header: scl_inter is {header['scl_inter']}.") from None
    i, j, k = shape
    slope = 1.0 if slope is None else slope
    return Scan(name, header, (i, j, k), dtype, slope, inter or 0.0, path, image, volumes, None, remarks)
