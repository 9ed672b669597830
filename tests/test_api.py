"""docs/api.md: its examples run as they stand, and what it says about the unit of a stream is so."""

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from udean import SuperResolver
from udean.runtime import Intensities
from udean.runtime.engines import choose as engines
from udean.trainer.simulation import icbm152, kspace

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
MODEL = Path(engines.__file__).parents[1] / "models" / "default.onnx"
AFFINE = np.array([[0, 0, 4, -9], [0.5, 0, 0, 3], [0, 0.5, 0, 7], [0, 0, 0, 1]])
pytestmark = pytest.mark.skipif(
    not MODEL.exists(), reason="the embedded model is made by `make default-model`"
)


def test_the_examples_run_and_do_what_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    volume = np.random.default_rng(0).integers(0, 900, (24, 20, 9)).astype(np.int16)
    np.save("volume.npy", volume)
    nib.save(nib.Nifti1Image(volume, AFFINE), "scan.nii.gz")
    shutil.copy(MODEL, "sr.onnx")
    page, names = PAGE.read_text(), {}
    blocks = list(re.finditer(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    assert len(blocks) == page.count("```") / 2 > 8
    for block in blocks:
        line = page.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], PAGE, "exec"), names)

    whole = SuperResolver(crop=False)(volume)
    assert whole.shape == (48, 40, 18) and whole.dtype == np.int16
    found = [np.load(path) for path in sorted(tmp_path.glob("slice-*.npy"))]
    np.testing.assert_array_equal(np.stack(found, 2), whole)
    np.testing.assert_array_equal(names["results"][0], SuperResolver()(volume))
    assert names["sr"].dtype == np.float32
    restored = nib.load("scan_sr.nii.gz")
    assert restored.shape == whole.shape
    np.testing.assert_allclose(restored.affine, AFFINE @ np.diag([0.5, 0.5, 0.5, 1]), atol=1e-5)
    said = capsys.readouterr().out
    assert "in the network" in said and "no-such-model.onnx does not exist" in said


def test_the_unit_of_intensities_need_not_be_exact():
    hr, _ = icbm152.cropped_t1()
    hr = hr[32:160, 40:168, 80:100]
    lr, resolve = kspace.acquire(hr, kspace.Acquisition((2, 2, 2))), SuperResolver(crop=False)
    unit = resolve.intensities(lr).unit

    def psnr(factor):
        known = Intensities(factor * unit)
        return quality(np.stack(list(resolve.stream(np.moveaxis(lr, 2, 0), lr.shape[2], known)), 2))

    def quality(sr):
        return -10 * np.log10(np.mean((sr - hr)[8:-8, 8:-8, 4:-4] ** 2))

    assert all(abs(psnr(factor) - psnr(1)) < 0.2 for factor in (0.75, 1.25))
    assert all(psnr(factor) > quality(kspace.zero_fill(lr, (2, 2, 2))) + 1 for factor in (0.5, 2))
