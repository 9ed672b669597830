"""SR volumes as derived DICOM series: same patient, study and frame of reference, all else told apart.

Source: DICOM PS3.3, C.7.6.1.1.2 (image type), C.12.1 (SOP common: contributing equipment), C.7.6.1.1.4
(source images), PS3.5, B.2 (UIDs derived from a UUID). A series from an enhanced file becomes a classic
one. Private attributes are left out: they would describe the scan's geometry and not this one's.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ..errors import RunError
from ..models.card import ModelCard
from ..scans.geometry import fine_affine
from .series import CLASSIC, LPS_TO_RAS, MANUFACTURER, Dataset, Series, is_ours, require_pydicom

NUMBER_STEP = 1000  # the SR series of series 3 is 1003
NEIGHBOURS = 1  # LR slices on each side of the nearest that an SR slice is derived from: the slab's
DROPPED = (
    "PixelData",
    "IconImageSequence",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
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


def write_derived(
    series: Series, header: Any, voxels: NDArray[Any], card: ModelCard, model: str, folder: Path
) -> list[Path]:
    """Write an SR volume as one classic MR file a slice; the folder appears when all are there.

    header: NIfTI, of the SR volume. voxels: integers as stored, (i, j, k). model: the model file's SHA-256.
    The new UIDs follow from it, the sources' and the result itself: the same again is the same series, and
    nothing else is. Raises RunError if the folder cannot be written, or holds what is not udean's.
    """
    pydicom = require_pydicom()
    coarse = series.head.Columns, series.head.Rows, len(series.frames)
    i, j, k = (fine // size for fine, size in zip(header.get_data_shape(), coarse, strict=True))
    affine = LPS_TO_RAS @ fine_affine(series.affine(), (i, j, k), card.grid)  # the header's are float32
    row, column = series.frames[0].spacing
    sizes = np.array(
        [column / i, row / j, float(np.linalg.norm(affine[:3, 2]))]
    )  # cosines are rounded, these not
    normal = np.cross(affine[:3, 0], affine[:3, 1]) / (sizes[0] * sizes[1])
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        for left in folder.parent.glob(f".{folder.name}.*.part"):  # by a run that was killed
            shutil.rmtree(left)
        partial.mkdir(parents=True)
        template = _template(series, card, sizes, voxels)
        uid = _uid_root(series, affine, voxels, model)
        template.SeriesInstanceUID = _uid(uid)
        for number in range(voxels.shape[2]):
            dataset = copy.deepcopy(template)
            dataset.SOPInstanceUID = _uid(f"{uid} {number}")
            dataset.InstanceNumber = number + 1
            position = affine[:3] @ [0, 0, number, 1]
            dataset.ImagePositionPatient = [_decimal(v) for v in position]
            dataset.SliceLocation = _decimal(position @ normal)
            dataset.SourceImageSequence = _sources(series, number // k)
            if window := series.frames[number // k].window:
                dataset.WindowCenter, dataset.WindowWidth = ([_decimal(v) for v in ends] for ends in window)
            plane = np.ascontiguousarray(voxels[:, :, number].T)
            dataset.add_new("PixelData", "OB" if plane.itemsize == 1 else "OW", plane.tobytes())
            meta = pydicom.dataset.FileMetaDataset()
            meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            meta.MediaStorageSOPClassUID = CLASSIC
            meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.file_meta = meta
            with open(partial / f"{number + 1:05}.dcm", "wb") as file:
                dataset.save_as(file, enforce_file_format=True)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            _check_ours(folder)
            shutil.rmtree(folder)
        os.replace(partial, folder)
    except OSError as error:
        raise RunError(f"Cannot write {folder}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(folder.iterdir())


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
        raise RunError(f"{folder} is no folder of udean's results: choose another with -o.") from error


def _uid_root(series: Series, affine: NDArray[np.float64], voxels: NDArray[Any], model: str) -> str:
    """A text that two results have in common only if they are the same image of the same slices."""
    digest = hashlib.sha256(np.ascontiguousarray(voxels.T).data)
    digest.update(repr((affine.round(6).tolist(), series.frames[0].slope, series.frames[0].inter)).encode())
    for frame in series.frames:
        digest.update(f" {frame.instance} {frame.number}".encode())
    return (
        f"{series.uid} {series.part} {model} {__version__} {voxels.shape} {voxels.dtype} {digest.hexdigest()}"
    )


def _template(series: Series, card: ModelCard, sizes: NDArray[np.float64], voxels: NDArray[Any]) -> Dataset:
    """All that the SR slices have in common."""
    pydicom = require_pydicom()
    dataset = copy.deepcopy(series.head)
    dataset.remove_private_tags()
    for name in DROPPED:
        if name in dataset:
            delattr(dataset, name)
    for element in [e for e in dataset if 0x5000 <= e.tag.group < 0x5100 or 0x6000 <= e.tag.group < 0x6100]:
        del dataset[element.tag]  # curves and overlays, which lie on the LR grid
    for name, value in REQUIRED.items():
        if name not in dataset:
            setattr(dataset, name, value)

    now = datetime.datetime.now()
    given = [str(v) for v in dataset.get("ImageType", ())] if not series.enhanced else []
    dataset.SOPClassUID = CLASSIC
    dataset.Modality = "MR"
    dataset.ImageType = ["DERIVED", "SECONDARY", *(given[2:] or ["OTHER"])]
    dataset.SeriesNumber = NUMBER_STEP + max(series.number, 0) + NUMBER_STEP * max(series.part - 1, 0)
    dataset.SeriesDescription = f"{str(dataset.get('SeriesDescription', ''))[:54]} UDEAN SR".strip()
    dataset.DerivationDescription = (
        f"Super-resolution {'x'.join(map(str, card.scale))} by udean {__version__}, model {card.name} "
        f"({card.checkpoint[:16] or 'no checkpoint'}), {card.intended_use}"
    )[:1024]
    dataset.DerivationCodeSequence = [_code("113085", "Spatial resampling")]
    dataset.ImageComments = f"Super-resolution by udean, {card.intended_use}"
    dataset.InstanceCreationDate = dataset.ContentDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.ContentTime = now.strftime("%H%M%S")
    equipment = pydicom.Dataset()
    equipment.PurposeOfReferenceCodeSequence = [_code("109103", "Modifying Equipment")]
    equipment.Manufacturer = MANUFACTURER
    equipment.ManufacturerModelName = card.name[:64]
    equipment.SoftwareVersions = __version__
    equipment.ContributionDateTime = now.strftime("%Y%m%d%H%M%S")
    equipment.ContributionDescription = f"Super-resolution, {card.intended_use}"
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
    if "WindowCenter" not in dataset or "WindowWidth" not in dataset:
        low, high = float(voxels.min()) * slope + inter, float(voxels.max()) * slope + inter
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


def _uid(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()[:16]
    return f"2.25.{uuid.UUID(bytes=digest, version=5).int}"


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5, 6.2)."""
    return require_pydicom().valuerep.format_number_as_ds(float(value))
