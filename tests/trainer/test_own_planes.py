"""Self-training on a scan's own planes: what it is shown, and that it learns from it."""

import numpy as np
import pytest
from scipy import ndimage
from udean.runtime.errors import RunError
from udean.runtime.pipeline.through_plane import CHANNELS, ThickSlices
from udean.trainer import own_planes as module
from udean.trainer.nets.through_plane import ThroughPlane
from udean.trainer.own_planes import error, own_planes, tune

STEP = 3.0


def stack(count=12):
    noise = np.random.default_rng(0).standard_normal((64, 60, count))
    sheets = (ndimage.gaussian_filter(noise, (2.5, 2.5, 1)) > 0).astype(np.float32)
    slices = 0.3 + 0.5 * ndimage.gaussian_filter(sheets, (0.6, 0.6, 0))
    return ThickSlices(slices, np.arange(count) * STEP + 1, STEP, int(count * STEP), 0.01)


def test_planes_that_judge_are_not_trained_on_and_samples_add_up_to_planes_of_the_scan():
    train, held_out = own_planes(stack())
    assert not set(train.chosen) & set(held_out.chosen)
    assert len(train.chosen) + len(held_out.chosen) == 12
    shown, missing = train.sample(np.random.default_rng(0))
    assert shown.shape[1] == CHANNELS and missing.shape[1] == 1 and shown.shape[2:] == missing.shape[2:]
    truth = (shown[:, 1:2] + missing).numpy()
    known = set(np.round(train.volume.ravel(), 4))
    assert np.mean([value in known for value in np.round(truth.ravel()[::97], 4)]) > 0.9
    assert float(missing.abs().mean()) > 0.01


def test_a_network_that_knows_nothing_learns_the_scans_own_detail(monkeypatch):
    monkeypatch.setattr(module, "RATE", 2e-3)  # it is not the embedded one, which is nearly right
    train, held_out = own_planes(stack())
    network = ThroughPlane()  # begins as plain interpolation
    tuned = tune(network, train, 120)
    assert error(tuned, held_out) < 0.96 * error(network, held_out)
    assert error(tune(network, train, 25, seconds=0.0001), held_out) == error(network, held_out)


def test_too_few_slices_are_refused():
    with pytest.raises(RunError, match="8 slices"):
        own_planes(stack(6))
