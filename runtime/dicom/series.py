"""DICOM series as scans: classic single-frame and enhanced multi-frame MR, sorted by where slices lie.

Source: DICOM PS3.3, C.7.6.2 (image plane), C.7.6.16 (multi-frame functional groups), C.8.3.1 (MR image).
File names and instance numbers say nothing about order here. pydicom is imported when a folder is read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..extras import require
from ..slices import even_step
from ..volume import Scan, image_scan

CLASSIC = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED = ("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4")  # and legacy converted
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MANUFACTURER = "udean"  # of the contributing equipment in results
MAGIC = 128, b"DICM"  # PS3.10, 7.1
ROUNDING = 3  # digits of direction cosines by which frames are told apart: files round them

Dataset = Any  # pydicom's, which is not imported here


@dataclass(frozen=True)
class Frame:
    """One slice. number: of the frame in its file, from 0.

    position: first voxel's centre, LPS, mm. cosines: of a row's and of a column's direction, six. spacing:
    from row to row and from column to column, mm.
    slope, inter: stored voxels · slope + inter.
    """

    path: Path
    number: int
    instance: str
    position: tuple[float, float, float]
    cosines: tuple[float, ...]
    spacing: tuple[float, float]
    thickness: float | None
    slope: float
    inter: float


@dataclass(frozen=True)
class Series:
    """The slices of one volume, sorted along the normal.

    name: what errors call it. number: of the series. part: of several volumes in it, from 1, or 0 for the
    only one. head: the first slice's data set, without voxels.
    """

    name: str
    uid: str
    number: int
    part: int
    frames: tuple[Frame, ...]
    head: Dataset

    @property
    def enhanced(self) -> bool:
        """Whether it came as a multi-frame file."""
        return str(self.head.SOPClassUID) in ENHANCED

    def affine(self) -> NDArray[np.float64]:
        """Voxels (i, j, k) to RAS, (4, 4): i along a row, j along a column.

        Raises RunError where the slices are not one upright, evenly spaced stack.
        """
        first = self.frames[0]
        row, column = np.reshape(first.cosines, (2, 3))
        frame = np.array([row, column, np.cross(row, column)])
        if not np.allclose(frame @ frame.T, np.eye(3), atol=1e-3):
            raise RunError(f"{self.name} has directions that are not orthogonal unit vectors.")
        size = np.array(first.spacing[::-1])
        if not (np.isfinite(size).all() and (size > 0).all()):
            raise RunError(f"{self.name} has no usable pixel spacing: {first.spacing} mm.")
        places = np.array([frame.position for frame in self.frames])
        step = first.thickness or 0.0
        if len(places) > 1:
            step = even_step(self.name, places @ frame.T, size)
        if not step > 0:
            raise RunError(f"{self.name} is a single slice of unknown thickness.")
        affine = np.eye(4)
        affine[:3, :3] = (frame * np.array([*size, step])[:, None]).T
        affine[:3, 3] = places[0]
        return LPS_TO_RAS @ affine

    def scan(self) -> Scan:
        """The series as a scan, its voxels decoded. Raises RunError for what cannot be resolved."""
        affine = self.affine()
        scales = {(frame.slope, frame.inter) for frame in self.frames}
        if len(scales) > 1:
            raise RunError(f"{self.name} has slices of different rescaling: convert it to NIfTI first.")
        voxels = np.stack(list(self._planes()), axis=2)
        image = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
        image.header.set_qform(affine, "scanner")
        image.header.set_sform(affine, "scanner")
        image.header.set_xyzt_units("mm", "sec")
        scan = image_scan(image)
        slope, inter = scales.pop()
        return Scan(self.name, scan.header, scan.shape, scan.dtype, slope, inter, array=voxels)

    def _planes(self) -> Iterator[NDArray[Any]]:
        """The stored voxels (i, j) of each frame, in order."""
        pydicom = require_pydicom()
        decoded: dict[Path, NDArray[Any]] = {}
        for frame in self.frames:
            if frame.path not in decoded:
                try:
                    dataset = pydicom.dcmread(frame.path)
                    pixels = np.asarray(dataset.pixel_array)
                except Exception as error:  # decoders raise what they like
                    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                    raise RunError(f"{self.name}: a slice's voxels cannot be decoded ({reason}).") from error
                decoded = {frame.path: pixels}
            pixels = decoded[frame.path]
            plane = pixels[frame.number] if pixels.ndim == 3 else pixels
            if plane.shape != (self.head.Rows, self.head.Columns):
                raise RunError(f"{self.name}: a slice's voxels are not {self.head.Rows}x{self.head.Columns}.")
            yield plane.T


def require_pydicom() -> Any:
    """pydicom, or RunError with how to get it."""
    try:
        return require("pydicom", "dicom")
    except RunError:
        raise RunError("DICOM needs pydicom: pip install 'udean[dicom]'") from None


def is_dicom(path: Path) -> bool:
    """Whether a file begins as PS3.10 files do."""
    try:
        with open(path, "rb") as file:
            file.seek(MAGIC[0])
            return file.read(4) == MAGIC[1]
    except OSError:
        return False


def find_series(files: list[Path], place: Path, ours: bool = False) -> list[Series]:
    """The MR volumes that DICOM files make up; files of other kinds are left out.

    A series that holds several volumes (echoes, time points, b-values, orientations, image types) is
    taken apart. place: the folder, for errors. ours: take results of earlier runs too. Raises
    RunError for a damaged file.
    """
    pydicom = require_pydicom()
    frames: dict[tuple[Any, ...], list[Frame]] = defaultdict(list)
    heads: dict[str, Dataset] = {}
    for path in files:
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            kind = str(dataset.get("SOPClassUID", ""))
            if not ours and _is_ours(dataset):
                continue
            if kind == CLASSIC:
                found = [_classic(path, dataset)]
            elif kind in ENHANCED:
                found = list(_enhanced(path, dataset))
            else:
                continue
        except RunError:
            raise
        except Exception as error:  # a damaged file may raise anything
            raise RunError(f"{path} is a damaged DICOM file ({type(error).__name__}).") from error
        heads[found[0][1].instance] = dataset
        for key, frame in found:
            frames[str(dataset.SeriesInstanceUID), *key].append(frame)

    series = []
    parts: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for key in sorted(frames, key=repr):
        parts[key[0]].append(key)
    for uid, keys in parts.items():
        for part, key in enumerate(keys, 1):
            row, column = np.reshape(frames[key][0].cosines, (2, 3))
            normal = np.cross(row, column)
            ordered = sorted(frames[key], key=lambda f: float(np.dot(f.position, normal)))
            head = heads[ordered[0].instance]
            number = _integer(head.get("SeriesNumber"))
            several = len(keys) > 1
            name = f"Series {number} in {place}" + (f", volume {part}" if several else "")
            series.append(Series(name, uid, number, part if several else 0, tuple(ordered), head))
    return sorted(series, key=lambda s: (s.number, s.uid, s.part))


def _is_ours(dataset: Dataset) -> bool:
    """Whether a file is the result of an earlier run."""
    equipment = dataset.get("ContributingEquipmentSequence") or ()
    return any(item.get("Manufacturer") == MANUFACTURER for item in equipment)


def _classic(path: Path, dataset: Dataset) -> tuple[tuple[Any, ...], Frame]:
    _check(path, dataset)
    cosines = _cosines(dataset.ImageOrientationPatient)
    key = (
        _rounded(cosines),
        _shape(dataset),
        _texts(dataset.get("ImageType")),
        _number(dataset.get("EchoTime")),
        _integer(dataset.get("TemporalPositionIdentifier")),
        _number(dataset.get("DiffusionBValue")),
    )
    return key, Frame(
        path,
        0,
        str(dataset.SOPInstanceUID),
        _triple(dataset.ImagePositionPatient),
        cosines,
        _pair(dataset.PixelSpacing),
        _number(dataset.get("SliceThickness")),
        _number(dataset.get("RescaleSlope")) or 1.0,
        _number(dataset.get("RescaleIntercept")) or 0.0,
    )


def _enhanced(path: Path, dataset: Dataset) -> Iterator[tuple[tuple[Any, ...], Frame]]:
    _check(path, dataset)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for number, own in enumerate(dataset.PerFrameFunctionalGroupsSequence):

        def group(name: str, own: Dataset = own) -> Dataset:
            """A functional group of this frame, or that of all frames; empty where there is none."""
            items = own.get(name) or shared.get(name)
            return items[0] if items else {}

        measures, rescale = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
        content, kind = group("FrameContentSequence"), group("MRImageFrameTypeSequence")
        cosines = _cosines(group("PlaneOrientationSequence").ImageOrientationPatient)
        key = (
            _rounded(cosines),
            _shape(dataset),
            _texts(kind.get("FrameType")),
            _number(group("MREchoSequence").get("EffectiveEchoTime")),
            _integer(content.get("TemporalPositionIndex")),
            _number(group("MRDiffusionSequence").get("DiffusionBValue")),
            str(content.get("StackID", "")),
        )
        yield (
            key,
            Frame(
                path,
                number,
                str(dataset.SOPInstanceUID),
                _triple(group("PlanePositionSequence").ImagePositionPatient),
                cosines,
                _pair(measures.PixelSpacing),
                _number(measures.get("SliceThickness")),
                _number(rescale.get("RescaleSlope")) or 1.0,
                _number(rescale.get("RescaleIntercept")) or 0.0,
            ),
        )


def _check(path: Path, dataset: Dataset) -> None:
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise RunError(f"{path} has colour voxels: give the series that it was made from.")
    if min(int(dataset.Rows), int(dataset.Columns)) < 1:
        raise RunError(f"{path} has no voxels.")


def _shape(dataset: Dataset) -> tuple[int, int]:
    return int(dataset.Rows), int(dataset.Columns)


def _cosines(values: Any) -> tuple[float, ...]:
    cosines = tuple(float(v) for v in values)
    if len(cosines) != 6 or not np.isfinite(cosines).all():
        raise ValueError("ImageOrientationPatient")
    return cosines


def _rounded(cosines: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, ROUNDING) + 0.0 for value in cosines)


def _triple(values: Any) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    if not np.isfinite([x, y, z]).all():
        raise ValueError("ImagePositionPatient")
    return x, y, z


def _pair(values: Any) -> tuple[float, float]:
    row, column = (float(v) for v in values)
    return row, column


def _texts(values: Any) -> tuple[str, ...]:
    return () if values is None else (values,) if isinstance(values, str) else tuple(map(str, values))


def _number(value: Any) -> float | None:
    number = None if value in (None, "") else float(value)
    if number is not None and not np.isfinite(number):
        raise ValueError("not finite")
    return number


def _integer(value: Any) -> int:
    return int(value) if re.fullmatch(r"\s*[+-]?\d+\s*", str(value)) else 0
