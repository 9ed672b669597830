"""The benchmark of memory measures what it says."""

import nibabel as nib
import numpy as np
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
