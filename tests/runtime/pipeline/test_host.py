"""The pipeline's promises: one order, one result, air computed once, threads that end."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from udean.runtime import RunError
from udean.runtime.pipeline.host import LrVolume, resolve_slabs
from udean.runtime.pipeline.tiling import tile_windows
from udean.runtime.system.threads import ahead
from udean.runtime.system.trace import Stopwatch

from ...support.fakes import card, nearest, stitched

CARD = card((2, 2, 2), 3, (8, 8))
NOISE = np.random.default_rng(0).normal(size=(30, 30, 30))


def doubled(windows):
    return nearest(windows, (2, 2, 2))


def test_batch_size_does_not_change_a_pointwise_network():
    volume = np.random.default_rng(0).normal(size=(17, 19, 7)).astype(np.float32)
    plan = tile_windows(volume.shape, CARD, 0.4)
    for batch in (1, 3, 1000):
        np.testing.assert_array_equal(stitched(volume, plan, CARD.scale, batch), nearest(volume, CARD.scale))


def test_identical_windows_are_computed_once():
    volume = np.zeros((40, 40, 9), np.float32)
    volume[:6, :6, :3] = 1
    plan, watch, calls = tile_windows(volume.shape, CARD, 0), Stopwatch(), []

    def network(windows):
        calls.append(len(windows))
        return doubled(windows)

    out = np.concatenate(
        [planes.copy() for _, planes in resolve_slabs(LrVolume(volume), network, plan, 4, watch)]
    )
    np.testing.assert_array_equal(np.moveaxis(out, 0, 2), doubled(volume))
    assert sum(calls) == watch.computed == 2 and watch.windows == len(plan) == 75


@given(*(st.integers(0, n - 1) for n in (32, 32, 6)))
def test_windows_that_differ_in_one_voxel_are_computed_each(i, j, k):
    volume = np.zeros((32, 32, 6), np.int16)
    volume[i, j, k] = 1
    wide, watch = card((2, 2, 2), 3, (16, 16)), Stopwatch()
    plan = tile_windows(volume.shape, wide, 0)
    out = np.concatenate([p.copy() for _, p in resolve_slabs(LrVolume(volume), doubled, plan, watch=watch)])
    np.testing.assert_array_equal(np.moveaxis(out, 0, 2), doubled(volume))
    assert watch.computed == 2 and watch.windows == 8


def test_voxels_are_scaled_on_the_way_in():
    volume = np.arange(-4, 4, dtype=">i2").reshape(2, 2, 2)
    plan = tile_windows(volume.shape, CARD)
    ((_, planes),) = resolve_slabs(LrVolume(volume, 0.5, 3), doubled, plan)
    np.testing.assert_array_equal(np.moveaxis(planes, 0, 2), doubled(volume * np.float32(0.5) + 3))


@pytest.mark.parametrize("network", [lambda x: x, lambda x: doubled(x) * np.nan])
def test_network_that_breaks_its_promise_is_refused(network):
    plan = tile_windows((8, 8, 8), CARD)
    with pytest.raises(RunError, match="The network returned"):
        list(resolve_slabs(LrVolume(np.ones((8, 8, 8))), network, plan))


def test_a_failing_stage_raises_and_no_thread_stays():
    def network(windows):
        raise MemoryError("no memory")

    before = threading.active_count()
    plan = tile_windows((30, 30, 30), CARD)
    with pytest.raises(MemoryError):
        list(resolve_slabs(LrVolume(NOISE), network, plan))
    assert threading.active_count() == before


def test_abandoned_pipeline_ends_its_threads():
    before = threading.active_count()
    plan = tile_windows((30, 30, 30), CARD)
    slabs = resolve_slabs(LrVolume(NOISE), doubled, plan)
    next(slabs)
    slabs.close()
    assert threading.active_count() == before


def test_ahead_keeps_order():
    assert list(ahead(iter(range(100)))) == list(range(100))
