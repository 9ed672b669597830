"""The examination of a model in short: for its card, and to decide whether it may be exported."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..models.card import GridKind
from ..scan.geometry import Factors
from . import phantoms, scanner
from .examine import NOISE, ByMethod, Restore, drawn_in_noise, high_band, noise_gain, phantom_shape
from .lesions import contrast_kept, put_lesions


def prove(resolve: Restore, factors: Factors, grid: GridKind) -> dict[str, ByMethod]:
    """The tests of `examine` that speak for or against a model, by method, on phantoms.

    resolve: LR to SR volume. Raises RunError if `resolve` does.
    """
    methods: dict[str, Restore] = {
        "sr": resolve,
        "sinc": partial(scanner.sinc, factors=factors, grid=grid),
    }
    scan = partial(scanner.acquire, factors=factors, grid=grid)
    hr = phantoms.head_phantom(phantom_shape(factors))
    added, found = put_lesions(hr)
    well, ill = scan(hr), scan(hr + added)
    noisy = scan(hr, noise=NOISE * float(np.percentile(hr, 99.9)))
    tests: dict[str, ByMethod] = {"lesions": {}, "high band": {}, "noise": {}, "nothing": {}}
    for name, method in methods.items():
        restored = method(well)
        tests["lesions"][name] = contrast_kept(added, found, method(ill), restored)
        tests["high band"][name] = high_band(restored, hr, factors, grid)
        tests["noise"][name] = {"gain": noise_gain(method(noisy), restored, noisy, well, hr)}
        tests["nothing"][name] = {"noise": drawn_in_noise(method, scan, factors, grid)}
    return tests


def card_figures(tests: dict[str, ByMethod]) -> dict[str, float]:
    """ByMethod for a card's `quality`: rounded, because the last digits depend on the processor."""
    sr, sinc = tests["lesions"]["sr"], tests["lesions"]["sinc"]
    found = {f"trust.lesions.{radius}": shares["all"] for radius, shares in sr.items()}
    found |= {f"trust.lesions.{radius}.sinc": shares["all"] for radius, shares in sinc.items()}
    found |= {f"trust.high_band.{name}": value for name, value in tests["high band"]["sr"].items()}
    found["trust.noise_gain"] = tests["noise"]["sr"]["gain"]
    found["trust.drawn_in_noise"] = tests["nothing"]["sr"]["noise"]
    return {name: round(value, 2) for name, value in found.items()}
