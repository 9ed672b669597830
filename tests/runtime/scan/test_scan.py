"""Headers and files: what is refused and why, what survives, what is written."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Extension
from udean.runtime import RunError
from udean.runtime.scan.scan import fine_image, image_scan, open_scan, write_scan

RANDOM = np.random.default_rng(0)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([-1.5, 1.5, 3]), [10, -20, 30]
)


def scan_image(dtype="int16", shape=(6, 5, 4), kind=nib.Nifti1Image):
    data = RANDOM.integers(0, 100, shape).astype(dtype)
    image = kind(data, OBLIQUE)
    image.set_data_dtype(dtype)
    image.set_qform(OBLIQUE, 1)
    image.set_sform(OBLIQUE, 4)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"a scan"
    image.header["cal_max"] = 90
    return image


def saved(image, path):
    nib.save(image, path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_voxels_and_header_come_back_whole(tmp_path, suffix, dtype, kind):
    image = scan_image(dtype, kind=kind)
    image.header.extensions.append(Nifti1Extension("comment", b"kept"))
    scan = open_scan(saved(image, tmp_path / f"in{suffix}"))
    out = tmp_path / f"out{suffix}"
    write_scan(out, scan.fine_header((1, 1, 1), "fft", scan.dtype), scan.voxels())
    back = nib.load(out)
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), np.asanyarray(image.dataobj))
    assert back.get_data_dtype() == dtype and back.dataobj.slope == 1
    assert type(back) is kind and back.header.extensions[0].get_content() == b"kept"
    first = out.read_bytes()
    write_scan(out, scan.fine_header((1, 1, 1), "fft", scan.dtype), scan.voxels())
    assert out.read_bytes() == first


def test_big_endian_scans_are_read(tmp_path):
    image = scan_image()
    header = image.header.as_byteswapped(">")
    scan = open_scan(saved(nib.Nifti1Image(image.dataobj, None, header), tmp_path / "big.nii"))
    assert scan.dtype == ">i2"
    np.testing.assert_array_equal(scan.voxels(), np.asanyarray(image.dataobj))
    np.testing.assert_allclose(scan.affine, OBLIQUE, atol=1e-5)


def test_fine_header_keeps_what_does_not_depend_on_the_grid(tmp_path):
    image = scan_image()
    image.header["slice_code"], image.header["slice_end"] = 1, 3
    image.set_sform(np.diag([2, 2, 3, 1]), 2)  # differs from the qform: both are refined by themselves
    scan = open_scan(saved(image, tmp_path / "scan.nii"))
    header = scan.fine_header((2, 2, 2), "fft", np.dtype("int16"))
    assert header.get_data_shape() == (12, 10, 8)
    half = np.diag([0.5, 0.5, 0.5, 1])
    np.testing.assert_allclose(header.get_qform(), image.get_qform() @ half, atol=1e-5)
    np.testing.assert_allclose(header.get_sform(), image.get_sform() @ half, atol=1e-5)
    assert (header["qform_code"], header["sform_code"]) == (1, 2)
    assert header.get_xyzt_units() == ("mm", "sec") and header["descrip"] == b"a scan"
    assert header["cal_max"] == 90 and header["slice_code"] == 0 and header["slice_end"] == 0
    np.testing.assert_allclose(header.get_zooms(), [0.75, 0.75, 1.5], rtol=1e-6)


@pytest.mark.parametrize(("qform", "sform"), [(1, 0), (0, 3), (1, 2)])
def test_only_the_forms_that_were_set_are_set(qform, sform):
    image = scan_image()
    image.set_qform(OBLIQUE if qform else None, qform)
    image.set_sform(OBLIQUE if sform else None, sform)
    header = image_scan(image).fine_header((2, 2, 2), "center", np.dtype("float32"))
    assert (header["qform_code"], header["sform_code"]) == (qform, sform)
    edge = [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(header.get_best_affine() @ edge, OBLIQUE @ edge, atol=1e-4)


def test_a_scan_without_forms_still_overlays(tmp_path):
    image = scan_image()
    image.header["qform_code"] = image.header["sform_code"] = 0
    scan = open_scan(saved(nib.Nifti1Image(image.dataobj, None, image.header), tmp_path / "bare.nii"))
    sr = scan.fine_header((2, 2, 2), "fft", np.dtype("int16")).get_best_affine()
    np.testing.assert_allclose(sr @ [2, 4, 6, 1], scan.affine @ [1, 2, 3, 1], atol=1e-5)


def test_scaled_integers_keep_their_units(tmp_path):
    image = scan_image()
    image.header.set_slope_inter(0.5, -10)
    path = saved(image, tmp_path / "scaled.nii")
    scan = open_scan(path)
    assert (scan.slope, scan.inter) == (0.5, -10)
    header = scan.fine_header((1, 1, 1), "fft", scan.dtype)
    write_scan(tmp_path / "out.nii", header, scan.voxels())
    np.testing.assert_array_equal(nib.load(tmp_path / "out.nii").get_fdata(), nib.load(path).get_fdata())
    np.testing.assert_array_equal(fine_image(header, scan.voxels()).get_fdata(), nib.load(path).get_fdata())


def test_a_trailing_axis_of_one_volume_is_no_time_series(tmp_path):
    path = saved(nib.Nifti1Image(np.ones((3, 4, 5, 1), np.float32), np.eye(4)), tmp_path / "a.nii")
    assert open_scan(path).voxels().shape == (3, 4, 5)


def edited(path, image, **fields):
    """A valid file whose header fields are then overwritten, unchecked."""
    nib.save(image, path)
    header = nib.Nifti1Header(path.read_bytes()[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    return path


def bad_scans(folder):
    """(file, word of the sentence) of every scan that must be refused; shared with the command's test."""
    image = scan_image()
    rgb = np.zeros((3, 3, 3), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    zooms = image.header["pixdim"].copy()
    whole = gzip.compress(saved(scan_image(shape=(20, 20, 20)), folder / "whole.nii").read_bytes())
    (folder / "whole.nii").unlink()
    files = {
        "missing.nii": ("does not exist", None),
        "text.nii": ("not a NIfTI", b"this is a text file"),
        "empty.nii.gz": ("not a NIfTI", b""),
        "cut.nii.gz": ("truncated", whole[: len(whole) // 2]),
        "cuthead.nii.gz": ("truncated", whole[:60]),
        "flipped.nii.gz": ("damaged", whole[:-8] + bytes(4) + whole[-4:]),
        "none.mgz": ("FreeSurfer", b""),
        "stub.mgz": ("FreeSurfer", gzip.compress(bytes(100))),
    }
    for name, (_, content) in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    cases = {name: word for name, (word, _) in files.items()}

    def add(name, word, image, **fields):
        edited(folder / name, image, **fields)
        cases[name] = word

    add("series.nii", "4-D", nib.Nifti1Image(np.ones((3, 3, 3, 2), np.float32), np.eye(4)))
    add("flat.nii", "2-D", nib.Nifti1Image(np.ones((3, 3), np.float32), np.eye(4)))
    add("complex.nii", "complex", nib.Nifti1Image(np.ones((3, 3, 3), np.complex64), np.eye(4)))
    add("rgb.nii", "colour", nib.Nifti1Image(rgb, np.eye(4)))
    zooms[2] = 0
    add("zerozoom.nii", "voxel size", image, pixdim=zooms.copy(), sform_code=0)
    zooms[2] = np.nan
    add("nanzoom.nii", "voxel size", image, pixdim=zooms.copy(), sform_code=0)
    add("singular.nii", "affine", image, srow_z=[0, 0, 0, 0])
    add("nanaffine.nii", "affine", image, srow_x=[np.nan, 0, 0, 0])
    add("quaternion.nii", "affine", image, quatern_b=3.0, sform_code=0)
    add("huge.nii", "truncated", image, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    add("negative.nii", "dimensions", image, dim=[3, -4, 5, 6, 1, 1, 1, 1])
    add("manydims.nii", "dimensions", image, dim=[99, 4, 5, 6, 1, 1, 1, 1])
    add("offset.nii", "begin at", image, vox_offset=1e12)
    add("datatype.nii", "damaged header", image, datatype=12345)
    for code in (0, 1, 1536):
        add(f"datatype{code}.nii", f"datatype {code}:", image, datatype=code)
    add("inter.nii", "scl_inter", image, scl_slope=1, scl_inter=np.inf)
    nan = np.ones((4, 4, 4), np.float32)
    nan[1, 2, 3] = np.nan
    add("nan.nii", "NaN or infinite", nib.Nifti1Image(nan, np.eye(4)))
    nan[1, 2, 3] = -np.inf
    add("inf.nii", "NaN or infinite", nib.Nifti1Image(nan, np.eye(4)))
    big = edited(folder / "big.nii", image, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    (folder / "bighead.nii.gz").write_bytes(gzip.compress(big.read_bytes()))
    big.unlink()
    cases["bighead.nii.gz"] = "truncated"
    return cases


def test_bad_headers_are_refused_before_memory_is_taken(tmp_path):
    for name, word in bad_scans(tmp_path).items():
        if name in ("nan.nii", "inf.nii"):
            continue  # their headers are fine
        with pytest.raises(RunError, match=word) as caught:
            open_scan(tmp_path / name).voxels()
        message = str(caught.value)
        assert name in message and "\n" not in message, message


def test_a_pair_header_is_named_as_such(tmp_path):
    nib.save(nib.Nifti1Pair(np.ones((3, 3, 3), np.float32), np.eye(4)), tmp_path / "a.img")
    with pytest.raises(RunError, match="join the pair"):
        open_scan(tmp_path / "a.hdr")


def test_a_gzip_whose_stream_is_longer_than_its_header_says_is_read_no_further(tmp_path):
    image = scan_image()
    path = saved(image, tmp_path / "a.nii")
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(path.read_bytes() + bytes(1 << 20)))
    np.testing.assert_array_equal(open_scan(tmp_path / "b.nii.gz").voxels(), np.asanyarray(image.dataobj))


def test_vox_offset_of_zero_means_after_the_header(tmp_path):
    image = scan_image()
    path = edited(tmp_path / "a.nii", image, vox_offset=0)
    assert struct.unpack("<f", path.read_bytes()[108:112]) == (0,)
    np.testing.assert_array_equal(open_scan(path).voxels(), np.asanyarray(image.dataobj))


@pytest.mark.parametrize("dtype", [np.float16, bool])
def test_images_that_nifti_cannot_hold_are_refused(dtype):
    class Odd:
        ndim, shape, dataobj = 3, (3, 3, 3), np.ones((3, 3, 3), dtype)

    with pytest.raises(RunError, match="convert"):
        image = nib.Nifti1Image(np.ones((3, 3, 3), np.float32), np.eye(4))
        image._dataobj = Odd.dataobj
        image_scan(image)


def test_other_nibabel_formats_are_taken(tmp_path):
    image = nib.MGHImage(RANDOM.integers(0, 100, (4, 5, 6)).astype(np.int16), OBLIQUE)
    nib.save(image, tmp_path / "a.mgz")
    scan = image_scan(nib.load(tmp_path / "a.mgz"))
    np.testing.assert_allclose(scan.affine, OBLIQUE, atol=1e-4)
    np.testing.assert_array_equal(scan.voxels(), np.asanyarray(image.dataobj))


@pytest.mark.parametrize(
    "fields",
    [
        {"sform_code": 6},
        {"sform_code": 1000},
        {"sizeof_hdr": 1},
        {"sizeof_hdr": 0, "vox_offset": 0},
        {"vox_offset": np.nan},
    ],
)
def test_what_does_not_matter_may_be_odd_in_a_header(tmp_path, fields):
    image = scan_image()
    scan = open_scan(edited(tmp_path / "odd.nii", image, **fields))
    np.testing.assert_allclose(scan.affine, OBLIQUE, atol=1e-5)
    header = scan.fine_header((1, 1, 1), "fft", scan.dtype)
    assert header["sform_code"] == fields.get("sform_code", 4) and header["sizeof_hdr"] == 348
    write_scan(tmp_path / "out.nii", header, scan.voxels())
    back = nib.load(tmp_path / "out.nii")
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), np.asanyarray(image.dataobj))
    np.testing.assert_allclose(back.affine, OBLIQUE, atol=1e-5)


def test_voxel_sizes_are_those_of_the_affine_in_use(tmp_path):
    image = scan_image()
    image.set_sform(np.diag([5, 1, 1, 1]), 2)
    path = edited(tmp_path / "a.nii", image, qform_code=0, pixdim=[1] * 8)
    np.testing.assert_allclose(open_scan(path).zooms, (5, 1, 1))


def test_a_freesurfer_series_keeps_its_repetition_time(tmp_path):
    image = nib.MGHImage(RANDOM.integers(0, 100, (4, 5, 6, 3)).astype(np.int16), OBLIQUE)
    image.header.set_zooms((1.5, 1.5, 3, 2000))  # milliseconds
    nib.save(image, tmp_path / "a.mgz")
    header = open_scan(tmp_path / "a.mgz", series=True).fine_header((2, 2, 2), "fft", np.dtype("int16"))
    assert header.get_xyzt_units() == ("mm", "msec") and header["pixdim"][4] == 2000


def damaged(path, **fields):
    """The scan's file with these fields of its header."""
    with open(saved(scan_image(), path), "r+b") as file:
        header = nib.Nifti1Header.from_fileobj(file, check=False)
        for name, value in fields.items():
            header[name] = value
        file.seek(0)
        file.write(header.binaryblock)
    return path


PIXDIM = [0, 1.5, 1.5, 3, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pixdim": PIXDIM}, "qfac 0"),
        ({"quatern_b": 0.9, "quatern_c": 0.9, "quatern_d": 0.9}, "damaged qform: its sform"),
        ({"quatern_b": np.nan}, "damaged qform: its sform"),
        ({"quatern_b": 0.6, "quatern_c": 0.8, "quatern_d": 1.1e-3}, None),
    ],
)
def test_a_damaged_qform_gives_way_to_a_sound_sform(tmp_path, fields, said):
    scan = open_scan(damaged(tmp_path / "a.nii", **fields))
    if said is None:  # longer than 1 by rounding alone: shortened, without a word
        assert not scan.remarks and np.isfinite(scan.header.get_qform()).all()
        return
    (remark,) = scan.remarks
    assert said in remark and str(tmp_path / "a.nii") in remark
    if "qfac" not in said:
        np.testing.assert_allclose(scan.affine, OBLIQUE, atol=1e-5)
    fine = scan.fine_header((2, 2, 2), "fft", scan.dtype)
    np.testing.assert_allclose(fine.get_sform()[:3, :3], scan.affine[:3, :3] / 2, atol=1e-5)
    assert fine["qform_code"] == 1 and fine["sform_code"] == 4
    if "qfac" not in said:
        np.testing.assert_allclose(fine.get_qform()[:3, :3], OBLIQUE[:3, :3] / 2, atol=1e-5)


@pytest.mark.parametrize("size", [0, -1.5, np.nan, np.inf])
def test_impossible_voxel_sizes_give_way_to_a_sound_sform(tmp_path, size):
    path = damaged(tmp_path / "a.nii", pixdim=[1, size, 1.5, 3, 0, 0, 0, 0])
    scan = open_scan(path)
    assert "no usable voxel size" in scan.remarks[0] and str(path) in scan.remarks[0]
    np.testing.assert_allclose(scan.header["pixdim"][1:4], [1.5, 1.5, 3], rtol=1e-5)
    np.testing.assert_allclose(scan.affine, OBLIQUE, atol=1e-5)
    with pytest.raises(RunError, match="no usable voxel size"):
        open_scan(damaged(tmp_path / "b.nii", pixdim=[1, size, 1.5, 3, 0, 0, 0, 0], sform_code=0))


@pytest.mark.parametrize("form", ["sform", "qform"])
def test_an_affine_that_is_damaged_and_alone_is_refused(tmp_path, form):
    other = {"sform": "qform_code", "qform": "sform_code"}[form]
    spoilt = {"srow_x": [0, 0, 0, 0], "quatern_b": 0.9, "quatern_c": 0.9, "quatern_d": 0.9}
    with pytest.raises(RunError, match=rf"damaged affine \({form}\)"):
        open_scan(damaged(tmp_path / "a.nii", **spoilt, **{other: 0}))
    with pytest.raises(RunError, match="sform and qform"):
        open_scan(damaged(tmp_path / "b.nii", **spoilt))


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3), ("mm", 1), ("unknown", 1)])
def test_sizes_are_millimetres_whatever_the_header_counts_in(unit, factor):
    image = scan_image()
    affine = np.diag([factor] * 3 + [1]) @ OBLIQUE
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units(unit)
    scan = image_scan(image)
    np.testing.assert_allclose(scan.zooms, [1.5, 1.5, 3], rtol=1e-5)
    np.testing.assert_allclose(scan.affine, OBLIQUE, rtol=1e-4, atol=1e-4)
    assert scan.fine_header((2, 2, 2), "fft", scan.dtype).get_xyzt_units()[0] == unit


def test_the_world_of_a_freesurfer_volume_is_the_scanners(tmp_path):
    affine = np.array([[-1, 0, 0, 10], [0, 0, 1, 20], [0, -1, 0, 30], [0, 0, 0, 1.0]])
    scan = open_scan(saved(nib.MGHImage(np.zeros((4, 5, 6), np.float32), affine), tmp_path / "a.mgz"))
    fine = scan.fine_header((2, 2, 2), "fft", scan.dtype)
    assert (fine["qform_code"], fine["sform_code"]) == (1, 1)
    np.testing.assert_allclose(fine.get_qform(), fine.get_sform(), atol=1e-6)


@pytest.mark.parametrize("other", [np.diag([2, 1.5, 3, 1]), nib.affines.from_matvec(np.eye(3), [9, 0, 0])])
def test_two_affines_of_one_world_are_said_to_differ(other):
    image = scan_image()
    image.set_sform(other @ OBLIQUE, 4)
    assert not image_scan(image).remarks  # of two worlds they may
    image.header["sform_code"] = 1
    (remark,) = image_scan(image).remarks
    assert "apart: its sform is used" in remark


def test_a_scan_that_does_not_say_how_it_lies_is_named():
    image = scan_image()
    image.header["qform_code"] = image.header["sform_code"] = 0
    (remark,) = image_scan(image).remarks
    assert "does not say how it lies" in remark


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0, struct.pack(">i", 7), "or damaged"),  # version
        (4, struct.pack(">i", -6), "or damaged"),  # dimensions
        (20, struct.pack(">i", 99), "or damaged"),  # type
        (30, bytes(12), "affine"),  # voxel sizes
        (42, struct.pack(">f", np.nan), "affine"),
    ],
)
def test_a_damaged_freesurfer_header_is_one_sentence(tmp_path, capfd, at, value, why):
    image = nib.MGHImage(RANDOM.integers(0, 100, (4, 5, 6)).astype(np.int16), OBLIQUE)
    data = bytearray(saved(image, tmp_path / "a.mgh").read_bytes())
    data[at : at + len(value)] = value
    (tmp_path / "a.mgh").write_bytes(data)
    with pytest.raises(RunError, match=why) as error:
        open_scan(tmp_path / "a.mgh")
    assert "\n" not in str(error.value) and capfd.readouterr() == ("", "")


def test_a_freesurfer_volume_without_an_orientation_is_named(tmp_path):
    data = bytearray(
        saved(nib.MGHImage(np.ones((4, 5, 6), np.int16), OBLIQUE), tmp_path / "a.mgh").read_bytes()
    )
    data[28:30] = bytes(2)
    (tmp_path / "a.mgh").write_bytes(data)
    scan = open_scan(tmp_path / "a.mgh")
    assert scan.zooms == (1, 1, 1) and "FreeSurfer's own" in scan.remarks[0]


@pytest.mark.parametrize("suffix", [".nii.gz", ".mgz"])
@pytest.mark.parametrize("behind", [b"", b"more than the header asks for"])
def test_damage_shows_by_the_checksum(tmp_path, suffix, behind):
    kind = nib.Nifti1Image if suffix == ".nii.gz" else nib.MGHImage
    stored = saved(kind(RANDOM.integers(0, 9, (9, 9, 9)).astype(np.int16), OBLIQUE), tmp_path / f"a{suffix}")
    packed = bytearray(gzip.compress(gzip.decompress(stored.read_bytes()) + behind))
    stored.write_bytes(packed)
    whole = open_scan(stored).voxels()
    assert whole.shape == (9, 9, 9) and whole.max() == 8
    packed[-6] ^= 1
    stored.write_bytes(packed)
    with pytest.raises(RunError, match="damaged"):
        open_scan(stored).voxels()
