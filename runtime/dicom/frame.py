"""One DICOM data set as frames: position, kind and patient of each slice.

Source: DICOM PS3.3, C.7.6.2 (image plane), C.7.6.16 (multi-frame functional groups), C.8.3.1 (MR image),
C.8.13.3.1.1 (complex image component), PS3.10, 7.1 (files). pydicom is imported when a file is read.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..errors import DiskError, RunError
from ..system.extras import require

CLASSIC = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED = ("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4")  # and legacy converted
MANUFACTURER = "udean"  # of the contributing equipment in results
MAGIC = 128, b"DICM"  # PS3.10, 7.1
# A data set without that begins with its file meta information or with group 8, little or big endian.
BARE = re.compile(
    rb"(?:\x02\x00[\x00-\x13]\x00|\x08\x00[\x00-\x18]\x00)(?:[A-Z]{2}|..\x00\x00)|\x00\x08\x00[\x00-\x18][A-Z]{2}",
    re.DOTALL,
)
REPEATS = (  # what may tell volumes at the same positions apart; or its like in functional groups
    "TriggerTime",
    "AcquisitionNumber",
    "EchoNumbers",
    "InversionTime",
    "FlipAngle",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "AcquisitionTime",
)
# What every slice of a series has in common, whatever else is true of it: whose it is, of which side, in
# which space, from which device. The name is one of them, compared without case and padding.
IDENTITY = (
    *("PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyDate", "AccessionNumber"),
    *("FrameOfReferenceUID", "PatientPosition", "Laterality", "ImageLaterality", "DeviceSerialNumber"),
)
PHILIPS = "Philips MR Imaging DD 001"
# Where vendors say what ImageType does not: (private creator, group, element): {value: component}.
COMPONENTS: dict[tuple[str, int, int], dict[str, str]] = {
    ("GEMS_PARM_01", 0x0043, 0x2F): {"0": "MAGNITUDE", "1": "PHASE", "2": "REAL", "3": "IMAGINARY"},
    (PHILIPS, 0x2005, 0x11): {
        "M": "MAGNITUDE",
        "P": "PHASE",
        "R": "REAL",
        "I": "IMAGINARY",
    },
}
# And what DiffusionBValue, s/mm², and DiffusionGradientOrientation do not, in one element or three.
SIEMENS, UIH = "SIEMENS MR HEADER", "Image Private Header"
B_VALUES = (
    (SIEMENS, 0x0019, 0x0C),
    ("GEMS_PARM_01", 0x0043, 0x39),
    ("Philips Imaging DD 001", 0x2001, 0x03),
    (UIH, 0x0065, 0x09),
)
GE_BIAS = 10**9  # that GE adds to some b-values
DIRECTIONS = (
    (SIEMENS, 0x0019, (0x0E,)),
    ("GEMS_ACQU_01", 0x0019, (0xBB, 0xBC, 0xBD)),
    (PHILIPS, 0x2005, (0xB0, 0xB1, 0xB2)),
    (UIH, 0x0065, (0x37,)),
)
TILES = (SIEMENS, 0x0019, 0x0A)  # how many slices one image holds
TILED = (UIH, 0x0065, 0x51)  # what is there only if one image holds several
# Philips' stored voxels = value · slope + intercept, of values that are comparable from scan to scan; of a
# multi-frame file in a sequence of each frame.
PHILIPS_FRAME = 0x2005140F
SCALE = ((PHILIPS, 0x2005, 0x0E), (PHILIPS, 0x2005, 0x0D))
LOCATIONS = (  # how many slices a volume has
    ("GEMS_RELA_01", 0x0021, 0x4F),
    ("Philips Imaging DD 001", 0x2001, 0x18),
    (UIH, 0x0065, 0x50),
)
LARGEST = 1 << 26  # voxels of a slice
TIME = re.compile(r"(\d{8})?(\d{6}(?:\.\d+)?)(?:[+-]\d{4})?")  # of a day, with or without its date

Dataset = Any  # pydicom's, which is not imported here
Key: TypeAlias = tuple[Any, ...]
Values: TypeAlias = tuple[float | None, ...]


@dataclass(frozen=True)
class Frame:
    """One slice. number: of the frame in its file, from 0.

    identity: whose it is and in which space; see IDENTITY.
    order: the instance number. turns: how many images a scan has at each place, as far as it says so.
    images, places: how many its acquisition has, and at how many places; 0 if it does not say so.
    position: first voxel's centre, LPS, mm. cosines: of a row's and of a column's direction, six. spacing:
    from row to row and from column to column, mm. between: from a slice's centre to the next one's, mm.
    slope, inter: stored voxels · slope + inter. real: the same to real-world values, if it says so. scale:
    the values of SCALE, as far as they are there. pixels: BitsStored, PixelRepresentation,
    PhotometricInterpretation. kind: image type and complex component.
    window: centre and width, if they are of use. diffusion: b-value, s/mm², or none, and direction, or none.
    repeat: the values of REPEATS, empty if there is none.
    """

    path: Path
    number: int
    instance: str
    identity: tuple[str, ...]
    order: int
    turns: tuple[int, ...]
    images: int
    places: int
    position: tuple[float, float, float]
    cosines: tuple[float, ...]
    spacing: tuple[float, float]
    thickness: float | None
    between: float | None
    slope: float
    inter: float
    real: tuple[float, ...]
    scale: tuple[float, ...]
    pixels: tuple[int, int, str]
    kind: tuple[str, ...]
    window: tuple[tuple[float, ...], tuple[float, ...]] | None
    diffusion: tuple[float | None, tuple[float, ...]]
    repeat: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Found:
    """A frame, and what it shares with others of its volume.

    exact: equal in all of them; near: equal to rounding (cosines, echo time, b-value). time: which of several
    volumes it belongs to, if it says so.
    """

    exact: Key
    near: Values
    time: Key
    frame: Frame


def require_pydicom() -> Any:
    """pydicom; RunError says how to install it."""
    try:
        return require("pydicom", "dicom")
    except RunError:
        raise RunError("DICOM needs pydicom: pip install 'udean[dicom]'") from None


def is_dicom(path: Path) -> bool:
    """Whether a file begins as PS3.10 files do, or as the data sets that some scanners write without that.

    Raises DiskError if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(MAGIC[0] + 4)
    except OSError as error:
        raise DiskError(f"Cannot read {path}: {error.strerror or error}.") from error
    return start[MAGIC[0] :] == MAGIC[1] or bool(BARE.match(start))


def read(path: Path, voxels: bool = True) -> Dataset:
    """A file's data set, with or without preamble. Raises DiskError, and what pydicom raises for damage."""
    pydicom = require_pydicom()
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=not voxels, force=True)
    except OSError as error:
        raise DiskError(f"Cannot read {path}: {error.strerror or error}.") from error
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        kinds = pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian
        syntax = kinds[bool(implicit)] if little else pydicom.uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def is_ours(dataset: Dataset) -> bool:
    """Whether a file is the result of an earlier run."""
    equipment = dataset.get("ContributingEquipmentSequence") or ()
    return any(item.get("Manufacturer") == MANUFACTURER for item in equipment)


def frames(path: Path, dataset: Dataset) -> Iterator[Found]:
    """The frames of a data set. Raises RunError, or AttributeError, KeyError … for what is unusable."""
    if str(dataset.SOPClassUID) == CLASSIC:
        if (count := integer(dataset.get("NumberOfFrames"))) > 1:
            raise RunError(f"{path} has {count} frames and says of one where it lies.")
        yield _frame(path, dataset, 0, dataset, "")
        return
    count, groups = int(dataset.NumberOfFrames), len(dataset.PerFrameFunctionalGroupsSequence)
    if count != groups:
        raise RunError(f"{path} has {count} frames and says of {groups} where they lie.")
    for number in range(count):
        at = functional_groups(dataset, number)
        yield _frame(path, dataset, number, at, str(at.get("StackID", "")))


def functional_groups(dataset: Dataset, number: int) -> dict[Any, Any]:
    """A multi-frame file's attributes of one frame, by keyword; its own take precedence over shared ones.

    Philips' private ones are an item under PHILIPS_FRAME.
    """
    at: dict[Any, Any] = {}
    shared = dataset.get("SharedFunctionalGroupsSequence") or [()]
    for element in (*shared[0], *dataset.PerFrameFunctionalGroupsSequence[number]):
        if element.VR == "SQ" and element.value and not element.tag.is_private:
            at |= {item.keyword: item.value for item in element.value[0] if item.keyword}
            at[element.keyword] = element.value
        elif element.tag == PHILIPS_FRAME and element.VR == "SQ" and element.value:
            at[PHILIPS_FRAME] = element.value[0]
    return at


def _frame(path: Path, dataset: Dataset, number: int, at: Any, stack: str) -> Found:
    """at: attributes of the frame by keyword; of functional groups the items' too."""
    _check(path, dataset)
    types = *texts(at.get("FrameType") or dataset.get("ImageType")), *_marks(dataset, at)
    component = str(at.get("ComplexImageComponent") or dataset.get("ComplexImageComponent") or "")
    diffusion = _diffusion(dataset, at)
    repeat = (
        floats(at.get("TriggerTime", at.get("NominalCardiacTriggerDelayTime"))),
        floats(at.get("AcquisitionNumber", at.get("FrameAcquisitionNumber"))),
        floats(at.get("EchoNumbers")),
        floats(at.get("InversionTime", at.get("InversionTimes"))),
        floats(at.get("FlipAngle")),
        floats(diffusion[0]),
        diffusion[1],
        _moment(at.get("AcquisitionTime") or at.get("FrameAcquisitionDateTime")),
    )
    real = at.get("RealWorldValueMappingSequence") or ()
    window = floats(at.get("WindowCenter")), floats(at.get("WindowWidth"))
    useful = len(window[0]) == len(window[1]) > 0 and min(window[1]) > 0 and np.isfinite(window).all()
    measured = types[:1] == ("ORIGINAL",)  # others may have kept what was true of those
    row, column = _numbers(at, "PixelSpacing", 2)
    x, y, z = _numbers(at, "ImagePositionPatient", 3)
    frame = Frame(
        path,
        number,
        str(dataset.SOPInstanceUID),
        identity(dataset),
        integer(dataset.get("InstanceNumber")),
        tuple(integer(dataset.get(name)) for name in ("NumberOfTemporalPositions", "CardiacNumberOfImages")),
        integer(dataset.get("ImagesInAcquisition")) if measured else 0,
        _locations(dataset) if measured else 0,
        (x, y, z),
        _numbers(at, "ImageOrientationPatient", 6),
        (row, column),
        _number(at.get("SliceThickness")),
        _number(at.get("SpacingBetweenSlices")),
        _number(at.get("RescaleSlope")) or 1.0,
        _number(at.get("RescaleIntercept")) or 0.0,
        tuple(
            value
            for item in real
            for name in ("RealWorldValueSlope", "RealWorldValueIntercept")
            for value in floats(item.get(name))
        ),
        tuple(
            value
            for place in SCALE
            for value in _private_floats(_private(at.get(PHILIPS_FRAME, dataset), *place))[:1]
        ),
        (
            int(dataset.BitsStored),
            int(dataset.PixelRepresentation),
            str(dataset.get("PhotometricInterpretation", "")),
        ),
        tuple(value.upper() for value in (*types, component or _private_component(dataset))),
        window if useful else None,
        diffusion,
        repeat,
    )
    time = integer(at.get("TemporalPositionIdentifier", at.get("TemporalPositionIndex")))
    echo = _number(at.get("EchoTime", at.get("EffectiveEchoTime")))
    near = *frame.cosines, echo, diffusion[0]
    shape = int(dataset.Rows), int(dataset.Columns)
    side = str(at.get("FrameLaterality") or "")
    return Found((frame.identity, shape, frame.kind, stack, side), near, (time,), frame)


def identity(dataset: Dataset) -> tuple[str, ...]:
    """Patient, study and space of an image, so that images of two are never combined."""
    name, *others = (_undecoded(dataset, key) for key in ("PatientName", *IDENTITY))
    return name.rstrip("^ ").upper(), *others


def may_be(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two identities are the same as far as both say them."""
    return len(one) == len(other) and all(a == b or not (a and b) for a, b in zip(one, other, strict=True))


def _undecoded(dataset: Dataset, key: str) -> str:
    """A text's bytes, as they are in the file: to decode them would be to change them, if they are wrong."""
    item = dataset.get_item(key)
    value = b"" if item is None or item.value is None else item.value
    return (value.decode("latin-1") if isinstance(value, bytes) else str(value)).strip(" \0")


def _marks(dataset: Dataset, at: Any) -> Iterator[str]:
    """The image types implied by attributes other than the image type itself."""
    tiles = _private_floats(_private(dataset, *TILES))
    if (tiles and tiles[0] > 1) or _private(dataset, *TILED) is not None:
        yield "MOSAIC"
    technique = str(at.get("VolumeBasedCalculationTechnique") or "")
    if technique not in ("", "NONE", "MIXED"):
        yield technique
    if dataset.get("BurnedInAnnotation") == "YES":
        yield "SCREEN SAVE"


def _diffusion(dataset: Dataset, at: Any) -> tuple[float | None, tuple[float, ...]]:
    """The b-value, s/mm², and the direction; in public or, of a classic file, in private words."""
    b_value = _number(at.get("DiffusionBValue"))
    for place in B_VALUES if b_value is None else ():
        if found := _private_floats(_private(dataset, *place)):
            b_value = found[0] % GE_BIAS
            break
    directions = at.get("DiffusionGradientDirectionSequence") or [at]
    direction = floats(directions[0].get("DiffusionGradientOrientation"))
    for creator, group, offsets in () if direction else DIRECTIONS:
        parts = [_private_floats(_private(dataset, creator, group, offset)) for offset in offsets]
        if all(parts):
            direction = tuple(itertools.chain(*parts))
            break
    return b_value, direction


def _locations(dataset: Dataset) -> int:
    """How many slices a volume has, if a vendor says so."""
    for place in LOCATIONS:
        if found := _private_floats(_private(dataset, *place)):
            return int(found[0])
    return 0


def _moment(value: Any) -> tuple[float, ...]:
    """A time, or date and time, in seconds that increase from day to day; none if it is not one."""
    if not (found := TIME.fullmatch(str(value or "").strip())):
        return ()
    hours, minutes, seconds = int(found[2][:2]), int(found[2][2:4]), float(found[2][4:])
    return (86400.0 * int(found[1] or 0) + 3600 * hours + 60 * minutes + seconds,)


def _private_component(dataset: Dataset) -> str:
    """The complex image component in a vendor's private attribute; "" if there is none."""
    for place, names in COMPONENTS.items():
        value = _private(dataset, *place)
        if value is not None and (found := names.get(_private_text(value))):
            return found
    return ""


def _private(dataset: Dataset, creator: str, group: int, offset: int) -> Any:
    """The value of a vendor's element, even if its block's name was lost; None if there is none."""
    maker = str(dataset.get("Manufacturer") or "").upper()
    for block in range(0x10, 0x100):
        said = dataset.get((group, block))
        stripped = said is None and block == 0x10 and maker[:2] == creator[:2].upper()
        if (said is not None and str(said.value).strip() == creator) or stripped:
            element = dataset.get((group, block << 8 | offset))
            if element is not None:
                return element.value
        elif said is None:
            break
    return None


def _private_floats(value: Any) -> tuple[float, ...]:
    """The finite numbers of a private value, even if its type was lost in transit (UN)."""
    try:
        if isinstance(value, bytes):
            try:
                numbers = tuple(map(float, value.decode("ascii").strip(" \0").split("\\")))
            except ValueError:
                numbers = tuple(map(float, np.frombuffer(value, "<f4" if len(value) == 4 else "<f8")))
        else:
            numbers = floats(value)
    except (TypeError, ValueError):
        return ()
    return numbers if np.isfinite(numbers).all() else ()


def _private_text(value: Any) -> str:
    """A private value as text, even if its type was lost in transit (UN)."""
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            if (text := value.decode("ascii").strip(" \0")).isprintable() and text:
                return text
        return str(int.from_bytes(value[:2], "little"))
    if isinstance(value, str):
        return value.strip()
    return str(value if np.ndim(value) == 0 else next(iter(value), ""))


def _check(path: Path, dataset: Dataset) -> None:
    colours = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
    if integer(dataset.get("SamplesPerPixel") or 1) != 1 or not colours.startswith("MONOCHROME"):
        raise RunError(f"{path} has colour voxels: give the series that it was made from.")
    if integer(dataset.get("HighBit", dataset.BitsStored - 1)) != dataset.BitsStored - 1:
        raise RunError(f"{path} has voxels that do not begin at the lowest bit (HighBit {dataset.HighBit}).")
    if dataset.get("ModalityLUTSequence"):
        raise RunError(f"{path} has voxels that a table (ModalityLUTSequence) makes intensities of.")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if min(rows, columns) < 1:
        raise RunError(f"{path} has no voxels.")
    if rows * columns > LARGEST:  # which would be made room for, whatever a few compressed bytes hold
        raise RunError(f"{path} has {rows} x {columns} voxels, more than the {LARGEST} of any MR slice.")


def _numbers(at: Any, name: str, count: int) -> tuple[float, ...]:
    """The finite values of an attribute. Raises AttributeError if there are not that many."""
    try:
        numbers = floats(at.get(name))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise AttributeError(name=name)
    return numbers


def floats(value: Any) -> tuple[float, ...]:
    """The values of an attribute; none if it is empty."""
    if value in (None, ""):
        return ()
    return (float(value),) if np.ndim(value) == 0 else tuple(map(float, value))


def texts(values: Any) -> tuple[str, ...]:
    """The texts of an attribute; none if it is missing."""
    return () if values is None else (values,) if isinstance(values, str) else tuple(map(str, values))


def _number(value: Any) -> float | None:
    number = None if value in (None, "") else float(value)
    if number is not None and not np.isfinite(number):
        raise ValueError("not finite")
    return number


def integer(value: Any) -> int:
    """A whole number; 0 if there is none."""
    return int(value) if re.fullmatch(r"\s*[+-]?\d+\s*", str(value)) else 0
