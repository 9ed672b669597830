"""An SR volume as one enhanced multi-frame file, if its scan came as one.

Source: DICOM PS3.3, A.36.2 (enhanced MR image), C.7.6.16 (multi-frame functional groups), C.7.6.17
(dimensions), C.8.16 (frame types). What a scan's functional groups say of a frame is kept for the SR frames
that lie nearest to it, but for what places, shows or derives them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from ..system.uid import derived_uid
from .frame import ENHANCED, Dataset, require_pydicom

LIMIT = 2**32 - 2  # bytes of voxels (PS3.5, 7.1.1)
STACK, PLACE, CONTENT = (
    0x00209056,
    0x00209057,
    0x00209111,
)  # Stack ID, In-Stack Position Number, Frame Content
ADDED = {  # what SR slices say at the top that the scan may not
    *("ContributingEquipmentSequence", "ImageComments", "SeriesDescription", "SeriesNumber"),
    *("ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime"),
}
TIMES = (  # of a frame's content that hold for SR frames nearby
    *("FrameReferenceDateTime", "FrameAcquisitionDateTime", "FrameAcquisitionDuration"),
    *("FrameAcquisitionNumber", "TemporalPositionIndex", "CardiacCyclePosition", "RespiratoryCyclePosition"),
)
MEASURED = {  # that images have which are measured, and no derived ones (C.8.13.4, C.8.13.2.1.3)
    *("PulseSequenceName", "MRAcquisitionType", "EchoPulseSequence", "MultipleSpinEcho", "PhaseContrast"),
    *("MultiPlanarExcitation", "TimeOfFlightContrast", "ArterialSpinLabelingContrast", "SaturationRecovery"),
    *("SteadyStatePulseSequence", "EchoPlanarPulseSequence", "SpectrallySelectedSuppression"),
    *("OversamplingPhase", "GeometryOfKSpaceTraversal", "RectilinearPhaseEncodeReordering"),
    *("SegmentedKSpaceTraversal", "CoverageOfKSpace", "NumberOfKSpaceTrajectories"),
    *("BulkMotionCompensationTechnique", "VelocityEncodingAcquisitionSequence"),
}
MADE_HERE = (  # functional groups that are an SR frame's own
    *("PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence", "FrameContentSequence"),
    *("DerivationImageSequence", "FrameVOILUTSequence"),
)


def multi_frame(head: Dataset, slices: Sequence[Dataset], groups: Sequence[Dataset], number: int) -> Dataset:
    """SR slices as one data set, without voxels.

    head: the scan's multi-frame file. slices: classic data sets in the stack's order, without voxels. groups:
    of each, the item of the scan's frame nearest to it in PerFrameFunctionalGroupsSequence. number: of the
    instance in its series.
    """
    pydicom = require_pydicom()
    first = slices[0]
    dataset = pydicom.Dataset()
    for element in first:
        name = element.keyword
        if element.tag.is_private or name in ADDED or (name in head and name not in MEASURED):
            dataset.add(element)
    dataset.SOPClassUID, dataset.SOPInstanceUID = ENHANCED[0], first.SOPInstanceUID
    dataset.InstanceNumber, dataset.NumberOfFrames = number, len(slices)
    dataset.ImageType = kind = _frame_type(head)
    dataset.ContentQualification = "RESEARCH"
    dataset.SourceImageEvidenceSequence = [_evidence(head, slices)]
    organization = pydicom.Dataset()
    organization.DimensionOrganizationUID = derived_uid(f"{first.SOPInstanceUID} dimensions")
    dataset.DimensionOrganizationSequence = [organization]
    dataset.DimensionIndexSequence = []
    for pointer in (STACK, PLACE):
        index = copy.deepcopy(organization)
        index.DimensionIndexPointer, index.FunctionalGroupPointer = pointer, CONTENT
        dataset.DimensionIndexSequence.append(index)
    shared = _kept(head.SharedFunctionalGroupsSequence, kind)
    shared.PixelMeasuresSequence = [_of(first, "PixelSpacing", "SliceThickness", "SpacingBetweenSlices")]
    shared.PlaneOrientationSequence = [_of(first, "ImageOrientationPatient")]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [
        _frame(one, group, place, kind)
        for place, (one, group) in enumerate(zip(slices, groups, strict=True), 1)
    ]
    return dataset


def _frame(one: Dataset, group: Dataset, place: int, kind: list[str]) -> Dataset:
    """The functional groups of the SR frame made from a classic slice."""
    frame = _kept([group], kind)
    content = _of((group.get("FrameContentSequence") or [{}])[0], *TIMES)
    content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", place, [1, place]
    frame.FrameContentSequence = [content]
    frame.PlanePositionSequence = [_of(one, "ImagePositionPatient")]
    frame.FrameVOILUTSequence = [_of(one, "WindowCenter", "WindowWidth")]
    derivation = _of(one, "DerivationDescription", "DerivationCodeSequence", "SourceImageSequence")
    frame.DerivationImageSequence = [derivation]
    return frame


def _kept(items: Sequence[Dataset], kind: list[str]) -> Dataset:
    """A copy of a functional groups' item with public attributes only, without those set here."""
    kept = copy.deepcopy(items[0]) if items else require_pydicom().Dataset()
    kept.remove_private_tags()
    for name in MADE_HERE:
        if name in kept:
            delattr(kept, name)
    for types in kept.get("MRImageFrameTypeSequence") or ():
        types.FrameType = kind
    return kept


def _frame_type(head: Dataset) -> list[str]:
    """The SR frames' FrameType: resampled, with the scan's flavour (third value).

    The second value is PRIMARY in all enhanced MR images (C.8.16.1.2).
    """
    given = [str(value) for value in head.get("ImageType") or ()]
    return ["DERIVED", "PRIMARY", *(given[2:3] or ["OTHER"]), "RESAMPLED"]


def _evidence(head: Dataset, slices: Sequence[Dataset]) -> Dataset:
    """The files that the SR frames were made from, each once."""
    pydicom = require_pydicom()
    found = {
        str(source.ReferencedSOPInstanceUID): source for one in slices for source in one.SourceImageSequence
    }
    series, study = _of(head, "SeriesInstanceUID"), _of(head, "StudyInstanceUID")
    series.ReferencedSOPSequence = pydicom.Sequence(
        [_of(source, "ReferencedSOPClassUID", "ReferencedSOPInstanceUID") for source in found.values()]
    )
    study.ReferencedSeriesSequence = [series]
    return study


def _of(source: Dataset, *names: str) -> Dataset:
    """A data set with the named attributes of another, as far as it has them."""
    made = require_pydicom().Dataset()
    for name in names:
        if name in source:
            setattr(made, name, copy.deepcopy(source[name].value))
    return made
