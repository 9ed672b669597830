"""DICOM in and out: series made slice by slice, phantoms whose place is known, pydicom's own files."""

import shutil
import subprocess
import warnings

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from udean.runtime import RunError, SuperResolver
from udean.runtime.dicom.derived import write_derived
from udean.runtime.dicom.frame import CLASSIC, ENHANCED, is_dicom
from udean.runtime.dicom.series import find_series
from udean.runtime.errors import DiskError

from ...support.fakes import FakeEngine, card, interpolation, nearest
from ..scan.test_orientation import in_common

CARD = card((2, 2, 2), 3, (16, 16))
SLOPE = np.array([3.0, -7.0, 9.0])  # of the phantom, per mm


def rotation(seed=3):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return np.array([q[0], q[1], np.cross(q[0], q[1])])


def places(origin, frame, spacing, thickness, shape):
    """Positions (slices, rows, columns, 3), LPS."""
    k, r, c = (n[..., None] for n in np.meshgrid(*map(np.arange, shape), indexing="ij"))
    return origin + c * frame[0] * spacing[1] + r * frame[1] * spacing[0] + k * frame[2] * thickness


def phantom(where, slope=1.0, inter=0.0):
    return np.round((where @ SLOPE + 2000 - inter) / slope).astype(np.uint16)


def save(path, dataset, kind=CLASSIC):
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = kind
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.save_as(path, enforce_file_format=True)
    return path


def common(pixels, series="1.2.3", number=3):
    dataset = Dataset()
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Roe^Jane", "77", "MR"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SeriesNumber = "1.2", series, number
    dataset.FrameOfReferenceUID, dataset.Manufacturer = "1.2.9", "someone"
    dataset.SeriesDescription = "t1"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = pixels.tobytes()
    return dataset


def classic(folder, shape=(6, 20, 18), frame=None, spacing=(1.2, 1.0), thickness=3.0, scale=None, **fields):
    """Slices in files whose names and instance numbers say nothing about their order."""
    folder.mkdir(exist_ok=True, parents=True)
    frame = rotation() if frame is None else frame
    where = places(np.array([11.0, -7.0, 23.0]), frame, spacing, thickness, shape)
    names = np.random.default_rng(1).permutation(1000)[: shape[0]]
    files = []
    for n in range(shape[0]):
        dataset = common(phantom(where[n], *(scale or (1.0, 0.0))))
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
        dataset.ScanningSequence, dataset.SequenceVariant = "GR", "SP"
        dataset.ImagePositionPatient = [f"{v:.8f}"[:16] for v in where[n, 0, 0]]
        dataset.ImageOrientationPatient = [f"{v:.10f}" for v in frame[:2].ravel()]
        dataset.PixelSpacing, dataset.SliceThickness = list(spacing), thickness
        dataset.InstanceNumber = int(names[n])
        if scale:
            dataset.RescaleSlope, dataset.RescaleIntercept = scale
        dataset.add_new((0x0019, 0x0010), "LO", "VENDOR")
        dataset.add_new((0x0019, 0x1010), "LO", "secret geometry")
        for name, value in fields.items():
            setattr(dataset, name, value)
        files.append(save(folder / f"{names[n]:04}", dataset))
    return files


def enhanced(path, shape=(6, 20, 18), spacing=(1.2, 1.0), thickness=3.0, echoes=1):
    """One file of frames in an order that says nothing."""
    frame = rotation(4)
    where = places(np.array([1.0, 2.0, 3.0]), frame, spacing, thickness, shape)
    order = np.random.default_rng(2).permutation(shape[0] * echoes)
    dataset = common(
        np.stack([phantom(where[n % shape[0]]) + n // shape[0] for n in order]).astype(np.uint16)
    )
    dataset.NumberOfFrames = len(order)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(spacing), thickness
    orientation.ImageOrientationPatient = [f"{v:.10f}" for v in frame[:2].ravel()]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for n in order:
        group, position, echo = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [f"{v:.8f}"[:16] for v in where[n % shape[0], 0, 0]]
        echo.EffectiveEchoTime = float(10 + n // shape[0])
        group.PlanePositionSequence, group.MREchoSequence = [position], [echo]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return save(path, dataset, ENHANCED[0])


def restored(series, folder, network=None, enhanced=False):
    """The SR series' data sets, read strictly."""
    resolve = SuperResolver(FakeEngine(network or interpolation((2, 2, 2), "fft"), CARD), crop=False)
    header, sr = resolve.scan(series.scan())
    files = write_derived(series, header, sr, CARD, "f" * 64, folder, enhanced=enhanced)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets = [pydicom.dcmread(file) for file in files]
        for dataset in datasets:
            list(dataset.iterall())
    return datasets


def check_place(datasets, slope=1.0, inter=0.0):
    """Every SR slice shows the phantom where its header says that it lies."""
    steps = [np.array(d.ImagePositionPatient, float) for d in datasets]
    for dataset in datasets[1:-1]:  # what lies beyond the first or last LR voxel is extrapolated
        frame = np.reshape(np.array(dataset.ImageOrientationPatient, float), (2, 3))
        where = places(
            np.array(dataset.ImagePositionPatient, float),
            np.array([*frame, np.cross(*frame)]),
            np.array(dataset.PixelSpacing, float),
            0,
            (1, dataset.Rows, dataset.Columns),
        )[0]
        inner = np.s_[3:-3, 3:-3]
        found = dataset.pixel_array.astype(float) * slope + inter
        wanted = where @ SLOPE + 2000
        np.testing.assert_allclose(found[inner], wanted[inner], rtol=0, atol=1.1 * slope)
    distances = np.linalg.norm(np.diff(steps, axis=0), axis=1)
    np.testing.assert_allclose(distances, float(datasets[0].SpacingBetweenSlices), rtol=1e-5)


@pytest.mark.parametrize("scale", [None, (2.0, -100.0)])
def test_a_classic_series_is_sorted_by_geometry_and_its_sr_series_lies_right(tmp_path, scale):
    files = classic(tmp_path / "in", scale=scale)
    (series,) = find_series(files, tmp_path)
    datasets = restored(series, tmp_path / "out")
    assert len(datasets) == 12 and {(d.Rows, d.Columns) for d in datasets} == {(40, 36)}
    check_place(datasets, *(scale or ()))
    assert [float(v) for v in datasets[0].PixelSpacing] == pytest.approx([0.6, 0.5])
    assert float(datasets[0].SliceThickness) == pytest.approx(1.5)


def test_the_sr_series_is_told_apart_and_says_what_it_is(tmp_path):
    files = classic(
        tmp_path / "in", WindowCenter=500, WindowWidth=900, LargestImagePixelValue=7, InStackPositionNumber=4
    )
    (series,) = find_series(files, tmp_path)
    one, again = (restored(series, tmp_path / name) for name in ("one", "two"))
    source = pydicom.dcmread(files[0])
    uids = {str(pydicom.dcmread(f).SOPInstanceUID) for f in files}
    assert [d.SOPInstanceUID for d in one] == [d.SOPInstanceUID for d in again]
    assert len({d.SOPInstanceUID for d in one} - uids) == 12
    for number, dataset in enumerate(one):
        for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientID", "Manufacturer"):
            assert dataset[name].value == source[name].value
        assert dataset.SeriesInstanceUID not in (source.SeriesInstanceUID, None)
        assert list(dataset.ImageType) == ["DERIVED", "SECONDARY", "M", "ND"]
        assert "research only" in dataset.DerivationDescription and "test" in dataset.DerivationDescription
        assert dataset.DerivationCodeSequence[0].CodeValue == "113085"
        assert {s.ReferencedSOPInstanceUID for s in dataset.SourceImageSequence} <= uids
        assert dataset.ContributingEquipmentSequence[0].Manufacturer == "udean"
        assert dataset.SeriesNumber == 1003 and dataset.SeriesDescription == "t1 UDEAN SR"
        assert dataset.InstanceNumber == number + 1 and dataset.WindowCenter == 500
        assert (0x0019, 0x1010) not in dataset
        assert not {"LargestImagePixelValue", "InStackPositionNumber"} & set(dataset.dir())


@pytest.mark.parametrize("echoes", [1, 2])
def test_an_enhanced_file_becomes_a_classic_derived_series(tmp_path, echoes):
    file = enhanced(tmp_path / "enhanced.dcm", echoes=echoes)
    found = find_series([file], tmp_path)
    assert [s.part for s in found] == ([0] if echoes == 1 else [1, 2])
    series_uids = set()
    for n, series in enumerate(found):
        datasets = restored(series, tmp_path / f"out{n}")
        check_place(datasets, 1.0, -n)
        assert {d.SOPClassUID for d in datasets} == {CLASSIC} and "NumberOfFrames" not in datasets[0]
        assert datasets[0].SourceImageSequence[0].ReferencedFrameNumber > 0
        series_uids |= {d.SeriesInstanceUID for d in datasets}
    assert len(series_uids) == echoes


def test_several_series_in_one_folder_are_told_apart(tmp_path):
    files = classic(tmp_path / "in")
    files += classic(tmp_path / "b", SeriesInstanceUID="1.2.4", SeriesNumber=9, shape=(4, 10, 10))
    files += classic(tmp_path / "c", frame=rotation(9), EchoTime=5, shape=(5, 10, 10))
    (tmp_path / "in" / "notes.txt").write_text("no DICOM")
    found = find_series(files, tmp_path)
    assert [(s.number, s.part, len(s.frames)) for s in found] == [(3, 1, 6), (3, 2, 5), (9, 0, 4)] or [
        (s.number, s.part, len(s.frames)) for s in found
    ] == [(3, 1, 5), (3, 2, 6), (9, 0, 4)]
    assert all(is_dicom(f) for f in files) and not is_dicom(tmp_path / "in" / "notes.txt")


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda files: files.pop(2), "missing"),
        (lambda files: files.append(copied(files[2], PixelData=bytes(720))), "same position"),
        (lambda files: change(files[2], ImagePositionPatient=[0, 0, 0]), "evenly spaced"),
        (lambda files: [change(f, PixelSpacing=[0, 1]) for f in files], "pixel spacing"),
        (lambda files: change(files[1], RescaleSlope=3, RescaleIntercept=0), "rescaling"),
        (lambda files: change(files[1], PixelData=b"\0\0"), "decoded"),
        (lambda files: change(files[1], PixelSpacing=[2.4, 2.0]), "different pixel spacing"),
        (lambda files: change(files[1], BitsStored=12, HighBit=11), "different BitsStored"),
        (lambda files: change(files[1], PixelRepresentation=1), "PixelRepresentation"),
        (lambda files: change(files[1], PhotometricInterpretation="MONOCHROME1"), "Photometric"),
        (lambda files: change(files[1], RealWorldValueMappingSequence=[real(2.0)]), "rescaling"),
        (lambda files: private(files[1], 0x2005, "Philips MR Imaging DD 001", 0x0E, "FL", 2.0), "rescaling"),
        (lambda files: [change(f, ImageType=["ORIGINAL", "PRIMARY", "P", "ND"]) for f in files], "phase"),
        (lambda files: [change(f, ImageType=[*"ABCDE", "R"]) for f in files], "real"),
        (lambda files: [change(f, ImageType=["ORIGINAL", "PRIMARY", "PHASE_IMAGE"]) for f in files], "phase"),
        (lambda files: [change(f, ComplexImageComponent="IMAGINARY") for f in files], "imaginary"),
        (lambda files: [change(f, ImageType=[*"ABCD", "MOSAIC"]) for f in files], "mosaic"),
        (lambda files: [change(f, SamplesPerPixel=3) for f in files[:1]], "colour"),
        (lambda files: [change(f, ImagePositionPatient=None) for f in files[:1]], "ImagePositionPatient"),
        (lambda files: files.extend([twin(f) for f in files]), "cannot be told apart"),
        (lambda files: [change(f, SpacingBetweenSlices=1.5) for f in files], "1 of 2 are missing"),
        (lambda files: [change(f, ImagesInAcquisition=12) for f in files], "6 images, and its scan has 12"),
        (lambda files: [private(f, 0x2001, "Philips Imaging DD 001", 0x18, "SL", 8) for f in files], "has 8"),
        (lambda files: [private(f, 0x0021, "GEMS_RELA_01", 0x4F, "SS", 9) for f in files], "has 9"),
        (lambda files: [private(f, 0x0019, "SIEMENS MR HEADER", 0x0A, "US", 6) for f in files], "mosaic"),
        (lambda files: [private(f, 0x0065, "Image Private Header", 0x51, "SQ", []) for f in files], "mosaic"),
        (lambda files: [change(f, ImageType=["DERIVED", "PRIMARY", "ADC"]) for f in files], "computed map"),
        (lambda files: [change(f, ImageType=[*"ABC", "T2_STAR MAP"]) for f in files], "computed map"),
        (lambda files: [change(f, ImageType=[*"ABC", "RELCBV"]) for f in files], "computed map"),
        (lambda files: [change(f, ImageType=[*"ABC", "DIFFUSION_ANISO"]) for f in files], "computed map"),
        (lambda files: [change(f, Rows=40000, Columns=40000) for f in files], "40000 x 40000 voxels"),
        (lambda files: [change(f, SamplesPerPixel=None, PixelSpacing=None) for f in files], "PixelSpacing"),
        (lambda files: [change(f, ImageType=[*"ABC", "MIP"]) for f in files], "projection"),
        (lambda files: [change(f, VolumeBasedCalculationTechnique="MAX_IP") for f in files], "projection"),
        (lambda files: [change(f, SliceThickness=1) for f in files], "each stands alone"),
        (lambda files: [change(f, PhotometricInterpretation="PALETTE COLOR") for f in files], "colour"),
        (lambda files: [change(f, BitsStored=12, HighBit=15) for f in files], "HighBit 15"),
        (lambda files: [change(f, ModalityLUTSequence=[Dataset()]) for f in files], "a table"),
        (lambda files: [change(f, NumberOfFrames=2) for f in files], "2 frames and says of one"),
        (lambda files: [change(f, BurnedInAnnotation="YES") for f in files], "picture of a screen"),
        (lambda files: [change(f, RescaleIntercept=-3000, RescaleSlope=1) for f in files], "negative in"),
    ],
)
def test_what_is_no_stack_is_refused_in_a_sentence(tmp_path, spoil, word):
    files = classic(tmp_path / "in")
    spoil(files)
    with pytest.raises(RunError, match=word):
        find_series(files, tmp_path)[0].scan()


def change(path, **fields):
    dataset = pydicom.dcmread(path)
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


def copied(path, **fields):
    """A copy of a slice under the same UID, with changes."""
    copy = shutil.copy(path, path.with_suffix(".copy"))
    change(copy, **fields)
    return copy


def private(path, group, creator, element, vr, value):
    """Set a vendor's element."""
    dataset = pydicom.dcmread(path)
    dataset.private_block(group, creator, create=True).add_new(element, vr, value)
    dataset.save_as(path)


def real(slope):
    mapping = Dataset()
    mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = slope, 0.0
    return mapping


def twin(path, **fields):
    """A copy of a slice as another instance at the same place."""
    dataset = pydicom.dcmread(path)
    for name, value in fields.items():
        setattr(dataset, name, value)
    return save(path.with_suffix(".twin"), dataset)


def ordered(files):
    """Files by where their slices lie."""
    (series,) = find_series(files, "here")
    return [frame.path for frame in series.frames]


def test_frames_of_which_the_header_does_not_say_where_they_lie_are_refused(tmp_path):
    file = enhanced(tmp_path / "e.dcm")
    dataset = pydicom.dcmread(file)
    del dataset.PerFrameFunctionalGroupsSequence[-1]
    dataset.save_as(file)
    (series,) = find_series([file], tmp_path)
    with pytest.raises(RunError, match="6 frames and says of 5"):
        series.scan()


def test_phase_among_the_frames_of_an_enhanced_file_is_refused_by_itself(tmp_path):
    file = enhanced(tmp_path / "e.dcm", echoes=2)
    dataset = pydicom.dcmread(file)
    for group in dataset.PerFrameFunctionalGroupsSequence:
        kind = Dataset()
        kind.FrameType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
        kind.ComplexImageComponent = (
            "MAGNITUDE" if group.MREchoSequence[0].EffectiveEchoTime == 10 else "PHASE"
        )
        group.MRImageFrameTypeSequence = [kind]
    dataset.save_as(file)
    magnitude, phase = find_series([file], tmp_path)
    assert magnitude.scan().shape == (18, 20, 6)
    with pytest.raises(RunError, match=r"volume 2 .*only magnitude"):
        phase.scan()


def test_rounding_in_headers_does_not_take_a_volume_apart(tmp_path):
    files = ordered(classic(tmp_path / "in", frame=np.eye(3)))
    for n, file in enumerate(files):
        sine = 0.0835 + (-1) ** n * 1e-6
        cosine = np.sqrt(1 - sine**2)
        cosines = [f"{v:.8f}" for v in (cosine, sine, 0, -sine, cosine, 0)]
        change(file, ImageOrientationPatient=cosines, EchoTime=("2.98", "2.9800001")[n % 2])
    (series,) = find_series(files, tmp_path)
    assert len(series.frames) == 6


@pytest.mark.parametrize(
    "fields",
    [
        {"TriggerTime": 40},
        {"AcquisitionNumber": 2},
        {"EchoNumbers": 2},
        {"InversionTime": 900},
        {"FlipAngle": 20},
        {"DiffusionGradientOrientation": [0, 1, 0]},
    ],
)
def test_volumes_at_the_same_positions_are_told_apart_by_what_sets_them_apart(tmp_path, fields):
    files = classic(tmp_path / "in")
    found = find_series([*files, *(twin(file, **fields) for file in files)], tmp_path)
    assert [(s.part, len(s.frames)) for s in found] == [(1, 6), (2, 6)]
    assert {frame.path for frame in found[0].frames} == set(files)
    for n, file in enumerate(files):  # where no position repeats they say nothing
        change(file, AcquisitionNumber=n, TriggerTime=n, FlipAngle=n)
    assert len(find_series(files, tmp_path)) == 1


DIFFUSION = {  # creator, group, element, VR; then b-value and direction along (x, y, z)
    "Siemens": [("SIEMENS MR HEADER", 0x19, 0x0C, "IS"), ("SIEMENS MR HEADER", 0x19, 0x0E, "FD")],
    "GE": [
        ("GEMS_PARM_01", 0x43, 0x39, "IS"),
        *(("GEMS_ACQU_01", 0x19, n, "DS") for n in (0xBB, 0xBC, 0xBD)),
    ],
    "Philips": [
        ("Philips Imaging DD 001", 0x2001, 0x03, "FL"),
        *(("Philips MR Imaging DD 001", 0x2005, n, "FL") for n in (0xB0, 0xB1, 0xB2)),
    ],
    "UIH": [("Image Private Header", 0x65, 0x09, "UN"), ("Image Private Header", 0x65, 0x37, "UN")],
}


@pytest.mark.parametrize("vendor", DIFFUSION)
def test_diffusion_told_in_private_keeps_volumes_apart_and_is_in_the_result(tmp_path, vendor):
    groups = {(0, 0, 0, 0): classic(tmp_path / "0", (3, 10, 12))}
    for n, said in enumerate([(1000, 0, 0.6, 0.8), (1000, 0, -0.6, 0.8)], 1):
        groups[said] = files = classic(tmp_path / str(n), (3, 10, 12))
        b_value = [10**9 + said[0], 8, 0, 0] if vendor == "GE" else said[0]
        values = b_value, *(said[1:] if len(DIFFUSION[vendor]) == 4 else [said[1:]])
        for file in files:
            for (creator, group, element, vr), value in zip(DIFFUSION[vendor], values, strict=True):
                value = np.array(value, float).tobytes() if vr == "UN" else value
                private(file, group, creator, element, vr, list(value) if isinstance(value, tuple) else value)
    found = find_series([file for files in groups.values() for file in files], tmp_path)
    assert sorted(sorted(f.path for f in s.frames) for s in found) == sorted(map(sorted, groups.values()))
    made = [restored(series, tmp_path / f"out{series.part}")[0] for series in found]
    said = [(d.get("DiffusionBValue", 0), *d.get("DiffusionGradientOrientation", (0, 0, 0))) for d in made]
    np.testing.assert_allclose(sorted(said), sorted(groups), atol=1e-6)


def test_time_points_that_only_numbers_or_times_tell_apart(tmp_path):
    points = [ordered(classic(tmp_path / str(t), (4, 10, 12))) for t in range(3)]

    def found(say):
        for t, point in enumerate(points):
            for place, file in enumerate(point):
                change(file, **say(t, place))
        series = find_series([file for point in points for file in point], tmp_path)
        return [[frame.path for frame in one.frames] for one in series]

    nothing = dict.fromkeys(("NumberOfTemporalPositions", "CardiacNumberOfImages", "TriggerTime"))
    assert found(lambda t, n: {"NumberOfTemporalPositions": 3, "InstanceNumber": 3 * n + t}) == points
    drifting = nothing | {"CardiacNumberOfImages": 3}
    assert found(lambda t, n: drifting | {"TriggerTime": 33.3 * t + n, "InstanceNumber": 9 - t}) == points
    assert len(found(lambda t, n: nothing | {"NumberOfTemporalPositions": 4})) == 1  # not to be told apart
    assert found(lambda t, n: nothing | {"AcquisitionTime": f"10150{3 * t}.2500"}) == points


@pytest.mark.parametrize(("first", "second"), [(range(4), range(2, 6)), (range(3), range(3, 6))])
def test_volumes_that_each_lack_what_the_other_has_are_not_restored(tmp_path, first, second):
    echoes = [ordered(classic(tmp_path / f"{time}", EchoTime=time)) for time in (10, 20)]
    files = [files[n] for files, places in zip(echoes, (first, second), strict=True) for n in places]
    for series in find_series(files, tmp_path):
        with pytest.raises(RunError, match="lacks slices that another"):
            series.scan()


@pytest.mark.parametrize(
    "fields",
    [
        {"FrameOfReferenceUID": ""},
        {"AccessionNumber": "A1"},
        {"EchoTime": 11},
        {"ImageType": ["ORIGINAL", "PRIMARY", "M", "DIS2D"]},
        {"TemporalPositionIdentifier": 2},
    ],
)
@pytest.mark.parametrize("which", [slice(-1, None), slice(-3, None), slice(0, None, 2)], ids=str)
def test_a_stack_that_goes_on_in_slices_which_say_something_else_is_not_whole(tmp_path, fields, which):
    files = ordered(classic(tmp_path / "in"))
    for file in files[which]:
        change(file, **fields)
    for series in find_series(files, tmp_path):
        with pytest.raises(RunError, match="lacks slices that another"):
            series.scan()


def test_volumes_that_follow_a_moving_head_are_each_whole(tmp_path):
    still, moved = classic(tmp_path / "a"), classic(tmp_path / "b", TemporalPositionIdentifier=2)
    row, column = np.reshape(pydicom.dcmread(moved[0]).ImageOrientationPatient, (2, 3))
    for file in moved:
        place = np.array(pydicom.dcmread(file).ImagePositionPatient, float) + 1.4 * np.cross(row, column)
        change(file, ImagePositionPatient=[f"{v:.8f}"[:16] for v in place])
    found = find_series(still + moved, tmp_path)
    assert [series.scan().shape for series in found] == [(18, 20, 6)] * 2


def time_points(folder, said):
    """A volume for each of some attributes."""
    return [file for n, fields in enumerate(said) for file in classic(folder / str(n), (3, 10, 12), **fields)]


@pytest.mark.parametrize("name", ["TemporalPositionIdentifier", "AcquisitionNumber"])
@pytest.mark.parametrize("count", ["NumberOfTemporalPositions", "CardiacNumberOfImages"])
def test_a_series_that_lacks_time_points_which_its_headers_count_is_not_restored(tmp_path, name, count):
    files = time_points(tmp_path, [{name: t, count: 5} for t in (1, 2, 4, 5)])
    found = find_series(files, tmp_path)
    assert len(found) == 4
    for series in found:
        with pytest.raises(RunError, match="has 4 of its scan's 5"):
            series.scan()
    files += time_points(tmp_path / "late", [{name: 3, count: 5}])
    assert {series.scan().shape for series in find_series(files, tmp_path)} == {(12, 10, 3)}
    for file in files:  # some scanners give all time points one identifier
        change(file, AcquisitionNumber=pydicom.dcmread(file)[name].value, TemporalPositionIdentifier=1)
    assert not {remark for series in find_series(files, tmp_path) for remark in series.scan().remarks}


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ([{"TemporalPositionIdentifier": t} for t in (1, 3)], "1 to 3 without 2"),
        ([{"TemporalPositionIdentifier": t} for t in (2, 3, 4)], "1 to 4 without 1"),
        ([{"AcquisitionNumber": t} for t in (4, 5, 7, 8)], "4 to 8 without 6"),
        ([{"AcquisitionNumber": t} for t in (1, 2, 9)], "without 3, 4, 5, 6, 7 and others:"),
        ([{"TriggerTime": t} for t in (0, 40, 80, 160)], "40 ms apart, and once 80"),
        (
            [{"AcquisitionTime": t} for t in ("095945", "095952", "095959", "100013")],
            "7 s apart, and once 14",
        ),
        ([{"TemporalPositionIdentifier": 7, "NumberOfTemporalPositions": 9}], "has 1 of its scan's 9"),
        ([{"TemporalPositionIdentifier": t} for t in (1, 3, 5)], ""),
        ([{"AcquisitionNumber": t} for t in (2, 4, 6)], ""),
        ([{"TriggerTime": t} for t in (0, 10, 30, 70)], ""),  # delays that were chosen
        ([{"InversionTime": t} for t in (100, 200, 300, 700)], ""),
    ],
)
def test_time_points_that_may_be_missing_are_told_with_the_result(tmp_path, said, word):
    found = find_series(time_points(tmp_path, said), tmp_path)
    assert len(found) == len(said)
    for series in found:
        (remark,) = series.scan().remarks or ("",)
        assert bool(word) == bool(remark) and word in remark
    comments = restored(found[0], tmp_path / "out")[0].ImageComments
    assert ("Its series has" in comments) == bool(word) and word in comments


def test_what_a_derived_series_kept_of_its_scans_counts_does_not_count(tmp_path):
    files = classic(tmp_path / "in", ImageType=["DERIVED", "SECONDARY", "MPR"], ImagesInAcquisition=60)
    (series,) = find_series(files, tmp_path)
    assert series.scan().shape == (18, 20, 6)


def test_a_gap_in_the_place_of_the_distance_is_read_as_one(tmp_path):
    files = classic(tmp_path / "in", thickness=3.0)
    for file in files:
        change(file, SliceThickness=2.0, SpacingBetweenSlices=1.0)
    (series,) = find_series(files, tmp_path)
    assert series.scan().zooms[2] == pytest.approx(3.0)


def test_cardiac_phases_of_an_enhanced_file_are_told_apart(tmp_path):
    file = enhanced(tmp_path / "e.dcm", echoes=2)
    dataset = pydicom.dcmread(file)
    for group in dataset.PerFrameFunctionalGroupsSequence:
        cardiac, echo = Dataset(), group.MREchoSequence[0]
        cardiac.NominalCardiacTriggerDelayTime, echo.EffectiveEchoTime = echo.EffectiveEchoTime, 10.0
        group.CardiacSynchronizationSequence = [cardiac]
    dataset.save_as(file)
    assert [len(series.frames) for series in find_series([file], tmp_path)] == [6, 6]


@pytest.mark.parametrize(("padding", "refused"), [(65000, True), (0, False)])
def test_padding_is_refused_only_where_it_would_pass_for_signal(tmp_path, padding, refused):
    files = classic(tmp_path / "in")
    for file in files:
        dataset = pydicom.dcmread(file)
        pixels = dataset.pixel_array - np.uint16(1000)
        pixels[:4], pixels[4] = padding, 5
        dataset.PixelData = pixels.tobytes()
        dataset.add_new("PixelPaddingValue", "US", padding)
        dataset.save_as(file)
    (series,) = find_series(files, tmp_path)
    if refused:
        with pytest.raises(RunError, match="padding"):
            series.scan()
    else:
        assert series.scan().shape == (18, 20, 6)


def test_sr_slices_take_the_window_of_the_slice_they_lie_in(tmp_path):
    files = ordered(classic(tmp_path / "in"))
    for n, file in enumerate(files):
        change(file, WindowCenter=100 + n, WindowWidth=200 + n)
    (series,) = find_series(files, tmp_path)
    found = [(d.WindowCenter, d.WindowWidth) for d in restored(series, tmp_path / "out")]
    assert found == [(100 + n // 2, 200 + n // 2) for n in range(12)]


def test_geometry_is_not_rounded_to_float32(tmp_path):
    (series,) = find_series(classic(tmp_path / "in", spacing=(0.46875, 0.46875)), tmp_path)
    first = restored(series, tmp_path / "out")[0]
    assert [str(v) for v in first.PixelSpacing] == ["0.234375", "0.234375"]


def headed(windows):
    """A network that treats all axes and directions differently."""
    near = (
        windows + 0.3 * np.roll(windows, 1, 2) - 0.2 * np.roll(windows, 2, 3) + 0.1 * np.roll(windows, 1, 1)
    )
    return nearest(near, (2, 2, 2)).astype(np.float32)


def to_nifti(folder, out):
    """A series of files as NIfTI, along the world's axes; without dcm2niix by nibabel, as that turns rows."""
    out.mkdir()
    if shutil.which("dcm2niix"):
        subprocess.run(["dcm2niix", "-o", out, "-f", "x", folder], check=True, capture_output=True)
    else:
        (series,) = find_series(sorted(folder.iterdir()), folder, ours=True)
        scan = series.scan()
        turned = nib.Nifti1Image(scan.voxels(), scan.affine).as_reoriented(
            np.array([[0, 1], [1, -1], [2, 1]])
        )
        nib.save(turned, out / "x.nii")
    return nib.load(out / "x.nii")


@pytest.mark.parametrize(
    ("frame", "thickness", "to"),
    [
        (np.eye(3), 1.1, None),
        (rotation(), 1.1, None),
        (np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]]), 1.1, None),
        (rotation(), 1.1, "0.8mm"),  # no whole number divides the voxels
        (rotation(), 4.4, "iso"),  # thick slices
    ],
)
def test_dicom_and_its_nifti_are_restored_to_the_same_voxels(tmp_path, frame, thickness, to):
    """DICOM to SR to NIfTI, and DICOM to NIfTI to SR."""
    files = classic(tmp_path / "in", (8, 24, 20), frame=frame, spacing=(1.1, 1.1), thickness=thickness)
    rng = np.random.default_rng(0)
    for file in files:
        change(file, PixelData=rng.integers(0, 900, (24, 20)).astype(np.uint16).tobytes())
    (series,) = find_series(files, tmp_path)
    resolve = SuperResolver(FakeEngine(headed, CARD), consistency=0.5, to=to)
    write_derived(series, *resolve.scan(series.scan()), CARD, "f" * 64, tmp_path / "out")
    late = nib.as_closest_canonical(to_nifti(tmp_path / "out", tmp_path / "late"))
    early = nib.as_closest_canonical(resolve.image(to_nifti(tmp_path / "in", tmp_path / "early")))
    same, other = in_common(late, early)
    numbers = sorted(pydicom.dcmread(file).InstanceNumber for file in (tmp_path / "out").iterdir())
    assert numbers == [*range(1, len(numbers) + 1)]
    apart = np.abs(same.astype(int) - other)
    # Rounded to integers; another spacing needs estimates, which feel that NIfTI keeps less of the affine.
    assert apart.max() <= 1 and np.mean(apart > 0) < (0.02 if to else 0.01)


def test_other_images_get_other_uids(tmp_path):
    files = ordered(classic(tmp_path / "in", shape=(8, 20, 18)))

    def uids(name, files, network=None):
        (series,) = find_series(files, tmp_path)
        return {str(d.SOPInstanceUID) for d in restored(series, tmp_path / name, network)}

    first, second, whole = uids("first", files[:4]), uids("second", files[4:]), uids("whole", files)
    network = interpolation((2, 2, 2), "fft")
    other = uids("other", files, lambda windows: network(windows) * 0.9)  # as by other options
    change(files[0], PixelData=bytes(2 * 20 * 18))
    changed = uids("changed", files)
    assert len(first | second | whole | other | changed) == 8 + 8 + 16 + 16 + 16
    assert uids("again", files[4:]) == second


def test_only_slices_of_udean_are_ever_replaced(tmp_path):
    (series,) = find_series(classic(tmp_path / "in"), tmp_path)
    restored(series, tmp_path / "out")
    restored(series, tmp_path / "out")
    for name, source in (("notes.txt", __file__), ("00099.dcm", series.frames[0].path)):
        shutil.copy(source, tmp_path / "out" / name)
        with pytest.raises(RunError, match=name):
            restored(series, tmp_path / "out")
        (tmp_path / "out" / name).unlink()
    assert len(list((tmp_path / "out").iterdir())) == 12


def test_damaged_files_are_named_and_other_kinds_left_out(tmp_path):
    files = classic(tmp_path / "in")
    other = pydicom.dcmread(files[0])
    other.file_meta.MediaStorageSOPClassUID = other.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"  # CT
    other.save_as(tmp_path / "ct")
    assert len(find_series([*files, tmp_path / "ct"], tmp_path)) == 1
    whole = files[0].read_bytes()
    for cut in (132, 140, 400, 700):
        (tmp_path / "cut").write_bytes(whole[:cut])
        try:
            find_series([tmp_path / "cut"], tmp_path)
        except RunError as error:
            assert "damaged" in str(error)
    files[0].write_bytes(whole[:-50])
    with pytest.raises(RunError, match="decoded"):
        find_series(files, tmp_path)[0].scan()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_files_read_as_their_plain_twins(syntax):
    names = {
        RLELossless: "MR_small_RLE.dcm",
        JPEG2000Lossless: "MR_small_jp2klossless.dcm",
        JPEGLSLossless: "MR_small_jpeg_ls_lossless.dcm",
    }
    (plain,), (packed,) = (
        find_series([get_testdata_file(name)], "here") for name in ("MR_small.dcm", names[syntax])
    )
    assert packed.head.file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(packed.scan().voxels(), plain.scan().voxels())
    np.testing.assert_allclose(packed.affine(), plain.affine())


def vendor_stack(folder):
    """A scanner's own file, as four slices of a stack."""
    files = []
    for n in range(4):
        dataset = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
        x, y, z = map(float, dataset.ImagePositionPatient)
        row, column = np.reshape(np.array(dataset.ImageOrientationPatient, float), (2, 3))
        step = np.cross(row, column) * float(dataset.SliceThickness) * n
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in np.array([x, y, z]) + step]
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.save_as(folder / f"{n}.dcm")
        files.append(folder / f"{n}.dcm")
    return files


def test_a_real_file_goes_all_the_way(tmp_path):
    (series,) = find_series(vendor_stack(tmp_path), "here")
    datasets = restored(series, tmp_path / "out")
    assert len(datasets) == 8 and datasets[0].pixel_array.shape == (128, 128)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("kind", ["classic", "enhanced", "multi-frame", "vendor"])
def test_dciodvfy_finds_no_error_that_the_source_does_not_have(tmp_path, kind):
    make = {
        "classic": classic,
        "multi-frame": lambda f: [enhanced(f.with_suffix(".e"))],
        "enhanced": lambda f: [enhanced(f.with_suffix(".e"))],
        "vendor": lambda f: vendor_stack(tmp_path),
    }
    files = make[kind](tmp_path / "in")
    (series,) = find_series(files, tmp_path)
    restored(series, tmp_path / "out", enhanced=kind == "multi-frame")
    made = sorted((tmp_path / "out").iterdir())[0]
    done = subprocess.run(["dciodvfy", made], capture_output=True, text=True)
    source = subprocess.run(["dciodvfy", files[0]], capture_output=True, text=True)
    errors = {line for line in done.stderr.splitlines() if line.startswith("Error")}
    assert errors <= set(source.stderr.splitlines())


def test_a_single_slice_is_left(tmp_path):
    (series,) = find_series([get_testdata_file("MR_small.dcm")], "here")
    with pytest.raises(RunError, match="single slice"):
        restored(series, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    radial = [file for n in range(3) for file in classic(tmp_path / str(n), (1, 20, 18), rotation(n))]
    found = find_series(radial, tmp_path)
    assert [len(series.frames) for series in found] == [1, 1, 1]
    for series in found:
        with pytest.raises(RunError, match="single slice"):
            restored(series, tmp_path / "out")


def test_an_enhanced_file_becomes_an_enhanced_one_on_request(tmp_path):
    source = enhanced(tmp_path / "scan", echoes=2)
    scans = {}
    for form in (False, True):
        for series in find_series([source], tmp_path):
            resolve = SuperResolver(FakeEngine(headed, CARD))
            folder = tmp_path / f"{form}{series.part}"
            write_derived(series, *resolve.scan(series.scan()), CARD, "f" * 64, folder, enhanced=form)
            (found,) = find_series(sorted(folder.iterdir()), folder, ours=True)
            scans.setdefault(series.part, []).append(found)
    for part, (classic_one, whole) in scans.items():
        np.testing.assert_array_equal(whole.scan().voxels(), classic_one.scan().voxels())
        np.testing.assert_allclose(whole.scan().affine, classic_one.scan().affine, atol=1e-6)
        assert whole.uid == classic_one.uid and whole.head.InstanceNumber == part
        dataset = whole.head
        assert list(dataset.ImageType)[:2] == ["DERIVED", "PRIMARY"]
        assert dataset.ContentQualification == "RESEARCH" and "research only" in dataset.ImageComments
        assert dataset.NumberOfFrames == 12 == len(dataset.PerFrameFunctionalGroupsSequence)
        for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence, 1):
            assert frame.MREchoSequence[0].EffectiveEchoTime == 9 + part
            assert list(frame.FrameContentSequence[0].DimensionIndexValues) == [1, number]
            derivation = frame.DerivationImageSequence[0]
            used = {s.ReferencedFrameNumber for s in derivation.SourceImageSequence}
            assert 2 <= len(used) <= 3 and "research only" in derivation.DerivationDescription
    assert len({whole.uid for _, whole in scans.values()}) == 2  # echoes are series of their own


def test_frames_of_several_files_take_the_attributes_of_their_own(tmp_path):
    whole = pydicom.dcmread(enhanced(tmp_path / "whole"))
    files = []
    for start, stop in ((0, 2), (2, 6)):  # the first slice may lie in the shorter one
        part = pydicom.dcmread(tmp_path / "whole")
        part.PerFrameFunctionalGroupsSequence = whole.PerFrameFunctionalGroupsSequence[start:stop]
        for number, frame in enumerate(part.PerFrameFunctionalGroupsSequence, start):
            frame.MRTimingAndRelatedParametersSequence = [Dataset()]
            frame.MRTimingAndRelatedParametersSequence[0].RepetitionTime = 500.0 + number
        part.NumberOfFrames = stop - start
        part.ConcatenationUID, part.InConcatenationNumber = "1.2.3.9", start // 2 + 1
        part.InConcatenationTotalNumber = 2
        part.PixelData = whole.pixel_array[start:stop].tobytes()
        files.append(save(tmp_path / f"part{start}", part, ENHANCED[0]))
    for order in (files, files[::-1]):
        (series,) = find_series(order, tmp_path)
        times = [float(d.RepetitionTime) for d in restored(series, tmp_path / "out")]
        assert sorted(times) == sorted([500.0 + n for n in range(6)] * 2)
    for file in files:
        (series,) = find_series([file], tmp_path)
        with pytest.raises(RunError, match="1 of the 2 files"):
            series.scan()


def test_copies_of_a_file_are_taken_once(tmp_path):
    files = classic(tmp_path / "in")
    files.append(copied(files[2]))
    (series,) = find_series(files, tmp_path)
    assert len(series.frames) == 6 and series.scan().shape == (18, 20, 6)


@pytest.mark.parametrize(
    "fields",
    [
        {"PatientID": "88"},
        {"PatientID": "", "PatientName": "Other"},
        {"StudyInstanceUID": "1.3"},
        {"FrameOfReferenceUID": "1.2.10"},
        {"PatientSex": "F"},
        {"StudyDate": "20261130"},
        {"PatientPosition": "FFS"},
        {"DeviceSerialNumber": "8"},
        {"ImageLaterality": "L"},
    ],
)
def test_what_is_of_two_patients_studies_or_places_is_never_one_volume(tmp_path, fields):
    others = {"PatientSex": "M", "StudyDate": "20261129", "PatientPosition": "HFS", "DeviceSerialNumber": "7"}
    files = ordered(classic(tmp_path / "in", ImageLaterality="R", **others))
    whole = pydicom.dcmread(files[0]).PatientName
    for file in files[:3]:
        change(file, **fields)
    for file in files[3:]:
        change(
            file, PatientName=f"{whole}^^ ", **({"PatientID": ""} if fields.get("PatientID") == "" else {})
        )
    found = find_series(files, tmp_path)
    assert [len(series.frames) for series in found] == [3, 3]
    made = [restored(series, tmp_path / str(series.part)) for series in found]
    for (series, datasets), other in zip(zip(found, made, strict=True), reversed(made), strict=True):
        source = pydicom.dcmread(series.frames[0].path)
        for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert {d[name].value for d in datasets} == {source[name].value}
        assert not {d.SeriesInstanceUID for d in datasets} & {d.SeriesInstanceUID for d in other}


def test_two_patients_whose_images_have_the_same_uids_keep_their_own_heads(tmp_path):
    files = classic(tmp_path / "in")
    others = [copied(file, PatientID="88") for file in files]
    found = find_series([*files, *others], tmp_path)
    assert sorted((series.head.PatientID, len(series.frames)) for series in found) == [("77", 6), ("88", 6)]
    uids = [{d.SOPInstanceUID for d in restored(s, tmp_path / str(s.part))} for s in found]
    assert not uids[0] & uids[1]


@pytest.mark.parametrize("creator", ["GEMS_PARM_01", None])
@pytest.mark.parametrize(("vr", "value"), [("SS", 1), ("SS", 2), ("SS", 3), ("UN", b"\1\0"), ("SS", [3, 0])])
def test_what_ge_says_in_private_alone_is_no_magnitude(tmp_path, creator, vr, value):
    files = classic(
        tmp_path / "in", ImageType=["ORIGINAL", "PRIMARY", "OTHER"], Manufacturer="GE MEDICAL SYSTEMS"
    )
    twins = [twin(file) for file in files]
    for file, said in [*((f, value) for f in files), *((f, b"\0\0" if vr == "UN" else 0) for f in twins)]:
        dataset = pydicom.dcmread(file)
        if creator:
            dataset.add_new(0x00430010, "LO", creator)
        dataset.add_new(0x0043102F, vr, said)
        dataset.save_as(file)
    found = find_series([*files, *twins], tmp_path)
    other, magnitude = sorted(found, key=lambda series: "MAGNITUDE" in series.frames[0].kind)
    assert {frame.path for frame in magnitude.frames} == set(twins) and magnitude.scan().shape == (18, 20, 6)
    with pytest.raises(RunError, match="only magnitude"):
        other.scan()


@pytest.mark.parametrize("field", ["TemporalPositionIdentifier", "AcquisitionNumber", "DiffusionBValue"])
def test_a_volume_that_lacks_slices_of_its_siblings_is_not_restored(tmp_path, field):
    files = ordered(classic(tmp_path / "in"))
    for file in files:
        change(file, **{field: 1})
    last = [twin(file, **{field: 2}) for file in files[:3]]
    whole, short = find_series([*files, *last], tmp_path)
    assert whole.scan().shape == (18, 20, 6)
    with pytest.raises(RunError, match="3 of the 6 slices"):
        short.scan()


def test_dynamics_of_one_series_stay_one_and_echoes_do_not(tmp_path):
    files = [
        file
        for n in range(6)
        for file in classic(
            tmp_path / str(n), (3, 10, 12), TemporalPositionIdentifier=n // 2 + 1, EchoTime=10 * (n % 2 + 1)
        )
    ]
    found = find_series(files, tmp_path)
    made = [restored(series, tmp_path / f"out{series.part}") for series in found]
    assert [len(datasets) for datasets in made] == [6] * 6
    series = {}
    for dataset in (d for datasets in made for d in datasets):
        series.setdefault(dataset.SeriesInstanceUID, []).append(dataset)
    assert len(series) == 2 and len({d.SOPInstanceUID for members in series.values() for d in members}) == 36
    for members in series.values():
        assert len({(d.EchoTime, d.SeriesNumber) for d in members}) == 1
        assert sorted(d.InstanceNumber for d in members) == list(range(1, 19))
        assert sorted(d.TemporalPositionIdentifier for d in members) == [1] * 6 + [2] * 6 + [3] * 6


def test_series_numbers_are_free_in_the_study_and_fit(tmp_path):
    files = [
        file
        for n in (1, 1001, 2, 2**31 - 1)
        for file in classic(tmp_path / str(n), (2, 10, 12), SeriesInstanceUID=f"1.9.{n}", SeriesNumber=n)
    ]
    numbers = [series.result.number for series in find_series(files, tmp_path, taken={1002})]
    assert (
        len(set(numbers)) == 4 and not {1, 2, 1001, 1002, 2**31 - 1} & set(numbers) and max(numbers) < 2**31
    )


def test_big_endian_and_preamble_less_files_read_as_their_plain_twins(tmp_path):
    files = ordered(classic(tmp_path / "in", ImageComments="LEFT MARKED"))
    (plain,) = find_series(files, tmp_path)
    wanted, uids = plain.scan().voxels().copy(), [d.SOPInstanceUID for d in restored(plain, tmp_path / "a")]
    for n, file in enumerate(files):
        bare = pydicom.Dataset(pydicom.dcmread(file))
        if n % 3 == 0:
            bare.file_meta = FileMetaDataset()
            bare.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            bare.add_new("PixelData", "OW", np.frombuffer(bare.PixelData, "<u2").astype(">u2").tobytes())
            bare.save_as(file, enforce_file_format=True)
        else:
            bare.save_as(file, implicit_vr=n % 3 == 1, little_endian=True)
    assert all(map(is_dicom, files))
    (series,) = find_series(files, tmp_path)
    np.testing.assert_array_equal(series.scan().voxels(), wanted)
    made = restored(series, tmp_path / "b")
    assert [d.SOPInstanceUID for d in made] == uids and "LEFT MARKED; Super" in made[0].ImageComments


@pytest.mark.parametrize(
    "error", [DiskError("Input/output error"), MemoryError(), RuntimeError("std::bad_alloc")]
)
def test_a_failing_disk_and_no_memory_are_not_taken_for_damage(tmp_path, monkeypatch, error):
    """The node would set such a series aside, and not try it again."""
    files = classic(tmp_path / "in")
    files.append(copied(files[2]))

    def fail(*_, **__):
        raise error

    for name in ("read", "frames", "_decode"):
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(f"udean.runtime.dicom.series.{name}", fail)
            find_series(files, tmp_path)[0].scan()


def test_what_only_begins_like_a_slice_is_none(tmp_path):
    (tmp_path / "x").write_bytes(b"\x08\x00\x05\x00CS\xff\xff" + bytes(range(256)))
    assert find_series([tmp_path / "x"], tmp_path) == []


def test_functional_groups_become_attributes_of_the_classic_series(tmp_path):
    file = enhanced(tmp_path / "e.dcm", echoes=2)
    dataset = pydicom.dcmread(file)
    timing, diffusion, direction = Dataset(), Dataset(), Dataset()
    timing.RepetitionTime, timing.FlipAngle, timing.EchoTrainLength = 2500, 70, 4
    direction.DiffusionGradientOrientation = [0, 0.6, 0.8]
    diffusion.DiffusionBValue, diffusion.DiffusionGradientDirectionSequence = 1000, [direction]
    dataset.SharedFunctionalGroupsSequence[0].MRTimingAndRelatedParametersSequence = [timing]
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.MRDiffusionSequence = [diffusion]
    dataset.EchoPulseSequence = "SPIN"
    dataset.save_as(file)
    for n, series in enumerate(find_series([file], tmp_path)):
        for made in restored(series, tmp_path / str(n)):
            assert (made.EchoTime, made.RepetitionTime, made.FlipAngle) == (10 + n, 2500, 70)
            assert (made.EchoTrainLength, made.DiffusionBValue, made.ScanningSequence) == (4, 1000, "SE")
            assert list(made.DiffusionGradientOrientation) == [0, 0.6, 0.8]


@pytest.mark.parametrize("form", ["classic", "enhanced", "multi-frame"])
def test_what_makes_values_of_voxels_stays(tmp_path, form):
    """Slopes, and what quantitative readers take in their place: Philips' scale, real-world values."""
    creator, scale = "Philips MR Imaging DD 001", {0x0E: 0.0125, 0x0D: 3.0}
    if form == "classic":
        files = classic(tmp_path / "in", scale=(2.5, 0.0), RealWorldValueMappingSequence=[real(0.25)])
        for file in files:
            for element, value in scale.items():
                private(file, 0x2005, creator, element, "FL", value)
    else:
        files = [enhanced(tmp_path / "e.dcm")]
        dataset = pydicom.dcmread(files[0])
        for group in dataset.PerFrameFunctionalGroupsSequence:
            group.RealWorldValueMappingSequence = [real(0.25)]
            transformation, item = Dataset(), Dataset()
            transformation.RescaleSlope, transformation.RescaleIntercept = 2.5, 0.0
            group.PixelValueTransformationSequence = [transformation]
            block = item.private_block(0x2005, creator, create=True)
            for element, value in scale.items():
                block.add_new(element, "FL", value)
            group.add_new(0x20050014, "LO", "Philips MR Imaging DD 005")
            group.add_new(0x2005140F, "SQ", [item])
        dataset.save_as(files[0])
    (series,) = find_series(files, tmp_path)
    for made in restored(series, tmp_path / "out", enhanced=form == "multi-frame"):
        block = made.private_block(0x2005, creator)
        assert {element: block[element].value for element in scale} == pytest.approx(scale)
        groups = made.get("PerFrameFunctionalGroupsSequence") or [made]
        assert {g.RealWorldValueMappingSequence[0].RealWorldValueSlope for g in groups} == {0.25}
        at = groups[0].get("PixelValueTransformationSequence", [made])[0]
        assert (at.RescaleSlope, at.RescaleIntercept) == (2.5, 0.0)


def test_texts_of_the_source_stay_beside_ours_and_names_keep_their_bytes(tmp_path):
    names = {
        "ISO_IR 100": "Müller^Jörg",
        "ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "ISO_IR 192": "Βασίλης^Ω",
    }
    for n, (characters, name) in enumerate(names.items()):
        charset = ["", characters] if "2022" in characters else characters
        comment = "é" if n != 1 else "note"
        files = classic(
            tmp_path / f"{n}", SpecificCharacterSet=charset, PatientName=name, ImageComments=comment,
            DerivationDescription="Distortion corrected " * 60,
        )  # fmt: skip
        (series,) = find_series(files, tmp_path)
        made = restored(series, tmp_path / f"out{n}")[0]
        assert made.ImageComments.startswith(comment + "; Super-resolution")
        text = made.DerivationDescription
        assert text.startswith("Distortion") and "research only" in text and len(text) <= 1024
        raw = [
            pydicom.dcmread(f).get_item("PatientName").value.rstrip()
            for f in (files[0], tmp_path / f"out{n}" / "00001.dcm")
        ]
        assert raw[0] == raw[1]


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("characters", "raw"),
    [
        ("ISO_IR 192", b"Universit\xe4t "),  # Latin-1 under a wrong flag
        ("GB18030", "\u8a93^\u6bd2".encode("gb18030") + b" \x90\x5c"),  # a half of a character is a backslash
        ("", b"M\xfcnchen "),
        ("ISO 2022 IR 13", b"\xd4\xcf\xc0\xde"),
    ],
)
def test_texts_keep_their_bytes_whatever_character_set_they_claim(tmp_path, characters, raw, implicit):
    files = classic(tmp_path / "in", (3, 10, 12), SpecificCharacterSet=characters, InstitutionName="here")
    for file in files:
        dataset = pydicom.dcmread(file)
        for keyword in ("InstitutionName", "PatientName", "StudyDescription"):
            tag = pydicom.tag.Tag(keyword)
            kind = "PN" if keyword == "PatientName" else "LO"
            given = pydicom.dataelem.RawDataElement(tag, kind, len(raw), raw, 0, False, True)
            dataset[tag] = given
        if implicit:
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        dataset.save_as(file, implicit_vr=implicit, little_endian=True)
    (series,) = find_series(files, tmp_path)
    resolve = SuperResolver(FakeEngine(interpolation((2, 2, 2), "fft"), CARD), crop=False)
    write_derived(series, *resolve.scan(series.scan()), CARD, "f" * 64, tmp_path / "out")
    made = pydicom.dcmread(tmp_path / "out" / "00001.dcm")
    for keyword in ("InstitutionName", "PatientName", "StudyDescription"):
        assert made.get_item(keyword).value == pydicom.dcmread(files[0]).get_item(keyword).value


def test_sr_slices_say_what_the_slice_that_they_lie_in_says(tmp_path):
    files = ordered(classic(tmp_path / "in", shape=(4, 12, 10)))
    for n, file in enumerate(files):
        change(file, AcquisitionTime=f"10150{n}", **({"ImageComments": "LEFT MARKED"} if n == 2 else {}))
    (series,) = find_series(files, tmp_path)
    made = restored(series, tmp_path / "out")
    assert [d.AcquisitionTime for d in made] == [f"10150{n // 2}" for n in range(8)]
    assert [n for n, d in enumerate(made) if "LEFT MARKED" in d.ImageComments] == [4, 5]


@pytest.mark.parametrize("window", [(None, None), (0, 0), (500, 0), ([1, 2], [5])])
def test_empty_and_zero_windows_are_computed(tmp_path, window):
    files = classic(tmp_path / "in", WindowCenter=window[0], WindowWidth=window[1])
    (series,) = find_series(files, tmp_path)
    for made in restored(series, tmp_path / "out"):
        assert made.WindowWidth > 1 and 1000 < made.WindowCenter < 3000


def test_what_was_measured_of_the_model_is_in_the_derived_series(tmp_path):
    (series,) = find_series(classic(tmp_path / "in"), tmp_path)
    model = CARD.replace(quality={"tissue.db": 0.5, "lesion.kept": 0.83})
    header, sr = SuperResolver(FakeEngine(interpolation((2, 2, 2), "fft"), model), crop=False).scan(
        series.scan()
    )
    file = write_derived(series, header, sr, model, "f" * 64, tmp_path / "out", "The sender broke off.")[0]
    made = pydicom.dcmread(file)
    said = made.ContributingEquipmentSequence[0].ContributionDescription
    assert "lesion.kept=0.83; tissue.db=0.5" in said and "broke off" in made.ImageComments
