"""The benchmarks of memory and of air measure what they say."""

import json

import nibabel as nib
import numpy as np
import pytest
from udean.benchmarks import common, scaling
from udean.benchmarks.child import in_child

from ..support.fakes import card, onnx_model


def test_a_larger_scan_takes_more_memory_over_what_was_there_before(tmp_path):
    model = onnx_model(tmp_path / "sr.onnx", card((2, 2, 2), 3, (32, 32)))
    over = []
    for shape in ((32, 32, 3), (160, 128, 60)):
        source = tmp_path / f"{shape[0]}.nii"
        nib.save(nib.Nifti1Image(common.textured(shape), np.diag([1, 1, 2, 1])), source)
        where = f"{scaling.__name__}:{scaling.peak_of_scan.__name__}"
        before, peak, seconds = in_child(where, model, source, tmp_path / "out")
        assert 0 < before <= peak and seconds > 0
        over.append(peak - before)
    assert over[1] - over[0] > 160 * 128 * 60 * 8 * 2 / 2  # half the output at least


def test_air_that_is_left_to_interpolation_costs_nothing_in_tissue(tmp_path):
    at = np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij", sparse=True)
    head = 900.0 * (sum(a**2 for a in at) < 0.9) * (1 + 0.2 * np.random.default_rng(0).random((48, 48, 48)))
    nib.save(nib.Nifti1Image(head.astype(np.float32), np.eye(4)), tmp_path / "head.nii")
    scaling.air(tmp_path / "head.nii", "128,112,48", times=1, out=tmp_path)
    found = json.loads((tmp_path / "air.json").read_bytes())
    every, some = found["ways"].values()
    assert found["shape"] == [64, 56, 24] and found["times faster"]["median"] > 0
    # Attention's mean, over less air, is another: of a phantom this small the difference is a few hundredths.
    assert every["tissue dB"] == pytest.approx(some["tissue dB"], abs=0.1) and every["tissue dB"] > 10
