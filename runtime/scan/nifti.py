"""NIfTI headers: reading, repairing, refusing and writing them.

Source: nifti1.h and nifti2.h of the NIfTI data format working group.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ..errors import RunError
from ..system.files import check_file
from .geometry import is_singular
from .gzip import is_gzip, reading, unpacking

Header: TypeAlias = Any  # nibabel's NIfTI-1 or NIfTI-2 header: fields by their standard names

MAGIC = {(348, b"n+1\0"): nib.Nifti1Header, (540, b"n+2\0\r\n\x1a\n"): nib.Nifti2Header}
PAIRS = (".hdr", ".img", ".hdr.gz", ".img.gz")  # a header and its voxels, in two files
UNIT_LENGTH = 1e-3  # by which a quaternion may be longer than 1 by rounding
APART = 0.5  # voxels between the corners of a qform and an sform, from which on they are two
HEADER_LIMIT = 64 << 20  # header extensions are kilobytes


class FileHeader(NamedTuple):
    """A file's header. header: little-endian, with its extensions, vox_offset an integer.

    dtype: of the voxels, in the file's byte order. packed: by gzip, whatever the file's name says.
    """

    header: Header
    dtype: np.dtype[Any]
    packed: bool


def read_header(path: Path) -> FileHeader:
    """The header of a single-file NIfTI; no voxel is read. Raises RunError for what is not one."""
    with reading(path):
        check_file(path)
        packed = is_gzip(path)
        with unpacking(path) if packed else open(path, "rb") as file:
            start = file.read(540)
            header = _parse(start, path)
            offset = float(header["vox_offset"])
            offset = max(int(offset) if math.isfinite(offset) else 0, header.sizeof_hdr + 4)
            if offset > HEADER_LIMIT:
                raise RunError(f"{path} has a damaged header: its voxels would begin at byte {offset}.")
            block = start + file.read(max(0, offset - len(start)))
        header = type(header).from_fileobj(io.BytesIO(block[:offset]), header.endianness, check=False)
        stored = _stored_dtype(header, path)  # in the file's byte order, unlike the SR volume's header
        header = little_endian(header)
        header["vox_offset"], header["sizeof_hdr"] = offset, header.sizeof_hdr
    return FileHeader(header, stored, packed)


def preamble(header: Header) -> bytes:
    """The bytes of a single NIfTI file before its voxels: header, extensions, padding."""
    header = header.copy()
    header["magic"] = header.single_magic
    header["vox_offset"] = offset = _data_offset(header)
    head = io.BytesIO()
    header.write_to(head)
    return head.getvalue().ljust(offset, b"\0")


def little_endian(header: Header) -> Header:
    """A copy in little-endian order, with the extensions that nibabel's own conversion drops."""
    swapped = header.as_byteswapped("<")
    swapped.extensions = type(header.extensions)(header.extensions)
    return swapped


def _parse(start: bytes, path: Path) -> Header:
    """The header class that fits the first bytes, filled from them."""
    for (size, magic), kind in MAGIC.items():
        at = 344 if size == 348 else 4
        if len(start) >= size and start[at : at + len(magic)] == magic:
            # nibabel tells the byte order from dim[0], which may be damaged; the size is a constant.
            orders = {size.to_bytes(4, "little"): "<", size.to_bytes(4, "big"): ">"}
            return kind(start[:size], orders.get(start[:4]), check=False)
    if start[344:348] == b"ni1\0" or path.name.lower().endswith(PAIRS):
        raise RunError(
            f"{path} is a header without its voxels, or these: join the pair into one .nii file first."
        )
    raise RunError(f"{path} is not a NIfTI file.")


def _stored_dtype(header: Header, path: Path) -> np.dtype[Any]:
    try:
        return header.get_data_dtype()
    except KeyError:
        raise RunError(f"{path} has a damaged header: its datatype is {header['datatype']}.") from None


def mended(name: str, header: Header) -> Iterator[str]:
    """Repair a header's affines as far as possible; yields what was done.

    A qfac that is not ±1 counts as the NIfTI-1 standard's reader takes it, a quaternion that is too long by
    rounding is shortened, and a damaged qform, or impossible voxel sizes, give way to a sound sform. Raises
    RunError for a damaged sform, whatever the qform, and for a damaged qform, or sizes, without a sform.
    """
    sizes = header["pixdim"][1:4].copy()
    if not np.isfinite(sizes).all() or (sizes <= 0).any():
        shown = ", ".join(map(str, sizes))
        if not (header["sform_code"] > 0 and _is_sound(sform, header)):
            raise RunError(f"{name} has no usable voxel size in its header ({shown}): set pixdim.")
        header["pixdim"][1:4] = np.linalg.norm(header.get_sform()[:3, :3], axis=0)
        yield f"{name} has no usable voxel size in its header ({shown}): its sform's are used instead."
    if header["qform_code"] > 0:
        if (qfac := float(header["pixdim"][0])) not in (-1.0, 1.0):
            header["pixdim"][0] = -1.0 if qfac < 0 else 1.0
            yield f"{name} has qfac {qfac:g} in its qform, which is taken for {header['pixdim'][0]:g}."
        parts = ("quatern_b", "quatern_c", "quatern_d")
        length = float(np.linalg.norm([float(header[part]) for part in parts]))
        if 1 < length <= 1 + UNIT_LENGTH:
            for part in parts:
                header[part] = float(header[part]) / length * (1 - 1e-7)  # float32 must not round it up again
    forms = [("sform", "sform_code", sform), ("qform", "qform_code", _qform)]
    there = [(form, code, _is_sound(read, header)) for form, code, read in forms if header[code] > 0]
    damaged = [form for form, _, sound in there if not sound]
    if not there:
        yield (
            f"{name} does not say how it lies in the world (neither qform nor sform is set): it is taken to "
            "run from right to left, back to front and foot to head."
        )
    if not damaged:
        if len(there) == 2 and header["qform_code"] == header["sform_code"]:
            yield from _conflicting(name, header)
        return
    if "sform" in damaged or len(there) == 1:
        raise RunError(
            f"{name} has a singular or damaged affine ({' and '.join(damaged)}): repair its header first."
        )
    sizes = header["pixdim"][1:4].copy()
    header.set_qform(header.get_sform(), int(header["qform_code"]))  # the nearest without shears
    header["pixdim"][1:4] = sizes
    yield f"{name} has a damaged qform: its sform is used instead."


def _conflicting(name: str, header: Header) -> Iterator[str]:
    """A remark if qform and sform name the same world but differ by more than rounding."""
    ends = np.indices((2, 2, 2)).reshape(3, 8) * np.subtract(header["dim"][1:4], 1)[:, None]
    ends = np.vstack([ends, np.ones(8)])
    apart = np.linalg.norm(((header.get_sform() - header.get_qform()) @ ends)[:3], axis=0).max()
    if apart > APART * header["pixdim"][1:4].min():
        yield f"{name} has a qform and an sform that lie up to {apart:.3g} apart: its sform is used."


def _is_sound(read: Callable[[Header], NDArray[np.float64]], header: Header) -> bool:
    try:
        return not is_singular(read(header))
    except (HeaderDataError, ValueError):
        return False


def sform(header: Header) -> NDArray[np.float64]:
    """The sform if one is set, else the affine that nibabel falls back to."""
    return header.get_sform() if header["sform_code"] > 0 else header.get_best_affine()


def _qform(header: Header) -> NDArray[np.float64]:
    return header.get_qform()


def _data_offset(header: Header) -> int:
    """Bytes of header, flag and extensions, to the next multiple of 16."""
    return -(-(int(header["sizeof_hdr"]) + 4 + int(header.extensions.get_sizeondisk())) // 16) * 16
