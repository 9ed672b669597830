"""Fixtures shared by tests of the trainer."""

import numpy as np
import pytest
from udean.trainer.simulation import kspace


@pytest.fixture(scope="session")
def head():
    """head(seed, shape): a bright body with smooth structure and a sharp rim, air around it, int16."""

    def make(seed=0, shape=(48, 48, 48)):
        rng = np.random.default_rng(seed)
        grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
        radii = np.array([0.75, 0.65, 0.8])[:, None, None, None]
        body = 1 / (1 + np.exp(40 * (np.sqrt(((grid / radii) ** 2).sum(0)) - 1)))
        structure = kspace.zero_fill(rng.random(tuple(n // 4 for n in shape), np.float32), (4, 4, 4))
        return np.asarray(1000 * body * (0.5 + 0.5 * structure), np.int16)

    return make


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
