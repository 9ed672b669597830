"""SR volumes as derived DICOM series: same patient, study and frame of reference, all else distinct.

Source: DICOM PS3.3, C.7.6.1.1.2 (image type), C.12.1 (SOP common: contributing equipment), C.7.6.1.1.4
(source images), PS3.5, B.2 (UIDs derived from a UUID). A series from an enhanced file becomes a classic one,
or on request an enhanced one (`multiframe`). Private attributes are left out: they would describe the scan's
geometry, not the result's. Philips' intensity scale stays, because it holds for the result, too.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ..errors import RunError
from ..models.card import ModelCard
from ..scan.geometry import LPS_TO_RAS, fine_affine, flips_between
from ..system.files import atomic_folder
from ..system.uid import derived_uid
from .frame import (
    CLASSIC,
    ENHANCED,
    MANUFACTURER,
    PHILIPS,
    SCALE,
    Dataset,
    Frame,
    floats,
    functional_groups,
    is_ours,
    read,
    require_pydicom,
)
from .multiframe import LIMIT, multi_frame
from .series import Series

NEIGHBOURS = 1  # LR slices on each side of the nearest that an SR slice is derived from: the slab's
DROPPED = (
    "PixelData",
    "IconImageSequence",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries",
    "SmallestImagePixelValueInPlane",
    "LargestImagePixelValueInPlane",
    "PixelAspectRatio",
    "DigitalSignaturesSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "NumberOfFrames",
    "DimensionIndexSequence",
    "DimensionOrganizationSequence",
    "DimensionOrganizationType",
    "ConcatenationUID",
    "InConcatenationNumber",
    "ConcatenationFrameOffsetNumber",
    "SOPInstanceUIDOfConcatenationSource",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "ImagesInAcquisition",
    "InStackPositionNumber",
    "NumberOfSlices",
    "ImagePosition",  # of the standard's predecessor, as the next two
    "ImageOrientation",
    "Location",
    "WindowCenterWidthExplanation",
    "InstanceCreatorUID",
)
REQUIRED = {  # type 1 and 2 attributes of the MR image that an enhanced file keeps elsewhere, or not at all
    "ScanningSequence": "RM",
    "SequenceVariant": "NONE",
    "ScanOptions": "",
    "MRAcquisitionType": "",
    "RepetitionTime": None,
    "EchoTime": None,
    "EchoTrainLength": None,
    "PatientName": "",
    "PatientID": "",
    "PatientBirthDate": "",
    "PatientSex": "",
    "StudyDate": "",
    "StudyTime": "",
    "StudyID": "",
    "AccessionNumber": "",
    "ReferringPhysicianName": "",
    "PositionReferenceIndicator": "",
}
RENAMED = {  # functional groups' attributes and what they are called in a classic file, where they differ
    "EffectiveEchoTime": "EchoTime",
    "InversionTimes": "InversionTime",
    "FrameAcquisitionNumber": "AcquisitionNumber",
    "NominalCardiacTriggerDelayTime": "TriggerTime",
    "TemporalPositionIndex": "TemporalPositionIdentifier",
    "TransmitterFrequency": "ImagingFrequency",
    "ResonantNucleus": "ImagedNucleus",
    "PulseSequenceName": "SequenceName",
    "SpecificAbsorptionRateValue": "SAR",
}
KEPT = (  # of the same name in both
    *("EchoTime", "RepetitionTime", "FlipAngle", "EchoTrainLength", "NumberOfAverages", "PixelBandwidth"),
    *("PercentSampling", "PercentPhaseFieldOfView", "ReceiveCoilName", "TransmitCoilName"),
    *("DiffusionBValue", "DiffusionGradientOrientation", "TriggerTime", "InversionTime", "RescaleType"),
    *("AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "MagneticFieldStrength"),
)
TEXTS = {"LO", "LT", "PN", "SH", "ST", "UC", "UT"}  # that hang on a character set
DIRECTIONS = {"ROW": "ROW", "COLUMN": "COL"}  # of phase encoding
PULSES = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["SE", "GR"]}  # of an echo, as ScanningSequence


def write_derived(
    series: Series,
    header: Any,
    voxels: NDArray[Any],
    card: ModelCard,
    model: str,
    folder: Path,
    note: str = "",
    enhanced: bool = False,
) -> list[Path]:
    """Write an SR volume as one classic MR file a slice; the folder appears when all are there.

    header: NIfTI, of the SR volume. voxels: integers as stored, (i, j, k). model: the model file's SHA-256.
    note: a sentence that the images must say of themselves, as they do of what the series may lack.
    enhanced: one multi-frame file instead, if the scan is an enhanced one.
    The new UIDs follow from it, the sources' and the result itself: the same again is the same series, and
    nothing else is. Raises RunError if the folder holds what is not udean's, DiskError if it cannot be
    written.
    """
    affine, sizes, nearest = _place(series, header, card)
    before = voxels.shape[2] * series.result.before // len(series.frames)
    normal = np.cross(affine[:3, 0], affine[:3, 1]) / (sizes[0] * sizes[1])
    _check_ours(folder)
    enhanced = enhanced and str(series.head.SOPClassUID) == ENHANCED[0]
    if enhanced and voxels.nbytes > LIMIT:
        raise RunError(
            f"{series.name}: one multi-frame file holds less than 4 GiB of voxels: --format dicom."
        )
    uid = _uid_root(series, affine, voxels, model)
    series_uid = derived_uid(_series_root(series, voxels, model) or uid)
    files, now = _Files(series), datetime.datetime.now()
    note = " ".join(filter(None, (note, series.doubt)))
    templates: dict[Path, Dataset] = {}
    extent = float(voxels.min()), float(voxels.max())  # of so many voxels once, and not for each source
    groups, slices = [], []
    with atomic_folder(folder) as partial:
        for number in range(voxels.shape[2]):
            frame = series.frames[nearest[number]]
            if frame.path not in templates:
                templates[frame.path] = _template(
                    series, files.of(frame), card, sizes, voxels, extent, note, now
                )
            dataset = copy.deepcopy(templates[frame.path])
            dataset.SeriesInstanceUID = series_uid
            dataset.SOPInstanceUID = derived_uid(f"{uid} {number}")
            dataset.InstanceNumber = before + number + 1
            position = affine[:3] @ [0, 0, number, 1]
            dataset.ImagePositionPatient = [_decimal(v) for v in position]
            dataset.SliceLocation = _decimal(position @ normal)
            dataset.SourceImageSequence = _sources(series, nearest[number])
            if series.enhanced:
                _flatten(dataset, functional_groups(files.of(frame), frame.number))
            _say_diffusion(dataset, frame)
            if window := frame.window:
                dataset.WindowCenter, dataset.WindowWidth = ([_decimal(v) for v in ends] for ends in window)
            if enhanced:
                slices.append(dataset)
                groups.append(files.of(frame).PerFrameFunctionalGroupsSequence[frame.number])
            else:
                _write(partial / f"{number + 1:05}.dcm", dataset, voxels[:, :, number])
        if enhanced:
            whole = multi_frame(series.head, slices, groups, max(series.part, 1))
            _write(partial / f"{1:05}.dcm", whole, voxels)
    return sorted(folder.iterdir())


def _write(path: Path, dataset: Dataset, voxels: NDArray[Any]) -> None:
    """Write a data set with its voxels, (i, j) or (i, j, k) of a multi-frame one, to the disk."""
    pydicom = require_pydicom()
    pixels = np.ascontiguousarray(voxels.T)
    if pixels.nbytes % 2:
        pixels = np.append(pixels, np.zeros(1, pixels.dtype))
    dataset.add_new("PixelData", "OB" if pixels.itemsize == 1 else "OW", pixels.tobytes())
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta = meta
    with open(path, "wb") as file:
        dataset.save_as(file, enforce_file_format=True)
        file.flush()
        os.fsync(file.fileno())


class _Files:
    """The heads of a series' files."""

    def __init__(self, series: Series) -> None:
        self._heads = {series.frames[0].path: series.head}

    def of(self, frame: Frame) -> Dataset:
        """The data set that a frame lies in, without voxels."""
        if frame.path not in self._heads:
            self._heads[frame.path] = read(frame.path, voxels=False)
        return self._heads[frame.path]


def _place(
    series: Series, header: Any, card: ModelCard
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]]:
    """The SR volume's affine from voxels to LPS in mm (4, 4), its voxel sizes along (i, j, k), and for each
    of its slices the number of the nearest LR slice.

    A header holds float32 and the slices hold decimals: if its grid is that of whole factors, it is computed
    from them.
    """
    coarse = series.head.Columns, series.head.Rows, len(series.frames)
    shape, found, measured = header.get_data_shape(), header.get_best_affine(), series.affine()
    if not any(fine % size for fine, size in zip(shape, coarse, strict=True)):
        i, j, k = (fine // size for fine, size in zip(shape, coarse, strict=True))
        exact = fine_affine(measured, (i, j, k), card.grid, flips_between(measured, found, (i, j, k)))
        if np.allclose(exact, found, atol=1e-3):
            affine = LPS_TO_RAS @ exact
            row, column = series.frames[0].spacing  # cosines are rounded, these not
            sizes = np.array([column / i, row / j, float(np.linalg.norm(affine[:3, 2]))])
            return affine, sizes, [number // k for number in range(shape[2])]
    slices = np.linalg.inv(measured) @ found
    nearest = np.rint(slices[2, 2] * np.arange(shape[2]) + slices[2, 3]).clip(0, coarse[2] - 1)
    sizes = np.linalg.norm(found[:3, :3], axis=0).round(5)
    return LPS_TO_RAS @ found, sizes, nearest.astype(int).tolist()


def _check_ours(folder: Path) -> None:
    """Raise RunError if a folder that is to be replaced holds anything but slices that udean wrote."""
    pydicom = require_pydicom()
    try:
        for path in folder.iterdir() if os.path.lexists(folder) else ():
            if not re.fullmatch(r"\d{5,}\.dcm", path.name) or not is_ours(
                pydicom.dcmread(path, stop_before_pixels=True)
            ):
                raise RunError(
                    f"{folder} holds files that are not udean's ({path.name}): choose another with -o."
                )
    except (OSError, pydicom.errors.InvalidDicomError) as error:
        raise RunError(f"{folder} is not a folder of udean's results: choose another with -o.") from error


def _uid_root(series: Series, affine: NDArray[np.float64], voxels: NDArray[Any], model: str) -> str:
    """A text that two results have in common only if they are the same image of the same slices."""
    digest = hashlib.sha256(np.ascontiguousarray(voxels.T).data)
    digest.update(repr((affine.round(6).tolist(), series.frames[0].slope, series.frames[0].inter)).encode())
    for frame in series.frames:
        digest.update(f" {frame.identity} {frame.instance} {frame.number}".encode())
    return (
        f"{series.uid} {series.part} {model} {__version__} {voxels.shape} {voxels.dtype} {digest.hexdigest()}"
    )


def _series_root(series: Series, voxels: NDArray[Any], model: str) -> str:
    """A text for the series of several volumes, "" for that of one, which its own voxels tell apart."""
    if not series.result.sources:
        return ""
    kind = f"{voxels.shape[:2]} {voxels.dtype} {series.frames[0].identity} {series.frames[0].kind}"
    return f"{series.uid} {series.result.sources} {model} {__version__} {kind}"


def _public(head: Dataset) -> Dataset:
    """A data set's public elements but those on the LR grid, to be written as little endian.

    Texts keep their bytes, whatever they are in the character set that they claim.
    """
    pydicom = require_pydicom()
    dataset = pydicom.Dataset()
    implicit, little = head.original_encoding
    dataset.set_original_encoding(implicit, True, head.original_character_set)
    for tag in head.keys():  # noqa: SIM118  # iterating would decode
        curve = 0x5000 <= tag.group < 0x5100 or 0x6000 <= tag.group < 0x6100  # and overlays
        if tag.is_private or curve or pydicom.datadict.keyword_for_tag(tag) in DROPPED:
            continue
        raw = head.get_item(tag)
        kind = pydicom.datadict.dictionary_VR(tag) if pydicom.datadict.dictionary_has_tag(tag) else ""
        if raw.is_raw and kind in TEXTS and raw.value is not None:
            dataset[tag] = raw._replace(VR=kind, is_implicit_VR=False, is_little_endian=True)
            continue
        element = copy.deepcopy(head[tag])
        if not little and element.VR == "OW" and isinstance(element.value, bytes):
            element.value = np.frombuffer(element.value, ">u2").astype("<u2").tobytes()
        items: Any = element.value if element.VR == "SQ" else ()
        for item in items or ():
            item.remove_private_tags()
        dataset.add(element)
    return dataset


def _say_diffusion(dataset: Dataset, frame: Frame) -> None:
    """Copy b-value and direction from a vendor's private elements to the standard ones.

    Zeros are not copied: some vendors write them in every image, of diffusion or not.
    """
    b_value, direction = frame.diffusion
    if b_value and "DiffusionBValue" not in dataset:
        dataset.DiffusionBValue = b_value
    if len(direction) == 3 and any(direction) and "DiffusionGradientOrientation" not in dataset:
        dataset.DiffusionGradientOrientation = list(direction)


def _flatten(dataset: Dataset, at: dict[Any, Any]) -> None:
    """Set a classic file's attributes from a frame's functional groups."""
    for name in (*RENAMED, *KEPT):
        if (values := _values(at.get(name))) != ():
            target = RENAMED.get(name, name)
            if target == "InversionTime" and at.get("InversionRecovery") == "NO":
                continue
            single = target != "DiffusionGradientOrientation"
            setattr(dataset, target, values[0] if single else list(values))
    if mapping := at.get("RealWorldValueMappingSequence"):
        dataset.RealWorldValueMappingSequence = copy.deepcopy(mapping)
        for item in dataset.RealWorldValueMappingSequence:
            item.remove_private_tags()
    for directions in at.get("DiffusionGradientDirectionSequence", ()):
        if oriented := floats(directions.get("DiffusionGradientOrientation")):
            dataset.DiffusionGradientOrientation = list(oriented)
    if direction := DIRECTIONS.get(str(at.get("InPlanePhaseEncodingDirection", ""))):
        dataset.InPlanePhaseEncodingDirection = direction
    if acquired := str(at.get("FrameAcquisitionDateTime") or ""):
        dataset.AcquisitionDate, dataset.AcquisitionTime = (
            acquired[:8],
            acquired[8:].split("+")[0].split("-")[0],
        )
    pulses = PULSES.get(str(dataset.get("EchoPulseSequence", "")))
    if pulses:
        dataset.ScanningSequence = [*pulses, *(["IR"] if at.get("InversionRecovery") == "YES" else [])]


def _values(value: Any) -> tuple[Any, ...]:
    """An attribute's values; none if it is empty."""
    if value is None or value == "":
        return ()
    return (value,) if isinstance(value, str) or np.ndim(value) == 0 else tuple(value)


def _joined(given: Any, made: str, limit: int) -> str:
    """A text with ours after it; what is too long of the other's goes."""
    kept = str(given or "").strip()[: limit - len(made) - 2]
    return f"{kept}; {made}" if kept else made[:limit]


def _quality(card: ModelCard) -> str:
    """The model's measured quality, as text that a program can parse."""
    return "; ".join(f"{name}={value:g}" for name, value in sorted(card.quality.items()))


def _template(
    series: Series,
    head: Dataset,
    card: ModelCard,
    sizes: NDArray[np.float64],
    voxels: NDArray[Any],
    extent: tuple[float, float],
    note: str,
    now: datetime.datetime,
) -> Dataset:
    """All that the SR slices have in common that lie nearest to frames of one file. extent: least and largest
    voxel."""
    pydicom = require_pydicom()
    dataset = _public(head)
    for name, value in REQUIRED.items():
        if name not in dataset:
            setattr(dataset, name, value)

    given = [str(v) for v in dataset.get("ImageType", ())] if not series.enhanced else []
    dataset.SOPClassUID = CLASSIC
    dataset.Modality = "MR"
    dataset.ImageType = ["DERIVED", "SECONDARY", *(given[2:] or ["OTHER"])]
    dataset.SeriesNumber = series.result.number
    dataset.SeriesDescription = f"{str(dataset.get('SeriesDescription', ''))[:54]} UDEAN SR".strip()
    size = " x ".join(f"{v:.4g}" for v in (sizes[1], sizes[0], sizes[2]))
    derivation = (
        f"Super-resolution to {size} mm by udean {__version__}, model {card.name} "
        f"({card.checkpoint[:16] or 'no checkpoint'}), {card.intended_use}"
    )[:1024]
    dataset.DerivationDescription = _joined(dataset.get("DerivationDescription"), derivation, 1024)
    dataset.DerivationCodeSequence = [
        *dataset.get("DerivationCodeSequence", ()),
        _code("113085", "Spatial resampling"),
    ]
    comment = f"Super-resolution by udean, {card.intended_use}" + (f". {note}" if note else "")
    dataset.ImageComments = _joined(dataset.get("ImageComments"), comment, 10240)
    dataset.InstanceCreationDate = dataset.ContentDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.ContentTime = now.strftime("%H%M%S")
    equipment = pydicom.Dataset()
    equipment.PurposeOfReferenceCodeSequence = [_code("109103", "Modifying Equipment")]
    equipment.Manufacturer = MANUFACTURER
    equipment.ManufacturerModelName = card.name[:64]
    equipment.SoftwareVersions = __version__
    equipment.ContributionDateTime = now.strftime("%Y%m%d%H%M%S")
    measured = f". Measured of the model: {_quality(card)}" if card.quality else ""
    equipment.ContributionDescription = f"Super-resolution, {card.intended_use}{measured}"[:1024]
    dataset.ContributingEquipmentSequence = [*dataset.get("ContributingEquipmentSequence", ()), equipment]

    dataset.Rows, dataset.Columns = voxels.shape[1], voxels.shape[0]
    dataset.PixelSpacing = [_decimal(sizes[1]), _decimal(sizes[0])]
    dataset.SliceThickness = dataset.SpacingBetweenSlices = _decimal(sizes[2])
    dataset.ImageOrientationPatient = [_decimal(v) for v in series.frames[0].cosines]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = dataset.get("PhotometricInterpretation", "MONOCHROME2")
    bits = 8 * voxels.dtype.itemsize
    dataset.BitsStored = min(int(dataset.get("BitsStored", bits)), bits)
    dataset.BitsAllocated, dataset.HighBit = bits, dataset.BitsStored - 1
    dataset.PixelRepresentation = int(voxels.dtype.kind == "i")
    slope, inter = series.frames[0].slope, series.frames[0].inter
    if (slope, inter) != (1.0, 0.0):
        dataset.RescaleSlope, dataset.RescaleIntercept = _decimal(slope), _decimal(inter)
        dataset.RescaleType = dataset.get("RescaleType", "US")
    if series.frames[0].scale:
        block = dataset.private_block(SCALE[0][1], PHILIPS, create=True)
        for (_, _, element), value in zip(SCALE, series.frames[0].scale, strict=False):
            block.add_new(element, "FL", value)
    low, high = (end * slope + inter for end in extent)
    dataset.WindowCenter, dataset.WindowWidth = _decimal((low + high) / 2), _decimal(max(high - low, 1))
    return dataset


def _sources(series: Series, nearest: int) -> list[Dataset]:
    """References to the LR slices that an SR slice was made from."""
    pydicom = require_pydicom()
    references = []
    for frame in series.frames[max(nearest - NEIGHBOURS, 0) : nearest + NEIGHBOURS + 1]:
        reference = pydicom.Dataset()
        reference.ReferencedSOPClassUID = series.head.SOPClassUID
        reference.ReferencedSOPInstanceUID = frame.instance
        if series.enhanced:
            reference.ReferencedFrameNumber = frame.number + 1
        reference.PurposeOfReferenceCodeSequence = [
            _code("121322", "Source image for image processing operation")
        ]
        references.append(reference)
    return references


def _code(value: str, meaning: str) -> Dataset:
    code = require_pydicom().Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5, 6.2)."""
    return require_pydicom().valuerep.format_number_as_ds(float(value))
