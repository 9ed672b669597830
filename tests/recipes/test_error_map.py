"""The weights of expected errors, found again from errors that were drawn by them."""

import numpy as np
import pytest
from udean.benchmarks.error_map import covered
from udean.recipes.error_map import fitted, samples, with_figures
from udean.runtime import SuperResolver
from udean.runtime.pipeline import error_map
from udean.trainer.simulation import kspace

from ..support.fakes import FakeEngine, card, nearest

RANDOM = np.random.default_rng(0)


def test_the_fit_finds_the_weights_and_the_interval_of_gaussian_errors():
    parts = []
    for noise in (0.0, 0.02, 0.03):
        bare = RANDOM.gamma(3, 0.001, 60_000)
        rms = np.sqrt(0.002**2 + (0.6 * noise) ** 2 + (4 * bare) ** 2)
        parts.append(np.stack([np.full_like(bare, noise), bare, np.abs(rms * RANDOM.normal(size=bare.size))]))
    found, mean = fitted(parts), np.sqrt(2 / np.pi)  # of a normal number's magnitude
    assert found["noise"] == pytest.approx(0.6 * mean, rel=0.03)
    assert found["spread"] == pytest.approx(4 * mean, rel=0.03)
    assert found["floor"] == pytest.approx(0.002 * mean, rel=0.3)
    assert found["interval"] == pytest.approx(1.645 / mean, rel=0.02)


def test_an_interval_from_one_head_holds_on_another_like_it():
    def model(**weights):
        plain = card((2, 2, 2), 3, (16, 16)).replace(consistency="truncation")
        return SuperResolver(
            FakeEngine(lambda x: nearest(x, (2, 2, 2)), with_figures(plain, **weights)), error_map=True
        )

    def drawn(seed):
        rough = np.random.default_rng(seed).random((48, 40, 44), np.float32)
        return np.abs(kspace.zero_fill(rough[::4, ::4, ::4], (4, 4, 4))) * 2000

    bare = model(floor=0, noise=0, spread=1, interval=1)
    found = [samples(drawn(seed), noise, bare) for seed, noise in ((0, 0.02), (1, 0.02))]
    weights = fitted(found)
    told = covered(drawn(2), 0.02, model(**weights), weights["interval"])
    assert abs(told["within the interval"] - error_map.SHARE) < 0.05
    assert 0.8 < told["mean error / mean of the map"] < 1.25
