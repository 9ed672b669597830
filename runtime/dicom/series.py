"""DICOM series as scans: classic single-frame and enhanced multi-frame MR, sorted by where slices lie.

Source: DICOM PS3.3, C.7.5.1.1.2 (pixel padding), C.7.6.2 (image plane), C.7.6.16 (multi-frame functional
groups), C.8.3.1 (MR image), C.8.13.3.1.1 (complex image component).
File names and instance numbers say nothing about order here. pydicom is imported when a folder is read.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..errors import RunError, first_line
from ..scans.scan import Scan, image_scan
from ..scans.slices import even_step
from ..system.extras import require

CLASSIC = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED = ("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4")  # and legacy converted
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MANUFACTURER = "udean"  # of the contributing equipment in results
MAGIC = 128, b"DICM"  # PS3.10, 7.1
TOLERANCE = 1e-3  # absolute and relative, of cosines, spacings, echo times and b-values: files round them
SAME_PLACE = 0.01  # mm along the normal
PADDING_GAP = 0.1  # of the other voxels' range, from it to padding that would ring: 0 in black air does not
NO_MAGNITUDE = {"P", "R", "I", "PHASE", "REAL", "IMAGINARY", "PHASE MAP", "VELOCITY MAP", "VELOCITY"}
REPEATS = (  # what may tell volumes at the same positions apart; or its like in functional groups
    "TriggerTime",
    "AcquisitionNumber",
    "EchoNumbers",
    "InversionTime",
    "FlipAngle",
    "DiffusionGradientOrientation",
)

Dataset = Any  # pydicom's, which is not imported here
_Key: TypeAlias = tuple[Any, ...]
_Values: TypeAlias = tuple[float | None, ...]


@dataclass(frozen=True)
class Frame:
    """One slice. number: of the frame in its file, from 0.

    position: first voxel's centre, LPS, mm. cosines: of a row's and of a column's direction, six. spacing:
    from row to row and from column to column, mm.
    slope, inter: stored voxels · slope + inter. real: the same to real-world values, if it says so. pixels:
    BitsStored, PixelRepresentation, PhotometricInterpretation. kind: image type and complex component.
    window: centre and width. repeat: the values of REPEATS, empty where there is none.
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
    real: tuple[float, ...]
    pixels: tuple[int, int, str]
    kind: tuple[str, ...]
    window: tuple[tuple[float, ...], tuple[float, ...]] | None
    repeat: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Series:
    """The slices of one volume, sorted along the normal.

    name: what errors call it. number: of the series. part: of several volumes in it, from 1, or 0 for the
    only one. head: the first slice's data set, without voxels. fault: why it cannot be resolved, if known.
    """

    name: str
    uid: str
    number: int
    part: int
    frames: tuple[Frame, ...]
    head: Dataset
    fault: str = ""

    @property
    def enhanced(self) -> bool:
        """Whether it came as a multi-frame file."""
        return str(self.head.SOPClassUID) in ENHANCED

    def affine(self) -> NDArray[np.float64]:
        """Voxels (i, j, k) to RAS, (4, 4): i along a row, j along a column.

        Raises RunError if the slices are not one upright, evenly spaced stack.
        """
        if self.fault:
            raise RunError(self.fault)
        first = self.frames[0]
        row, column = np.reshape(first.cosines, (2, 3))
        frame = np.array([row, column, np.cross(row, column)])
        if not np.allclose(frame @ frame.T, np.eye(3), atol=1e-3):
            raise RunError(f"{self.name} has directions that are not orthogonal unit vectors.")
        size = np.array(first.spacing[::-1])
        if not (np.isfinite(size).all() and (size > 0).all()):
            raise RunError(f"{self.name} has no usable pixel spacing: {first.spacing} mm.")
        if not all(_near(frame.spacing, first.spacing) for frame in self.frames):
            raise RunError(f"{self.name} has slices of different pixel spacing: give one stack of them.")
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
        kind = self.frames[0].kind
        if "MOSAIC" in kind:
            raise RunError(f"{self.name} has many slices in one image (mosaic): convert it to NIfTI first.")
        if kind[-1] not in ("", "MAGNITUDE") or NO_MAGNITUDE.intersection(kind[2:4]):
            raise RunError(f"{self.name} is phase, real or imaginary: only magnitude images are restored.")
        scales = {(frame.slope, frame.inter) for frame in self.frames}
        if len(scales) > 1 or len({frame.real for frame in self.frames}) > 1:
            raise RunError(f"{self.name} has slices of different rescaling: convert it to NIfTI first.")
        if len({frame.pixels for frame in self.frames}) > 1:
            raise RunError(
                f"{self.name} has slices of different BitsStored, PixelRepresentation or "
                "PhotometricInterpretation: convert it to NIfTI first."
            )
        voxels = np.stack(list(self._planes()), axis=2)
        self._check_padding(voxels)
        image = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
        image.header.set_qform(affine, "scanner")
        image.header.set_sform(affine, "scanner")
        image.header.set_xyzt_units("mm", "sec")
        scan = image_scan(image)
        slope, inter = scales.pop()
        return Scan(self.name, scan.header, scan.shape, scan.dtype, slope, inter, array=voxels)

    def _check_padding(self, voxels: NDArray[Any]) -> None:
        """Raise RunError if padding would pass for signal: it decides the intensities, and rings."""
        value = self.head.get("PixelPaddingValue")
        if value in (None, ""):
            return
        ends = [int(value), int(self.head.get("PixelPaddingRangeLimit", value))]
        low, high = sorted(np.array(ends).astype(voxels.dtype))  # some files write -2000 as 63536
        padded = (voxels >= low) & (voxels <= high)
        if not padded.any() or padded.all():
            return
        others = voxels[~padded]
        least, most = int(others.min()), int(others.max())
        if max(least - int(low), int(high) - most) > PADDING_GAP * (most - least):
            raise RunError(
                f"{self.name} has padding (PixelPaddingValue {value}) far outside its other voxels' range of "
                f"{least} to {most}: set it to their background first."
            )

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
                    raise RunError(
                        f"{self.name}: a slice's voxels cannot be decoded ({first_line(error)})."
                    ) from error
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
    taken apart; one with an unusable file is one volume with a fault. place: the folder, for errors. ours:
    take results of earlier runs too. Raises RunError for a damaged file.
    """
    pydicom = require_pydicom()
    groups: dict[str, dict[_Key, list[_Group]]] = defaultdict(lambda: defaultdict(list))
    heads: dict[str, Dataset] = {}
    faults: dict[str, tuple[str, Dataset]] = {}
    for path in files:
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            kind = str(dataset.get("SOPClassUID", ""))
            if kind not in (CLASSIC, *ENHANCED) or (not ours and is_ours(dataset)):
                continue
            uid = str(dataset.SeriesInstanceUID)
        except Exception as error:  # a damaged file may raise anything
            raise RunError(f"{path} is a damaged DICOM file ({type(error).__name__}).") from error
        try:
            whole = kind == CLASSIC
            found = [_frame(path, dataset, 0, dataset)] if whole else list(_enhanced(path, dataset))
        except RunError as error:
            faults.setdefault(uid, (str(error), dataset))
        except AttributeError as error:
            faults.setdefault(uid, (f"{path} has no usable {error.name}.", dataset))
        except Exception as error:
            faults.setdefault(uid, (f"{path} is a damaged DICOM file ({type(error).__name__}).", dataset))
        else:
            for exact, near, frame in found:
                heads[frame.instance] = dataset
                alike = groups[uid][exact]
                group = next((group for group in alike if _near(group.near, near)), None)
                if group is None:
                    alike.append(group := _Group(near, []))
                group.frames.append(frame)

    series = []
    for uid, (fault, head) in faults.items():
        groups.pop(uid, None)
        number = _integer(head.get("SeriesNumber"))
        fault = f"Series {number} in {place} cannot be resolved: {fault}"
        series.append(Series(f"Series {number} in {place}", uid, number, 0, (), head, fault))
    for uid, kinds in groups.items():
        found = [(exact, group) for exact, alike in kinds.items() for group in alike]
        found.sort(key=lambda pair: repr((pair[1].near, pair[0])))
        volumes = [volume for _, group in found for volume in _volumes(group.frames)]
        for part, ordered in enumerate(volumes, 1):
            head = heads[ordered[0].instance]
            number = _integer(head.get("SeriesNumber"))
            several = len(volumes) > 1
            name = f"Series {number} in {place}" + (f", volume {part}" if several else "")
            fault = ""
            if len(ordered) >= 2 * len(_places(ordered)):
                fault = f"{name} holds several volumes that cannot be told apart: give one of them."
            series.append(Series(name, uid, number, part if several else 0, tuple(ordered), head, fault))
    return sorted(series, key=lambda s: (s.number, s.uid, s.part))


@dataclass(frozen=True)
class _Group:
    """Frames whose cosines, echo times and b-values are nearly these."""

    near: _Values
    frames: list[Frame]


def _near(one: _Values, other: _Values) -> bool:
    return all(
        a == b
        or (a is not None and b is not None and math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE))
        for a, b in zip(one, other, strict=True)
    )


def _places(frames: list[Frame]) -> list[list[Frame]]:
    """Frames along the normal, those at the same place together."""
    row, column = np.reshape(frames[0].cosines, (2, 3))
    normal = np.cross(row, column)
    along = sorted(((float(np.dot(frame.position, normal)), frame) for frame in frames), key=lambda f: f[0])
    places: list[list[Frame]] = []
    last = -math.inf
    for place, frame in along:
        if place - last > SAME_PLACE:
            places.append([])
        places[-1].append(frame)
        last = place
    return places


def _volumes(frames: list[Frame]) -> list[list[Frame]]:
    """Frames along the normal; those of several volumes apart, by the first of REPEATS, or all, that does it.

    Only a value that gives each volume every place once does; else they stay together, to be refused.
    """
    places = _places(frames)
    ordered = [frame for place in places for frame in place]
    if len(ordered) > len(places):
        for chosen in (*([n] for n in range(len(REPEATS))), range(len(REPEATS))):
            volumes: dict[Any, list[Frame]] = defaultdict(list)
            for frame in ordered:
                volumes[tuple(frame.repeat[n] for n in chosen)].append(frame)
            if all(len(volume) == len(places) == len(_places(volume)) for volume in volumes.values()):
                return [volumes[key] for key in sorted(volumes)]
    return [ordered]


def is_ours(dataset: Dataset) -> bool:
    """Whether a file is the result of an earlier run."""
    equipment = dataset.get("ContributingEquipmentSequence") or ()
    return any(item.get("Manufacturer") == MANUFACTURER for item in equipment)


def _enhanced(path: Path, dataset: Dataset) -> Iterator[tuple[_Key, _Values, Frame]]:
    """The frames of a multi-frame file; see `_frame`."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for number, own in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        at: dict[str, Any] = {}
        for element in (*shared, *own):
            if element.VR == "SQ" and element.value and not element.tag.is_private:
                at |= {item.keyword: item.value for item in element.value[0]}
                at[element.keyword] = element.value
        exact, near, frame = _frame(path, dataset, number, at)
        yield (*exact, str(at.get("StackID", ""))), near, frame


def _frame(path: Path, dataset: Dataset, number: int, at: Any) -> tuple[_Key, _Values, Frame]:
    """What frames of one volume have in common exactly and nearly, and the frame.

    at: attributes of the frame by keyword; of functional groups the items' too.
    """
    _check(path, dataset)
    types = _texts(at.get("FrameType") or dataset.get("ImageType"))
    component = at.get("ComplexImageComponent") or dataset.get("ComplexImageComponent") or ""
    directions = at.get("DiffusionGradientDirectionSequence") or [at]
    repeat = (
        at.get("TriggerTime", at.get("NominalCardiacTriggerDelayTime")),
        at.get("AcquisitionNumber", at.get("FrameAcquisitionNumber")),
        at.get("EchoNumbers"),
        at.get("InversionTime", at.get("InversionTimes")),
        at.get("FlipAngle"),
        directions[0].get("DiffusionGradientOrientation"),
    )
    real = at.get("RealWorldValueMappingSequence") or ()
    window = _floats(at.get("WindowCenter")), _floats(at.get("WindowWidth"))
    row, column = _numbers(at, "PixelSpacing", 2)
    x, y, z = _numbers(at, "ImagePositionPatient", 3)
    frame = Frame(
        path,
        number,
        str(dataset.SOPInstanceUID),
        (x, y, z),
        _numbers(at, "ImageOrientationPatient", 6),
        (row, column),
        _number(at.get("SliceThickness")),
        _number(at.get("RescaleSlope")) or 1.0,
        _number(at.get("RescaleIntercept")) or 0.0,
        tuple(
            value
            for item in real
            for name in ("RealWorldValueSlope", "RealWorldValueIntercept")
            for value in _floats(item.get(name))
        ),
        (
            int(dataset.BitsStored),
            int(dataset.PixelRepresentation),
            str(dataset.get("PhotometricInterpretation", "")),
        ),
        tuple(value.upper() for value in (*types, str(component))),
        window if all(window) else None,
        tuple(map(_floats, repeat)),
    )
    time = _integer(at.get("TemporalPositionIdentifier", at.get("TemporalPositionIndex")))
    echo = _number(at.get("EchoTime", at.get("EffectiveEchoTime")))
    near = *frame.cosines, echo, _number(at.get("DiffusionBValue"))
    return (_shape(dataset), frame.kind, time), near, frame


def _check(path: Path, dataset: Dataset) -> None:
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise RunError(f"{path} has colour voxels: give the series that it was made from.")
    if min(int(dataset.Rows), int(dataset.Columns)) < 1:
        raise RunError(f"{path} has no voxels.")


def _shape(dataset: Dataset) -> tuple[int, int]:
    return int(dataset.Rows), int(dataset.Columns)


def _numbers(at: Any, name: str, count: int) -> tuple[float, ...]:
    """The finite values of an attribute. Raises AttributeError if there are not that many."""
    try:
        numbers = _floats(at.get(name))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise AttributeError(name=name)
    return numbers


def _floats(value: Any) -> tuple[float, ...]:
    if value in (None, ""):
        return ()
    return (float(value),) if np.ndim(value) == 0 else tuple(map(float, value))


def _texts(values: Any) -> tuple[str, ...]:
    return () if values is None else (values,) if isinstance(values, str) else tuple(map(str, values))


def _number(value: Any) -> float | None:
    number = None if value in (None, "") else float(value)
    if number is not None and not np.isfinite(number):
        raise ValueError("not finite")
    return number


def _integer(value: Any) -> int:
    return int(value) if re.fullmatch(r"\s*[+-]?\d+\s*", str(value)) else 0
