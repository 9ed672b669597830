"""The examination's figures where the answer is known: the truth, a blind method, plain interpolation."""

import numpy as np
import pytest
from udean.runtime.trust import phantoms, scanner
from udean.runtime.trust.examine import edge_spread, lost_lesions
from udean.runtime.trust.lesions import put_lesions, transfer
from udean.runtime.trust.page import page


def test_lesions_are_kept_by_the_truth_and_lost_by_the_blind():
    hr = phantoms.head((96, 96, 96))
    added, found = put_lesions(hr)
    assert len(found) >= 8 and {lesion.sign for lesion in found} == {1, -1}
    whole = transfer(added, found, hr + added, hr)
    assert all(share == pytest.approx(1, abs=1e-5) for shares in whole.values() for share in shares.values())
    assert all(shares["all"] == 0 for shares in transfer(added, found, hr, hr).values())
    half = transfer(added, found, hr + 0.5 * added, hr)
    tests = {"lesions": {"sr": {"1": half[1.0]}, "sinc": {"1": whole[1.0]}}}
    assert "0.50" in lost_lesions(tests)[0]
    shown = page({"Model": "<m>"}, tests, lost_lesions(tests))
    assert "&lt;m&gt;" in shown and "<td>0.5</td><td>1</td>" in shown
    assert not lost_lesions({"lesions": {"sr": {"1": whole[1.0]}, "sinc": {"1": half[1.0]}}})


def test_a_blurred_edge_is_wider_and_a_truncated_one_rings():
    sharp, depth = phantoms.edge((72, 48, 48))
    lr = scanner.acquire(sharp, (2, 2, 2), "fft")
    true, cubic = (edge_spread(v, depth) for v in (sharp, scanner.tricubic(lr, (2, 2, 2), "fft")))
    assert true["10 to 90 %, voxels"] < 1.2 < cubic["10 to 90 %, voxels"]
    assert true["overshoot"] < 0.01 < 0.03 < cubic["overshoot"]
    assert true["MTF 50 %, cycles a voxel"] > cubic["MTF 50 %, cycles a voxel"]


@pytest.mark.parametrize("grid", ["fft", "center"])
def test_sinc_undoes_what_the_scanner_does(grid):
    smooth = phantoms.ramp((48, 12, 12))
    lr = scanner.acquire(smooth, (3, 2, 1), grid)
    assert lr.shape == (16, 6, 12)
    assert np.allclose(scanner.sinc(lr, (3, 2, 1), grid), smooth, atol=0.01)
