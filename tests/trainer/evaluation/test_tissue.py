"""Tissue, air and bands, each held to a computation that shares nothing with ours, and to known answers."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from udean.runtime.errors import RunError
from udean.trainer.evaluation.evaluate import evaluate
from udean.trainer.evaluation.tissue import in_tissue, low_band, tissue_mask
from udean.trainer.simulation import kspace


@pytest.fixture
def hr(head):
    """A head with air around it, and texture that an LR scan cannot hold."""
    volume = np.pad(head(0, (40, 36, 32)).astype(np.float64), 8)
    return volume * (1 + 0.1 * np.random.default_rng(0).standard_normal(volume.shape))


def reference(sr, hr, small):
    """The figures by the definition, in double precision, on centred k-space."""

    def low(volume):
        space, kept = np.fft.fftshift(np.fft.fftn(volume)), np.zeros(volume.shape)
        kept[
            tuple(slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(hr.shape, small, strict=True))
        ] = 1
        return np.fft.ifftn(np.fft.ifftshift(space * kept)).real

    peak = np.percentile(hr, 99.9)
    tissue = ndimage.gaussian_filter(hr, 2) > 0.05 * peak
    h, x = (hr - low(hr))[tissue], (sr - low(sr))[tissue]

    def db(error):
        return 10 * np.log10(peak**2 / np.mean(error**2))

    return (
        db((sr - hr)[tissue]),
        db((sr - hr)[~tissue]),
        db((low(sr) - low(hr))[tissue]),
        db(x - h),
        (h * x).sum() / (x * x).sum(),
        (h * x).sum() / np.sqrt((h * h).sum() * (x * x).sum()),
    )


@pytest.mark.parametrize("scale", [(2, 2, 2), (1, 2, 3), (2, 1, 4)])
def test_the_figures_are_those_of_their_definition(hr, scale):
    hr = kspace.crop(hr, scale)
    lr = kspace.acquire(hr, kspace.Acquisition(scale, noise=0.02))
    for sr in (
        kspace.tricubic(lr, scale),
        kspace.zero_fill(lr, scale),
        hr + 0.01 * hr.max() * np.roll(hr > 0, 1),
    ):
        found = dataclasses.astuple(in_tissue(sr, hr, lr.shape))
        known = [
            (own, other)
            for own, other in zip(found, reference(sr, hr, lr.shape), strict=True)
            if own is not None
        ]
        assert len(known) >= 4 and all(own == pytest.approx(other, abs=2e-3) for own, other in known)
    assert None not in found


def test_what_happens_in_air_is_not_tissues(hr):
    mask = tissue_mask(hr)
    assert 0.1 < mask.mean() < 0.9
    noisy = hr + np.where(mask, 0, np.random.default_rng(1).normal(0, 20, hr.shape))
    silent = in_tissue(np.where(mask, hr, 0), hr)
    assert silent.psnr_tissue == float("inf") and in_tissue(noisy, hr).psnr_air < 60
    assert in_tissue(noisy, hr).psnr_tissue == float("inf")
    assert in_tissue(noisy, hr, mask=~mask).psnr_air == float("inf")


@pytest.mark.parametrize("drawn", [0.5, 1.0, 2.0])
def test_the_factor_tells_how_much_detail_was_drawn(hr, drawn):
    hr = hr[1:-1, 1:-1, 1:-1]  # whose halves are odd: no Nyquist frequency belongs to both bands
    low = low_band(hr, tuple(n // 2 for n in hr.shape))
    found = in_tissue(low + drawn * (hr - low), hr, tuple(n // 2 for n in hr.shape))
    assert found.high_factor == pytest.approx(1 / drawn, rel=1e-3)
    assert found.high_correlation == pytest.approx(1, abs=1e-5) and found.psnr_low > 100


def test_what_is_not_there_has_no_figure(hr):
    shape = tuple(n // 2 for n in hr.shape)
    nothing_added = in_tissue(low_band(hr, shape), hr, shape)
    assert nothing_added.high_factor is None and nothing_added.psnr_high is not None
    assert in_tissue(hr, hr).psnr_low is None
    assert in_tissue(hr, hr, mask=np.ones(hr.shape, bool)).psnr_air is None
    assert in_tissue(hr - hr.max(), hr - hr.max()).psnr_tissue is None
    with pytest.raises(ValueError, match="voxels"):
        in_tissue(hr[1:], hr)


def test_a_mask_is_a_scan_on_the_hr_grid(tmp_path, hr):
    lr = kspace.acquire(hr, kspace.Acquisition())
    mask = tissue_mask(hr)
    mask[:20] = False
    for name, volume, zoom in (("hr", hr, 1), ("lr", lr, 2), ("mask", mask, 1), ("none", mask * 0, 1)):
        nib.save(
            nib.Nifti1Image(volume.astype(np.float32), np.diag([zoom] * 3 + [1])), tmp_path / f"{name}.nii"
        )
    hr_file, lr_file = tmp_path / "hr.nii", tmp_path / "lr.nii"
    own = evaluate("sinc", hr_file, lr_file, mask=tmp_path / "mask.nii").mean
    expected = in_tissue(kspace.zero_fill(lr, (2, 2, 2)), hr.astype(np.float32), lr.shape, mask)
    assert own.psnr_tissue == pytest.approx(expected.psnr_tissue, abs=1e-3)
    assert own.psnr_tissue != evaluate("sinc", hr_file, lr_file).mean.psnr_tissue
    with pytest.raises(RunError, match="voxels and"):
        evaluate("sinc", hr_file, lr_file, mask=lr_file)
    with pytest.raises(RunError, match="marks no voxel"):
        evaluate("sinc", hr_file, lr_file, mask=tmp_path / "none.nii")
