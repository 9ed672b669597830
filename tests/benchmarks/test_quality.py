"""The quality benchmark measures what it says."""

import numpy as np
import pytest
from udean.benchmarks import quality, tissue
from udean.runtime import RunError, SuperResolver
from udean.trainer.simulation import icbm152, kspace


def test_measured_slices_lie_on_the_truth():
    hr = np.broadcast_to(np.arange(40, dtype=np.float32), (4, 4, 40))
    part, inside, truth = quality.middle_slices(hr[::2, ::2, ::2], hr, slices=8)
    assert part.shape == (2, 2, 8 + 2 * quality.MARGIN) and truth.shape == (4, 4, 16)
    assert np.array_equal(np.repeat(part, 2, 2)[0, 0, inside][::2], truth[0, 0, ::2])


@pytest.fixture(scope="module")
def piece():
    return icbm152.cropped_t1()[0][60:124, 70:134, 60:100]


def test_noise_costs_quality_and_a_bias_field_is_no_error(piece):
    resolve = SuperResolver(None, "cpu", "fp32")
    found = {
        c: quality.degraded(piece, c, resolve, 6) for c in ("truncation", "noise 5 %", "bias field 20 %")
    }
    for method in ("tricubic", "sinc", "sr"):
        assert found["noise 5 %"][f"{method} dB"] < found["truncation"][f"{method} dB"] - 3
        assert found["bias field 20 %"][f"{method} dB"] > found["truncation"][f"{method} dB"] - 1


def test_every_degradation_is_one_that_physics_allows(piece):
    lr = [kspace.acquire(piece, kspace.Acquisition((2, 2, 2), **o)) for o in quality.CONDITIONS.values()]
    assert len({volume.tobytes() for volume in lr}) == len(quality.CONDITIONS)


def test_in_tissue_every_method_is_measured_beside_the_others(piece):
    table = tissue.compare(piece, {"sr": lambda lr: kspace.zero_fill(lr, (2, 2, 2))})
    assert set(table) == set(tissue.NOISE)
    for rows in table.values():
        assert rows["sr"] == rows["sinc"] != rows["tricubic"] and tissue.gain(rows) <= 0
    assert table["noise 2 %"]["sr"]["tissue dB"] < table["no noise"]["sr"]["tissue dB"]


def test_heads_that_are_not_there_are_named_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv(tissue.FOLDER, str(tmp_path))
    with pytest.raises(RunError, match="apt-get download mricron-data"):
        dict(tissue.heads())
