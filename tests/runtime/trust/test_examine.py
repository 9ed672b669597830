"""The examination's figures where the answer is known: the truth, a blind method, plain interpolation."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from udean.runtime.commands.trust import trust
from udean.runtime.engines import choose as engines
from udean.runtime.errors import RunError
from udean.runtime.trust import phantoms, scanner
from udean.runtime.trust.examine import against, high_band
from udean.runtime.trust.lesions import contrast_kept, put_lesions
from udean.runtime.trust.low_contrast import spokes_seen
from udean.runtime.trust.page import page
from udean.runtime.trust.resolution import edge_spread, two_points

SHAPE, SCALE = (96, 96, 96), (2, 2, 2)
MODEL = Path(engines.__file__).parents[1] / "models" / "default.onnx"


@pytest.mark.parametrize("where", ["inside", "boundary"])
def test_lesions_are_kept_by_the_truth_and_lost_by_the_blind(where):
    hr = phantoms.head_phantom(SHAPE)
    added, found = put_lesions(hr, where)
    assert len(found) >= 8 and {lesion.sign for lesion in found} == {1, -1}
    uneven = np.median([hr[lesion.place].std() / hr[lesion.place].mean() for lesion in found])
    assert (uneven > 0.15) == (where == "boundary")
    whole = contrast_kept(added, found, hr + added, hr)
    assert all(share == pytest.approx(1, abs=1e-5) for shares in whole.values() for share in shares.values())
    assert all(shares["all"] == 0 for shares in contrast_kept(added, found, hr, hr).values())
    half = contrast_kept(added, found, hr + 0.5 * added, hr)
    tests = {"lesions": {"sr": half, "sinc": whole}, "high band": {"sr": {"factor": 0.7}}}
    lost, drawn = against(tests)
    assert "radius 1, 1.5, 2, 3 voxels keep 0.50, 0.50, 0.50, 0.50 of" in lost and "1.00" in lost
    assert "0.70" in drawn
    shown = page({"Model": "<m>"}, tests, against(tests))
    assert "&lt;m&gt;" in shown and "<td>0.5</td><td>1</td>" in shown and "Detail" in shown
    assert not against({"lesions": {"sr": whole, "sinc": half}, "high band": {"sr": {}}})


def test_a_model_that_loses_dark_lesions_alone_is_told():
    hr = phantoms.head_phantom(SHAPE)
    added, found = put_lesions(hr)
    found = [lesion for lesion in found if lesion.sign > 0 or lesion.radius == 1][:-1]
    found += [lesion for lesion in put_lesions(hr)[1] if lesion.sign < 0 and lesion.radius == 3][:1]
    whole = contrast_kept(added, found, hr + added, hr)
    bright = contrast_kept(added, found, hr + np.maximum(added, 0), hr)
    assert bright["3"]["all"] == pytest.approx(1, abs=1e-5)  # a median: there are more bright ones
    objections = against({"lesions": {"sr": bright, "sinc": whole}, "high band": {"sr": {}}})
    assert "Dark lesions of radius 3 voxels keep 0.00 of their contrast" in objections[-1], objections


def test_a_scan_in_which_no_lesion_can_be_put_is_no_proof(tmp_path):
    noise = np.random.default_rng(0).normal(500, 200, (48, 48, 48)).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / "noise.nii")
    with pytest.raises(RunError, match=r"noise\.nii has no homogeneous bright tissue"):
        trust(tmp_path / "trust", tmp_path / "noise.nii")


def test_detail_drawn_twice_too_strongly_is_told_by_its_factor():
    hr = phantoms.head_phantom(SHAPE)
    low = scanner.sinc(scanner.acquire(hr, SCALE, "fft"), SCALE, "fft")
    twice = high_band(low + 2 * (hr - low), hr, SCALE, "fft")
    assert twice["factor"] == pytest.approx(0.5, abs=0.02) and twice["correlation"] > 0.98
    assert high_band(low, hr, SCALE, "fft") == {}


def test_a_blurred_edge_is_wider_and_a_truncated_one_rings():
    sharp, depth = phantoms.edge((72, 48, 48))
    lr = scanner.acquire(sharp, SCALE, "fft")
    true, cubic = (edge_spread(v, depth) for v in (sharp, scanner.tricubic(lr, SCALE, "fft")))
    assert true["10 to 90 %, voxels"] < 1.2 < cubic["10 to 90 %, voxels"]
    assert true["overshoot"] < 0.01 < 0.03 < cubic["overshoot"]
    assert true["MTF 50 %, cycles a voxel"] > cubic["MTF 50 %, cycles a voxel"]


def test_two_points_of_a_truncated_scan_are_told_apart_from_one_and_a_half_lr_voxels():
    """Their profiles are then sincs, which at a distance of 1.43 of their first zero leave Rayleigh's dip
    (for two coherent points: 8 % of the intensity's 19 % are gone at 1.5)."""
    points, pairs = phantoms.pairs(SHAPE)
    assert len(pairs) == len(phantoms.DISTANCES) * 3 * phantoms.PHASES
    true = two_points(points, pairs)
    coarse = two_points(scanner.sinc(scanner.acquire(points, SCALE, "fft"), SCALE, "fft"), pairs)
    t = np.linspace(1, 2, 1001)
    middle, peak = 2 * np.sinc(t / 2), 1 + np.sinc(t)
    expected = 2 * t[np.argmax(middle < 8 / np.pi**2 * peak)]  # in HR voxels
    for axis in ("rows, voxels", "columns, voxels", "slices, voxels"):
        assert true[axis] < 2 and coarse[axis] == pytest.approx(expected, abs=0.3)


def test_spokes_of_little_contrast_are_seen_until_noise_hides_them():
    faint, plain, disks = phantoms.low_contrast(SHAPE)
    noise = np.random.default_rng(0).normal(size=(2, *SHAPE))
    seen = [spokes_seen(faint + s * noise[0], plain + s * noise[1], disks) for s in (1, 30, 100, 1000)]
    assert seen[0] == 40 and seen == sorted(seen, reverse=True) and 0 < seen[2] < seen[1] < 40
    assert spokes_seen(plain + 30 * noise[0], plain + 30 * noise[1], disks) <= 2


@pytest.mark.parametrize("grid", ["fft", "center"])
def test_sinc_undoes_what_the_scanner_does(grid):
    smooth = phantoms.ramp((48, 12, 12))
    lr = scanner.acquire(smooth, (3, 2, 1), grid)
    assert lr.shape == (16, 6, 12)
    assert np.allclose(scanner.sinc(lr, (3, 2, 1), grid), smooth, atol=0.01)


@pytest.mark.skipif(not MODEL.exists(), reason="the embedded model is made by `make default-model`")
@pytest.mark.parametrize("unit", [0.25, 0.5, 2.0, 4.0])
def test_the_embedded_network_restores_a_scan_in_any_unit_alike(unit):
    """Its PSNR changes by less than 0.05 dB, though the unit that it is told is wrong."""
    hr = phantoms.head_phantom((64, 64, 48)) / np.float32(phantoms.BRIGHT)
    engine = engines.open_engine(MODEL, "cpu", "fp32")
    lr = scanner.acquire(hr, SCALE, "fft")
    middle = lr.shape[2] // 2
    windows = np.ascontiguousarray(np.moveaxis(lr[:, :, middle - 1 : middle + 2], 2, 0))[None]
    truth = np.moveaxis(hr[:, :, 2 * middle : 2 * middle + 2], 2, 0)
    psnr = [
        -10 * np.log10(np.mean(np.square(engine(windows * np.float32(s))[0, 2:4] / s - truth)))
        for s in (1, unit)
    ]
    assert psnr[0] > 30 and psnr[1] == pytest.approx(psnr[0], abs=0.05)
