"""The report's yardsticks against independent ones, and a page that stands alone."""

import dataclasses
import json
import re
import zlib

import nibabel as nib
import numpy as np
import pytest
from udean.runtime import SuperResolver
from udean.runtime.runs.find import find_scans
from udean.runtime.runs.run import Settings, prepare, run_all
from udean.runtime.scans.interpolation import acquired_again, tricubic_plane
from udean.runtime.scans.scan import open_scan
from udean.runtime.view.comparison import signal_to_noise
from udean.runtime.view.report import examine, png, write_report
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
    found = tricubic_plane(lr, (2, 2, 2), grid, axis, 7)
    inside = np.s_[4:-4, 4:-4]
    np.testing.assert_allclose(found[inside], np.take(fine, 7, axis)[inside], rtol=1e-5)


def test_signal_to_noise_is_found():
    volume = smooth((64, 64, 32)) * 0.1 + 500
    noisy = volume + RANDOM.normal(0, 25, volume.shape)
    assert signal_to_noise(noisy.astype(np.float32), 520.0) == pytest.approx(20, rel=0.1)


def test_signal_to_noise_is_that_of_the_slices_wherever_they_lie(tmp_path):
    slices = kspace.zero_fill(RANDOM.uniform(0, 100, (16, 16, 32)).astype(np.float32), (4, 4, 1)) + 200
    found = []
    for axis in range(3):
        lr, affine = np.moveaxis(slices, 2, axis), np.diag([*np.insert([1.0, 1.0], axis, 3.0), 1.0])
        for name, voxels in (("lr", lr), ("sr", nearest(lr, (2, 2, 2)))):
            nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii")
        found.append(examine(open_scan(tmp_path / "lr.nii"), open_scan(tmp_path / "sr.nii"), CARD).snr)
    assert found == pytest.approx([found[0]] * 3)


def test_a_picture_is_a_png():
    data = png(np.array([[0.0, 0.5, 1.0], [2.0, -1.0, 0.25]]))
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data[16:24] == bytes([0, 0, 0, 2, 0, 0, 0, 3])
    body = zlib.decompress(data[data.index(b"IDAT") + 4 : data.index(b"IEND") - 8])
    assert list(body) == [0, 255, 64, 0, 128, 0, 0, 0, 255]


def test_an_odd_scan_is_warned_of(tmp_path):
    data = RANDOM.normal(0, 50, (16, 16, 8)).astype(np.int16)
    data[:4] = 2000
    for name, voxels in (("lr", data), ("sr", nearest(data, (2, 2, 2)))):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{name}.nii")
    found = examine(
        open_scan(tmp_path / "lr.nii"), open_scan(tmp_path / "sr.nii"), card((2, 2, 2), 3, (64, 64))
    )
    text = " ".join(found.warnings)
    for word in ("negative", "smaller", "saturated"):
        assert word in text
    assert len(found.pictures) == 12 and found.consistency > 0


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
    assert "(white) in the scan's units" in text and "root mean square" in text
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
