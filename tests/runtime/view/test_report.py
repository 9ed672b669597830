"""The report's yardsticks against independent ones, and a page that stands alone."""

import contextlib
import dataclasses
import json
import re
import zlib

import nibabel as nib
import numpy as np
import pytest
from udean.runtime import RunError, SuperResolver
from udean.runtime.run.find import find_scans
from udean.runtime.run.run import Settings, prepare, run_all
from udean.runtime.scan.geometry import fine_affine
from udean.runtime.scan.interpolation import acquired_again, cubic_weights, interpolated_plane
from udean.runtime.scan.profile import profile_matrix
from udean.runtime.scan.regrid import Grid, along
from udean.runtime.scan.scan import open_scan
from udean.runtime.view.comparison import compare, signal_to_noise
from udean.runtime.view.pictures import lays, png
from udean.runtime.view.report import examine_scan, write_report
from udean.trainer.simulation import kspace

from ...support.fakes import FakeEngine, card, interpolation, nearest

RANDOM = np.random.default_rng(0)
CARD = card((2, 2, 2), 3, (8, 8))


def smooth(shape):
    return kspace.zero_fill(RANDOM.uniform(0, 100, [n // 4 for n in shape]).astype(np.float32), (4, 4, 4))


@pytest.mark.parametrize("factors", [(2, 2, 2), (2, 2, 1), (1, 3, 2)])
def test_what_the_scanner_would_see_is_the_centre_of_kspace(factors):
    sr = smooth((36, 24, 24)) + 200
    wanted = kspace.acquire(sr, kspace.Acquisition(factors))
    # Up to the Nyquist frequency itself, which the magnitude of a complex image treats another way.
    np.testing.assert_allclose(acquired_again(sr, factors, "fft"), wanted, rtol=1e-3)


def test_the_center_grid_lies_half_way_between():
    x = np.arange(32)[:, None, None] * np.ones((1, 4, 4))
    sr = np.cos(2 * np.pi * x / 32)
    found = acquired_again(sr, (2, 1, 1), "center")
    np.testing.assert_allclose(found, np.cos(2 * np.pi * (2 * x[:16] + 0.5) / 32), atol=1e-5)


@pytest.mark.parametrize("grid", ["fft", "center"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tricubic_is_exact_where_the_volume_is_linear(grid, axis):
    lr = sum(np.meshgrid(np.arange(9.0), 2 * np.arange(8.0), 3 * np.arange(7.0), indexing="ij"))
    fine = interpolation((2, 2, 2), grid)(lr.transpose(2, 0, 1)[None].astype(np.float32))[0].transpose(
        1, 2, 0
    )
    found = interpolated_plane(lr, [cubic_weights(n, 2, grid) for n in lr.shape], axis, 7)
    inside = np.s_[4:-4, 4:-4]
    np.testing.assert_allclose(found[inside], np.take(fine, 7, axis)[inside], rtol=1e-5)


def pair(folder, lr, affine):
    """A scan and what repeats each of its voxels, on the grid of `CARD`."""
    volumes = ("lr", lr, affine), ("sr", nearest(lr, (2, 2, 2)), fine_affine(affine, (2, 2, 2), "fft"))
    for name, voxels, where in volumes:
        nib.save(nib.Nifti1Image(voxels, where), folder / f"{name}.nii")
    return [open_scan(folder / f"{name}.nii") for name in ("lr", "sr")]


def blob(grid, affine):
    """A soft ball of the world on a grid, brightest at its centre (12, 9, 15) mm."""
    index = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1)
    away = index @ affine[:3, :3].T + affine[:3, 3] - (12, 9, 15)
    return (900 * np.exp(-(away**2).sum(-1) / (2 * 3.2**2))).astype(np.float32)


def scan_of(path, voxels, affine):
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return open_scan(path)


@pytest.mark.parametrize("spacing", [(0.7, 0.7, 0.7), (1.0, 0.8, 1.3), (1.5, 1.0, 0.9)], ids=str)
@pytest.mark.parametrize("kind", ["slab", "through-plane"])
def test_a_result_of_any_spacing_is_compared_where_it_lies(tmp_path, kind, spacing):
    """A result that is the truth explains the scan, a B-spline comes close; half a voxel off it does not."""
    zooms, shape = ((1.5, 1.5, 1.5), (16, 13, 20)) if kind == "slab" else ((1.5, 1.0, 4.0), (16, 19, 8))
    affine = np.diag([*zooms, 1.0])
    grid = Grid.over(shape, zooms, spacing)
    own = CARD.replace(kind=kind, scale=(1, 1, 1), slab=(5, 1)) if kind == "through-plane" else CARD
    lr = blob(shape, affine)
    if kind == "through-plane":  # what slices 4 mm wide at half maximum see of the ball
        fine = Grid.over(shape, zooms, (1.5, 1.0, 0.5))
        ball = blob(fine.shape, fine.affine(affine))
        lr = along(profile_matrix("gaussian", 8.0, 8 * np.arange(8) + 3.5, 64), ball, 2)
    scan = scan_of(tmp_path / "lr.nii", lr, affine)
    sr = scan_of(tmp_path / "sr.nii", blob(grid.shape, grid.affine(affine)), grid.affine(affine))
    found = compare(scan, sr, own, profile_mm=4.0)
    assert found.interpolation == "cubic B-spline" and found.consistency < 0.015
    assert found.measurement == ("slices" if kind == "through-plane" else "k-space")
    coarse = tuple(max(a, b) for a, b in zip(spacing, zooms, strict=True))
    where = found.coarse.affine(affine)
    np.testing.assert_allclose(np.diag(where)[:3], coarse, rtol=1e-5)
    assert found.difference.shape == found.coarse.shape
    for axis in range(3):
        middle = grid.shape[axis] // 2
        spline, truth = found.interpolated(axis, middle), found.fine(axis, middle)
        assert np.linalg.norm(spline - truth) < (0.3 if kind == "through-plane" else 0.03) * np.linalg.norm(
            truth
        )
    moved = grid.affine(affine)
    moved[0, 3] += 0.45 * zooms[0]
    off = scan_of(tmp_path / "off.nii", np.asarray(sr.voxels()), moved)
    with contextlib.suppress(RunError):  # so far off that no grid over this scan has it
        assert compare(scan, off, own, profile_mm=4.0).consistency > 0.05


def test_a_result_that_lies_elsewhere_is_none_of_this_scan(tmp_path):
    volume = smooth((16, 16, 16)).astype(np.float32)
    scan = scan_of(tmp_path / "lr.nii", volume, np.eye(4))
    fine = np.repeat(volume, 2, 2)
    for affine in (
        np.diag([1, 1, 2, 1]),
        np.diag([-1, 1, 0.5, 1]),
        np.eye(4)[[1, 0, 2, 3]] @ np.diag([1, 1, 0.5, 1]),
    ):
        with pytest.raises(RunError, match="made from another scan"):
            compare(scan, scan_of(tmp_path / "sr.nii", fine, affine), CARD)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)], ids=str)
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)], ids=str)
def test_pictures_are_laid_as_a_radiologist_expects_them(axes, signs):
    """The patient's right on the left, the front above or on the left, the head above; in any orientation."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, axes] * signs
    shape = (4, 5, 6)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T  # right, front and head are the positive directions
    for name, down, right in (("axial", 1, 0), ("coronal", 2, 0), ("sagittal", 2, 1)):
        lay = lays(affine)[name]
        for along_it, run in ((down, 0), (right, 1)):
            picture = lay.picture(np.take(world[..., along_it], 1, lay.axis))
            assert (np.diff(picture, axis=run) < 0).all() and (np.diff(picture, axis=1 - run) == 0).all()
        rows, columns = lay.picture(np.take(world[..., 0], 1, lay.axis)).shape
        assert lay.aspect(shape, (1, 1, 1)) == columns / rows


def test_signal_to_noise_is_found():
    volume = smooth((64, 64, 32)) * 0.1 + 500
    noisy = volume + RANDOM.normal(0, 25, volume.shape)
    assert signal_to_noise(noisy.astype(np.float32), 520.0) == pytest.approx(20, rel=0.1)


def test_signal_to_noise_is_that_of_the_slices_wherever_they_lie(tmp_path):
    slices = kspace.zero_fill(RANDOM.uniform(0, 100, (16, 16, 32)).astype(np.float32), (4, 4, 1)) + 200
    found = []
    for axis in range(3):
        lr, affine = np.moveaxis(slices, 2, axis), np.diag([*np.insert([1.0, 1.0], axis, 3.0), 1.0])
        found.append(examine_scan(*pair(tmp_path, lr, affine), CARD).comparison.snr)
    assert found == pytest.approx([found[0]] * 3)


def test_a_picture_is_a_png():
    data = png(np.array([[0.0, 0.5, 1.0], [2.0, -1.0, 0.25]]))
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data[16:24] == bytes([0, 0, 0, 3, 0, 0, 0, 2])
    body = zlib.decompress(data[data.index(b"IDAT") + 4 : data.index(b"IEND") - 8])
    assert list(body) == [0, 0, 128, 255, 0, 255, 0, 64]


def test_an_odd_scan_is_warned_of(tmp_path):
    data = RANDOM.normal(0, 50, (16, 16, 8)).astype(np.int16)
    data[:4] = 2000
    found = examine_scan(*pair(tmp_path, data, np.eye(4)), card((2, 2, 2), 3, (64, 64)))
    text = " ".join(found.comparison.warnings)
    for word in ("negative", "smaller", "saturated"):
        assert word in text
    assert [len(row) for row in found.rows] == [4, 4, 4] and found.comparison.consistency > 0


def test_the_page_stands_alone_and_shows_every_scan(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    volume = smooth((24, 24, 16)) + 100
    nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / "good&.nii.gz")
    image = nib.Nifti1Image(np.stack([volume.astype(np.int16)] * 2, -1), np.eye(4))
    nib.save(image, folder / "series.nii")
    (folder / "bad.nii").write_bytes(b"<bad>")
    jobs = find_scans([str(folder)])
    prepare(jobs)
    resolve = SuperResolver(FakeEngine(lambda x: nearest(x, (2, 2, 2)), CARD))
    outcomes = list(run_all(jobs, resolve, Settings(series=True)))
    sidecar = json.loads(jobs[-1].sidecar.read_text())
    sidecar["udean"]["timings"] = None  # somebody has edited it
    jobs[-1].sidecar.write_text(json.dumps(sidecar))
    page = tmp_path / "report.html"
    write_report(page, outcomes, CARD, series=True)
    text = page.read_text()
    assert text.count("<img") == 24 and "good&amp;.nii.gz" in text and "not a NIfTI file" in text
    assert not re.findall(r"https?:|src=\"(?!data:)|<script|<link|@import", text)
    assert "network 0." in text and "k-space" in text
    assert "(white) in the scan’s units" in text and "root mean square" in text
    assert not re.findall(r"[{}]", text.partition("</style>")[2])  # words, no Python


def test_a_model_is_described_in_words_with_units(tmp_path):
    quality, parity = (
        {"icbm152.sr.psnr": 36.3563},
        {"openvino-cpu/brain": {"max_error": 4e-07, "psnr": 149.0}},
    )
    page = tmp_path / "report.html"
    write_report(page, [], dataclasses.replace(CARD, quality=quality, parity=parity))
    text = page.read_text()
    for words in ("<td>2 x 2 x 2 (rows", "icbm152 sr psnr<td>36.36 dB", "max error 4e-07, psnr 149.00 dB"):
        assert words in text
