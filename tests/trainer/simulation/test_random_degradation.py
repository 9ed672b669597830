"""Random degradations: within their limits, by the seed, around the nominal one."""

import numpy as np
import pytest
from udean.trainer.simulation import kspace
from udean.trainer.simulation.kspace import Acquisition, Degradation, DegradationError
from udean.trainer.simulation.random_degradation import Variation

WIDE = Variation(
    noise=0.03,
    clean=0.3,
    shaped=0.6,
    partial_fourier=0.75,
    filled=0.7,
    elliptical=True,
    hamming=1,
    tukey=0.5,
    quantised=0.3,
)


def test_draws_lie_between_the_nominal_degradation_and_the_limits():
    nominal = Degradation(noise=0.01, bias=0.1)
    drawn = [WIDE.draw(nominal, seed) for seed in range(400)]
    assert drawn == [WIDE.draw(nominal, seed) for seed in range(400)]
    noise = np.array([d.noise for d in drawn])
    assert noise.min() == 0.01 and 0.035 < noise.max() <= 0.04
    assert np.mean(noise == 0.01) == pytest.approx(0.3, abs=0.07)
    assert all(d.bias == 0.1 for d in drawn)
    for name, low, high in (
        ("partial_fourier", 0.75, 1),
        ("filled", 0.7, 1),
        ("hamming", 0, 1),
        ("tukey", 0, 0.5),
    ):
        values = np.array([getattr(d, name) for d in drawn])
        assert low <= values.min() < values.max() <= high
    shaped = [
        (d.partial_fourier < 1) + (d.filled < 1) + d.elliptical + (d.hamming > 0) + (d.tukey > 0)
        for d in drawn
    ]
    assert set(shaped) == {0, 1} and np.mean(shaped) == pytest.approx(0.6, abs=0.07)
    assert {d.levels for d in drawn} == {0, 120, 255, 1000}


def test_what_does_not_vary_is_the_nominal_degradation():
    nominal = Degradation(noise=0.02, partial_fourier=0.8)
    assert Variation().draw(nominal, 5) == nominal
    assert Variation(noise=0.01).draw(nominal, 5).partial_fourier == 0.8


@pytest.mark.parametrize(
    "wrong",
    [{"clean": 2}, {"noise": -1}, {"shaped": 0.5}, {"shaped": 0.5, "filled": 0.2}, {"quantised": -1}],
    ids=str,
)
def test_an_impossible_variation_is_refused(wrong):
    with pytest.raises(DegradationError):
        Variation(**wrong)


def test_zero_filled_and_tapered_k_space_is_what_its_name_says():
    rng = np.random.default_rng(0)
    hr = 5 + rng.random((48, 48, 48), np.float32)
    space = {}
    for name, options in {
        "all": {},
        "filled": {"filled": 0.5},
        "hamming": {"hamming": 1.0},
        "tukey": {"tukey": 0.5},
    }.items():
        lr = kspace.acquire(hr, Acquisition((2, 2, 2), **options))
        space[name] = np.abs(np.fft.fftshift(np.fft.fftn(lr)))
    middle = space["all"][12, 12, 12]
    np.testing.assert_allclose(space["filled"][12, 12, :5], 0, atol=1e-5 * middle)
    ratio = space["hamming"] / space["all"]
    assert ratio[12, 12, 12] == pytest.approx(1, abs=1e-4)
    assert ratio[12, 12, 0] == pytest.approx(0.08, abs=0.01)  # 0.54 - 0.46
    assert ratio[12, 12, 18] == pytest.approx(0.54, abs=0.01)
    tapered = space["tukey"] / space["all"]
    np.testing.assert_allclose(tapered[12, 12, 7:18], 1, atol=5e-3)
    assert tapered[12, 12, 0] < 1e-3 and tapered[12, 12, 3] == pytest.approx(0.5, abs=0.02)


def test_an_eight_bit_scan_has_that_many_levels():
    hr = np.random.default_rng(0).random((32, 32, 32), np.float32)
    lr = kspace.acquire(hr, Acquisition((2, 2, 2), levels=100))
    plain = kspace.acquire(hr, Acquisition((2, 2, 2)))
    level = np.percentile(plain, 99.9) / 100
    np.testing.assert_allclose(lr / level, np.rint(lr / level), atol=1e-3)
    assert np.abs(lr - plain).max() <= 0.51 * level
