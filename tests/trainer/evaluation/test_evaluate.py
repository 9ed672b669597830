"""Each figure against a case whose answer is known, and the tables that carry them."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from scipy import fft, ndimage
from udean.runtime.errors import RunError
from udean.runtime.scan.geometry import fine_affine
from udean.trainer.evaluation import quality
from udean.trainer.evaluation.evaluate import Summary, evaluate
from udean.trainer.evaluation.quality import measure
from udean.trainer.simulation import kspace


@pytest.fixture
def hr(head):
    return ndimage.gaussian_filter(head().astype(np.float32), 1)


def shifted(volume, shift):
    return np.real(fft.ifftn(ndimage.fourier_shift(fft.fftn(volume), shift))).astype(np.float32)


def test_a_shift_is_measured_and_undone(hr):
    moved = shifted(hr, (0.4, 0, -0.3))
    figures = measure(moved, hr)
    assert figures.shift == pytest.approx(0.5, abs=0.02)
    assert figures.psnr < 40 < 55 < figures.psnr_registered
    assert figures.ssim_registered > figures.ssim and figures.ssim_2d_registered > figures.ssim_2d
    still = measure(hr * 0.98, hr)
    assert still.shift == 0 and still.psnr_registered == still.psnr


def test_slab_step_is_one_without_slabs_and_grows_with_them(hr):
    assert quality.slab_step(hr, hr, 6) == 1
    slabs = np.repeat(np.random.default_rng(0).normal(0, 20, 8), 6).astype(np.float32)
    assert quality.slab_step(hr + slabs, hr, 6) > 1.3
    moved = np.moveaxis(hr + slabs, 2, 0)
    assert quality.slab_step(moved, np.moveaxis(hr, 2, 0), 6, axis=0) == pytest.approx(
        quality.slab_step(hr + slabs, hr, 6)
    )


def test_consistency_needs_the_lr_scan_and_is_zero_for_the_truth(hr):
    lr = kspace.acquire(hr, kspace.Acquisition((2, 2, 1)))
    assert measure(hr, hr).consistency is None
    assert measure(hr, hr, lr).consistency == pytest.approx(0, abs=1e-6)
    assert measure(kspace.tricubic(lr, (2, 2, 1)), hr, lr).consistency > 0.001
    with pytest.raises(ValueError, match="not a whole multiple"):
        measure(hr, hr, lr[:20])


@pytest.fixture
def folders(tmp_path, head):
    affine = np.diag([0.8, 0.8, 0.8, 1])
    for i in range(2):
        hr = np.pad(head(i, (48, 48, 40)), ((0, 1), (0, 0), (0, 0)))  # one voxel more than the LR grid takes
        lr = kspace.acquire(kspace.crop(hr, (2, 2, 2)).astype(np.float32), kspace.Acquisition())
        for name, volume, a in (("hr", hr, affine), ("lr", lr, affine @ np.diag([2, 2, 2, 1]))):
            (tmp_path / name).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(volume, a), tmp_path / name / f"sub-{i}_T1w.nii")
    return tmp_path


def test_interpolation_is_evaluated_like_any_result(folders):
    tricubic = evaluate("tricubic", folders / "hr", folders / "lr")
    sinc = evaluate("sinc", folders / "hr", folders / "lr")
    assert sinc.mean.consistency < 0.8 * tricubic.mean.consistency
    assert tricubic.mean.psnr > 25 and list(tricubic.scans) == ["sub-0_T1w", "sub-1_T1w"]
    one = evaluate("sinc", folders / "hr" / "sub-0_T1w.nii", folders / "lr" / "sub-0_T1w.nii")
    assert one.scans["sub-0_T1w"] == sinc.scans["sub-0_T1w"]
    with pytest.raises(RunError, match="needs the LR scans"):
        evaluate("tricubic", folders / "hr")
    with pytest.raises(RunError, match="is not an LR scan of"):
        evaluate("tricubic", folders / "lr", folders / "hr")
    lr = folders / "lr" / "sub-0_T1w.nii"
    scan = nib.load(lr)
    flipped = nib.Nifti1Image(np.asarray(scan.dataobj)[::-1], scan.affine @ np.diag([-1, 1, 1, 1]))
    flipped.affine[:3, 3] += scan.affine[:3, 0] * (scan.shape[0] - 1)  # the same place in the world
    half = np.eye(4)
    half[0, 3] = 0.25  # half an HR voxel
    drift = np.diag([1.005, 1, 1, 1])  # corners apart, not origins
    for wrong in (flipped, *(nib.Nifti1Image(scan.dataobj, scan.affine @ a) for a in (half, drift))):
        nib.save(wrong, folders / "wrong.nii")
        for way in ("tricubic", folders / "hr" / "sub-0_T1w.nii"):
            with pytest.raises(RunError, match="do not lie on one grid"):
                evaluate(way, folders / "hr" / "sub-0_T1w.nii", folders / "wrong.nii")
    (folders / "lr" / "sub-1_T1w.nii").unlink()
    with pytest.raises(RunError, match=r"no scan named sub-1_T1w, .* in .*lr"):
        evaluate(folders / "hr", folders / "hr", folders / "lr")


def test_scans_of_one_name_are_paired_by_their_folders(folders):
    for side in ("hr", "lr"):
        for i in range(2):
            (folders / f"tree-{side}" / f"{i}").mkdir(parents=True)
            (folders / side / f"sub-{i}_T1w.nii").rename(folders / f"tree-{side}" / f"{i}" / "T1w.nii")
    hr, lr = folders / "tree-hr", folders / "tree-lr"
    assert list(evaluate("sinc", hr, lr).scans) == ["0/T1w", "1/T1w"]
    (lr / "0" / "T1w_lr.nii").write_bytes((lr / "0" / "T1w.nii").read_bytes())
    with pytest.raises(RunError, match=r"have the same name \(0/T1w\)"):
        evaluate("sinc", hr, lr)
    (lr / "0" / "T1w_lr.nii").unlink()
    (hr / "1" / "T1w.nii").rename(hr / "1" / "T2w.nii")
    with pytest.raises(RunError, match="no scan named 1/T1w, "):
        evaluate("sinc", hr, lr)


@pytest.mark.parametrize("slices", [0, 1, 2])
def test_slices_lie_across_the_axis_of_another_factor(tmp_path, head, slices):
    factors = [2, 2, 2]
    factors[slices] = 1
    hr = head(0).astype(np.float32)
    lr = kspace.acquire(hr, kspace.Acquisition(tuple(factors)))
    for name, volume, zooms in (("hr", hr, (1, 1, 1)), ("lr", lr, factors)):
        nib.save(nib.Nifti1Image(volume, np.diag([*zooms, 1])), tmp_path / f"{name}.nii")
    found = evaluate("tricubic", tmp_path / "hr.nii", tmp_path / "lr.nii")
    assert found == evaluate("tricubic", tmp_path / "hr.nii", tmp_path / "lr.nii", axis=slices)
    assert found != evaluate("tricubic", tmp_path / "hr.nii", tmp_path / "lr.nii", axis=(slices + 1) % 3)


def test_tables_hold_every_scan_and_mean_and_sd(folders):
    summary = evaluate("sinc", folders / "hr", folders / "lr")
    assert summary.sd.psnr == pytest.approx(np.std([f.psnr for f in summary.scans.values()]))
    summary.to_json(folders / "q.json")
    summary.to_csv(folders / "q.csv")
    summary.to_markdown(folders / "q.md")
    assert json.loads((folders / "q.json").read_text())["mean"]["psnr"] == summary.mean.psnr
    with open(folders / "q.csv") as file:
        rows = {row["scan"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["sub-0_T1w", "sub-1_T1w", "mean", "sd"]
    assert float(rows["mean"]["psnr_registered"]) == pytest.approx(summary.mean.psnr_registered, rel=1e-4)
    assert "mean ± sd" in (folders / "q.md").read_text()
    unknown = Summary.of({"a": measure(*[np.arange(27 * 64.0, dtype=np.float32).reshape(12, 12, 12)] * 2)})
    assert "consistency" not in unknown.names


def test_figures_do_not_depend_on_how_scans_are_stored(folders):
    name = "sub-0_T1w.nii"
    plain = evaluate("sinc", folders / "hr" / name, folders / "lr" / name).mean
    for side in ("hr", "lr"):
        scan = nib.load(folders / side / name).as_reoriented(np.array([[0, -1], [1, 1], [2, -1]]))
        nib.save(scan, folders / f"{side}-{name}")
    turned = evaluate("sinc", folders / f"hr-{name}", folders / f"lr-{name}").mean
    assert turned.psnr == pytest.approx(plain.psnr, abs=1e-3)
    assert turned.consistency == pytest.approx(plain.consistency, rel=1e-3)


def test_a_result_may_lie_a_whole_voxel_off_the_truth(folders):
    """LR voxel i on stored HR voxel 2i, though that axis runs to the left."""
    hr, lr = (nib.load(folders / side / "sub-0_T1w.nii") for side in ("hr", "lr"))
    mirror = np.diag([-1, 1, 1, 1])
    truth = np.asarray(hr.dataobj)
    affine = fine_affine(mirror @ lr.affine, (2, 2, 2), "fft", (True, False, False))
    for path, volume, where in (
        ("t.nii", truth, mirror @ hr.affine),
        ("l.nii", np.asarray(lr.dataobj), mirror @ lr.affine),
        ("s.nii", np.roll(truth, 1, 0)[:48], affine),
    ):
        nib.save(nib.Nifti1Image(volume, where), folders / path)
    for found in (
        evaluate(folders / "s.nii", folders / "t.nii").mean,
        evaluate(folders / "s.nii", folders / "t.nii", folders / "l.nii").mean,
    ):
        assert found.psnr == np.inf and found.ssim == 1


def test_error_maps_beside_results_are_no_results(folders):
    hr = folders / "hr"
    alone = evaluate("sinc", hr, folders / "lr")
    for name in ("sub-0_T1w_desc-error.nii", "sub-0_desc-error_T1w.nii"):
        (folders / "lr" / name).write_bytes((folders / "lr" / "sub-0_T1w.nii").read_bytes())
    problems = []
    assert evaluate("sinc", hr, folders / "lr", problems=problems) == alone and not problems
